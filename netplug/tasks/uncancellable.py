"""Work that a cancellation does not interrupt: it takes effect when the work has ended.

`asyncio.shield` alone is not enough: it lets the work run on unobserved while its caller already undoes things.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar, overload

_P = ParamSpec("_P")
_T = TypeVar("_T")


@overload
def uncancellable(work: Callable[_P, Coroutine[Any, Any, _T]]) -> Callable[_P, Coroutine[Any, Any, _T]]: ...
@overload
def uncancellable(work: Awaitable[_T], on_result: Callable[[_T], object] | None = None) -> Coroutine[Any, Any, _T]: ...
def uncancellable(work: Any, on_result: Callable[[Any], object] | None = None) -> Any:
    """Await `work` until it ends, even if the caller is cancelled; then raise the cancellation.

    As a decorator: the same for each call of a coroutine function. Decorated use cases leave memory, store and kernel
    in agreement, so that only a crash leaves something to the journal.

    Args:
        work: a coroutine or future, or the coroutine function to decorate.
        on_result: receives the result of work that succeeds, also when the caller is cancelled.

    Raises:
        asyncio.CancelledError: the caller was cancelled meanwhile. Its cause is the error of the work, if it failed.
    """
    if isinstance(work, Awaitable):
        return _until_done(work, on_result)

    @wraps(work)
    async def run(*args: Any, **kwargs: Any) -> Any:
        return await _until_done(work(*args, **kwargs))

    return run


async def _until_done(work: Awaitable[_T], on_result: Callable[[_T], object] | None = None) -> _T:
    future = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])  # unlike `await future`, it does not cancel the future
        except asyncio.CancelledError as exc:
            cancelled = exc
    if on_result and not future.cancelled() and future.exception() is None:
        on_result(future.result())
    if cancelled is not None:
        raise cancelled from (None if future.cancelled() else future.exception())
    return future.result()
