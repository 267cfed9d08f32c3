"""Who reaches whom, tried with a datagram of a new flow along each road at once, without a process."""

import os
import select
import socket
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .netns import CLONE_NEWNET, _libc
from .quick import PORT

ROUND_S = 0.04
"""An answer on one machine takes a millisecond."""


@dataclass(frozen=True)
class Road:
    """From a namespace to an address. `wanted`: the source that the server sees; "" where nothing may pass."""

    place: Path
    address: str
    wanted: str
    port: int = PORT
    size: int = 1


class Prober:
    """Sends a datagram of a new flow along each road at once. Its thread moves from namespace to namespace."""

    def __init__(self, roads: Mapping[str, Road]) -> None:
        self.roads = roads
        self._fds = {place: os.open(place, os.O_RDONLY | os.O_CLOEXEC) for place in {it.place for it in roads.values()}}
        self._thread = ThreadPoolExecutor(1)

    def close(self) -> None:
        self._thread.shutdown()
        for fd in self._fds.values():
            os.close(fd)

    def wrong(self, *, closed: bool = True) -> set[str]:
        """Try all roads once; return those that are not as wanted. `closed`: also those where nothing may pass."""
        return self._thread.submit(self._round, closed=closed).result()

    def _round(self, *, closed: bool) -> set[str]:
        wrong, waiting = set[str](), dict[int, tuple[str, socket.socket]]()
        poll = select.poll()
        for name, road in self.roads.items():
            if road.wanted or closed:
                try:
                    sock = self._send(road)
                except OSError:
                    wrong |= {name} if road.wanted else set()
                    continue
                waiting[sock.fileno()] = name, sock
                poll.register(sock, select.POLLIN)
        until = time.monotonic() + ROUND_S
        while (left := until - time.monotonic()) > 0 and any(self.roads[name].wanted for name, _ in waiting.values()):
            for fd, _ in poll.poll(left * 1000):
                name, sock = waiting.pop(fd)
                poll.unregister(fd)
                if self._answer(sock) != self.roads[name].wanted:
                    wrong.add(name)
        for name, sock in waiting.values():
            if self._answer(sock) != self.roads[name].wanted:
                wrong.add(name)
        return wrong

    def _send(self, road: Road) -> socket.socket:
        if _libc.setns(self._fds[road.place], CLONE_NEWNET):
            raise OSError(road.place)
        family = socket.AF_INET6 if ":" in road.address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.connect((road.address, road.port))
            sock.send(b"x" * road.size)
        except OSError:
            sock.close()
            raise
        return sock

    @staticmethod
    def _answer(sock: socket.socket) -> str:
        with sock:
            try:
                return sock.recv(2048).decode().removeprefix("::ffff:")
            except OSError:
                return ""
