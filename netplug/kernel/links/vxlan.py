"""VXLAN links (step `Vxlan`): made whole, told apart from those of others that hold the same VNI.

Without a lower link of its own (no ``dev``), so the mtu is what the step says and the outer packets take the host's
routes; with a source address (``local``), since peers drop what comes from another than the one they were told.
"""

import errno
import struct

from netplug.drivers.tunnel import Vxlan
from netplug.kernel.api import Outcome, StepError
from netplug.kernel.links import router_advertisements
from netplug.kernel.links.bridges import (
    Difference,
    LinkBusyError,
    adjust,
    altname,
    by_name,
    common_differences,
    port_info,
    schedule_delete,
    settings_differences,
)
from netplug.kernel.links.rollback import deleted_on_failure
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import NEW, RTM_NEWLINK, Netlink, NetlinkError, attr, nest, text, u8, u32
from netplug.kernel.netlink.rtnl import IFF_UP, IFINFO, Link

_WORDS = {
    rtnl.IFLA_BRPORT_LEARNING: "learns MACs",
    rtnl.IFLA_BRPORT_UNICAST_FLOOD: "floods unknown unicast",
    rtnl.IFLA_BRPORT_MCAST_FLOOD: "floods multicast",
    rtnl.IFLA_BRPORT_BCAST_FLOOD: "floods broadcast",
    rtnl.IFLA_BRPORT_NEIGH_SUPPRESS: "answers for neighbours",
    rtnl.IFLA_BRPORT_ISOLATED: "is isolated",
}


def ensure(nl: Netlink, step: Vxlan, group: int) -> Outcome:
    """Bring a VXLAN link about. `group`: where a link goes that has to be made anew; see `reaper`.

    Raises:
        LinkBusyError: wait for the deletion of a link of this name or with this VNI, then try again.
    """
    master = rtnl.index(nl, step.master)
    if master is None:
        raise StepError("not_found", step, f"bridge {step.master!r} of link {step.name!r} is missing")
    try:
        nl.request(RTM_NEWLINK, _message(step, master), NEW)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise _refusal(step, error) from error
        return _existing(nl, step, master, group)
    flags = b"".join(u8(kind, value) for kind, value in _flags(step).items())
    with deleted_on_failure(nl, step):
        nl.request(*altname(step.name), NEW)
        # Before it is up, and has an address.
        router_advertisements.write_ipv6(step.name, router_advertisements.AS_PORT)
        try:
            told = router_advertisements.ipv4_attributes(router_advertisements.AS_PORT)
            nl.request(RTM_NEWLINK, by_name(step.name, IFF_UP) + told + port_info(flags))
        except NetlinkError as error:
            raise _refusal(step, error) from error
    return Outcome.CREATED


def differences(step: Vxlan, found: Link, master: int) -> list[Difference]:
    """Compare a VXLAN link of ours; `master`: index of its bridge, 0 when there is none."""
    info = found.vxlan
    if info is None:
        return [Difference(f"is a {found.kind} link, not a vxlan")]
    found_differences = common_differences(found, step.mac, step.mtu, up=True) + settings_differences(
        found, router_advertisements.AS_PORT
    )
    for what, there, wanted in (("VNI", info.vni, step.vni), ("UDP port", info.port, step.port)):
        if there != wanted:
            found_differences.append(Difference(f"{what} is {there}, not {wanted}"))
    if info.local != step.local:
        mend = _info(u32(rtnl.IFLA_VXLAN_ID, step.vni), _local(step))
        found_differences.append(Difference(f"sends from {info.local}, not {step.local}", mend))
    if info.learning:
        mend = _info(u32(rtnl.IFLA_VXLAN_ID, step.vni), u8(rtnl.IFLA_VXLAN_LEARNING, 0))
        found_differences.append(Difference("learns VTEPs", mend))
    if found.master != master or not master:
        mend = u32(rtnl.IFLA_MASTER, master) if master else b""
        # A port begins with flags of its own.
        mended = b"".join(u8(kind, value) for kind, value in _flags(step).items())
        found_differences.append(Difference(f"is not a port of {step.master!r}", mend))
        found_differences.append(Difference("flags of the port", mended, port=True))
        return found_differences
    for kind, wanted in _flags(step).items():
        if info.flags.get(kind) != wanted:
            words = f"port {_WORDS[kind]}" if info.flags.get(kind) else f"port not: {_WORDS[kind]}"
            found_differences.append(Difference(words, u8(kind, wanted), port=True))
    return found_differences


def _existing(nl: Netlink, step: Vxlan, master: int, group: int) -> Outcome:
    found = rtnl.link(nl, step.name)
    if found is None:
        return _refuse_vni(nl, step)
    if not found.is_ours(step.name):
        raise StepError("exists", step, f"link {step.name!r} exists and is not ours", hint="remove or rename it")
    if found.being_deleted:
        raise LinkBusyError
    info = found.vxlan
    if info and info.local and info.local.version != step.local.version:
        # The kernel changes the source address within its family alone (vxlan_nl2conf).
        schedule_delete(nl, step, group)
        raise LinkBusyError
    return adjust(nl, found, differences(step, found, master), step)


def _refuse_vni(nl: Netlink, step: Vxlan) -> Outcome:
    """Say who holds the VNI; the kernel knows it by VNI, UDP port and IP version, and does not tell."""
    hint = "choose another vni or vxlan_port, or remove that link"
    for link in rtnl.links(nl):
        info = link.vxlan
        if info and (info.vni, info.port) == (step.vni, step.port):
            if link.being_deleted:
                raise LinkBusyError
            words = f"VNI {step.vni} on UDP port {step.port} is held by link {link.name!r}"
            raise StepError("exists", step, words if link.marked else f"{words}, which is not ours", hint=hint)
    words = f"VNI {step.vni} on UDP port {step.port} is held by a vxlan link that was moved to another namespace"
    raise StepError("exists", step, words, hint=hint)


def _message(step: Vxlan, master: int) -> bytes:
    data = (
        u32(rtnl.IFLA_VXLAN_ID, step.vni),
        _local(step),
        u8(rtnl.IFLA_VXLAN_LEARNING, 0),
        attr(rtnl.IFLA_VXLAN_PORT, struct.pack(">H", step.port)),
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
    return attr(rtnl.IFLA_VXLAN_LOCAL if step.local.version == 4 else rtnl.IFLA_VXLAN_LOCAL6, step.local.packed)


def _flags(step: Vxlan) -> dict[int, int]:
    """Return the flags of the bridge port (bridge(8)); ARP and neighbour discovery are answered in any case."""
    flood = int(step.flood)
    return {
        rtnl.IFLA_BRPORT_LEARNING: 0,
        rtnl.IFLA_BRPORT_UNICAST_FLOOD: flood,
        rtnl.IFLA_BRPORT_MCAST_FLOOD: flood,
        rtnl.IFLA_BRPORT_BCAST_FLOOD: flood,
        rtnl.IFLA_BRPORT_NEIGH_SUPPRESS: 1,
        rtnl.IFLA_BRPORT_ISOLATED: int(step.isolated),
    }


def _refusal(step: Vxlan, error: NetlinkError) -> StepError:
    match error.errno:
        case errno.EOPNOTSUPP:
            return StepError("unavailable", step, "the kernel has no VXLAN, which mode overlay needs (CONFIG_VXLAN)")
        case errno.EADDRINUSE:
            words = f"UDP port {step.port}, wanted for VXLAN, is taken by another socket"
            return StepError("unavailable", step, words, hint="see ss -lnup, or choose another vxlan_port")
    return StepError("internal", step, f"kernel refused link {step.name!r}: {error.strerror}")
