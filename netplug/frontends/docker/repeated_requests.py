"""Detects a caller that repeats a request with the same answer: dockerd does so forever, without a log line."""

import time
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

import structlog

log = structlog.get_logger(__name__)

MANY = 50
"""Repetitions within `SPAN_S` that no healthy caller reaches."""
SPAN_S = 10.0


class Repeats:
    """Counts requests with the same answer, and logs a repeated one once in `SPAN_S`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, tuple[str, int, float]] = {}

    def note(self, method: str, asked: str, answer: str) -> None:
        """Count a request that was answered."""
        text, now = f"{asked} -> {answer}", self._clock()
        before, count, since = self._last.get(method, ("", 0, now))
        if text != before or now - since > SPAN_S:
            count, since = 0, now
        self._last[method] = text, count + 1, since
        if count + 1 == MANY:
            log.warning("request.repeated", method=method, times=MANY, in_s=round(now - since, 1), request=text[:400])

    def noting(self, method: str, work: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """Return the method, with its requests counted."""

        @wraps(work)
        async def counted(*args: Any, **kwargs: Any) -> Any:
            asked = " ".join(map(repr, (*args, *kwargs.values())))
            try:
                answer = await work(*args, **kwargs)
            except Exception as exc:
                self.note(method, asked, str(exc))
                raise
            self.note(method, asked, repr(answer))
            return answer

        return counted
