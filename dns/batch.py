"""Many datagrams a system call: recvmmsg(2) and sendmmsg(2), through ctypes, in memory that is laid out once.

An answer is written over its question, so that nothing but its length is left to say: the peer's address stands there
already. Only on Linux with pointers of 64 bits; elsewhere `available` is False, and plain calls do.
"""

import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from functools import cache

BATCH = 32
OCTETS = 2048
"""Room for a datagram; questions are far shorter, and our answers have 1232 octets at most."""
_NAME = 32
"""Room for a sockaddr_in6, aligned."""
_HEADER = 64
"""struct mmsghdr: name, namelen (int), iov, iovlen, control, controllen, flags (int), and the message's length."""
_IOV = 16
_NAMES = _HEADER * BATCH
_IOVS = _NAMES + _NAME * BATCH
_DATA = _IOVS + _IOV * BATCH
_DONTWAIT = int(socket.MSG_DONTWAIT)


def available() -> bool:
    """Tell whether this system has the calls, and structures laid out as here."""
    return sys.platform == "linux" and struct.calcsize("P") == 8 and hasattr(_libc(), "recvmmsg")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


class _Messages:
    """Memory of `BATCH` messages: headers, and of each a sockaddr, a vector of one element, and `OCTETS`."""

    def __init__(self) -> None:
        libc = _libc()
        self._receive, self._send = libc.recvmmsg, libc.sendmmsg
        self._receive.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
        self._send.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
        self._memory = ctypes.create_string_buffer(_DATA + OCTETS * BATCH)
        self._start = ctypes.addressof(self._memory)
        octets = memoryview(self._memory).cast("B")
        self._ints = octets[:_NAMES].cast("I")
        self._names = octets[_NAMES:_IOVS]
        self._lengths = octets[_IOVS:_DATA].cast("Q")
        self._data = octets[_DATA:]
        pointers = octets[:_NAMES].cast("Q")
        for number in range(BATCH):
            pointers[number * 8] = self._start + _NAMES + number * _NAME
            pointers[number * 8 + 2] = self._start + _IOVS + number * _IOV
            pointers[number * 8 + 3] = 1
            self._lengths[number * 2] = self._start + _DATA + number * OCTETS
            self._lengths[number * 2 + 1] = OCTETS


class Exchange(_Messages):
    """Sends what has been gathered, and receives. One for all of a thread: its memory is used during a call only."""

    def __init__(self) -> None:
        super().__init__()
        self._received = _Received()

    def receive(self, sock: socket.socket) -> list[bytes]:
        """Return what has come to a connected socket, `BATCH` messages at most, each cut to `OCTETS`.

        Raises:
            OSError: what came back for something sent.
        """
        return self._received.take(sock)

    def send(self, sock: socket.socket, messages: Sequence[tuple[bytes, bytes]]) -> int:
        """Send messages of at most `OCTETS`, and return how many have gone; fewer than there are where one cannot.

        With each is the sockaddr that it goes to, empty by a connected socket.
        """
        data, names, lengths, ints = self._data, self._names, self._lengths, self._ints
        done = 0
        while done < len(messages):
            part = messages[done : done + BATCH]
            for number, (message, name) in enumerate(part):
                at, size = number * OCTETS, len(message)
                data[at : at + size] = message
                lengths[number * 2 + 1] = size
                ints[number * 16 + 2] = size = len(name)
                if size:
                    names[number * _NAME : number * _NAME + size] = name
            sent: int = self._send(sock.fileno(), self._start, len(part), _DONTWAIT)
            if sent <= 0:
                break
            done += sent
        return done


class _Received(_Messages):
    def take(self, sock: socket.socket) -> list[bytes]:
        count = self._receive(sock.fileno(), self._start, BATCH, _DONTWAIT, None)
        if count < 0:
            if (code := ctypes.get_errno()) == errno.EAGAIN:
                return []
            raise OSError(code, "recvmmsg")
        data, ints = self._data, self._ints
        return [bytes(data[at * OCTETS : at * OCTETS + ints[at * 16 + 14]]) for at in range(count)]


class Plain:
    """Sends and receives one by one, where there is no other way."""

    def send(self, sock: socket.socket, messages: Sequence[tuple[bytes, bytes]]) -> int:
        """Do as `Exchange.send`, by a connected socket."""
        for number, (message, _) in enumerate(messages):
            try:
                sock.send(message)
            except OSError:
                return number
        return len(messages)

    def receive(self, sock: socket.socket) -> list[bytes]:
        """Do as `Exchange.receive`."""
        try:
            return [sock.recv(OCTETS)]
        except BlockingIOError:
            return []


@cache
def exchange() -> Exchange | Plain:
    """Return what sends and receives here, for the one thread that asks and answers."""
    return Exchange() if available() else Plain()


class Batch(_Messages):
    """Answers what comes by sockets of a family. One for all of a thread: its memory is used during a call only."""

    def __init__(self, family: int) -> None:
        super().__init__()
        v6 = family == socket.AF_INET6
        self._name_size = 28 if v6 else 16
        self._address = slice(8, 24) if v6 else slice(4, 8)
        for number in range(BATCH):
            self._ints[number * 16 + 2] = self._name_size

    def serve(self, sock: socket.socket, reply: Callable[[bytes, bytes, int], bytes | None]) -> bool:
        """Answer what has come, and tell whether there may be more.

        `reply` is given a message, its sender's address in octets, and a number for `name`; what it returns is sent.
        """
        file = sock.fileno()
        count = self._receive(file, self._start, BATCH, _DONTWAIT, None)
        if count <= 0:
            return False
        ints, lengths, names, data, address = self._ints, self._lengths, self._names, self._data, self._address
        first = 0
        for number in range(count):
            at, name = number * OCTETS, number * _NAME
            said = reply(
                bytes(data[at : at + ints[number * 16 + 14]]),
                bytes(names[name + address.start : name + address.stop]),
                number,
            )
            if said is None:
                if first < number:
                    self._send_all(file, first, number)
                first = number + 1
            else:
                size = len(said)
                data[at : at + size] = said
                lengths[number * 2 + 1] = size
        self._send_all(file, first, count)
        for number in range(count):
            ints[number * 16 + 2] = self._name_size
            lengths[number * 2 + 1] = OCTETS
        return bool(count == BATCH)

    def _send_all(self, file: int, first: int, end: int) -> None:
        while first < end:
            sent = self._send(file, self._start + first * _HEADER, end - first, _DONTWAIT)
            if sent < 0 and ctypes.get_errno() in {errno.EAGAIN, errno.ENOBUFS}:
                return  # no room: they ask again
            first += max(sent, 1)

    def name(self, number: int) -> bytes:
        """Return the sockaddr of a message's sender, while it is being answered."""
        at = number * _NAME
        return bytes(self._names[at : at + self._name_size])


@cache
def batch(family: int) -> Batch:
    """Return what answers by sockets of a family, for the one thread that does."""
    return Batch(family)
