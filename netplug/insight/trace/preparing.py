"""Finds out, before anything is sent, where a packet goes: addresses, routes, wiring, and what to watch."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address

from netplug.drivers.bridge import link_of as bridge_of
from netplug.drivers.steps import IPAddress
from netplug.errors import NetplugError
from netplug.insight.links import link_of, owner
from netplug.insight.trace.ends import End, Ends, Kind, outside
from netplug.insight.trace.model import HOST_PLACE, Place
from netplug.insight.trace.path import Crossing, Wiring, host_link, wiring
from netplug.insight.trace.target import ICMP, Target, passing_by
from netplug.kernel.probes.api import HOST, Facts, Look, Prober, RouteFound

_SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_max",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/icmp_echo_ignore_all",
)
BEYOND = {4: ip_address("192.0.2.1"), 6: ip_address("2001:db8::1")}
"""Addresses of documentation (RFC 5737, RFC 3849): they stand for somebody outside where the host has no router."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """`facts`: by namespace. `route`: the source's, None if it sends from outside."""

    crossing: Crossing
    facts: dict[str, Facts]
    destination: IPAddress
    port: int
    source: IPAddress | None
    route: RouteFound | None


class Preparing:
    """Looks at the places of a path."""

    def __init__(self, ends: Ends, prober: Prober) -> None:
        self._ends = ends
        self._prober = prober

    async def source_facts(self, source: End, name: str = "") -> Facts:
        """Look at where is sent from; `name`: also at what its resolver reads to ask for it."""
        return await self._look(source.place, listeners=True, name=name)

    async def address(self, source: End, target: Target) -> tuple[IPAddress, End | None]:
        """Return the address of a DST that is no name to ask for, and its end if that is known already.

        Raises:
            NetplugError: "not_found", "invalid": nothing is meant by it.
        """
        version = preferred_version(source, target)
        if target.address:
            return target.address, outside(target.address) if target.outside else None
        if target.outside:
            found = await self.beyond(version)
            return found, outside(found)
        if target.is_host:
            return await self._of_host(source, version), None
        end = self._ends.called(target.name) or self._ends.elsewhere(target.name, source)
        if end is None:
            raise NetplugError("not_found", f"there is no endpoint {target.name[:80]!r}", hint="see netplug ps")
        found_address = self._shared_address(source, end, version)
        if found_address is None:
            raise NetplugError("invalid", f"{end.place.name} has no address: its network gives none")
        return found_address, replace(end, address=found_address)

    async def beyond(self, version: int) -> IPAddress:
        """Return the address of the host's router, or one that stands for outside."""
        facts = await self._prober.look(Look(HOST, routes=((BEYOND[version], None),), links=False, neighbours=False))
        gateway = facts.lookups[0].gateway if facts.lookups else None
        return gateway if gateway and not gateway.is_link_local else BEYOND[version]

    async def _of_host(self, source: End, version: int) -> IPAddress:
        """Return the address of the host that a source knows: its gateway, else that of the uplink."""
        for record in source.records:
            network = self._ends.network(record)
            for subnet in network.subnets:
                found = subnet.gateway if network.options.mode not in {"macvlan", "none"} else subnet.host
                if found and found.version == version:
                    return found.ip
        look = Look(HOST, routes=((BEYOND[version], None),), links=True, neighbours=False)
        host = await self._prober.look(look)
        preferred = host.lookups[0].preferred if host.lookups else None
        own = [it.ip for link in host.links for it in link.addresses if it.version == version and link.name != "lo"]
        return preferred or next((it for it in own if not it.is_link_local), ip_address("127.0.0.1"))

    def _shared_address(self, source: End, end: End, version: int) -> IPAddress | None:
        """Return the address in a network that both are in, else any."""
        mine = {it.endpoint.network for it in source.records}
        records = sorted(end.records, key=lambda it: it.endpoint.network not in mine)
        found = [one.ip for it in records for one in it.endpoint.addresses]
        return next((it for it in found if it.version == version), next(iter(found), None))

    async def prepare(
        self, source: End, address: IPAddress, port: int, proto: str, end: End | None = None, *, source_facts: Facts
    ) -> Prepared:
        """Compute the crossing, and look at the other places."""
        version = address.version
        sender = await self._sender(source, version)
        host, here = await self._host_and_source(source, address, sender, source_facts)
        route = next(iter(here.lookups), None) if source.kind is not Kind.OUTSIDE else None
        sender = sender or (route.preferred if route else None)
        destination = self._destination(source, address, port, proto, end, host)
        if source.kind is Kind.OUTSIDE and destination.kind is Kind.OUTSIDE:
            raise passing_by()
        facts = {HOST: host, source.place.netns: here}
        if destination.far:
            crossing = self._to_other_host(source, destination, facts, route)
            return Prepared(crossing, facts, address, port, sender, route)
        if destination.kind is Kind.SANDBOX and destination.place.netns not in facts:
            facts[destination.place.netns] = await self._other(destination, sender)
        elif destination.kind is Kind.SANDBOX:
            facts[destination.place.netns] = await self._look(
                destination.place, listeners=True, routes=((address, None),)
            )
        crossing = await self._policed(self._crossing(source, destination, facts, route, address), sender)
        return Prepared(crossing, facts, address, port, sender, route)

    async def _policed(self, crossing: Crossing, sender: IPAddress | None) -> Crossing:
        """Correct the uplink by rules that look at sender and receiving link (ip-rule(8): from, iif).

        Answers of a sandbox to outside are taken to leave by the link at which they are asked for.
        """
        ends, destination = (crossing.source, crossing.destination), crossing.destination.address
        if not any(it.kind is Kind.OUTSIDE for it in ends) or sender is None or destination is None:
            return crossing
        to, by = (destination, crossing.way_in) if crossing.way_in else (sender, crossing.way_out)
        received = host_link(by)
        if not received:
            return crossing
        query = (to, sender if to == destination else destination, received)
        found = (await self._prober.look(Look(HOST, links=False, neighbours=False, forwards=(query,)))).forwards
        return replace(crossing, uplink=found[0].link) if found and found[0].link else crossing

    async def _sender(self, source: End, version: int) -> IPAddress | None:
        if source.kind is Kind.OUTSIDE:
            return source.address or await self.beyond(version)
        return None

    async def _host_and_source(
        self, source: End, address: IPAddress, sender: IPAddress | None, known: Facts
    ) -> tuple[Facts, Facts]:
        routes: list[tuple[IPAddress, IPAddress | None]] = [(address, None)]
        if sender:
            routes.insert(0, (sender, address if self._ends.is_own(address) else None))
        host = self._look(HOST_PLACE, routes=tuple(routes), listeners=True)
        if source.kind is not Kind.SANDBOX:
            found = await host
            return found, found
        # Only the route is new: the rest was read before.
        look = Look(source.place.netns, routes=((address, None),), links=False, neighbours=False)
        found, way = await asyncio.gather(host, self._prober.look(look))
        return found, replace(known, lookups=way.lookups)

    async def _other(self, destination: End, sender: IPAddress | None) -> Facts:
        routes = ((sender, destination.address),) if sender else ()
        return await self._look(destination.place, listeners=True, routes=routes)

    async def _look(
        self,
        place: Place,
        *,
        routes: Sequence[tuple[IPAddress, IPAddress | None]] = (),
        listeners: bool = False,
        name: str = "",
    ) -> Facts:
        return await self._prober.look(
            Look(
                place.netns,
                tuple(routes),
                _SYSCTLS,
                neighbours=False,
                listeners=listeners,
                resolv_conf=bool(name),
                name=name,
            )
        )

    def _destination(self, source: End, address: IPAddress, port: int, proto: str, end: End | None, host: Facts) -> End:
        """Return who has an address: a sandbox, this host with its published ports, or somebody outside."""
        if end and end.kind is Kind.OUTSIDE:
            return end
        if source.kind is Kind.SANDBOX and (address.is_loopback or source.holder(address)):
            return replace(source, address=address)
        if found := self._ends.at(address):
            return replace(found, address=address)
        if address.is_loopback or any(it.ip == address for link in host.links for it in link.addresses):
            return self._of_ports(address, port, proto, host)
        if found := self._ends.elsewhere(address, source):
            return found
        return outside(address)

    def _of_ports(self, address: IPAddress, port: int, proto: str, host: Facts) -> End:
        plain = End(Kind.HOST, HOST_PLACE, address=address)
        if proto == ICMP:
            return plain
        if published := self._ends.behind(address, port, proto):
            return published
        taken = any((it.proto, it.port) == (proto, port) for it in host.listeners)
        receiver = None if taken or address.is_loopback else self._ends.receiver(address.version)
        return replace(receiver, port=port) if receiver else plain

    def _crossing(
        self, source: End, destination: End, facts: dict[str, Facts], route: RouteFound | None, address: IPAddress
    ) -> Crossing:
        host, inside = facts[HOST], facts[source.place.netns]
        if source.kind is Kind.SANDBOX and source.place == destination.place and not destination.via:
            return Crossing(source, destination, direct=True, routed=False)
        if source.kind is Kind.HOST and destination.kind is Kind.HOST:
            return Crossing(source, destination, direct=True, routed=False)
        way_in = wiring(route.link, source, inside, host) if source.kind is Kind.SANDBOX and route else None
        way_out = self._way_out(destination, facts[destination.place.netns], host) if destination.records else None
        routed = route is None or route.gateway is not None or destination.via is not None
        return Crossing(source, destination, way_in, way_out, _uplink(source, destination, host, address), routed)

    def _to_other_host(
        self, source: End, destination: End, facts: dict[str, Facts], route: RouteFound | None
    ) -> Crossing:
        """Return the crossing up to the bridge whose tunnel leads to the other host."""
        assert destination.far is not None  # noqa: S101 - the caller has looked
        inside, host = facts[source.place.netns], facts[HOST]
        way_in = wiring(route.link, source, inside, host) if source.kind is Kind.SANDBOX and route else None
        bridge = bridge_of(destination.far.record.network)
        way_out = Wiring("", bridge=bridge, record=destination.record)
        routed = route is None or route.gateway is not None or way_in is None
        uplink = _uplink(source, destination, host, source.address) if source.address else ""
        return Crossing(source, destination, way_in, way_out, uplink, routed)

    @staticmethod
    def _way_out(destination: End, inside: Facts, host: Facts) -> Wiring | None:
        """Return how the destination is wired at its address."""
        record = destination.holder(destination.address) or destination.record
        link = link_of(record, inside) if record else None
        if link is None:
            link = next((it for it in inside.links if any(a.ip == destination.address for a in it.addresses)), None)
        if link is None and record is None:
            return None
        if link is None and record:
            return Wiring(record.ifname or record.attachment.prefix + "0", port=_port(record), record=record)
        assert link is not None  # noqa: S101 - the cases before have returned
        found = wiring(link.name, destination, inside, host)
        return found if found.record else replace(found, record=owner(link, destination.records))


def _port(record: object) -> str:
    link = getattr(record, "host_link", None)
    return link.name if link else ""


def _uplink(source: End, destination: End, host: Facts, address: IPAddress) -> str:
    """Return the link by which the host hears the source outside, or sends to the destination there."""
    wanted = host.lookups[0] if source.kind is Kind.OUTSIDE and host.lookups else None
    if wanted is None and destination.kind is Kind.OUTSIDE:
        wanted = next((it for it in host.lookups if it.destination == address), None)
    return wanted.link if wanted else ""


def preferred_version(source: End, target: Target) -> int:
    """Return the IP version in which something is sent, where the user does not say."""
    if target.address:
        return target.address.version
    if source.address:
        return source.address.version
    versions = {one.version for it in source.records for one in it.endpoint.addresses}
    return 6 if versions == {6} else 4
