"""FDB entries and neighbours: where remote MACs and addresses are (steps `Fdb` and `Neighbour`).

A remote MAC has two FDB entries. That of the vxlan link has the VTEP and is marked by ``extern_learn``. That of the
bridge points to the vxlan link. It is static and sticky: the bridge would move any other entry to a local port that
sends with this MAC (net/bridge/br_fdb.c, br_fdb_update). A neighbour is marked by our protocol number. Entries replace
existing ones, since a MAC that moved may have been learned meanwhile and ``add`` would fail.

Messages are packed by hand: pyroute2 would add 23 % to ``netplug diff`` on an overlay with 1 000 endpoints on other
hosts, and 4 % to each start with 300 endpoints, which reads the FDB of all bridges (``bench/netlink.py``).
"""

import errno
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Self

from netplug.drivers.steps import IPAddress
from netplug.drivers.tunnel import NO_MAC, Fdb, Neighbour
from netplug.kernel.api import MISSING, Done, Outcome, StepError
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_REPLACE,
    Netlink,
    NetlinkError,
    attr,
    attrs,
    u8,
    u32,
)
from netplug.kernel.netlink.rtnl import AF_BRIDGE, PROTOCOL, Link, packed_mac

_NEW, _DELETE, _GET = 28, 29, 30
_NDMSG = struct.Struct("=BxxxiHBB")
_DST, _LLADDR, _IFINDEX, _MASTER, _PROTOCOL = 1, 2, 8, 9, 12
_INCOMPLETE, _REACHABLE, _STALE, _FAILED, _NOARP, _PERMANENT = 0x01, 0x02, 0x04, 0x20, 0x40, 0x80
_BY_SELF, _BY_MASTER, _EXTERN_LEARN, _STICKY = 0x02, 0x04, 0x10, 0x40
_STATIC = _NOARP | _REACHABLE
_FAMILIES = {4: 2, 6: 10}
_GONE = frozenset((errno.ENOENT, errno.ENODEV, errno.EINVAL, errno.EADDRNOTAVAIL))


@dataclass(frozen=True, slots=True)
class Entry:
    """An FDB entry or a neighbour. `mac` is empty if it is unknown."""

    index: int
    mac: str
    dst: IPAddress | None
    state: int
    flags: int
    protocol: int
    master: bool

    @property
    def permanent(self) -> bool:
        """Whether it is in state NUD_PERMANENT."""
        return bool(self.state & _PERMANENT)

    @property
    def static(self) -> bool:
        """Whether the bridge was told of it (NUD_NOARP)."""
        return bool(self.state & _NOARP)

    @property
    def sticky(self) -> bool:
        """Whether it is a static FDB entry that does not move to another port (NTF_STICKY)."""
        return self.static and bool(self.flags & _STICKY)


@dataclass(frozen=True, slots=True)
class Found:
    """Our entries in the kernel.

    `remotes`: VTEPs by index of the vxlan link and MAC. `bridged`: index and MAC of the bridges' static entries.
    `neighbours`: MACs by index of the link and address.
    """

    remotes: Mapping[tuple[int, str], frozenset[IPAddress]]
    bridged: frozenset[tuple[int, str]]
    neighbours: Mapping[tuple[int, IPAddress], str]

    @classmethod
    def of(cls, nl: Netlink, links: Iterable[Link]) -> Self:
        """Read the FDB of our vxlan links, and, if there are any, all neighbours."""
        tunnels = [link for link in links if link.vxlan and link.marked and not link.being_deleted]
        remotes: dict[tuple[int, str], set[IPAddress]] = {}
        bridged = set()
        for it in (it for link in tunnels for it in _fdb(nl, link.index)):
            if it.master and it.sticky:
                bridged.add((it.index, it.mac))
            elif not it.master and it.flags & _EXTERN_LEARN and it.dst:
                remotes.setdefault((it.index, it.mac), set()).add(it.dst)
        neighbours = {}
        for family in _FAMILIES.values() if tunnels else ():
            for it in map(entry, nl.dump(_GET, _NDMSG.pack(family, 0, 0, 0, 0))):
                if it.protocol == PROTOCOL and it.permanent and it.dst:
                    neighbours[it.index, it.dst] = it.mac
        return cls({key: frozenset(vteps) for key, vteps in remotes.items()}, frozenset(bridged), neighbours)

    def drift(self, step: Fdb | Neighbour, link: Link | None) -> str:
        """Return how the kernel differs from a step; empty if it does not."""
        if isinstance(step, Fdb):
            return self._fdb_drift(step, link)
        mac = self.neighbours.get((link.index, step.address)) if link else None
        if mac is None:
            return MISSING
        return "" if mac == step.mac else f"is at {mac}, not {step.mac}"

    def _fdb_drift(self, step: Fdb, link: Link | None) -> str:
        if link is None:
            return MISSING
        key = (link.index, step.mac)
        vteps, bridged = self.remotes.get(key, frozenset()), key in self.bridged
        if step.mac == NO_MAC:
            return "" if step.vtep in vteps else MISSING
        if not vteps and not bridged:
            return MISSING
        if vteps != {step.vtep}:
            return f"VTEP is {', '.join(map(str, sorted(vteps, key=str))) or 'missing'}, not {step.vtep}"
        return "" if bridged else "the bridge has no static FDB entry"

    def owned(self, links: Iterable[Link]) -> frozenset[Fdb | Neighbour]:
        """Return our entries as steps. A bridge's entry without that of the vxlan link has the VTEP 0.0.0.0."""
        names = {link.index: link.name for link in links}
        found: set[Fdb | Neighbour] = {
            Fdb(names[index], mac, vtep) for (index, mac), vteps in self.remotes.items() for vtep in vteps
        }
        no_vtep = ip_address("0.0.0.0")
        found |= {Fdb(names[index], mac, no_vtep) for index, mac in self.bridged if (index, mac) not in self.remotes}
        found |= {
            Neighbour(names[index], address, mac) for (index, address), mac in self.neighbours.items() if index in names
        }
        return frozenset(found)


def update(nl: Netlink, link: int, address: IPAddress, mac: str) -> None:
    """Change the MAC of a dynamic neighbour entry, if the host has one for the address. `link`: index."""
    head = _FAMILIES[address.version], link
    found = _get(nl, _NDMSG.pack(*head, 0, 0, 0) + attr(_DST, address.packed))
    if found is None or found.permanent or found.mac == mac:
        return
    entry = _NDMSG.pack(*head, _STALE, 0, 0) + attr(_DST, address.packed) + attr(_LLADDR, packed_mac(mac))
    nl.request(_NEW, entry, NLM_F_CREATE | NLM_F_REPLACE)


def forget_unanswered(nl: Netlink, link: int) -> None:
    """Remove neighbours that nobody has answered for, so that the next packet asks at once. `link`: index.

    The kernel asks again one second after a request that was lost (arp(7), retrans_time_ms), and keeps packets until
    then.
    """
    for family in _FAMILIES.values():
        for it in map(entry, nl.dump(_GET, _NDMSG.pack(family, 0, 0, 0, 0))):
            if it.index == link and it.dst and it.state in {_INCOMPLETE, _FAILED}:
                _delete(nl, _NDMSG.pack(family, link, 0, 0, 0) + attr(_DST, it.dst.packed))


def add_static(nl: Netlink, port: int, mac: str) -> None:
    """Add a static, sticky FDB entry to the bridge of a port. `port`: index."""
    message = _NDMSG.pack(AF_BRIDGE, port, _STATIC, _BY_MASTER | _STICKY, 0) + attr(_LLADDR, packed_mac(mac))
    nl.request(_NEW, message, NLM_F_CREATE | NLM_F_REPLACE)


def remove_static(nl: Netlink, port: int, mac: str) -> None:
    """Remove an FDB entry from the bridge of a port; absent is success. `port`: index."""
    _delete(nl, _NDMSG.pack(AF_BRIDGE, port, 0, _BY_MASTER, 0) + attr(_LLADDR, packed_mac(mac)))


def static_macs(nl: Netlink, port: int) -> set[str]:
    """Return the MACs of the bridge's static FDB entries for a port. `port`: index."""
    return {it.mac for it in _fdb(nl, port) if it.sticky and it.index == port}


def static_entries(nl: Netlink, bridge: int) -> set[tuple[int, str]]:
    """Return the static FDB entries of a bridge: index of the port, and MAC. `bridge`: index."""
    found = map(entry, nl.dump(_GET, _NDMSG.pack(AF_BRIDGE, 0, 0, 0, 0) + u32(_MASTER, bridge)))
    return {(it.index, it.mac) for it in found if it.sticky}


def ensure(nl: Netlink, step: Fdb | Neighbour) -> Done:
    """Write the entries of a remote MAC, or a neighbour."""
    return _ensure_fdb(nl, step) if isinstance(step, Fdb) else _ensure_neighbour(nl, step)


def remove(nl: Netlink, step: Fdb | Neighbour) -> None:
    """Remove the entries of a remote MAC, or a neighbour of ours; absent is success."""
    if isinstance(step, Fdb):
        _remove_fdb(nl, step)
    else:
        _remove_neighbour(nl, step)


def _ensure_fdb(nl: Netlink, step: Fdb) -> Done:
    """Write both FDB entries of a remote MAC."""
    link = _require_link(nl, step, step.link)
    if link.vxlan is None or not link.master:
        raise StepError("invalid", step, f"link {step.link!r} is not a vxlan link in a bridge")
    head = attr(_LLADDR, packed_mac(step.mac))
    remote = _NDMSG.pack(AF_BRIDGE, link.index, _STATIC, _BY_SELF | _EXTERN_LEARN, 0) + head
    remote += attr(_DST, step.vtep.packed)
    if step.mac == NO_MAC:
        if any(it.mac == NO_MAC and it.dst == step.vtep for it in _fdb(nl, link.index)):
            return Done(Outcome.EQUAL)
        _write(nl, step, remote, NLM_F_CREATE | NLM_F_APPEND)
        return Done(Outcome.CREATED)
    vxlan_entry = _get(nl, _NDMSG.pack(AF_BRIDGE, link.index, 0, _BY_SELF, 0) + head)
    bridge_entry = _get(nl, _NDMSG.pack(AF_BRIDGE, link.index, 0, _BY_MASTER, 0) + head)
    marked = vxlan_entry is not None and bool(vxlan_entry.flags & _EXTERN_LEARN)
    equal = vxlan_entry is not None and marked and vxlan_entry.dst == step.vtep
    bridged = bridge_entry is not None and bridge_entry.sticky and bridge_entry.index == link.index
    if equal and bridged:
        return Done(Outcome.EQUAL)
    if vxlan_entry and not marked:
        # The kernel replaces the VTEP of an entry but never its flags (drivers/net/vxlan, vxlan_fdb_update_existing).
        _delete(nl, _NDMSG.pack(AF_BRIDGE, link.index, 0, _BY_SELF, 0) + head)
    if not equal:
        _write(nl, step, remote, NLM_F_CREATE | NLM_F_REPLACE)
    if not bridged:
        static = _NDMSG.pack(AF_BRIDGE, link.index, _STATIC, _BY_MASTER | _STICKY, 0) + head
        _write(nl, step, static, NLM_F_CREATE | NLM_F_REPLACE)
    if vxlan_entry is None:
        return Done(Outcome.CREATED)
    before = vxlan_entry.dst if marked else None
    return Done(Outcome.ADJUSTED, (replace(step, vtep=before),) if before else ())


def _remove_fdb(nl: Netlink, step: Fdb) -> None:
    """Remove the FDB entries of a remote MAC."""
    link = rtnl.link(nl, step.link)
    if link is None:
        return
    head = attr(_LLADDR, packed_mac(step.mac))
    # The bridge's first, so that it sends no more frames for the MAC to the vxlan link.
    if step.mac != NO_MAC:
        _delete(nl, _NDMSG.pack(AF_BRIDGE, link.index, 0, _BY_MASTER, 0) + head)
        _delete(nl, _NDMSG.pack(AF_BRIDGE, link.index, 0, _BY_SELF, 0) + head)
        return
    _delete(nl, _NDMSG.pack(AF_BRIDGE, link.index, 0, _BY_SELF, 0) + head + attr(_DST, step.vtep.packed))


def _ensure_neighbour(nl: Netlink, step: Neighbour) -> Done:
    """Write a permanent neighbour. It replaces a dynamic entry of the kernel."""
    link = _require_link(nl, step, step.link)
    found = _get(nl, _neighbour_key(step, link.index))
    permanent = found is not None and found.permanent
    if found and permanent and found.protocol != PROTOCOL:
        if found.mac == step.mac:
            return Done(Outcome.USED)
        words = f"link {step.link!r} has a permanent neighbour {step.address} at {found.mac} that is not ours"
        raise StepError("exists", step, words, hint=f"ip neigh del {step.address} dev {step.link}")
    if found and permanent and found.mac == step.mac:
        return Done(Outcome.EQUAL)
    message = (
        _NDMSG.pack(_FAMILIES[step.address.version], link.index, _PERMANENT, 0, 0)
        + attr(_DST, step.address.packed)
        + attr(_LLADDR, packed_mac(step.mac))
        + u8(_PROTOCOL, PROTOCOL)
    )
    _write(nl, step, message, NLM_F_CREATE | NLM_F_REPLACE)
    return Done(Outcome.ADJUSTED, (replace(step, mac=found.mac),)) if found and permanent else Done(Outcome.CREATED)


def _remove_neighbour(nl: Netlink, step: Neighbour) -> None:
    """Remove a neighbour, if it is ours."""
    link = rtnl.link(nl, step.link)
    found = _get(nl, _neighbour_key(step, link.index)) if link else None
    if link and found and found.protocol == PROTOCOL:
        _delete(nl, _neighbour_key(step, link.index))


def _neighbour_key(step: Neighbour, index: int) -> bytes:
    return _NDMSG.pack(_FAMILIES[step.address.version], index, 0, 0, 0) + attr(_DST, step.address.packed)


def _require_link(nl: Netlink, step: Fdb | Neighbour, name: str) -> Link:
    link = rtnl.link(nl, name)
    if link is None:
        raise StepError("not_found", step, f"link {name!r} is missing")
    return link


def _write(nl: Netlink, step: Fdb | Neighbour, message: bytes, flags: int) -> None:
    try:
        nl.request(_NEW, message, flags)
    except NetlinkError as error:
        if error.errno == errno.EAFNOSUPPORT and isinstance(step, Fdb):
            words = (
                f"VTEP {step.vtep} is an IPv{step.vtep.version} address, link {step.link!r} has the other IP version"
            )
            raise StepError("invalid", step, words) from error
        raise


def _delete(nl: Netlink, message: bytes) -> None:
    try:
        nl.request(_DELETE, message)
    except NetlinkError as error:
        if error.errno not in _GONE:
            raise


def _get(nl: Netlink, query: bytes) -> Entry | None:
    try:
        return entry(nl.get(_GET, query))
    except NetlinkError as error:
        if error.errno in _GONE:
            return None
        raise


def _fdb(nl: Netlink, index: int) -> list[Entry]:
    """Return the FDB entries of a vxlan link, and those of its bridge that point to it."""
    return [entry(data) for data in nl.dump(_GET, _NDMSG.pack(AF_BRIDGE, 0, 0, 0, 0) + u32(_IFINDEX, index))]


def entry(data: bytes) -> Entry:
    """Parse a message from its struct ndmsg on."""
    _family, index, state, flags, _kind = _NDMSG.unpack_from(data)
    found = attrs(data, _NDMSG.size)
    dst, protocol = found.get(_DST), found.get(_PROTOCOL)
    return Entry(
        index,
        rtnl.mac(found.get(_LLADDR)),
        ip_address(dst) if dst else None,
        state,
        flags,
        protocol[0] if protocol else 0,
        _MASTER in found,
    )
