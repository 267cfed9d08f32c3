"""What is true of each answer of the name server, whatever octets it got."""

import struct

import dnslib

from netplug.dns import wire

UDP_SIZE = 1232
CHECKED = {wire.A, wire.NS, wire.CNAME, wire.SOA, wire.PTR, wire.MX, wire.AAAA, wire.SRV, wire.OPT}
"""Types whose RDATA any client reads."""


class BrokenRuleError(AssertionError):
    """The name server did what it must not do, whatever the packet."""


def demand(holds: object, what: str, *about: object) -> None:
    if not holds:
        raise BrokenRuleError(" ".join((what, *map(repr, about))))


def _parsed(data: bytes) -> dnslib.DNSRecord | None:
    """Return a packet as dnslib reads it; None: it is no UTF-8, which dnslib wants of labels.

    Raises:
        dnslib.DNSError: it is malformed.
    """
    try:
        return dnslib.DNSRecord.parse(data)
    except dnslib.DNSError as exc:
        if "Invalid label" in str(exc):
            return None
        raise


def readable(data: bytes) -> bool:
    """Return whether dnslib reads a packet, whatever octets its labels have."""
    try:
        _parsed(data)
    except (dnslib.DNSError, ValueError, IndexError, struct.error):
        return False
    return True


def answers(data: bytes, reply: bytes, most: int, *, opaque: bool = False) -> None:
    """Demand what is true of each answer to a packet, whatever it asks. `opaque`: others made its records."""
    demand(len(data) >= wire.HEADER and data[2] < 0x80, "an answer to what is no query", data)
    demand(reply[:2] == data[:2] and reply[2] & 0x80, "another id, or no answer", data, reply)
    demand(len(reply) <= most, "too large", len(reply), most)
    demand(reply[2] & 0x78 == data[2] & 0x78, "another opcode", data, reply)
    if reply[4:6] == b"\0\1":
        end = wire.skip_name(reply, wire.HEADER) + 4
        demand(reply[wire.HEADER : end] == data[wire.HEADER : end], "another question", data, reply)
    else:
        demand(len(reply) == wire.HEADER and reply[3] & 0xF, "neither a question nor an error", data, reply)
    if not opaque:
        demand(readable(reply), "not an answer", data, reply)


def types(message: bytes) -> set[int]:
    """Return the types of a message's records.

    Raises:
        ValueError, IndexError, struct.error: the message is malformed.
    """
    at, found = wire.skip_name(message, wire.HEADER) + 4, set()
    for _ in range(sum(struct.unpack_from("!3H", message, 6))):
        at = wire.skip_name(message, at)
        kind, _, _, length = struct.unpack_from("!HHIH", message, at)
        found.add(kind)
        at += 10 + length
    demand(at == len(message), "octets after the last record", message)
    return found


def size_allowed(data: bytes) -> int:
    """Return the most octets of an answer over UDP: what the client's OPT says, as dnslib reads it."""
    try:
        packet = _parsed(data)
    except (dnslib.DNSError, ValueError, IndexError, struct.error):
        return 512
    if packet is None:
        return UDP_SIZE
    return min(max([512, *(rr.rclass for rr in packet.ar if rr.rtype == wire.OPT)]), UDP_SIZE)
