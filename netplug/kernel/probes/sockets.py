"""Listening and bound sockets of this thread's namespace, by the kernel's list (sock_diag(7))."""

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address

from netplug.kernel.netlink.connection import Netlink, attrs
from netplug.kernel.probes.api import Listener

_NETLINK_SOCK_DIAG, _BY_FAMILY = 4, 20
_LISTENING, _UNCONNECTED = 1 << 10, 1 << 7
_REQUEST = struct.Struct("=BBxxI48x")
_SOCKET = struct.Struct("!HH16s16s")
_NUMBERS = struct.Struct("=IIII")
_RQUEUE_AT, _ATTRIBUTES_AT, _V6ONLY = 56, 72, 11


@dataclass(frozen=True, slots=True)
class Found:
    """A socket without its process."""

    inode: int
    listener: Listener


def listeners() -> Iterator[Found]:
    """Yield all."""
    for proto, number, states in (("tcp", 6, _LISTENING), ("udp", 17, _UNCONNECTED)):
        for family in (socket.AF_INET, socket.AF_INET6):
            with suppress(OSError), Netlink.open(_NETLINK_SOCK_DIAG) as netlink:
                for message in netlink.dump(_BY_FAMILY, _REQUEST.pack(family, number, states)):
                    yield _parse(message, proto)


def _parse(message: bytes, proto: str) -> Found:
    """Parse a struct inet_diag_msg and its attributes."""
    port, _, source, _ = _SOCKET.unpack_from(message, 4)
    queue, _, _, inode = _NUMBERS.unpack_from(message, _RQUEUE_AT)
    dual = False
    if message[0] == socket.AF_INET6:
        dual = not attrs(message, _ATTRIBUTES_AT).get(_V6ONLY, b"\0")[0] and not any(source)
    packed = source[:4] if message[0] == socket.AF_INET else source
    return Found(inode, Listener(proto, ip_address(packed), port, dual=dual, queue=queue))
