"""Special-use domain names: answered locally and never forwarded, unless a rule says so.

RFC 6761 (localhost, invalid, test, private addresses), 6762 (local), 7686 (onion), 8375 (home.arpa), 9476 (alt), 6303
(locally served reverse zones); also names of one label, which have no addresses in the public DNS.
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
"""The suffixes of special-use domain names."""
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
    """A local answer; without records it is a negative one.

    `zone`: the locally served zone, whose SOA record a negative answer has (RFC 6303 §3).
    """

    code: int
    zone: bytes
    records: tuple[Record, ...] = ()


def may_be(name: bytes) -> bool:
    """Return whether a lower-case name may be special-use; a quick check that is False for nearly all names."""
    return name.endswith(SUFFIXES) or name[0] + 2 >= len(name)


def answer(name: bytes, kind: int, pools: Collection[IPNetwork] = ()) -> Local | None:
    """Return the local answer for a lower-case name; None if an upstream has to answer.

    `pools`: the subnets of our networks, whose reverse zones are local even if the addresses are public.
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


def is_private(zone: bytes) -> bool:
    """Return whether a zone is special-use, but may exist in a private network (such as `home.arpa`)."""
    return not is_reserved(zone) and any(below(zone, it) for it in _NOWHERE)


def is_reserved(name: bytes) -> bool:
    """Return whether no container can have this name: it is in `localhost` or a reverse zone."""
    return any(below(name, zone) for zone in (_LOCALHOST, *wire.REVERSE.values()))


_OF_ZONES = frozenset({wire.NS, wire.SOA, 43, 48})
"""Types that validating resolvers request for top-level domains: NS, SOA, DS, DNSKEY."""


def pool_zone(name: bytes, pools: Collection[IPNetwork]) -> bytes:
    """Return the reverse zone of a name, if it is for an address in `pools`; else an empty name."""
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
    """Return the reverse zone of `net` that contains a name; it ends at an octet or nibble boundary."""
    unit = 8 if net.version == 4 else 4
    for _ in range(len(wire.labels_of(name)) - 2 - -(-net.prefixlen // unit)):
        name = wire.parent(name)
    return name


def _of(records: tuple[Record, ...], kind: int, zone: bytes) -> Local:
    return Local(wire.NOERROR, zone, tuple(record for record in records if record.type == kind))


def _reverse(name: bytes, kind: int, version: int, pools: Collection[IPNetwork]) -> Local | None:
    """Answer for the reverse zones of private addresses and of our own subnets.

    The name of a partial address gets NOERROR: names below it may exist (RFC 8020).
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
    """Return the address that the labels of a reverse name stand for, and how many bits they give; None if invalid."""
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
