"""What drivers may know of the host."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from netplug.drivers.api import HostFacts, LinkFacts
from netplug.drivers.steps import IPNetwork

from .rtnl import Link, LinkAddress, LinkRoute
from .rules import PREFIX, Model

NO_UPLINK_MTU = 1500
_BRIDGE_NETFILTER = Path("/proc/sys/net/bridge")


def of(
    links: Iterable[Link],
    addresses: Mapping[int, Sequence[LinkAddress]],
    found: Iterable[LinkRoute],
    tables: Mapping[int, Model],
) -> HostFacts:
    """Put links, addresses by link, routes and foreign chains together. Links about to be deleted do not count."""
    by_index = {link.index: link for link in links if not link.doomed}
    routes: list[tuple[IPNetwork, str]] = []
    # By IP version, then metric: the uplink is that of IPv4 where there is one.
    defaults: list[tuple[int, int, int]] = []
    for route in found:
        link = by_index.get(route.index)
        if link is None:
            continue
        if route.destination.prefixlen:
            routes.append((route.destination, link.name))
        else:
            defaults.append((route.destination.version, route.metric, link.index))
    uplink = by_index[min(defaults)[2]] if defaults else None
    return HostFacts(
        mtu=uplink.mtu if uplink else NO_UPLINK_MTU,
        uplink=uplink.name if uplink else "",
        links=tuple(sorted((_link(link, by_index) for link in by_index.values()), key=lambda link: link.name)),
        routes=tuple(routes),
        addresses=tuple(
            (item.address, link.name)
            for link in by_index.values()
            for item in addresses.get(link.index, ())
            if not item.address.is_loopback
        ),
        chains=tuple(
            (family, name)
            for family, model in sorted(tables.items())
            for name in sorted(model.tables.get("filter", ()))
            if not name.startswith(PREFIX)
        ),
        bridge_netfilter=_BRIDGE_NETFILTER.exists(),
    )


def _link(link: Link, by_index: Mapping[int, Link]) -> LinkFacts:
    master, lower = by_index.get(link.master), by_index.get(link.peer) if link.macvlan_mode and link.peer_here else None
    return LinkFacts(
        link.name,
        link.kind,
        link.mtu,
        link.up,
        master.name if master else "",
        lower.name if lower else "",
        link.macvlan_mode,
        link.vxlan.vni if link.vxlan else 0,
        link.vxlan.port if link.vxlan else 0,
        link.mac,
    )
