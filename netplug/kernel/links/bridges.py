"""Bridges, veths, and the flags of bridge ports.

Creating is tried first and looked at only when the name is taken: a new endpoint costs three messages (the pair; the
port's flags; an altname each) and no question. A link is addressed by its mark wherever it is deleted without having
been read, so that a stranger's link of the same name cannot be hit.
"""

import errno
import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_

from netplug.drivers.naming import MARK, SANDBOX_SIDES, mark
from netplug.drivers.steps import Bridge, Hairpin, Ifb, Macvlan, Veth
from netplug.drivers.tunnel import Vxlan
from netplug.kernel.api import Outcome, StepError
from netplug.kernel.links import neighbours, router_advertisements
from netplug.kernel.links.rollback import deleted_on_failure
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import (
    NEW,
    RTM_NEWLINK,
    RTM_NEWLINKPROP,
    Netlink,
    NetlinkError,
    attr,
    nest,
    text,
    u8,
    u32,
)
from netplug.kernel.netlink.rtnl import IFF_UP, IFINFO, Link

_VETH_INFO_PEER = 1
_STATE_DISABLED = 0
_ONE_QUEUE = u32(rtnl.IFLA_NUM_TX_QUEUES, 1) + u32(rtnl.IFLA_NUM_RX_QUEUES, 1)
"""One each way is all that a veth uses by itself. Unasked, newer kernels keep another for each processor, in case
somebody wants more of them (ethtool -L), which takes a third of the time of making a pair."""

Sandbox = Callable[[str, str], tuple[int, Netlink]]
"""Gives file descriptor and socket of a sandbox by path and identity; both belong to the giver."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What is wrong with a link, in words, and the attributes that mend it; `port`: they are flags of a bridge port.

    `settings`: what mends it instead, of `router_advertisements`. `add_static`: a MAC that the bridge is to be told of.
    `remove_static`: one that it was told of and is to find by itself.
    """

    what: str
    mend: bytes = b""
    flags: int = 0
    port: bool = False
    settings: router_advertisements.Settings | None = None
    add_static: str = ""
    remove_static: str = ""

    @property
    def mendable(self) -> bool:
        """Whether anything mends it."""
        return bool(self.mend or self.flags or self.settings or self.add_static or self.remove_static)


class LinkBusyError(Exception):
    """The name belongs to a link of ours that is being deleted."""


def ensure_bridge(nl: Netlink, step: Bridge) -> Outcome:
    """Bring a bridge about."""
    message = (
        IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP)
        + text(rtnl.IFLA_IFNAME, step.name)
        + attr(rtnl.IFLA_ADDRESS, rtnl.packed_mac(step.mac))
        + u32(rtnl.IFLA_MTU, step.mtu ^ 1)
        + _bridge_info()
    )
    try:
        nl.request(RTM_NEWLINK, message, NEW)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
    else:
        # A bridge takes the smallest mtu of its ports until its own is *changed* (BROPT_MTU_SET_BY_USER); so we do.
        mtu = by_name(step.name) + u32(rtnl.IFLA_MTU, step.mtu)
        with deleted_on_failure(nl, step):
            nl.request(*altname(step.name), NEW)
            nl.request(RTM_NEWLINK, mtu + router_advertisements.ipv4_attributes(router_advertisements.NO_ROUTERS))
            router_advertisements.write_ipv6(step.name, router_advertisements.NO_ROUTERS)
        return Outcome.CREATED
    found = rtnl.link(nl, step.name)
    if found is None:
        raise StepError("exists", step, f"the altname {mark(step.name)!r} is taken on this host")
    if found.is_ours(step.name):
        if found.being_deleted:
            raise LinkBusyError
        return adjust(nl, found, bridge_differences(step, found), step)
    if step.adopt and found.kind == "bridge":
        return Outcome.USED
    if step.adopt:
        raise StepError("invalid", step, f"link {step.name!r} is not a bridge but {_kind(found)}")
    raise StepError("exists", step, f"link {step.name!r} exists and is not ours", hint="remove or rename it")


def ensure_veth(nl: Netlink, step: Veth, sandbox: Sandbox) -> Outcome:
    """Bring a veth pair about, its host side up and a port of its master.

    Raises:
        LinkBusyError: wait for the deletion, then try again.
    """
    index = rtnl.index(nl, step.master) if step.master else 0
    if index is None:
        raise StepError("not_found", step, f"bridge {step.master!r} of link {step.name!r} is missing")
    fd, inside = sandbox(step.netns, step.netns_id) if step.netns else (None, nl)
    try:
        nl.request(RTM_NEWLINK, _veth(step, index, fd), NEW)
    except NetlinkError as error:
        if error.errno == errno.EXFULL:
            words = f"bridge {step.master!r} has 1023 ports, and a Linux bridge takes no more"
            raise StepError("unavailable", step, words, hint="use a second network") from error
        if error.errno != errno.EEXIST:
            raise
        return _existing_veth(nl, step, index, inside)
    with deleted_on_failure(nl, step):
        _set_up(nl, step, inside)
    return Outcome.CREATED


def _set_up(nl: Netlink, step: Veth, inside: Netlink) -> None:
    """Do what cannot be said in the message that makes a pair."""
    settings, flags = _settings(step), _port_flags(step)
    nl.request(*altname(step.name), NEW)
    # Early enough: a veth has no carrier, and so no address, before its peer is up.
    nl.request(
        RTM_NEWLINK,
        by_name(step.name) + router_advertisements.ipv4_attributes(settings) + (port_info(flags) if flags else b""),
    )
    router_advertisements.write_ipv6(step.name, settings)
    if step.pinned:
        neighbours.add_static(nl, rtnl.index(nl, step.name) or 0, step.peer_mac)
    try:
        inside.request(*altname(step.peer), NEW)
        if step.netns:
            if not step.slaac:
                router_advertisements.write_in_sandbox(step.peer, inside.ipv6_conf)
            # Only now: the kernel answers ENOTCONN to a pair whose far end is to be up before the near end exists.
            inside.request(RTM_NEWLINK, by_name(step.peer, IFF_UP))
    except NetlinkError as error:
        raise StepError("internal", step, f"kernel refused link {step.peer!r}: {error.strerror}") from error


def ensure_hairpin(nl: Netlink, step: Hairpin) -> Outcome:
    """Switch a port's hairpin on."""
    found = rtnl.link(nl, step.link)
    if found is None:
        raise StepError("not_found", step, f"link {step.link!r} is missing")
    if found.hairpin:
        return Outcome.EQUAL
    if not found.master:
        raise StepError("invalid", step, f"link {step.link!r} is not a port of a bridge")
    nl.request(RTM_NEWLINK, IFINFO.pack(0, 0, found.index, 0, 0) + port_info(u8(rtnl.IFLA_BRPORT_MODE, 1)))
    return Outcome.CREATED


def remove_hairpin(nl: Netlink, step: Hairpin) -> None:
    """Switch a port's hairpin off."""
    found = rtnl.link(nl, step.link)
    if found and found.hairpin:
        nl.request(RTM_NEWLINK, IFINFO.pack(0, 0, found.index, 0, 0) + port_info(u8(rtnl.IFLA_BRPORT_MODE, 0)))


def schedule_delete(nl: Netlink, step: Bridge | Veth | Macvlan | Ifb | Vxlan, group: int) -> bool:
    """Make a link of ours unusable and move it to a group to be deleted; return False when there is none."""
    if _move_to_group(nl, text(rtnl.IFLA_ALT_IFNAME, mark(step.name)), group):
        return True
    # A link cannot be created with its mark. If we died in between, its name and MAC, both made from one id, tell it.
    found = rtnl.link(nl, step.name) if step.mac else None
    born = found is not None and found.name == step.name and not found.altnames and found.mac == step.mac
    return born and _move_to_group(nl, text(rtnl.IFLA_IFNAME, step.name), group)


def _move_to_group(nl: Netlink, who: bytes, group: int) -> bool:
    head = IFINFO.pack(0, 0, 0, 0, 0) + who + u32(rtnl.IFLA_GROUP, group)
    try:
        # A port that forwards nothing. Setting it down would wait for an RCU grace period, like the deletion itself.
        nl.request(RTM_NEWLINK, head + port_info(u8(rtnl.IFLA_BRPORT_STATE, _STATE_DISABLED)))
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return False
        # A bridge, a link without a master (EOPNOTSUPP), or a port that is down already (ENETDOWN).
        try:
            nl.request(RTM_NEWLINK, head)
        except NetlinkError as second:
            if second.errno == errno.ENODEV:
                return False
            raise
    return True


def bridge_differences(step: Bridge, found: Link) -> list[Difference]:
    """Compare a bridge of ours."""
    if found.kind != "bridge":
        return [Difference(f"is {_kind(found)}, not a bridge")]
    differences = common_differences(found, step.mac, step.mtu, up=True) + settings_differences(
        found, router_advertisements.NO_ROUTERS
    )
    if found.learns_from_reserved:
        differences.append(Difference("learns MACs from frames that it does not forward", _bridge_info()))
    return differences


def settings_differences(found: Link, settings: router_advertisements.Settings) -> list[Difference]:
    """Compare settings of a link; those that the kernel does not have are as they should be."""
    wrong = [
        f"{name} is {there}, not {value}"
        for family, values in settings.items()
        for name, value in values.items()
        if (there := found.settings.get(f"{family}/{name}", value)) != value
    ]
    return (
        [Difference(", ".join(wrong), router_advertisements.ipv4_attributes(settings), settings=settings)]
        if wrong
        else []
    )


def veth_differences(
    step: Veth, found: Link, master: int, peer: Link | None, static_macs: Collection[str]
) -> list[Difference]:
    """Compare a veth of ours.

    `master`: index of its bridge, 0 when there is none. `peer`: its other end if it is where the step wants it.
    `static_macs`: the MACs of which the bridge was told that they are there.
    """
    if found.kind != "veth":
        return [Difference(f"is {_kind(found)}, not a veth")]
    differences = common_differences(found, step.mac, step.mtu, up=True)
    if found.master != master or bool(step.master) != bool(master):
        mend = u32(rtnl.IFLA_MASTER, master) if master else b""
        differences.append(Difference(f"is not a port of {step.master!r}", mend))
    if found.isolated != step.isolated:
        flag = u8(rtnl.IFLA_BRPORT_ISOLATED, int(step.isolated))
        differences.append(Difference(f"port is {'not ' * step.isolated}isolated", flag, port=True))
    if step.pinned == found.learning and master:
        flag = u8(rtnl.IFLA_BRPORT_LEARNING, int(not step.pinned))
        differences.append(Difference(f"port {'learns' if step.pinned else 'does not learn'} MACs", flag, port=True))
    mac = step.peer_mac.lower()
    if step.pinned and mac not in static_macs:
        differences.append(Difference(f"the bridge does not know that {mac} is there", add_static=mac))
    # At a pinned port nobody else is; at another one users may have told the bridge of somebody.
    stale = [it for it in sorted(static_macs) if (it != mac if step.pinned else it == mac)]
    differences += [Difference(f"the bridge was told that {it} is there", remove_static=it) for it in stale]
    differences += settings_differences(found, _settings(step))
    if peer is None and step.netns:
        differences.append(Difference(f"sandbox side {step.peer!r} is not in {step.netns}"))
    return differences


def peer_differences(step: Veth, peer: Link | None) -> list[Difference]:
    """Compare the sandbox side; one that a runtime has moved away is its own affair."""
    if peer is None or step.tunable:
        return []
    return [
        Difference(f"sandbox side: {item.what}", item.mend, item.flags)
        for item in common_differences(peer, step.peer_mac, step.mtu, up=bool(step.netns))
    ]


def peer_of(step: Veth, found: Link, inside: Netlink | Mapping[str, Link]) -> Link | None:
    """Return the sandbox side, if it is where the step wants it."""
    peer = inside.get(step.peer) if isinstance(inside, Mapping) else rtnl.link(inside, step.peer)
    if peer is None or not peer.is_ours(step.peer):
        return None
    # In a sandbox, indices are of two namespaces; the altname must do.
    return peer if step.netns or (found.peer == peer.index and found.peer_here) else None


def _existing_veth(nl: Netlink, step: Veth, master: int, inside: Netlink) -> Outcome:
    found = rtnl.link(nl, step.name)
    if found is None:
        other = rtnl.link(inside, step.peer)
        if other and other.is_ours(step.peer) and not step.netns:
            raise LinkBusyError
        raise StepError("exists", step, f"link {step.peer!r}, wanted for the sandbox side of {step.name!r}, exists")
    if not found.is_ours(step.name):
        raise StepError("exists", step, f"link {step.name!r} exists and is not ours", hint="remove or rename it")
    if found.being_deleted:
        raise LinkBusyError
    peer = peer_of(step, found, inside)
    static_macs = neighbours.static_macs(nl, found.index) if found.master else ()
    differences = veth_differences(step, found, master, peer, static_macs)
    outcome = adjust(nl, found, differences, step)
    more = peer_differences(step, peer)
    if peer and more:
        adjust(inside, peer, more)
        return Outcome.ADJUSTED
    return outcome


def adjust(
    nl: Netlink, found: Link, differences: list[Difference], step: Veth | Bridge | Vxlan | None = None
) -> Outcome:
    """Mend what differs; with a `step`, raise its error over what cannot be mended."""
    if not differences:
        return Outcome.EQUAL
    for item in differences:
        if not item.mendable and step:
            raise StepError("exists", step, f"link {found.name!r} {item.what}", hint="remove it first")
    flags = reduce(or_, (item.flags for item in differences))
    head = IFINFO.pack(0, 0, found.index, flags, flags)
    if mend := b"".join(item.mend for item in differences if not item.port):
        nl.request(RTM_NEWLINK, head + mend)
    elif flags:
        nl.request(RTM_NEWLINK, head)
    if port := b"".join(item.mend for item in differences if item.port):
        nl.request(RTM_NEWLINK, head + port_info(port))
    for item in differences:
        _write_settings(nl, found, item)
    return Outcome.ADJUSTED


def _write_settings(nl: Netlink, found: Link, item: Difference) -> None:
    """Mend what no message about links mends."""
    if item.settings:
        router_advertisements.write_ipv6(found.name, item.settings)
    if item.add_static:
        neighbours.add_static(nl, found.index, item.add_static)
    if item.remove_static:
        neighbours.remove_static(nl, found.index, item.remove_static)


def common_differences(found: Link, mac: str, mtu: int, *, up: bool) -> list[Difference]:
    """Compare what all links have."""
    differences = []
    if found.mac != mac.lower():
        differences.append(Difference(f"MAC is {found.mac}, not {mac}", attr(rtnl.IFLA_ADDRESS, rtnl.packed_mac(mac))))
    if found.mtu != mtu:
        differences.append(Difference(f"mtu is {found.mtu}, not {mtu}", u32(rtnl.IFLA_MTU, mtu)))
    if up and not found.up:
        differences.append(Difference("is down", flags=IFF_UP))
    return differences


def _veth(step: Veth, master: int, fd: int | None) -> bytes:
    mtu = u32(rtnl.IFLA_MTU, step.mtu)
    peer = (
        IFINFO.pack(0, 0, 0, 0, 0)
        + text(rtnl.IFLA_IFNAME, step.peer)
        + attr(rtnl.IFLA_ADDRESS, rtnl.packed_mac(step.peer_mac))
        + mtu
        + (u32(rtnl.IFLA_NET_NS_FD, fd) if fd is not None else b"")
        + _ONE_QUEUE
    )
    return (
        IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP)
        + text(rtnl.IFLA_IFNAME, step.name)
        + attr(rtnl.IFLA_ADDRESS, rtnl.packed_mac(step.mac))
        + mtu
        + _ONE_QUEUE
        + (u32(rtnl.IFLA_MASTER, master) if master else b"")
        + nest(
            rtnl.IFLA_LINKINFO,
            text(rtnl.IFLA_INFO_KIND, "veth"),
            nest(rtnl.IFLA_INFO_DATA, attr(_VETH_INFO_PEER, peer)),
        )
    )


def _bridge_info() -> bytes:
    """Return the attribute of a bridge: whoever sends what it does not forward, it does not learn where he is."""
    options = attr(rtnl.IFLA_BR_MULTI_BOOLOPT, struct.pack("=II", rtnl.NO_LL_LEARN, rtnl.NO_LL_LEARN))
    return nest(rtnl.IFLA_LINKINFO, text(rtnl.IFLA_INFO_KIND, "bridge"), nest(rtnl.IFLA_INFO_DATA, options))


def _settings(step: Veth) -> router_advertisements.Settings:
    return router_advertisements.AS_PORT if step.master else router_advertisements.NO_ROUTERS


def _port_flags(step: Veth) -> bytes:
    isolated = u8(rtnl.IFLA_BRPORT_ISOLATED, 1) if step.isolated else b""
    return isolated + (u8(rtnl.IFLA_BRPORT_LEARNING, 0) if step.pinned else b"")


def port_info(flags: bytes) -> bytes:
    """Return the attribute that holds flags of a bridge port."""
    kind = text(rtnl.IFLA_INFO_SLAVE_KIND, "bridge")
    return nest(rtnl.IFLA_LINKINFO, kind, nest(rtnl.IFLA_INFO_SLAVE_DATA, flags))


def by_name(name: str, flags: int = 0) -> bytes:
    """Return the head of a message to the link of this name."""
    return IFINFO.pack(0, 0, 0, flags, flags) + text(rtnl.IFLA_IFNAME, name)


def altname(marked: str, name: str = "") -> tuple[int, bytes]:
    """Return the message that marks a link, whose present name may be another."""
    return RTM_NEWLINKPROP, by_name(name or marked) + nest(
        rtnl.IFLA_PROP_LIST, text(rtnl.IFLA_ALT_IFNAME, mark(marked))
    )


def _kind(found: Link) -> str:
    return f"a {found.kind} link" if found.kind else "a physical link"


def owned(found: list[Link]) -> set[str]:
    """Return the names of our links; of a pair whose both ends are here, the host side alone."""
    being_deleted = {link.index for link in found if link.being_deleted}
    being_deleted |= {link.peer for link in found if link.being_deleted and link.kind == "veth"}
    ours = {link.index: link for link in found if link.marked and link.index not in being_deleted}
    names: set[str] = set()
    for link in ours.values():
        other = ours.get(link.peer) if link.kind == "veth" and link.peer_here else None
        if other is None or other.peer != link.index or not link.name.startswith(SANDBOX_SIDES):
            names.update(name.removeprefix(MARK) for name in link.altnames if name.startswith(MARK))
    return names
