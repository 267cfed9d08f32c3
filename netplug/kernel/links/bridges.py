"""Bridges, the flags of bridge ports, and what all links of ours have in common.

A link is created without looking first, and compared only if its name exists. So a new endpoint needs three kinds of
messages (the pair, the flags of the port, an altname for each end) and no query. A link that is deleted without being
read is addressed by its altname, the mark: a link of the same name that is not ours cannot be hit.
"""

import errno
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress

from netplug.drivers.naming import MARK, SANDBOX_SIDES, mark
from netplug.drivers.steps import Bridge, Hairpin, Ifb, Macvlan, Veth
from netplug.drivers.tunnel import Vxlan
from netplug.kernel.api import Outcome, StepError
from netplug.kernel.links import addresses, router_advertisements
from netplug.kernel.links.differences import (
    Difference,
    adjust,
    common_differences,
    link_local_differences,
    port_info,
    settings_differences,
)
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
from netplug.kernel.netlink.rtnl import CARRIES, IFF_NOARP, IFF_UP, IFINFO, Link, LinkAddress

_STATE_DISABLED, _STATE_FORWARDING = 0, 3

Sandbox = Callable[[str, str], tuple[int, Netlink]]
"""Returns the file descriptor and netlink socket of a sandbox, by path and identity. The function owns both."""


class LinkBusyError(Exception):
    """A link that is in the way is being deleted, or was deleted before it was looked for.

    `otherwise`: what it means if it stays so; none: a link of ours with this name is still being deleted.
    """

    def __init__(self, otherwise: StepError | None = None) -> None:
        super().__init__()
        self.otherwise = otherwise


def ensure_bridge(nl: Netlink, step: Bridge) -> Outcome:
    """Create a bridge, or repair ours.

    Raises:
        LinkBusyError: a link of this name is being deleted; wait, then try again.
    """
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
            nl.request(RTM_NEWLINK, mtu + router_advertisements.ipv4_attributes(router_advertisements.towards_host()))
            router_advertisements.write_ipv6(nl, step.name, router_advertisements.NO_ROUTERS)
            addresses.add_link_local(nl, rtnl.index(nl, step.name) or 0, addresses.link_local_of(step.mac))
        return Outcome.CREATED
    found = rtnl.link(nl, step.name)
    if found is None:
        raise LinkBusyError
    if found.is_ours(step.name):
        if found.being_deleted:
            raise LinkBusyError
        outcome = adjust(nl, found, bridge_differences(step, found, rtnl.addresses(nl, found.index)), step)
        if found.stp:
            _let_forward(nl, found.index)
        return outcome
    if step.adopt and found.kind == "bridge":
        return Outcome.USED
    if step.adopt:
        raise StepError("invalid", step, f"link {step.name!r} is not a bridge but {kind(found)}")
    raise StepError("exists", step, f"link {step.name!r} exists and is not ours", hint="remove or rename it")


def _let_forward(nl: Netlink, bridge: int) -> None:
    """Have all ports of a bridge forward that do not: the spanning tree protocol had them wait up to 30 s.

    They would wait on when it has ended (net/bridge/br_stp_timer.c). `bridge`: index.
    """
    for port in rtnl.links(nl):
        if port.master == bridge and port.flags & CARRIES == CARRIES and rtnl.IFLA_BRPORT_STATE in port.blocks:
            state = port_info(u8(rtnl.IFLA_BRPORT_STATE, _STATE_FORWARDING))
            with suppress(NetlinkError):  # it is gone, or has no carrier any more
                nl.request(RTM_NEWLINK, IFINFO.pack(0, 0, port.index, 0, 0) + state)


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
        return [Difference(f"is {kind(found)}, not a bridge")]
    differences = common_differences(found, step.mac, step.mtu, up=True) + settings_differences(
        found, router_advertisements.towards_host(found.settings), step.mtu
    )
    if found.group != step.group:
        differences.append(Difference(f"group is {found.group}, not {step.group}", u32(rtnl.IFLA_GROUP, step.group)))
    differences += link_local_differences(found, there)
    if found.flags & IFF_NOARP:
        differences.append(Difference("does not ask for MACs (ARP is off)", clear=IFF_NOARP))
    if found.stp:
        differences.append(Difference("runs the spanning tree protocol", _bridge_info(u32(rtnl.IFLA_BR_STP_STATE, 0))))
    if found.learns_from_reserved:
        differences.append(Difference("learns MACs from link-local frames", _bridge_info()))
    return differences


def _bridge_info(more: bytes = b"") -> bytes:
    """Return the attributes of a bridge that learns no MACs from link-local frames (BR_BOOLOPT_NO_LL_LEARN)."""
    options = attr(rtnl.IFLA_BR_MULTI_BOOLOPT, struct.pack("=II", rtnl.NO_LL_LEARN, rtnl.NO_LL_LEARN))
    return nest(rtnl.IFLA_LINKINFO, text(rtnl.IFLA_INFO_KIND, "bridge"), nest(rtnl.IFLA_INFO_DATA, options, more))


def by_name(name: str, flags: int = 0) -> bytes:
    """Return the start of a message about the link of this name."""
    return IFINFO.pack(0, 0, 0, flags, flags) + text(rtnl.IFLA_IFNAME, name)


def altname(marked: str, name: str = "") -> tuple[int, bytes]:
    """Return the message that marks a link as ours. `name`: its current name, if that is not `marked`."""
    return RTM_NEWLINKPROP, by_name(name or marked) + nest(
        rtnl.IFLA_PROP_LIST, text(rtnl.IFLA_ALT_IFNAME, mark(marked))
    )


def kind(found: Link) -> str:
    """Return what a link is, for messages."""
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
