"""Names of special use: what is answered here and never asked of an upstream, unless a rule says otherwise.

RFC 6761 (localhost, invalid, test, private addresses), 6762 (local), 7686 (onion), 8375 (home.arpa), 9476 (alt), 6303
(reverse zones of addresses that mean something in one place only); and names of one label, which are nobody's on the
internet.
"""

from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from . import wire
from .wire import IPAddress, IPNetwork, Record, below, to_wire

TTL_S = 3600
_LOCALHOST = to_wire("localhost")
_LOOPBACK_ADDRESSES = (ip_address("127.0.0.1"), ip_address("::1"))
_LOOPBACK = tuple(map(wire.address, _LOOPBACK_ADDRESSES))
_NOWHERE = tuple(map(to_wire, ("invalid", "test", "local", "onion", "alt", "home.arpa")))
SUFFIXES = (_LOCALHOST, *_NOWHERE, *wire.REVERSE.values())
"""What a name ends in that may be of special use, or has one label."""
_PRIVATE = tuple(
    ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.2.0/24", "192.168.0.0/16", "198.51.100.0/24", "203.0.113.0/24", "255.255.255.255/32"),
        *("::/127", "fc00::/7", "fe80::/10", "2001:db8::/32"),
    )
)


@dataclass(frozen=True, slots=True)
class Local:
    """What we say ourselves. Without records: the name's absence, or that of the type.

    `zone`: the one that is served here, whose SOA goes with that (RFC 6303 §3).
    """

    code: int
    zone: bytes
    records: tuple[Record, ...] = ()


def may_be(name: bytes) -> bool:
    """Tell whether a lower-cased name may be of special use; of nearly all it is seen at once that they are not."""
    return name.endswith(SUFFIXES) or name[0] + 2 >= len(name)


def answer(name: bytes, kind: int, pools: Collection[IPNetwork] = ()) -> Local | None:
    """Return the answer to a question for a lower-cased name; None where it is an upstream's to give.

    `pools`: subnets of ours, which may be of public addresses.
    """
    if not may_be(name):
        return None
    if below(name, _LOCALHOST):
        return _of(_LOOPBACK, kind, _LOCALHOST)
    for zone in _NOWHERE:
        if below(name, zone):
            return Local(wire.NXDOMAIN, zone)
    for version, zone in wire.REVERSE.items():
        if below(name, zone):
            return _reverse(name, kind, version, pools)
    if len(wire.labels_of(name)) == 1 and kind not in _OF_ZONES:
        return Local(wire.NXDOMAIN, wire.ROOT)
    return None


def is_inside(zone: bytes) -> bool:
    """Tell whether names below a zone are of special use, but for those that nobody at all answers for."""
    return not is_reserved(zone) and any(below(zone, it) for it in _NOWHERE)


def is_reserved(name: bytes) -> bool:
    """Tell whether a name is one that nobody can be called: the host's own, or the reverse one of an address."""
    return any(below(name, zone) for zone in (_LOCALHOST, *wire.REVERSE.values()))


_OF_ZONES = frozenset({wire.NS, wire.SOA, 43, 48})
"""Asked of a top-level domain by those who check signatures: NS, SOA, DS, DNSKEY."""


def pooled(name: bytes, pools: Collection[IPNetwork]) -> bytes:
    """Return the zone of a name that is the reverse one of an address of ours; nothing for others."""
    for version, zone in wire.REVERSE.items():
        if below(name, zone):
            labels = wire.labels_of(name)[:-2][::-1]
            found = _address(labels, version) if len(labels) == (4 if version == 4 else 32) else None
            nets = [pool for pool in pools if pool.version == version and found and found[0] in pool]
            return _zone(name, min(nets, key=_size)) if nets else b""
    return b""


def _size(net: IPNetwork) -> int:
    return net.prefixlen


def _zone(name: bytes, net: IPNetwork) -> bytes:
    """Return the reverse zone that a name in it is of: of whole octets or nibbles, as one is delegated."""
    unit = 8 if net.version == 4 else 4
    for _ in range(len(wire.labels_of(name)) - 2 - -(-net.prefixlen // unit)):
        name = wire.parent(name)
    return name


def _of(records: tuple[Record, ...], kind: int, zone: bytes) -> Local:
    return Local(wire.NOERROR, zone, tuple(record for record in records if record.type == kind))


def _reverse(name: bytes, kind: int, version: int, pools: Collection[IPNetwork]) -> Local | None:
    """Answer for the reverse zones of private addresses and of our own.

    Part of an address may have addresses below it: that there are none cannot be said of it (RFC 8020).
    """
    labels = wire.labels_of(name)[:-2][::-1]
    whole = 4 if version == 4 else 32
    found = _address(labels[:whole], version)
    if found is None:
        return None
    address, bits = found
    nets = [net for net in (*_PRIVATE, *pools) if net.version == version and net.prefixlen <= bits and address in net]
    if not nets:
        return None
    zone = _zone(name, min(nets, key=_size))
    if address in _LOOPBACK_ADDRESSES and len(labels) == whole:
        return _of((Record(wire.PTR, _LOCALHOST),), kind, zone)
    return Local(wire.NOERROR if len(labels) < whole else wire.NXDOMAIN, zone)


def _address(labels: list[bytes], version: int) -> tuple[IPAddress, int] | None:
    """Return the address that the labels of a reverse name begin, and how many bits they say; None for no address."""
    digits, base, most = (b"0123456789", 10, 3) if version == 4 else (b"0123456789abcdef", 16, 1)
    if not all(1 <= len(label) <= most and set(label) <= set(digits) for label in labels):
        return None
    numbers = [int(label, base) for label in labels]
    if version == 6:
        text = "".join(f"{number:x}" for number in numbers).ljust(32, "0")
        return ip_address(bytes.fromhex(text)), 4 * len(numbers)
    if any(number > 255 or str(number).encode() != label for number, label in zip(numbers, labels, strict=True)):
        return None
    return ip_address(bytes((*numbers, 0, 0, 0, 0)[:4])), 8 * len(numbers)
