"""The default route of a sandbox: which of its networks provides it, for each IP version.

The network with the highest `gw_priority` does; of several with the same one, that with the lowest `metric`, then the
one that provides it already, then the first by interface name. So it does not matter in which order networks came, went
or were changed: `converge` computes it from the records at any time. Sandboxes of Docker are left to Docker.

A network that does not provide the default route still answers what comes in by its link (`SourceRoute`): its published
ports work, and so do the connections that were there when the route moved.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import structlog

from netplug.drivers.api import Network
from netplug.drivers.errors import DriverError
from netplug.drivers.naming import short
from netplug.drivers.plan import Plan
from netplug.drivers.steps import EVERYTHING, Route, SourceRoute
from netplug.engine.convergence import Change
from netplug.engine.journal import Intent, Journal
from netplug.engine.planning import Planner
from netplug.engine.records import EndpointRecord, FrontEnd
from netplug.engine.registry import Registry, put
from netplug.errors import NetplugError
from netplug.kernel.api import StepError
from netplug.store.api import StoreError
from netplug.tasks.locks import Locks

log = structlog.get_logger(__name__)

_VERSIONS = (4, 6)
_USUAL_METRIC = 100
"""What a network without a metric counts as, as with netavark."""


class WayOut:
    """Gives each sandbox one default route of each IP version, as long as one of its networks has a gateway."""

    def __init__(self, registry: Registry, journal: Journal, planner: Planner) -> None:
        self._registry = registry
        self._journal = journal
        self._planner = planner
        self._sandboxes = Locks()
        self._refused: set[tuple[str, int]] = set()
        """Endpoints and IP versions for which another program's default route stays."""

    def free(self, netns: str, netns_id: str, but: str = "") -> set[int]:
        """Return the IP versions of which nobody in a sandbox provides the default route. `but`: a key left out."""
        taken = (other.ways for other in self._registry.in_sandbox(netns, netns_id) if other.key != but)
        return set(_VERSIONS).difference(*taken)

    async def converge(self, sandbox: str, sandbox_id: str = "", leaving: str = "") -> None:
        """Have the default routes of a sandbox provided by the networks that shall. No lock of a network is held.

        It costs nothing if they are. A route moves by one request, without a gap. `leaving`: key of an endpoint that
        is about to leave, and provides no longer.

        Raises:
            NetplugError: a route cannot be made; the one that there was may be gone.
        """
        here = {one.key for one in self._registry.in_sandbox(sandbox, sandbox_id)}
        self._refused = {one for one in self._refused if one[0] not in here} if self._refused else self._refused
        await self._converge(sandbox, sandbox_id, leaving)

    async def _converge(self, sandbox: str, sandbox_id: str, leaving: str = "") -> None:
        if not self._moves(sandbox, sandbox_id, leaving):
            return
        async with self._sandboxes.hold(sandbox_id or sandbox):
            for winner, version in self._moves(sandbox, sandbox_id, leaving):
                here = self._registry.in_sandbox(sandbox, sandbox_id)
                others = [one for one in here if one.key not in {winner.key, leaving} and version in one.ways]
                if await self._take_over(winner, version, others):
                    log.info("way_out.moved", endpoint=short(winner.endpoint.id), sandbox=sandbox, version=version)
                    for other in others:
                        await self._change(other, version, provides=False)

    async def _take_over(self, winner: EndpointRecord, version: int, others: Sequence[EndpointRecord]) -> bool:
        """Move the default route from others, whose connections stay; tell whether it moved."""
        moved = False
        try:
            for other in others:
                await self._keep_answering(other, version)
            moved = await self._change(winner, version, provides=True)
        finally:
            for other in () if moved else others:
                with tolerant(other.sandbox):
                    await self._as_before(other)
        return moved

    async def converge_all(self) -> None:
        """Do so for each sandbox, as far as possible: a crash may have come in between."""
        records = (one for one in self._registry.endpoints() if one.sandbox and one.front_end is not FrontEnd.DOCKER)
        for sandbox, sandbox_id in {(one.sandbox, one.sandbox_id): None for one in records}:
            with tolerant(sandbox):
                await self._converge(sandbox, sandbox_id)
                for one in filter(_answers_beside, self._movable(sandbox, sandbox_id)):
                    async with self._sandboxes.hold(sandbox_id or sandbox):
                        await self._as_before(one)  # the store refused that when a route did not move

    def preview(self, net: Network, endpoints: Sequence[EndpointRecord]) -> list[Change]:
        """Return the default routes that move once a network and its endpoints are so.

        Routes that the endpoints' own plans gain or lose are left out.
        """
        found: list[Change] = []
        later = {one.key: one for one in endpoints}
        for sandbox, ident in dict.fromkeys((one.sandbox, one.sandbox_id) for one in endpoints if one.sandbox):
            here = [later.get(one.key, one) for one in self._movable(sandbox, ident)]
            for winner, version in self._chosen(here, "", net):
                if version not in winner.ways:
                    found.append(Change(winner.described, _default(winner, version), "added"))
                losers = (one for one in here if one is not winner and version in one.ways)
                found += [Change(one.described, _default(one, version), "removed") for one in losers]
        return found

    def priority(self, record: EndpointRecord, net: Network | None = None) -> int:
        """Return the priority of an endpoint: its own, else that of its network. `net`: a network that is otherwise."""
        own, ident = record.endpoint.options.gw_priority, record.endpoint.network
        if own is not None:
            return own
        found = self._registry.find_network(ident)
        known = net if net and net.id == ident else found.network if found else None
        return known.options.gw_priority if known else 0

    def _moves(self, sandbox: str, sandbox_id: str, leaving: str) -> list[tuple[EndpointRecord, int]]:
        """Return who shall provide which IP version and does not, or not alone."""
        here = self._movable(sandbox, sandbox_id)
        return [*self._chosen(here, leaving)] if len(here) > 1 or any(map(_lacks, here)) else []

    def _movable(self, sandbox: str, sandbox_id: str) -> list[EndpointRecord]:
        """Return the endpoints of a sandbox whose default routes we make."""
        here = self._registry.in_sandbox(sandbox, sandbox_id)
        return [one for one in here if one.front_end is not FrontEnd.DOCKER]

    def _chosen(
        self, here: Collection[EndpointRecord], leaving: str, net: Network | None = None
    ) -> Iterator[tuple[EndpointRecord, int]]:
        priorities = {one.key: self.priority(one, net) for one in here}
        ranked = len(here) == 1 or any(priorities.values())
        for version in _VERSIONS:
            able = [one for one in here if one.key != leaving and version in _offered(one)]
            # Of several, a CNI configuration says which has the default route; unless the user ranks them.
            able = [one for one in able if ranked or one.front_end is not FrontEnd.CNI or version in one.ways]
            if not able:
                continue
            winner = max(able, key=lambda one: (priorities[one.key], -_metric(one), version in one.ways))
            if (winner.key, version) in self._refused:
                continue
            if version not in winner.ways or any(version in one.ways for one in here if one is not winner):
                yield winner, version

    async def _keep_answering(self, record: EndpointRecord, version: int) -> None:
        """Let an endpoint answer what comes in by its link, whoever provides the default route."""
        async with self._registry.lock(record.endpoint.network):
            built = self._present(record)
            if built is None:
                return
            later = self._with(built, built.ways - {version}).plan
            new = Plan(tuple(step for step in later if isinstance(step, SourceRoute) and step not in built.plan))
            if new:
                now = replace(built, plan=built.plan + new).summarized()
                key, _ = await self._journal.build(Intent(f"way out of {built.sandbox}", new))
                await self._journal.commit(key, [put(now)])
                self._registry.remember(now)

    async def _as_before(self, record: EndpointRecord) -> None:
        """Undo that for who provides the default route all the same."""
        async with self._registry.lock(record.endpoint.network):
            built = self._present(record)
            if built is None:
                return
            kept = {step.key for step in self._with(built, built.ways).plan}
            gone = Plan(tuple(step for step in built.plan if isinstance(step, SourceRoute) and step.key not in kept))
            if gone:
                now = replace(built, plan=built.plan.without(step.key for step in gone)).summarized()
                written = partial(self._registry.remember, now)
                await self._journal.move(Intent(f"way out of {built.sandbox}", gone), Plan(()), [put(now)], written)

    async def _change(self, record: EndpointRecord, version: int, *, provides: bool) -> bool:
        """Let an endpoint provide the default route, in place of what there is, or no longer; tell whether it did.

        Who provides it no longer still answers what comes in by its link.
        """
        async with self._registry.lock(record.endpoint.network):
            built = self._present(record)
            if built is None:
                return False
            now = self._with(built, built.ways | {version} if provides else built.ways - {version})
            # Of two that provide it, the kernel has the route of either.
            new = [step for step in now.plan if step not in built.plan or (provides and _is_way(step, version))]
            keys = {step.key for step in now.plan}
            gone = [step for step in built.plan if step.key not in keys]
            what = f"way out of {built.sandbox}"
            try:
                key, _ = await self._journal.build(Intent(what, Plan(tuple(new))))
            except StepError as error:
                if error.kind != "exists" or not now.front_end.shares:
                    raise
                self._refused.add((now.key, version))  # of another plugin; it stays, see `EndpointBuilder`
                return False
            after = Intent(what, Plan(tuple(gone)))
            await self._journal.replace(key, after, [put(now)], lambda: self._registry.remember(now))
        return True

    def _present(self, record: EndpointRecord) -> EndpointRecord | None:
        """Return an endpoint as it is by now, if it still is in the same sandbox."""
        found = self._registry.find(record.endpoint.network, record.endpoint.id)
        return found if found and (found.sandbox, found.sandbox_id) == (record.sandbox, record.sandbox_id) else None

    def _with(self, built: EndpointRecord, ways: Collection[int]) -> EndpointRecord:
        """Return an endpoint that provides default routes of these IP versions."""
        net = self._registry.network(built.endpoint.network).network
        now = self._planner.new_endpoint(net, built, built.given_routes, ways)
        if _else(now.plan) == _else(built.plan):
            return now
        # Its plan follows from other facts by now; bringing that about is not our matter.
        ours = Plan(tuple(step for step in now.plan if _leads_out(step)))
        return replace(built, plan=_else(built.plan) + ours).summarized()


@contextmanager
def tolerant(sandbox: str) -> Iterator[None]:
    """Log what fails; the sandbox may be gone."""
    try:
        yield
    except (NetplugError, DriverError, StoreError) as exc:
        log.warning("way_out.missing", sandbox=sandbox, error=str(exc))


def _answers_beside(record: EndpointRecord) -> bool:
    """Whether an endpoint provides the default route, and also answers as one that does not."""
    return any(isinstance(step, SourceRoute) and step.source.version in record.ways for step in record.plan)


def _offered(record: EndpointRecord) -> set[int]:
    """Return the IP versions of which an endpoint can provide its sandbox's default route."""
    seen = record.attachment
    if seen.link is None:
        return set()
    listed = {route.destination.version for route in seen.routes if not route.destination.prefixlen}
    return listed | {gateway.version for gateway in seen.gateways}


def _metric(record: EndpointRecord) -> int:
    return record.attachment.metric or _USUAL_METRIC


def _lacks(record: EndpointRecord) -> bool:
    return not _offered(record) <= record.ways


def _is_way(step: object, version: int = 0) -> bool:
    """Whether a step is a default route in a sandbox, of an IP version or of any."""
    return isinstance(step, Route) and step.leads_out and version in {0, step.destination.version}


def _leads_out(step: object) -> bool:
    return _is_way(step) or isinstance(step, SourceRoute)


def _else(plan: Plan) -> Plan:
    return Plan(tuple(step for step in plan if not _leads_out(step)))


def _default(record: EndpointRecord, version: int) -> str:
    """Return the key of the default route by an endpoint."""
    return Route(EVERYTHING[version], record.ifname, netns=record.sandbox).key
