"""The thread that waits inside the kernel in the loop's stead."""

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from netplug.kernel.netlink import worker
from netplug.kernel.netlink.worker import Worker

TURN_S = 5


@pytest.fixture
async def thread() -> AsyncIterator[Worker]:
    thread = Worker()
    yield thread
    await thread.close()


@dataclass
class Gate:
    """Work that waits until it is let through."""

    def __post_init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def pass_through(self, item: str) -> str:
        self.reached.set()
        assert self.opened.wait(TURN_S)
        return item.upper()

    async def met(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, TURN_S)


async def test_each_is_done_in_order_in_one_thread(thread: Worker) -> None:
    found: list[tuple[int, str]] = []
    both = (thread.each(items, lambda it: (threading.get_ident(), it), found) for items in ("abc", "def"))
    await asyncio.gather(*both)
    idents, items = zip(*found, strict=True)
    assert items == tuple("abcdef")
    assert len(set(idents)) == 1
    assert threading.get_ident() not in idents


async def test_failure_ends_it_and_what_was_done_is_told(thread: Worker) -> None:
    found: list[int] = []
    with pytest.raises(ZeroDivisionError):
        await thread.each((1, 0, 2), lambda it: 1 // it, found)
    assert found == [1]
    assert await thread.do(lambda: 7) == 7


async def test_cancelled_it_ends_what_was_begun_and_begins_no_more(thread: Worker) -> None:
    gate, found = Gate(), list[str]()
    task = asyncio.ensure_future(thread.each(("a", "b"), gate.pass_through, found))
    await gate.met()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert found == ["A"]


async def test_after_the_deadline_nobody_waits_and_what_is_late_is_taken_back_in_turn(
    thread: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, found, seen = Gate(), list[str](), list[str]()
    with monkeypatch.context() as patch:
        patch.setattr(worker, "DEADLINE_S", 0.05)
        with pytest.raises(TimeoutError, match="the kernel does not answer"):
            await thread.each(("a", "b"), gate.pass_through, found, lambda item, result: seen.append(item + result))
        with pytest.raises(TimeoutError):
            await thread.do(lambda: seen.append("queued"))
        thread.afterwards(lambda: seen.append("let go"))
        assert seen == []
    gate.opened.set()
    await thread.do(lambda: seen.append("next"))
    assert seen == ["aA", "let go", "next"]
    assert found == []
    thread.afterwards(lambda: seen.append("at once"))
    assert seen[-1] == "at once"


async def test_late_work_that_cannot_be_taken_back_stops_nothing(
    thread: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()

    def refuse(item: str, result: str) -> None:
        raise OSError(item + result)

    with monkeypatch.context() as patch:
        patch.setattr(worker, "DEADLINE_S", 0.05)
        with pytest.raises(TimeoutError):
            await thread.each(("a",), gate.pass_through, [], refuse)
        thread.afterwards(lambda: refuse("let", "go"))
    gate.opened.set()
    assert await thread.do(lambda: 7) == 7


async def test_deadline_is_for_one_thing_not_for_all(thread: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "DEADLINE_S", 0.5)
    pause, found = threading.Event(), list[bool]()
    first = asyncio.ensure_future(thread.each(range(8), lambda _: pause.wait(0.1), found))
    assert await thread.do(lambda: 7) == 7
    await first
    assert found == [False] * 8


async def test_settled_is_what_is_late_and_taken_back(thread: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, seen = Gate(), list[str]()
    await thread.settle()
    with monkeypatch.context() as patch:
        patch.setattr(worker, "DEADLINE_S", 0.05)
        with pytest.raises(TimeoutError):
            await thread.each(("a",), gate.pass_through, [], lambda item, result: seen.append(item + result))
        with pytest.raises(TimeoutError):
            await thread.settle()
    settled = asyncio.ensure_future(thread.settle())
    await asyncio.sleep(0)
    assert not settled.done()
    gate.opened.set()
    await settled
    assert seen == ["aA"]


async def test_nobody_settles_behind_work_that_is_in_time(thread: Worker) -> None:
    gate = Gate()
    task = asyncio.ensure_future(thread.each(("a",), gate.pass_through, []))
    await gate.met()
    await thread.settle()
    assert not task.done()
    gate.opened.set()
    await task
