"""DNS messages in words, and questions with their answers as one line each."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import dnslib

_MOST_SHOWN = 6
_MOST_OPEN = 4096
PATIENCE_NS = 2_000_000_000
"""After this a question is said to have no answer: clients ask again after 2.5 s (busybox) or 5 s (glibc)."""


def describe(message: bytes) -> str:
    """Return a message in a few words; empty if it is none.

    >>> describe(bytes(dnslib.DNSRecord.question("web.blue", "AAAA").pack()))
    'AAAA? web.blue'
    """
    packet = _parsed(message)
    if packet is None:
        return ""
    asked = f"{_type(packet.q.qtype)}? {_name(packet)}"
    return f"{asked}: {_answer(packet)}" if packet.header.qr else asked


def _parsed(message: bytes) -> dnslib.DNSRecord | None:
    if len(message) < 12:
        return None
    try:
        packet = dnslib.DNSRecord.parse(message)
    except (dnslib.DNSError, ValueError, IndexError, UnicodeError):
        return None
    return packet if packet.questions else None


def _name(packet: dnslib.DNSRecord) -> str:
    return str(packet.q.qname).rstrip(".") or "."


def _type(number: int) -> str:
    return str(dnslib.QTYPE.get(number))


def _answer(packet: dnslib.DNSRecord) -> str:
    code = str(dnslib.RCODE.get(packet.header.rcode))
    if code != "NOERROR":
        return code
    shown = [str(rr.rdata) if rr.rtype == packet.q.qtype else f"{_type(rr.rtype)} {rr.rdata}" for rr in packet.rr]
    if len(shown) > _MOST_SHOWN:
        shown = [*shown[:_MOST_SHOWN], f"and {len(shown) - _MOST_SHOWN} more"]
    if packet.header.tc and not shown:
        return "truncated, to be asked by TCP"
    return ", ".join(shown) or "no records of this type"


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, and its answer if there was one. `took_ns`: until then."""

    time_ns: int
    client: str
    server: str
    type: str
    name: str
    answer: str
    took_ns: int

    @property
    def line(self) -> str:
        """The question and the answer in words."""
        took = f"{self.took_ns / 1e6:.1f} ms" if self.answer else f"in {self.took_ns / 1e9:.1f} s"
        return f"{self.client}  {self.type} {self.name}: {self.answer or 'no answer'}  {took}, from {self.server}"


class Pairs:
    """Puts answers to their questions."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[str, int, str, int], tuple[int, str]] = OrderedDict()

    def take(self, time_ns: int, source: str, destination: str, message: bytes) -> Iterator[Asked]:
        """Take a message; yields what it completes. Addresses are with ports."""
        packet = _parsed(message)
        if packet is None:
            return
        header, name = packet.header, _name(packet)
        client, server = (destination, source) if header.qr else (source, destination)
        # The server's address may differ between both, by NAT. The client's port and the number are enough.
        key = (client, header.id, name.lower(), packet.q.qtype)
        if header.qr:
            asked_ns, _ = self._open.pop(key, (time_ns, server))
            yield Asked(asked_ns, client, server, _type(packet.q.qtype), name, _answer(packet), time_ns - asked_ns)
            return
        self._open.setdefault(key, (time_ns, server))
        while len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)

    def unanswered(self, now_ns: int, patience_ns: int = PATIENCE_NS) -> Iterator[Asked]:
        """Yield questions that wait for longer than that, and forget them."""
        for key, (time_ns, server) in list(self._open.items()):
            if now_ns - time_ns < patience_ns:
                return
            del self._open[key]
            yield Asked(time_ns, key[0], server, _type(key[3]), key[2], "", now_ns - time_ns)
