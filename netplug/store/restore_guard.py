"""A shared store that detects when someone has restored it from a backup.

The store's revision does not show it: new writes soon raise it again, and `snapshot restore --bump-revision` does so
at once. The ids of cluster and member need not show it either: a member restored under its old name and address has its
old ids. So each host has a *mark*: a record that only this host writes, `DELAY_S` after each of its changes. The store
must still have the newest mark that this host has seen. Every transaction compares it, and so does every watch that
reconnects. So the first transaction detects older data before it changes anything, unless they lack only what came
after the newest mark: the changes of the last `DELAY_S` and of the time that the write of the mark takes. A store that
does not answer takes no mark, so it counts from the last one that it took. Marks of removed hosts stay: a missing mark
means older data.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import NamedTuple

import structlog

from netplug.store.api import Compacted, Compare, Delete, Event, Put, Record, Restored, SharedStore

log = structlog.get_logger(__name__)

MARKS = "cluster/marks/"
DELAY_S = 0.5
"""From a change to its mark. One mark covers all changes before it."""
_recovering: ContextVar[bool] = ContextVar("recovering", default=False)


class Seen(NamedTuple):
    """The newest mark that this host has seen, and the `generation` of the store in which it was seen."""

    key: str
    revision: int
    generation: int

    @property
    def floor(self) -> Compare:
        """The comparison that holds as long as the store has this mark."""
        return Compare(self.key, self.revision, at_least=True)


class RestoreGuard:
    """`SharedStore` around another one. `me`: the id of this host.

    Attributes:
        data_lost: set once the store is found to have older data, or none. From then until `accept`, only the
            recovery may change the store (`recovering`).
        seen: the newest mark that this host has seen.
        generation: the number of calls of `accept`; revisions of different generations cannot be compared.
        unguarded: the store without this check, for writes that are right in older data as well.
    """

    def __init__(self, store: SharedStore, me: str) -> None:
        self.data_lost = asyncio.Event()
        self.seen: Seen | None = None
        self.unguarded = self._store = store
        self._key = MARKS + me
        self.generation = 0
        self._changed = asyncio.Event()
        self._saw = asyncio.Event()
        self._count = 0
        self.get, self.range = store.get, store.range
        self.lease, self.keep_alive, self.revoke = store.lease, store.keep_alive, store.revoke
        self.close = store.close

    # Detection

    def see(self, key: str, revision: int) -> None:
        """Note the mark of a host, if `key` is one, and its revision."""
        if key.startswith(MARKS) and (self.seen is None or revision > self.seen[1]):
            self.seen = Seen(key, revision, self.generation)
            self._saw.set()

    def is_older(self, records: Sequence[Record], seen: Seen | None) -> bool:
        """Return whether `records`, a snapshot with all marks, are older than `seen`; if so, set `data_lost`.

        `seen`: the newest mark before the snapshot was read.
        """
        if seen is None or seen.generation != self.generation:
            return False
        older = max((it.revision for it in records if it.key == seen.key), default=0) < seen.revision
        if older:
            self.report_loss()
        return older

    async def verify(self) -> None:
        """Check that the store still has the newest mark.

        Raises:
            Restored: it does not have it.
            StoreError: the store does not answer.
        """
        seen = self.seen
        records = (await self._store.range(seen.key))[0] if seen else []
        if self.data_lost.is_set() or self.is_older(records, seen):
            raise self._restored()

    def report_loss(self) -> None:
        """Record that the store has lost data."""
        if not self.data_lost.is_set():
            log.warning("store.data_lost", mark=self.seen)
        self.data_lost.set()

    @contextmanager
    def recovering(self) -> Iterator[None]:
        """Let this task change the store within the block, even though its data are older."""
        token = _recovering.set(True)
        try:
            yield
        finally:
            _recovering.reset(token)

    def accept(self) -> None:
        """Accept the store's data as they are now. Running watches end with `Compacted`."""
        self.seen = None
        self.generation += 1
        self.data_lost.clear()
        self.owe_mark()

    def owe_mark(self) -> None:
        """Have a mark written after `DELAY_S`, as after a change. An earlier process may have died before its mark."""
        self._changed.set()

    @staticmethod
    def _restored() -> Restored:
        return Restored("the shared store has lost data (a backup was restored?); hosts are writing back what it lacks")

    # The store

    async def txn(
        self, compares: Sequence[Compare], ops: Sequence[Put | Delete], *, durable: bool = False
    ) -> int | None:
        """Do as `Store.txn`, unless the store has lost data.

        Raises:
            Restored: it has; nothing was changed.
        """
        if not ops or _recovering.get():
            return await self._store.txn(compares, ops, durable=durable)
        if self.data_lost.is_set():
            raise self._restored()
        floor = [self.seen.floor] if self.seen else []
        revision = await self._store.txn([*compares, *floor], ops, durable=durable)
        if revision is None:
            await self.verify()
        elif any(isinstance(op, Delete) or op.lease is None for op in ops):
            self.owe_mark()
        return revision

    def watch(
        self,
        prefix: str,
        revision: int,
        *,
        anchor: Callable[[], Compare | None] | None = None,  # noqa: ARG002 - replaced by the newest mark
    ) -> AsyncIterator[Event]:
        """Watch as `SharedStore.watch` does. Data that are older end it with `Compacted`."""
        return self._watch(prefix, revision, self.generation)

    async def _watch(self, prefix: str, revision: int, generation: int) -> AsyncIterator[Event]:
        def anchor() -> Compare | None:
            if generation != self.generation:
                raise Compacted("the store had lost data, and was recovered")
            return self.seen.floor if self.seen else None

        async for event in self._store.watch(prefix, revision, anchor=anchor):
            anchor()
            yield event

    async def reconnect(self) -> None:
        await self._store.reconnect()

    # The mark

    async def mark(self) -> None:
        """Write this host's mark if this host has changed anything since the last one.

        Raises:
            StoreError: the mark was not written; the next call tries again.
        """
        if not self._changed.is_set():
            return
        self._changed.clear()
        self._count += 1
        floor = [self.seen.floor] if self.seen else []
        try:
            # Not by `self.txn`: a mark is not a change that needs a mark.
            revision = await self._store.txn(floor, [Put(self._key, {"count": self._count})])
            if revision is None:
                await self.verify()
            else:
                self.see(self._key, revision)
        except BaseException:
            self._changed.set()
            raise

    async def write_marks(self, remember: Callable[[str, int], Awaitable[None]]) -> None:
        """Write the mark `DELAY_S` after each change, and pass each new `seen` to `remember`; until cancelled."""
        while True:
            waits = [asyncio.ensure_future(event.wait()) for event in (self._changed, self._saw)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
            await asyncio.sleep(DELAY_S)
            if not self.data_lost.is_set():
                with suppress(Restored):  # `data_lost` is set now; the recovery reports it
                    await self.mark()
            if self._saw.is_set() and self.seen:
                self._saw.clear()
                await remember(self.seen.key, self.seen.revision)
