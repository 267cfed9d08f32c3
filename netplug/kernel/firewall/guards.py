"""Anti-spoofing: bridge ports accept only frames from their endpoint's addresses (steps `Guards` and `Guard`).

The table sees each frame as it comes by a port (bridge family, prerouting), before the bridge learns its source. A
frame from a guarded port passes if its source MAC is the port's (where one is pinned to it), and

- ARP (RFC 826): so is the sender's hardware address, and the sender's protocol address is the port's, or link-local
  (RFC 3927), or none, as in a probe, which is for such an address (RFC 5227: a probe for another's denies it to him);
- IPv4: so is the source address, or it is link-local, or the frame asks for an address (RFC 2131);
- IPv6: so is the source address, or it is none (RFC 4862), or link-local and nobody else's by right of a MAC
  (RFC 4291, appendix A). Of a neighbour advertisement the target as well (RFC 4861), and of a solicitation from no
  address, which denies it to whoever else wants it (RFC 4862 5.4). Neighbour discovery names no MAC but the port's;
- neither says what servers and routers say: router advertisements and redirects, answers of DHCP, queries of IGMP and
  MLD, by which a bridge would lead all groups to the port;
- anything else but nested VLAN tags, inside which nobody has looked.

The number of rules does not depend on the number of ports: each rule is a lookup.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from errno import ENOENT
from ipaddress import IPv6Address, ip_address
from typing import Self

from netplug.drivers.naming import PORTS, eui64
from netplug.drivers.steps import Guard, IPAddress
from netplug.kernel.api import MISSING, Done, Outcome, StepError
from netplug.kernel.firewall.nftables import Tables
from netplug.kernel.netlink import nf_tables as nft
from netplug.kernel.netlink.connection import NetlinkError
from netplug.kernel.netlink.nf_tables import BaseChain, Set, Table, equal, member, padded, payload, verdict
from netplug.kernel.netlink.rtnl import packed_mac

_PRIORITY = -350
"""Before what others do to bridged frames; NF_BR_PRI_NAT_DST_BRIDGED is -300."""

_SOURCE_MAC = payload(0, 6, 6)
_ARP_KIND, _ARP_MAC, _ARP_IP, _ARP_TARGET = (
    payload(1, at, length) for at, length in ((0, 6), (8, 6), (14, 4), (24, 4))
)
_IP4_SOURCE, _IP4_DESTINATION = payload(1, 12, 4), payload(1, 16, 4)
_IP6_LENGTH, _IP6_SOURCE = payload(1, 4, 2), payload(1, 8, 16)
_PORTS = payload(2, 0, 4)
_KIND = payload(2, 0, 1)
"""Of ICMPv6 and IGMP."""
_TO_PORT = payload(2, 2, 2)
_ND_TARGET = payload(2, 8, 16)

_ARP = equal(nft.PROTOCOL, b"\x08\x06")
_IP4 = equal(nft.PROTOCOL, b"\x08\x00")
_IP6 = equal(nft.PROTOCOL, b"\x86\xdd")
_ICMP6 = _IP6 + equal(nft.L4PROTO, b"\x3a")
_ARP_PROBE = _ARP + equal(_ARP_IP, bytes(4))
_TCP, _UDP, _PIM = b"\x06", b"\x11", b"\x67"
_NONCE = b"\x0e"
_LINK_LOCAL4 = (b"\xa9\xfe\0\0", b"\xff\xff\0\0")
_LINK_LOCAL6 = (b"\xfe\x80" + bytes(14), b"\xff\xc0" + bytes(14))
_ETHERNET_IP4 = b"\0\x01\x08\0\x06\x04"
_PINNED = member("pinned", nft.IIFNAME)
_ACCEPT, _DROP, _RETURN = map(verdict, (nft.ACCEPT, nft.DROP, nft.RETURN))


def _icmp6(kind: int) -> bytes:
    return _ICMP6 + equal(_KIND, bytes((kind,)))


def _of_another(words: str, kind: bytes) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    """Drop neighbour discovery about an address that is not the port's; link-local ones may be of a user's choice."""
    other = kind + member("v6", nft.IIFNAME, _ND_TARGET, inverted=True)
    return (
        (f"{words} of another", other + equal(_ND_TARGET, *_LINK_LOCAL6, inverted=True) + _DROP),
        (f"{words} of another's link-local address", other + member("mine", _ND_TARGET) + _DROP),
    )


def _named(words: str, kind: int, length: int) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    """Drop neighbour discovery that names another MAC than the port's (RFC 4861 4.6.1).

    `length`: of the message without options. There may be one: an own MAC, or the nonce of RFC 7527. Behind others one
    might hide.
    """
    without, one = (it.to_bytes(2, "big") for it in (length, length + 8))
    more = equal(_IP6_LENGTH, without, inverted=True) + equal(_IP6_LENGTH, one, inverted=True)
    mac = equal(payload(2, length, 1), _NONCE, inverted=True)
    mac += member("macs", nft.IIFNAME, payload(2, length + 2, 6), inverted=True)
    return (
        (f"{words} with more than its MAC", _icmp6(kind) + _PINNED + more + _DROP),
        (f"{words} with another's MAC", _icmp6(kind) + _PINNED + equal(_IP6_LENGTH, one) + mac + _DROP),
    )


_OTHER4 = (
    ("for a DHCP client", equal(nft.L4PROTO, _UDP) + equal(_TO_PORT, b"\0\x44") + _DROP),
    ("IGMP query", equal(nft.L4PROTO, b"\2") + equal(_KIND, b"\x11") + _DROP),
    ("multicast router", equal(nft.L4PROTO, b"\2") + equal(_KIND, b"\x30") + _DROP),
    ("multicast routing", equal(nft.L4PROTO, _PIM) + _DROP),
)
"""IPv4 that is not TCP: what a server or router says (RFC 2131, 3376, 4286, 7761), which no container is unasked."""
_OTHER6 = (
    ("for a DHCP client", equal(nft.L4PROTO, _UDP) + equal(_TO_PORT, b"\x02\x22") + _DROP),
    ("multicast routing", equal(nft.L4PROTO, _PIM) + _DROP),
    ("not ICMPv6", equal(nft.L4PROTO, b"\x3a", inverted=True) + _RETURN),
    ("router advertisement", _icmp6(134) + _DROP),
    ("redirect", _icmp6(137) + _DROP),
    ("MLD query", _icmp6(130) + _DROP),
    ("multicast router", _icmp6(151) + _DROP),
    *_of_another("neighbour advertisement", _icmp6(136)),
    *_of_another("duplicate address detection", _icmp6(135) + equal(_IP6_SOURCE, bytes(16))),
    *_named("router solicitation", 133, 8),
    *_named("neighbour solicitation", 135, 24),
    *_named("neighbour advertisement", 136, 24),
)
"""IPv6 that is not TCP (RFC 8415, 4861, 2710, 3810, 4286)."""
_RULES = (
    ("not a guarded port", member("ports", nft.IIFNAME, inverted=True) + _RETURN),
    ("not its own MAC", _PINNED + member("macs", nft.IIFNAME, _SOURCE_MAC, inverted=True) + _DROP),
    ("IPv4, not TCP", _IP4 + equal(nft.L4PROTO, _TCP, inverted=True) + nft.jump("other4")),
    ("IPv6, not TCP", _IP6 + equal(nft.L4PROTO, _TCP, inverted=True) + nft.jump("other6")),
    ("IPv4 of its own", _IP4 + member("v4", nft.IIFNAME, _IP4_SOURCE) + _ACCEPT),
    ("IPv4 link-local", _IP4 + equal(_IP4_SOURCE, *_LINK_LOCAL4) + _ACCEPT),
    (
        "asks for an IPv4 address",
        _IP4
        + equal(_IP4_SOURCE, bytes(4))
        + equal(_IP4_DESTINATION, b"\xff" * 4)
        + equal(nft.L4PROTO, _UDP)
        + equal(_PORTS, b"\0\x44\0\x43")
        + _ACCEPT,
    ),
    ("IPv4 of another", _IP4 + _DROP),
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
    ("ARP probe for its own", _ARP_PROBE + member("v4", nft.IIFNAME, _ARP_TARGET) + _ACCEPT),
    ("ARP probe, link-local", _ARP_PROBE + equal(_ARP_TARGET, *_LINK_LOCAL4) + _ACCEPT),
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
        BaseChain("other4", "", 0, 0, _OTHER4),
        BaseChain("other6", "", 0, 0, _OTHER6),
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


def ensure(tables: Tables, step: Guard) -> Done:
    """Apply a guard."""
    wanted, port = entries(step), nft.ifname(step.link)
    try:
        found = tables.ensure(TABLE, wanted, lambda name, key: key[:16] == port or key in wanted.get(name, ()))
    except NetlinkError as error:
        if error.errno == ENOENT:
            raise StepError("not_found", step, "the anti-spoofing table is missing") from error
        raise
    outcome, present = found
    if outcome is not Outcome.ADJUSTED:
        return Done(outcome)
    before = Found.of({**{item.name: {} for item in TABLE.sets}, **present})
    return Done(outcome, tuple(it for it in before.guards() if it.link == step.link))


def _local(step: Guard) -> IPv6Address | None:
    return eui64(step.mac) if step.mac else None


def _name(port: bytes) -> str:
    return port.rstrip(b"\0").decode(errors="replace")
