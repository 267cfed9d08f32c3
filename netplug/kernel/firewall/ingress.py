"""Reverse path filtering on our links (step `Ingress`).

Packets that arrive on a bridge port itself are dropped. A bridge passes frames to some of the group addresses
01:80:c2:00:00:0x to the host by their *port*, without the hooks of the bridge family and the rules for the bridge
(net/bridge/br_input.c, br_handle_frame). No legitimate packet arrives this way.

On the links of sandboxes, packets from a source that is routed to another link are dropped (RFC 3704 2.2, strict). They
could be forged DNS replies, for example. Anti-spoofing drops them on bridge ports; this covers ports without it, and
links that are not bridge ports. Sources without a route are accepted: a client without an address, and link-local ones.

The chain has a priority before defragmentation and connection tracking.
"""

from pathlib import Path

from netplug.drivers.ingress import Ingress
from netplug.drivers.naming import BRIDGES, PORTS, TUNNEL_ENDS
from netplug.kernel.netlink import nf_tables as nft
from netplug.kernel.netlink.nf_tables import IIFNAME, REVERSE_PATH, BaseChain, Table, equal, payload, verdict

_PRIORITY = -450
"""NF_IP_PRI_RAW_BEFORE_DEFRAG."""
_IPV6 = Path("/proc/sys/net/ipv6")
_NO_LINK = bytes(4)


def _table(family: int, source: nft.Field, link_local: tuple[bytes, bytes]) -> Table:
    drop, skip = verdict(nft.DROP), verdict(nft.RETURN)
    rules = (
        ("input link is not ours", equal(IIFNAME, b"np", inverted=True) + skip),
        ("input link is a bridge port", equal(IIFNAME, PORTS.encode()) + drop),
        ("input link is a VXLAN link", equal(IIFNAME, TUNNEL_ENDS.encode()) + drop),
        ("input link is not routed to sandboxes", equal(IIFNAME, BRIDGES.encode(), inverted=True) + skip),
        ("source is routed to the input link", equal(REVERSE_PATH, _NO_LINK, inverted=True) + skip),
        ("source is unspecified", equal(source, bytes(source.length)) + skip),
        ("source is link-local", equal(source, *link_local) + skip),
        ("source is routed to another link", drop),
    )
    return Table(family, "netplug-ingress", (), (BaseChain("prerouting", "filter", nft.PREROUTING, _PRIORITY, rules),))


TABLES = {
    4: _table(nft.IPV4, payload(1, 12, 4), (b"\xa9\xfe\0\0", b"\xff\xff\0\0")),
    6: _table(nft.IPV6, payload(1, 8, 16), (b"\xfe\x80" + bytes(14), b"\xff\xc0" + bytes(14))),
}


def needless(step: Ingress) -> bool:
    """Return whether a step has nothing to do: IPv6 on a host without IPv6."""
    return step.family == 6 and not _IPV6.exists()
