"""Reads what there is in a namespace: links, routes, neighbours, FDB entries, sockets, sysctls, name servers."""

import os
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import RTM_GETROUTE, Netlink, NetlinkError, attr, attrs, number, u32
from netplug.kernel.probes import name_files, places, processes, sockets
from netplug.kernel.probes.api import (
    Facts,
    ForwardingState,
    IPAddress,
    LinkState,
    Look,
    NeighbourState,
    RouteFound,
    RouteState,
)

_LOWER_UP, _RUNNING, _NOARP = 0x10000, 0x40, 0x80
_LOOKUP_TABLE = 0x1000
_SRC, _IIF, _PREFSRC, _METRICS = 2, 3, 7, 8
_RTAX_MTU = 2
_TYPES = {1: "unicast", 2: "local", 3: "broadcast", 5: "multicast"} | rtnl.RTN_REFUSALS
_GETNEIGH = 30
_NDMSG = struct.Struct("=BxxxiHBB")
_ND_DST, _ND_LLADDR, _ND_MASTER = 1, 2, 9
_NOARP_STATE, _PERMANENT = 0x40, 0x80
_STATES = {
    0x01: "incomplete",
    0x02: "reachable",
    0x04: "stale",
    0x08: "delay",
    0x10: "probe",
    0x20: "failed",
    0x40: "noarp",
    0x80: "permanent",
}


@dataclass(slots=True)
class _Read:
    """What has been read, as fields of `Facts`."""

    fields: dict[str, Any]
    lacks: list[str]

    def take(self, what: str, work: Callable[[], Any]) -> None:
        try:
            self.fields[what] = work()
        except OSError as error:
            self.lacks.append(f"{what} cannot be read: {(error.strerror or str(error)).lower()}")


def look(look: Look) -> Facts:
    """Read what is wanted.

    Raises:
        ProbeError: there is no such namespace.
    """
    read = _Read({}, [])
    inode = places.number(look.netns)
    places.run_in(look.netns, lambda: _inside(look, read))
    if look.listeners or look.resolv_conf:
        found = processes.of_namespace(inode)
        read.fields["processes"] = len(found)
        if look.listeners:
            read.fields["frozen"] = bool(found) and all(map(processes.is_frozen, found))
            owners = processes.owners(found, read.fields.get("listeners", ()))
            read.fields["listeners"] = tuple(owners)
        if look.resolv_conf:
            _resolver(look, found, read)
    return replace(Facts(look.netns, lacks=tuple(read.lacks)), **read.fields)


def _inside(look: Look, read: _Read) -> None:
    with Netlink.open() as netlink:
        links = rtnl.links(netlink)
        names = {link.index: link.name for link in links}
        if look.links:
            read.take("links", lambda: tuple(_links(netlink, links)))
            read.take("routes", lambda: tuple(_routes(netlink, names)))
        if look.neighbours:
            read.take("neighbours", lambda: tuple(_neighbours(netlink, names)))
        if look.forwarding:
            read.take("forwarding", lambda: tuple(_forwarding(netlink, names)))
        read.take("lookups", lambda: tuple(_lookup(netlink, *it, names) for it in look.routes))
        indexes = {name: index for index, name in names.items()}
        wanted = [(to, sender, indexes[by]) for to, sender, by in look.forwards if by in indexes]
        read.take("forwards", lambda: tuple(_lookup(netlink, to, src, names, by) for to, src, by in wanted))
    if look.listeners:
        read.take("listeners", lambda: tuple(sockets.listeners()))
    read.take("sysctls", lambda: tuple((name, _sysctl(name)) for name in look.sysctls))


def _links(netlink: Netlink, links: Sequence[rtnl.Link]) -> Iterable[LinkState]:
    names = {link.index: link.name for link in links}
    addresses = rtnl.addresses(netlink)
    for link in links:
        carrier = bool(link.flags & _LOWER_UP)
        port = names.get(link.master, "") and next(it.kind for it in links if it.index == link.master) == "bridge"
        yield LinkState(
            link.name,
            link.index,
            link.up,
            carrier,
            link.mtu,
            link.mac,
            link.kind,
            _state(link, carrier=carrier),
            names.get(link.master, ""),
            link.peer,
            link.peer_here,
            link.altnames,
            tuple(it.address for it in addresses if it.index == link.index),
            link.hairpin if port else None,
            link.vxlan.vni if link.vxlan else 0,
            link.vxlan.port if link.vxlan else 0,
            link.vxlan.local if link.vxlan else None,
            not link.flags & _NOARP,
        )


def _state(link: rtnl.Link, *, carrier: bool) -> str:
    if not link.up:
        return "down"
    if not carrier:
        return "no carrier"
    return "up" if link.flags & _RUNNING else "dormant"


def _routes(netlink: Netlink, names: dict[int, str]) -> Iterable[RouteState]:
    for it in rtnl.routes(netlink):
        yield RouteState(it.destination, names.get(it.index, ""), it.gateway, it.metric)


def _lookup(
    netlink: Netlink, destination: IPAddress, source: IPAddress | None, names: dict[int, str], received: int = 0
) -> RouteFound:
    """Return the route of a packet that is sent here, or one that a link (`received`) brings to be forwarded."""
    family, bits = (2, 32) if destination.version == 4 else (rtnl.AF_INET6, 128)
    # For IPv6 the kernel refuses the flag (inet6_rtm_valid_getroute_req), and tells the route without it.
    flags = _LOOKUP_TABLE if destination.version == 4 else 0
    query = rtnl.RTMSG.pack(family, bits, bits if source else 0, 0, 0, 0, 0, 0, flags)
    query += attr(rtnl.RTA_DST, destination.packed) + (attr(_SRC, source.packed) if source else b"")
    query += u32(_IIF, received) if received else b""
    try:
        data = netlink.get(RTM_GETROUTE, query)
    except NetlinkError as error:
        return RouteFound(destination, source, error=os.strerror(error.errno or 0).lower())
    found = attrs(data, rtnl.RTMSG.size)
    kind = _TYPES.get(rtnl.RTMSG.unpack_from(data)[7], "other")
    return RouteFound(
        destination,
        source,
        names.get(number(found.get(rtnl.RTA_OIF)), ""),
        ip_address(found[rtnl.RTA_GATEWAY]) if rtnl.RTA_GATEWAY in found else None,
        ip_address(found[_PREFSRC]) if _PREFSRC in found else source,
        number(attrs(found.get(_METRICS, b"")).get(_RTAX_MTU)),
        kind,
        kind if kind in rtnl.RTN_REFUSALS.values() else "",
    )


def _neighbours(netlink: Netlink, names: dict[int, str]) -> Iterable[NeighbourState]:
    for family in (2, 10):
        for data in netlink.dump(_GETNEIGH, _NDMSG.pack(family, 0, 0, 0, 0)):
            _, index, state, _, _ = _NDMSG.unpack_from(data)
            found = attrs(data, _NDMSG.size)
            if _ND_DST in found and state != _NOARP_STATE:
                mac = rtnl.mac(found.get(_ND_LLADDR))
                words = _STATES.get(state, "none")
                yield NeighbourState(ip_address(found[_ND_DST]), names.get(index, ""), mac, words)


def _forwarding(netlink: Netlink, names: dict[int, str]) -> Iterable[ForwardingState]:
    for data in netlink.dump(_GETNEIGH, _NDMSG.pack(rtnl.AF_BRIDGE, 0, 0, 0, 0)):
        _, index, state, _, _ = _NDMSG.unpack_from(data)
        found = attrs(data, _NDMSG.size)
        mac = rtnl.mac(found.get(_ND_LLADDR))
        if mac and int(mac[:2], 16) & 1 == 0:
            vtep = ip_address(found[_ND_DST]) if _ND_DST in found else None
            yield ForwardingState(mac, names.get(index, ""), vtep, _ND_MASTER in found, bool(state & _PERMANENT))


def _sysctl(name: str) -> str:
    """Return the value; empty if there is none, since the kernel lacks what it is about."""
    try:
        return " ".join((Path("/proc/sys") / name).read_text().split())
    except OSError:
        return ""


def _resolver(look: Look, found: Sequence[int], read: _Read) -> None:
    pids, host = [look.pid] if look.pid else found, not look.netns
    if look.name:
        hosts = name_files.read("hosts", look.netns, pids, of_host=host or not found)
        read.fields["hosts"] = name_files.in_hosts(hosts or "", look.name)
    text = name_files.read("resolv.conf", look.netns, pids, of_host=host)
    if text is None:
        read.lacks.append("no process in the namespace has a resolv.conf that can be read")
        return
    fields, lacks = name_files.resolv_conf(text)
    read.fields.update(fields, resolv_conf=True)
    read.lacks += lacks
