"""veth pairs: the host side is a port of a bridge, the sandbox side is in a sandbox.

A pair is created as `bridges` creates links: without looking first.
"""

import errno
import time
from collections.abc import Collection, Mapping
from types import MappingProxyType

from netplug.drivers.naming import mark
from netplug.drivers.steps import Veth
from netplug.kernel.api import Outcome, StepError
from netplug.kernel.links import neighbours, router_advertisements
from netplug.kernel.links.bridges import LinkBusyError, Sandbox, altname, by_name, kind
from netplug.kernel.links.differences import (
    Difference,
    adjust,
    common_differences,
    port_info,
    sandbox_differences,
    settings_differences,
)
from netplug.kernel.links.ports import blocking_differences, hairpin_differences
from netplug.kernel.links.rollback import deleted_on_failure, refuse_renamed
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import (
    NEW,
    RTM_NEWLINK,
    Netlink,
    NetlinkError,
    attr,
    nest,
    text,
    u8,
    u32,
)
from netplug.kernel.netlink.rtnl import CARRIES, IFF_LOWER_UP, IFF_UP, IFINFO, Link

_VETH_INFO_PEER = 1
_SIDE = "sandbox side: "
_CARRIER_S, _LOOK_S = 0.2, 0.001
"""How long the kernel is waited for that gives a link its carrier, and how often it is asked."""
_ONE_QUEUE = u32(rtnl.IFLA_NUM_TX_QUEUES, 1) + u32(rtnl.IFLA_NUM_RX_QUEUES, 1)
"""A veth uses one queue in each direction. By default, newer kernels allocate one for each CPU, for later use by
``ethtool -L``, which takes a third of the time to create a pair."""


def ensure_veth(nl: Netlink, step: Veth, sandbox: Sandbox, *, hairpin: bool = False) -> Outcome:
    """Create a veth pair, or repair ours. Its host side is up and a port of its master.

    `hairpin`: whether that is to be in hairpin mode, which is not made here.

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
        return _existing_veth(nl, step, index, inside, sandbox, hairpin=hairpin)
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
    if step.netns:
        _wait_for_carrier(nl, step.name, step.master)


def _wait_for_carrier(nl: Netlink, *names: str) -> None:
    """Wait until links that have got a carrier pass frames, in this order: a port, then its bridge.

    A work queue of the kernel sees to that (net/core/link_watch.c), which on a busy host comes to it tens of
    milliseconds later. Until then the port is disabled, and drops what is sent to a container that counts as connected.
    Since Linux 6.8 a question for a link does it at once (rtnl_getlink), so that there is nothing to wait for.
    """
    deadline = time.monotonic() + _CARRIER_S
    for name in filter(None, names):
        while (found := rtnl.link(nl, name)) and found.flags & CARRIES == IFF_LOWER_UP:
            if time.monotonic() > deadline:
                return
            time.sleep(_LOOK_S)


def veth_differences(
    step: Veth, found: Link, master: int, peer: Link | None, static_macs: Collection[str]
) -> list[Difference]:
    """Compare a veth of ours with its step.

    `master`: index of its bridge, 0 if there is none. `peer`: its sandbox side, if that is in the step's namespace.
    `static_macs`: the bridge's static FDB entries for this port.
    """
    if found.kind != "veth":
        return [Difference(f"is {kind(found)}, not a veth")]
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
    differences += settings_differences(found, _settings(step, found.settings), step.mtu)
    if peer is None and step.netns:
        differences.append(Difference(f"sandbox side {step.peer!r} is not in {step.netns}"))
    return differences


def peer_differences(step: Veth, peer: Link | None) -> list[Difference]:
    """Compare the sandbox side. Nothing is compared once a runtime has moved it."""
    if peer is None or step.tunable or step.moved:
        return []
    differences = [
        Difference(f"{_SIDE}{item.what}", item.mend, item.flags)
        for item in common_differences(peer, step.peer_mac, step.mtu, up=bool(step.netns))
    ]
    return differences + sandbox_differences(step, peer, _SIDE)


def peer_of(step: Veth, found: Link, inside: Netlink | Mapping[str, Link]) -> Link | None:
    """Return the sandbox side, if it is in the step's namespace."""
    peer = inside.get(step.peer) if isinstance(inside, Mapping) else rtnl.link(inside, step.peer)
    if peer is None or not peer.is_ours(step.peer):
        return None
    # The indices of a sandbox are of another namespace, so there the altname alone decides.
    return peer if step.netns or (found.peer == peer.index and found.peer_here) else None


def _existing_veth(
    nl: Netlink, step: Veth, master: int, inside: Netlink, sandbox: Sandbox, *, hairpin: bool
) -> Outcome:
    found = rtnl.link(nl, step.name)
    if found is None:
        refuse_renamed(nl, step.name)
        other = rtnl.link(inside, step.peer)
        if goes_with_its_pair(nl, other) or (other and other.is_ours(step.peer) and not step.netns):
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
    bridge = rtnl.link(nl, step.master) if found.blocks else None
    differences = veth_differences(step, found, master, peer, static_macs) + blocking_differences(found, bridge)
    differences += hairpin_differences(found, wanted=hairpin)
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


def goes_with_its_pair(nl: Netlink, inside: Link | None) -> bool:
    """Tell whether a link in a sandbox is gone, or the end of a pair of ours whose host side is being deleted.

    A container that leaves a network and joins another one at once gets a link of the same name.
    """
    if inside is None:
        return True
    if inside.kind != "veth" or not inside.marked:
        return False
    host_side = rtnl.link_at(nl, inside.peer)
    return host_side is None or host_side.being_deleted


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
    mtu = Difference(f"{_SIDE}mtu is {peer.mtu}, not {step.mtu}", u32(rtnl.IFLA_MTU, step.mtu))
    return [mtu, *sandbox_differences(step, peer, _SIDE)]


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


def _settings(step: Veth, present: Mapping[str, str] = MappingProxyType({})) -> router_advertisements.Settings:
    return router_advertisements.AS_PORT if step.master else router_advertisements.towards_host(present)


def _port_flags(step: Veth) -> bytes:
    isolated = u8(rtnl.IFLA_BRPORT_ISOLATED, 1) if step.isolated else b""
    return isolated + (u8(rtnl.IFLA_BRPORT_LEARNING, 0) if step.pinned else b"")
