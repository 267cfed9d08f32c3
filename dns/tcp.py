"""Queries over TCP (RFC 7766), without a task per connection.

A client that connects and sends nothing, sends slowly, or does not read, is disconnected and does not delay others:
CVE-2024-8418 and CVE-2026-35406 describe a server that such clients block. Connections are limited per client,
whichever of its addresses it uses, and in total, as file descriptors are shared by the whole daemon.
"""

import asyncio
import errno
import socket
from collections.abc import Callable, Hashable

IDLE_S = 10.0
MESSAGE_S = 3.0
"""How long a message may take, from its first octet."""
PAUSE_S = 0.5
"""How long no connection is accepted after file descriptors ran out; new ones wait in the backlog."""
MAX_PER_CLIENT = 64
MAX_CONNECTIONS = 512
"""Of all listeners together: half of 1024, the default limit of file descriptors."""
_BACKLOG_DRAIN = 64
_CHUNK = 65_536
_MAX_UNREAD = 262_144
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

Reply = Callable[[bytes], None]
Take = Callable[[str, bytes, Reply], None]
"""Called with the client's address, a message, and a function for the answer, to be called at most once.

An empty answer says that there will be none.
"""


class Connections:
    """The connections of one or more listeners, by client, oldest first."""

    def __init__(self) -> None:
        self._of: dict[Hashable, dict[_Connection, None]] = {}
        self._total = 0

    def __len__(self) -> int:
        return self._total

    def admits(self, owner: Hashable) -> bool:
        """Return whether a client may open one more connection.

        If there are too many in total, the client with most connections loses its oldest one, so that a few clients
        cannot lock out the others.
        """
        if len(self._of.get(owner, ())) >= MAX_PER_CLIENT:
            return False
        if self._total >= MAX_CONNECTIONS:
            most = max(self._of.values(), key=len)
            next(iter(most)).close()
        return True

    def add(self, connection: "_Connection") -> None:
        self._of.setdefault(connection.owner, {})[connection] = None
        self._total += 1

    def remove(self, connection: "_Connection") -> None:
        of_owner = self._of[connection.owner]
        del of_owner[connection]
        self._total -= 1
        if not of_owner:
            del self._of[connection.owner]


class Streams:
    """Listens on a TCP socket, and closes it at `close`.

    `owner`: returns the client with an address. `connections`: those that share the limits.
    """

    def __init__(
        self,
        sock: socket.socket,
        take: Take,
        owner: Callable[[str], Hashable] = str,
        connections: Connections | None = None,
    ) -> None:
        self._sock = sock
        self._take = take
        self._owner = owner
        self._all = Connections() if connections is None else connections
        self._connections: set[_Connection] = set()
        self._pause: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        self._listen()

    def _listen(self) -> None:
        self._pause = None
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(_BACKLOG_DRAIN):
            try:
                sock, peer = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    # The socket stays readable, so the loop would call this method again and again.
                    loop = asyncio.get_running_loop()
                    loop.remove_reader(self._sock.fileno())
                    self._pause = loop.call_later(PAUSE_S, self._listen)
                return  # otherwise the client is gone already
            source = str(peer[0])
            owner = self._owner(source)
            if not self._all.admits(owner):
                sock.close()
                continue
            sock.setblocking(False)
            connection = _Connection(sock, source, owner, self._take, self._ended)
            self._connections.add(connection)
            self._all.add(connection)

    def _ended(self, connection: "_Connection") -> None:
        self._connections.discard(connection)
        self._all.remove(connection)

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        for connection in list(self._connections):
            connection.close()
        self._sock.close()


class _Connection:
    def __init__(
        self,
        sock: socket.socket,
        source: str,
        owner: Hashable,
        take: Take,
        ended: Callable[["_Connection"], None],
    ) -> None:
        self.source = source
        self.owner = owner
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
        """Answer the pending queries, then close."""
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
        if len(self._out) > _MAX_UNREAD:
            self.close()
            return
        if message:
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
