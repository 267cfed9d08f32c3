"""Long work on the loop, in turns with others."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

_T = TypeVar("_T")
_AT_ONCE = 16
"""Items of some tenths of a millisecond each: queries to the name server wait for a few milliseconds."""


async def in_turns(items: Sequence[_T]) -> AsyncIterator[_T]:
    """Yield items; in between, all else that waits for the loop has its turn."""
    for number, item in enumerate(items):
        if number % _AT_ONCE == _AT_ONCE - 1:
            await asyncio.sleep(0)
        yield item
