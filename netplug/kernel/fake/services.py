"""What the engine asks of a host besides steps, in the memory of a fake kernel."""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address

from netplug.drivers.steps import IPAddress, Macvlan, Route
from netplug.errors import NetplugError
from netplug.kernel.fake.interception import FakeInterception
from netplug.kernel.fake.world import World
from netplug.kernel.firewall.api import FirewallReport
from netplug.kernel.host.api import Authority, Way
from netplug.kernel.links.api import LinkCounters, SandboxLink
from netplug.kernel.sandbox.api import Serve
from netplug.tasks.signal import Signal


@dataclass(frozen=True, slots=True)
class FakeSandboxes:
    """Namespaces; see `Sandboxes`. `inhabitants`: paths of those that a process lives in."""

    world: World
    inhabitants: Collection[str]
    intercepted: dict[str, FakeInterception]

    async def find(self, ref: str) -> tuple[str, str]:
        """Find a namespace; all are there that did not vanish."""
        path = ref if "/" in ref else f"/run/netns/{ref}"
        if path in self.world.gone:
            raise NetplugError("not_found", f"there is no network namespace {ref!r}")
        return path, self.world.identity(path)

    async def has_processes(self, path: str, netns_id: str = "") -> bool:
        """Tell whether `path` was marked as having processes, and is still the same namespace."""
        return path in self.inhabitants and netns_id in {"", self.world.identity(path)}

    async def gateways(self, path: str) -> frozenset[IPAddress]:
        """Return the gateways of our default routes in a namespace, and of those that a runtime made."""
        routes = (step for step in self.world.state.values() if isinstance(step, Route) and step.netns == path)
        ours = {step.gateway for step in routes if step.gateway and not step.destination.prefixlen}
        return frozenset(ours | self.world.foreign.gateways.get(path, set()))

    async def intercept(self, path: str, server: IPv4Address) -> FakeInterception:
        """Listen on this host's own loopback link instead, which has 127.0.0.0/8 too."""
        await self.find(path)
        return FakeInterception(self.intercepted, path, server)


class FakeResolvers:
    """Sockets of name servers; see `ResolverSockets`."""

    def serve_resolvers(self, serve: Serve) -> None:
        """Accept the server; no queries arrive."""


@dataclass(frozen=True, slots=True)
class FakeProbe:
    """Stations on segments; see `ConflictProbe`."""

    world: World

    async def addresses_in_use(self, link: str, addresses: Collection[IPAddress]) -> Mapping[IPAddress, str]:
        """Return those that tests have put there."""
        if link not in self.world.names():
            words = f"the segment of link {link!r} cannot be asked for an address: no such device"
            raise NetplugError("unavailable", words)
        there = self.world.foreign.forwarding_entries
        return {address: there[address] for address in addresses if address in there}


@dataclass(frozen=True, slots=True)
class FakeTraffic:
    """Counters of links; see `Traffic`. Nothing passes, but for what tests put into `counted`, by name of the link."""

    world: World
    counted: Mapping[str, LinkCounters]

    async def of_host(self, links: Collection[str]) -> Mapping[str, LinkCounters]:
        """Return those of links that are there."""
        return {name: self.counted.get(name, LinkCounters()) for name in self.world.names().intersection(links)}

    async def of_sandboxes(self, links: Collection[SandboxLink]) -> Mapping[SandboxLink, LinkCounters]:
        """Return those of macvlans that are in these sandboxes."""
        macvlans = [step for step in self.world.state.values() if isinstance(step, Macvlan)]
        there = [(self.world.away.get(step.key, step.netns), step.ifname, step.mac) for step in macvlans]
        return {
            link: self.counted.get(link.mac, LinkCounters())
            for link in links
            if any(link.netns == netns and (link.name == name or link.mac == mac) for netns, name, mac in there)
        }


@dataclass(frozen=True, slots=True)
class FakeChanges:
    """Events that tests set; see `Changes`."""

    changed: asyncio.Event
    committed: asyncio.Event
    touched: asyncio.Event
    moved: Signal
    rerouted: asyncio.Event

    def ours(self) -> asyncio.Event:
        """Return the event that says that others changed something."""
        return self.changed

    def commits(self) -> asyncio.Event:
        """Return the event that says that others changed the firewall."""
        return self.committed

    def tables(self) -> asyncio.Event:
        """Return the event that says that others changed tables of ours."""
        return self.touched

    def underlay(self) -> asyncio.Event:
        """Return an event that says that links of others changed."""
        return self.moved.listen()

    def routes(self) -> asyncio.Event:
        """Return the event that says that routes changed."""
        return self.rerouted


class FakeFirewall:
    """The firewall that a test has made up."""

    def __init__(self, report: FirewallReport, gates: Collection[tuple[int, str]]) -> None:
        self._report = report
        self._gates = frozenset(gates)

    def gates(self) -> frozenset[tuple[int, str]]:
        """Return those of the facts."""
        return self._gates

    async def report(self) -> FirewallReport:
        """Return it."""
        return self._report


class FakeResolution:
    """The resolver of the host; see `Resolution`. `known`: what it was told. `found`: how; None: it cannot be told."""

    def __init__(self) -> None:
        self.found: Way | None = Way.RESOLVED
        self.known: dict[Way, Authority] = {}
        self.waits = 0
        self.restarted = asyncio.Event()

    async def way(self) -> Way:
        """Return `found`."""
        if self.found is None:
            raise NetplugError("unavailable", "resolv.conf names no resolver")
        return self.found

    async def lead(self, way: Way, authority: Authority) -> bool:
        """Note it."""
        before = self.known.get(way)
        self.known[way] = authority
        return before != authority

    async def forget(self, way: Way, authority: Authority) -> None:  # noqa: ARG002
        """Forget it."""
        self.known.pop(way, None)

    async def changed(self) -> None:
        """Wait for a test."""
        self.waits += 1
        await self.restarted.wait()
        self.restarted.clear()
