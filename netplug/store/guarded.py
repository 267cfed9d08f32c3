"""A shared store that notices when it was given older data: a backup that was restored.

Its revision does not tell: others' writes soon make up for what is missing, and `--bump-revision` does at once. Its ids
need not tell, since a member that is restored under its old name and address has its old ones. So each host has a
*mark*, which it alone writes, and writes anew a moment after it changed anything. The newest mark that was seen is what
the store must still have: each change holds only then, and a watch that lost its connection asks before it goes on. So
data that lack more than the last `SOON_S` are noticed by the first who does anything, before he does it. Marks stay,
also of hosts that are forgotten: one that is missing tells of older data.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import NamedTuple

import structlog

from .api import Compacted, Compare, Delete, Event, Put, Record, Restored, SharedStore

log = structlog.get_logger(__name__)

MARKS = "cluster/marks/"
SOON_S = 0.5
"""From a change to the mark that covers it, and all others meanwhile."""
_mending: ContextVar[bool] = ContextVar("mending", default=False)


class Seen(NamedTuple):
    """The newest mark that was seen, when the store had been taken anew so many times."""

    key: str
    revision: int
    generation: int

    @property
    def floor(self) -> Compare:
        """What must hold."""
        return Compare(self.key, self.revision, at_least=True)


class Guarded:
    """`SharedStore` on another one. `me`: the id of this host.

    Attributes:
        noticed: set when the store turns out to have older data, or none; until `begin_anew` nothing is changed but by
            who mends that (`mending`).
        seen: the newest mark that was seen.
        generation: how often it was taken anew; revisions of one say nothing of another.
        plain: the store itself, for what may be written into older data as well.
    """

    def __init__(self, store: SharedStore, me: str) -> None:
        self.noticed = asyncio.Event()
        self.seen: Seen | None = None
        self.plain = self._store = store
        self._key = MARKS + me
        self.generation = 0
        self._changed = asyncio.Event()
        self._saw = asyncio.Event()
        self._count = 0
        self.get, self.range = store.get, store.range
        self.lease, self.keep_alive, self.revoke = store.lease, store.keep_alive, store.revoke
        self.close = store.close

    # What is known of it

    def see(self, key: str, revision: int) -> None:
        """Learn that somebody's mark was written then."""
        if key.startswith(MARKS) and (self.seen is None or revision > self.seen[1]):
            self.seen = Seen(key, revision, self.generation)
            self._saw.set()

    def is_older(self, records: Sequence[Record], seen: Seen | None) -> bool:
        """Whether these records, all marks among them, are older than what was seen; that is then noticed.

        `seen`: as it was before they were read.
        """
        if seen is None or seen.generation != self.generation:
            return False
        older = max((it.revision for it in records if it.key == seen.key), default=0) < seen.revision
        if older:
            self.notice()
        return older

    async def verify(self) -> None:
        """Ask whether the store has what was seen.

        Raises:
            Restored: it has not.
            StoreError: it does not answer.
        """
        seen = self.seen
        records = (await self._store.range(seen.key))[0] if seen else []
        if self.noticed.is_set() or self.is_older(records, seen):
            raise self._restored()

    def notice(self) -> None:
        """Take the store as one that has not what it had."""
        if not self.noticed.is_set():
            log.warning("store.older", mark=self.seen)
        self.noticed.set()

    @contextmanager
    def mending(self) -> Iterator[None]:
        """Let this task change the store during the block whatever it has."""
        token = _mending.set(True)
        try:
            yield
        finally:
            _mending.reset(token)

    def begin_anew(self) -> None:
        """Take the store as it is now; watches end as if their revision were forgotten."""
        self.seen = None
        self.generation += 1
        self.noticed.clear()
        self._changed.set()  # a mark soon, of what was mended

    @staticmethod
    def _restored() -> Restored:
        return Restored("the store that hosts share has older data than before; hosts are telling it what they have")

    # The store

    async def txn(
        self, compares: Sequence[Compare], ops: Sequence[Put | Delete], *, durable: bool = False
    ) -> int | None:
        """Do what `Store.txn` does, unless the store has older data.

        Raises:
            Restored: it has, and nothing was done.
        """
        if not ops or _mending.get():
            return await self._store.txn(compares, ops, durable=durable)
        if self.noticed.is_set():
            raise self._restored()
        floor = [self.seen.floor] if self.seen else []
        revision = await self._store.txn([*compares, *floor], ops, durable=durable)
        if revision is None:
            await self.verify()
        elif any(isinstance(op, Delete) or op.lease is None for op in ops):
            self._changed.set()
        return revision

    def watch(
        self,
        prefix: str,
        revision: int,
        *,
        anchor: Callable[[], Compare | None] | None = None,  # noqa: ARG002 - it has one itself
    ) -> AsyncIterator[Event]:
        """Watch as `Store.watch` does; older data end it as forgotten changes do."""
        return self._watch(prefix, revision, self.generation)

    async def _watch(self, prefix: str, revision: int, generation: int) -> AsyncIterator[Event]:
        def anchor() -> Compare | None:
            if generation != self.generation:
                raise Compacted("the store was given other data")
            return self.seen.floor if self.seen else None

        async for event in self._store.watch(prefix, revision, anchor=anchor):
            anchor()
            yield event

    async def reconnect(self) -> None:
        await self._store.reconnect()

    # The mark

    async def mark(self) -> None:
        """Write this host's mark, if it changed anything since it did.

        Raises:
            StoreError: it is not written; the next call tries again.
        """
        if not self._changed.is_set():
            return
        self._changed.clear()
        self._count += 1
        floor = [self.seen.floor] if self.seen else []
        try:
            # Past `txn`: the mark itself is no change.
            revision = await self._store.txn(floor, [Put(self._key, {"count": self._count})])
            if revision is None:
                await self.verify()
            else:
                self.see(self._key, revision)
        except BaseException:
            self._changed.set()
            raise

    async def keep_marking(self, remember: Callable[[str, int], Awaitable[None]]) -> None:
        """Write the mark a moment after each change, and have the newest that was seen remembered, until cancelled."""
        while True:
            waits = [asyncio.ensure_future(event.wait()) for event in (self._changed, self._saw)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
            await asyncio.sleep(SOON_S)
            if not self.noticed.is_set():
                with suppress(Restored):  # `noticed` now, and said by who mends that
                    await self.mark()
            if self._saw.is_set() and self.seen:
                self._saw.clear()
                await remember(self.seen.key, self.seen.revision)
