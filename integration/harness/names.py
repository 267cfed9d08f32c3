"""Asking name servers from any namespace, and being one that others ask."""

import select
import socket
from dataclasses import dataclass
from threading import Thread
from types import TracebackType
from typing import Self

import dnslib

from .netns import open_socket
from .traffic import REPLY_TIMEOUT_S, Placed

RCODES = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}


@dataclass(frozen=True)
class Answer:
    """What a name server said: the code's name, and the data of the records that answer, sorted."""

    code: str
    data: tuple[str, ...] = ()


def resolve(place: Placed, server: str, name: str, kind: str = "A", *, tcp: bool = False, port: int = 53) -> Answer:
    """Ask a name server from a place.

    Raises:
        OSError: refused, unreachable, or no answer in time (TimeoutError).
    """
    packed = dnslib.DNSRecord.question(name, kind).pack()
    family = 6 if ":" in server else 4
    with open_socket(place.netns, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM, family=family) as sock:
        sock.settimeout(REPLY_TIMEOUT_S)
        sock.connect((server, port))
        if tcp:
            sock.sendall(len(packed).to_bytes(2) + packed)
            with sock.makefile("rb") as file:
                said = file.read(int.from_bytes(file.read(2)))
        else:
            sock.send(packed)
            said = sock.recv(4096)
    found = dnslib.DNSRecord.parse(said)
    assert found.header.id == int.from_bytes(packed[:2])
    wanted = getattr(dnslib.QTYPE, kind)
    return Answer(RCODES[found.header.rcode], tuple(sorted(str(rr.rdata) for rr in found.rr if rr.rtype == wanted)))


class Upstream:
    """A name server that knows one address for every name, while used in a `with`. `asked`: the names, in order."""

    def __init__(self, place: Placed, address: str, says: str) -> None:
        self.asked: list[str] = []
        self._says = says
        self._socket = open_socket(place.netns, socket.SOCK_DGRAM)
        self._socket.bind((address, 53))
        self._stop_read, self._stop_write = socket.socketpair()
        self._thread = Thread(target=self._serve, name="upstream")

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([self._socket, self._stop_read], [], [])
            if self._stop_read in ready:
                return
            data, peer = self._socket.recvfrom(4096)
            question = dnslib.DNSRecord.parse(data)
            self.asked.append(str(question.q.qname).rstrip("."))
            reply = question.reply()
            if question.q.qtype == dnslib.QTYPE.A:
                reply.add_answer(dnslib.RR(question.q.qname, rdata=dnslib.A(self._says), ttl=60))
            self._socket.sendto(reply.pack(), peer)

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
