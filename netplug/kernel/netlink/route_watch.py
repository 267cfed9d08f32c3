"""Notifications of route changes in this namespace (rtnetlink(7)), rate-limited.

A BGP router with a full table changes some routes each second, and all of them when a session starts. Each notification
would cost CPU time. So the socket is closed after the first one and opened again after a delay. The delay doubles while
routes keep changing. All changes during the delay count as one.
"""

import asyncio
import socket
from contextlib import suppress

FIRST_S, MOST_S = 1.0, 30.0
"""First and longest delay, in which no notifications are received."""
_RTMGRP_IPV4_ROUTE, _RTMGRP_IPV6_ROUTE = 0x40, 0x400
_BUFFER = 1 << 12
"""Notifications are not parsed, so a small buffer is enough."""


class RouteChanges:
    """Sets `event` when routes may have changed. Belongs to the event loop and network namespace of its creation."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._again: asyncio.TimerHandle | None = None
        self._delay_s = 0.0
        self._opened = self._loop.time()
        self._open()

    def _open(self) -> None:
        self._socket = sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        sock.bind((0, _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV6_ROUTE))
        self._loop.add_reader(sock.fileno(), self._on_change)

    def _on_change(self) -> None:
        frequent = self._loop.time() - self._opened < self._delay_s
        self._delay_s = min(2 * self._delay_s, MOST_S) if frequent else FIRST_S
        self._close_socket()
        self.event.set()
        self._again = self._loop.call_later(self._delay_s, self._reopen)

    def _reopen(self) -> None:
        self._again = None
        self._opened = self._loop.time()
        with suppress(OSError):  # out of descriptors: changes are found by the slow timer of the callers
            self._open()
        self.event.set()

    def _close_socket(self) -> None:
        if self._socket:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """Stop watching."""
        if self._again:
            self._again.cancel()
        self._close_socket()
