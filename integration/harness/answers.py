"""How long name server and API take to answer while something goes on: asked all the time, the longest counts."""

import http.client
import itertools
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

import dnslib

from .netns import open_socket
from .netplugd import RUN_DIR, Netplug
from .traffic import Placed

EVERY_S = 0.01
LOST_S = 15.0
"""What is not answered by then counts as this long."""
PATHS = ("version", "networks", "endpoints")
"""What the daemon answers from its memory."""


@dataclass
class Answers:
    """Milliseconds of each answer, by who gave it: `dns`, or a path of the API. `asked`: when, if it is still due."""

    took: dict[str, list[float]] = field(default_factory=dict)
    asked: dict[str, float] = field(default_factory=dict)

    def longest(self, *whose: str) -> float:
        """Return the longest of these, or of all; also of one that is still waited for, so far."""
        now = time.perf_counter()
        names = whose or tuple(self.took)
        due = [(now - begun) * 1000 for name in names if (begun := self.asked.get(name))]
        return max(*due, *(ms for name in names for ms in self.took[name]), 0.0)

    def longest_of_api(self) -> float:
        return self.longest(*(name for name in self.took if name != "dns"))


@contextmanager
def answers(netplug: Netplug, place: Placed, server: str, name: str) -> Iterator[Answers]:
    """Ask for a name from a place, and for lists by the API, every 10 ms during the block."""
    found, over = Answers(), Event()
    with ExitStack() as stack:
        sock = stack.enter_context(open_socket(place.netns, socket.SOCK_DGRAM))
        sock.settimeout(LOST_S)
        sock.connect((server, 53))
        api = netplug.host.path(f"{RUN_DIR}/netplug.sock")
        work = [("dns", lambda: _resolve(sock, name))]
        for path in PATHS:
            connection = stack.enter_context(_connected(api))
            work.append((path, lambda it=connection, p=path: _get(it, p)))  # type: ignore[misc]
        threads = []
        for what, ask in work:
            found.took[what] = [_timed(ask)]
            threads.append(Thread(target=_repeat, args=(found, what, ask, over), name=f"answers-{what}"))
        for thread in threads:
            thread.start()
        try:
            yield found
        finally:
            over.set()
            for thread in threads:
                thread.join()


def _repeat(found: Answers, what: str, ask: Callable[[], None], over: Event) -> None:
    while not over.wait(EVERY_S):
        found.asked[what] = time.perf_counter()
        took = _timed(ask)
        found.asked.pop(what)
        found.took[what].append(took)


def _timed(ask: Callable[[], None]) -> float:
    begun = time.perf_counter()
    with suppress(TimeoutError):
        ask()
    return (time.perf_counter() - begun) * 1000


def _resolve(sock: socket.socket, name: str) -> None:
    """Ask, and wait for the answer to this question: a late one to another is passed over."""
    packed = dnslib.DNSRecord.question(name).pack()
    sock.send(packed)
    for _ in itertools.count():
        said = sock.recv(4096)
        if said[:2] == packed[:2]:
            assert dnslib.DNSRecord.parse(said).rr, f"{name}: no address"
            return


@contextmanager
def _connected(path: Path) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("netplug", timeout=LOST_S)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(LOST_S)
    connection.sock.connect(str(path))
    try:
        yield connection
    finally:
        connection.close()


def _get(connection: http.client.HTTPConnection, path: str) -> None:
    connection.request("GET", f"/v1/{path}")
    response = connection.getresponse()
    response.read()
    assert response.status == 200, f"{path}: {response.status}"
