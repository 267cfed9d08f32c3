"""Targets for a coverage-guided fuzzer: arbitrary octets on the ways by which the name server gets packets.

`dns_fuzzer.py` runs them under a fuzzer; `target` runs single inputs, so that a saved one becomes a test.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import dnslib
from dns_packets import COOKIE, opt, query, view, zones
from dns_rules import CHECKED, BrokenRuleError, answers, demand, readable, size_allowed, types
from dns_upstreams import address_of, reply_to

from netplug.dns import batch, cache, queries, tcp, upstream, wire
from netplug.dns.fast_path import answer
from netplug.dns.forward_rules import Rules, Server
from netplug.dns.pending import Client
from netplug.dns.question import Question
from netplug.dns.server import Listener, open_sockets
from netplug.dns.slow_path import respond
from netplug.dns.zone import View

PACKET_S = 0.2
"""The most CPU time that one packet may cost; ordinary ones take some microseconds."""
NAMES = (
    *("web", "app", "app1.blue", "web.blue.netplug.internal", "nosuch.blue", "db.red", "nosuch", "example.com"),
    *("_http._tcp.web.blue", "2.0.1.10.in-addr.arpa", "9.9.0.10.in-addr.arpa", "x.local", "localhost", "."),
)
KINDS = (wire.A, wire.AAAA, wire.PTR, wire.SRV, wire.SOA, wire.ANY, wire.AXFR, 65)


class Paths:
    """The fast path, the slow path, and TCP's, as functions: they agree, and answer only what may be answered."""

    def __init__(self) -> None:
        made = zones()
        self.views = view(made, "blue"), view(made, "blue", "red"), view(made, "red")

    def seeds(self) -> Iterator[bytes]:
        for number, packet in enumerate(packets()):
            yield bytes((number % 3,)) + packet

    def __call__(self, data: bytes) -> None:
        if not data:
            return
        it, packet = self.views[data[0] % 3], data[1:]
        most = size_allowed(packet)
        fast, careful = answer(it, packet), respond(it, packet)
        for reply in (fast, careful, answer(it, packet), respond(None, packet)):
            if isinstance(reply, bytes):
                answers(packet, reply, most)
        by_tcp = respond(it, packet, tcp=True)
        if isinstance(by_tcp, bytes):
            answers(packet, by_tcp, 65_535)
        if isinstance(fast, Question):
            demand(fast == careful, "the paths disagree", packet)
        elif fast is not None:
            demand(isinstance(careful, bytes) and sorted(fast) == sorted(careful), "the paths disagree", packet)
        if isinstance(careful, Question):
            sent = queries.message(careful, careful.name + careful.kind, 7)
            demand(isinstance(respond(it, sent), Question), "what we send is no question", packet, sent)


class _Served:
    """A listener on the loopback link, whose upstream answers at once."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.faults: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.faults.append(context))
        self.loop.run_until_complete(self._open())

    async def _open(self) -> None:
        udp, tcp_socket = open_sockets("127.0.0.1", 0)
        self.at = udp.getsockname()
        self.listener = Listener(udp, tcp_socket, "blue", self._forward)
        self.listener.admit(ip_address("127.0.0.1"), view(zones(), "blue"))

    def _forward(self, _: View, client: Client) -> None:
        sent = queries.message(client.question, client.question.name + client.question.kind, 7)
        found = cache.read(reply_to(sent) if sent.isascii() else sent, client.question.name, 0.0)
        client.answer(upstream.relay(client.question, found.code, found.counts, found.body))

    def close(self) -> None:
        self.loop.call_soon(self.listener.close)
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    def no_faults(self, data: bytes) -> None:
        faults, self.faults = self.faults, []
        demand(not faults and not self.listener.counts.faults, "an exception that escapes", data, faults)


class Datagrams(_Served):
    """Datagrams on a real socket, many at once: each is answered as if it were alone, and to its own id only."""

    def __init__(self) -> None:
        super().__init__()
        self.client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.client.bind(("127.0.0.1", 0))

    def seeds(self) -> Iterator[bytes]:
        all_of_them = list(packets())
        for at in range(0, len(all_of_them), 7):
            yield b"".join(bytes((len(packet) & 0xFF,)) + packet[:255] for packet in all_of_them[at : at + 7])

    def __call__(self, data: bytes) -> None:
        sent, at = [], 0
        while at < len(data) and len(sent) < batch.BATCH * 2:
            sent.append(data[at + 1 : at + 1 + data[at]])
            at += 1 + data[at]
        for packet in sent:
            self.client.sendto(packet, self.at)
        self.client.sendto(LAST, self.at)
        heard: list[bytes] = []
        self.loop.run_until_complete(self._hear(heard))
        self.no_faults(data)
        for reply in heard:
            asked = [packet for packet in sent if packet[:2] == reply[:2]]
            demand(asked, "an answer to nobody", data, reply)
            for packet in asked:
                with suppress(BrokenRuleError):
                    answers(packet, reply, size_allowed(packet))
                    break
            else:
                answers(asked[0], reply, size_allowed(asked[0]))
        answerable = sum(len(packet) >= wire.HEADER and packet[2] < 0x80 for packet in sent)
        demand(len(heard) == answerable, "not one answer to each query", data, len(heard), answerable)

    async def _hear(self, heard: list[bytes]) -> None:
        """Read until the last answer has come: UDP of the loopback link keeps the order, an upstream's answer not."""
        last = False
        for _ in range(2000):
            with suppress(BlockingIOError):
                while True:
                    reply = self.client.recv(4096)
                    last |= reply[:2] == LAST[:2] and reply[12:] == LAST_ANSWER
                    heard.append(reply)
            if last:
                heard.remove(next(it for it in heard if it[:2] == LAST[:2] and it[12:] == LAST_ANSWER))
                return
            await asyncio.sleep(0)
        raise BrokenRuleError("no answer to an ordinary query after others")

    def close(self) -> None:
        self.client.close()
        super().close()


class Framing(_Served):
    """A TCP connection that sends anything in any pieces: as many answers as messages at most, each in its frame."""

    def seeds(self) -> Iterator[bytes]:
        for number, packet in enumerate(packets()):
            framed = len(packet).to_bytes(2) + packet
            yield bytes((number % 9,)) + framed * (number % 3 + 1)

    def __call__(self, data: bytes) -> None:
        if data:
            self.loop.run_until_complete(self._converse(data))
            self.no_faults(data)

    async def _converse(self, data: bytes) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        streams = self.listener._streams
        connection = tcp._Connection(theirs, "127.0.0.1", "fuzz", streams._take, streams._ended)
        streams._connections.add(connection)
        streams._all.add(connection)
        try:
            await self._say(data, ours)
        finally:
            ours.close()
            connection.close()

    async def _say(self, data: bytes, ours: socket.socket) -> None:
        said, step = data[1:], data[0] or 256
        heard = bytearray()
        for at in range(0, len(said), step):
            with suppress(OSError):
                ours.send(said[at : at + step])
            await asyncio.sleep(0)
            with suppress(OSError):
                heard += ours.recv(1 << 20)
        with suppress(OSError):
            ours.shutdown(socket.SHUT_WR)
        for _ in range(5):
            await asyncio.sleep(0)
            with suppress(OSError):
                heard += ours.recv(1 << 20)
        demand(not len(self.listener._streams._all), "a connection that stays", data)
        asked = list(_unframed(said))
        replies = list(_unframed(bytes(heard)))
        demand(b"".join(len(it).to_bytes(2) + it for it in replies) == heard, "half an answer", data, heard)
        wanted = [it for it in asked if it[2] < 0x80]
        demand(len(replies) == len(wanted), "not one answer to each query", data, len(replies), len(wanted))
        for packet, reply in zip(wanted, replies, strict=True):
            answers(packet, reply, 65_535)


def _unframed(data: bytes) -> Iterator[bytes]:
    """Return the messages of a stream, up to the first that is too short to have a header, or incomplete."""
    at = 0
    while at + 2 <= len(data) and (size := int.from_bytes(data[at : at + 2])) >= wire.HEADER:
        if at + 2 + size > len(data):
            return
        yield data[at + 2 : at + 2 + size]
        at += 2 + size


class Upstreams:
    """What an upstream says to a question, over UDP and over TCP.

    Garbage is never relayed, except in the RDATA of types that only their users know.
    """

    QUESTIONS = tuple(
        query(name, kind, edns=edns)
        for name, kind in (("example.com", wire.A), ("a.b.example", wire.AAAA), ("8.8.8.8.in-addr.arpa", wire.PTR))
        for edns in (None, opt(), opt(700, flags=0x8000))
    )

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.faults: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.faults.append(context))
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.settimeout(5)
        self.forwarder = upstream.Forwarder(slots=1)
        self.view = view(zones(), "blue")
        self.server = Server(ip_address("127.0.0.1"), self.sock.getsockname()[1])
        self.over_tcp = b""

    def seeds(self) -> Iterator[bytes]:
        for number, asked in enumerate(self.QUESTIONS):
            name = dnslib.DNSRecord.parse(asked).q.qname
            for said in (
                address_of(asked),
                reply_to(asked, f"{name} 60 IN CNAME x.{name}", f"x.{name} 5 IN AAAA fd00::7"),
                reply_to(asked, *(f"{name} 60 IN A 192.0.2.{host}" for host in range(90))),
                reply_to(asked, code=3, soa_s=60),
                reply_to(asked, f"{name} 60 IN TXT {'y' * 200}", f"{name} 60 IN MX 5 mail.{name}"),
                reply_to(asked, f"_x.{name} 9 IN SRV 1 2 3 t.{name}", f"{name} 9 IN NAPTR 1 2 u e+s ! .", tc=True),
                reply_to(asked, code=2),
            ):
                for how in range(4):
                    yield bytes((number, how)) + said[2:]

    def __call__(self, data: bytes) -> None:
        if len(data) >= 2:
            self.loop.run_until_complete(self._ask(data))
            faults, self.faults = self.faults, []
            demand(not faults, "an exception that escapes", data, faults)
            demand(not self.forwarder.pending and not self.forwarder._load, "a question that stays", data)

    async def _ask(self, data: bytes) -> None:
        asked = self.QUESTIONS[data[0] % len(self.QUESTIONS)]
        found, how, rules, told = respond(self.view, asked), data[1], Rules.of((), [self.server]), []
        assert isinstance(found, Question)
        self.forwarder.ask(rules, Client(found, "client", "blue", told.append))
        await asyncio.sleep(0)
        sent, peer = self.sock.recvfrom(4096)
        said = sent[:2] + data[2:]
        if how & 1:  # the question as it was asked, whatever is behind it
            end = wire.HEADER + len(found.name) + 4
            said = said[: wire.HEADER].ljust(wire.HEADER, b"\0") + sent[wire.HEADER : end] + said[end:]
        self.over_tcp = said
        if how & 2:  # truncated: over TCP all of it
            said = said[:2] + bytes((said[2] | 2,)) + said[3:] if len(said) > 2 else said
        self.sock.sendto(said[:4096], peer)
        for _ in range(4):
            await asyncio.sleep(0)
        rest = self.forwarder.take(rules)
        demand(len(told) + len(rest) == 1, "not one answer", data, told)
        for reply in told:
            answers(asked, reply, found.size, opaque=True)
            demand(reply[3] & 0x50 == 0 and reply[3] & 0xF in {0, 2, 3}, "flags that are not ours", data, reply)
            if types(reply) <= CHECKED:
                demand(readable(reply), "not an answer", data, reply)

    async def exchange(self, _: object, __: Server, message: bytes) -> bytes:
        """Answer over TCP, as a server that hangs up if it has nothing to say."""
        if len(self.over_tcp) < 2:
            raise EOFError
        return message[:2] + self.over_tcp[2:]

    def close(self) -> None:
        self.loop.call_soon(self.forwarder.close)
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()
        self.sock.close()


LAST = query("web.blue.netplug.internal", wire.A, ident=0xFFFF)
LAST_ANSWER = LAST[12:] + b"\xc0\x0c\0\1\0\1\0\0\0\7\0\4\x0a\1\0\2"
TARGETS: dict[str, type[Paths | Datagrams | Framing | Upstreams]] = {
    "paths": Paths,
    "datagrams": Datagrams,
    "framing": Framing,
    "upstreams": Upstreams,
}


def packets() -> Iterator[bytes]:
    """Return packets as real clients send them, and some that misuse each field."""
    for name in NAMES:
        for kind in KINDS:
            for edns in (None, opt(), opt(4096, flags=0x8000, options=COOKIE)):
                yield query(name, kind, edns=edns)
    yield from (query("web", flags=flags) for flags in (0, 0x0110, 0x0120, 0x2000, 0x2800, 0x8180, 0xFFFF))
    yield from (
        query("web", edns=it) for it in (opt(version=1), opt(0), opt(owner=b"\1x\0"), opt() + opt(), opt()[:-1])
    )
    yield from (query(b"\xc0\x0c"), query(b"\x3f" + b"a" * 63 + b"\0"), query((b"\x3f" + b"a" * 63) * 4 + b"\0"))
    yield from (b"", b"\0", query("web")[:-1], query("web") + b"\0", query("web", klass=3), query("web", klass=255))


@contextmanager
def target(name: str) -> Iterator[Callable[[bytes], None]]:
    """Return what runs one input; it raises `BrokenRuleError`, or whatever the name server raises."""
    it = TARGETS[name]()
    before = upstream.exchange
    if isinstance(it, Upstreams):
        upstream.exchange = it.exchange

    def run(data: bytes) -> None:
        started = time.thread_time()
        it(data)
        taken_s = time.thread_time() - started
        demand(taken_s < PACKET_S, "slow", data, taken_s)

    try:
        yield run
    finally:
        upstream.exchange = before
        if not isinstance(it, Paths):
            it.close()


def write_seeds(name: str, folder: Path) -> int:
    """Write the target's seeds as files, and return their number."""
    folder.mkdir(parents=True, exist_ok=True)
    it = TARGETS[name]()
    seeds = list(it.seeds())
    if not isinstance(it, Paths):
        it.close()
    for number, seed in enumerate(seeds):
        (folder / f"seed-{number:04}").write_bytes(seed)
    return len(seeds)
