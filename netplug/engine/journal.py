"""Changes to the kernel that survive a crash in the middle.

An intent always means: *if this is still here after a crash, revert the plan and delete the records*. That holds for
building and for taking down, so recovery has one case.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Collection, Container, Iterator, Sequence
from dataclasses import dataclass, replace

import structlog

from netplug.drivers import port_ranges
from netplug.drivers.codec import decode, encode
from netplug.drivers.plan import Plan
from netplug.drivers.steps import Step
from netplug.engine.quarantine import Quarantine, Unusable, unusable
from netplug.kernel.api import Outcome
from netplug.kernel.executor import Executor
from netplug.store.api import Delete, Put, Store, StoreError
from netplug.tasks.best_effort import BestEffort
from netplug.tasks.turns import aside
from netplug.tasks.uncancellable import uncancellable

log = structlog.get_logger(__name__)

PREFIX = "journal/"
_NOTHING = Plan()


@dataclass(frozen=True, slots=True)
class Intent:
    """What to revert and to delete if the process dies before the intent is cleared. `drop`: keys of records."""

    what: str
    plan: Plan
    drop: tuple[str, ...] = ()


async def _nothing() -> None:
    pass


class Journal:
    """Applies and reverts plans between two transactions.

    After a crash or a failure at any point, `recover` finishes the revert: no object stays without a record.
    """

    def __init__(self, store: Store, executor: Executor, quarantine: Quarantine) -> None:
        self._store = store
        self._quarantine = quarantine
        self._executor = executor
        self._open: dict[str, Intent] = {}
        self._keys: dict[str, frozenset[str]] = {}
        self._left: dict[str, Intent] = {}
        self._inherited: dict[str, Plan] = {}
        """By intent: what others left of its objects, and could not be reverted when it began."""
        self._read = False
        # Left intents are reverted one at a time: a revert that runs while another task builds the same objects would
        # remove these.
        self._mending = asyncio.Lock()

    async def begin(self, intent: Intent, ops: Sequence[Put | Delete] = (), wanted: Plan = _NOTHING) -> str:
        """Write an intent, together with `ops`, and return its key.

        If an earlier failure left the same objects, or some of those `wanted`, their revert is tried again first. From
        now on nobody else reverts them.
        """
        key = PREFIX + secrets.token_hex(8)
        log.debug("intent.begun", what=intent.what, intent=key)
        self._open[key] = intent
        try:
            await self._begin(key, intent, ops, intent.plan + wanted)
        except BaseException:
            del self._open[key]
            raise
        return key

    async def _begin(self, key: str, intent: Intent, ops: Sequence[Put | Delete], plan: Plan) -> None:
        """Write an intent. `plan`: the objects that left intents no longer have."""
        begun = await aside(len(intent.plan), _put, key, intent)
        keys = frozenset(port_ranges.keys(plan)) if self._left or not self._read else frozenset()
        if self._read and not self._touched(keys, intent.drop):
            await self._store.txn((), (begun, *ops))
            return
        async with self._mending:
            await self._read_once()
            touched = self._touched(keys, intent.drop)
            # What cannot be reverted now either stays left, except for these objects.
            kept = {
                old: replace(left, plan=_without(left.plan, keys), drop=())
                for old, left in touched.items()
                if not await self._revert(left)
            }
            inherited = [part for it in kept for part in _parts(touched[it].plan) if part.key in keys]
            kept = {old: left for old, left in kept.items() if left.plan}
            written = {op.key for op in ops}
            settled = {old for old in touched if old not in kept}
            settled |= {name for left in touched.values() for name in left.drop if name not in written}
            await self._store.txn(
                (), (begun, *ops, *map(Delete, sorted(settled)), *(_put(*item) for item in kept.items()))
            )
            for old in touched:
                self._left.pop(old, None)
            self._left |= kept
            if inherited:
                self._inherited[key] = Plan(tuple(inherited))

    def _touched(self, keys: Collection[str], records: Collection[str]) -> dict[str, Intent]:
        """Return the left intents that have any of these objects, or are to delete any of these records."""
        if not self._left:
            return {}
        return {
            old: left
            for old, left in self._left.items()
            if any(it in keys for it in port_ranges.keys(left.plan)) or not set(records).isdisjoint(left.drop)
        }

    async def build(self, intent: Intent, plan: Plan | None = None) -> tuple[str, tuple[str, ...]]:
        """Apply an intent's plan. Return the intent's key, and the keys of steps that exist and are not ours.

        `plan`: what is applied in its place. The intent then has only what is added by that, not what is altered.

        The caller ends it with `commit`. If the plan fails, everything that this call built is undone, and the intent
        is cleared. `recover` retries what could not be undone.
        """
        key = await self.begin(intent)
        left: list[Step] = []
        try:
            outcomes = await self._executor.apply(intent.plan if plan is None else plan, left)
        except BaseException:
            left += self._inherited.pop(key, ())
            undone = self._leave(key, Intent(intent.what, Plan(tuple(left)))) if left else self.commit(key)
            await uncancellable(self._kept(intent, undone))
            raise
        return key, tuple(step for step, outcome in outcomes.items() if outcome is Outcome.USED)

    async def commit(self, key: str, ops: Sequence[Put | Delete] = (), *, durable: bool = False) -> None:
        """Clear an intent in the transaction that writes its result. If that fails, what it built is reverted."""
        try:
            await self._store.txn((), (*ops, Delete(key)), durable=durable)
        except Exception:
            intent = self._left[key] = self._open.pop(key)
            async with self._mending:
                if self._left.get(key) is intent:
                    await self._revert(intent)
            raise
        finally:
            self._inherited.pop(key, None)
        del self._open[key]
        log.debug("intent.done", intent=key)

    async def take_down(
        self,
        intent: Intent,
        ops: Sequence[Put | Delete] = (),
        *,
        durable: bool = False,
        then: Callable[[], Awaitable[None]] = _nothing,
    ) -> None:
        """Do `ops`, revert an intent's plan, do `then`, which does not fail, and delete its records.

        `ops` and the intent are one transaction: after a crash, recovery follows the new records. What could not be
        reverted, or the store does not note, stays in the journal, and `recover` retries it. The caller's object is
        gone in any case, as Docker and CNI expect of a delete.

        Raises:
            StoreError: of `ops`; nothing was changed.
        """
        key = await self.begin(intent, ops)
        deletes = tuple(Delete(name) for name in intent.drop)
        reverted = await self._revert(intent)
        await then()
        rest = replace(intent, drop=())
        end = (
            self.commit(key, deletes, durable=durable) if reverted else self._leave(key, rest, deletes, durable=durable)
        )
        await self._kept(intent, end)

    async def move(
        self, gone: Intent, new: Plan, ops: Sequence[Put | Delete], written: Callable[[], None]
    ) -> tuple[list[Exception], set[str]]:
        """Do `ops`, apply `new` as far as possible, then revert an intent's plan.

        Return what could not be applied, and the keys of steps whose objects exist and are not ours.

        `ops` and the intent are one transaction: after a crash, recovery follows the new records, from which the kernel
        then differs. `written`: called after it.
        """
        key = await self.begin(gone, ops, new)
        written()
        failed: list[Exception] = []
        used: set[str] = set()
        try:
            await self._executor.mend(new, used)
        except ExceptionGroup as group:
            failed += group.exceptions
        await self._end(key, gone)
        return failed, used

    async def replace(self, key: str, gone: Intent, ops: Sequence[Put | Delete], written: Callable[[], None]) -> None:
        """End what `build` began by `ops`, as `commit` does, and revert the plan of another intent.

        `ops` and both intents are one transaction. `written`: called after it.
        """
        following = PREFIX + secrets.token_hex(8)
        self._open[following] = gone
        try:
            await self.commit(key, (*ops, _put(following, gone)))
        except BaseException:
            del self._open[following]
            raise
        written()
        await self._end(following, gone)

    async def _end(self, key: str, gone: Intent) -> None:
        """Revert and clear an intent. What could not be reverted or cleared stays, and `recover` retries it."""
        await self._kept(gone, self.commit(key) if await self._revert(gone) else self._leave(key, gone))

    async def _kept(self, intent: Intent, end: Awaitable[None]) -> None:
        """End an intent whose outcome is settled; if the store refuses that, it is kept, and `recover` retries it."""
        try:
            await end
        except StoreError as error:
            log.warning("intent.kept", what=intent.what, error=str(error))

    async def _leave(self, key: str, left: Intent, ops: Sequence[Delete] = (), *, durable: bool = False) -> None:
        """Do `ops`, and leave the rest of an intent to `recover`."""
        del self._open[key]
        self._inherited.pop(key, None)
        self._left[key] = refused = replace(left, drop=tuple(op.key for op in ops))
        await self._store.txn((), (*ops, _put(key, left)), durable=durable)
        if self._left.get(key) is refused:
            self._left[key] = left

    def changing(self) -> frozenset[str]:
        """Return the keys of the steps that are being applied or reverted now."""
        # Each comparison asks several times, and a plan may have thousands of ports.
        self._keys = {key: self._keys.get(key) or _keys(intent) for key, intent in self._open.items()}
        return frozenset[str]().union(*self._keys.values())

    async def dropped(self) -> tuple[str, ...]:
        """Return the keys of the records that `recover` is about to delete."""
        async with self._mending:
            await self._read_once()
        return tuple(key for intent in self._left.values() for key in intent.drop)

    async def recover(self) -> int:
        """Revert the intents that a crash or a failed revert left, and return their number.

        Raises:
            StoreError, ExceptionGroup: some could not be cleared; they are reverted again later.
        """
        work = BestEffort()
        async with self._mending:
            await self._read_once()
        found = tuple(self._left)
        for key in found:
            async with self._mending:
                if intent := self._left.get(key):  # else a new intent took it over
                    await work.do(self._settle(key, intent))
        work.settle()
        return len(found)

    async def sweep(self, unknown: Callable[[], Plan]) -> None:
        """Revert the objects without a record that `unknown` returns; no left intent is reverted meanwhile.

        An intent for the same objects waits. Nothing is written: after a crash the objects are as unknown as before.

        Raises:
            ExceptionGroup: of `StepError`.
        """
        async with self._mending:
            key = PREFIX + secrets.token_hex(8)
            self._left[key] = Intent("unknown objects", unknown())
            try:
                await self._executor.revert(self._left[key].plan)
            finally:
                del self._left[key]

    async def _settle(self, key: str, intent: Intent) -> None:
        log.info("journal.recovering", what=intent.what)
        drop = tuple(map(Delete, intent.drop))
        if await self._revert(intent):
            await self._store.txn((), [*drop, Delete(key)])
            self._left.pop(key, None)
        elif drop:  # as `take_down` does: the records go in any case
            self._left[key] = replace(intent, drop=())
            await self._store.txn((), [*drop, _put(key, self._left[key])])

    async def _read_once(self) -> None:
        """Read the intents that an earlier process left, once."""
        if self._read:
            return
        found: dict[str, Intent] = {}
        unread: dict[str, Unusable] = {}
        for record in (await self._store.range(PREFIX))[0]:
            try:
                found[record.key] = decode(Intent, record.value)
            except ValueError as exc:
                unread |= unusable(record.key, record.value, exc)
        self._quarantine.replace(PREFIX, unread)
        self._left = found
        self._read = True

    async def _revert(self, intent: Intent) -> bool:
        """Revert an intent's plan; log each error, and return whether there was none."""
        try:
            await self._executor.revert(intent.plan)
        except ExceptionGroup as group:
            for error in group.exceptions:
                log.warning("revert.failed", what=intent.what, error=str(error))
            return False
        return True


def _keys(intent: Intent) -> frozenset[str]:
    return frozenset(step.key for step in intent.plan).union(port_ranges.keys(intent.plan))


def _without(plan: Plan, keys: Container[str]) -> Plan:
    return Plan(tuple(part for part in _parts(plan) if part.key not in keys))


def _parts(plan: Plan) -> Iterator[Step]:
    return (part for step in plan for part in port_ranges.each(step))


def _put(key: str, intent: Intent) -> Put:
    data = encode(intent)
    assert isinstance(data, dict)  # noqa: S101 - a dataclass encodes to an object
    return Put(key, data)
