"""What is put off until the end of a turn is done, whatever becomes of the rest of it."""

import asyncio
from typing import Any

from netplug.dns.deferred import Turn


async def test_work_that_fails_is_told_and_keeps_nothing_else_from_being_done() -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    done: list[int] = []
    turn = Turn()
    with turn:
        turn.at_end(done.append, 1)
        turn.at_end(done.remove, 2)
        turn.at_end(done.append, 3)
    assert done == [1, 3]
    (context,) = told
    assert isinstance(context["exception"], ValueError)
