"""Builds `HostFacts`: what drivers may know about the host."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from netplug.drivers.api import HostFacts, LinkFacts
from netplug.drivers.steps import IPNetwork
from netplug.kernel.firewall.gate_rules import PREFIX, Filter
from netplug.kernel.netlink.rtnl import Link, LinkAddress, LinkRoute

NO_UPLINK_MTU = 1500
_BRIDGE_NETFILTER = Path("/proc/sys/net/bridge")
_FORWARDING = {4: Path("/proc/sys/net/ipv4/ip_forward"), 6: Path("/proc/sys/net/ipv6/conf/all/forwarding")}
_REDIRECTS = Path("/proc/sys/net/ipv4/conf/all/accept_redirects")
_RTPROT_RA = 9
_UPLINKS = frozenset({"", "bond", "team", "vlan"})
"""Kinds of links that may receive router advertisements later; "" is a physical one."""


def of(
    links: Iterable[Link],
    addresses: Mapping[int, Sequence[LinkAddress]],
    found: Iterable[LinkRoute],
    filters: Mapping[int, Mapping[str, Filter]],
) -> HostFacts:
    """Combine links, addresses by index of the link, routes, and foreign chains. Links being deleted are left out."""
    found = list(found)
    by_index = {link.index: link for link in links if not link.being_deleted}
    routes: list[tuple[IPNetwork, str]] = []
    # Sorted by IP version, then metric: the uplink is that of IPv4 if there is one.
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
        chains=tuple(sorted(_chains(filters))),
        gates=tuple(
            (family, flavour)
            for family, found in sorted(filters.items())
            for flavour, it in found.items()
            if it.decides
        ),
        bridge_netfilter=_BRIDGE_NETFILTER.exists(),
        forwarding=tuple(family for family, path in _FORWARDING.items() if _is_on(path)),
        advertised=tuple(_advertised(by_index, found)),
        redirects=_is_on(_REDIRECTS),
    )


def _chains(filters: Mapping[int, Mapping[str, Filter]]) -> set[tuple[int, str]]:
    return {
        (family, name)
        for family, found in filters.items()
        for it in found.values()
        for name in it.chains
        if not name.startswith(PREFIX)
    }


def _is_on(path: Path) -> bool:
    try:
        return path.read_text().strip() == "1"
    except OSError:  # the kernel lacks this IP version
        return False


def _advertised(by_index: Mapping[int, Link], routes: Iterable[LinkRoute]) -> Iterator[tuple[str, int]]:
    advertised = {route.index for route in routes if route.protocol == _RTPROT_RA and not route.destination.prefixlen}
    for link in sorted(by_index.values(), key=lambda link: link.name):
        value = link.settings.get("ipv6/accept_ra", "0")
        possible = link.kind in _UPLINKS and link.name != "lo" and not link.master
        if value in {"1", "2"} and not link.marked and (possible or link.index in advertised):
            yield link.name, int(value)


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
