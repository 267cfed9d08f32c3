"""The kernel's list of sockets (sock_diag(7)), of this thread's namespace.

Messages are parsed by hand: pyroute2 has this schema only together with its sockets, which would take 3.5 MB and 25 ms
for one error message.
"""

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from netplug.kernel.netlink.connection import Netlink, attrs

LISTENING, BOUND, UNCONNECTED = 1 << 10, 1 << 13, 1 << 7
"""States in which a socket occupies a port: TCP_LISTEN; bound but not listening (dumped since Linux 6.8); UDP."""

# linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_INET_DIAG_SKV6ONLY = 11
_REQUEST = struct.Struct("=BBxxI")
_SOCKET = struct.Struct("!HH16s16s")
_NUMBERS = struct.Struct("=IIII")
_NUMBERS_AT, _ATTRIBUTES_AT = 56, 72


class Socket(NamedTuple):
    """A socket. `address`: packed. `v6only`: of IPv6, that it takes no IPv4. `queue`: what waits to be taken."""

    inode: int
    address: bytes
    port: int
    v6only: bool
    queue: int


def sockets(protocol: int, states: int, port: int = 0) -> Iterator[Socket]:
    """Yield the sockets of a protocol in some states: at a port, or all; none if the kernel lacks sock_diag."""
    for family in (socket.AF_INET, socket.AF_INET6):
        query = _REQUEST.pack(family, protocol, states) + _SOCKET.pack(port, 0, b"", b"") + bytes(12)
        with suppress(OSError), Netlink.open(_NETLINK_SOCK_DIAG) as netlink:
            for message in netlink.dump(_SOCK_DIAG_BY_FAMILY, query):
                yield _parse(message)


def _parse(message: bytes) -> Socket:
    """Parse a struct inet_diag_msg and its attributes."""
    port, _, source, _ = _SOCKET.unpack_from(message, 4)
    queue, _, _, inode = _NUMBERS.unpack_from(message, _NUMBERS_AT)
    if message[0] == socket.AF_INET:
        return Socket(inode, source[:4], port, v6only=False, queue=queue)
    v6only = attrs(message, _ATTRIBUTES_AT).get(_INET_DIAG_SKV6ONLY, b"\0")[0]
    return Socket(inode, source, port, bool(v6only), queue)
