"""What happens: each change of networks, endpoints, ports and hosts, each heal, fault and refusal, told once.

Pure memory: watchers keep, count or show it. Who asked, and by which request, comes from `tasks.request`.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum

from netplug.tasks import request


class Kind(StrEnum):
    """The kinds, by object and verb. `MEANING` says when each is told."""

    DAEMON_STARTED = "daemon.started"
    DAEMON_STOPPED = "daemon.stopped"
    NETWORK_CREATED = "network.created"
    NETWORK_UPDATED = "network.updated"
    NETWORK_REMOVED = "network.removed"
    ENDPOINT_CREATED = "endpoint.created"
    ENDPOINT_UPDATED = "endpoint.updated"
    ENDPOINT_REMOVED = "endpoint.removed"
    PORTS_PUBLISHED = "ports.published"
    PORTS_UNPUBLISHED = "ports.unpublished"
    HOST_JOINED = "host.joined"
    HOST_LEFT = "host.left"
    HOST_LOST = "host.lost"
    HOST_RETURNED = "host.returned"
    STORE_LOST = "store.lost"
    STORE_RETURNED = "store.returned"
    DRIFT_FOUND = "drift.found"
    DRIFT_OVER = "drift.over"
    DRIFT_HEALED = "drift.healed"
    FAULT_FOUND = "fault.found"
    FAULT_OVER = "fault.over"
    QUARANTINE_BEGUN = "quarantine.begun"
    QUARANTINE_OVER = "quarantine.over"
    ANSWER_BLOCKED = "answer.blocked"
    REQUEST_REFUSED = "request.refused"
    REQUEST_FAILED = "request.failed"


MEANING = {
    Kind.DAEMON_STARTED: "the daemon has reconciled the kernel with its records, and serves requests",
    Kind.DAEMON_STOPPED: "the daemon was asked to stop; traffic continues",
    Kind.NETWORK_CREATED: "a network was created on this host",
    Kind.NETWORK_UPDATED: "its name, options, labels or owner changed, or its objects in the kernel followed the host",
    Kind.NETWORK_REMOVED: "a network was removed from this host",
    Kind.ENDPOINT_CREATED: "a container or namespace got its link and addresses",
    Kind.ENDPOINT_UPDATED: "its name, aliases, addresses or health became known or changed, or it left its sandbox",
    Kind.ENDPOINT_REMOVED: "an endpoint was removed, and its addresses are free",
    Kind.PORTS_PUBLISHED: "ports of the host lead to it from now on",
    Kind.PORTS_UNPUBLISHED: "ports of the host do not lead to it any more",
    Kind.HOST_JOINED: "another host joined the cluster",
    Kind.HOST_LEFT: "another host's daemon was stopped, or the host was forgotten",
    Kind.HOST_LOST: "another host gave no sign of life for 15 s; its containers may still be reached",
    Kind.HOST_RETURNED: "another host is back",
    Kind.STORE_LOST: "the shared store does not answer; traffic continues",
    Kind.STORE_RETURNED: "the shared store answers again",
    Kind.DRIFT_FOUND: "something in the kernel is not as the records say, and could not be repaired",
    Kind.DRIFT_OVER: "such a difference is gone",
    Kind.DRIFT_HEALED: "something in the kernel was missing or different, and was repaired",
    Kind.FAULT_FOUND: "a fault that is not in the kernel, as `netplug diff` shows it",
    Kind.FAULT_OVER: "such a fault is over",
    Kind.QUARANTINE_BEGUN: "a record cannot be used, and is left as it is",
    Kind.QUARANTINE_OVER: "such a record can be used again, or is gone",
    Kind.ANSWER_BLOCKED: "a resolver had a private address for a public name (`dns_rebinding`)",
    Kind.REQUEST_REFUSED: "a request that would change something was refused; it is the caller's to mend",
    Kind.REQUEST_FAILED: "a request failed because of this host or the store",
}


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happened.

    `time`: Unix time. `object`: it in words, such as "network blue". `what`: what happened to it. `cause`: why. `by`:
    who asked, see `Request`. `request`: its id. `network`, `endpoint`, `host`: ids. Names are those of that time;
    `name` is the endpoint's.
    """

    time: float
    kind: Kind
    object: str
    what: str
    cause: str
    by: str
    request: str
    network: str = ""
    network_name: str = ""
    endpoint: str = ""
    name: str = ""
    container: str = ""
    host: str = ""
    host_name: str = ""


Watcher = Callable[[Happening], None]
"""Gets each. It must not fail, nor wait."""

_cause: ContextVar[str] = ContextVar("cause", default="")


class Happenings:
    """Tells what happens. `watchers`: are told. `counts`: numbers by kind, since the start of the process."""

    def __init__(self) -> None:
        self.watchers: list[Watcher] = []
        self.counts: Counter[Kind] = Counter()

    def tell(self, kind: Kind, obj: str, what: str = "", *, cause: str = "", **ids: str) -> None:
        """Tell of a happening. `cause`: else that of `because`, or the present request."""
        asked = request.current()
        why = cause or _cause.get() or asked.verb
        told = Happening(time.time(), kind, _text(obj), _text(what), _text(why), asked.asker, asked.id, **ids)
        self.counts[kind] += 1
        for watcher in self.watchers:
            watcher(told)


def _text(words: str) -> str:
    """Return words as they can be written: what is no character, such as a wrong byte of an environment, is escaped."""
    return words if words.isascii() else words.encode(errors="backslashreplace").decode()


@contextmanager
def because(cause: str) -> Iterator[None]:
    """Give what happens within the block a cause, in words."""
    token = _cause.set(cause)
    try:
        yield
    finally:
        _cause.reset(token)
