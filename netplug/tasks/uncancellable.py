"""Work that comes to its end although whoever asked for it goes away."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def to_its_end(work: Coroutine[Any, Any, _T]) -> _T:
    """Await `work` to its end; a cancellation takes effect after that."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])  # which, unlike await, does not hand a cancellation on
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        raise cancelled from task.exception()
    return task.result()


def uncancellable(use_case: Callable[_P, Coroutine[Any, Any, _T]]) -> Callable[_P, Coroutine[Any, Any, _T]]:
    """Let a cancellation take effect only after a use case: half of one is worse than a late end.

    So memory, store and kernel agree at each end of a use case, and only a crash leaves something to the journal.
    """

    @wraps(use_case)
    async def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await to_its_end(use_case(*args, **kwargs))

    return run
