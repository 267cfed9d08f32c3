"""Changes to the kernel that survive a crash in the middle.

An intent always reads: *if you find me, revert this plan and delete these records*. That holds for building (what was
half built goes) and for taking down (what was half taken down goes on going), so recovery has one case.
"""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from netplug.drivers import ranges
from netplug.drivers.codec import decode, encode
from netplug.drivers.plan import Plan
from netplug.engine.quarantine import Quarantine, Unusable, unusable
from netplug.kernel.api import Outcome
from netplug.kernel.executor import Executor
from netplug.store.api import Delete, Put, Store

log = structlog.get_logger(__name__)

PREFIX = "journal/"


@dataclass(frozen=True, slots=True)
class Intent:
    """What to revert and to delete when the process died before it was cleared."""

    what: str
    plan: Plan
    drop: tuple[str, ...] = ()


class Journal:
    """Applies and reverts plans between two transactions."""

    def __init__(self, store: Store, executor: Executor, quarantine: Quarantine) -> None:
        self._store = store
        self._quarantine = quarantine
        self._executor = executor
        self._open: dict[str, Intent] = {}
        self._left: dict[str, Intent] = {}

    async def begin(self, intent: Intent, ops: Sequence[Put | Delete] = ()) -> str:
        """Write an intent, together with `ops`, and return its key.

        What an earlier failure left of the same objects is tried again first, and from now on this intent's business.
        """
        key = PREFIX + secrets.token_hex(8)
        keys = set(ranges.keys(intent.plan))
        settled = [old for old, left in self._left.items() if not keys.isdisjoint(ranges.keys(left.plan))]
        self._open[key] = intent
        try:
            for old in settled:
                await self._revert(self._left[old])
            put = Put(key, encode(intent))  # type: ignore[arg-type]  # a dataclass is an object
            await self._store.txn((), (put, *ops, *map(Delete, settled)))
        except BaseException:
            del self._open[key]
            raise
        for old in settled:
            self._left.pop(old, None)
        return key

    async def build(self, intent: Intent) -> tuple[str, tuple[str, ...]]:
        """Apply an intent's plan; return the intent's key and the keys of steps that were there and are not ours.

        The caller ends it with `commit`. When the plan fails, what this call built is gone and so is the intent.
        """
        key = await self.begin(intent)
        try:
            outcomes = await self._executor.apply(intent.plan)
        except BaseException:
            await asyncio.shield(self.commit(key, ()))
            raise
        return key, tuple(step for step, outcome in outcomes.items() if outcome is Outcome.USED)

    async def commit(self, key: str, ops: Sequence[Put | Delete], *, durable: bool = False) -> None:
        """Clear an intent in the transaction that writes its result; if that fails, what it built goes again."""
        try:
            await self._store.txn((), (*ops, Delete(key)), durable=durable)
        except Exception:
            intent = self._left[key] = self._open.pop(key)
            await self._revert(intent)
            raise
        del self._open[key]

    async def take_down(self, intent: Intent, ops: Sequence[Put | Delete] = (), *, durable: bool = False) -> None:
        """Do `ops`, revert an intent's plan and delete its records.

        The `ops` come first, with the intent: after a crash in between they are what the rest is brought in line with.
        What could not be reverted stays in the journal and is tried again by `recover`; the caller's object is gone
        all the same, as Docker and CNI expect of a delete.
        """
        key = await self.begin(intent, ops)
        deletes = tuple(Delete(name) for name in intent.drop)
        if await self._revert(intent):
            await self.commit(key, deletes, durable=durable)
            return
        self._left[key] = self._open.pop(key)
        await self._store.txn((), deletes, durable=durable)

    def changing(self) -> frozenset[str]:
        """Return the keys of the steps that are being applied or reverted right now."""
        steps = [step for intent in self._open.values() for step in intent.plan]
        return frozenset(step.key for step in steps).union(ranges.keys(steps))

    async def recover(self) -> int:
        """Carry out the intents that an earlier life or a failed revert left, and return how many there were."""
        found = await self._read()
        self._left |= found
        for key, intent in found.items():
            if key not in self._left:
                continue  # what began meanwhile took it over
            log.info("journal.recovering", what=intent.what)
            if await self._revert(intent):
                await self._store.txn((), [*map(Delete, intent.drop), Delete(key)])
                self._left.pop(key, None)
        return len(found)

    async def _read(self) -> dict[str, Intent]:
        found: dict[str, Intent] = {}
        unread: dict[str, Unusable] = {}
        for record in (await self._store.range(PREFIX))[0]:
            if record.key in self._open:
                continue
            try:
                found[record.key] = decode(Intent, record.value)
            except ValueError as exc:
                unread |= unusable(record.key, record.value, exc)
        self._quarantine.replace(PREFIX, unread)
        return found

    async def _revert(self, intent: Intent) -> bool:
        """Revert an intent's plan; False, and a word in the log, when not all of it could be."""
        try:
            await self._executor.revert(intent.plan)
        except ExceptionGroup as group:
            for error in group.exceptions:
                log.warning("revert.failed", what=intent.what, error=str(error))
            return False
        return True
