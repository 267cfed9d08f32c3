"""Bridge ports of ours that others keep from passing frames (bridge(8), bridge link set)."""

from collections.abc import Collection

from netplug.kernel.links.differences import Difference
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import attr, u8
from netplug.kernel.netlink.rtnl import CARRIES, Link

_WORDS = {
    rtnl.IFLA_BRPORT_STATE: "state of the port is not forwarding",
    rtnl.IFLA_BRPORT_UNICAST_FLOOD: "port flag flood is off",
    rtnl.IFLA_BRPORT_MCAST_FLOOD: "port flag mcast_flood is off",
    rtnl.IFLA_BRPORT_BCAST_FLOOD: "port flag bcast_flood is off",
    rtnl.IFLA_BRPORT_LOCKED: "port is locked",
    rtnl.IFLA_BRPORT_PROXYARP: "port flag proxy_arp is on",
    rtnl.IFLA_BRPORT_NEIGH_SUPPRESS: "port flag neigh_suppress is on",
}


def blocking_differences(found: Link, bridge: Link | None, *, without: Collection[int] = ()) -> list[Difference]:
    """Return why a port does not pass all frames. `bridge`: its own; `without`: attributes that are not compared.

    The state is the kernel's where the port has no carrier, where its bridge is down, and where that runs the spanning
    tree protocol.
    """
    settled = bridge is not None and bridge.up and not bridge.stp and found.flags & CARRIES == CARRIES
    return [
        Difference(_WORDS[kind], attr(kind, rtnl.PASSING[kind]), port=True)
        for kind in found.blocks
        if kind not in without and (settled or kind != rtnl.IFLA_BRPORT_STATE)
    ]


def hairpin_differences(found: Link, *, wanted: bool) -> list[Difference]:
    """Tell whether a port is in hairpin mode without cause: it gets back what it sends to all, and to groups.

    That it is not in hairpin mode is a matter of step `Hairpin`.
    """
    if wanted or not found.hairpin:
        return []
    return [Difference("port flag hairpin is on", u8(rtnl.IFLA_BRPORT_MODE, 0), port=True)]
