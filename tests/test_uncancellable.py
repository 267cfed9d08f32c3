"""Uncancellable work: a cancellation takes effect when the work has ended, and never before."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from netplug.tasks.uncancellable import uncancellable


class Work:
    """Begins, waits until it may end, ends; `result`: what it returns, or the error that it raises."""

    def __init__(self, result: str | Exception = "done") -> None:
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.ended = False
        self._result = result

    async def do(self) -> str:
        self.begun.set()
        await self.may_end.wait()
        self.ended = True
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


def awaited(work: Work, _: Callable[[str], object]) -> Awaitable[str]:
    return uncancellable(work.do())


def decorated(work: Work, _: Callable[[str], object]) -> Awaitable[str]:
    return uncancellable(work.do)()


def a_future(work: Work, on_result: Callable[[str], object]) -> Awaitable[str]:
    return uncancellable(asyncio.ensure_future(work.do()), on_result)


def with_result(work: Work, on_result: Callable[[str], object]) -> Awaitable[str]:
    return uncancellable(work.do(), on_result)


Form = Callable[[Work, Callable[[str], object]], Awaitable[str]]
every_form = pytest.mark.parametrize("form", [awaited, decorated, a_future, with_result])


async def cancelled(form: Form, work: Work, times: int) -> tuple[asyncio.CancelledError, list[str]]:
    """Cancel the caller `times` times while the work runs, and let it end; return what the caller gets."""
    results: list[str] = []

    async def call() -> None:
        await form(work, results.append)

    caller = asyncio.ensure_future(call())
    await work.begun.wait()
    for _ in range(times):
        caller.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
        assert not caller.done()
        assert not work.ended
    work.may_end.set()
    with pytest.raises(asyncio.CancelledError) as caught:
        await caller
    return caught.value, results


@every_form
async def test_without_a_cancellation_the_result_is_returned(form: Form) -> None:
    work, results = Work(), list[str]()
    work.may_end.set()
    assert await form(work, results.append) == "done"
    assert results == (["done"] if form in (a_future, with_result) else [])


@every_form
@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancellation_takes_effect_after_the_work(form: Form, times: int) -> None:
    work = Work()
    _, results = await cancelled(form, work, times)
    assert work.ended
    assert results == (["done"] if form in (a_future, with_result) else [])


@every_form
async def test_an_error_of_the_work_is_raised(form: Form) -> None:
    work, results = Work(ValueError("no")), list[str]()
    work.may_end.set()
    with pytest.raises(ValueError, match="no"):
        await form(work, results.append)
    assert not results


@every_form
async def test_an_error_after_a_cancellation_is_its_cause(form: Form) -> None:
    work = Work(ValueError("no"))
    error, results = await cancelled(form, work, 2)
    assert work.ended
    assert isinstance(error.__cause__, ValueError)
    assert not results


async def test_a_cancellation_of_the_work_itself_is_raised() -> None:
    inner = asyncio.ensure_future(Work().do())
    caller = asyncio.ensure_future(uncancellable(inner))
    await asyncio.sleep(0)
    inner.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_a_decorated_function_keeps_its_arguments_and_name() -> None:
    @uncancellable
    async def add(one: int, *, two: int) -> int:
        """Add."""
        return one + two

    assert await add(1, two=2) == 3
    assert (add.__name__, add.__doc__) == ("add", "Add.")
