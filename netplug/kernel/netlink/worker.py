"""A thread for requests that block inside the kernel, with a deadline for its callers.

rtnetlink handles a request inside ``sendmsg``, under a mutex (rtnl) that other processes may hold for seconds. Neither
a socket timeout nor a signal ends that wait. So the event loop never makes such a request itself. It passes the
consecutive steps of a plan together, since passing work to the thread takes as long as some requests. One thread is
enough: the kernel handles these requests one by one. A request that ends after its deadline can be undone before the
next one starts.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import structlog

log = structlog.get_logger(__name__)

DEADLINE_S = 10.0
"""How long one request may take. Deleting a thousand links holds the mutex for seconds."""

_T = TypeVar("_T")
_R = TypeVar("_R")


class _Job(Generic[_T, _R]):
    """A sequence of items to work on.

    `stop`: no further item is started. `abandoned`: the caller gave up, and results go to `late`.
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
        """Store a result; return False if the caller has given up. Called in the thread."""
        with self._lock:
            if not self.abandoned:
                self._done.append(result)
            return not self.abandoned

    def end(self) -> None:
        """Wake the caller. Called in the thread."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._finish)

    def abandon(self) -> None:
        """Stop waiting. Called in the event loop."""
        with self._lock:
            self.stop = self.abandoned = True
        self._finish()

    def _finish(self) -> None:
        self._finished = True
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self) -> None:
        """Wait until the job has ended or is abandoned. A cancellation stops it and is raised when it has ended."""
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
    """The thread, in the network namespace of the thread that first uses it. Belongs to one event loop."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._waiting: dict[_Job[Any, Any], None] = {}
        self._current: _Job[Any, Any] | None = None
        self._last_result = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def each(
        self,
        items: Sequence[_T],
        work: Callable[[_T], _R],
        done: list[_R],
        late: Callable[[_T, _R], None] | None = None,
    ) -> None:
        """Call `work` for each item, in order, until one fails. After a cancellation, the current call still ends.

        Args:
            items: arguments of `work`.
            work: runs in the thread.
            done: receives the result of each item.
            late: called in the thread with the item and result of a call that ended after the deadline.

        Raises:
            TimeoutError: no call ended within `DEADLINE_S`. Items after the current one are not started.
            BaseException: raised by `work`.
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
        """Call `work` in the thread and return its result; see `each`."""
        done: list[_R] = []
        await self.each((None,), lambda _: work(), done)
        return done[0]

    async def settle(self) -> None:
        """Wait until an abandoned job that still runs has ended, and its late result was handled.

        Raises:
            TimeoutError: it did not end within `DEADLINE_S`.
        """
        if self._current and self._current.abandoned:
            await self.do(lambda: None)

    def afterwards(self, work: Callable[[], None]) -> None:
        """Call `work`, which frees resources of a job: now, or after the abandoned job that is still running."""
        if self._current and self._current.abandoned:
            self._work.put(work)
        else:
            work()

    async def close(self) -> None:
        """End the thread. If it is blocked in the kernel, it ends after that."""
        if self._thread:
            self._work.put(None)
            await asyncio.to_thread(self._thread.join, DEADLINE_S)

    def _begin(self, job: _Job[Any, Any]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="netplug-kernel", daemon=True)
            self._thread.start()
        self._waiting[job] = None
        context = copy_context()  # its lines in the log have the caller's request id
        self._work.put(lambda: context.run(self._do, job))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DEADLINE_S, self._check_deadlines)

    def _check_deadlines(self) -> None:
        """Abandon the jobs that have waited for too long."""
        self._timer = None
        for job in list(self._waiting):
            if max(job.since, self._last_result) + DEADLINE_S <= time.monotonic():
                job.abandon()
        since = [max(job.since, self._last_result) for job in self._waiting if not job.abandoned]
        if since:
            delay = min(since) + DEADLINE_S - time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(max(delay, 0), self._check_deadlines)

    def _run(self) -> None:
        while work := self._work.get():
            try:
                work()
            except Exception:
                log.exception("kernel.release_failed")

    def _do(self, job: _Job[Any, Any]) -> None:
        self._current = job
        try:
            for item in job.items:
                if job.stop:
                    break
                result = job.work(item)
                self._last_result = time.monotonic()
                if not job.give(result):
                    self._undo(job, item, result)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller
            job.error = error
            self._last_result = time.monotonic()
        self._current = None
        if any(keys := [getattr(item, "key", "") for item in job.items]):
            log.debug("kernel.answered", steps=keys, ms=round((time.monotonic() - job.since) * 1e3, 2))
        job.end()

    @staticmethod
    def _undo(job: _Job[Any, Any], item: object, result: object) -> None:
        log.warning("kernel.late", what=str(getattr(item, "key", "")), s=round(time.monotonic() - job.since, 1))
        try:
            if job.late:
                job.late(item, result)
        except Exception:
            log.exception("kernel.undo_failed", what=str(getattr(item, "key", "")))
