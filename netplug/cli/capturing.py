"""The packets that `netplug capture` reads: of links of this host by itself, of other hosts through the daemon."""

import base64
import heapq
import math
import queue
import selectors
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeAlias

from netplug.cli import CliError
from netplug.cli.client import Client
from netplug.kernel.host.socket_filters import Instruction
from netplug.kernel.probes.capture import Packet, Place, Tap, open_place

_TURN_S = 0.2
"""How often is looked whether the capture shall end."""
_FETCH_S = 0.3
_MOST_WAITING = 64
"""Answers of another host that wait to be taken."""
_MOST_HELD_S = 5.0
"""How long packets of this host wait for earlier ones of another."""
Event: TypeAlias = tuple["Source", Packet, str]
"""A packet, of which link, and the rule that dropped it; empty: none did."""


def turns(seconds: float) -> Iterator[float]:
    """Yield how long to wait for packets, turn by turn until the time is over. `seconds`: 0 for ever."""
    end = time.monotonic() + seconds if seconds else math.inf
    while (left := end - time.monotonic()) > 0:
        yield min(_TURN_S, left)


@dataclass(slots=True, eq=False)
class Source:
    """A link whose packets are read, or (`dropping`) an endpoint whose packets rules drop.

    `seen`, `dropped`, `lost`: by now; `lost`: of another host, not fetched in time. `until_ns`: up to when all its
    packets have arrived. `clock`: how far another host's clock is from ours, in words.
    """

    end: dict[str, Any]
    link: str = ""
    note: str = ""
    expression: str = ""
    tap: Tap | None = None
    seen: int = 0
    dropped: int = 0
    lost: int = 0
    until_ns: int = 0
    ended: str = ""
    clock: str = ""
    dropping: bool = False

    @property
    def label(self) -> str:
        """Host, endpoint and link, as the name of the interface."""
        return "/".join(filter(None, (self.end["host"], name_of(self.end), self.link)))

    @property
    def described(self) -> str:
        name = f"{name_of(self.end)} of network {self.end['network']}"
        if self.dropping:
            return f"{name}: what rules drop"
        return f"{name}, {self.link} {'on the host' if self.tap and self.tap.reverse else 'in its sandbox'}"


def name_of(end: dict[str, Any]) -> str:
    """Return how an endpoint is called."""
    found: str = end["name"] or end["id"][:12]
    return found


def place_of(end: dict[str, Any]) -> Place:
    """Return where the link of an endpoint of this host is."""
    return Place(end["sandbox"], end["sandbox_id"], end["interface"], end["mac"], end["host_link"])


def open_here(end: dict[str, Any], code: Sequence[Instruction], expression: str, *, loopback: bool = False) -> Source:
    """Open the link of an endpoint of this host.

    Raises:
        CaptureError: it has none that can be opened.
    """
    tap = open_place(place_of(end), code, loopback=loopback)
    note = f"its sandbox cannot be entered: {tap.name} of the host is read" if tap.reverse else ""
    return Source(end, tap.name, note, expression, tap)


@dataclass(slots=True)
class Elsewhere:
    """A capture on another host, which a thread fetches. `answers`: what it got; None: it has ended."""

    client: Client
    source: Source
    capture: str = ""
    answers: "queue.Queue[dict[str, Any] | None]" = field(default_factory=lambda: queue.Queue(_MOST_WAITING))
    stopping: threading.Event = field(default_factory=threading.Event)
    failed: str = ""

    def start(self, code: Sequence[Instruction]) -> None:
        """Start it."""
        end = self.source.end
        asked = time.time_ns()
        body = {"endpoint": end["id"], "network": end["network"], "code": [list(it) for it in code]}
        found = self._ask({"do": "start", **body})
        took = time.time_ns() - asked
        self.capture = found["capture"]
        self.source.link = found["link"]
        offset_ns = found["time_ns"] - (asked + took // 2)
        self.source.clock = f"clock {offset_ns / 1e6:+.1f} ms from this host's, give or take {took / 2e6:.1f} ms"
        threading.Thread(target=self._fetch, daemon=True).start()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        host = self.source.end["host"]
        found: dict[str, Any] = self.client.post("capture", "ask", body={"host": host, "question": question})
        return found

    def _fetch(self) -> None:
        try:
            while not self.stopping.is_set():
                found = self._ask({"do": "fetch", "capture": self.capture})
                self.answers.put(found)
                if found["ended"] and not found["more"]:
                    break
                if not found["more"]:
                    self.stopping.wait(_FETCH_S)
        except (CliError, KeyError, TypeError) as exc:
            self.failed = str(exc)
        self.answers.put(None)

    def take(self) -> Iterator[Packet]:
        """Yield what has been fetched."""
        source = self.source
        while not self.answers.empty():
            found = self.answers.get()
            if found is None:
                source.ended = source.ended or self.failed or "ended there"
                return
            source.until_ns, source.seen = found["until_ns"], found["seen"]
            source.dropped, source.lost, source.ended = found["dropped"], found["lost"], found["ended"]
            for time_ns, sent, length, data in found["packets"]:
                yield Packet(time_ns, sent, length, base64.b64decode(data))

    def stop(self) -> None:
        """End it there. If that cannot be said, it ends by itself, since nobody fetches any more."""
        self.stopping.set()
        try:
            self._ask({"do": "stop", "capture": self.capture})
        except CliError as exc:
            self.failed = self.failed or str(exc)


def _arrived(source: Source) -> Iterator[Packet]:
    """Yield what a link of this host has received, so many at a time as its tap reads."""
    for packet in source.tap.read() if source.tap else ():
        source.seen += 1
        yield packet


class Reading:
    """Reads all sources until told to end. Packets of several hosts come in the order of their times."""

    lacks: Sequence[str] = ()

    def __init__(self, here: Sequence[Source], elsewhere: Sequence[Elsewhere], seconds: float) -> None:
        self._here = here
        self._elsewhere = elsewhere
        self._seconds = seconds
        self._held: list[tuple[int, int, Event]] = []
        self._numbers = count()

    @property
    def sources(self) -> list[Source]:
        """All of them."""
        return [*self._here, *(it.source for it in self._elsewhere)]

    @property
    def notes(self) -> list[str]:
        """What to know before it begins."""
        return [f"{it.label}: {it.note or it.clock}" for it in self.sources if it.note or it.clock]

    def events(self) -> Iterator[Event | None]:
        """Yield packets, and None in each turn. Ends after the time, or when all links are gone."""
        with selectors.DefaultSelector() as selector:
            for source in self._here:
                selector.register(source.tap, selectors.EVENT_READ, source)  # type: ignore[arg-type]
            for turn_s in turns(self._seconds):
                if all(source.ended for source in self.sources):
                    break
                yield from self._turn(selector, turn_s)
                yield None
        yield from self.rest()

    def _turn(self, selector: selectors.BaseSelector, turn_s: float) -> Iterator[Event]:
        if not selector.get_map():
            time.sleep(turn_s)
        for key, _ in selector.select(turn_s) if selector.get_map() else ():
            source = key.data
            for packet in _arrived(source):
                yield from self._in_order(source, packet)
            if source.tap.ended:
                source.ended = source.tap.ended
                selector.unregister(source.tap)
        for other in self._elsewhere:
            for packet in other.take():
                yield from self._in_order(other.source, packet)
        yield from self._due()

    def _in_order(self, source: Source, packet: Packet) -> Iterator[Event]:
        if self._elsewhere:
            self._hold(source, packet)
        else:
            yield source, packet, ""

    def _hold(self, source: Source, packet: Packet) -> None:
        heapq.heappush(self._held, (packet.time_ns, next(self._numbers), (source, packet, "")))

    def _due(self) -> Iterator[Event]:
        """Yield packets before which no other can come any more, as far as the clocks of the hosts agree."""
        now = time.time_ns()
        waited = [it.source.until_ns for it in self._elsewhere if not it.source.ended]
        until = max(min(waited, default=now), now - int(_MOST_HELD_S * 1e9))
        while self._held and self._held[0][0] <= until:
            yield heapq.heappop(self._held)[2]

    def rest(self) -> Iterator[Event]:
        """Yield what has arrived by now, and what is held back, at the end."""
        now = time.time_ns()
        for source in self._here:
            more = not source.ended
            while more:
                arrived = list(_arrived(source))
                for packet in arrived:
                    self._hold(source, packet)
                more = bool(arrived) and arrived[-1].time_ns <= now
        for other in self._elsewhere:
            for packet in other.take():
                self._hold(other.source, packet)
        while self._held:
            yield heapq.heappop(self._held)[2]

    def close(self) -> None:
        """End all."""
        for source in self._here:
            if source.tap:
                source.dropped = source.tap.dropped
                source.tap.close()
        for other in self._elsewhere:
            other.stop()
