"""Brings networks and endpoints from the plans that were applied to those that follow from their records today.

One mechanism for all that changes what lives: other facts of the host (its tunnel address, an MTU), another version of
a driver, options that a user changed. What is new is applied first, then what is no longer wanted is reverted, so that
traffic goes on as far as the change allows.
"""

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import structlog

from netplug.drivers import port_ranges, shared
from netplug.drivers.api import HostFacts, Scope
from netplug.drivers.naming import short
from netplug.drivers.plan import Plan
from netplug.drivers.registry import Drivers
from netplug.drivers.sandbox import reaching
from netplug.drivers.steps import Element, Step
from netplug.engine.conditions import Conditions, Difference
from netplug.engine.journal import Intent, Journal
from netplug.engine.peers import Peers
from netplug.engine.planning import Planner
from netplug.engine.records import EndpointRecord, NetworkRecord
from netplug.engine.registry import Record, Registry, put
from netplug.errors import Reportable
from netplug.kernel.api import StepError
from netplug.kernel.executor import Executor
from netplug.store.api import Delete, Put, StoreError
from netplug.tasks.turns import aside, in_turns
from netplug.tasks.uncancellable import uncancellable

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """A change to an object of the kernel.

    `owner`, `object`: as in `Difference`. `what`: "added", "changed" or "removed".
    """

    owner: str
    object: str
    what: str


@dataclass(frozen=True, slots=True)
class _Move:
    """A record as it is, and as it follows.

    `new`: steps to apply, `gone`: steps to revert. `former`: the steps that were applied, by key.
    """

    owner: str
    before: Record
    after: Record
    new: tuple[Step, ...] = ()
    gone: tuple[Step, ...] = ()
    former: Mapping[str, Step] = field(default_factory=dict)

    def changes(self) -> Iterator[Change]:
        """Return what it changes in the kernel. Objects that are not ours stay as they are."""
        theirs = self.before.used if isinstance(self.before, NetworkRecord) else ()
        for step in self.new:
            if step.key in theirs:
                continue
            there = any(part.key in self.former for part in port_ranges.each(step))
            yield Change(self.owner, step.key, "changed" if there else "added")
        for step in self.gone:
            yield Change(self.owner, step.key, "removed")

    def added(self) -> Iterator[Step]:
        """Return the steps whose objects were not there."""
        for step in self.new:
            yield from (part for part in port_ranges.each(step) if part.key not in self.former)

    def altered(self) -> Plan:
        """Return the former steps of objects that change."""
        parts = (part for step in self.new for part in port_ranges.each(step))
        former = Plan(tuple(self.former[part.key] for part in parts if part.key in self.former))
        return _reaching(former, Plan(self.new), self.after)


class Convergence:
    """Computes the plans of networks anew, with those of their endpoints, and brings the kernel to them.

    `network` follows the facts of the host, best effort. `change` follows a user, all or nothing.
    """

    def __init__(
        self,
        registry: Registry,
        planner: Planner,
        journal: Journal,
        executor: Executor,
        peers: Peers,
        drivers: Drivers,
        conditions: Conditions,
    ) -> None:
        self._registry = registry
        self._planner = planner
        self._journal = journal
        self._executor = executor
        self._peers = peers
        self._drivers = drivers
        self._conditions = conditions
        self._changing: dict[str, frozenset[str]] = {}
        self._behind: dict[str, str] = {}

    def changing(self) -> frozenset[str]:
        """Return the keys of the steps that are being applied now."""
        return frozenset().union(*self._changing.values())

    async def all(self) -> None:
        """Bring all networks to what follows today. One that fails keeps no other from it."""
        for record in self._registry.networks():
            await self.network(record.network.id)
        self._report()  # a network that failed may be gone

    def elements(self) -> Plan:
        """Return all elements of tables that follow today: a table that is made anew has them from the beginning.

        Of a network whose driver fails they are those that were applied; its own comparison tells why.
        """
        found: dict[str, Step] = {}
        for record in self._registry.networks():
            try:
                steps = self._today_of(record)
            except Exception as exc:  # noqa: BLE001 - whatever a driver of another package raises
                log.info("elements.former", network=short(record.network.id), error=str(exc))
                present = (step for it in self._registry.endpoints(record.network.id) for step in it.present)
                steps = [*record.plan, *present]
            steps += self._peers.plan(record.network.id)
            found |= {step.key: step for step in steps if isinstance(step, Element)}
        return Plan(tuple(found.values()))

    def _today_of(self, record: NetworkRecord) -> list[Step]:
        """Return the plan of a network with those of its endpoints, as they follow today."""
        net = record.network
        steps = [*self._planner.network(net)]
        for endpoint in self._registry.endpoints(net.id):
            after = self._planner.endpoint(net, endpoint)
            steps += replace(after, exposed=self._planner.exposed(net, after)).present
        return steps

    async def network(self, ident: str) -> bool:
        """Bring a network and its endpoints to what follows today, best effort; return whether anything changed.

        What the kernel refuses then differs from the record, and is repaired as any difference.
        """
        record = self._registry.find_network(ident)
        if record is None or self._planner.follows(record):
            if self._behind.pop(ident, None) is not None:  # another change has done it
                self._report()
            return False
        try:
            changed = await self._follow(ident)
        except Exception as exc:
            # Whatever a driver of another package raises, the other networks follow.
            self._planner.forget(ident)
            if not isinstance(exc, Reportable | StoreError):
                log.exception("network.behind", network=short(ident), name=record.network.name)
            self._behind[ident] = str(exc) or repr(exc)
            changed = False
        else:
            self._behind.pop(ident, None)
        self._report()
        return changed

    def _report(self) -> None:
        """Report the networks that do not follow from their records, and why."""
        known = [(self._registry.find_network(ident), why) for ident, why in self._behind.items()]
        found = [Difference(it.described, "plan", f"does not follow its record: {why}") for it, why in known if it]
        self._conditions.report("convergence", found)

    @uncancellable
    async def _follow(self, ident: str) -> bool:
        async with self._registry.lock(ident):
            record = self._registry.find_network(ident)
            moves = await self._moves(record) if record else []
            if record is None or not moves:
                return False
            what = record.described
            for change in (change for move in moves for change in move.changes()):
                log.info("step.converged", owner=change.owner, object=change.object, what=change.what)
            with self._applying(ident, moves):
                failed, used = await self._journal.move(
                    Intent(what, _gone(moves)), _new(moves), await _puts(moves), lambda: self._remember(moves)
                )
            for error in failed:
                log.warning("converge.failed", owner=what, error=str(error))
            for move in moves if used else ():
                if (settled := _using(move, used)) != move:
                    await self._registry.save(settled.after)
            await self._peers.follow(ident)
            return True

    async def preview(self, record: NetworkRecord) -> tuple[list[Change], list[EndpointRecord]]:
        """Return what it takes until a network is as this record says, and its endpoints as they are then.

        Raises:
            DriverError: the driver refuses.
        """
        try:
            moves = await self._moves(record)
        finally:
            self._planner.forget(record.network.id)
        later = {move.after.key: move.after for move in moves if isinstance(move.after, EndpointRecord)}
        endpoints = [later.get(one.key, one) for one in self._registry.endpoints(record.network.id)]
        return [change for move in moves for change in move.changes()], endpoints

    @uncancellable
    async def change(self, record: NetworkRecord) -> list[Change]:
        """Bring a network and its endpoints to what follows from a changed record; the caller holds its lock.

        An endpoint whose sandbox is gone keeps nobody from it. It then differs from its record, and is deleted as any
        dead one.

        Raises:
            NetplugError, DriverError, StoreError: and nothing was changed.
        """
        ident = record.network.id
        try:
            moves = await self._moves(record)
            if moves:
                with self._applying(ident, moves):
                    await self._change(record.described, moves)
        except BaseException:
            self._planner.forget(ident)
            raise
        await self._peers.follow(ident)
        return [change for move in moves for change in move.changes()]

    async def _change(self, what: str, moves: Sequence[_Move]) -> None:
        puts = asyncio.ensure_future(_puts(moves))  # while the kernel works
        try:
            key, used = await self._apply(what, moves)
            written = await puts
        finally:
            puts.cancel()
        settled = [_using(move, used) for move in moves]
        # Only the network's record tells of objects that are somebody else's.
        written = [op if now is then else put(now.after) for op, now, then in zip(written, settled, moves, strict=True)]
        try:
            await self._journal.replace(key, Intent(what, _gone(settled)), written, lambda: self._remember(settled))
        except StoreError:
            await self._restore(moves)
            raise

    async def _apply(self, what: str, moves: Sequence[_Move]) -> tuple[str, tuple[str, ...]]:
        """Apply what is new, as `Journal.build` does, without endpoints whose sandboxes are gone."""
        applied = list(moves)
        while True:
            added = Plan(tuple(step for move in applied for step in move.added()))
            try:
                return await self._journal.build(Intent(what, added), _new(applied))
            except StepError as error:
                await self._restore(applied)
                dead = [one for one in applied if error.step in one.new and isinstance(one.after, EndpointRecord)]
                if error.kind != "not_found" or not dead:
                    raise
                applied = [move for move in applied if move not in dead]
            except BaseException:
                await self._restore(applied)
                raise

    async def _restore(self, moves: Iterable[_Move]) -> None:
        """Put back what was altered; what cannot be differs from its record, and is repaired later."""
        former = (step for move in moves for step in move.altered())
        try:
            await self._executor.mend(Plan(tuple(former)))
        except ExceptionGroup as group:
            for error in group.exceptions:
                log.warning("converge.failed", owner="host", error=str(error))

    def _remember(self, moves: Iterable[_Move]) -> None:
        for move in moves:
            self._registry.remember(move.after)

    @contextmanager
    def _applying(self, ident: str, moves: Iterable[_Move]) -> Iterator[None]:
        self._changing[ident] = frozenset(port_ranges.keys(step for move in moves for step in move.new))
        try:
            yield
        finally:
            del self._changing[ident]

    # What follows

    def _today(self, record: NetworkRecord, host: HostFacts) -> NetworkRecord:
        """Return a network's record with what follows from the host where the user left it open: the MTU.

        A network of several hosts has one MTU, which is in its definition.
        """
        net = record.network
        driver, options = self._drivers.of(net), net.options
        given = shared.MTU.key in self._drivers.keys_of(record.options, options.mode)
        segment = driver.segment(net)
        known = host.link(segment) if segment else host.uplink
        if driver.scope is not Scope.LOCAL or given or not known:
            return record
        mtu = driver.complete(replace(options, mtu=0), host).mtu
        return (
            record if mtu == options.mtu else replace(record, network=replace(net, options=replace(options, mtu=mtu)))
        )

    async def _moves(self, record: NetworkRecord) -> list[_Move]:
        """Return the records that change if the network is as `record` says, with all plans computed anew."""
        before = self._registry.network(record.network.id)
        record = self._today(record, self._planner.begin(record.network))
        net = record.network
        self._planner.settle(net)
        plan = self._planner.network(net)
        keys = {step.key for step in plan}
        used = tuple(key for key in before.used if key in keys)
        after = replace(record, plan=plan, used=used).summarized()
        moves = [move for move in [_move(before.described, before, after, before.plan, plan, before.used)] if move]
        async for endpoint in in_turns(self._registry.endpoints(net.id)):
            later = self._planner.endpoint(net, endpoint)
            exposed = await aside(len(later.exposed), self._planner.exposed, net, later)
            later = replace(later, exposed=endpoint.exposed if _same(endpoint.exposed, exposed) else exposed)
            if move := _move(endpoint.described, endpoint, later, endpoint.present, later.present):
                moves.append(move)
        return moves


def _move(owner: str, before: Record, after: Record, old: Plan, new: Plan, used: Collection[str] = ()) -> _Move | None:
    """Return how a record changes, None if it does not. `used`: keys of steps whose objects are not ours."""
    if after == before:
        return None
    same = frozenset(old) & frozenset(new)  # with thousands of ports in a step
    former = {part.key: part for step in old if step not in same for part in port_ranges.each(step)}
    wanted = set(port_ranges.keys(step for step in new if step not in same))
    rest = (step for step in new if step not in same)
    fresh = tuple(step for step in rest if any(former.get(it.key) != it for it in port_ranges.each(step)))
    gone = tuple(port_ranges.less((step for step in old if step not in same), wanted.union(used)))
    return _Move(owner, before, after, _reaching(Plan(fresh), old, after).steps, gone, former)


def _reaching(plan: Plan, former: Plan, record: Record) -> Plan:
    """Return a plan that is to be applied in place of a former one, in the record's sandbox too."""
    return reaching(plan, former, record.sandbox, record.sandbox_id) if isinstance(record, EndpointRecord) else plan


def _same(one: Plan, other: Plan) -> bool:
    """Whether two plans of published ports have the same steps, however these are joined to ranges."""
    return one == other or set(_parts(one)) == set(_parts(other))


def _parts(plan: Plan) -> Iterator[Step]:
    return (part for step in plan for part in port_ranges.each(step))


def _using(move: _Move, used: Collection[str]) -> _Move:
    """Return a move with those of its steps noted whose objects are somebody else's."""
    if not isinstance(move.after, NetworkRecord) or not used:
        return move
    mine = tuple(step.key for step in move.new if step.key in used)
    return replace(move, after=replace(move.after, used=tuple(dict.fromkeys((*move.after.used, *mine)))).summarized())


def _new(moves: Sequence[_Move]) -> Plan:
    return _network_first(moves, [move.new for move in moves])


def _gone(moves: Sequence[_Move]) -> Plan:
    return _network_first(moves, [move.gone for move in moves])


def _network_first(moves: Iterable[_Move], plans: Sequence[tuple[Step, ...]]) -> Plan:
    """Return the steps of a network, and then those of its endpoints, which build on them."""
    first = [plan for move, plan in zip(moves, plans, strict=True) if isinstance(move.after, NetworkRecord)]
    rest = [plan for move, plan in zip(moves, plans, strict=True) if isinstance(move.after, EndpointRecord)]
    return Plan(tuple(step for plan in first for step in plan)) + _together(rest)


def _together(plans: Sequence[tuple[Step, ...]]) -> Plan:
    """Return the steps of several plans, of which none builds on another, with steps of one type side by side.

    The kernel takes neighbours of one type at once.
    """
    left = [list(reversed(plan)) for plan in plans if plan]
    found: list[Step] = []
    while left:
        kind = type(left[0][-1])
        for plan in left:
            while plan and type(plan[-1]) is kind:
                found.append(plan.pop())
        left = [plan for plan in left if plan]
    return Plan(tuple(found))


async def _puts(moves: Sequence[_Move]) -> list[Put | Delete]:
    return [put(move.after) async for move in in_turns(moves)]
