"""Sockets to an upstream: for UDP several, with random ports that change from time to time; and TCP."""

import asyncio
import socket
from collections.abc import Callable, Iterator

from . import batch
from .deferred import turn
from .forward_rules import Server

SLOTS = 64
USES = 500
"""After so many queries a socket is replaced by one with another port."""
BURST = 32
"""Queries that use the same socket until an answer arrives; under load this saves one event of the loop for each."""
RENEWAL_S = 1.0
_BUFFER = 1 << 20


Peer = tuple[str, int] | tuple[str, int, int, int]
Opener = Callable[[int, int, Peer], socket.socket]
"""Returns a non-blocking socket of a family and a type, to connect to a peer.

It may be in another network namespace.
"""


def open_here(family: int, kind: int, _: Peer) -> socket.socket:
    """Return a socket in this network namespace."""
    return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def peer(server: Server) -> tuple[int, Peer]:
    """Return the address family and the address to connect to.

    Raises:
        OSError: the link of a link-local address does not exist.
    """
    if server.address.version == 4:
        return socket.AF_INET, (str(server.address), server.port)
    scope = socket.if_nametoindex(server.scope) if server.scope else 0
    return socket.AF_INET6, (str(server.address), server.port, 0, scope)


class Slot:
    """A socket with its pending queries by message id. `outbox`: messages still to be sent.

    `retired`: the socket takes no new queries, and is closed when none is pending.
    """

    __slots__ = ("outbox", "pending", "retired", "server", "sock", "uses")

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.server = server
        self.sock = sock
        self.pending: dict[int, object] = {}
        self.outbox: list[tuple[bytes, bytes]] = []
        self.uses = 0
        self.retired = False

    def forget(self, ident: int) -> None:
        """Stop waiting for the answer to this message id."""
        self.pending.pop(ident, None)
        if self.retired and not self.pending:
            self.close()

    def retire(self) -> None:
        """Close the socket when no query is pending."""
        self.retired = True
        if not self.pending:
            self.close()

    def close(self) -> None:
        if self.sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self.sock.fileno())
            self.sock.close()


class Pool:
    """The UDP sockets to one server.

    `take`: called with each message received. `unreachable`: called on a socket's error. `unsent`: called with the id
    of a message that cannot be sent.
    """

    def __init__(
        self,
        server: Server,
        take: Callable[[Slot, bytes], None],
        unreachable: Callable[[Slot], None],
        unsent: Callable[[Slot, int], None],
        opener: Opener = open_here,
        slots: int = 0,
    ) -> None:
        self._server = server
        self._opener = opener
        self._number = slots or SLOTS
        self._take = take
        self._unreachable = unreachable
        self._unsent = unsent
        self._slots: dict[int, Slot] = {}
        self._shared: Slot | None = None
        self._left = 0
        self._turn = turn()
        self._renewed = -RENEWAL_S

    def slot(self, numbers: Iterator[int]) -> Slot:
        """Return a randomly chosen socket; during a burst, the same one again.

        Raises:
            OSError: there is no route to the server.
        """
        if self._left and self._shared is not None and self._shared.uses < USES:
            self._left -= 1
            self._shared.uses += 1
            return self._shared
        number = next(numbers) % self._number
        slot = self._slots.get(number)
        if slot is not None and slot.uses >= USES:
            del self._slots[number]
            slot.retire()
            slot = None
        if slot is None:
            slot = self._slots[number] = self._open()
        slot.uses += 1
        self._shared, self._left = slot, BURST - 1
        return slot

    def send(self, slot: Slot, message: bytes) -> None:
        """Send a message at the end of the turn, together with others."""
        if not slot.outbox:
            self._turn.at_end(self._flush, slot)
        slot.outbox.append((message, b""))

    def _flush(self, slot: Slot) -> None:
        outgoing, slot.outbox = slot.outbox, []
        while outgoing and slot.sock.fileno() >= 0:
            sent = batch.exchange().send(slot.sock, outgoing)
            if sent < len(outgoing) and (ident := int.from_bytes(outgoing[sent][0][:2])) in slot.pending:
                self._unsent(slot, ident)
            del outgoing[: sent + 1]

    def _open(self) -> Slot:
        family, address = peer(self._server)
        sock = self._opener(family, socket.SOCK_DGRAM, address)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
        slot = Slot(self._server, sock)
        asyncio.get_running_loop().add_reader(sock.fileno(), self._drain, slot)
        return slot

    def _drain(self, slot: Slot) -> None:
        self._left = 0
        try:
            messages = batch.exchange().receive(slot.sock)
        except OSError:
            self._unreachable(slot)
            return
        with self._turn:
            for message in messages:
                self._take(slot, message)

    def renew(self, now: float) -> None:
        """Replace all sockets, as the route to the server may have changed.

        This happens at most once in `RENEWAL_S`. The old sockets still receive the answers to their pending queries.
        """
        if now < self._renewed + RENEWAL_S:
            return
        self._renewed = now
        for slot in self._slots.values():
            slot.retire()
        self._slots.clear()
        self._shared = None

    def close(self) -> None:
        for slot in self._slots.values():
            slot.close()
        self._slots.clear()
        self._shared = None


async def exchange(opener: Opener, server: Server, message: bytes) -> bytes:
    """Send a query over TCP, and return the answer (RFC 7766).

    Raises:
        OSError, EOFError: the server does not answer.
    """
    family, address = peer(server)
    sock = opener(family, socket.SOCK_STREAM, address)
    try:
        await asyncio.get_running_loop().sock_connect(sock, address)
        reader, writer = await asyncio.open_connection(sock=sock)
    except BaseException:
        sock.close()
        raise
    try:
        writer.write(len(message).to_bytes(2) + message)
        answer = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
        if answer[:2] != message[:2]:
            raise EOFError("an answer with another message id")
        return answer
    finally:
        writer.close()
