"""No port of a bridge sends with an address or MAC that is not its endpoint's (steps `Guards` and `Guard`).

The table sees each frame as it comes by a port (bridge family, prerouting), before the bridge learns its source. A
frame from a guarded port passes if its source MAC is the port's (where one is pinned to it), and

- ARP (RFC 826): so is the sender's hardware address, and the sender's protocol address is the port's, none (a probe,
  RFC 5227), or link-local (RFC 3927);
- IPv4: so is the source address, or it is link-local, or the frame asks for an address (RFC 2131);
- IPv6: so is the source address, or it is none (RFC 4862), or link-local and nobody else's by right of a MAC
  (RFC 4291, appendix A); of a neighbour advertisement the target as well (RFC 4861). Router advertisements and
  redirects do not pass;
- anything else but nested VLAN tags, inside which nobody has looked.

Every frame meets the same handful of rules, each a lookup, however many ports there are.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from errno import ENOENT
from ipaddress import IPv6Address, ip_address
from typing import Self

from netplug.drivers.naming import PORTS, eui64
from netplug.drivers.steps import Guard, IPAddress

from . import nft_wire as nft
from .api import MISSING, Outcome, StepError
from .netlink import NetlinkError
from .nft_wire import BaseChain, Set, Table, equal, member, padded, payload, verdict
from .nftables import Tables
from .rtnl import packed_mac

_PRIORITY = -350
"""Before what others do to bridged frames; NF_BR_PRI_NAT_DST_BRIDGED is -300."""

_SOURCE_MAC = payload(0, 6, 6)
_ARP_KIND, _ARP_MAC, _ARP_IP = payload(1, 0, 6), payload(1, 8, 6), payload(1, 14, 4)
_IP4_SOURCE, _IP4_DESTINATION = payload(1, 12, 4), payload(1, 16, 4)
_IP6_SOURCE = payload(1, 8, 16)
_PORTS = payload(2, 0, 4)
_ICMP_TYPE, _ND_TARGET = payload(2, 0, 1), payload(2, 8, 16)

_ARP = equal(nft.PROTOCOL, b"\x08\x06")
_IP4 = equal(nft.PROTOCOL, b"\x08\x00")
_IP6 = equal(nft.PROTOCOL, b"\x86\xdd")
_ICMP6 = _IP6 + equal(nft.L4PROTO, b"\x3a")
_LINK_LOCAL4 = (b"\xa9\xfe\0\0", b"\xff\xff\0\0")
_LINK_LOCAL6 = (b"\xfe\x80" + bytes(14), b"\xff\xc0" + bytes(14))
_ETHERNET_IP4 = b"\0\x01\x08\0\x06\x04"
_PINNED = member("pinned", nft.IIFNAME)
_ACCEPT, _DROP, _RETURN = map(verdict, (nft.ACCEPT, nft.DROP, nft.RETURN))


def _icmp6(kind: int) -> bytes:
    return _ICMP6 + equal(_ICMP_TYPE, bytes((kind,)))


_RULES = (
    ("not a guarded port", member("ports", nft.IIFNAME, inverted=True) + _RETURN),
    ("not its own MAC", _PINNED + member("macs", nft.IIFNAME, _SOURCE_MAC, inverted=True) + _DROP),
    ("IPv4 of its own", _IP4 + member("v4", nft.IIFNAME, _IP4_SOURCE) + _ACCEPT),
    ("IPv4 link-local", _IP4 + equal(_IP4_SOURCE, *_LINK_LOCAL4) + _ACCEPT),
    (
        "asks for an IPv4 address",
        _IP4
        + equal(_IP4_SOURCE, bytes(4))
        + equal(_IP4_DESTINATION, b"\xff" * 4)
        + equal(nft.L4PROTO, b"\x11")
        + equal(_PORTS, b"\0\x44\0\x43")
        + _ACCEPT,
    ),
    ("IPv4 of another", _IP4 + _DROP),
    ("router advertisement", _icmp6(134) + _DROP),
    ("redirect", _icmp6(137) + _DROP),
    (
        "neighbour advertisement of another",
        _icmp6(136)
        + member("v6", nft.IIFNAME, _ND_TARGET, inverted=True)
        + equal(_ND_TARGET, *_LINK_LOCAL6, inverted=True)
        + _DROP,
    ),
    (
        "neighbour advertisement of another's link-local address",
        _icmp6(136) + member("v6", nft.IIFNAME, _ND_TARGET, inverted=True) + member("mine", _ND_TARGET) + _DROP,
    ),
    ("IPv6 of its own", _IP6 + member("v6", nft.IIFNAME, _IP6_SOURCE) + _ACCEPT),
    (
        "IPv6 link-local of nobody else",
        _IP6 + equal(_IP6_SOURCE, *_LINK_LOCAL6) + member("mine", _IP6_SOURCE, inverted=True) + _ACCEPT,
    ),
    ("has no IPv6 address yet", _ICMP6 + equal(_IP6_SOURCE, bytes(16)) + _ACCEPT),
    ("IPv6 of another", _IP6 + _DROP),
    ("ARP of another kind", _ARP + equal(_ARP_KIND, _ETHERNET_IP4, inverted=True) + _DROP),
    ("ARP not its own MAC", _ARP + _PINNED + member("macs", nft.IIFNAME, _ARP_MAC, inverted=True) + _DROP),
    ("ARP of its own", _ARP + member("v4", nft.IIFNAME, _ARP_IP) + _ACCEPT),
    ("ARP probe", _ARP + equal(_ARP_IP, bytes(4)) + _ACCEPT),
    ("ARP link-local", _ARP + equal(_ARP_IP, *_LINK_LOCAL4) + _ACCEPT),
    ("ARP of another", _ARP + _DROP),
    ("nested VLAN tag", equal(nft.PROTOCOL, b"\x81\0") + _DROP),
    ("nested service VLAN tag", equal(nft.PROTOCOL, b"\x88\xa8") + _DROP),
)

_TO_THE_HOST = (
    ("not by a port of ours", equal(nft.IIFNAME, PORTS.encode(), inverted=True) + _RETURN),
    ("router advertisement", _icmp6(134) + _DROP),
    ("redirect", _icmp6(137) + _DROP),
)
"""No container is the host's router, on a port that is not guarded either."""

TABLE = Table(
    nft.BRIDGE,
    "netplug",
    (
        Set("ports", ("ifname",)),
        Set("pinned", ("ifname",)),
        Set("macs", ("ifname", "ether_addr")),
        Set("v4", ("ifname", "ipv4_addr")),
        Set("v6", ("ifname", "ipv6_addr")),
        Set("mine", ("ipv6_addr",)),
    ),
    (
        BaseChain("prerouting", "filter", nft.PREROUTING, _PRIORITY, _RULES),
        BaseChain("input", "filter", nft.INPUT, _PRIORITY, _TO_THE_HOST),
    ),
)


@dataclass(frozen=True, slots=True)
class Found:
    """What the sets hold: the addresses of each port, link-local ones too, by port and MAC."""

    ports: Mapping[str, Guard]
    mine: Collection[bytes]

    @classmethod
    def of(cls, content: Mapping[str, Mapping[bytes, bytes]]) -> Self:
        """Put the elements of the sets together."""
        macs = dict.fromkeys(content["pinned"], "none")
        macs |= {key[:16]: key[16:22].hex(":") for key in content["macs"] if key[:16] in macs}
        addresses: dict[bytes, list[IPAddress]] = {}
        for key in (*content["v4"], *content["v6"]):
            addresses.setdefault(key[:16], []).append(ip_address(key[16:]))
        ports = content["ports"].keys() | macs.keys() | addresses.keys()
        return cls(
            {_name(port): Guard(_name(port), macs.get(port, ""), tuple(addresses.get(port, ()))) for port in ports},
            content["mine"],
        )

    def guards(self) -> list[Guard]:
        """Return the guards that are there."""
        return [
            replace(it, addresses=tuple(ip for ip in it.addresses if ip != _local(it))) for it in self.ports.values()
        ]

    def drift(self, step: Guard) -> str:
        """Say what is wrong with a guard; empty when nothing."""
        found, local = self.ports.get(step.link), _local(step)
        if found is None:
            return MISSING
        addresses = {*step.addresses, *([local] if local else [])}
        same = found.mac == step.mac and set(found.addresses) == addresses
        same &= local is None or local.packed in self.mine
        return "" if same else f"lets pass {found.mac} {', '.join(map(str, found.addresses))}"


def entries(step: Guard) -> dict[str, dict[bytes, bytes]]:
    """Return the elements that a guard consists of, by set."""
    port, local = nft.ifname(step.link), _local(step)
    addresses = (*step.addresses, *([local] if local else []))
    found = {
        "ports": [port],
        "pinned": [port] if step.mac else [],
        "macs": [padded(port, packed_mac(step.mac))] if step.mac else [],
        "v4": [padded(port, it.packed) for it in addresses if it.version == 4],
        "v6": [padded(port, it.packed) for it in addresses if it.version == 6],
        "mine": [local.packed] if local else [],
    }
    return {name: dict.fromkeys(keys, b"") for name, keys in found.items() if keys}


def ensure(tables: Tables, step: Guard) -> Outcome:
    """Bring a guard about."""
    wanted, port = entries(step), nft.ifname(step.link)
    try:
        return tables.ensure(TABLE, wanted, lambda name, key: key[:16] == port or key in wanted.get(name, ()))
    except NetlinkError as error:
        if error.errno == ENOENT:
            raise StepError("not_found", step, "the table of guards is missing") from error
        raise


def _local(step: Guard) -> IPv6Address | None:
    return eui64(step.mac) if step.mac else None


def _name(port: bytes) -> str:
    return port.rstrip(b"\0").decode(errors="replace")
