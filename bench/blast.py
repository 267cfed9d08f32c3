"""Load generator for name servers: a closed loop by sendmmsg(2) and recvmmsg(2).

dnsperf reaches its own limit at about 100 000 queries per second on one processor, since it sends them one by one. This
program reaches twice as many, so that the server is measured. It prepares every query in memory before it starts, and
reads only the RCODE of an answer.

    .venv/bin/python bench/blast.py FILE --server 10.77.0.1 [--port 53] [--seconds 3] [--option 10:0123456789abcdef]

FILE has a name and a type in each line, like dnsperf's. The output is JSON: seconds, numbers of answers by RCODE, and
the number of lost queries.
"""

import argparse
import ctypes
import json
import select
import socket
import struct
import sys
import time
from array import array
from collections import Counter
from itertools import chain
from pathlib import Path

SOCKETS = 8
WINDOW = 8
"""Pending queries of each socket."""
ROOM = 2048
"""Octets for an answer."""
PATIENCE_MS = 200
"""After this time without any answer, the pending queries count as lost."""
_TYPES = {"A": 1, "PTR": 12, "AAAA": 28, "SRV": 33}
_DONTWAIT = int(socket.MSG_DONTWAIT)
_NUMBERS_A_HEADER = 8
"""struct mmsghdr in numbers of 64 bits: name, its length, iov, iovlen, control, its length, flags, octets sent."""


def encode(line: str, number: int, option: str = "") -> bytes:
    """Return a question in wire form. `option` of EDNS: as of dnsperf's ``-E``, CODE:HEX; "bare": EDNS without any."""
    name, kind = line.split()
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.rstrip(".").split("."))
    extra = b""
    if option == "bare":
        extra = struct.pack("!BHHIH", 0, 41, 1232, 0, 0)
    elif option:
        code, _, data = option.partition(":")
        value = bytes.fromhex(data)
        extra = struct.pack("!BHHIHHH", 0, 41, 4096, 0, 4 + len(value), int(code), len(value)) + value
    head = struct.pack("!6H", number & 0xFFFF, 0x0100, 1, 0, 0, bool(extra))
    return head + labels + b"\0" + struct.pack("!HH", _TYPES[kind], 1) + extra


class Messages:
    """Headers, vectors and octets of messages, laid out for one call after another.

    `room`: of each, where they are to be received.
    """

    def __init__(self, messages: list[bytes], room: int = 0) -> None:
        sizes = [room or len(message) for message in messages]
        self.octets = ctypes.create_string_buffer(sum(sizes) if room else 0) if room else _buffer(b"".join(messages))
        starts = array("Q", [ctypes.addressof(self.octets)])
        for size in sizes[:-1]:
            starts.append(starts[-1] + size)
        self._vectors = array("Q", chain.from_iterable(zip(starts, sizes, strict=True)))
        first = self._vectors.buffer_info()[0]
        headers = ((0, 0, first + 16 * number, 1, 0, 0, 0, 0) for number in range(len(messages)))
        self.headers = array("Q", chain.from_iterable(headers))
        self.start = self.headers.buffer_info()[0]

    def at(self, number: int) -> int:
        """Return where the header of a message is."""
        return self.start + number * 8 * _NUMBERS_A_HEADER


def _buffer(octets: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(octets, len(octets))


def blast(address: str, port: int, questions: list[bytes], seconds: float) -> dict[str, object]:
    """Send queries for some seconds, and count the answers."""
    libc = ctypes.CDLL(None, use_errno=True)
    out, into = Messages(questions), Messages([b""] * WINDOW, ROOM)
    codes_at = memoryview(into.octets).cast("B")[3::ROOM]
    sockets = []
    poll = select.poll()
    for _ in range(SOCKETS):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.connect((address, port))
        poll.register(sock, select.POLLIN)
        sockets.append(sock)
    files = [sock.fileno() for sock in sockets]
    nexts = [len(questions) * number // SOCKETS for number in range(SOCKETS)]
    awaited = [0] * SOCKETS
    codes: Counter[int] = Counter()
    lost = 0
    begun = now = time.perf_counter()
    end = begun + seconds
    while now < end:
        heard = 0
        for number, file in enumerate(files):
            if free := WINDOW - awaited[number]:
                at = nexts[number]
                sent = libc.sendmmsg(file, ctypes.c_void_p(out.at(at)), min(free, len(questions) - at), _DONTWAIT)
                if sent > 0:
                    awaited[number] += sent
                    nexts[number] = (at + sent) % len(questions)
            came = libc.recvmmsg(file, ctypes.c_void_p(into.start), WINDOW, _DONTWAIT, None)
            if came > 0:
                awaited[number] = max(awaited[number] - came, 0)
                codes.update(bytes(codes_at[:came]))
                heard += came
        if not heard and not poll.poll(PATIENCE_MS):
            lost += sum(awaited)
            awaited = [0] * SOCKETS
        now = time.perf_counter()
    for sock in sockets:
        sock.close()
    by_code: Counter[int] = Counter()
    for octet, count in codes.items():
        by_code[octet & 0xF] += count
    return {"seconds": now - begun, "answered": dict(by_code), "lost": lost}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="names and types, like dnsperf's")
    parser.add_argument("--server", required=True)
    parser.add_argument("--port", type=int, default=53)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--option", default="", help="EDNS option CODE:HEX, or bare for EDNS without options")
    options = parser.parse_args()
    lines = options.file.read_text().splitlines()
    questions = [encode(line, number, options.option) for number, line in enumerate(lines)]
    json.dump(blast(options.server, options.port, questions, options.seconds), sys.stdout)


if __name__ == "__main__":
    main()
