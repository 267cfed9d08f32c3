"""Requests of front ends: counted by front end, verb and outcome; each refusal is told."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from netplug.engine.happenings import Happenings, Kind
from netplug.tasks.latency import OK, Latencies
from netplug.tasks.request import Request, working_for

log = structlog.get_logger(__name__)

_OURS = frozenset({"internal", "unavailable", "unreachable", "try_again", "not_available"})
"""Kinds of failures that are not the caller's fault."""
_LOOKING = ("GET ", "HEAD ", "POST /v1/trace", "POST /v1/capture/", "POST /v1/dns/query")
"""Requests that change nothing. A name that is not there is no news."""


class Requests:
    """What front ends were asked. `seen`: latencies by front end, verb and outcome. `present`: those being answered."""

    def __init__(self, happenings: Happenings) -> None:
        self._latencies = Latencies()
        self.seen = self._latencies.seen
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
        self._latencies.note((request.asker, request.label or request.verb, kind), took_s)
        log.debug("request.answered", asker=request.asker, verb=request.verb, outcome=kind, ms=round(took_s * 1e3, 2))
        if reason and not request.verb.startswith(_LOOKING):
            told = Kind.REQUEST_FAILED if kind in _OURS else Kind.REQUEST_REFUSED
            self._happenings.tell(told, f"request {request.verb}", reason, cause=kind)
