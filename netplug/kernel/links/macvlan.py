"""Macvlan links: created on the host or in a sandbox, and found again after a runtime moved them.

A macvlan has no peer on the host: Docker moves the link itself into its sandbox and renames it. Only the altname stays,
so the link is looked up by altname, first on the host and then in the sandbox.
"""

import errno
from collections.abc import Iterable

from netplug.drivers.naming import mark
from netplug.drivers.steps import Macvlan
from netplug.kernel.api import Outcome, StepError
from netplug.kernel.links import router_advertisements
from netplug.kernel.links.bridges import LinkBusyError, Sandbox, altname, by_name
from netplug.kernel.links.differences import (
    Difference,
    adjust,
    common_differences,
    sandbox_differences,
    settings_differences,
)
from netplug.kernel.links.rollback import deleted_on_failure
from netplug.kernel.links.veths import goes_with_its_pair
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import (
    NEW,
    RTM_DELLINK,
    RTM_NEWLINK,
    Netlink,
    NetlinkError,
    attr,
    nest,
    text,
    u32,
)
from netplug.kernel.netlink.rtnl import IFF_UP, IFINFO, Link


def ensure_macvlan(nl: Netlink, step: Macvlan, sandbox: Sandbox) -> Outcome:
    """Create a macvlan, or repair ours.

    Raises:
        LinkBusyError: a link of this name is being deleted; wait, then try again.
    """
    fd, inside = sandbox(step.netns, step.netns_id) if step.netns else (None, nl)
    if found := rtnl.link(inside, mark(step.name)):
        if found.being_deleted:
            raise LinkBusyError
        return adjust(inside, found, differences(step, found))
    if step.moved and (away := _inside(step.moved, step, sandbox)):
        return adjust(sandbox(step.moved, step.netns_id)[1], away, _new_mtu(step, away))
    parent = rtnl.link(nl, step.parent)
    if parent is None:
        raise StepError("not_found", step, f"parent {step.parent!r} of link {step.name!r} is missing")
    try:
        nl.request(RTM_NEWLINK, _message(step, parent.index, fd), NEW)
    except NetlinkError as error:
        if error.errno == errno.EEXIST and goes_with_its_pair(nl, rtnl.link(inside, step.ifname or step.name)):
            raise LinkBusyError from error
        raise _refusal(step, error) from error
    name = step.ifname or step.name
    with deleted_on_failure(inside, step, name):
        inside.request(*altname(step.name, name), NEW)
        if step.up:
            router_advertisements.write_ipv6(inside, name, router_advertisements.NO_ROUTERS)
        if step.netns and not step.slaac:
            router_advertisements.write_in_sandbox(inside, name)
        if step.netns or step.up:
            ipv4 = router_advertisements.ipv4_attributes(router_advertisements.NO_ROUTERS) if step.up else b""
            inside.request(RTM_NEWLINK, by_name(name, IFF_UP) + ipv4)
    return Outcome.CREATED


def remove_moved(step: Macvlan, sandbox: Sandbox) -> None:
    """Delete a macvlan in its sandbox; absent is success. Blocks for 15 to 20 ms."""
    netns = step.netns or step.moved
    found = _inside(netns, step, sandbox) if netns else None
    if netns and found:
        try:
            sandbox(netns, step.netns_id)[1].request(RTM_DELLINK, IFINFO.pack(0, 0, found.index, 0, 0))
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise


def differences(step: Macvlan, found: Link) -> list[Difference]:
    """Compare a macvlan that no runtime has moved. In passthru mode it has its parent's MAC until it is up."""
    if found.kind != "macvlan":
        return [Difference(f"is a {found.kind} link, not a macvlan")]
    if step.tunable:
        return _new_mtu(step, found)
    mac = found.mac if step.mode == "passthru" else step.mac
    wrong = common_differences(found, mac, step.mtu, up=step.up or bool(step.netns))
    if step.up:
        wrong += settings_differences(found, router_advertisements.NO_ROUTERS, step.mtu)
    return wrong + sandbox_differences(step, found)


def _new_mtu(step: Macvlan, found: Link) -> list[Difference]:
    """Return the new MTU of a link that others may tune, if it has the former one."""
    if not found.mtu == step.former != step.mtu:
        return []
    mtu = Difference(f"mtu is {found.mtu}, not {step.mtu}", u32(rtnl.IFLA_MTU, step.mtu))
    return [mtu, *sandbox_differences(step, found)]


def find(step: Macvlan, links: Iterable[Link]) -> Link | None:
    """Return the link of a step among the links of a namespace."""
    return next((link for link in links if link.is_ours(step.name) and not link.being_deleted), None)


def _inside(netns: str, step: Macvlan, sandbox: Sandbox) -> Link | None:
    """Return the link as it is in a sandbox. After a crash it may lack its altname; name and MAC identify it then."""
    try:
        inside = sandbox(netns, step.netns_id)[1]
    except FileNotFoundError:
        return None
    found = rtnl.link(inside, mark(step.name))
    if found is None and step.ifname:
        new = rtnl.link(inside, step.ifname)
        found = new if new and new.kind == "macvlan" and not new.altnames and new.mac == step.mac else None
    return found


def _message(step: Macvlan, parent: int, fd: int | None) -> bytes:
    return (
        IFINFO.pack(0, 0, 0, 0, 0)
        + text(rtnl.IFLA_IFNAME, step.ifname or step.name)
        + attr(rtnl.IFLA_ADDRESS, rtnl.packed_mac(step.mac))
        + u32(rtnl.IFLA_MTU, step.mtu)
        + u32(rtnl.IFLA_LINK, parent)
        + (u32(rtnl.IFLA_NET_NS_FD, fd) if fd is not None else b"")
        + nest(
            rtnl.IFLA_LINKINFO,
            text(rtnl.IFLA_INFO_KIND, "macvlan"),
            nest(rtnl.IFLA_INFO_DATA, u32(rtnl.IFLA_MACVLAN_MODE, rtnl.MACVLAN_MODES[step.mode])),
        )
    )


def _refusal(step: Macvlan, error: NetlinkError) -> StepError:
    name = step.ifname or step.name
    match error.errno:
        case errno.EEXIST:
            return StepError("exists", step, f"link {name!r} exists and is not ours", hint="remove or rename it")
        case errno.EBUSY:
            return StepError("unavailable", step, f"parent {step.parent!r} is in use as a port of a bridge or bond")
        case errno.EINVAL:
            words = f"parent {step.parent!r} is in use: with macvlan_mode=passthru a parent has one macvlan only"
            return StepError("unavailable", step, words, hint="remove the other macvlan, or choose another parent")
        case errno.EADDRINUSE:
            words = f"MAC {step.mac} is already in use on parent {step.parent!r}"
            return StepError("unavailable", step, words, hint="choose another --mac-address")
    return StepError("internal", step, f"kernel refused link {name!r}: {error.strerror}")
