"""Waiting for something to become true: with a deadline, and with words for the case that it does not."""

from collections.abc import Callable
from threading import Event
from time import monotonic
from typing import TypeVar

POLL_S = 0.02

T = TypeVar("T")


def wait_until(
    predicate: Callable[[], T],
    timeout_s: float = 20,
    what: str = "",
    ignoring: tuple[type[Exception], ...] = (),
) -> T:
    """Poll `predicate` until it returns something true, and return that.

    Raises:
        AssertionError: it did not within `timeout_s`; names `what` and the last value or ignored exception.
    """
    deadline = monotonic() + timeout_s
    pause = Event()
    last: object = None
    while True:
        try:
            value = predicate()
        except ignoring as exc:
            last = exc
        else:
            if value:
                return value
            last = value
        if monotonic() >= deadline:
            name = what or getattr(predicate, "__name__", "condition")
            raise AssertionError(f"{name}: not within {timeout_s:g} s (last: {last!r})")
        pause.wait(POLL_S)
