"""What a caller repeats for ever shows in the log, once in a while."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from netplug.frontends.docker.repeated_requests import MANY, SPAN_S, Repeats


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def said(logs: list[Any]) -> list[Any]:
    return [entry for entry in logs if entry["event"] == "request.repeated"]


async def test_one_that_is_repeated_is_logged_once_in_a_while() -> None:
    clock = Clock()

    async def pool(request: str) -> str:
        clock.now += 0.001
        return f"pool of {request}"

    ask = Repeats(clock).noting("RequestPool", pool)
    with capture_logs() as logs:
        for _ in range(MANY * 10):
            assert await ask("blue") == "pool of blue"
        clock.now += SPAN_S
        for _ in range(MANY):
            await ask("blue")
    first, second = said(logs)
    assert first["method"] == "RequestPool"
    assert first["request"] == "'blue' -> 'pool of blue'"
    assert second == first


async def test_what_gets_on_is_not() -> None:
    clock, given = Clock(), iter(range(10_000))

    async def address(_: str) -> int:
        return next(given)

    async def capabilities() -> str:
        clock.now += SPAN_S / MANY * 1.1
        return "local"

    repeats = Repeats(clock)
    with capture_logs() as logs:
        for _ in range(MANY * 4):
            await repeats.noting("RequestAddress", address)("blue")
            await repeats.noting("GetCapabilities", capabilities)()
    assert said(logs) == []


async def test_failures_count_too() -> None:
    async def fails() -> None:
        raise ValueError("no room")

    ask = Repeats(Clock()).noting("CreateNetwork", fails)
    with capture_logs() as logs:
        for _ in range(MANY):
            with pytest.raises(ValueError, match="no room"):
                await ask()
    assert said(logs)[0]["request"] == " -> no room"
