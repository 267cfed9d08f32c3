"""Asking name servers from any namespace, and being one that others ask."""

import socket
from dataclasses import dataclass

import dnslib

from .netns import open_socket
from .traffic import REPLY_TIMEOUT_S, Placed, Serving, bound

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


class Upstream(Serving):
    """A name server that knows one address for every name. `asked`: the names in lower case, in order."""

    def __init__(self, place: Placed, address: str, says: str) -> None:
        super().__init__(bound(place, "udp", 53, address), "upstream")
        self.asked: list[str] = []
        self._says = says

    def _answer(self) -> None:
        data, peer = self._socket.recvfrom(4096)
        question = dnslib.DNSRecord.parse(data)
        self.asked.append(str(question.q.qname).rstrip(".").lower())
        reply = question.reply()
        if question.q.qtype == dnslib.QTYPE.A:
            reply.add_answer(dnslib.RR(question.q.qname, rdata=dnslib.A(self._says), ttl=60))
        self._socket.sendto(reply.pack(), peer)
