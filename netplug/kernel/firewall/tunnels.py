"""VXLAN frames are taken from peers alone (steps `Tunnels`, `Tunnel` and `Vtep`).

VXLAN itself believes anybody (RFC 7348 7): whoever can send to the UDP port could put frames into an overlay. The table
looks at the outer source address and at the VNI together, so a host that is a peer in one overlay cannot send into
another, and VXLAN links of others on the same port are let be. And it looks at the link: a frame comes by the one that
leads to its sender (RFC 3704 2.2, strict), so that no container of whatever engine sends as a host. Of several next
hops of equal cost each will do in IPv4. In IPv6 the kernel tells of one alone; so there only links are refused that may
have containers or virtual machines behind them.

Tunnelled frames are left out of connection tracking: a flow in an overlay would have an entry of the host's table for
itself and one for each way of its tunnel, which has other ports each way and so never looks answered.

What is taken is decided in front of the socket (hook input), where IPv4 fragments are put together already. IPv6
fragments are not, so a first one that ends before the VXLAN header is dropped; no honest sender makes such (RFC 8200
4.5, RFC 7348 4.3).

A VNI is three bytes, and nft(8) has no type of that size: it is kept, and shown, as the first three of an address.
"""

from collections.abc import Mapping
from errno import ENOENT
from ipaddress import ip_address

from netplug.drivers.tunnel import Tunnel, Vtep
from netplug.kernel.api import MISSING, Outcome, StepError
from netplug.kernel.firewall.nftables import Tables
from netplug.kernel.netlink import nf_tables as nft
from netplug.kernel.netlink.connection import NetlinkError
from netplug.kernel.netlink.nf_tables import (
    FIRST_FRAGMENT,
    IIFKIND,
    L4PROTO,
    REVERSE_PATH,
    BaseChain,
    Set,
    Table,
    equal,
    member,
    padded,
    payload,
    verdict,
)

_PRIORITY = -10
"""Before the filters of others."""
_RAW = -300
"""Before connection tracking (linux/netfilter_ipv4.h, NF_IP_PRI_RAW)."""
_UDP = b"\x11"
_PORT, _VNI = payload(2, 2, 2), payload(2, 12, 3)
_INNER = ("bridge", "veth", "tun")
"""Kinds of links behind which there may be containers or virtual machines."""
_LENGTHS = {4: 4, 6: 16}


def _table(family: int, kind: str, offset: int, length: int) -> Table:
    source = payload(1, offset, length)
    truncated = equal(FIRST_FRAGMENT, bytes(2), b"\xff\xf8") + verdict(nft.DROP)
    peer = equal(L4PROTO, _UDP) + member("vteps", source, _PORT, _VNI)
    ours = equal(L4PROTO, _UDP) + member("vnis", _PORT, _VNI)
    way, strays = equal(REVERSE_PATH, bytes(4), inverted=True), []
    if family == nft.IPV6:
        strays = [
            *(
                (f"of a peer, by a {kind}", peer + equal(IIFKIND, nft.ifname(kind)) + verdict(nft.DROP))
                for kind in _INNER
            ),
            ("of a peer, by one of several ways", peer + verdict(nft.RETURN)),
        ]
    # What comes most meets one lookup of a set and one of a route.
    rules = (
        ("of a peer, by the way to it", peer + way + verdict(nft.RETURN)),
        *strays,
        ("not UDP", equal(L4PROTO, _UDP, inverted=True) + verdict(nft.RETURN)),
        ("not a VNI of ours", member("vnis", _PORT, _VNI, inverted=True) + verdict(nft.RETURN)),
        *((("fragment without VXLAN header", truncated),) if family == nft.IPV6 else ()),
        ("of a stranger, or by another way", member("vnis", _PORT, _VNI) + verdict(nft.DROP)),
    )
    tracking = (("of a VNI of ours", ours + nft.notrack()),)
    vni = ("inet_service", "ipv4_addr")
    return Table(
        family,
        "netplug-vxlan",
        (Set("vnis", vni), Set("vteps", (kind, *vni))),
        (
            BaseChain("input", "filter", nft.INPUT, _PRIORITY, rules),
            BaseChain("prerouting", "filter", nft.PREROUTING, _RAW, tracking),
            BaseChain("output", "filter", nft.OUTPUT, _RAW, tracking),
        ),
    )


TABLES = {4: _table(nft.IPV4, "ipv4_addr", 12, 4), 6: _table(nft.IPV6, "ipv6_addr", 8, 16)}

Content = Mapping[str, Mapping[bytes, bytes]]


def entries(step: Tunnel | Vtep) -> dict[str, dict[bytes, bytes]]:
    """Return the element that a step consists of, by set."""
    service = (step.port.to_bytes(2, "big"), step.vni.to_bytes(3, "big"))
    if isinstance(step, Tunnel):
        return {"vnis": {padded(*service): b""}}
    return {"vteps": {padded(step.address.packed, *service): b""}}


def ensure(tables: Tables, step: Tunnel | Vtep) -> Outcome:
    """Bring an element about."""
    wanted = entries(step)
    try:
        return tables.ensure(TABLES[step.family], wanted, lambda name, key: key in wanted.get(name, ()))[0]
    except NetlinkError as error:
        if error.errno == ENOENT:
            raise StepError("not_found", step, f"the table of IPv{step.family} tunnels is missing") from error
        raise


def drift(step: Tunnel | Vtep, content: Content) -> str:
    """Say what is wrong with an element; empty when nothing."""
    ((name, wanted),) = entries(step).items()
    return "" if wanted.keys() <= content.get(name, {}).keys() else MISSING


def owned(family: int, content: Content) -> list[Tunnel | Vtep]:
    """Return what the sets hold."""
    length = _LENGTHS[family]
    found: list[Tunnel | Vtep] = [Tunnel(family, *_service(key)) for key in content.get("vnis", ())]
    return found + [Vtep(ip_address(key[:length]), *_service(key[length:])) for key in content.get("vteps", ())]


def _service(key: bytes) -> tuple[int, int]:
    return int.from_bytes(key[:2], "big"), int.from_bytes(key[4:7], "big")
