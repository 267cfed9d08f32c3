"""Doing one step: what the kernel says of it is named, and what must be whole is not cut in half."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from netplug.drivers.steps import Step

from .api import Outcome, StepError
from .netlink import NetlinkError

_T = TypeVar("_T")


@contextmanager
def named(step: Step) -> Iterator[None]:
    """Turn what the kernel says into an error that names the step."""
    try:
        yield
    except StepError:
        raise
    except NetlinkError as error:
        raise StepError("internal", step, f"kernel refused {step.key!r}: {error.strerror}") from error
    except TimeoutError as error:
        raise StepError("unavailable", step, f"the kernel does not answer for {step.key!r}") from error
    except FileNotFoundError as error:
        raise StepError("not_found", step, f"sandbox {error.filename} is gone") from error
    except OSError as error:
        raise StepError("internal", step, f"{step.key!r} failed: {error.strerror or error}") from error


def merged(outcomes: Iterable[Outcome]) -> Outcome:
    """Return what was found of a step of several parts."""
    kinds = set(outcomes)
    return kinds.pop() if len(kinds) == 1 else Outcome.ADJUSTED


async def whole(work: Awaitable[_T], done: Callable[[_T], None]) -> None:
    """Await what must not be cut in half: a cancellation is let through when it has ended, and its result noted."""
    task = asyncio.ensure_future(work)
    try:
        result = await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):  # once more; it is raised below
                await asyncio.wait([task])
        if not task.cancelled() and task.exception() is None:
            done(task.result())
        raise
    done(result)
