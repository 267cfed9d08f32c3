"""VXLAN frames are accepted from peers only (steps `Tunnels`, `Tunnel` and `Vtep`).

VXLAN has no authentication (RFC 7348 7): any host that can send to the UDP port could inject frames into an overlay.
The table matches outer source address and VNI together. So a peer of one overlay cannot send into another, and foreign
VXLAN links on the same port are not affected. It also checks the reverse path (RFC 3704 2.2, strict), so that no
container can send as a host. With several next hops of equal cost, IPv4 accepts each. For IPv6 the kernel reports only
one, so only links that may have containers or virtual machines are refused.

Tunnelled frames are excluded from connection tracking. Otherwise a flow in an overlay would have an entry for each
direction of its tunnel too, which use different ports and so never look replied.

Frames are filtered in hook input, where IPv4 fragments are reassembled. IPv6 fragments are not. So a first fragment
that ends before the VXLAN header is dropped; no standard sender creates one (RFC 8200 4.5, RFC 7348 4.3).

A VNI has three bytes, and nft(8) has no type of that size. It is stored and shown as the first three bytes of an
address.
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
