"""Addresses and routes, in the host's namespace or in a sandbox.

We mark ours with a protocol number. An address without one also counts as ours if its link is ours: it is deleted with
the link, and kernels before 5.18 do not store a protocol with addresses.
"""

import errno
from collections.abc import Collection
from dataclasses import replace
from ipaddress import IPv6Interface

from netplug.drivers.steps import Address, IPInterface, IPNetwork, Route
from netplug.kernel.api import MISSING, Outcome, StepError
from netplug.kernel.links.source_routes import others
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import (
    NEW,
    NLM_F_CREATE,
    NLM_F_REPLACE,
    RTM_DELADDR,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWROUTE,
    Netlink,
    NetlinkError,
    attr,
    u8,
    u32,
)
from netplug.kernel.netlink.rtnl import IFADDR, PROTOCOL, RTMSG, Link, LinkAddress, LinkRoute

_IFA_F_NODAD = 0x02
"""Skip duplicate address detection: it makes the address unusable for a second, and our addresses are unique."""
_GONE = frozenset({errno.EADDRNOTAVAIL, errno.ENODEV, errno.ESRCH, errno.ENOENT})
_SCOPE_LINK = 253
_NO_IPV6 = frozenset(
    {errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENODEV, errno.ENOBUFS, errno.EAFNOSUPPORT, errno.EOPNOTSUPP}
)
"""It is disabled, not in the kernel, or the MTU is too small (addrconf.c, addrconf_add_dev, ipv6_add_dev)."""
_LINK_LOCAL = 0xFE80 << 112
_UNICAST = 1
_RTPROT_KERNEL, _RTA_PREFSRC, _IPV6_METRIC = 2, 7, 256
"""As the kernel itself makes the route of an address's subnet (fib_frontend.c, addrconf.c)."""
_ROUTELESS = frozenset({errno.EEXIST, errno.ENETDOWN, errno.ENODEV})


def ensure_address(nl: Netlink, step: Address) -> Outcome:
    """Add an address unless it is there."""
    try:
        nl.request(RTM_NEWADDR, _address(step, _index(nl, step)), NEW)
    except NetlinkError as error:
        if error.errno == errno.EEXIST:
            return _existing_address(nl, step)
        if error.errno in {errno.EACCES, errno.EPERM} and step.address.version == 6:
            raise StepError(
                "invalid",
                step,
                f"IPv6 is disabled on link {step.link!r}",
                hint=f"sysctl net.ipv6.conf.{step.link}.disable_ipv6=0",
            ) from error
        raise
    return Outcome.CREATED


def link_local_of(mac: str) -> IPv6Interface:
    """Return the link-local address that follows from a MAC (RFC 4291 appendix A).

    >>> link_local_of("02:00:00:00:00:01")
    IPv6Interface('fe80::ff:fe00:1/64')
    """
    octets = bytes.fromhex(mac.replace(":", ""))
    ident = bytes((octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]))
    return IPv6Interface((_LINK_LOCAL + int.from_bytes(ident, "big"), 64))


def add_link_local(nl: Netlink, index: int, address: IPInterface) -> None:
    """Add a link-local address to a link unless it is there, or the link has no IPv6."""
    body = IFADDR.pack(10, address.network.prefixlen, 0, _SCOPE_LINK, index)
    try:
        nl.request(RTM_NEWADDR, body + attr(rtnl.IFA_LOCAL, address.ip.packed) + u32(rtnl.IFA_FLAGS, _IFA_F_NODAD), NEW)
    except NetlinkError as error:
        if error.errno not in _NO_IPV6 | {errno.EEXIST}:
            raise


def remove_address(nl: Netlink, step: Address) -> None:
    """Remove an address if it is ours."""
    index = rtnl.index(nl, step.link)
    if index is None:
        return
    found = find_address(step, index, rtnl.addresses(nl, index))
    if found is None:
        return
    if found.protocol == PROTOCOL or ((link := rtnl.link(nl, step.link)) and is_ours(found, link)):
        _tolerant(nl, RTM_DELADDR, _address(step, index))


def find_address(step: Address, index: int, addresses: list[LinkAddress]) -> LinkAddress | None:
    """Return the kernel's entry for the address of a step on the link with this index."""
    for found in addresses:
        if found.index == index and found.address == step.address:
            return found
    return None


def is_ours(found: LinkAddress, link: Link) -> bool:
    """Return whether we added this address."""
    return found.protocol == PROTOCOL or (link.marked and not found.protocol)


def ensure_route(nl: Netlink, step: Route, *, new_link: bool = False) -> Outcome:
    """Add a route, or change ours.

    `new_link`: this call created the link. No user can have moved the route to another table yet, so none is searched.
    """
    index = _index(nl, step)
    if step.tunable and not new_link and not _route_drift(step, index, others(rtnl.routes(nl, table=0))):
        return Outcome.EQUAL
    return _make_route(nl, step, index, new_link=new_link)


def _make_route(nl: Netlink, step: Route, index: int, *, new_link: bool) -> Outcome:
    try:
        nl.request(RTM_NEWROUTE, _route(step, index), NEW)
    except NetlinkError as error:
        if error.errno == errno.ENETUNREACH or (error.errno == errno.EINVAL and step.gateway):
            raise StepError(
                "invalid", step, f"gateway {step.gateway} is not reachable on link {step.link!r}"
            ) from error
        if error.errno == errno.ENETDOWN:
            raise StepError("invalid", step, f"link {step.link!r} is down") from error
        if error.errno != errno.EEXIST:
            raise
    else:
        if new_link or step.destination.prefixlen or not _drop_other_metric(nl, step, index):
            return Outcome.CREATED
        return Outcome.ADJUSTED
    return _existing_route(nl, step, index)


def _existing_route(nl: Netlink, step: Route, index: int) -> Outcome:
    message, found = _route(step, index), find_route(step, rtnl.routes(nl))
    if found is None:
        # It was deleted in between; or it is of another type, since we list unicast routes only.
        try:
            nl.request(RTM_NEWROUTE, message, NEW)
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
            raise StepError("exists", step, f"route {step.destination} exists and is not ours") from error
        return Outcome.CREATED
    if found.index == index and found.gateway == step.gateway:
        return Outcome.EQUAL if found.protocol == PROTOCOL else Outcome.USED
    if found.protocol != PROTOCOL:
        raise StepError("exists", step, f"route {step.destination} exists with another next hop")
    if found.destination.version == 4 or (found.gateway and step.gateway):
        # Without a gap: packets go the one way or the other.
        nl.request(RTM_NEWROUTE, message, NLM_F_CREATE | NLM_F_REPLACE)
    else:
        former = Route(step.destination, step.link, found.gateway, metric=found.metric)
        _tolerant(nl, RTM_DELROUTE, _route(former, found.index))
        nl.request(RTM_NEWROUTE, message, NEW)
    return Outcome.ADJUSTED


def _drop_other_metric(nl: Netlink, step: Route, index: int) -> bool:
    """Delete our routes to the same destination by this link that have another metric; return whether there was any."""
    others = [
        found
        for found in rtnl.routes(nl)
        if (found.destination, found.index, found.protocol) == (step.destination, index, PROTOCOL)
        and found.metric != _metric(step)
    ]
    for found in others:
        _tolerant(nl, RTM_DELROUTE, _route(replace(step, gateway=found.gateway, metric=found.metric), index))
    return bool(others)


def _metric(step: Route) -> int:
    """Return the metric that the kernel shows."""
    return step.metric or (1024 if step.destination.version == 6 else 0)


def remove_route(nl: Netlink, step: Route) -> None:
    """Remove a route if it is ours."""
    index = rtnl.index(nl, step.link)
    if index:
        # The request names our protocol number, so the kernel does not match anyone else's route.
        _tolerant(nl, RTM_DELROUTE, _route(step, index))


def find_route(step: Route, routes: list[LinkRoute], index: int | None = None) -> LinkRoute | None:
    """Return the route with the destination and metric of a step, or with our protocol number.

    `index`: consider only routes of this link.
    """
    metrics = {step.metric, _metric(step)}
    here = [found for found in routes if found.destination == step.destination and index in {None, found.index}]
    same = (found for found in here if found.metric in metrics)
    return next(same, None) or next((found for found in here if found.protocol == PROTOCOL), None)


def address_drift(
    step: Address, link: Link | None, addresses: list[LinkAddress], routed: Collection[tuple[int, IPNetwork]]
) -> str:
    """Return how an address differs from the step; empty if it does not.

    `routed`: destinations of routes of the host's main table, each after the index of its link.
    """
    found = find_address(step, link.index, addresses) if link else None
    if link is None or found is None:
        return MISSING
    lost = _needs_route(step, link) and is_ours(found, link) and (link.index, step.address.network) not in routed
    return f"the route to {step.address.network} is missing" if lost else ""


def route_drift(step: Route, link: Link | None, routes: list[LinkRoute]) -> str:
    """Return how a route differs from the step; empty if it does not."""
    return _route_drift(step, link.index, routes) if link else MISSING


def _route_drift(step: Route, index: int, routes: list[LinkRoute]) -> str:
    found = find_route(step, routes, index)
    if found is None:
        return MISSING
    if found.gateway != step.gateway:
        return f"gateway is {found.gateway}, not {step.gateway}"
    return "" if found.metric in {step.metric, _metric(step)} else f"metric is {found.metric}, not {_metric(step)}"


def _existing_address(nl: Netlink, step: Address) -> Outcome:
    link = rtnl.link(nl, step.link)
    if link is None:
        raise _missing(step)
    addresses = rtnl.addresses(nl, link.index)
    found = find_address(step, link.index, addresses)
    if found and not is_ours(found, link):
        return Outcome.USED
    if found:
        return Outcome.ADJUSTED if _needs_route(step, link) and _restore_route(nl, step, link) else Outcome.EQUAL
    other = next((item for item in addresses if item.address.ip == step.address.ip), None)
    if other is None:
        # It was deleted in between.
        nl.request(RTM_NEWADDR, _address(step, link.index), NEW)
        return Outcome.CREATED
    if not is_ours(other, link):
        raise StepError("exists", step, f"link {step.link!r} has address {step.address.ip} with another prefix length")
    _tolerant(nl, RTM_DELADDR, _address(Address(step.link, other.address), link.index))
    nl.request(RTM_NEWADDR, _address(step, link.index), NEW)
    return Outcome.ADJUSTED


def _needs_route(step: Address, link: Link) -> bool:
    """Return whether the kernel makes a route of an address's subnet in the host's main table: not in that of a VRF.

    Inside a sandbox its runtime or user may have removed it.
    """
    return not step.netns and link.up and not link.master and step.address.network.num_addresses > 1


def _restore_route(nl: Netlink, step: Address, link: Link) -> bool:
    """Make the route of an address's subnet again, which others removed; return whether it was missing."""
    net, v4 = step.address.network, step.address.version == 4
    family, scope = (2, _SCOPE_LINK) if v4 else (rtnl.AF_INET6, 0)
    message = (
        RTMSG.pack(family, net.prefixlen, 0, 0, rtnl.RT_TABLE_MAIN, _RTPROT_KERNEL, scope, _UNICAST, 0)
        + attr(rtnl.RTA_DST, net.network_address.packed)
        + u32(rtnl.RTA_OIF, link.index)
        + (attr(_RTA_PREFSRC, step.address.ip.packed) if v4 else u32(rtnl.RTA_PRIORITY, _IPV6_METRIC))
    )
    try:
        nl.request(RTM_NEWROUTE, message, NEW)
    except NetlinkError as error:
        if error.errno not in _ROUTELESS:
            raise
        return False
    return True


def _index(nl: Netlink, step: Address | Route) -> int:
    index = rtnl.index(nl, step.link)
    if index is None:
        raise _missing(step)
    return index


def _missing(step: Address | Route) -> StepError:
    where = f" in sandbox {step.netns}" if step.netns else ""
    return StepError("not_found", step, f"link {step.link!r} is missing{where}")


def _address(step: Address, index: int) -> bytes:
    packed = step.address.ip.packed
    nodad = isinstance(step.address, IPv6Interface)
    return (
        IFADDR.pack(10 if nodad else 2, step.address.network.prefixlen, 0, 0, index)
        + attr(rtnl.IFA_LOCAL, packed)
        + attr(rtnl.IFA_ADDRESS, packed)
        + (u32(rtnl.IFA_FLAGS, _IFA_F_NODAD) if nodad else b"")
        + u8(rtnl.IFA_PROTO, PROTOCOL)
    )


def _route(step: Route, index: int) -> bytes:
    version = step.destination.version
    scope = _SCOPE_LINK if version == 4 and step.gateway is None else 0
    length = step.destination.prefixlen
    family = 2 if version == 4 else rtnl.AF_INET6
    return (
        RTMSG.pack(family, length, 0, 0, rtnl.RT_TABLE_MAIN, PROTOCOL, scope, _UNICAST, 0)
        + (attr(rtnl.RTA_DST, step.destination.network_address.packed) if length else b"")
        + (attr(rtnl.RTA_GATEWAY, step.gateway.packed) if step.gateway else b"")
        + u32(rtnl.RTA_OIF, index)
        + (u32(rtnl.RTA_PRIORITY, step.metric) if step.metric else b"")
    )


def _tolerant(nl: Netlink, kind: int, message: bytes) -> None:
    try:
        nl.request(kind, message)
    except NetlinkError as error:
        if error.errno not in _GONE:
            raise
