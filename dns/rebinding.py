"""DNS rebinding: a public name whose answer has an address of a private network.

A web site can so have a browser, or a program that fetches URLs for others, talk to a host that the site itself does
not reach. As `stop-dns-rebind` of dnsmasq: such an answer of an upstream is not passed on.
"""

from collections.abc import Callable, Collection, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from struct import Struct

from . import wire
from .cache import Answer

SVCB, HTTPS = 64, 65
_HINTS = {4: 4, 6: 16}
"""Octets of an address in a parameter of SVCB and HTTPS, by its key: ipv4hint, ipv6hint (RFC 9460 §14.3.2)."""
_RECORD = Struct("!HHIH")
_PAIR = Struct("!HH")
_PRIVATE4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # Linux connects to 0.0.0.0 as to the loopback address
        "10.0.0.0/8",
        "100.64.0.0/10",  # RFC 6598
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "255.255.255.255/32",
    )
)
_PRIVATE6 = tuple(IPv6Network(text) for text in ("::/127", "fc00::/7", "fe80::/10", "fec0::/10"))
_EMBEDDING = tuple(IPv6Network(text) for text in ("::/96", "::ffff:0:0/96", "64:ff9b::/96"))
"""Prefixes before an IPv4 address: RFC 4291 §2.5.5, RFC 6052 §2.1."""


class Guard:
    """Finds such answers.

    Attributes:
        on: whether they are refused.
        subnets: more private subnets: those of our networks.
        tell: called with the name and the address of each answer that is refused.
    """

    __slots__ = ("on", "subnets", "tell")

    def __init__(self, tell: Callable[[bytes, wire.IPAddress], None]) -> None:
        self.on = False
        self.subnets: Collection[wire.IPNetwork] = ()
        self.tell = tell

    def refuses(self, name: bytes, answer: Answer) -> bool:
        """Return whether an answer must not be passed on, and tell of it."""
        for address in _addresses(answer):
            if self._private(address):
                self.tell(name, address)
                return True
        return False

    def _private(self, address: wire.IPAddress) -> bool:
        if any(address in net for net in self.subnets if net.version == address.version):
            return True
        if isinstance(address, IPv4Address):
            return any(address in net for net in _PRIVATE4)
        if any(address in net for net in _PRIVATE6):
            return True
        return any(address in net for net in _EMBEDDING) and self._private(IPv4Address(address.packed[12:]))


def _addresses(answer: Answer) -> Iterator[wire.IPAddress]:
    """Yield the addresses in the answer section. `cache.read` has checked its names and the size of addresses."""
    body, at = answer.body, 0
    for _ in range(int.from_bytes(answer.counts[:2])):
        while 0 < body[at] < 0xC0:
            at += body[at] + 1
        at += 2 if body[at] else 1
        kind, _, _, length = _RECORD.unpack_from(body, at)
        at += _RECORD.size + length
        data = body[at - length : at]
        if kind == wire.A:
            yield IPv4Address(data)
        elif kind == wire.AAAA:
            yield IPv6Address(data)
        elif kind in {SVCB, HTTPS}:
            yield from _hints(data)


def _hints(data: bytes) -> Iterator[wire.IPAddress]:
    """Yield the addresses in RDATA of SVCB and HTTPS, as far as it is well-formed (RFC 9460 §2.2)."""
    at = 2
    while at < len(data) and 0 < data[at] <= wire.LONGEST_LABEL:
        at += data[at] + 1
    at += 1
    while at + _PAIR.size <= len(data):
        key, length = _PAIR.unpack_from(data, at)
        at += _PAIR.size
        size, value = _HINTS.get(key, 0), data[at : at + length]
        at += length
        if size:
            whole = range(0, len(value) - size + 1, size)
            yield from (IPv4Address(v) if size == 4 else IPv6Address(v) for v in (value[i : i + size] for i in whole))
