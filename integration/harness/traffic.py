"""Clients and servers in any namespace: a server tells each client the source address that it sees."""

import contextlib
import http.client
import select
import socket
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Protocol, Self

from .netns import open_socket

REPLY_TIMEOUT_S = 3
"""On one machine an answer takes milliseconds; what has not come by then was dropped."""

_TALK_TIMEOUT_S = 30
"""A connection that lives retransmits what was lost in less."""
_SENT = 1_500_000
"""Bytes."""
_SPEED_PORT, _SPEED_TRIES = 7100, 5
_STREAM_PORT = 7200
_BULK_RATE = 4_000_000
_CHUNK = 16_384
_SO_MAX_PACING_RATE = 47
_TCP_INFO = struct.Struct("=100xI")
"""struct tcp_info, tcpi_total_retrans."""


class Placed(Protocol):
    """Something with a network namespace: a host or a container."""

    @property
    def netns(self) -> Path: ...


class Serving(ABC):
    """Answers by a socket, in a thread, while used in a `with`. The socket becomes its own."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        self._socket = sock
        self._stop_read, self._stop_write = socket.socketpair()
        self._thread = Thread(target=self._serve, name=name)

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([self._socket, self._stop_read], [], [])
            if self._stop_read in ready:
                return
            # A client may have gone before its answer.
            with contextlib.suppress(ConnectionError):
                self._answer()

    @abstractmethod
    def _answer(self) -> None:
        """Answer one that asks."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_write.send(b"x")
        self._thread.join()
        for sock in (self._socket, self._stop_read, self._stop_write):
            sock.close()


def bound(place: Placed, proto: str, port: int, address: str) -> socket.socket:
    """Return a socket of a place, bound, and listening if it is of TCP."""
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    sock = open_socket(place.netns, kind, family=ip_address(address).version)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        if proto == "tcp":
            sock.listen()
    except BaseException:
        sock.close()
        raise
    return sock


class SeenServer(Serving):
    """Answers each TCP connection or UDP datagram with the client's address.

    `seen` collects the addresses, as text.
    """

    def __init__(self, place: Placed, proto: str, port: int, address: str = "0.0.0.0") -> None:
        super().__init__(bound(place, proto, port, address), f"seen-{proto}-{port}")
        self.seen: list[str] = []
        self._proto = proto

    def _answer(self) -> None:
        if self._proto == "udp":
            _, peer = self._socket.recvfrom(2048)
            self.seen.append(peer[0])
            self._socket.sendto(peer[0].encode(), peer)
            return
        connection, peer = self._socket.accept()
        with connection:
            self.seen.append(peer[0])
            connection.sendall(peer[0].encode())


class _Echo(Serving):
    """Sends each datagram back."""

    def _answer(self) -> None:
        data, peer = self._socket.recvfrom(2048)
        self._socket.sendto(data, peer)


class Stream:
    """A datagram every `every_s` from a place to another and back, while used in a `with`.

    `bound_to_source` False: each has the source address of the route that it takes, as with ping.

    Attributes:
        sent: how many went out.
        lost: the numbers of those that did not come back; known after the block.
    """

    def __init__(
        self,
        sender: Placed,
        receiver: Placed,
        address: str,
        *,
        port: int = _STREAM_PORT,
        every_s: float = 0.01,
        bound_to_source: bool = True,
    ) -> None:
        self.sent = 0
        self.lost: list[int] = []
        self._every_s = every_s
        self._echo = _Echo(bound(receiver, "udp", port, address), "echo")
        self._socket = _client(sender, socket.SOCK_DGRAM, address, 0)
        self._to = address, port
        if bound_to_source:
            self._socket.connect(self._to)
        else:
            self._socket.bind(("", 0))
        self._bound = bound_to_source
        self._back: set[int] = set()
        self._over, self._all_sent = Event(), Event()
        self._threads = [Thread(target=work, name=f"stream-{work.__name__}") for work in (self._send, self._receive)]

    def _send(self) -> None:
        begun = time.monotonic()
        while not self._over.wait(max(0.0, begun + self.sent * self._every_s - time.monotonic())):
            with contextlib.suppress(OSError):  # it is lost, then
                data = str(self.sent).encode()
                self._socket.send(data) if self._bound else self._socket.sendto(data, self._to)
            self.sent += 1
        self._all_sent.set()  # not before the last is counted: it would not be waited for

    def _receive(self) -> None:
        while not (self._all_sent.is_set() and len(self._back) == self.sent):
            try:
                self._back.add(int(self._socket.recv(64)))
            except TimeoutError:
                if self._all_sent.is_set():
                    return
            except OSError:
                continue

    def __enter__(self) -> Self:
        self._echo.__enter__()
        self._socket.settimeout(1)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._echo.__exit__(kind, exc, trace)
        self._socket.close()
        self.lost = sorted(set(range(self.sent)) - self._back)


class _Connection:
    """A TCP connection with a thread at each end, while used in a `with`; what fails there fails the block."""

    def __init__(self) -> None:
        self._over = Event()
        self._pool = ThreadPoolExecutor()
        self._works: list[Future[None]] = []

    def _begin(self, *works: Callable[[], None]) -> None:
        """Serve the ends; the last one's end ends the others."""
        self._works = [self._pool.submit(work) for work in works]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        with self._pool:
            for work in self._works[::-1]:
                work.result(2 * _TALK_TIMEOUT_S)


class Talk(_Connection):
    """A TCP connection from a place to an address and port, with a line every `every_s` that comes back.

    `receiver` has the address, or what leads to its port `at`. Leaving the block asserts that every line came back in
    order: the connection lived on.
    """

    def __init__(
        self,
        sender: Placed,
        receiver: Placed,
        address: str,
        port: int = _STREAM_PORT,
        *,
        at: int = 0,
        every_s: float = 0.01,
    ) -> None:
        super().__init__()
        self.sent = 0
        self._every_s = every_s
        with bound(receiver, "tcp", at or port, "::" if ":" in address else "0.0.0.0") as listener:
            listener.settimeout(REPLY_TIMEOUT_S)
            self._socket = _client(sender, socket.SOCK_STREAM, address, 0)
            try:
                self._socket.connect((address, port))
                self._echo, _ = listener.accept()
            except BaseException:
                self._socket.close()
                raise
        self._echo.settimeout(None)
        self._socket.settimeout(_TALK_TIMEOUT_S)
        self._begin(self._answer, self._send)

    def _answer(self) -> None:
        while data := self._echo.recv(4096):
            self._echo.sendall(data)
        self._echo.close()

    def _send(self) -> None:
        with self._socket, self._socket.makefile("rb") as back:
            begun = time.monotonic()
            while not self._over.wait(max(0.0, begun + self.sent * self._every_s - time.monotonic())):
                line = b"%d\n" % self.sent
                self._socket.sendall(line)
                assert back.readline() == line, f"line {self.sent} did not come back"
                self.sent += 1


class Bulk(_Connection):
    """A TCP connection that carries `_BULK_RATE` bytes a second from a place to another, while used in a `with`.

    Attributes:
        resent: segments that were sent again.
        longest_s: the longest time in which nothing arrived.
        received: bytes.
    """

    def __init__(self, sender: Placed, receiver: Placed, address: str, port: int = _STREAM_PORT + 1) -> None:
        super().__init__()
        self.resent = 0
        self.longest_s = 0.0
        self.received = 0
        with bound(receiver, "tcp", port, "::" if ":" in address else "0.0.0.0") as listener:
            self._socket = _client(sender, socket.SOCK_STREAM, address, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, _BULK_RATE)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * _CHUNK)
            self._socket.connect((address, port))
            listener.settimeout(REPLY_TIMEOUT_S)
            self._sink, _ = listener.accept()
        for sock in (self._socket, self._sink):
            sock.settimeout(_TALK_TIMEOUT_S)
        self._begin(self._receive, self._send)

    def _send(self) -> None:
        with self._socket:
            while not self._over.is_set():
                self._socket.sendall(bytes(_CHUNK))
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            (self.resent,) = _TCP_INFO.unpack(info)

    def _receive(self) -> None:
        with self._sink:
            last = time.monotonic()
            while data := self._sink.recv(_CHUNK):
                now = time.monotonic()
                self.longest_s, last = max(self.longest_s, now - last), now
                self.received += len(data)


def _client(
    place: Placed, kind: socket.SocketKind, address: str, source_port: int, timeout_s: float = REPLY_TIMEOUT_S
) -> socket.socket:
    sock = open_socket(place.netns, kind, family=ip_address(address).version)
    sock.settimeout(timeout_s)
    if source_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("::" if ":" in address else "0.0.0.0", source_port))
    return sock


def tcp_ask(place: Placed, address: str, port: int, *, source_port: int = 0, timeout_s: float = REPLY_TIMEOUT_S) -> str:
    """Connect from a place and return what the server says until it closes.

    Raises:
        OSError: refused, unreachable, or no answer in time (TimeoutError).
    """
    with _client(place, socket.SOCK_STREAM, address, source_port, timeout_s) as sock:
        sock.connect((address, port))
        return b"".join(iter(lambda: sock.recv(4096), b"")).decode()


def udp_ask(
    place: Placed,
    address: str,
    port: int,
    *,
    source_port: int = 0,
    payload: bytes = b"?",
    timeout_s: float = REPLY_TIMEOUT_S,
) -> str:
    """Send one datagram from a place and return the answer; raises as `tcp_ask`."""
    with _client(place, socket.SOCK_DGRAM, address, source_port, timeout_s) as sock:
        sock.connect((address, port))
        sock.send(payload)
        return sock.recv(4096).decode()


def http_get(place: Placed, address: str, port: int, path: str = "/") -> str:
    """Fetch a page from a place and return its text.

    Raises:
        OSError: as `tcp_ask`.
        AssertionError: the status is not 200.
    """
    connection = http.client.HTTPConnection(address, port, timeout=REPLY_TIMEOUT_S)
    connection.sock = _client(place, socket.SOCK_STREAM, address, 0)
    with contextlib.closing(connection):
        connection.sock.connect((address, port))
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read().decode()
        assert response.status == 200, f"GET {path}: {response.status} {text}"
        return text


def bytes_a_second(sender: Placed, receiver: Placed, address: str) -> float:
    """Return how fast `_SENT` bytes of a TCP connection get to the receiver, whose address it is."""
    family = 6 if ":" in address else 4
    with (
        open_socket(receiver.netns, socket.SOCK_STREAM, family=family) as listener,
        open_socket(sender.netns, socket.SOCK_STREAM, family=family) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("::" if family == 6 else "0.0.0.0", _SPEED_PORT))
        listener.listen()
        listener.settimeout(20)
        client.settimeout(20)
        client.connect((address, _SPEED_PORT))
        server, _ = listener.accept()
        with server:
            server.settimeout(20)
            started = time.monotonic()
            sending = pool.submit(client.sendall, bytes(_SENT))
            left = _SENT
            while left:
                left -= len(server.recv(1 << 16))
            sending.result()
            return _SENT / (time.monotonic() - started)


def limited(sender: Placed, receiver: Placed, address: str, rate: int) -> bool:
    """Return whether bytes pass as `rate` lets them: never faster, and as fast in one of some tries.

    Headers take a twentieth, and the burst goes at once; what waits in sockets is neither. What else the machine does
    makes a try slower, and none faster.
    """
    speeds = (bytes_a_second(sender, receiver, address) for _ in range(_SPEED_TRIES))
    return next((speed < 1.2 * rate for speed in speeds if speed > 0.7 * rate), False)


def faster(sender: Placed, receiver: Placed, address: str, rate: float) -> bool:
    """Return whether bytes pass faster than `rate` in one of some tries, as for `limited`."""
    return any(bytes_a_second(sender, receiver, address) > rate for _ in range(_SPEED_TRIES))
