"""Changes to the kernel that survive a crash in the middle.

An intent always reads: *if you find me, revert this plan and delete these records*. That holds for building (what was
half built goes) and for taking down (what was half taken down goes on going), so recovery has one case.
"""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from netplug.drivers.codec import decode, encode
from netplug.drivers.plan import Plan
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

    def __init__(self, store: Store, executor: Executor) -> None:
        self._store = store
        self._executor = executor
        self._open: dict[str, Intent] = {}

    async def begin(self, intent: Intent, ops: Sequence[Put | Delete] = ()) -> str:
        """Write an intent and return its key."""
        key = PREFIX + secrets.token_hex(8)
        self._open[key] = intent
        await self._store.txn((), (Put(key, encode(intent)), *ops))  # type: ignore[arg-type]  # a dataclass is an object
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
        """Clear an intent in the transaction that writes its result."""
        await self._store.txn((), (*ops, Delete(key)), durable=durable)
        self._open.pop(key, None)

    async def take_down(self, intent: Intent, ops: Sequence[Put | Delete] = (), *, durable: bool = False) -> None:
        """Revert an intent's plan, delete its records and do `ops`.

        What could not be reverted stays in the journal and is tried again by `recover`; the caller's object is gone
        all the same, as Docker and CNI expect of a delete.
        """
        key = await self.begin(intent)
        deletes = tuple(Delete(name) for name in intent.drop)
        try:
            await self._executor.revert(intent.plan)
        except ExceptionGroup as group:
            for error in group.exceptions:
                log.warning("revert.failed", what=intent.what, error=str(error))
            await self._store.txn((), (*ops, *deletes), durable=durable)
            self._open.pop(key, None)
            return
        await self.commit(key, (*ops, *deletes), durable=durable)

    def changing(self) -> frozenset[str]:
        """Return the keys of the steps that are being applied or reverted right now."""
        return frozenset(step.key for intent in self._open.values() for step in intent.plan)

    async def recover(self) -> int:
        """Carry out the intents that an earlier life or a failed revert left, and return how many there were."""
        records = [record for record in (await self._store.range(PREFIX))[0] if record.key not in self._open]
        for record in records:
            intent = decode(Intent, record.value)
            log.info("journal.recovering", what=intent.what)
            try:
                await self._executor.revert(intent.plan)
            except ExceptionGroup as group:
                for error in group.exceptions:
                    log.warning("revert.failed", what=intent.what, error=str(error))
                continue
            await self.commit(record.key, [Delete(name) for name in intent.drop])
        return len(records)
