"""Questions by TCP (RFC 7766), without a task for each connection.

Who connects and says nothing, or speaks slowly, or does not read, is sent away and disturbs nobody: CVE-2024-8418 and
CVE-2026-35406 are of a server that let itself be held up.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable

IDLE_S = 10.0
MESSAGE_S = 3.0
"""For a whole message, from its first octet."""
MOST_OF_SOURCE = 64
MOST = 1024
_BACKLOG_DRAIN = 64
_CHUNK = 65_536
_MOST_UNREAD = 262_144

Reply = Callable[[bytes], None]
Take = Callable[[str, bytes, Reply], None]
"""Is given the asker's address, a message, and what to call with the answer, once or never."""


class Streams:
    """What listens on a TCP socket, which becomes its own."""

    def __init__(self, sock: socket.socket, take: Take) -> None:
        self._sock = sock
        self._take = take
        self._connections: set[_Connection] = set()
        self._by_source: Counter[str] = Counter()
        sock.setblocking(False)
        asyncio.get_running_loop().add_reader(sock.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(_BACKLOG_DRAIN):
            try:
                sock, peer = self._sock.accept()
            except BlockingIOError:
                return
            except OSError:  # gone already, or no descriptor left: then the next time
                return
            source = str(peer[0])
            if self._by_source[source] >= MOST_OF_SOURCE or len(self._connections) >= MOST:
                sock.close()
                continue
            self._by_source[source] += 1
            sock.setblocking(False)
            self._connections.add(_Connection(sock, source, self._take, self._ended))

    def _ended(self, connection: "_Connection") -> None:
        self._connections.discard(connection)
        self._by_source[connection.source] -= 1
        if not self._by_source[connection.source]:
            del self._by_source[connection.source]

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        for connection in list(self._connections):
            connection.close()
        self._sock.close()


class _Connection:
    def __init__(self, sock: socket.socket, source: str, take: Take, ended: Callable[["_Connection"], None]) -> None:
        self.source = source
        self._sock = sock
        self._take = take
        self._ended = ended
        self._in = bytearray()
        self._out = bytearray()
        self._pending = 0
        self._last = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(IDLE_S, self.close)
        self._loop.add_reader(sock.fileno(), self._read)

    def _read(self) -> None:
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not data:
            self._half_closed()
            return
        begun = bool(self._in)
        self._in += data
        while len(self._in) >= 2 and len(self._in) >= 2 + (size := int.from_bytes(self._in[:2])):
            message = bytes(self._in[2 : 2 + size])
            del self._in[: 2 + size]
            begun = False
            if size < 12:
                self.close()
                return
            self._pending += 1
            self._take(self.source, message, self._reply)
            if self._sock.fileno() < 0:
                return
        if not (begun and self._in):
            self._wait(MESSAGE_S if self._in else IDLE_S)

    def _half_closed(self) -> None:
        """Answer what is under way, then close."""
        self._loop.remove_reader(self._sock.fileno())
        if not self._pending and not self._out:
            self.close()
        else:
            self._wait(IDLE_S)
            self._last = True

    def _wait(self, seconds: float) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self.close)

    def _reply(self, message: bytes) -> None:
        self._pending -= 1
        if self._sock.fileno() < 0:
            return
        if len(self._out) > _MOST_UNREAD:
            self.close()
            return
        self._out += len(message).to_bytes(2) + message
        self._write()

    def _write(self) -> None:
        try:
            sent = self._sock.send(self._out)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        del self._out[:sent]
        if self._out:
            self._loop.add_writer(self._sock.fileno(), self._write)
            return
        self._loop.remove_writer(self._sock.fileno())
        if self._last and not self._pending:
            self.close()

    def close(self) -> None:
        if self._sock.fileno() < 0:
            return
        self._timer.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._ended(self)
