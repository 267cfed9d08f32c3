"""Reads the packets of a link, in whatever namespace it is (packet(7)). Not for the daemon: it would have to keep up.

A socket stays in the namespace where it was opened. It is bound only when its filter is attached, so nothing that does
not match is ever read. The kernel says when a packet passed, and how many did not fit into the socket's buffer.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, Self

from netplug.kernel.host.socket_filters import RETURN, Instruction, attach
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import Netlink
from netplug.kernel.probes import timestamps
from netplug.kernel.sandbox.netns import identity, open_netns, run_in

MOST_BYTES = 262_144
"""Of a packet that are kept by default, as with tcpdump: more than any packet has."""
_BUFFER_BYTES = 32 << 20
_AT_ONCE = 256
"""Packets read of one link before the others have their turn."""

_ETH_P_ALL = 3
_SO_RCVBUFFORCE = 33
_SOL_PACKET, _PACKET_STATISTICS, _PACKET_AUXDATA = 263, 6, 8
_PACKET_OUTGOING = 4
_AUXDATA = struct.Struct("=IIIHHHH")
"""struct tpacket_auxdata: status, length, captured length, offsets of MAC and network header, VLAN tag and its type."""
_VLAN_VALID, _VLAN_TPID_VALID = 0x10, 0x40
_STATISTICS = struct.Struct("=II")
_ANCILLARY_BYTES = 256
_ENDED = {errno.ENETDOWN, errno.ENODEV, errno.ENXIO}


class CaptureError(Exception):
    """A link whose packets cannot be read; says why in one line."""


class Packet(NamedTuple):
    """A packet. `time_ns`: since 1970. `sent`: by the endpoint. `length`: in bytes, of which `data` may be a part."""

    time_ns: int
    sent: bool
    length: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Place:
    """The link of an endpoint: in its sandbox by `link` or by `mac`, and on the host, if it has a side there."""

    netns: str = ""
    netns_id: str = ""
    link: str = ""
    mac: str = ""
    host_link: str = ""


class Tap:
    """Packets of one link. `reverse`: it is the host side of a veth, which receives what the endpoint sends."""

    def __init__(self, sock: socket.socket, name: str, *, reverse: bool = False, loopback: bool = False) -> None:
        self.name = name
        self.reverse = reverse
        self.ended = ""
        self._loopback = loopback
        self._sock = sock
        self._dropped = 0
        self._buffer = bytearray(MOST_BYTES)
        self._view = memoryview(self._buffer)

    @classmethod
    def open(cls, name: str, code: Sequence[Instruction], *, reverse: bool = False) -> Self:
        """Open a link of the namespace of this thread.

        Raises:
            OSError: there is no such link, or no right to read its packets.
        """
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            attach(sock, code)
            with suppress(OSError):  # not root: it keeps its size
                sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            timestamps.request(sock)
            sock.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            sock.setblocking(False)
            sock.bind((name, _ETH_P_ALL))
        except BaseException:
            sock.close()
            raise
        return cls(sock, name, reverse=reverse, loopback=name == "lo")

    def fileno(self) -> int:
        """Return the descriptor that is readable when there are packets."""
        return self._sock.fileno()

    def read(self) -> Iterator[Packet]:
        """Yield packets that have arrived; does not wait. Sets `ended` when the link is gone."""
        for _ in range(_AT_ONCE):
            try:
                size, ancillary, _, address = self._sock.recvmsg_into([self._buffer], _ANCILLARY_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _ENDED:
                    raise
                self.ended = f"link {self.name} is gone or down"
                return
            sent = address[2] == _PACKET_OUTGOING
            if not self._loopback or sent:  # lo gives each packet twice
                yield self._packet(bytes(self._view[:size]), ancillary, sent=sent is not self.reverse)

    @staticmethod
    def _packet(data: bytes, ancillary: list[tuple[int, int, bytes]], *, sent: bool) -> Packet:
        length = len(data)
        for level, kind, value in ancillary:
            if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
                status, length, _, _, _, tag, tag_type = _AUXDATA.unpack_from(value)
                if status & _VLAN_VALID:  # the kernel took the tag out
                    ether_type = tag_type if status & _VLAN_TPID_VALID else 0x8100
                    data = data[:12] + struct.pack("!HH", ether_type, tag) + data[12:]
                    length += 4
        return Packet(timestamps.time_ns(ancillary), sent, length, data)

    @property
    def dropped(self) -> int:
        """Packets that the kernel dropped since the begin, because they were not read in time."""
        with suppress(OSError):
            self._dropped += _STATISTICS.unpack(self._sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1]
        return self._dropped

    def close(self) -> None:
        """Stop."""
        self._sock.close()


def whole(most_bytes: int = MOST_BYTES) -> list[Instruction]:
    """Return the filter that takes each packet, and so many bytes of it."""
    return [(RETURN, 0, 0, most_bytes)]


def open_place(place: Place, code: Sequence[Instruction], *, loopback: bool = False) -> Tap:
    """Open the link of an endpoint: that of the sandbox, or else the host's side of it.

    Args:
        place: where it is.
        code: the filter.
        loopback: open the sandbox's loopback instead.

    Raises:
        CaptureError: neither can be opened.
    """
    if not (place.mac or place.link or place.host_link):
        raise CaptureError("the endpoint has no link, as with mode none")
    reasons = []
    if place.netns:
        try:
            return _in_sandbox(place, code, loopback=loopback)
        except OSError as error:
            reasons.append(f"sandbox {place.netns}: {_words(error)}")
    if place.host_link and not loopback:
        try:
            return Tap.open(place.host_link, code, reverse=True)
        except OSError as error:
            reasons.append(f"link {place.host_link}: {_words(error)}")
    raise CaptureError("; ".join(reasons) or "its link is not there")


def _in_sandbox(place: Place, code: Sequence[Instruction], *, loopback: bool) -> Tap:
    fd = open_netns(place.netns)
    try:
        if place.netns_id and identity(fd) != place.netns_id:
            raise FileNotFoundError(errno.ENOENT, "another sandbox is at this path")
        return run_in(fd, lambda: Tap.open("lo" if loopback else _link_of(place), code))
    finally:
        os.close(fd)


def _link_of(place: Place) -> str:
    """Return the name of the endpoint's link in the namespace of this thread. Docker has given it one of its own."""
    with Netlink.open() as nl:
        links = rtnl.links(nl)
    named = next((it.name for it in links if it.name == place.link), None)
    found = named or next((it.name for it in links if it.mac == place.mac != ""), None)
    if found is None:
        raise OSError(errno.ENODEV, f"no link has MAC {place.mac}")
    return found


def _words(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
