"""Calls to a fake kernel: what tests note of them, and what they let it refuse."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from netplug.drivers.steps import Step
from netplug.kernel.api import Before, Outcome, StepError
from netplug.kernel.fake.kernel import FakeKernel


@contextmanager
def refusing(kernel: FakeKernel, refuses: Callable[[Step], bool]) -> Iterator[None]:
    """Let the kernel refuse to make steps, or to change what there is into them, during the block."""
    ensure = kernel.ensure

    async def ensured(steps: Any, outcomes: Any = None, before: Any = None) -> Any:
        done = [] if outcomes is None else outcomes
        for step in steps:
            if refuses(step):
                raise StepError("internal", step, "the kernel refused")
            await ensure((step,), done, before)
        return done

    kernel.ensure = ensured  # type: ignore[method-assign]
    try:
        yield
    finally:
        kernel.ensure = ensure  # type: ignore[method-assign]


class Noted(NamedTuple):
    """A call to a kernel: "ensure" or "remove"."""

    verb: str
    steps: tuple[Step, ...]


@contextmanager
def noted(kernel: FakeKernel) -> Iterator[list[Noted]]:
    """Note the calls to a kernel that change something, during the block."""
    calls: list[Noted] = []
    ensure, remove = kernel.ensure, kernel.remove

    async def ensured(
        steps: Sequence[Step], outcomes: list[Outcome] | None = None, before: Before | None = None
    ) -> list[Outcome]:
        calls.append(Noted("ensure", tuple(steps)))
        return await ensure(steps, outcomes, before)

    async def removed(steps: Sequence[Step]) -> None:
        calls.append(Noted("remove", tuple(steps)))
        await remove(steps)

    kernel.ensure, kernel.remove = ensured, removed  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        kernel.ensure, kernel.remove = ensure, remove  # type: ignore[method-assign]


@contextmanager
def keeping(kernel: FakeKernel, *kept: Step) -> Iterator[None]:
    """Let the kernel refuse to remove steps during the block, as iptables does with a chain that a rule leads to."""
    remove = kernel.remove

    async def removed(steps: Sequence[Step]) -> None:
        errors: list[Exception] = [StepError("internal", it, "the kernel refused") for it in steps if it in kept]
        await remove([step for step in steps if step not in kept])
        if errors:
            raise ExceptionGroup("some objects could not be removed", errors)

    kernel.remove = removed  # type: ignore[method-assign]
    try:
        yield
    finally:
        kernel.remove = remove  # type: ignore[method-assign]
