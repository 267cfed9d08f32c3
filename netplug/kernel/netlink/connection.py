"""Netlink requests over a blocking socket, and the encoding of attributes.

The kernel handles a request during ``sendmsg``, and the reply is ready when it returns. So waiting for it in an event
loop has no benefit. Requests that may block on a kernel mutex run in threads: those of rtnetlink in `worker`, the
deletion of links in `reaper`.

The messages of an attach are packed by hand: pyroute2 would make it 7 % slower, and CNI without a daemon another 20 ms,
to load the schemas (``bench/netlink.py``). Other code can use `pyroute2_messages`.
"""

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

IPV6_CONF = "sys/net/ipv6/conf"
"""IPv6 settings of links, below `/proc`, of the network namespace of the thread that opens it."""

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
"""The reply is ready when the kernel has handled a request. `worker` has the deadline for the request itself."""
DUMP_TRIES = 10
"""How often a dump is repeated if objects changed during it (NLM_F_DUMP_INTR)."""

_HEADER = struct.Struct("=IHHII")
_ATTR = struct.Struct("=HH")
_I32 = struct.Struct("=i")
_U32 = struct.Struct("=I")
_U32_ATTR = struct.Struct("=HHI")
_BUFFER = 1 << 17
_SO_SNDBUFFORCE = 32
_ROOM = 1 << 16
"""Bytes that fit into the send buffer of any socket (socket(7): wmem_default is 212 992, including overhead)."""


class NetlinkError(OSError):
    """The kernel refused a request. `strerror` is the kernel's explanation, if it gives one (extended ACK)."""


class BatchError(NetlinkError):
    """The kernel refused one message of a batch. `index`: position of the message in the batch."""

    def __init__(self, code: int, words: str, index: int) -> None:
        super().__init__(code, words)
        self.index = index


def attr(kind: int, value: bytes) -> bytes:
    """Return a padded attribute."""
    length = 4 + len(value)
    return _ATTR.pack(length, kind) + value + b"\0" * (-length & 3)


def u32(kind: int, value: int) -> bytes:
    """Return an attribute with a 32-bit number in host byte order."""
    return _U32_ATTR.pack(8, kind, value)


def u8(kind: int, value: int) -> bytes:
    """Return an attribute with one byte."""
    return attr(kind, bytes((value,)))


def text(kind: int, value: str) -> bytes:
    """Return an attribute with a NUL-terminated string."""
    return attr(kind, value.encode() + b"\0")


def nest(kind: int, *attrs: bytes) -> bytes:
    """Return a nested attribute."""
    return attr(kind | _NESTED, b"".join(attrs))


def walk(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield type and value of each attribute."""
    end = len(data)
    while start + 4 <= end:
        length, kind = _ATTR.unpack_from(data, start)
        if length < 4:
            return
        yield kind & _TYPE_MASK, data[start + 4 : start + length]
        start += (length + 3) & ~3


def attrs(data: bytes, start: int = 0) -> dict[int, bytes]:
    """Return the attributes by type; the last of several of one type. Not by `walk`: a generator takes longer."""
    found = {}
    end = len(data) - 3
    unpack = _ATTR.unpack_from
    while start < end:
        length, kind = unpack(data, start)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = data[start + 4 : start + length]
        start += (length + 3) & ~3
    return found


def select_attrs(data: bytes, start: int, wanted: frozenset[int]) -> dict[int, bytes]:
    """Return the wanted attributes by type. Faster than `attrs` if an object has many others."""
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


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of each message of a datagram (netlink(7))."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if length < 16:
            return
        yield kind, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def number(value: bytes | None, default: int = 0) -> int:
    """Return a 32-bit number in host byte order, or the default if there is none."""
    return default if value is None else int(_U32.unpack_from(value)[0])


def string(value: bytes | None) -> str:
    """Return a NUL-terminated string, empty if there is none."""
    return "" if value is None else value.split(b"\0", 1)[0].decode(errors="replace")


def _open_ipv6_conf() -> int | None:
    try:
        return os.open(f"/proc/{IPV6_CONF}", os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


class Netlink:
    """A netlink socket in the namespace of the thread that opened it. Thread-safe.

    `open_ipv6_conf`: opens the namespace's IPv6 settings; the default does so for a socket of the caller's namespace.

    Args:
        sock: a socket of family AF_NETLINK, owned by this object from now on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.open_ipv6_conf: Callable[[], int | None] = _open_ipv6_conf
        self._ipv6_conf: int | None = None
        self._room = _ROOM
        self._seq = 0
        self._lock = threading.Lock()
        sock.setblocking(True)
        # SO_RCVTIMEO instead of settimeout(), which would call poll(2) before each receive.
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

    @property
    def port(self) -> int:
        """Return what tells its messages from those of others (netlink(7), nl_pid); 0 before the first one."""
        return int(self.sock.getsockname()[0])

    def request(self, kind: int, payload: bytes, flags: int = 0) -> None:
        """Send a request and wait for its acknowledgement.

        Raises:
            NetlinkError: the kernel refused it.
        """
        with self._lock:
            seq = self._send(kind, flags | NLM_F_ACK, payload)
            for _ in self._answers(seq, dump=False):
                pass

    def get(self, kind: int, payload: bytes, flags: int = 0) -> bytes:
        """Request one object and return it, without the header; empty if the kernel tells nothing of it.

        Raises:
            NetlinkError: there is no such object.
        """
        with self._lock:
            seq = self._send(kind, flags | NLM_F_ACK, payload)
            answers = [data for _, data in self._answers(seq, dump=False)]
        return answers[0] if answers else b""

    def dump(self, kind: int, payload: bytes) -> list[bytes]:
        """Request all matching objects and return them, without their headers."""
        for _ in range(DUMP_TRIES):
            with self._lock:
                seq = self._send(kind, NLM_F_DUMP, payload)
                answers = list(self._answers(seq, dump=True))
            if not any(flags & _NLM_F_DUMP_INTR for flags, _ in answers):
                break
        return [data for _, data in answers if data]

    def batch(self, messages: Sequence[tuple[int, int, bytes]]) -> None:
        """Send several messages of (type, flags, payload) at once. Wait for the acknowledgements (NLM_F_ACK).

        Raises:
            BatchError: the kernel refused a message. In a transaction, it applied none.
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
                    # A later call skips the remaining acknowledgements, by their sequence numbers.
                    raise refused

    def _send_whole(self, data: bytes) -> None:
        """Send a batch as one datagram. Raise the send buffer of the socket if it is longer."""
        if len(data) > self._room:
            self.sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, len(data) + _ROOM)
            self._room = len(data)
        self.sock.sendall(data)

    def _acknowledged(self) -> Iterator[tuple[int, int, str]]:
        """Yield sequence number, error code and message of the acknowledgements in one datagram."""
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
        self.forget_ipv6_conf()

    def forget_ipv6_conf(self) -> None:
        """Close the folder of IPv6 settings, which is opened anew when it is needed."""
        with self._lock:
            conf, self._ipv6_conf = self._ipv6_conf, None
        if conf is not None:
            os.close(conf)

    def ipv6_conf(self) -> int | None:
        """Return a descriptor of the folder of IPv6 settings of links; None without IPv6. Closed with the socket.

        Opened when it is first needed, and kept: the path to it has as many entries of equal names in the kernel's
        cache as there are namespaces in which it was opened (fs/proc/proc_sysctl.c, proc_sys_compare).
        """
        with self._lock:
            if self._ipv6_conf is None:
                self._ipv6_conf = self.open_ipv6_conf()
            return self._ipv6_conf

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
        """Yield flags and payload of each reply until the acknowledgement."""
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
    # NETLINK_CAP_ACK: the error and the header of the refused message, without its payload.
    extended = attrs(data, 20) if flags & _NLM_F_ACK_TLVS else {}
    return code, string(extended.get(_NLMSGERR_ATTR_MSG)) or os.strerror(code)
