"""Connected UDP sockets to an upstream: several, with ports of the kernel's choosing, changed now and then."""

import asyncio
import socket
from collections.abc import Callable

from .rules import Server

SLOTS = 64
USES = 500
"""After so many questions a socket gets a successor, with another port."""
_DRAIN = 64
"""Datagrams read at a time; the loop comes back for more."""
_LARGEST = 4096
_BUFFER = 1 << 20


class Slot:
    """A socket with the questions under way by it, by id."""

    __slots__ = ("_retired", "pending", "server", "sock", "uses")

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.server = server
        self.sock = sock
        self.pending: dict[int, object] = {}
        self.uses = 0
        self._retired = False

    def forget(self, ident: int) -> None:
        """Wait for an answer no longer."""
        self.pending.pop(ident, None)
        if self._retired and not self.pending:
            self.close()

    def retire(self) -> None:
        """Close it once nothing is under way any more."""
        self._retired = True
        if not self.pending:
            self.close()

    def close(self) -> None:
        if self.sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self.sock.fileno())
            self.sock.close()


class Pool:
    """The sockets towards one server. `take`: is given each message; `unreachable`: is told of a socket's error."""

    def __init__(
        self, server: Server, take: Callable[[Slot, bytes], None], unreachable: Callable[[Slot], None]
    ) -> None:
        self._server = server
        self._take = take
        self._unreachable = unreachable
        self._slots: dict[int, Slot] = {}

    def slot(self, number: int) -> Slot:
        """Return the socket of this number, modulo how many there are.

        Raises:
            OSError: there is no way to the server.
        """
        number %= SLOTS
        slot = self._slots.get(number)
        if slot is not None and slot.uses >= USES:
            del self._slots[number]
            slot.retire()
            slot = None
        if slot is None:
            slot = self._slots[number] = self._open()
        slot.uses += 1
        return slot

    def _open(self) -> Slot:
        address = self._server.address
        sock = socket.socket(
            socket.AF_INET6 if address.version == 6 else socket.AF_INET,
            socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
        )
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            if address.version == 6:
                scope = socket.if_nametoindex(self._server.scope) if self._server.scope else 0
                sock.connect((str(address), self._server.port, 0, scope))
            else:
                sock.connect((str(address), self._server.port))
        except BaseException:
            sock.close()
            raise
        slot = Slot(self._server, sock)
        asyncio.get_running_loop().add_reader(sock.fileno(), self._drain, slot)
        return slot

    def _drain(self, slot: Slot) -> None:
        for _ in range(_DRAIN):
            if slot.sock.fileno() < 0:
                return
            try:
                message = slot.sock.recv(_LARGEST)
            except BlockingIOError:
                return
            except OSError:
                self._unreachable(slot)
                return
            self._take(slot, message)

    def close(self) -> None:
        for slot in self._slots.values():
            slot.close()
        self._slots.clear()
