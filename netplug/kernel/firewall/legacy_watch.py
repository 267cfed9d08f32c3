"""Notices foreign changes to the rules of iptables-legacy, of which the kernel sends no notifications.

It tells how many rules a table has, and their size in bytes, by one system call (linux/netfilter_ipv4/ip_tables.h,
IPT_SO_GET_INFO). So a table that has a gate is asked for them twice a second and more (30 µs).
"""

import asyncio
import ctypes
import socket
import struct
from collections.abc import Callable

from netplug.kernel import libc

INTERVAL_S = 0.4
_GET_INFO = 64
"""IPT_SO_GET_INFO and IP6T_SO_GET_INFO."""
_INFO = struct.Struct("=32s13I")
"""struct ipt_getinfo; the last numbers are those of entries and bytes."""
_SOCKETS = {4: (socket.AF_INET, socket.IPPROTO_IP), 6: (socket.AF_INET6, socket.IPPROTO_IPV6)}

_NO_RULES = 4
"""Entries of a table without rules: the policies of INPUT, FORWARD and OUTPUT, and the end."""


class LegacyWatch:
    """Calls `on_change` when a filter table of this namespace was changed. Belongs to one event loop."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._seen: dict[int, bytes] = {}
        self._sockets: dict[int, socket.socket] = {}
        self._timer: asyncio.TimerHandle | None = None

    def note(self, family: int, *, again: bool) -> None:
        """Watch the table of an IP version. `again`: take it as it is now, also if it is watched."""
        if again or family not in self._seen:
            self._seen[family] = self._info(family)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._look)

    def has_rules(self, family: int) -> bool:
        """Return whether the table of an IP version has more than its three built-in chains, and its end."""
        info = self._info(family)
        return bool(info) and _INFO.unpack(info)[-2] > _NO_RULES

    def forget(self, family: int) -> None:
        """Stop watching the table of an IP version."""
        self._seen.pop(family, None)
        if sock := self._sockets.pop(family, None):
            sock.close()

    def close(self) -> None:
        """Stop watching."""
        for family in _SOCKETS:
            self.forget(family)
        if self._timer:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        for family, before in list(self._seen.items()):
            self._seen[family] = now = self._info(family)
            if now != before:
                self._on_change()
        if self._seen:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._look)

    def _info(self, family: int) -> bytes:
        """Return what the kernel tells of a table; nothing if there is none."""
        of, level = _SOCKETS[family]
        try:
            sock = self._sockets.get(family)
            if sock is None:
                kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
                sock = self._sockets[family] = socket.socket(of, kind, socket.IPPROTO_RAW)
            # Python passes no value to getsockopt(2), so the name of the table goes by the C library.
            buffer = ctypes.create_string_buffer(_INFO.pack(b"filter", *(0,) * 13), _INFO.size)
            length = ctypes.c_uint32(_INFO.size)
            libc.call("getsockopt", sock.fileno(), level, _GET_INFO, buffer, ctypes.byref(length))
        except OSError:
            return b""
        return buffer.raw
