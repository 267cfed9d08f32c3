"""One thread for requests that wait inside the kernel, and a deadline for who waits for it.

rtnetlink does its work inside ``sendmsg``, under a mutex (rtnl) that others may hold for seconds. No timeout of a
socket and no signal ends that wait, so the event loop never makes such a request itself. It hands over all that follows
one another in a plan, since handing over costs as much as some requests do. There is one thread, as the kernel does
these requests one by one anyway; and what ends after nobody waits for it any more can be taken back before the next.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import structlog

log = structlog.get_logger(__name__)

DEADLINE_S = 10.0
"""How long the kernel may take for one thing: who deletes a thousand links holds the mutex for seconds."""

_T = TypeVar("_T")
_R = TypeVar("_R")


class _Job(Generic[_T, _R]):
    """What is done in one go.

    `stop`: nothing more of it is begun. `abandoned`: nobody waits for it, and results go to `late`.
    """

    def __init__(
        self, items: Sequence[_T], work: Callable[[_T], _R], done: list[_R], late: Callable[[_T, _R], None] | None
    ) -> None:
        self.items = items
        self.work = work
        self.late = late
        self.stop = False
        self.abandoned = False
        self.error: BaseException | None = None
        self.since = time.monotonic()
        self._done = done
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._future = self._loop.create_future()
        self._finished = False

    def give(self, result: _R) -> bool:
        """Hand over a result; False: nobody waits for it. In the thread."""
        with self._lock:
            if not self.abandoned:
                self._done.append(result)
            return not self.abandoned

    def end(self) -> None:
        """Wake who waits; in the thread."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._finish)

    def abandon(self) -> None:
        """Wait no longer; in the loop."""
        with self._lock:
            self.stop = self.abandoned = True
        self._finish()

    def _finish(self) -> None:
        self._finished = True
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self) -> None:
        """Wait until it has ended or is abandoned; a cancellation stops it, and is let through then."""
        cancelled: asyncio.CancelledError | None = None
        while not self._finished:
            try:
                await self._future
            except asyncio.CancelledError as error:
                cancelled = error
                self.stop = True
                self._future = self._loop.create_future()
        if cancelled:
            raise cancelled


class Worker:
    """The thread. It is in the network namespace of the thread that first uses it. Belongs to one event loop."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._waiting: dict[_Job[Any, Any], None] = {}
        self._current: _Job[Any, Any] | None = None
        self._moved = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def each(
        self,
        items: Sequence[_T],
        work: Callable[[_T], _R],
        done: list[_R],
        late: Callable[[_T, _R], None] | None = None,
    ) -> None:
        """Do the work for each item, in order, until one fails. What was begun is ended, also when cancelled.

        Args:
            items: what for.
            work: runs in the thread.
            done: is given the result of each item as it comes.
            late: is given, in the thread, the item, and its result, that ended after the deadline.

        Raises:
            TimeoutError: the kernel has ended nothing for `DEADLINE_S`. Items after the one that waits are not begun.
            BaseException: what the work raised.
        """
        job = _Job(items, work, done, late)
        self._begin(job)
        try:
            await job.wait()
        finally:
            del self._waiting[job]
            if self._timer and not self._waiting:
                self._timer.cancel()
                self._timer = None
        if job.abandoned:
            raise TimeoutError("the kernel does not answer")
        if job.error:
            raise job.error

    async def do(self, work: Callable[[], _R]) -> _R:
        """Do one thing and return its result; see `each`."""
        done: list[_R] = []
        await self.each((None,), lambda _: work(), done)
        return done[0]

    def afterwards(self, work: Callable[[], None]) -> None:
        """Let go of what jobs used: now, unless the thread is still at one that was abandoned."""
        if self._current and self._current.abandoned:
            self._work.put(work)
        else:
            work()

    async def close(self) -> None:
        """End the thread; one that the kernel does not let go ends by itself."""
        if self._thread:
            self._work.put(None)
            await asyncio.to_thread(self._thread.join, DEADLINE_S)

    def _begin(self, job: _Job[Any, Any]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="netplug-kernel", daemon=True)
            self._thread.start()
        self._waiting[job] = None
        self._work.put(lambda: self._do(job))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DEADLINE_S, self._look)

    def _look(self) -> None:
        """Abandon what has waited for too long."""
        self._timer = None
        for job in list(self._waiting):
            if max(job.since, self._moved) + DEADLINE_S <= time.monotonic():
                job.abandon()
        since = [max(job.since, self._moved) for job in self._waiting if not job.abandoned]
        if since:
            left = min(since) + DEADLINE_S - time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(max(left, 0), self._look)

    def _run(self) -> None:
        while work := self._work.get():
            try:
                work()
            except Exception:
                log.exception("kernel.not_let_go")

    def _do(self, job: _Job[Any, Any]) -> None:
        self._current = job
        try:
            for item in job.items:
                if job.stop:
                    break
                result = job.work(item)
                self._moved = time.monotonic()
                if not job.give(result):
                    self._take_back(job, item, result)
        except BaseException as error:  # noqa: BLE001 - carried over to who waits
            job.error = error
            self._moved = time.monotonic()
        self._current = None
        job.end()

    @staticmethod
    def _take_back(job: _Job[Any, Any], item: object, result: object) -> None:
        log.warning("kernel.late", what=str(getattr(item, "key", "")), s=round(time.monotonic() - job.since, 1))
        try:
            if job.late:
                job.late(item, result)
        except Exception:
            log.exception("kernel.not_taken_back", what=str(getattr(item, "key", "")))
