"""Where remote MACs and addresses are (steps `Fdb` and `Neighbour`): the tables of vxlan links and bridges.

A remote MAC has two entries: the vxlan link's, with the VTEP, and the bridge's, which says that the vxlan link is the
way. The first is marked by ``extern_learn``; the second is static and sticky, since the bridge lets a local port that
sends with the MAC take over any other (net/bridge/br_fdb.c, br_fdb_update). A neighbour is marked by our protocol
number. All are written over what is there already: a MAC that moved may have been learned meanwhile, and ``add`` would
fail on it.

By hand: pyroute2 would add 23 % to ``netplug diff`` on an overlay with 1 000 endpoints elsewhere, and 4 % to each start
with 300 endpoints, which reads the FDB of all bridges (``bench/netlink.py``).
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
_REACHABLE, _STALE, _NOARP, _PERMANENT = 0x02, 0x04, 0x40, 0x80
_BY_SELF, _BY_MASTER, _EXTERN_LEARN, _STICKY = 0x02, 0x04, 0x10, 0x40
_STATIC = _NOARP | _REACHABLE
_FAMILIES = {4: 2, 6: 10}
_GONE = frozenset((errno.ENOENT, errno.ENODEV, errno.EINVAL, errno.EADDRNOTAVAIL))


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a table. `mac` empty: none known."""

    index: int
    mac: str
    dst: IPAddress | None
    state: int
    flags: int
    protocol: int
    master: bool

    @property
    def permanent(self) -> bool:
        """Whether it stays until somebody removes it."""
        return bool(self.state & _PERMANENT)

    @property
    def sticky(self) -> bool:
        """Whether no other port takes it over; of a bridge's FDB."""
        return bool(self.state & _NOARP and self.flags & _STICKY)


@dataclass(frozen=True, slots=True)
class Found:
    """What the tables hold that is ours: VTEPs by link and MAC, MACs that a bridge has, MACs by link and address."""

    remotes: Mapping[tuple[int, str], frozenset[IPAddress]]
    bridged: frozenset[tuple[int, str]]
    neighbours: Mapping[tuple[int, IPAddress], str]

    @classmethod
    def of(cls, nl: Netlink, links: Iterable[Link]) -> Self:
        """Look at the vxlan links that are ours, and at all neighbours if there are any such links."""
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
        """Say what is wrong with a step; empty when nothing."""
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
            return f"leads to {', '.join(map(str, sorted(vteps, key=str))) or 'nowhere'}, not {step.vtep}"
        return "" if bridged else "the bridge does not know it"

    def owned(self, links: Iterable[Link]) -> frozenset[Fdb | Neighbour]:
        """Return all that is ours, as steps; an entry of a bridge alone as one that leads nowhere."""
        names = {link.index: link.name for link in links}
        found: set[Fdb | Neighbour] = {
            Fdb(names[index], mac, vtep) for (index, mac), vteps in self.remotes.items() for vtep in vteps
        }
        nowhere = ip_address("0.0.0.0")
        found |= {Fdb(names[index], mac, nowhere) for index, mac in self.bridged if (index, mac) not in self.remotes}
        found |= {
            Neighbour(names[index], address, mac) for (index, address), mac in self.neighbours.items() if index in names
        }
        return frozenset(found)


def update(nl: Netlink, link: int, address: IPAddress, mac: str) -> None:
    """Put right what the host believes of an address on a link, by its index, if it believes anything."""
    head = _FAMILIES[address.version], link
    found = _get(nl, _NDMSG.pack(*head, 0, 0, 0) + attr(_DST, address.packed))
    if found is None or found.permanent or found.mac == mac:
        return
    entry = _NDMSG.pack(*head, _STALE, 0, 0) + attr(_DST, address.packed) + attr(_LLADDR, packed_mac(mac))
    nl.request(_NEW, entry, NLM_F_CREATE | NLM_F_REPLACE)


def add_static(nl: Netlink, port: int, mac: str) -> None:
    """Tell the bridge of a port, by its index, that a MAC is there; no other port takes it over."""
    message = _NDMSG.pack(AF_BRIDGE, port, _STATIC, _BY_MASTER | _STICKY, 0) + attr(_LLADDR, packed_mac(mac))
    nl.request(_NEW, message, NLM_F_CREATE | NLM_F_REPLACE)


def remove_static(nl: Netlink, port: int, mac: str) -> None:
    """Have the bridge of a port find out by itself where a MAC is; it does not know is success."""
    _delete(nl, _NDMSG.pack(AF_BRIDGE, port, 0, _BY_MASTER, 0) + attr(_LLADDR, packed_mac(mac)))


def static_macs(nl: Netlink, port: int) -> set[str]:
    """Return of which MACs the bridge of a port, by its index, was told that they are there."""
    return {it.mac for it in _fdb(nl, port) if it.sticky and it.index == port}


def static_entries(nl: Netlink, bridge: int) -> set[tuple[int, str]]:
    """Return the ports of a bridge, by index, with the MACs that it was told of."""
    found = map(entry, nl.dump(_GET, _NDMSG.pack(AF_BRIDGE, 0, 0, 0, 0) + u32(_MASTER, bridge)))
    return {(it.index, it.mac) for it in found if it.sticky}


def ensure(nl: Netlink, step: Fdb | Neighbour) -> Done:
    """Bring a remote MAC, or a neighbour, about."""
    return _ensure_fdb(nl, step) if isinstance(step, Fdb) else _ensure_neighbour(nl, step)


def remove(nl: Netlink, step: Fdb | Neighbour) -> None:
    """Remove a remote MAC, or a neighbour of ours; absent is success."""
    if isinstance(step, Fdb):
        _remove_fdb(nl, step)
    else:
        _remove_neighbour(nl, step)


def _ensure_fdb(nl: Netlink, step: Fdb) -> Done:
    """Bring a remote MAC about."""
    link = _wanted(nl, step, step.link)
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
    mine = _get(nl, _NDMSG.pack(AF_BRIDGE, link.index, 0, _BY_SELF, 0) + head)
    bridges = _get(nl, _NDMSG.pack(AF_BRIDGE, link.index, 0, _BY_MASTER, 0) + head)
    known = mine is not None and bool(mine.flags & _EXTERN_LEARN) and mine.dst == step.vtep
    bridged = bridges is not None and bridges.sticky and bridges.index == link.index
    if known and bridged:
        return Done(Outcome.EQUAL)
    if mine and not mine.flags & _EXTERN_LEARN:
        # The kernel replaces what an entry leads to, never its mark (drivers/net/vxlan, vxlan_fdb_update_existing).
        _delete(nl, _NDMSG.pack(AF_BRIDGE, link.index, 0, _BY_SELF, 0) + head)
    if not known:
        _write(nl, step, remote, NLM_F_CREATE | NLM_F_REPLACE)
    if not bridged:
        static = _NDMSG.pack(AF_BRIDGE, link.index, _STATIC, _BY_MASTER | _STICKY, 0) + head
        _write(nl, step, static, NLM_F_CREATE | NLM_F_REPLACE)
    if mine is None:
        return Done(Outcome.CREATED)
    ours = mine.dst if mine.flags & _EXTERN_LEARN else None
    return Done(Outcome.ADJUSTED, (replace(step, vtep=ours),) if ours else ())


def _remove_fdb(nl: Netlink, step: Fdb) -> None:
    """Remove a remote MAC."""
    link = rtnl.link(nl, step.link)
    if link is None:
        return
    head = attr(_LLADDR, packed_mac(step.mac))
    # The bridge's first: then nothing comes to the vxlan link for it.
    if step.mac != NO_MAC:
        _delete(nl, _NDMSG.pack(AF_BRIDGE, link.index, 0, _BY_MASTER, 0) + head)
        _delete(nl, _NDMSG.pack(AF_BRIDGE, link.index, 0, _BY_SELF, 0) + head)
        return
    _delete(nl, _NDMSG.pack(AF_BRIDGE, link.index, 0, _BY_SELF, 0) + head + attr(_DST, step.vtep.packed))


def _ensure_neighbour(nl: Netlink, step: Neighbour) -> Done:
    """Bring a neighbour about; what the kernel found out by itself is written over."""
    link = _wanted(nl, step, step.link)
    found = _get(nl, _asked(step, link.index))
    fixed = found is not None and found.permanent
    if found and fixed and found.protocol != PROTOCOL:
        if found.mac == step.mac:
            return Done(Outcome.USED)
        words = f"link {step.link!r} has a permanent neighbour {step.address} at {found.mac} that is not ours"
        raise StepError("exists", step, words, hint=f"ip neigh del {step.address} dev {step.link}")
    if found and fixed and found.mac == step.mac:
        return Done(Outcome.EQUAL)
    message = (
        _NDMSG.pack(_FAMILIES[step.address.version], link.index, _PERMANENT, 0, 0)
        + attr(_DST, step.address.packed)
        + attr(_LLADDR, packed_mac(step.mac))
        + u8(_PROTOCOL, PROTOCOL)
    )
    _write(nl, step, message, NLM_F_CREATE | NLM_F_REPLACE)
    return Done(Outcome.ADJUSTED, (replace(step, mac=found.mac),)) if found and fixed else Done(Outcome.CREATED)


def _remove_neighbour(nl: Netlink, step: Neighbour) -> None:
    """Remove a neighbour, if it is ours."""
    link = rtnl.link(nl, step.link)
    found = _get(nl, _asked(step, link.index)) if link else None
    if link and found and found.protocol == PROTOCOL:
        _delete(nl, _asked(step, link.index))


def _asked(step: Neighbour, index: int) -> bytes:
    return _NDMSG.pack(_FAMILIES[step.address.version], index, 0, 0, 0) + attr(_DST, step.address.packed)


def _wanted(nl: Netlink, step: Fdb | Neighbour, name: str) -> Link:
    link = rtnl.link(nl, name)
    if link is None:
        raise StepError("not_found", step, f"link {name!r} is missing")
    return link


def _write(nl: Netlink, step: Fdb | Neighbour, message: bytes, flags: int) -> None:
    try:
        nl.request(_NEW, message, flags)
    except NetlinkError as error:
        if error.errno == errno.EAFNOSUPPORT and isinstance(step, Fdb):
            words = f"VTEP {step.vtep} is of IPv{step.vtep.version}, link {step.link!r} sends by the other IP version"
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
    """Return the entries of a vxlan link and those of its bridge that lead to it."""
    return [entry(data) for data in nl.dump(_GET, _NDMSG.pack(AF_BRIDGE, 0, 0, 0, 0) + u32(_IFINDEX, index))]


def entry(data: bytes) -> Entry:
    """Return what a message tells of; struct ndmsg comes first."""
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
