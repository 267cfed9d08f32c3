"""Several datagrams per system call: recvmmsg(2) and sendmmsg(2) by ctypes, in buffers that are allocated once.

An answer is sent to the sockaddr of its query, which is already in the buffer. This works on 64-bit Linux only;
elsewhere `available` returns False, and the plain calls are used.
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
"""Buffer size for one datagram; our answers have at most 1232 octets."""
_QUESTION = 1024
"""Buffer size for one query; a name of 255 octets with some EDNS options takes half of it."""
_NAME = 32
"""Buffer size for one sockaddr_in6, aligned."""
_HEADER = 64
"""struct mmsghdr: name, namelen (int), iov, iovlen, control, controllen, flags (int), and the message's length."""
_IOV = 16
_NAMES = _HEADER * BATCH
_IOVS = _NAMES + _NAME * BATCH
_DATA = _IOVS + _IOV * BATCH
_DONTWAIT = int(socket.MSG_DONTWAIT)


def available() -> bool:
    """Return whether this system has these calls, with the structure layout of this module."""
    return sys.platform == "linux" and struct.calcsize("P") == 8 and hasattr(_libc(), "recvmmsg")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


class _Messages:
    """Buffers for `BATCH` messages: for each an mmsghdr, a sockaddr, an iovec of one element, and `room` octets.

    `names`: the messages whose sockaddrs are shared; None: these have their own.
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
        """Set the length of the sockaddr of all messages."""
        for number in range(BATCH):
            self.ints[number * 16 + 2] = size

    def receive(self, file: int) -> int:
        """Return the number of messages received; -1 on an error."""
        return int(self._receive(file, self.start, BATCH, _DONTWAIT, None))

    def send(self, file: int, first: int, end: int) -> int:
        """Return the number of messages sent; -1 on an error."""
        return int(self._send(file, self.start + first * _HEADER, end - first, _DONTWAIT))

    def sizes(self, count: int) -> list[int]:
        """Return the lengths of the messages received."""
        found: list[int] = self.ints[14 : count * 16 : 16].tolist()
        return found


class Exchange:
    """Sends and receives batches on connected sockets. One per thread: its buffers are in use during a call only."""

    def __init__(self) -> None:
        self._received, self._sent = _Messages(OCTETS), _Messages(OCTETS)

    def receive(self, sock: socket.socket) -> list[bytes]:
        """Return the messages received on a connected socket: at most `BATCH`, each truncated to `OCTETS`.

        Raises:
            OSError: an ICMP error for an earlier message.
        """
        messages = self._received
        count = messages.receive(sock.fileno())
        if count < 0:
            if (code := ctypes.get_errno()) == errno.EAGAIN:
                return []
            raise OSError(code, "recvmmsg")
        data, starts = messages.data, range(0, OCTETS * count, OCTETS)
        return [bytes(data[at : at + size]) for at, size in zip(starts, messages.sizes(count), strict=True)]

    def send(self, sock: socket.socket, outgoing: Sequence[tuple[bytes, bytes]]) -> int:
        """Send messages of at most `OCTETS`, until one cannot be sent; return the number sent.

        Each message comes with its destination as a sockaddr, which is empty on a connected socket.
        """
        messages = self._sent
        data, names, lengths, ints = messages.data, messages.names, messages.lengths, messages.ints
        done = 0
        while done < len(outgoing):
            part = outgoing[done : done + BATCH]
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
    """Sends and receives one message per system call, on other systems."""

    def send(self, sock: socket.socket, messages: Sequence[tuple[bytes, bytes]]) -> int:
        """Do as `Exchange.send`, on a connected socket."""
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
    """Return the thread's only `Exchange`, or `Plain`; the DNS server runs in one thread."""
    return Exchange() if available() else Plain()


class Batch:
    """Receives queries on sockets of one address family, and sends the answers to their clients.

    One per thread: `send` answers the messages of the last `receive`.
    """

    def __init__(self, family: int) -> None:
        v6 = family == socket.AF_INET6
        self._name_size = 28 if v6 else 16
        self._questions = _Messages(_QUESTION)
        self._answers = _Messages(OCTETS, self._questions)
        for messages in (self._questions, self._answers):
            messages.set_name_size(self._name_size)
        first, last = (8, 24) if v6 else (4, 8)
        # The offsets of each message, and of the start and end of its client's address.
        self._offsets = [(at * _QUESTION, at * _NAME + first, at * _NAME + last) for at in range(BATCH)]

    def receive(self, sock: socket.socket) -> list[tuple[bytes, bytes]]:
        """Return at most `BATCH` messages, each with its client's address as octets."""
        messages = self._questions
        count = messages.receive(sock.fileno())
        if count <= 0:
            return []
        # Slicing bytes is much faster than slicing a memoryview.
        data, names = bytes(messages.data[: count * _QUESTION]), bytes(messages.names[: count * _NAME])
        return [
            (data[at : at + size], names[first:last])
            for size, (at, first, last) in zip(messages.sizes(count), self._offsets, strict=False)
        ]

    def send(self, sock: socket.socket, answers: Sequence[bytes | None]) -> None:
        """Answer the messages of the last `receive`, in their order; None: no answer."""
        messages, file = self._answers, sock.fileno()
        data, lengths = messages.data, messages.lengths
        first = number = at = 0
        for number, answer in enumerate(answers):
            if answer is None:
                self._send_all(file, first, number)
                first = number + 1
            else:
                size = len(answer)
                data[at : at + size] = answer
                lengths[number * 2 + 1] = size
            at += OCTETS
        self._send_all(file, first, len(answers))

    def _send_all(self, file: int, first: int, end: int) -> None:
        while first < end:
            sent = self._answers.send(file, first, end)
            if sent < 0 and ctypes.get_errno() in {errno.EAGAIN, errno.ENOBUFS}:
                return  # the send buffer is full: the clients will retry
            first += max(sent, 1)

    def name(self, number: int) -> bytes:
        """Return the sockaddr of a message's client; valid until the next `receive`."""
        at = number * _NAME
        return bytes(self._questions.names[at : at + self._name_size])


@cache
def batch(family: int) -> Batch:
    """Return the thread's only `Batch` for an address family."""
    return Batch(family)
