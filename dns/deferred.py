"""Work deferred until all received messages are processed, so that one system call sends many messages.

The event loop's `call_soon` could do this too, but only after it has polled for new events, which costs more than
sending.
"""

import asyncio
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Any


class Turn:
    """A context in which received messages are processed; deferred work is done at its end.

    One per thread; it cannot be nested.
    """

    __slots__ = ("_due", "_open")

    def __init__(self) -> None:
        self._open = False
        self._due: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def at_end(self, work: Callable[..., None], *args: Any) -> None:
        """Call `work` at the end of the turn; outside of a turn, soon."""
        if self._open:
            self._due.append((work, args))
        else:
            asyncio.get_running_loop().call_soon(work, *args)

    def __enter__(self) -> None:
        self._open = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        due, self._due = self._due, []
        for work, args in due:
            try:
                work(*args)
            except Exception as exc:  # noqa: BLE001 - one failure must not stop the others
                context = {"message": "deferred work failed", "exception": exc}
                asyncio.get_running_loop().call_exception_handler(context)


@cache
def turn() -> Turn:
    """Return the thread's only turn; the DNS server runs in one thread."""
    return Turn()
