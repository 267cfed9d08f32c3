"""Many datagrams a system call: recvmmsg(2) and sendmmsg(2), through ctypes, in memory that is laid out once.

An answer goes to the sockaddr that its question came with, which stands there already. Only on Linux with pointers of
64 bits; elsewhere `available` is False, and plain calls do.
"""

import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Sequence
from functools import cache

BATCH = 32
OCTETS = 2048
"""Room for a datagram; our answers have 1232 octets at most."""
_QUESTION = 1024
"""Room for a question: one with a name of 255 octets and some options has half of that."""
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
    """Memory of `BATCH` messages: headers, and of each a sockaddr, a vector of one element, and `room` octets.

    `names`: the messages whose sockaddrs are used in place of own ones.
    """

    def __init__(self, room: int, names: "_Messages | None" = None) -> None:
        libc = _libc()
        self._receive, self._send = libc.recvmmsg, libc.sendmmsg
        self._receive.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
        self._send.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
        memory = ctypes.create_string_buffer(_DATA + room * BATCH)
        self._memory = memory
        self.start = ctypes.addressof(memory)
        octets = memoryview(memory).cast("B")
        self.ints = octets[:_NAMES].cast("I")
        self.names: memoryview = names.names if names else octets[_NAMES:_IOVS]
        self.lengths = octets[_IOVS:_DATA].cast("Q")
        self.data = octets[_DATA:]
        name = (names.start if names else self.start) + _NAMES
        pointers = octets[:_NAMES].cast("Q")
        for number in range(BATCH):
            pointers[number * 8] = name + number * _NAME
            pointers[number * 8 + 2] = self.start + _IOVS + number * _IOV
            pointers[number * 8 + 3] = 1
            self.lengths[number * 2] = self.start + _DATA + number * room
            self.lengths[number * 2 + 1] = room

    def set_name_size(self, size: int) -> None:
        """Say of all messages how many octets their sockaddr has."""
        for number in range(BATCH):
            self.ints[number * 16 + 2] = size

    def receive(self, file: int) -> int:
        """Return how many messages have come, -1 for an error."""
        return int(self._receive(file, self.start, BATCH, _DONTWAIT, None))

    def send(self, file: int, first: int, end: int) -> int:
        """Return how many of these messages have gone, -1 for an error."""
        return int(self._send(file, self.start + first * _HEADER, end - first, _DONTWAIT))

    def sizes(self, count: int) -> list[int]:
        """Return the lengths of the messages received."""
        found: list[int] = self.ints[14 : count * 16 : 16].tolist()
        return found


class Exchange:
    """Sends what has been gathered, and receives. One for all of a thread: its memory is used during a call only."""

    def __init__(self) -> None:
        self._received, self._sent = _Messages(OCTETS), _Messages(OCTETS)

    def receive(self, sock: socket.socket) -> list[bytes]:
        """Return what has come to a connected socket, `BATCH` messages at most, each cut to `OCTETS`.

        Raises:
            OSError: what came back for something sent.
        """
        messages = self._received
        count = messages.receive(sock.fileno())
        if count < 0:
            if (code := ctypes.get_errno()) == errno.EAGAIN:
                return []
            raise OSError(code, "recvmmsg")
        data, starts = messages.data, range(0, OCTETS * count, OCTETS)
        return [bytes(data[at : at + size]) for at, size in zip(starts, messages.sizes(count), strict=True)]

    def send(self, sock: socket.socket, going: Sequence[tuple[bytes, bytes]]) -> int:
        """Send messages of at most `OCTETS`, and return how many have gone; fewer than there are where one cannot.

        With each is the sockaddr that it goes to, empty by a connected socket.
        """
        messages = self._sent
        data, names, lengths, ints = messages.data, messages.names, messages.lengths, messages.ints
        done = 0
        while done < len(going):
            part = going[done : done + BATCH]
            for number, (message, name) in enumerate(part):
                at, size = number * OCTETS, len(message)
                data[at : at + size] = message
                lengths[number * 2 + 1] = size
                ints[number * 16 + 2] = size = len(name)
                if size:
                    names[number * _NAME : number * _NAME + size] = name
            sent = messages.send(sock.fileno(), 0, len(part))
            if sent <= 0:
                break
            done += sent
        return done


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


class Batch:
    """Receives questions by sockets of a family, and sends the answers to who asked.

    One for all of a thread: what was received last is what is answered.
    """

    def __init__(self, family: int) -> None:
        v6 = family == socket.AF_INET6
        self._name_size = 28 if v6 else 16
        self._questions = _Messages(_QUESTION)
        self._answers = _Messages(OCTETS, self._questions)
        for messages in (self._questions, self._answers):
            messages.set_name_size(self._name_size)
        first, last = (8, 24) if v6 else (4, 8)
        # Where each message and its sender's address begin, and where the address ends.
        self._places = [(at * _QUESTION, at * _NAME + first, at * _NAME + last) for at in range(BATCH)]

    def receive(self, sock: socket.socket) -> list[tuple[bytes, bytes]]:
        """Return what has come, `BATCH` messages at most, each with its sender's address in octets."""
        messages = self._questions
        count = messages.receive(sock.fileno())
        if count <= 0:
            return []
        # Slices of octets are far cheaper than those of memory.
        data, names = bytes(messages.data[: count * _QUESTION]), bytes(messages.names[: count * _NAME])
        return [
            (data[at : at + size], names[first:last])
            for size, (at, first, last) in zip(messages.sizes(count), self._places, strict=False)
        ]

    def send(self, sock: socket.socket, said: Sequence[bytes | None]) -> None:
        """Answer the messages received last, one by one; None: nothing."""
        messages, file = self._answers, sock.fileno()
        data, lengths = messages.data, messages.lengths
        first = number = at = 0
        for number, answer in enumerate(said):
            if answer is None:
                self._send_all(file, first, number)
                first = number + 1
            else:
                size = len(answer)
                data[at : at + size] = answer
                lengths[number * 2 + 1] = size
            at += OCTETS
        self._send_all(file, first, len(said))

    def _send_all(self, file: int, first: int, end: int) -> None:
        while first < end:
            sent = self._answers.send(file, first, end)
            if sent < 0 and ctypes.get_errno() in {errno.EAGAIN, errno.ENOBUFS}:
                return  # no room: they ask again
            first += max(sent, 1)

    def name(self, number: int) -> bytes:
        """Return the sockaddr of a message's sender, until others are received."""
        at = number * _NAME
        return bytes(self._questions.names[at : at + self._name_size])


@cache
def batch(family: int) -> Batch:
    """Return what answers by sockets of a family, for the one thread that does."""
    return Batch(family)
