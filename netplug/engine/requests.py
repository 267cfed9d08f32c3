"""Requests of front ends: counted by front end, verb and outcome; each refusal is told.

A latency costs the time of a bisection: the attach of a container does not get slower by it.
"""

import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from netplug.engine.happenings import Happenings, Kind
from netplug.tasks.request import Request, working_for

log = structlog.get_logger(__name__)

OK = "ok"
BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of a latency's buckets; one more has what is longer."""
_OURS = frozenset({"internal", "unavailable", "unreachable", "try_again", "not_available"})
"""Kinds of failures that are not the caller's fault."""
_LOOKING = ("GET ", "HEAD ")
"""Requests that change nothing. A name that is not there is no news."""


@dataclass(slots=True)
class Latency:
    """Durations, in buckets of `BOUNDS_S`, and their sum in seconds."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0

    def note(self, seconds: float) -> None:
        """Count one."""
        self.buckets[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds


class Requests:
    """What front ends were asked. `seen`: latencies by front end, verb and outcome. `present`: those being answered."""

    def __init__(self, happenings: Happenings) -> None:
        self.seen: dict[tuple[str, str, str], Latency] = {}
        self.present = 0
        self._happenings = happenings

    @contextmanager
    def answering(self, asker: str, verb: str = "") -> Iterator[Request]:
        """Answer a request within the block."""
        self.present += 1
        try:
            with working_for(asker, verb) as request:
                try:
                    yield request
                finally:
                    self.answered(request)
        finally:
            self.present -= 1

    def answered(self, request: Request) -> None:
        """Count a request whose answer is known, once: whoever reads the answer finds it counted and told."""
        if request.counted:
            return
        request.counted = True
        took_s = time.perf_counter() - request.since
        kind, reason = request.failure or (OK, "")
        key = request.asker, request.label or request.verb, kind
        latency = self.seen.get(key)
        if latency is None:
            latency = self.seen[key] = Latency()
        latency.note(took_s)
        log.debug("request.answered", asker=request.asker, verb=request.verb, outcome=kind, ms=round(took_s * 1e3, 2))
        if reason and not request.verb.startswith(_LOOKING):
            told = Kind.REQUEST_FAILED if kind in _OURS else Kind.REQUEST_REFUSED
            self._happenings.tell(told, f"request {request.verb}", reason, cause=kind)
