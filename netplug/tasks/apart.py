"""Blocking work that may never end, in a thread of its own.

`asyncio.to_thread` shares few threads, and the end of the loop waits for them: work that hangs would keep other work
from its turn, and the process from its end.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

_T = TypeVar("_T")


async def apart(work: Callable[[], _T]) -> _T:
    """Run blocking work in a new thread, and return its result. A caller that is cancelled leaves it to itself."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def tell(result: _T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: _T | None = None
        error: BaseException | None = None
        try:
            result = work()
        except BaseException as exc:  # noqa: BLE001 - it is the caller's
            error = exc
        with suppress(RuntimeError):  # the loop is closed: there is no caller any more
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, name="netplug-apart", daemon=True).start()
    return await future
