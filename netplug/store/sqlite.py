"""The embedded store: SQLite in one writer thread, no server.

The loop hands jobs to the thread by a plain queue (0.065 ms there and back where a ThreadPoolExecutor takes
0.088 ms), and the thread hands back each result with the changes that it made. A watch is a place in the
history that is read on, not a queue of events: nothing can be missed between past and live, and a slow reader
costs no memory but is `Compacted`.
"""

import asyncio
import contextlib
import functools
import math
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

import structlog

from .api import Compare, Delete, Event, Put, Record, StoreError
from .database import HISTORY_REVISIONS, Change, Database, Location, Write
from .encoding import check_keys, json_text, key_bytes, prefix_bytes

log = structlog.get_logger(__name__)

_T = TypeVar("_T")
_RETRY_S = 1.0  # after leases could not be ended (disk full): often enough, and not a flood in the log
_TICK_S = 0.001  # a timer may come a little early by another clock


class SqliteStore:
    """`Store` on one file, for one process. Made by `open`.

    Leases: their time is counted in memory by `clock`, not on disk. After a restart every lease that had not
    ended starts its time anew, so what nobody keeps alive ends within its time to live after the start.

    Cancellation: a transaction whose caller is cancelled is still done as a whole, or fails as a whole.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="netplug-store", daemon=True)
        self._watches: weakref.WeakSet[_Watch] = weakref.WeakSet()
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf
        self._closed = False

    @classmethod
    async def open(
        cls, path: Location, *, clock: Callable[[], float] = time.monotonic, history: int = HISTORY_REVISIONS
    ) -> "SqliteStore":
        """Open the store in file `path`, creating file and directory when absent, for their owner only.

        Args:
            path: the file, or ":memory:".
            clock: seconds, for leases.
            history: the number of last revisions whose events are remembered for `watch`.

        Raises:
            StoreError: the file cannot be opened, or is not a store that this version knows.
        """
        store = cls(Database(path, clock, history), clock)
        store._thread.start()
        try:
            await store._call(store._database.open)
        except BaseException:
            store._submit(store._database.close)  # cancelled, it may be open in a moment
            store._stop()
            await asyncio.to_thread(store._thread.join)
            raise
        return store

    async def get(self, key: str) -> Record | None:
        """Return the record of a key."""
        return await self._call(functools.partial(self._database.get, key_bytes(key)))

    async def range(self, prefix: str) -> tuple[list[Record], int]:
        """Return the records whose keys begin so, in the order of keys, and the revision they are as of."""
        return await self._call(functools.partial(self._database.range, prefix_bytes(prefix)))

    async def txn(
        self, compares: Sequence[Compare], ops: Sequence[Put | Delete], *, durable: bool = False
    ) -> int | None:
        """Do all operations when all comparisons hold, and return the transaction's revision; else None.

        A transaction that changes nothing returns the present revision. Values are copied before it waits.

        Raises:
            StoreError: two operations on one key, a lease that has ended, the disk fails: nothing is done.
        """
        pairs = [(key_bytes(compare.key), compare) for compare in compares]
        writes = [_write(op) for op in ops]
        check_keys(ops)
        return await self._call(functools.partial(self._database.txn, pairs, writes, durable=durable))

    async def lease(self, ttl_s: float) -> int:
        """Grant a lease that ends `ttl_s` seconds after it was last kept alive, and return its id."""
        if not (ttl_s > 0 and math.isfinite(ttl_s)):
            raise StoreError(f"a lease of {ttl_s} s cannot be granted: not a positive time")
        return await self._call(functools.partial(self._database.grant, float(ttl_s)))

    async def keep_alive(self, lease: int) -> bool:
        """Start the lease's time anew; False when it has ended."""
        return await self._call(functools.partial(self._database.keep_alive, lease))

    async def revoke(self, lease: int) -> None:
        """End a lease and delete its records; absent is success."""
        await self._call(functools.partial(self._database.revoke, lease))

    def watch(
        self,
        prefix: str,
        revision: int,
        *,
        anchor: Callable[[], Compare | None] | None = None,  # noqa: ARG002 - it is never out of reach
    ) -> AsyncIterator[Event]:
        """Yield the changes after `revision` to keys that begin so, wait for more, and end at `close`.

        The iterator may be asked again after a time-out or cancellation; no event is lost by it.

        Raises:
            Compacted: changes after `revision` have been forgotten; also when the reader is that far behind.
        """
        self._check_open()
        watch = _Watch(self, prefix, revision)
        self._watches.add(watch)
        return watch

    async def close(self) -> None:
        """Finish what was begun and let go of the file; a second time does nothing."""
        if self._closed:
            return
        closing = self._submit(self._database.close)
        self._stop()
        await closing
        self._thread.join()  # it has nothing left to do

    def _stop(self) -> None:
        self._closed = True
        self._jobs.put(None)
        if self._timer:
            self._timer.cancel()
        for watch in self._watches:
            watch.wake.set()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed")

    async def _call(self, job: Callable[[], _T]) -> _T:
        self._check_open()
        return await self._submit(job)

    def _submit(self, job: Callable[[], _T]) -> asyncio.Future[_T]:
        future: asyncio.Future[_T] = self._loop.create_future()
        self._jobs.put((future, job))
        return future

    def _work(self) -> None:
        """Do the jobs, in the thread."""
        while (item := self._jobs.get()) is not None:
            self._do(*item)

    def _do(self, future: asyncio.Future[_T], job: Callable[[], _T]) -> None:
        result: _T | None = None
        error: BaseException | None = None
        try:
            with self._database.explained():
                self._database.expire()
                result = job()
        except BaseException as exc:  # noqa: BLE001 - whatever it is, the one who waits gets it
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop is closed already: nobody waits
            self._loop.call_soon_threadsafe(
                self._finish, future, result, error, self._database.take_changes(), self._database.due
            )

    def _finish(
        self,
        future: asyncio.Future[Any],
        result: object,
        error: BaseException | None,
        changes: Sequence[Change],
        due: float,
    ) -> None:
        """Tell the watches, then the one who waits; in the loop, in the order of jobs."""
        for change in changes:
            for watch in self._watches:
                watch.notice(change)
        self._schedule(due, _RETRY_S if error else _TICK_S)
        if future.done():
            return
        if error:
            future.set_exception(error)
        else:
            future.set_result(result)

    def _schedule(self, due: float, at_least_s: float) -> None:
        """Set the timer to the end of the next lease."""
        if self._timer and self._due == due:
            return
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._due = due
        if due < math.inf and not self._closed:
            self._timer = self._loop.call_later(max(due - self._clock(), at_least_s), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._submit(_nothing).add_done_callback(_report)  # each job ends first what has to end


class _Watch:
    """A place in the history. `after`: all up to this revision has been read or does not concern us."""

    def __init__(self, store: SqliteStore, prefix: str, revision: int) -> None:
        self._store = store
        self._prefix = prefix
        self._raw = prefix_bytes(prefix)
        self._after = revision
        self._events: deque[Event] = deque()
        self.wake = asyncio.Event()
        self.wake.set()

    def notice(self, change: Change) -> None:
        """Wake up for a change that concerns us; one that does not moves us on if all before is read."""
        if any(key.startswith(self._prefix) for key in change.keys):
            self.wake.set()
        elif self._after == change.revision - 1:
            self._after = change.revision

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            await self.wake.wait()
            if self._store._closed:  # noqa: SLF001 - one class in two parts
                raise StopAsyncIteration
            self.wake.clear()
            await self._read()
        return self._events.popleft()

    async def _read(self) -> None:
        store = self._store
        more = True
        try:
            events, after, more = await store._call(  # noqa: SLF001
                functools.partial(store._database.events, self._raw, self._after)  # noqa: SLF001
            )
            self._events.extend(events)
            self._after = max(self._after, after)
        finally:
            if more:  # or cancelled: read again
                self.wake.set()


def _nothing() -> None:
    pass


def _report(future: asyncio.Future[None]) -> None:
    if not future.cancelled() and (error := future.exception()):
        log.warning("store.leases_not_ended", error=str(error))


def _write(op: Put | Delete) -> Write:
    if isinstance(op, Delete):
        return Write(key_bytes(op.key))
    return Write(key_bytes(op.key), json_text(op.key, op.value), op.lease)
