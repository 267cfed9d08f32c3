"""The process that captures for another host: it keeps packets until they are fetched, and ends when nobody does.

One JSON object a line, on stdin what is asked and on stdout the answers, in their order. The first line is the job.
Packets that nobody fetches in time are counted, and not kept: the buffer is bounded.
"""

import base64
import json
import os
import selectors
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from netplug.kernel.probes.capture import CaptureError, Packet, Place, Tap, open_place

MOST_PACKETS, MOST_KEPT_BYTES = 20_000, 8 << 20
MOST_ANSWER_BYTES, MOST_ANSWER_PACKETS = 400_000, 5_000
"""Of one answer: it travels in a record of the shared store."""
_PACKET_BYTES = 60
"""Of a packet in JSON, beside its data."""
IDLE_S = 10.0
"""The one who fetches asks several times a second. Without it, it is gone."""
_TURN_S = 0.5


@dataclass(slots=True)
class Kept:
    """Packets until they are fetched. `lost`: that did not fit."""

    packets: deque[Packet] = field(default_factory=deque)
    size: int = 0
    lost: int = 0
    seen: int = 0

    def add(self, packet: Packet) -> None:
        """Keep a packet, if there is room."""
        self.seen += 1
        if len(self.packets) >= MOST_PACKETS or self.size + len(packet.data) > MOST_KEPT_BYTES:
            self.lost += 1
            return
        self.packets.append(packet)
        self.size += len(packet.data)

    def take(self) -> Iterator[list[Any]]:
        """Take out as many as one answer may have, as JSON."""
        room, count = MOST_ANSWER_BYTES, MOST_ANSWER_PACKETS
        while self.packets and count:
            data = base64.b64encode(self.packets[0].data).decode("ascii")
            room -= len(data) + _PACKET_BYTES
            if room < 0:
                return
            packet, count = self.packets.popleft(), count - 1
            self.size -= len(packet.data)
            yield [packet.time_ns, packet.sent, packet.length, data]


def main() -> None:
    """Read the job, capture, and answer until stdin ends or nobody asks any more."""
    job = json.loads(sys.stdin.buffer.readline())
    try:
        code = [(int(a), int(b), int(c), int(d)) for a, b, c, d in job["code"]]
        tap = open_place(Place(**job["place"]), code)
    except CaptureError as error:
        _say({"error": str(error)})
        return
    except (OSError, ValueError, TypeError) as error:
        _say({"error": f"the capture cannot be started: {error}"})
        return
    _say({"link": tap.name, "reverse": tap.reverse, "time_ns": time.time_ns()})
    with suppress(BrokenPipeError):
        _serve(tap)


def _serve(tap: Tap) -> None:
    kept, pending, asked = Kept(), b"", time.monotonic()
    commands = sys.stdin.fileno()
    with selectors.DefaultSelector() as selector:
        selector.register(commands, selectors.EVENT_READ)
        selector.register(tap, selectors.EVENT_READ)
        while time.monotonic() - asked < IDLE_S:
            ready = {key.fd for key, _ in selector.select(_TURN_S)}
            if tap.fileno() in ready:
                for packet in tap.read():
                    kept.add(packet)
                if tap.ended:
                    selector.unregister(tap)
            if commands in ready:
                data = os.read(commands, 65536)
                if not data:
                    return
                *lines, pending = (pending + data).split(b"\n")
                for _ in lines:
                    asked = time.monotonic()
                    _say(_answer(tap, kept))


def _answer(tap: Tap, kept: Kept) -> dict[str, Any]:
    until = time.time_ns()
    if not tap.ended:
        for packet in tap.read():
            kept.add(packet)
    packets = list(kept.take())
    if kept.packets:
        until = kept.packets[0].time_ns
    return {
        "packets": packets,
        "more": bool(kept.packets),
        "until_ns": until,
        "seen": kept.seen,
        "dropped": tap.dropped,
        "lost": kept.lost,
        "ended": tap.ended,
    }


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message, separators=(",", ":")) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
