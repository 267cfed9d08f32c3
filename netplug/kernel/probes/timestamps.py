"""When the kernel received or sent a packet (socket(7), SO_TIMESTAMPNS)."""

import socket
import struct
from collections.abc import Iterable

_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@ll")


def request(sock: socket.socket) -> None:
    """Have a socket give each packet its time."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)


def time_ns(ancillary: Iterable[tuple[int, int, bytes]]) -> int:
    """Return the time that came with a packet, in nanoseconds since 1970; 0 for none."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            return int(seconds * 1_000_000_000 + nanoseconds)
    return 0
