"""Packets come by links of ours only as they can (step `Ingress`).

A bridge hands a frame to some of the group addresses 01:80:c2:00:00:0x to the host by the *port*, past the hooks of the
bridge family and past every rule for the bridge (net/bridge/br_input.c, br_handle_frame). No honest packet comes so.

By the links of sandboxes comes nothing from a source that is reached by another link, which a host of our own
name server, or of anybody else, would take for what it asked for (RFC 3704 2.2, strict). Guarded ports send no such
packet; this is for those that are not guarded, and for links without a bridge. Sources that nobody routes stay: of a
client without an address, and of the link.

The chain stands before all others, so before fragments are put together and connections are tracked.
"""

from pathlib import Path

from netplug.drivers.ingress import Ingress
from netplug.drivers.naming import BRIDGES, PORTS, TUNNEL_ENDS
from netplug.kernel.netlink import nf_tables as nft
from netplug.kernel.netlink.nf_tables import IIFNAME, REVERSE_PATH, BaseChain, Table, equal, payload, verdict

_PRIORITY = -450
"""NF_IP_PRI_RAW_BEFORE_DEFRAG."""
_IPV6 = Path("/proc/sys/net/ipv6")
_NO_WAY = bytes(4)


def _table(family: int, source: nft.Field, link_local: tuple[bytes, bytes]) -> Table:
    drop, go_on = verdict(nft.DROP), verdict(nft.RETURN)
    rules = (
        ("not by a link of sandboxes", equal(IIFNAME, b"np", inverted=True) + go_on),
        ("by a port itself", equal(IIFNAME, PORTS.encode()) + drop),
        ("by the end of a tunnel itself", equal(IIFNAME, TUNNEL_ENDS.encode()) + drop),
        ("by another link of the host", equal(IIFNAME, BRIDGES.encode(), inverted=True) + go_on),
        ("from where its source is", equal(REVERSE_PATH, _NO_WAY, inverted=True) + go_on),
        ("has no address yet", equal(source, bytes(source.length)) + go_on),
        ("link-local", equal(source, *link_local) + go_on),
        ("from where its source is not", drop),
    )
    return Table(family, "netplug-ingress", (), (BaseChain("prerouting", "filter", nft.PREROUTING, _PRIORITY, rules),))


TABLES = {
    4: _table(nft.IPV4, payload(1, 12, 4), (b"\xa9\xfe\0\0", b"\xff\xff\0\0")),
    6: _table(nft.IPV6, payload(1, 8, 16), (b"\xfe\x80" + bytes(14), b"\xff\xc0" + bytes(14))),
}


def needless(step: Ingress) -> bool:
    """Whether the kernel has no such packets: a host without IPv6."""
    return step.family == 6 and not _IPV6.exists()
