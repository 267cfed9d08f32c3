"""VXLAN links (step `Vxlan`).

A link has no underlying device (``dev``), so its MTU is the step's and outer packets follow the host's routes. It has a
source address (``local``), since peers drop packets from any other. An error names the link that uses the same VNI.
"""

import errno
import struct

from netplug.drivers.tunnel import Vxlan
from netplug.kernel.api import Outcome, StepError
from netplug.kernel.links import router_advertisements
from netplug.kernel.links.bridges import LinkBusyError, altname, by_name, schedule_delete
from netplug.kernel.links.differences import Difference, adjust, common_differences, port_info, settings_differences
from netplug.kernel.links.ports import blocking_differences
from netplug.kernel.links.rollback import deleted_on_failure, refuse_renamed
from netplug.kernel.netlink import rtnl, vxlan_info
from netplug.kernel.netlink.connection import NEW, RTM_NEWLINK, Netlink, NetlinkError, attr, nest, text, u8, u32
from netplug.kernel.netlink.port_flags import of_tunnel
from netplug.kernel.netlink.rtnl import IFF_UP, IFINFO, Link

_FLAG_NAMES = {
    rtnl.IFLA_BRPORT_LEARNING: "learning",
    rtnl.IFLA_BRPORT_UNICAST_FLOOD: "flood",
    rtnl.IFLA_BRPORT_MCAST_FLOOD: "mcast_flood",
    rtnl.IFLA_BRPORT_BCAST_FLOOD: "bcast_flood",
    rtnl.IFLA_BRPORT_NEIGH_SUPPRESS: "neigh_suppress",
    rtnl.IFLA_BRPORT_ISOLATED: "isolated",
}
"""As bridge(8) names them."""


def ensure(nl: Netlink, step: Vxlan, group: int) -> Outcome:
    """Create a VXLAN link, or repair ours. `group`: to delete a link that must be created anew; see `reaper`.

    Raises:
        LinkBusyError: a link of this name or with this VNI is being deleted; wait, then try again.
    """
    master = rtnl.index(nl, step.master)
    if master is None:
        raise StepError("not_found", step, f"bridge {step.master!r} of link {step.name!r} is missing")
    try:
        nl.request(RTM_NEWLINK, _message(step, master), NEW)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise _refusal(step, error) from error
        return _existing(nl, step, group)
    flags = b"".join(u8(kind, value) for kind, value in of_tunnel(step).items())
    with deleted_on_failure(nl, step):
        nl.request(*altname(step.name), NEW)
        # Before it is up, so that the kernel adds no address.
        router_advertisements.write_ipv6(nl, step.name, router_advertisements.AS_PORT)
        try:
            ipv4 = router_advertisements.ipv4_attributes(router_advertisements.AS_PORT)
            nl.request(RTM_NEWLINK, by_name(step.name, IFF_UP) + ipv4 + port_info(flags))
        except NetlinkError as error:
            raise _refusal(step, error) from error
    return Outcome.CREATED


def differences(step: Vxlan, found: Link, master: Link | None) -> list[Difference]:
    """Compare a VXLAN link of ours with its step. `master`: its bridge."""
    info = found.vxlan
    if info is None:
        return [Difference(f"is a {found.kind} link, not a vxlan")]
    found_differences = common_differences(found, step.mac, step.mtu, up=True) + settings_differences(
        found, router_advertisements.AS_PORT, step.mtu
    )
    for what, current, wanted in (("VNI", info.vni, step.vni), ("UDP port", info.port, step.port)):
        if current != wanted:
            found_differences.append(Difference(f"{what} is {current}, not {wanted}"))
    found_differences += _trait_differences(step, info)
    if not master or found.master != master.index:
        mend = u32(rtnl.IFLA_MASTER, master.index) if master else b""
        # A link that becomes a bridge port gets default flags.
        mended = b"".join(u8(kind, value) for kind, value in of_tunnel(step).items())
        found_differences.append(Difference(f"is not a port of {step.master!r}", mend))
        found_differences.append(Difference("flags of the port", mended, port=True))
        return found_differences
    for kind, wanted in of_tunnel(step).items():
        if info.flags.get(kind) != wanted:
            words = f"port flag {_FLAG_NAMES[kind]} is {'on' if info.flags.get(kind) else 'off'}"
            found_differences.append(Difference(words, u8(kind, wanted), port=True))
    return found_differences + blocking_differences(found, master, without=_FLAG_NAMES)


def _trait_differences(step: Vxlan, info: vxlan_info.VxlanInfo) -> list[Difference]:
    """Compare how it sends. One message mends all: the kernel takes the last attribute of a kind."""
    group = vxlan_info.IFLA_VXLAN_GROUP if step.local.version == 4 else vxlan_info.IFLA_VXLAN_GROUP6
    wrong: dict[str, bytes] = {}
    if info.local != step.local:
        wrong[f"sends from {info.local}, not {step.local}"] = _local(step)
    if info.learning:
        wrong["learns VTEPs"] = u8(vxlan_info.IFLA_VXLAN_LEARNING, 0)
    if info.ttl:
        wrong[f"sends with TTL {info.ttl}, not the host's"] = u8(vxlan_info.IFLA_VXLAN_TTL, 0)
    if info.remote:
        wrong[f"sends what is for unknown MACs to {info.remote}"] = attr(group, bytes(len(step.local.packed)))
    mend = _info(u32(vxlan_info.IFLA_VXLAN_ID, step.vni), *wrong.values())
    found = [Difference(", ".join(wrong), mend)] if wrong else []
    # The kernel does not take the device off again (drivers/net/vxlan, vxlan_config_apply).
    return [*found, Difference("sends by one link, not by routes")] if info.device else found


def _existing(nl: Netlink, step: Vxlan, group: int) -> Outcome:
    found = rtnl.link(nl, step.name)
    if found is None:
        refuse_renamed(nl, step.name)
        return _refuse_vni(nl, step)
    if not found.is_ours(step.name):
        raise StepError("exists", step, f"link {step.name!r} exists and is not ours", hint="remove or rename it")
    if found.being_deleted:
        raise LinkBusyError
    info = found.vxlan
    if info and info.local and info.local.version != step.local.version:
        # The kernel can change the source address only within its IP version (vxlan_nl2conf).
        schedule_delete(nl, step, group)
        raise LinkBusyError
    return adjust(nl, found, differences(step, found, rtnl.link(nl, step.master)), step)


def _refuse_vni(nl: Netlink, step: Vxlan) -> Outcome:
    """Raise an error that names the link with this VNI. The kernel does not name it.

    One that is not found was deleted since the kernel refused ours, or was moved to another namespace.
    """
    hint = "choose another vni or vxlan_port, or remove that link"
    for link in rtnl.links(nl):
        info = link.vxlan
        if info and (info.vni, info.port) == (step.vni, step.port):
            if link.being_deleted:
                raise LinkBusyError
            words = f"VNI {step.vni} on UDP port {step.port} is in use by link {link.name!r}"
            raise StepError("exists", step, words if link.marked else f"{words}, which is not ours", hint=hint)
    words = f"VNI {step.vni} on UDP port {step.port} is in use by a vxlan link that was moved to another namespace"
    raise LinkBusyError(StepError("exists", step, words, hint=hint))


def _message(step: Vxlan, master: int) -> bytes:
    data = (
        u32(vxlan_info.IFLA_VXLAN_ID, step.vni),
        _local(step),
        u8(vxlan_info.IFLA_VXLAN_LEARNING, 0),
        attr(vxlan_info.IFLA_VXLAN_PORT, struct.pack(">H", step.port)),
    )
    return (
        IFINFO.pack(0, 0, 0, 0, 0)
        + text(rtnl.IFLA_IFNAME, step.name)
        + attr(rtnl.IFLA_ADDRESS, rtnl.packed_mac(step.mac))
        + u32(rtnl.IFLA_MTU, step.mtu)
        + u32(rtnl.IFLA_MASTER, master)
        + _info(*data)
    )


def _info(*data: bytes) -> bytes:
    return nest(rtnl.IFLA_LINKINFO, text(rtnl.IFLA_INFO_KIND, "vxlan"), nest(rtnl.IFLA_INFO_DATA, *data))


def _local(step: Vxlan) -> bytes:
    return attr(
        vxlan_info.IFLA_VXLAN_LOCAL if step.local.version == 4 else vxlan_info.IFLA_VXLAN_LOCAL6, step.local.packed
    )


def _refusal(step: Vxlan, error: NetlinkError) -> StepError:
    match error.errno:
        case errno.EOPNOTSUPP:
            return StepError("unavailable", step, "the kernel has no VXLAN, which mode overlay needs (CONFIG_VXLAN)")
        case errno.EADDRINUSE:
            words = f"UDP port {step.port}, wanted for VXLAN, is in use by another socket"
            return StepError("unavailable", step, words, hint="see ss -lnup, or choose another vxlan_port")
    return StepError("internal", step, f"kernel refused link {step.name!r}: {error.strerror}")
