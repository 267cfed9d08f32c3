"""The listener: answers queries on a pair of sockets, UDP and TCP.

It reads several datagrams per event of the loop. asyncio's own transport reads one, into a buffer of 256 KiB, which
costs more than the answer itself.
"""

import asyncio
import socket
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from ipaddress import ip_address
from time import perf_counter
from typing import Any

from . import batch
from .deferred import turn
from .durations import ANSWER_BOUNDS_S, Durations
from .fast_path import answer, compute_answer
from .pending import Client
from .question import Question
from .slow_path import respond
from .tcp import Connections, Reply, Streams
from .view import View
from .wire import NOERROR, SERVFAIL, IPAddress

_DRAIN = 64
_BATCHES = 4
"""How many datagrams, or batches of them, are read before other work on the loop continues."""
_LARGEST = 4096
_SAMPLED = 64
"""Of so many batches one is timed."""
Forward = Callable[[View, Client], None]
"""Takes a question for an upstream. It calls the client's `answer`, now or later."""


@dataclass(slots=True)
class Tally:
    """Counters of one client. `failed`: queries answered by SERVFAIL, or not at all."""

    queries: int = 0
    failed: int = 0


@dataclass(slots=True)
class Counts:
    """Counters of a listener.

    Attributes:
        codes: answers, by RCODE.
        slow_path: queries that took the slow path.
        outward: those of them that were for an upstream, or its cached answer.
        strangers: queries of clients in no network.
        dropped: queries without an answer, and answers that could not be sent.
        faults: errors of the server itself.
        durations: from a query's arrival here to its answer, of one batch of datagrams in `_SAMPLED`.
    """

    codes: list[int] = field(default_factory=lambda: [0] * 16)
    slow_path: int = 0
    outward: int = 0
    strangers: int = 0
    dropped: int = 0
    faults: int = 0
    durations: Durations = field(default_factory=lambda: Durations(ANSWER_BOUNDS_S))


class Listener:
    """Serves a UDP and a TCP socket until `close`, which closes them.

    Args:
        udp, tcp: the sockets.
        network: what the limits of all its clients together are counted for.
        forward: takes questions for an upstream.
        everyone: the view of all clients, whatever their address; None: only addresses added by `admit` are clients.
        counts: counters to add to; None: new ones.
        connections: TCP connections that share the limits with these.
        batched: False: one datagram per system call.
    """

    def __init__(
        self,
        udp: socket.socket,
        tcp: socket.socket,
        network: str,
        forward: Forward,
        *,
        everyone: View | None = None,
        counts: Counts | None = None,
        connections: Connections | None = None,
        batched: bool = True,
    ) -> None:
        self.network = network
        self._counted = "network", network
        self.counts = counts or Counts()
        self._others = everyone, Tally()
        self._forward = forward
        self._clients: dict[str, tuple[View, Tally]] = {}
        self._packed: dict[bytes, tuple[View, Tally]] = {}
        self._owners: dict[bytes, Hashable] = {}
        self._udp = udp
        self._outbox: list[tuple[bytes, bytes]] = []
        self._turn = turn()
        self._unsampled = 1
        udp.setblocking(False)
        self._batch = batch.batch(udp.family) if batched and batch.available() else None
        self._streams = Streams(tcp, self._by_tcp, self._owner_at, connections)
        asyncio.get_running_loop().add_reader(udp.fileno(), self._batches if self._batch else self._drain)

    def admit(self, address: IPAddress, view: View, owner: Hashable = None, tally: Tally | None = None) -> None:
        """Answer queries from an address, according to `view`.

        `owner`: the client, which may have several addresses and has one limit; None: the address itself.
        `tally`: counters of the client to add to.
        """
        self._clients[str(address)] = self._packed[address.packed] = view, tally or Tally()
        self._owners[address.packed] = (self.network, address.packed) if owner is None else owner

    @property
    def everyone(self) -> View | None:
        """The view of clients that `admit` does not name."""
        return self._others[0]

    def admit_all(self, view: View | None, tally: Tally | None = None) -> None:
        """Answer clients that `admit` does not name according to `view`; None: refuse them.

        `tally`: counters of all of them together, however many there are; None: those so far.
        """
        self._others = view, tally or self._others[1]

    def dismiss(self, address: IPAddress) -> None:
        """Refuse queries from an address from now on. An unknown address is ignored."""
        self._clients.pop(str(address), None)
        self._packed.pop(address.packed, None)
        self._owners.pop(address.packed, None)

    def _client(self, address: str) -> tuple[View | None, Tally]:
        """Return what the client with an address sees, None if it is unknown, and its counters."""
        return self._clients.get(address, self._others)

    def view(self, address: str) -> View | None:
        """Return the view of an address; None for an unknown client."""
        return self._client(address)[0]

    def _owner(self, source: bytes) -> Hashable:
        """Return the client with an address, for the limits. All unknown addresses count as one client."""
        return self._owners.get(source, self.network)

    def _owner_at(self, address: str) -> Hashable:
        return self._owner(_packed(address))

    # Datagrams

    def _batches(self) -> None:
        assert self._batch is not None  # noqa: S101 - only then this is the reader
        with self._turn:
            for _ in range(_BATCHES):
                messages = self._batch.receive(self._udp)
                self._unsampled -= 1
                if self._unsampled:
                    self._batch.send(self._udp, self._answers(messages))
                else:
                    self._sample(messages)
                if len(messages) < batch.BATCH:
                    return

    def _sample(self, messages: list[tuple[bytes, bytes]]) -> None:
        """Answer a batch, and count how long that took."""
        assert self._batch is not None  # noqa: S101 - only batches come here
        self._unsampled, started = _SAMPLED, perf_counter()
        self._batch.send(self._udp, self._answers(messages))
        self.counts.durations.note(perf_counter() - started, len(messages))

    def _answers(self, messages: list[tuple[bytes, bytes]]) -> list[bytes | None]:
        """Return the answers to a batch of queries; None where there is none, or none yet."""
        packed, others, codes = self._packed, self._others, self.counts.codes
        answers: list[bytes | None] = []
        good = 0
        for data, source in messages:
            view, tally = packed.get(source, others)
            tally.queries += 1
            found: bytes | Question | None = None
            try:
                if view is not None:
                    if (tail := view.ready.get(data[2:])) is None:
                        found = compute_answer(view, data)
                    else:
                        found = data[:2] + (tail if isinstance(tail, bytes) else next(tail))
                if not isinstance(found, bytes):
                    found = self._from_batch(view, found or data, source, len(answers), tally)
            except Exception as exc:  # noqa: BLE001 - one query must not stop the others of its batch
                self._fault(exc, tally)
                found = None
            answers.append(found)
            if found is not None:
                if code := found[3] & 0xF:
                    codes[code] += 1
                    tally.failed += code == SERVFAIL
                else:
                    good += 1
        codes[NOERROR] += good
        return answers

    def _from_batch(
        self, view: View | None, asked: bytes | Question, source: bytes, number: int, tally: Tally
    ) -> bytes | None:
        assert self._batch is not None  # noqa: S101 - only batches come here
        name = self._batch.name(number)
        port = (name[2] << 8) + name[3]
        if view is None or isinstance(asked, bytes) or not port:
            return self._slow(view, asked, source, port, name, self._post, tally)
        counts, post = self.counts, self._post
        counts.slow_path += 1
        counts.outward += 1
        owner = self._owners.get(source, self.network)
        retry_key = name + asked.data[:2]
        self._forward(view, Client(asked, owner, self._counted, lambda message: post(message, name, tally), retry_key))
        return None

    def _drain(self) -> None:
        for _ in range(_DRAIN):
            try:
                data, peer = self._udp.recvfrom(_LARGEST)
            except OSError:  # no more datagrams, or an ICMP error for an answer
                return
            view, tally = self._client(peer[0])
            tally.queries += 1
            try:
                found = answer(view, data) if view is not None else None
                if not isinstance(found, bytes):
                    found = self._slow(view, found or data, _packed(peer[0]), peer[1], peer, self._send, tally)
            except Exception as exc:  # noqa: BLE001 - as above
                self._fault(exc, tally)
                found = None
            if found is not None:
                self._send(found, peer, tally)

    def _slow(
        self,
        view: View | None,
        asked: bytes | Question,
        source: bytes,
        port: int,
        peer: Hashable,
        send: Callable[[bytes, Any, Tally], None],
        tally: Tally,
    ) -> bytes | None:
        if not port:  # no client has port 0
            self._drop(tally)
            return None
        self.counts.slow_path += 1
        found = respond(view, asked) if isinstance(asked, bytes) else asked
        if isinstance(found, Question):
            self._ask(view, found, source, lambda message: send(message, peer, tally), (peer, found.data[:2]))
            return None
        self.counts.strangers += view is None
        if found is None:
            self._drop(tally)
        return found

    def _drop(self, tally: Tally) -> None:
        self.counts.dropped += 1
        tally.failed += 1

    def _note(self, message: bytes, tally: Tally) -> None:
        """Count an answer that does not leave with its batch."""
        self.counts.codes[code := message[3] & 0xF] += 1
        tally.failed += code == SERVFAIL

    def _post(self, message: bytes, name: bytes, tally: Tally) -> None:
        """Send at the end of the turn, together with other answers."""
        if not self._outbox:
            self._turn.at_end(self._flush)
        self._outbox.append((message, name))
        self._note(message, tally)

    def _flush(self) -> None:
        outgoing, self._outbox = self._outbox, []
        while outgoing and self._udp.fileno() >= 0:
            sent = batch.exchange().send(self._udp, outgoing)
            self.counts.dropped += sent < len(outgoing)
            del outgoing[: sent + 1]

    def _send(self, message: bytes, peer: Any, tally: Tally) -> None:
        if self._udp.fileno() < 0:
            return
        self._note(message, tally)
        try:
            self._udp.sendto(message, peer)
        except OSError:  # the send buffer is full, or the client is gone
            self.counts.dropped += 1

    # Datagrams and TCP

    def _ask(self, view: View | None, question: Question, source: bytes, reply: Reply, retry_key: object) -> None:
        assert view is not None  # noqa: S101 - unknown clients are refused before
        self.counts.outward += 1
        self._forward(view, Client(question, self._owner(source), self._counted, reply, retry_key))

    def _by_tcp(self, source: str, data: bytes, reply: Reply) -> None:
        def send(message: bytes) -> None:
            self._note(message, tally)
            reply(message)

        view, tally = self._client(source)
        tally.queries += 1
        self.counts.slow_path += 1
        try:
            found = respond(view, data, tcp=True)
            if isinstance(found, Question):
                self._ask(view, found, _packed(source), send, None)
            elif found is not None:
                self.counts.strangers += view is None
                send(found)
            else:
                self._drop(tally)
                reply(b"")
        except Exception as exc:  # noqa: BLE001 - as above
            self._fault(exc, tally)
            reply(b"")

    def _fault(self, exc: Exception, tally: Tally) -> None:
        self.counts.faults += 1
        tally.failed += 1
        context = {"message": "a query could not be answered", "exception": exc}
        asyncio.get_running_loop().call_exception_handler(context)

    def close(self) -> None:
        """Stop answering, and close the sockets."""
        asyncio.get_running_loop().remove_reader(self._udp.fileno())
        self._udp.close()
        self._streams.close()


def _packed(address: str) -> bytes:
    """Return an address as octets, without its scope."""
    host = address.partition("%")[0]
    return socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)


def open_sockets(address: str, port: int = 53) -> tuple[socket.socket, socket.socket]:
    """Return a UDP socket and a listening TCP socket, both bound to this address and port.

    With port 0 the kernel chooses one port for both.

    Raises:
        OSError: the port is in use, or the address is not local.
    """
    family = socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET
    udp = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    tcp = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind((address, port))
        udp.bind(tcp.getsockname()[:2])
        tcp.listen(128)
    except BaseException:
        udp.close()
        tcp.close()
        raise
    return udp, tcp
