"""Names and records in wire format (RFC 1035 §3.1, §4.1).

A name in wire format is a sequence of length octets and labels, ends in a zero octet, and is not compressed. The index
uses it as key, in lower case: length octets are below 64 and thus no letters, so `bytes.lower` does not change them.
This module packs records itself, as dnslib compresses names inside RDATA relative to a buffer of its own.
"""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPNetwork: TypeAlias = IPv4Network | IPv6Network

A, NS, CNAME, SOA, PTR, MX, AAAA, SRV, OPT = 1, 2, 5, 6, 12, 15, 28, 33, 41
TKEY, TSIG, IXFR, AXFR, MAILB, MAILA, ANY = 249, 250, 251, 252, 253, 254, 255
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 2, 3, 4, 5, 16

HEADER = 12
"""Octets of the header."""
LONGEST_NAME = 255
LONGEST_LABEL = 63
UDP_SIZE = 1232
"""The UDP payload size that we advertise and send at most: it avoids fragments at the IPv6 minimum MTU (RFC 9715)."""
PLAIN_SIZE = 512
"""The limit of UDP without EDNS (RFC 1035 §4.2.1), and the minimum with EDNS (RFC 6891 §6.2.3)."""
TO_QUESTION = b"\xc0\x0c"
"""Compression pointer to the question's name."""
ROOT = b"\0"

REVERSE = {4: b"\x07in-addr\x04arpa\0", 6: b"\x03ip6\x04arpa\0"}


@dataclass(frozen=True, slots=True)
class Record:
    """A record without owner name and TTL. `rdata`: not compressed."""

    type: int
    rdata: bytes


def to_wire(text: str) -> bytes:
    r"""Return a name in wire format, in lower case. Every dot separates labels; there is no escaping.

    >>> to_wire("Web.blue")
    b'\x03web\x04blue\x00'
    >>> to_wire(".")
    b'\x00'

    Raises:
        ValueError: a label is empty or too long, or the name is too long.
    """
    text = text.removesuffix(".")
    labels = [label.encode() for label in text.split(".")] if text else []
    if not all(1 <= len(label) <= LONGEST_LABEL for label in labels):
        raise ValueError(f"{text[:80]!r} is not a domain name: labels have 1 to {LONGEST_LABEL} octets")
    wire = b"".join(bytes((len(label),)) + label for label in labels) + ROOT
    if len(wire) > LONGEST_NAME:
        raise ValueError(f"{text[:80]!r}… is not a domain name: longer than {LONGEST_NAME} octets")
    return wire.lower()


def to_text(wire: bytes) -> str:
    r"""Return a name as text. Octets that are not printable, and dots in labels, are escaped (RFC 1035 §5.1).

    >>> to_text(b"\x03web\x04blue\x00")
    'web.blue'
    """
    return ".".join("".join(_escaped(octet) for octet in label) for label in labels_of(wire)) or "."


def _escaped(octet: int) -> str:
    if chr(octet) in '.\\"':
        return "\\" + chr(octet)
    return chr(octet) if 33 <= octet <= 126 else f"\\{octet:03}"


def parent(wire: bytes) -> bytes:
    r"""Return the parent of a name; for the root, nothing.

    >>> parent(b"\x03web\x04blue\x00")
    b'\x04blue\x00'
    """
    return wire[wire[0] + 1 :]


def labels_of(wire: bytes) -> list[bytes]:
    r"""Return the labels of a well-formed name.

    >>> labels_of(b"\x03web\x04blue\x00")
    [b'web', b'blue']
    """
    labels, at = [], 0
    while size := wire[at]:
        labels.append(wire[at + 1 : at + 1 + size])
        at += size + 1
    return labels


def below(wire: bytes, zone: bytes) -> bool:
    """Return whether a name is the apex of a zone or below it.

    >>> below(to_wire("web.blue"), to_wire("blue")), below(to_wire("webblue"), to_wire("blue"))
    (True, False)
    """
    if not wire.endswith(zone):
        return False
    at, apex = 0, len(wire) - len(zone)
    while at < apex:
        at += wire[at] + 1
    return at == apex


def reverse(address: IPAddress) -> bytes:
    """Return the name of an address's PTR record (RFC 1035 §3.5, RFC 3596 §2.5).

    >>> to_text(reverse(IPv4Address("10.92.1.2")))
    '2.1.92.10.in-addr.arpa'
    """
    return to_wire(address.reverse_pointer)


def address(value: IPAddress) -> Record:
    """Return an A or AAAA record."""
    return Record(A if value.version == 4 else AAAA, value.packed)


def srv(port: int, target: bytes) -> Record:
    """Return an SRV record (RFC 2782). All have the same priority and weight."""
    return Record(SRV, struct.pack("!HHH", 0, 0, port) + target)


def soa(mname: bytes, rname: bytes, negative_s: int) -> Record:
    """Return an SOA record. The serial is constant, as there are no zone transfers."""
    return Record(SOA, mname + rname + struct.pack("!5I", 1, 3600, 600, 86400, negative_s))


def pack(owner: bytes, record: Record, ttl_s: int) -> bytes:
    """Return a record in wire format."""
    return owner + struct.pack("!HHIH", record.type, IN, ttl_s, len(record.rdata)) + record.rdata


def key(kind: int, klass: int = IN) -> bytes:
    """Return type and class as in a question."""
    return struct.pack("!HH", kind, klass)


def skip_name(data: bytes, at: int) -> int:
    """Return the offset after a name, compressed or not, without following pointers.

    Raises:
        ValueError: the name extends past the end, or has an unknown label type (RFC 6891 §5).
    """
    start = at
    while at < len(data):
        size = data[at]
        if size == 0:
            if at - start >= LONGEST_NAME:
                break
            return at + 1
        if size >= 0xC0:
            if at + 2 > len(data) or ((size & 0x3F) << 8 | data[at + 1]) >= at:
                break
            return at + 2
        if size > LONGEST_LABEL:
            break
        at += size + 1
    raise ValueError("a malformed name")


def follow_name(data: bytes, at: int) -> int:
    """Return the offset after a name, compressed or not, as `skip_name`, if all that its pointers lead to is a name.

    A pointer leads to what precedes it (RFC 1035 §4.1.4), and not into the header, which is another in each message.
    What it leads to ends before it, else the name would have octets of what follows, which may be cut off.

    Raises:
        ValueError: the name extends past the end, is too long, or has an unknown label type or such a pointer.
    """
    end, size, limit = 0, 1, len(data)
    while at < limit:
        label = data[at]
        if label == 0:
            return end or at + 1
        if label >= 0xC0:
            if at + 2 > limit or not HEADER <= (target := (label & 0x3F) << 8 | data[at + 1]) < at:
                break
            end, at, limit = end or at + 2, target, at
            continue
        size += label + 1
        if label > LONGEST_LABEL or size > LONGEST_NAME:
            break
        at += label + 1
    raise ValueError("a malformed name")


def opt(*, dnssec: bool = False, code: int = NOERROR, options: bytes = b"") -> bytes:
    """Return our OPT record (RFC 6891 §6.1.2). `code`: the full RCODE, whose upper eight bits are in this record."""
    return ROOT + struct.pack("!HHBBHH", OPT, UDP_SIZE, code >> 4, 0, 0x8000 if dnssec else 0, len(options)) + options


def extended_error(info: int, text: str = "") -> bytes:
    """Return an extended DNS error as an EDNS option (RFC 8914 §2)."""
    data = struct.pack("!H", info) + text.encode()
    return struct.pack("!HH", 15, len(data)) + data
