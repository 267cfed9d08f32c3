"""Long work, in turns with others or aside: the loop answers requests and queries meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar, TypeVarTuple, Unpack

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")
_AT_ONCE = 16
"""Items of some tenths of a millisecond each: queries to the name server wait for a few milliseconds."""
_SMALL = 64
"""Parts of some 20 µs each: what takes no longer than the way to a thread and back is done at once."""


async def in_turns(items: Sequence[_T]) -> AsyncIterator[_T]:
    """Yield items; in between, all else that waits for the loop has its turn."""
    for number, item in enumerate(items):
        if number % _AT_ONCE == _AT_ONCE - 1:
            await asyncio.sleep(0)
        yield item


async def aside(size: int, work: Callable[[Unpack[_Args]], _T], *args: *_Args) -> _T:
    """Return `work(*args)`, which is pure. `size`: of how many parts; if there are many, a thread does it.

    A container may publish ten thousand ports. To plan and to encode them takes a second.
    """
    return work(*args) if size <= _SMALL else await asyncio.to_thread(work, *args)
