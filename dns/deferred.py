"""Work that waits until all that is at hand has been looked at, so that many messages go by one system call.

The loop would do that too (`call_soon`), but only after it has looked for what is new, which costs more than to send.
"""

import asyncio
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Any


class Turn:
    """A stretch of work on what has come; at its end is done what was put off until then.

    One for all of a thread, and never one within another.
    """

    __slots__ = ("_due", "_open")

    def __init__(self) -> None:
        self._open = False
        self._due: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def at_end(self, work: Callable[..., None], *args: Any) -> None:
        """Do something at the end of the turn, or soon where there is none."""
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
            except Exception as exc:  # noqa: BLE001 - one must not keep the others from being done
                context = {"message": "what was put off could not be done", "exception": exc}
                asyncio.get_running_loop().call_exception_handler(context)


@cache
def turn() -> Turn:
    """Return that of the one thread that asks and answers."""
    return Turn()
