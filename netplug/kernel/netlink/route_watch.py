"""Word from the kernel that routes of this namespace changed (rtnetlink(7)), as seldom as it need be.

A router with a full table (BGP) changes some routes each second, and all of them when a session starts; each word would
cost us. So after the first one the socket is closed, and opened anew after a while. That while doubles for as long as
there is something each time, and what happened in it is told of as one.
"""

import asyncio
import socket
from contextlib import suppress

FIRST_S, MOST_S = 1.0, 30.0
"""How long nothing is heard."""
_RTMGRP_IPV4_ROUTE, _RTMGRP_IPV6_ROUTE = 0x40, 0x400
_BUFFER = 1 << 12
"""Of the first word nothing but that it came is of interest."""


class RouteChanges:
    """Sets `event` when routes may have changed. Belongs to the loop and the network namespace that it is made in."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._again: asyncio.TimerHandle | None = None
        self._deaf_s = 0.0
        self._opened = self._loop.time()
        self._open()

    def _open(self) -> None:
        self._socket = sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        sock.bind((0, _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV6_ROUTE))
        self._loop.add_reader(sock.fileno(), self._hear)

    def _hear(self) -> None:
        restless = self._loop.time() - self._opened < self._deaf_s
        self._deaf_s = min(2 * self._deaf_s, MOST_S) if restless else FIRST_S
        self._shut()
        self.event.set()
        self._again = self._loop.call_later(self._deaf_s, self._reopen)

    def _reopen(self) -> None:
        self._again = None
        self._opened = self._loop.time()
        with suppress(OSError):  # no descriptor is left: the slow timer has to do
            self._open()
        self.event.set()

    def _shut(self) -> None:
        if self._socket:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """Stop listening."""
        if self._again:
            self._again.cancel()
        self._shut()
