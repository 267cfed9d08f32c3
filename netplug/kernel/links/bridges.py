"""Bridges, veths, and the flags of bridge ports.

A link is created without looking first, and compared only if its name exists. So a new endpoint needs three kinds of
messages (the pair, the flags of the port, an altname for each end) and no query. A link that is deleted without being
read is addressed by its altname, the mark: a link of the same name that is not ours cannot be hit.
"""

import errno
import struct
from collections.abc import Callable, Collection, Iterable, Mapping

from netplug.drivers.naming import MARK, SANDBOX_SIDES, mark
from netplug.drivers.steps import Bridge, Hairpin, Ifb, Macvlan, Veth
from netplug.drivers.tunnel import Vxlan
from netplug.kernel.api import Outcome, StepError
from netplug.kernel.links import addresses, neighbours, router_advertisements
from netplug.kernel.links.differences import (
    Difference,
    adjust,
    common_differences,
    gets_ipv6,
    link_local_differences,
    port_info,
    settings_differences,
)
from netplug.kernel.links.rollback import deleted_on_failure, refuse_renamed
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
from netplug.kernel.netlink.rtnl import IFF_UP, IFINFO, Link, LinkAddress

_VETH_INFO_PEER = 1
_STATE_DISABLED = 0
_ONE_QUEUE = u32(rtnl.IFLA_NUM_TX_QUEUES, 1) + u32(rtnl.IFLA_NUM_RX_QUEUES, 1)
"""A veth uses one queue in each direction. By default, newer kernels allocate one for each CPU, for later use by
``ethtool -L``, which takes a third of the time to create a pair."""

Sandbox = Callable[[str, str], tuple[int, Netlink]]
"""Returns the file descriptor and netlink socket of a sandbox, by path and identity. The function owns both."""


class LinkBusyError(Exception):
    """A link of ours with this name is still being deleted."""


def ensure_bridge(nl: Netlink, step: Bridge) -> Outcome:
    """Create a bridge, or repair ours."""
    message = (
        IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP)
        + text(rtnl.IFLA_IFNAME, step.name)
        + attr(rtnl.IFLA_ADDRESS, rtnl.packed_mac(step.mac))
        + u32(rtnl.IFLA_MTU, step.mtu ^ 1)
        + u32(rtnl.IFLA_GROUP, step.group)
        + _bridge_info()
    )
    try:
        nl.request(RTM_NEWLINK, message, NEW)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
    else:
        # Until its MTU is *changed* (BROPT_MTU_SET_BY_USER), a bridge follows the smallest MTU of its ports.
        mtu = by_name(step.name) + u32(rtnl.IFLA_MTU, step.mtu)
        with deleted_on_failure(nl, step):
            nl.request(*altname(step.name), NEW)
            nl.request(RTM_NEWLINK, mtu + router_advertisements.ipv4_attributes(router_advertisements.NO_ROUTERS))
            router_advertisements.write_ipv6(nl, step.name, router_advertisements.NO_ROUTERS)
            addresses.add_link_local(nl, rtnl.index(nl, step.name) or 0, addresses.link_local_of(step.mac))
        return Outcome.CREATED
    found = rtnl.link(nl, step.name)
    if found is None:
        raise StepError("exists", step, f"the altname {mark(step.name)!r} is taken on this host")
    if found.is_ours(step.name):
        if found.being_deleted:
            raise LinkBusyError
        return adjust(nl, found, bridge_differences(step, found, rtnl.addresses(nl, found.index)), step)
    if step.adopt and found.kind == "bridge":
        return Outcome.USED
    if step.adopt:
        raise StepError("invalid", step, f"link {step.name!r} is not a bridge but {_kind(found)}")
    raise StepError("exists", step, f"link {step.name!r} exists and is not ours", hint="remove or rename it")


def ensure_veth(nl: Netlink, step: Veth, sandbox: Sandbox) -> Outcome:
    """Create a veth pair, or repair ours. Its host side is up and a port of its master.

    Raises:
        LinkBusyError: a link of this name is being deleted; wait, then try again.
    """
    index = rtnl.index(nl, step.master) if step.master else 0
    if index is None:
        raise StepError("not_found", step, f"bridge {step.master!r} of link {step.name!r} is missing")
    fd, inside = sandbox(step.netns, step.netns_id) if step.netns else (None, nl)
    try:
        nl.request(RTM_NEWLINK, _veth(step, index, fd), NEW)
    except NetlinkError as error:
        if error.errno == errno.EXFULL:
            words = f"bridge {step.master!r} has 1023 ports, the most of a Linux bridge"
            raise StepError("unavailable", step, words, hint="use a second network") from error
        if error.errno != errno.EEXIST:
            raise
        return _existing_veth(nl, step, index, inside, sandbox)
    with deleted_on_failure(nl, step):
        _set_up(nl, step, inside)
    return Outcome.CREATED


def _set_up(nl: Netlink, step: Veth, inside: Netlink) -> None:
    """Set what the message that creates a pair cannot hold."""
    settings, flags = _settings(step), _port_flags(step)
    nl.request(*altname(step.name), NEW)
    # Early enough: a veth has no carrier before its peer is up, so the kernel has not added an address yet.
    nl.request(
        RTM_NEWLINK,
        by_name(step.name) + router_advertisements.ipv4_attributes(settings) + (port_info(flags) if flags else b""),
    )
    router_advertisements.write_ipv6(nl, step.name, settings)
    if step.pinned:
        neighbours.add_static(nl, rtnl.index(nl, step.name) or 0, step.peer_mac)
    try:
        inside.request(*altname(step.peer), NEW)
        if step.netns:
            if not step.slaac:
                router_advertisements.write_in_sandbox(inside, step.peer)
            # Not in the first message: the kernel refuses with ENOTCONN to create a pair whose peer is up.
            inside.request(RTM_NEWLINK, by_name(step.peer, IFF_UP))
    except NetlinkError as error:
        raise StepError("internal", step, f"kernel refused link {step.peer!r}: {error.strerror}") from error


def rename(nl: Netlink, step: Bridge | Veth | Macvlan | Ifb | Vxlan, found: Link) -> None:
    """Give a link the name of its step again.

    Raises:
        StepError: another link has that name.
    """
    head, name = IFINFO.pack(0, 0, found.index, 0, 0), text(rtnl.IFLA_IFNAME, step.name)
    try:
        try:
            nl.request(RTM_NEWLINK, head + name)
        except NetlinkError as error:
            if error.errno != errno.EBUSY:
                raise
            # Before Linux 6.2 a link that is up cannot be renamed.
            nl.request(RTM_NEWLINK, IFINFO.pack(0, 0, found.index, 0, IFF_UP))
            nl.request(RTM_NEWLINK, head + name)
            nl.request(RTM_NEWLINK, IFINFO.pack(0, 0, found.index, IFF_UP, IFF_UP))
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
        words = f"link {step.name!r} is called {found.name!r} now, and another link has its name"
        raise StepError("exists", step, words, hint="remove or rename that one") from error


def ensure_hairpin(nl: Netlink, step: Hairpin) -> Outcome:
    """Enable hairpin mode on a bridge port."""
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
    """Disable hairpin mode on a bridge port."""
    found = rtnl.link(nl, step.link)
    if found and found.hairpin:
        nl.request(RTM_NEWLINK, IFINFO.pack(0, 0, found.index, 0, 0) + port_info(u8(rtnl.IFLA_BRPORT_MODE, 0)))


def schedule_delete(nl: Netlink, step: Bridge | Veth | Macvlan | Ifb | Vxlan, group: int) -> bool:
    """Disable a link of ours and move it to a group that will be deleted. Return False if there is no such link."""
    if _move_to_group(nl, text(rtnl.IFLA_ALT_IFNAME, mark(step.name)), group):
        return True
    # A link cannot be created with its altname. After a crash in between, its name and MAC identify it: both are
    # derived from one id.
    found = rtnl.link(nl, step.name) if step.mac else None
    unmarked = found is not None and found.name == step.name and not found.altnames and found.mac == step.mac
    return unmarked and _move_to_group(nl, text(rtnl.IFLA_IFNAME, step.name), group)


def _move_to_group(nl: Netlink, name: bytes, group: int) -> bool:
    head = IFINFO.pack(0, 0, 0, 0, 0) + name + u32(rtnl.IFLA_GROUP, group)
    try:
        # Disable the bridge port. Setting the link down would wait for an RCU grace period, like the deletion itself.
        nl.request(RTM_NEWLINK, head + port_info(u8(rtnl.IFLA_BRPORT_STATE, _STATE_DISABLED)))
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return False
        # It is a bridge or has no master (EOPNOTSUPP), or the port is down already (ENETDOWN).
        try:
            nl.request(RTM_NEWLINK, head)
        except NetlinkError as second:
            if second.errno == errno.ENODEV:
                return False
            raise
    return True


def bridge_differences(step: Bridge, found: Link, there: Iterable[LinkAddress]) -> list[Difference]:
    """Compare a bridge of ours with its step. `there`: its addresses."""
    if found.kind != "bridge":
        return [Difference(f"is {_kind(found)}, not a bridge")]
    differences = common_differences(found, step.mac, step.mtu, up=True) + settings_differences(
        found, router_advertisements.NO_ROUTERS, step.mtu
    )
    if found.group != step.group:
        differences.append(Difference(f"group is {found.group}, not {step.group}", u32(rtnl.IFLA_GROUP, step.group)))
    differences += link_local_differences(found, there)
    if found.learns_from_reserved:
        differences.append(Difference("learns MACs from link-local frames", _bridge_info()))
    return differences


def veth_differences(
    step: Veth, found: Link, master: int, peer: Link | None, static_macs: Collection[str]
) -> list[Difference]:
    """Compare a veth of ours with its step.

    `master`: index of its bridge, 0 if there is none. `peer`: its sandbox side, if that is in the step's namespace.
    `static_macs`: the bridge's static FDB entries for this port.
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
        differences.append(Difference(f"the bridge has no static FDB entry for {mac}", add_static=mac))
    # A pinned port has one MAC. At any other port, users may have static entries of their own.
    stale = [it for it in sorted(static_macs) if (it != mac if step.pinned else it == mac)]
    differences += [Difference(f"the bridge has a static FDB entry for {it}", remove_static=it) for it in stale]
    differences += settings_differences(found, _settings(step), step.mtu)
    if peer is None and step.netns:
        differences.append(Difference(f"sandbox side {step.peer!r} is not in {step.netns}"))
    return differences


def peer_differences(step: Veth, peer: Link | None) -> list[Difference]:
    """Compare the sandbox side. Nothing is compared once a runtime has moved it."""
    if peer is None or step.tunable or step.moved:
        return []
    differences = [
        Difference(f"sandbox side: {item.what}", item.mend, item.flags)
        for item in common_differences(peer, step.peer_mac, step.mtu, up=bool(step.netns))
    ]
    return differences + _sandbox_settings(step, peer)


def peer_of(step: Veth, found: Link, inside: Netlink | Mapping[str, Link]) -> Link | None:
    """Return the sandbox side, if it is in the step's namespace."""
    peer = inside.get(step.peer) if isinstance(inside, Mapping) else rtnl.link(inside, step.peer)
    if peer is None or not peer.is_ours(step.peer):
        return None
    # The indices of a sandbox are of another namespace, so there the altname alone decides.
    return peer if step.netns or (found.peer == peer.index and found.peer_here) else None


def _existing_veth(nl: Netlink, step: Veth, master: int, inside: Netlink, sandbox: Sandbox) -> Outcome:
    found = rtnl.link(nl, step.name)
    if found is None:
        refuse_renamed(nl, step.name)
        other = rtnl.link(inside, step.peer)
        if other and other.is_ours(step.peer) and not step.netns:
            raise LinkBusyError
        raise StepError("exists", step, f"link {step.peer!r}, wanted for the sandbox side of {step.name!r}, exists")
    if not found.is_ours(step.name):
        raise StepError("exists", step, f"link {step.name!r} exists and is not ours", hint="remove or rename it")
    if found.being_deleted:
        raise LinkBusyError
    peer = peer_of(step, found, inside)
    changes = not found.up or found.mtu != step.mtu
    if peer is None and step.moved and changes and (there := _moved(step, sandbox)):
        inside, peer = there
    static_macs = neighbours.static_macs(nl, found.index) if found.master else ()
    differences = veth_differences(step, found, master, peer, static_macs)
    inner = peer_differences(step, peer) or _new_mtu(step, found, peer)
    # First the end that would send larger packets than the other one accepts.
    inside_first = step.mtu < found.mtu
    if peer and inner and inside_first:
        adjust(inside, peer, inner)
    outcome = adjust(nl, found, differences, step)
    if peer and inner and not inside_first:
        adjust(inside, peer, inner)
    if peer and not found.up:
        # The other end had no carrier: its kernel forgot its neighbours, and asked for them in vain.
        neighbours.forget_unanswered(inside, peer.index)
    return Outcome.ADJUSTED if inner else outcome


def _moved(step: Veth, sandbox: Sandbox) -> tuple[Netlink, Link] | None:
    """Return the sandbox side where a runtime has moved it, and a socket there; None if it is gone."""
    try:
        _, inside = sandbox(step.moved or "", step.netns_id)
    except FileNotFoundError:
        return None
    found = rtnl.link(inside, mark(step.peer))
    return (inside, found) if found else None


def _new_mtu(step: Veth, found: Link, peer: Link | None) -> list[Difference]:
    """Return what a sandbox side that others may tune lacks: the new MTU, if it had that of the host side."""
    if peer is None or not (step.tunable or step.moved) or not peer.mtu == found.mtu != step.mtu:
        return []
    mtu = Difference(f"sandbox side: mtu is {peer.mtu}, not {step.mtu}", u32(rtnl.IFLA_MTU, step.mtu))
    return [mtu, *_sandbox_settings(step, peer)]


def _sandbox_settings(step: Veth, peer: Link) -> list[Difference]:
    """Return what a sandbox side lacks once it has IPv6 again. What a runtime moved has the runtime's settings."""
    if not step.netns or step.slaac or not gets_ipv6(peer, step.mtu):
        return []
    return [Difference("sandbox side: has no IPv6", in_sandbox=True)]


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
    """Return the attributes of a bridge that learns no MACs from link-local frames (BR_BOOLOPT_NO_LL_LEARN)."""
    options = attr(rtnl.IFLA_BR_MULTI_BOOLOPT, struct.pack("=II", rtnl.NO_LL_LEARN, rtnl.NO_LL_LEARN))
    return nest(rtnl.IFLA_LINKINFO, text(rtnl.IFLA_INFO_KIND, "bridge"), nest(rtnl.IFLA_INFO_DATA, options))


def _settings(step: Veth) -> router_advertisements.Settings:
    return router_advertisements.AS_PORT if step.master else router_advertisements.NO_ROUTERS


def _port_flags(step: Veth) -> bytes:
    isolated = u8(rtnl.IFLA_BRPORT_ISOLATED, 1) if step.isolated else b""
    return isolated + (u8(rtnl.IFLA_BRPORT_LEARNING, 0) if step.pinned else b"")


def by_name(name: str, flags: int = 0) -> bytes:
    """Return the start of a message about the link of this name."""
    return IFINFO.pack(0, 0, 0, flags, flags) + text(rtnl.IFLA_IFNAME, name)


def altname(marked: str, name: str = "") -> tuple[int, bytes]:
    """Return the message that marks a link as ours. `name`: its current name, if that is not `marked`."""
    return RTM_NEWLINKPROP, by_name(name or marked) + nest(
        rtnl.IFLA_PROP_LIST, text(rtnl.IFLA_ALT_IFNAME, mark(marked))
    )


def _kind(found: Link) -> str:
    return f"a {found.kind} link" if found.kind else "a physical link"


def owned(found: list[Link]) -> set[str]:
    """Return the names of our links. Of a pair with both ends in this namespace, only the host side is listed."""
    being_deleted = {link.index for link in found if link.being_deleted}
    being_deleted |= {link.peer for link in found if link.being_deleted and link.kind == "veth"}
    ours = {link.index: link for link in found if link.marked and link.index not in being_deleted}
    names: set[str] = set()
    for link in ours.values():
        other = ours.get(link.peer) if link.kind == "veth" and link.peer_here else None
        if other is None or other.peer != link.index or not link.name.startswith(SANDBOX_SIDES):
            names.update(name.removeprefix(MARK) for name in link.altnames if name.startswith(MARK))
    return names
