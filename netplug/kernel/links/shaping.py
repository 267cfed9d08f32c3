"""Rate limits of a link, in both directions (steps `Ifb` and `Shape`).

Traffic to a sandbox is egress of the host side of its veth. A token bucket shapes it there (tc-tbf(8)). Traffic from
the sandbox is ingress, which the kernel cannot shape. So it is redirected, before the bridge, to an intermediate
functional block, whose egress has another bucket (tc-mirred(8)).

Messages are encoded by pyroute2. They take 3 % of an attach with a rate. With 330 limited endpoints they take 6 % of a
start and 9 % of ``netplug diff`` (``bench/netlink.py``).
"""

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from netplug.drivers.steps import Ifb, Shape
from netplug.kernel.api import MISSING, Outcome, StepError
from netplug.kernel.links import router_advertisements
from netplug.kernel.links.bridges import LinkBusyError, altname, by_name
from netplug.kernel.links.differences import Difference, adjust, common_differences, settings_differences
from netplug.kernel.links.rollback import deleted_on_failure
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink import traffic_control as tc
from netplug.kernel.netlink.connection import (
    NEW,
    NLM_F_CREATE,
    NLM_F_REPLACE,
    RTM_NEWLINK,
    Netlink,
    NetlinkError,
    attr,
    nest,
    text,
)
from netplug.kernel.netlink.rtnl import IFF_UP, IFINFO, Link

LATENCY_S = 0.025
"""How long a packet may be queued before it is dropped, in addition to the burst; as in the CNI bandwidth plugin."""

_NLM_F_ECHO = 8
"""Older kernels send a qdisc that is asked for to listeners alone, as they send news (net/sched/sch_api.c)."""
_FEW = 8
"""Links up to which their qdiscs are read one by one."""
_NEWQDISC, _DELQDISC, _GETQDISC = 36, 37, 38
_NEWFILTER, _GETFILTER = 44, 46


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket: rate in bytes per second, and the limit of queued bytes."""

    rate: int
    limit: int

    @classmethod
    def of(cls, step: Shape) -> tuple[Self | None, Self | None]:
        """Return the buckets of a step: for traffic to the sandbox, and from it."""
        received, sent = (
            cls(rate // 8, int(rate // 8 * LATENCY_S) + burst) if rate else None
            for rate, burst in zip(step.rate, step.burst, strict=True)
        )
        return received, sent


@dataclass(frozen=True, slots=True)
class Found:
    """The buckets by index of the link. `redirects`: index of the link to which ingress traffic is redirected."""

    buckets: Mapping[int, Bucket]
    redirects: Mapping[int, int]

    @classmethod
    def of(cls, nl: Netlink, steps: Iterable[Shape], links: Mapping[str, Link]) -> Self:
        """Read the limits of the links of these steps."""
        wanted = [links[step.link].index for step in steps if step.link in links]
        limited = {*wanted, *(links[step.ifb].index for step in steps if step.ifb in links)}
        if len(limited) > _FEW:
            dump = nl.dump(_GETQDISC, tc.qdiscs())
        else:
            # A dump has those of all links, whatever it asks for.
            dump = [one for index in limited if (one := _root_qdisc(nl, index))]
        buckets = {index: Bucket(rate, limit) for index, rate, limit in tc.buckets(dump, limited)}
        redirects = {index: target for index in wanted if (target := _redirect(nl, index))}
        return cls(buckets, redirects)

    def drift(self, step: Shape, links: Mapping[str, Link]) -> str:
        """Return how the limits differ from a step; empty if they do not."""
        link, ifb = links.get(step.link), links.get(step.ifb) if step.ifb else None
        if link is None or (step.ifb and ifb is None):
            return MISSING
        received, sent = Bucket.of(step)
        wrong = []
        if self.buckets.get(link.index) != received:
            wrong.append("traffic to the sandbox")
        current = self.buckets.get(ifb.index) if ifb else None
        if current != sent or self.redirects.get(link.index, 0) != (ifb.index if ifb else 0):
            wrong.append("traffic from the sandbox")
        if wrong and link.index not in self.buckets and link.index not in self.redirects:
            return MISSING
        return f"does not limit {' and '.join(wrong)} to {step.rate} bit/s" if wrong else ""


def ensure_ifb(nl: Netlink, step: Ifb) -> Outcome:
    """Create an intermediate functional block, or repair ours.

    Raises:
        LinkBusyError: a link of this name is being deleted; wait, then try again.
    """
    message = (
        IFINFO.pack(0, 0, 0, 0, 0)
        + text(rtnl.IFLA_IFNAME, step.name)
        + attr(rtnl.IFLA_ADDRESS, rtnl.packed_mac(step.mac))
        + nest(rtnl.IFLA_LINKINFO, text(rtnl.IFLA_INFO_KIND, "ifb"))
    )
    try:
        nl.request(RTM_NEWLINK, message, NEW)
    except NetlinkError as error:
        if error.errno == errno.EOPNOTSUPP:
            words = "the kernel has no intermediate functional blocks, which option rate needs (CONFIG_IFB)"
            raise StepError("unavailable", step, words) from error
        if error.errno != errno.EEXIST:
            raise
    else:
        with deleted_on_failure(nl, step):
            nl.request(*altname(step.name), NEW)
            router_advertisements.write_ipv6(nl, step.name, router_advertisements.AS_PORT)
            nl.request(
                RTM_NEWLINK,
                by_name(step.name, IFF_UP) + router_advertisements.ipv4_attributes(router_advertisements.AS_PORT),
            )
        return Outcome.CREATED
    found = rtnl.link(nl, step.name)
    if found is None:
        raise LinkBusyError
    if not found.is_ours(step.name):
        raise StepError("exists", step, f"link {step.name!r} exists and is not ours", hint="remove or rename it")
    if found.being_deleted:
        raise LinkBusyError
    return adjust(nl, found, _ifb_differences(step, found))


def ifb_drift(step: Ifb, found: Link | None) -> str:
    """Return how an intermediate functional block differs from a step; empty if it does not."""
    if found is None:
        return MISSING
    if not found.is_ours(step.name):
        return "is not ours"
    return ", ".join(item.what for item in _ifb_differences(step, found))


def _ifb_differences(step: Ifb, found: Link) -> list[Difference]:
    return common_differences(found, step.mac, found.mtu, up=True) + settings_differences(
        found, router_advertisements.AS_PORT
    )


def ensure(nl: Netlink, step: Shape) -> Outcome:
    """Set the limits of a link. A bucket that changes keeps its queue, and one that stays is not touched."""
    names = (step.link, *([step.ifb] if step.ifb else []))
    links = {name: link for name in names if (link := rtnl.link(nl, name))}
    for name in names:
        if name not in links:
            raise StepError("not_found", step, f"link {name!r} is missing")
    current = Found.of(nl, (step,), links)
    drift = current.drift(step, links)
    if not drift:
        return Outcome.EQUAL
    index, (received, sent) = links[step.link].index, Bucket.of(step)
    _set_bucket(nl, index, received, current, step.burst[0])
    target = links[step.ifb].index if step.ifb else 0
    if target:
        _set_bucket(nl, target, sent, current, step.burst[1])
    if current.redirects.get(index, 0) != (target if sent else 0):
        _delete_qdisc(nl, index, tc.INGRESS)
        if sent:
            nl.request(_NEWQDISC, tc.ingress(index), NEW)
            nl.request(_NEWFILTER, tc.redirect(index, target), NEW)
    return Outcome.CREATED if drift == MISSING else Outcome.ADJUSTED


def remove(nl: Netlink, step: Shape) -> None:
    """Remove the limits of a link. Its block has a step of its own."""
    if found := rtnl.link(nl, step.link):
        _delete_qdisc(nl, found.index, tc.ROOT)
        _delete_qdisc(nl, found.index, tc.INGRESS)


def _delete_qdisc(nl: Netlink, index: int, parent: int) -> None:
    try:
        nl.request(_DELQDISC, tc.one_qdisc(index, parent))
    except NetlinkError as error:
        if error.errno not in {errno.ENOENT, errno.EINVAL, errno.ENODEV}:
            raise


def _set_bucket(nl: Netlink, index: int, wanted: Bucket | None, found: Found, burst: int) -> None:
    """Set, change or remove the token bucket of a link's egress."""
    current = found.buckets.get(index)
    if wanted is None:
        if current:
            _delete_qdisc(nl, index, tc.ROOT)
    elif wanted != current:
        if current is None:
            _delete_qdisc(nl, index, tc.ROOT)  # of another kind, which cannot be changed into this one
        message = tc.bucket(index, wanted.rate, wanted.limit, burst)
        nl.request(_NEWQDISC, message, NLM_F_CREATE | NLM_F_REPLACE)


def _root_qdisc(nl: Netlink, index: int) -> bytes:
    """Return the egress qdisc of a link; empty if it has none but the kernel's default."""
    try:
        return nl.get(_GETQDISC, tc.one_qdisc(index, tc.ROOT), _NLM_F_ECHO)
    except NetlinkError as error:
        if error.errno in {errno.EINVAL, errno.ENODEV, errno.ENOENT}:
            return b""
        raise


def _redirect(nl: Netlink, index: int) -> int:
    """Return the index of the link to which a link's ingress is redirected, 0 if it is not."""
    try:
        return tc.redirected(nl.dump(_GETFILTER, tc.filters(index)))
    except NetlinkError as error:
        if error.errno in {errno.EINVAL, errno.ENODEV, errno.ENOENT}:
            return 0
        raise
