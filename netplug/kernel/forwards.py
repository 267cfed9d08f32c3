"""Ports of the host lead to containers (steps `Forwards` and `Forward`): a map, whatever the number of ports.

The table translates the destination of what comes to an address of the host, from outside or from the host itself,
directly before the chains of iptables do. A stranger on the wire must not reach what is published on the loopback
address alone. Of a connection only the first packet comes here (nft(8), chains of type nat).

A question for the name server goes to another port of the same address and needs no connection: the port is changed
there and back in each datagram by itself, also where the kernel says that nobody listens, and none of it is tracked.
Questions would fill the table of connections, an entry each for half a minute, and two that leave a socket at once, as
those for A and AAAA do, would race for theirs. A datagram without a checksum, for which nft(8) has no way, is tracked.
"""

import sys
from collections.abc import Mapping
from errno import ENOENT
from ipaddress import ip_address
from typing import TypeAlias

from netplug.drivers.steps import RESOLVER_PORT, Forward, Proto

from . import nft_wire as nft
from .api import MISSING, Outcome, StepError
from .netlink import NetlinkError
from .nft_wire import (
    ADDRESS_TYPE,
    L4PROTO,
    BaseChain,
    Field,
    Set,
    Table,
    equal,
    found_in,
    lead,
    padded,
    payload,
    rewrite,
    untracked,
    verdict,
)
from .nftables import Tables

_PRIORITY = -101
"""One before iptables (NF_IP_PRI_NAT_DST)."""
_RAW = -300
"""Before connection tracking (linux/netfilter_ipv4.h, NF_IP_PRI_RAW)."""
_UDP, _ICMP = b"\x11", {nft.IPV4: b"\x01", nft.IPV6: b"\x3a"}
_SOURCE_PORT, _PORT, _CHECKSUM = payload(2, 0, 2), payload(2, 2, 2), payload(2, 6, 2)
_ASKED, _ANSWERED = (53).to_bytes(2, "big"), RESOLVER_PORT.to_bytes(2, "big")
_LOCAL = equal(ADDRESS_TYPE, (2).to_bytes(4, sys.byteorder))
_PROTOCOLS = {Proto.TCP: 6, Proto.UDP: 17, Proto.SCTP: 132}


def _table(family: int, kind: str, offset: int, length: int, loopback: bytes) -> Table:
    destination = payload(1, offset, length)
    rules = (
        ("published on one address", _LOCAL + lead("one", family, length, destination, L4PROTO, _PORT)),
        ("published on all", _LOCAL + lead("any", family, length, L4PROTO, _PORT)),
    )
    outside = ("loopback address on the wire", loopback + verdict(nft.RETURN))
    # Nothing that leaves the loopback link comes back to ::1: see `relays`.
    relayed = ("loopback address is relayed", loopback + verdict(nft.RETURN))
    service, target = ("inet_proto", "inet_service"), (kind, "inet_service")
    there, back = _datagrams(family, destination, payload(1, offset - length, length))
    return Table(
        family,
        "netplug",
        (
            *(Set("one", (kind, *service), target), Set("any", service, target)),
            *(Set(name, target, ("inet_service",)) for name in ("there", "back")),
        ),
        (
            BaseChain("datagrams", "filter", nft.PREROUTING, _RAW, (there,)),
            BaseChain("answers", "filter", nft.OUTPUT, _RAW, back),
            BaseChain("prerouting", "nat", nft.PREROUTING, _PRIORITY, (outside, *rules)),
            BaseChain("output", "nat", nft.OUTPUT, _PRIORITY, rules if family == nft.IPV4 else (relayed, *rules)),
        ),
    )


Rule: TypeAlias = tuple[str, bytes]


def _datagrams(family: int, destination: Field, source: Field) -> tuple[Rule, tuple[Rule, Rule]]:
    """Return the rule that changes the port of a datagram, and those that change it back, also where ICMP quotes it."""
    udp, icmp = equal(L4PROTO, _UDP), equal(L4PROTO, _ICMP[family])
    # All that the host receives or sends comes by: the ports are compared first, which costs next to nothing.
    there = udp + equal(_PORT, _ASKED) + equal(_CHECKSUM, bytes(2), inverted=True)
    there += found_in("there", destination, _PORT) + rewrite(2, 2, 6) + untracked()
    back = (
        udp + equal(_SOURCE_PORT, _ANSWERED) + found_in("back", source, _SOURCE_PORT) + rewrite(0, 2, 6) + untracked()
    )
    # Destination unreachable quotes the datagram from its IP header on, behind eight octets (RFC 792, RFC 4443 3.1).
    v4 = family == nft.IPV4
    head, start, protocol = (20, b"\x45", 9) if v4 else (40, b"", 6)
    kind, quoted = (b"\x03", payload(2, 8 + 16, 4)) if v4 else (b"\x01", payload(2, 8 + 24, 16))
    port = 8 + head + 2
    error = icmp + equal(payload(2, 0, 1), kind) + (equal(payload(2, 8, 1), start) if start else b"")
    error += equal(payload(2, 8 + protocol, 1), _UDP)
    error += found_in("back", quoted, payload(2, port, 2)) + rewrite(port, 2, 2)
    return (
        ("datagram for another port here", there),
        (("answer from another port", back), ("error about another port", error)),
    )


TABLES = {
    4: _table(nft.IPV4, "ipv4_addr", 16, 4, equal(payload(1, 16, 1), b"\x7f")),
    6: _table(nft.IPV6, "ipv6_addr", 24, 16, equal(payload(1, 24, 16), bytes(15) + b"\x01")),
}


def entries(step: Forward) -> dict[str, dict[bytes, bytes]]:
    """Return the elements that lead a port, by map."""
    port, goal, address = step.port.to_bytes(2, "big"), step.target.to_bytes(2, "big"), step.address.packed
    service = (bytes((_PROTOCOLS[step.proto],)), port)
    target = padded(address, goal)
    if step.host is None:
        return {"any": {padded(*service): target}}
    found = {"one": {padded(step.host.packed, *service): target}}
    if step.proto is Proto.UDP and step.host == step.address and (port, goal) == (_ASKED, _ANSWERED):
        found |= {"there": {padded(address, port): goal}, "back": {target: port}}
    return found


def ensure(tables: Tables, step: Forward) -> Outcome:
    """Lead a port."""
    wanted = entries(step)
    try:
        return tables.ensure(TABLES[step.family], wanted, lambda name, key: key in wanted.get(name, ()))
    except NetlinkError as error:
        if error.errno == ENOENT:
            raise StepError("not_found", step, f"the table of IPv{step.family} ports is missing") from error
        raise


def drift(step: Forward, content: Mapping[str, Mapping[bytes, bytes]]) -> str:
    """Say what is wrong with a port; empty when nothing."""
    for name, wanted in entries(step).items():
        for key, target in wanted.items():
            found = content.get(name, {}).get(key)
            if found is None:
                return MISSING
            if found != target:
                return f"leads to {found.hex()}, not {target.hex()}"
    return ""


def forwards(family: int, content: Mapping[str, Mapping[bytes, bytes]]) -> list[Forward]:
    """Return the ports that the maps lead."""
    length = 4 if family == 4 else 16
    protocols = {number: proto for proto, number in _PROTOCOLS.items()}
    found = []
    for name in ("one", "any"):  # the others go with theirs
        for key, target in content.get(name, {}).items():
            host, service = (ip_address(key[:length]), key[length:]) if name == "one" else (None, key)
            proto, port = protocols.get(service[0]), int.from_bytes(service[4:6], "big")
            address, goal = ip_address(target[:length]), int.from_bytes(target[length : length + 2], "big")
            if proto:
                found.append(Forward(proto, host, port, address, goal))
    return found
