"""The request that is being worked on: its id, who asks for what, and how it fared.

Tasks and `asyncio.to_thread` inherit it; the threads of netplug are given it. What is done without a request is asked
for by netplug itself.
"""

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import structlog

ITSELF = "netplug"
"""Who asks for what no request asks for: comparisons, and what follows from changes of the host."""


@dataclass(slots=True)
class Request:
    """A request.

    `asker`: "docker", "cni", "netavark", "cli", "cluster", or "netplug". `verb`: as the asker's protocol calls it.
    `label`: the verb without what differs from request to request. `caller`: process id; 0: unknown. `failure`: kind
    and reason, if it was refused. `counted`: whether `Requests` has counted it.
    """

    id: str = ""
    asker: str = ITSELF
    verb: str = ""
    label: str = ""
    caller: int = 0
    failure: tuple[str, str] | None = None
    since: float = field(default_factory=time.perf_counter)
    counted: bool = False

    def fail(self, kind: str, reason: str) -> None:
        """Note why it was refused; the first reason counts."""
        self.failure = self.failure or (kind, reason)


_current: ContextVar[Request] = ContextVar("request")


def current() -> Request:
    """Return the present request; outside of one, an empty one of netplug itself."""
    return _current.get(None) or Request()


@contextmanager
def working_for(asker: str, verb: str = "") -> Iterator[Request]:
    """Work for a new request within the block. Each line of the log has its id."""
    request = Request(secrets.token_hex(4), asker, verb[:120])
    token = _current.set(request)
    try:
        with structlog.contextvars.bound_contextvars(request_id=request.id):
            yield request
    finally:
        _current.reset(token)


def begin_work_of(asker: str, verb: str = "") -> None:
    """Let all that this task does from now on, and its tasks, be asked for by `asker`, without a request id."""
    _current.set(Request(asker=asker, verb=verb))
