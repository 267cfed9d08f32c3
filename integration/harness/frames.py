"""Frames as they go through a link."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from scapy.layers.inet import UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

from .host import Host
from .netns import in_netns
from .traffic import Placed

ALL_PROTOCOLS = 3
"""linux/if_ether.h, ETH_P_ALL."""


@contextmanager
def captured(host: Host, link: str) -> Iterator[list[Packet]]:
    """All that goes through a link, filled in once the block has ended."""
    frames: list[Packet] = []

    def opened() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        sock.bind((link, 0))
        sock.setblocking(False)
        return sock

    with in_netns(host.netns, opened) as sock:
        yield frames
        while True:
            try:
                frames.append(Ether(sock.recv(65535)))
            except BlockingIOError:
                return


def inner(frames: list[Packet], port: int = 4789) -> list[Packet]:
    """Return the frames inside those that are VXLAN."""
    carried = [frame[UDP] for frame in frames if UDP in frame and frame[UDP].dport == port]
    return [VXLAN(bytes(udp.payload))[Ether] for udp in carried]


class Eye:
    """Sees every frame that comes to a link."""

    def __init__(self, place: Placed, link: str) -> None:
        self._socket = in_netns(
            place.netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
        )
        self._socket.bind((link, ALL_PROTOCOLS))
        self._socket.setblocking(False)
        self._seen = b""

    def saw(self, mark: bytes) -> bool:
        while True:
            try:
                self._seen += self._socket.recv(4096) + b"|"
            except BlockingIOError:
                return mark in self._seen

    def close(self) -> None:
        self._socket.close()
