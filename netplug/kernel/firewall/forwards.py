"""DNAT of published ports (steps `Forwards` and `Forward`): maps for any number of ports.

The table translates packets to addresses of the host, from outside or from the host itself, directly before iptables. A
port that is published only on the loopback address is not reachable from other hosts. Only the first packet of a
connection is translated here (nft(8), chains of type nat).
"""

import sys
from collections.abc import Mapping, Sequence
from errno import ENOENT
from ipaddress import ip_address

from netplug.drivers.steps import Forward, Proto
from netplug.kernel.api import MISSING, Done, Outcome, StepError
from netplug.kernel.firewall.nftables import Tables
from netplug.kernel.netlink import nf_tables as nft
from netplug.kernel.netlink.connection import NetlinkError
from netplug.kernel.netlink.nf_tables import (
    ADDRESS_TYPE,
    L4PROTO,
    BaseChain,
    Set,
    Table,
    dnat,
    equal,
    padded,
    payload,
    verdict,
)

_PRIORITY = -101
"""One before iptables (NF_IP_PRI_NAT_DST)."""
_PORT = payload(2, 2, 2)
_LOCAL = equal(ADDRESS_TYPE, (2).to_bytes(4, sys.byteorder))
_PROTOCOLS = {Proto.TCP: 6, Proto.UDP: 17, Proto.SCTP: 132}


def _table(family: int, kind: str, offset: int, length: int, loopback: bytes) -> Table:
    destination = payload(1, offset, length)
    rules = (
        ("published on one address", _LOCAL + dnat("one", family, length, destination, L4PROTO, _PORT)),
        ("published on all", _LOCAL + dnat("any", family, length, L4PROTO, _PORT)),
    )
    outside = ("loopback address on the wire", loopback + verdict(nft.RETURN))
    # Nothing that leaves the loopback link comes back to ::1: see `relays`.
    relayed = ("loopback address is relayed", loopback + verdict(nft.RETURN))
    service, target = ("inet_proto", "inet_service"), (kind, "inet_service")
    return Table(
        family,
        "netplug",
        (Set("one", (kind, *service), target), Set("any", service, target)),
        (
            BaseChain("prerouting", "nat", nft.PREROUTING, _PRIORITY, (outside, *rules)),
            BaseChain("output", "nat", nft.OUTPUT, _PRIORITY, rules if family == nft.IPV4 else (relayed, *rules)),
        ),
    )


TABLES = {
    4: _table(nft.IPV4, "ipv4_addr", 16, 4, equal(payload(1, 16, 1), b"\x7f")),
    6: _table(nft.IPV6, "ipv6_addr", 24, 16, equal(payload(1, 24, 16), bytes(15) + b"\x01")),
}


def entries(step: Forward) -> dict[str, dict[bytes, bytes]]:
    """Return the elements that lead ports, by map."""
    proto = bytes((_PROTOCOLS[step.proto],))
    host, address = step.host.packed if step.host else b"", step.address.packed
    found = {}
    for number in range(step.count):
        service = (proto, (step.port + number).to_bytes(2, "big"))
        key = padded(host, *service) if step.host else padded(*service)
        found[key] = padded(address, (step.target + number).to_bytes(2, "big"))
    return {"one" if step.host else "any": found}


def ensure(tables: Tables, steps: Sequence[Forward]) -> list[Done]:
    """Lead ports, of one IP version; return what was found of each step."""
    wanted: dict[str, dict[bytes, bytes]] = {}
    of = [next(iter(entries(step).items())) for step in steps]
    for name, elements in of:
        wanted.setdefault(name, {}).update(elements)
    try:
        before = tables.put(TABLES[steps[0].family], wanted)
    except NetlinkError as error:
        if error.errno == ENOENT:
            words = f"the table of IPv{steps[0].family} published ports is missing"
            raise StepError("not_found", steps[0], words) from error
        raise
    return [_done(steps[0].family, name, elements, before.get(name, {})) for name, elements in of]


def _done(family: int, name: str, wanted: Mapping[bytes, bytes], before: Mapping[bytes, bytes]) -> Done:
    found = {key: before[key] for key in wanted if key in before}
    if not found:
        return Done(Outcome.CREATED)
    if found == wanted:
        return Done(Outcome.EQUAL)
    return Done(Outcome.ADJUSTED, tuple(forwards(family, {name: found})))


def remove(tables: Tables, steps: Sequence[Forward]) -> None:
    """Lead ports nowhere, of one IP version; absent is success."""
    unwanted: dict[str, dict[bytes, bytes]] = {}
    for step in steps:
        for name, elements in entries(step).items():
            unwanted.setdefault(name, {}).update(elements)
    tables.remove(TABLES[steps[0].family], unwanted)


def drift(step: Forward, content: Mapping[str, Mapping[bytes, bytes]]) -> str:
    """Say what is wrong with ports; empty when nothing."""
    ((name, wanted),) = entries(step).items()
    have = content.get(name, {})
    for key, target in wanted.items():
        found = have.get(key)
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
    for name, elements in content.items():
        for key, target in elements.items():
            host, service = (ip_address(key[:length]), key[length:]) if name == "one" else (None, key)
            proto, port = protocols.get(service[0]), int.from_bytes(service[4:6], "big")
            address, goal = ip_address(target[:length]), int.from_bytes(target[length : length + 2], "big")
            if proto:
                found.append(Forward(proto, host, port, address, goal))
    return found
