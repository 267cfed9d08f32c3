"""Netlink with a blocking socket: messages in, typed answers out.

A netlink request is a system call in disguise: the kernel does the work while we are inside ``sendmsg`` and the answer
lies ready when it returns. Waiting for it in an event loop buys nothing. What may wait for others there is done by
threads: rtnetlink's requests by that of `worker`, deleting links by that of `reaper`.

An attach's messages are packed by hand: pyroute2 would make it 7 % slower, and CNI without a daemon by another 20 ms to
load the schemas (``bench/netlink.py``). What is not on that path can use `pyroute2_messages`.
"""

import os
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWLINKPROP = 108

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NEW = NLM_F_CREATE | NLM_F_EXCL

_NLM_F_DUMP_INTR = 0x10
_NLM_F_ACK_TLVS = 0x200
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLMSGERR_ATTR_MSG = 1
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_NESTED = 0x8000
_TYPE_MASK = 0x3FFF

RECEIVE_DEADLINE_S = 10
"""The kernel answers at once, once it has taken a request: for how long it may wait before that, see `worker`."""
DUMP_TRIES = 10
"""A dump during which the objects changed is repeated, but not for ever."""

_HEADER = struct.Struct("=IHHII")
_ATTR = struct.Struct("=HH")
_I32 = struct.Struct("=i")
_U32 = struct.Struct("=I")
_U32_ATTR = struct.Struct("=HHI")
_BUFFER = 1 << 17
_SO_SNDBUFFORCE = 32
_ROOM = 1 << 16
"""Bytes that fit into any socket (socket(7), wmem_default is 212 992, less what the kernel reckons for itself)."""


class NetlinkError(OSError):
    """The kernel refused a request; `strerror` is its own explanation where it gives one (extended ack)."""


class BatchError(NetlinkError):
    """The kernel refused a batch for the sake of one message; `index` is that message's place in it."""

    def __init__(self, code: int, words: str, index: int) -> None:
        super().__init__(code, words)
        self.index = index


def attr(kind: int, value: bytes) -> bytes:
    """Return an attribute, padded."""
    length = 4 + len(value)
    return _ATTR.pack(length, kind) + value + b"\0" * (-length & 3)


def u32(kind: int, value: int) -> bytes:
    """Return an attribute that is a 32-bit number of the machine's byte order."""
    return _U32_ATTR.pack(8, kind, value)


def u8(kind: int, value: int) -> bytes:
    """Return an attribute that is one byte."""
    return attr(kind, bytes((value,)))


def text(kind: int, value: str) -> bytes:
    """Return an attribute that is a NUL-terminated string."""
    return attr(kind, value.encode() + b"\0")


def nest(kind: int, *attrs: bytes) -> bytes:
    """Return an attribute that holds attributes."""
    return attr(kind | _NESTED, b"".join(attrs))


def walk(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield kind and value of each attribute."""
    end = len(data)
    while start + 4 <= end:
        length, kind = _ATTR.unpack_from(data, start)
        if length < 4:
            return
        yield kind & _TYPE_MASK, data[start + 4 : start + length]
        start += (length + 3) & ~3


def attrs(data: bytes, start: int = 0) -> dict[int, bytes]:
    """Return the attributes by kind; of several of one kind the last."""
    return dict(walk(data, start))


def select_attrs(data: bytes, start: int, wanted: frozenset[int]) -> dict[int, bytes]:
    """Return some of the attributes by kind: `attrs` for objects with many that nobody asks for."""
    found = {}
    end = len(data) - 3
    unpack = _ATTR.unpack_from
    while start < end:
        length, kind = unpack(data, start)
        if length < 4:
            break
        if kind & _TYPE_MASK in wanted:
            found[kind & _TYPE_MASK] = data[start + 4 : start + length]
        start += (length + 3) & ~3
    return found


def number(value: bytes | None, default: int = 0) -> int:
    """Return a 32-bit number of the machine's byte order."""
    return default if value is None else int(_U32.unpack_from(value)[0])


def string(value: bytes | None) -> str:
    """Return a NUL-terminated string, empty when there is none."""
    return "" if value is None else value.split(b"\0", 1)[0].decode(errors="replace")


class Netlink:
    """A netlink socket, in the namespace of the thread that opened it. Safe to use from several threads.

    Args:
        sock: of family AF_NETLINK; taken over.

    `ipv6_conf`: of its namespace, see `router_advertisements`; closed with it.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.ipv6_conf: int | None = None
        self._room = _ROOM
        self._seq = 0
        self._lock = threading.Lock()
        sock.setblocking(True)
        # A timeout by the kernel: settimeout() would put a poll(2) before each call.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", RECEIVE_DEADLINE_S, 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
            sock.setsockopt(_SOL_NETLINK, option, 1)

    @classmethod
    def open(cls, protocol: int = NETLINK_ROUTE) -> Self:
        """Open a socket in the namespace of this thread."""
        return cls(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def request(self, kind: int, payload: bytes, flags: int = 0) -> None:
        """Have something done.

        Raises:
            NetlinkError: the kernel refused.
        """
        with self._lock:
            seq = self._send(kind, flags | NLM_F_ACK, payload)
            for _ in self._answers(seq, dump=False):
                pass

    def get(self, kind: int, payload: bytes) -> bytes:
        """Ask for one object and return it, less the header.

        Raises:
            NetlinkError: there is none.
        """
        with self._lock:
            seq = self._send(kind, NLM_F_ACK, payload)
            answers = [data for _, data in self._answers(seq, dump=False)]
        return answers[0] if answers else b""

    def dump(self, kind: int, payload: bytes) -> list[bytes]:
        """Ask for all objects that fit and return them, less their headers."""
        for _ in range(DUMP_TRIES):
            with self._lock:
                seq = self._send(kind, NLM_F_DUMP, payload)
                answers = list(self._answers(seq, dump=True))
            if not any(flags & _NLM_F_DUMP_INTR for flags, _ in answers):
                break
        return [data for _, data in answers if data]

    def batch(self, messages: Sequence[tuple[int, int, bytes]]) -> None:
        """Have several things done at once, each of (type, flags, payload); those with NLM_F_ACK are waited for.

        Raises:
            BatchError: the kernel refused one of them; of a transaction, all.
        """
        with self._lock:
            first, packed, awaited = self._seq + 1, [], set()
            for kind, flags, payload in messages:
                self._seq += 1
                packed.append(_HEADER.pack(16 + len(payload), kind, flags | NLM_F_REQUEST, self._seq, 0) + payload)
                packed.append(bytes(-len(payload) & 3))
                if flags & NLM_F_ACK:
                    awaited.add(self._seq)
            self._send_whole(b"".join(packed))
            refused: BatchError | None = None
            while awaited:
                for seq, code, words in self._acknowledged():
                    if code and first <= seq <= self._seq and refused is None:
                        refused = BatchError(code, words, seq - first)
                    awaited.discard(seq)
                if refused:
                    # The answers to the others are here already, or there are none; a later call passes over them.
                    raise refused

    def _send_whole(self, data: bytes) -> None:
        """Send a batch, which is one datagram however long; the limit of a socket of ours is ours to raise."""
        if len(data) > self._room:
            self.sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, len(data) + _ROOM)
            self._room = len(data)
        self.sock.sendall(data)

    def _acknowledged(self) -> Iterator[tuple[int, int, str]]:
        """Yield number, error code and words of the acknowledgements of one datagram."""
        data = self._receive()
        offset = 0
        while offset + 16 <= len(data):
            length, kind, flags, seq, _ = _HEADER.unpack_from(data, offset)
            if kind == _NLMSG_ERROR:
                code, words = _verdict(data[offset + 16 : offset + length], flags)
                yield seq, code, words
            offset += (length + 3) & ~3

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()
        if self.ipv6_conf is not None:
            os.close(self.ipv6_conf)
            self.ipv6_conf = None

    def _send(self, kind: int, flags: int, payload: bytes) -> int:
        self._seq += 1
        length = _HEADER.size + len(payload)
        self.sock.sendall(_HEADER.pack(length, kind, flags | NLM_F_REQUEST, self._seq, 0) + payload)
        return self._seq

    def _receive(self) -> bytes:
        try:
            return self.sock.recv(_BUFFER)
        except BlockingIOError as error:
            raise TimeoutError("the kernel does not answer") from error

    def _answers(self, wanted: int, *, dump: bool) -> Iterator[tuple[int, bytes]]:
        """Yield flags and content of each answer until the acknowledgement."""
        while True:
            data = self._receive()
            offset = 0
            while offset + 16 <= len(data):
                length, kind, flags, seq, _ = _HEADER.unpack_from(data, offset)
                if seq == wanted:
                    if kind == _NLMSG_ERROR:
                        _check(data[offset + 16 : offset + length], flags)
                        return
                    if kind == _NLMSG_DONE:
                        yield flags, b""
                        return
                    yield flags, data[offset + 16 : offset + length]
                offset += (length + 3) & ~3
            if not data and dump:
                return


def _check(data: bytes, flags: int) -> None:
    code, words = _verdict(data, flags)
    if code:
        raise NetlinkError(code, words)


def _verdict(data: bytes, flags: int) -> tuple[int, str]:
    code = -_I32.unpack_from(data)[0]
    if not code:
        return 0, ""
    # NETLINK_CAP_ACK: the error and the header of the refused message, nothing of its body.
    explained = attrs(data, 20) if flags & _NLM_F_ACK_TLVS else {}
    return code, string(explained.get(_NLMSGERR_ATTR_MSG)) or os.strerror(code)
