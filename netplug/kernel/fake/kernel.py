"""A kernel in memory, as strict as the real one: for tests, and for trying a plan without doing it.

What it refuses, the real one refuses with the same kind of error; `tests/contract` holds both to it. Each namespace has
links, addresses and routes; a sandbox is there until `vanish`. What others own is set through `Foreign`.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from netplug.drivers import port_ranges
from netplug.drivers.api import HostFacts
from netplug.drivers.firewall import RESOLVER_PORT
from netplug.drivers.steps import (
    Address,
    Element,
    HostPort,
    IPNetwork,
    Macvlan,
    Relay,
    Resolver,
    Route,
    SourceRoute,
    Step,
    Table,
    Veth,
)
from netplug.kernel.api import Before, Comparison, Done, Drift, Outcome, Owned, StepError
from netplug.kernel.fake.handlers import HANDLERS, FakeHandler
from netplug.kernel.fake.inspection import FakeInspection, Health
from netplug.kernel.fake.interception import FakeInterception
from netplug.kernel.fake.ports import FakePorts
from netplug.kernel.fake.probes import FakeProbes
from netplug.kernel.fake.services import (
    FakeChanges,
    FakeFirewall,
    FakeProbe,
    FakeResolution,
    FakeResolvers,
    FakeSandboxes,
    FakeTraffic,
)
from netplug.kernel.fake.tables import lose_table
from netplug.kernel.fake.world import Foreign, World
from netplug.kernel.links.api import LinkCounters
from netplug.kernel.progress import Progress, merged
from netplug.tasks.signal import Signal


class FakeKernel:
    """A kernel in memory.

    `calls`: how many ensures and removes it got, and of how many steps. `inhabitants`: paths of sandboxes that a
    process lives in. `intercepted`: by path of the sandbox. `counted`: see `FakeTraffic`. `changed`: set it to say that
    others changed something; `moved`: that addresses or the mtu of their links did; `rerouted`: that routes did.
    `health`: what else the host tells of itself. `resolution`: how the host itself resolves names.
    """

    def __init__(
        self, foreign: Foreign | None = None, packages: Mapping[type[Step], FakeHandler] = MappingProxyType({})
    ) -> None:
        self.foreign = foreign or Foreign()
        self.health = Health()
        self.resolution = FakeResolution()
        self.calls: list[tuple[str, int]] = []
        self.inhabitants: set[str] = set()
        self.intercepted: dict[str, FakeInterception] = {}
        self.counted: dict[str, LinkCounters] = {}
        self.changed = asyncio.Event()
        self.committed = asyncio.Event()
        self.touched = asyncio.Event()
        self.moved = Signal()
        self.rerouted = asyncio.Event()
        self._world = World(self.foreign)
        self._failures: set[str] = set()
        self._handlers = {**HANDLERS, **packages}

    # What tests do to it

    def fail_at(self, key: str) -> None:
        """Make each `ensure` of this step fail from now on."""
        self._failures.add(key)

    def heal(self) -> None:
        """Forget all failures."""
        self._failures.clear()

    def lose(self, key: str) -> None:
        """Let someone else delete an object, with all that hangs on it."""
        step = self._world.state.pop(key, None)
        if isinstance(step, Table):
            lose_table(self._world, step)
        if step:
            self._world.cascade(step)

    def vanish(self, netns: str) -> None:
        """Destroy a sandbox."""
        self._world.gone.add(netns)
        self._world.looped.discard(netns)
        for step in list(self._world.state.values()):
            moved = (isinstance(step, Macvlan) and step.moved == netns) or self._world.away.get(step.key) == netns
            if moved or (isinstance(step, Veth | Address | Route | SourceRoute | Macvlan) and step.netns == netns):
                self.lose(step.key)

    def appear(self, netns: str) -> None:
        """Make a new namespace at the path of one that vanished."""
        self._world.gone.discard(netns)
        self._world.lives[netns] += 1

    def move(self, step: Veth | Macvlan, netns: str) -> None:
        """Let a runtime move a link, or the sandbox side of a veth, into its sandbox."""
        self._world.away[step.key] = netns

    def tune(self, step: Veth | Macvlan, mtu: int) -> None:
        """Let others change the MTU of a link in its sandbox; of a veth, of its sandbox side."""
        self._world.tuned[step.key] = mtu

    def sandbox_mtu(self, step: Veth | Macvlan) -> int:
        """Return the MTU of a link in its sandbox; of a veth, of its sandbox side."""
        return self._world.sandbox_mtu(step)

    def tamper(self, step: Step) -> None:
        """Let someone else change an object of ours to be as this step says."""
        self._world.state[step.key] = step

    def leads(self) -> list[Element | Relay]:
        """Return what leads published ports to containers; relayed ones only where they are of one address alone."""
        found = [step for step in self._world.state.values() if isinstance(step, Relay) or port_ranges.leads(step)]
        resolver = f" . {RESOLVER_PORT}"  # port 53 of a gateway leads to the host itself: see `Resolver`
        return [
            step
            for step in found
            if (isinstance(step, Relay) and not step.host.is_unspecified)
            or (isinstance(step, Element) and step.set.startswith("published") and not step.data.endswith(resolver))
        ]

    def dump(self) -> str:
        """Return all that is ours, as text: what to compare in a test."""
        lines = [*map(str, sorted(self._world.state))]
        lines += [f"sysctl {name}={value}" for name, value in sorted(self._world.sysctls.items())]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<FakeKernel\n{self.dump()}\n>"

    # What the protocol wants

    async def ensure(
        self, steps: Sequence[Step], outcomes: list[Outcome] | None = None, before: Before | None = None
    ) -> list[Outcome]:
        """Apply the steps; see `Kernel`."""
        self.calls.append(("ensure", len(steps)))
        done: list[Outcome] = [] if outcomes is None else outcomes
        for step in steps:
            await asyncio.sleep(0)
            self._fail(step)
            Progress(done, before).record(step, self._ensure_whole(step))
        return done

    async def remove(self, steps: Sequence[Step]) -> None:
        """Remove what the steps name; see `Kernel`."""
        self.calls.append(("remove", len(steps)))
        errors: list[Exception] = []
        for step in steps:
            await asyncio.sleep(0)
            try:
                for part in port_ranges.each(step):
                    self._handler(part).remove(self._world, part)
            except StepError as error:
                errors.append(error)
        if errors:
            raise ExceptionGroup("some objects could not be removed", errors)

    async def drift(self, steps: Sequence[Step]) -> list[Drift]:
        """Return the steps that are missing or differ; see `Kernel`."""
        found = ((step, next(filter(None, map(self._drift, port_ranges.each(step))), "")) for step in steps)
        return [Drift(step, what) for step, what in found if what]

    async def compare(self, steps: Sequence[Step]) -> Comparison:
        """Return drift, owned and facts; see `Kernel`."""
        self._world.remembers = True
        return Comparison(tuple(await self.drift(steps)), await self.owned(), await self.facts())

    async def owned(self) -> Owned:
        """Return what bears our mark; see `Kernel`."""
        handlers = dict.fromkeys(self._handlers.values())
        return Owned(tuple(step for it in handlers for step in sorted(it.owned(self._world), key=_key)))

    async def facts(self) -> HostFacts:
        """Return what drivers may know of the host; see `Kernel`."""
        here = [step for step in self._world.state.values() if isinstance(step, Address | Route) and not step.netns]
        routes: list[tuple[IPNetwork, str]] = [
            (step.address.network if isinstance(step, Address) else step.destination, step.link) for step in here
        ]
        routes += [(address.network, link) for link, address in self.foreign.addresses]
        routes += [(route.destination, route.link) for route in self.foreign.routes]
        return replace(
            self.foreign.facts,
            firewalld=self._world.firewalld(),
            links=self._world.link_facts(),
            addresses=tuple(
                (address, link)
                for link, address in (
                    *((step.link, step.address) for step in here if isinstance(step, Address)),
                    *self.foreign.addresses,
                )
                if not address.is_loopback
            ),
            routes=tuple(route for route in dict.fromkeys(routes) if route[0].prefixlen),
            forwarding=self._world.forwarding(),
            advertised=tuple(
                (link, int(self._world.sysctls.get(f"net/ipv6/conf/{link}/accept_ra", value)))
                for link, value in self.foreign.facts.advertised
                if link in self._world.names()
            ),
        )

    async def settle(self) -> None:
        """Do nothing: links are gone at once."""

    @property
    def ports(self) -> FakePorts:
        """Ports of the host."""
        return FakePorts(self._world)

    @property
    def sandboxes(self) -> FakeSandboxes:
        """Namespaces; all are there that did not `vanish`."""
        return FakeSandboxes(self._world, self.inhabitants, self.intercepted)

    @property
    def resolvers(self) -> FakeResolvers:
        """Sockets that receive no queries."""
        return FakeResolvers()

    @property
    def probe(self) -> FakeProbe:
        """Stations that tests have put on every segment as `Foreign.forwarding_entries`."""
        return FakeProbe(self._world)

    @property
    def traffic(self) -> FakeTraffic:
        """What tests have put into `counted`."""
        return FakeTraffic(self._world, self.counted)

    @property
    def changes(self) -> FakeChanges:
        """The events that tests set."""
        return FakeChanges(self.changed, self.committed, self.touched, self.moved, self.rerouted)

    @property
    def firewall(self) -> FakeFirewall:
        """What tests have put into `Foreign.firewall`."""
        return FakeFirewall(self.foreign.firewall, self.foreign.facts.gates)

    @property
    def probes(self) -> FakeProbes:
        """None."""
        return FakeProbes()

    @property
    def inspection(self) -> FakeInspection:
        """What tests have put into `health`."""
        return FakeInspection(self._world, self.health)

    async def close(self) -> None:
        """Let go of the ports, as the end of the process does; the next one may have a loop of its own."""
        self.changed = asyncio.Event()
        self.resolution.restarted = asyncio.Event()
        self.committed = asyncio.Event()
        self.touched = asyncio.Event()
        self.moved = Signal()
        self.rerouted = asyncio.Event()
        self._world.lost.clear()
        self._world.remembers = False
        for step in list(self._world.state.values()):
            if isinstance(step, HostPort | Relay | Resolver):
                del self._world.state[step.key]

    # Each kind of step

    def _ensure_whole(self, step: Step) -> Done:
        """Apply a step completely or not at all."""
        state, done = self._world.state, dict[Step, Outcome]()
        handler = self._handler(step)
        before = {part.key: state[part.key] for part in port_ranges.each(step) if part.key in state}
        try:
            for part in port_ranges.each(step):
                done[part] = outcome = handler.ensure(self._world, part)
                if outcome is not Outcome.USED and handler.keeps:
                    state[part.key] = part
        except StepError as error:
            for part, outcome in done.items():
                if outcome is Outcome.CREATED:
                    state.pop(part.key, None)
                elif part.key in before:
                    state[part.key] = before[part.key]
            raise StepError(error.kind, step, error.message, hint=error.hint) from error
        found = merged(done, before)
        return found if handler.puts_back else Done(found.outcome)

    def _drift(self, step: Step) -> str:
        try:
            return self._handler(step).drift(self._world, step)
        except StepError as error:
            return error.message

    def _handler(self, step: Step) -> FakeHandler:
        if handler := self._handlers.get(type(step)):
            return handler
        words = f"step type {type(step).__name__!r} of {type(step).__module__} has no handler"
        raise StepError("invalid", step, words, hint="its package must register it")

    def _fail(self, step: Step) -> None:
        if step.key in self._failures:
            raise StepError("internal", step, f"{step.key!r} fails because a test wants it to")


def _key(step: Step) -> str:
    return step.key
