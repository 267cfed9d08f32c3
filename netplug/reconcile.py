"""Reconciliation of kernel and records: at the start, after a restart of dockerd, after changes by other programs.

One comparison serves all cases. `diff` compares every record's plan with the kernel; `repair` applies the same plans.
An endpoint is dead if its links are missing and no process runs in its sandbox. Its record is then deleted, and its
addresses and ports are released. Objects with netplug's mark that belong to no record are removed.
"""

import asyncio
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from time import process_time

import structlog

from netplug.docker.garbage import GarbageCollector, View
from netplug.drivers import port_ranges, tunnel_tables
from netplug.drivers.naming import short
from netplug.drivers.plan import Plan
from netplug.drivers.sandbox import reaching
from netplug.drivers.steps import (
    Element,
    Flows,
    FormerRules,
    HostPort,
    Loopback,
    Macvlan,
    Relay,
    Resolver,
    Step,
    Table,
    Veth,
)
from netplug.engine import Engine
from netplug.engine.addressing import pass_on
from netplug.engine.audit import orphans
from netplug.engine.conditions import Difference
from netplug.engine.contests import CONTEST
from netplug.engine.firewall_commits import SETTLE_S, Commits
from netplug.engine.foreign_addresses import conflicting
from netplug.engine.happenings import Kind, because
from netplug.engine.link_changes import LinkChanges
from netplug.engine.looks import Look, owners_of
from netplug.engine.quarantine import Unusable
from netplug.engine.record_comparison import RecordComparison, peers_of
from netplug.engine.records import EndpointRecord, FrontEnd, NetworkRecord
from netplug.engine.sandboxes import has_processes, identity, is_there
from netplug.errors import NetplugError
from netplug.kernel.api import MISSING, StepError
from netplug.store.api import StoreError
from netplug.store.leases import IPAM
from netplug.tasks.best_effort import BestEffort

log = structlog.get_logger(__name__)

_Socket = HostPort | Relay
"""Sockets of this process, which end with it."""


class Reconciler:
    """Compares and repairs. `docker`: returns the objects that Docker has; see `GarbageCollector`."""

    def __init__(self, engine: Engine, docker: View | None = None) -> None:
        self._engine = engine
        self._docker = docker is not None
        self._comparison = RecordComparison(engine)
        self.garbage = GarbageCollector(engine, docker)

    # Start

    async def start(self) -> None:
        """Load all records, finish interrupted operations, and repair the kernel."""
        await self.load()
        if self._docker:
            self._engine.allocator.guess_session()
        # A failed repair is retried later; meanwhile requests are served.
        await self._engine.supervisor.attempt("reconcile", self._begin())

    async def _begin(self) -> None:
        for step in self._engine.quarantine.sockets():
            await _tolerate("host", self._engine.executor.apply(Plan((step,))))
        work, look = BestEffort(), await self._comparison.look()
        await self._heal(look, work)
        self._tell_of_start(look)
        engine, networks = self._engine, self._engine.registry.networks()
        await work.do(engine.publishing.converge(*(it.network.id for it in networks)))
        await work.do(engine.base_plan.trim(engine.registry.all_networks))
        work.settle()

    def _tell_of_start(self, look: Look) -> None:
        """Tell what was repaired, in one event: after a restart of the machine that is nearly everything."""
        own = HostPort | Relay | Resolver  # sockets, which end with their process
        if count := len([*(step for step in look.drifted if not isinstance(step, own)), *look.unknown]):
            words = f"{count} {'object was' if count == 1 else 'objects were'} missing, different or left over"
            cause = "it happened while no daemon ran"
            self._engine.happenings.tell(Kind.DRIFT_HEALED, "kernel", words, cause=cause)

    async def load(self) -> None:
        """Load all records, and finish interrupted operations as far as possible."""
        engine = self._engine
        await engine.allocator.load()
        await engine.supervisor.attempt("returned leases", engine.endpoint_leases.return_of_dying())
        await engine.supervisor.attempt("journal", engine.journal.recover())
        await engine.restored.load()
        await engine.registry.load()
        unread = engine.allocator.unreadable.items()
        engine.quarantine.replace(IPAM, {key: Unusable(key, {}, why) for key, why in unread})
        await engine.base_plan.load()
        await engine.host_names.load()
        await engine.supervisor.attempt("leases", self._audit_leases())
        await engine.supervisor.attempt("pending leases", engine.endpoint_leases.settle_all())

    async def _audit_leases(self) -> None:
        """Release leases of networks and endpoints without a record: a crash came before the record was written."""
        allocator = self._engine.allocator
        for found in orphans(self._engine):
            log.info(
                "lease.orphaned", subnet=str(found.pool.network), address=str(found.address or ""), what=found.what
            )
            if found.lease is None:
                await allocator.unbind(found.pool.id, found.holder)
            else:
                others = [it for it in self._engine.registry.networks() if it.network.id != found.lease.owner.id]
                await pass_on(allocator, found.lease, others)

    # Comparison and repair

    async def diff(self) -> list[Difference]:
        """Return all differences. Changes nothing, and skips objects that are being changed at the moment.

        First come differences between kernel and records, then faults that are not in the kernel (`Conditions`).
        """
        return await self.drift() + self._engine.conditions.all()

    async def drift(self) -> list[Difference]:
        """Return the differences between kernel and records alone, as `diff` does."""
        return (await self._comparison.look()).differences

    async def repair(self, *, patient: bool = False, asked: bool = False) -> list[Difference]:
        """Repair what is possible, and return the repaired differences. `asked`: somebody did, see `Restored`.

        `patient`: without what others change back again and again until its next repair is due.

        Raises:
            NetplugError, StoreError, ExceptionGroup: a part failed; the others were done all the same.
        """
        work = BestEffort()
        repaired = await self._repair(work, patient=patient, asked=asked)
        work.settle()
        return repaired

    async def _repair(self, work: BestEffort, *, patient: bool, asked: bool) -> list[Difference]:
        began, contests = process_time(), self._engine.drifts.contests
        if not patient:
            contests.pardon()
        if asked:
            await self._engine.restored.end()
        look, mended = await self._comparison.look(), self._engine.executor.mended
        mended.clear()
        if not await self._heal(look, work):
            self._engine.drifts.remain(look.differences)  # what rests
            return []
        left = await self.drift()
        contests.spent(process_time() - began)
        after = {(it.owner, it.object) for it in (*left, *self._engine.conditions.all(without=CONTEST))}
        repaired = [it for it in look.differences if (it.owner, it.object) not in after]
        # These were logged with their dead endpoints.
        dropped = {step.key for step in look.drifted.keys() - owners_of(self._comparison.plans()).keys()}
        # What was mended and differs already is another program's work.
        again = [it for it in look.differences if it.object in mended and it not in repaired]
        self._engine.drifts.healed(one for one in (*repaired, *again) if one.object not in dropped)
        self._engine.drifts.remain(left)
        return repaired

    async def _heal(self, look: Look, work: BestEffort) -> bool:
        """Repair what a comparison found; return whether it found anything."""
        engine = self._engine
        look = look.without(step for step in look.drifted if engine.drifts.contests.rests(step))
        await work.do(engine.journal.recover())
        await work.do(engine.refused_releases.settle_all())
        await work.do(engine.endpoints.way_out.converge_all())
        stale = await work.do(self._heal_host(look))
        await work.do(engine.convergence.all())
        if engine.base_plan.has_idle_gate(engine.registry.all_networks):
            await work.do(engine.base_plan.trim(engine.registry.all_networks))
        for network in engine.registry.networks():
            await work.do(self._heal_network(network, look))
        await work.do(engine.publishing.regain())
        await work.do(self._learn(look))
        await work.do(self._sweep(look))
        return bool(stale or look.differences)

    async def _heal_host(self, look: Look | None = None) -> bool:
        """Repair what the host has for all networks; return whether it follows the host as it is now.

        `look`: what differs. Without one only what the host, as last read, needs besides is made, and what it needs no
        more is removed.
        """
        base_plan, present = self._engine.base_plan, self._engine.registry.all_networks
        nets = present()
        needed = bool(nets or base_plan.stays())
        wanted = base_plan.wanted(nets)
        stale = needed and wanted != base_plan.plan
        if needed and (stale or (look and look.concerns(base_plan.plan))):
            await _tolerate("host", base_plan.mend(present, self._elements(wanted, look) if look else ()))
        former = base_plan.former_strangers()
        if let_pass := former.intersection(link.name for link in base_plan.host.links):
            log.warning("forwarding.unguarded", links=sorted(let_pass), reason="they are no uplinks any more")
        if former or (base_plan.plan and not needed):  # the store refused it when the last network ended
            await base_plan.trim(present)
        return stale

    def _elements(self, wanted: Plan, look: Look) -> list[Element]:
        """Return the elements that come with those tables of the host that will be made anew."""
        there = set(self._engine.base_plan.plan) - look.drifted.keys()
        anew = {f"{it.family} {it.name}" for it in wanted if isinstance(it, Table) and it not in there}
        if not anew:
            return []
        found = self._engine.convergence.elements() + _former_members(look.unknown)
        return [it for it in found if isinstance(it, Element) and it.table in anew]

    async def _heal_network(self, network: NetworkRecord, look: Look) -> None:
        engine, ident = self._engine, network.network.id
        endpoints = [record for record in engine.registry.endpoints(ident) if look.concerns(record.present)]
        if not endpoints and not look.concerns(network.plan + engine.peers.plan(ident)):
            return
        async with engine.registry.lock(ident):
            if network not in engine.registry.networks():
                return
            if look.concerns(network.plan):
                await _tolerate(network.described, engine.executor.mend(network.plan))
            if look.concerns(engine.peers.plan(ident)):
                await _tolerate(peers_of(network), engine.peers.mend(ident))
            sockets = {it.key for it in endpoints if all(isinstance(step, _Socket) for step in look.of(it.present))}
            await self._heal_sockets([it for it in self._still(endpoints) if it.key in sockets], look)
            for endpoint in (it for it in self._still(endpoints) if it.key not in sockets):
                await _tolerate(endpoint.described, self._heal_endpoint(endpoint, look))

    def _still(self, records: Iterable[EndpointRecord]) -> Iterator[EndpointRecord]:
        """Yield the records that are still those of their endpoints."""
        registry = self._engine.registry
        return (it for it in records if registry.find(it.endpoint.network, it.endpoint.id) is it)

    async def _heal_sockets(self, records: Iterable[EndpointRecord], look: Look) -> None:
        """Open the sockets of endpoints that lack nothing else, as after each start: nothing depends on them."""
        owners = {step: record.described for record in records for step in look.of(record.present)}
        try:
            await self._engine.executor.mend(Plan(tuple(owners)))
        except ExceptionGroup as group:
            for error in group.exceptions:
                owner = owners.get(error.step, "host") if isinstance(error, StepError) else "host"
                log.warning("repair.failed", owner=owner, error=str(error))

    async def _heal_endpoint(self, record: EndpointRecord, look: Look) -> None:
        """Repair an endpoint. Links in a runtime's sandbox cannot be created again; those of a bare namespace can."""
        engine = self._engine
        plan = record.present
        links = [step for step in plan if isinstance(step, Veth | Macvlan | Loopback)]
        ours = record.front_end is not FrontEnd.DOCKER
        there = ours and look.concerns(plan) and await is_there(engine.kernel.sandboxes, record)
        if any(look.drifted.get(link) == MISSING for link in links):
            lives = await has_processes(engine.kernel.sandboxes, record)
            if there:
                log.info("endpoint.rebuilt", endpoint=short(record.endpoint.id))
            elif not lives:
                log.info("endpoint.dead", endpoint=short(record.endpoint.id), name=record.name)
                with because("its link is missing, and no process runs in its sandbox"):
                    await engine.endpoints.drop(record)
                return
            else:
                plan = plan.without(step.key for step in links)
        elif ours and not there:  # the namespace still exists, held by a process or at another path, out of reach
            plan = Plan(tuple(step for step in plan if step not in links and not getattr(step, "netns", None)))
        if not any(port_ranges.leads(step) and step in look.drifted for step in plan):
            # No packet passed unfiltered. To search all tracked connections would take longer than all else.
            plan = plan.without(step.key for step in plan if isinstance(step, Flows))
        await engine.executor.mend(reaching(plan, plan, record.sandbox, record.sandbox_id))

    async def _learn(self, look: Look) -> None:
        """Record the namespace of complete endpoints: Docker creates it after it has named it."""
        work = BestEffort()
        for record in self._engine.registry.endpoints():
            if record.sandbox_id or not record.linked or look.concerns(record.plan):
                continue
            if ident := await identity(self._engine.kernel.sandboxes, record.sandbox):
                await work.do(self._engine.endpoints.identify(record, ident))
        work.settle()

    async def _sweep(self, look: Look) -> None:
        """Remove objects with netplug's mark that belong to no record."""
        if not look.unknown or self._engine.restored.keeps:
            return

        def unknown() -> Plan:
            found = self._comparison.unknown(look.unknown)
            if found:
                log.info("orphans.removed", objects=[step.key for step in found])
            return Plan(tuple(found))

        async with self._engine.base_plan.still():
            await _tolerate("host", self._engine.journal.sweep(unknown))

    # In the background

    async def run(self) -> None:
        """Compare and repair at intervals, and after each notification, until cancelled."""
        suspects, keep = self.garbage.suspects(), self._engine.supervisor.keep
        async with asyncio.TaskGroup() as group:
            changes, base_plan = self._engine.kernel.changes, self._engine.base_plan
            links = LinkChanges(changes.ours(), base_plan, self._engine.drifts.contests, self._on_time)
            group.create_task(keep("look", links.run))
            commits = Commits(changes.commits(), changes.tables(), base_plan, self._repaired_something)
            group.create_task(keep("commits", commits.run))
            group.create_task(keep("host", self._on_change_of_host))
            group.create_task(self.garbage.run(suspects, self._repaired_something))

    async def _on_time(self) -> bool:
        found = await self._repaired_something()
        await self._engine.supervisor.attempt("leases", self._engine.allocator.expire())
        return found

    async def _on_change_of_host(self) -> None:
        """Follow addresses, links and MTUs of the host at once; what shall be is computed anew, nothing is compared."""
        changes = self._engine.kernel.changes.underlay()
        while True:
            await changes.wait()
            await asyncio.sleep(SETTLE_S)
            changes.clear()
            with because("addresses or links of the host changed"):
                await self._engine.supervisor.attempt("host", self._follow_host())
            await asyncio.sleep(self._engine.base_plan.rest_s())

    async def _follow_host(self) -> None:
        host, networks = await self._engine.base_plan.read_host(), self._engine.registry.networks()
        self._engine.conditions.report("conflict", conflicting(host, networks))
        work = BestEffort()
        await work.do(self._heal_host())
        await work.do(self._engine.convergence.all())
        work.settle()

    async def _repaired_something(self) -> bool:
        """Compare and repair; return whether a difference was found."""
        found: list[Difference] = []

        async def note() -> None:
            found.extend(await self.repair(patient=True))

        return bool(await self._engine.supervisor.attempt("reconcile", note())) or bool(found)


def _former_members(unknown: Sequence[Step]) -> Plan:
    """Return the elements that a former release had in tables of its own, and that the cluster has to tell first."""
    items = (item for step in unknown if isinstance(step, FormerRules) for item in step.members)
    return Plan(tuple(tunnel_tables.member(item) for item in items))


async def _tolerate(owner: str, work: Awaitable[object]) -> None:
    """Log a failed repair, so that one object does not stop the repair of others."""
    try:
        await work
    except (NetplugError, StoreError, ExceptionGroup) as exc:
        for error in exc.exceptions if isinstance(exc, ExceptionGroup) else (exc,):
            log.warning("repair.failed", owner=owner, error=str(error))
