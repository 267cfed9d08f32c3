"""Limits of a link, both ways (steps `Ifb` and `Shape`).

What a sandbox receives goes out of the host side of its veth, where a token bucket holds it back (tc-tbf(8)). What it
sends comes in there, and the kernel can only hold back what goes out: so it is redirected, before the bridge sees it,
through an intermediate functional block of its own, with another bucket (tc-mirred(8)).

Its messages go by pyroute2. They are 3 % of an attach with a rate. Where each of 330 endpoints has one, they are 6 % of
a start and 9 % of ``netplug diff`` (``bench/netlink.py``).
"""

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from netplug.drivers.steps import Ifb, Shape
from netplug.kernel.api import MISSING, Outcome, StepError
from netplug.kernel.links import router_advertisements
from netplug.kernel.links.bridges import (
    Difference,
    LinkBusyError,
    adjust,
    altname,
    by_name,
    common_differences,
    settings_differences,
)
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
"""How long a packet may wait before it is dropped, on top of the burst; as the CNI bandwidth plugin has it."""

_NEWQDISC, _DELQDISC, _GETQDISC = 36, 37, 38
_NEWFILTER, _GETFILTER = 44, 46


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket: bytes a second, and how many bytes may wait."""

    rate: int
    limit: int

    @classmethod
    def of(cls, step: Shape) -> tuple[Self | None, Self | None]:
        """Return what a step wants, of what the sandbox receives and of what it sends."""
        received, sent = (
            cls(rate // 8, int(rate // 8 * LATENCY_S) + burst) if rate else None
            for rate, burst in zip(step.rate, step.burst, strict=True)
        )
        return received, sent


@dataclass(frozen=True, slots=True)
class Found:
    """What holds packets back, by index of the link; `redirects`: to which index what comes in goes."""

    buckets: Mapping[int, Bucket]
    redirects: Mapping[int, int]

    @classmethod
    def of(cls, nl: Netlink, steps: Iterable[Shape], links: Mapping[str, Link]) -> Self:
        """Look at the links that these steps limit."""
        wanted = [links[step.link].index for step in steps if step.link in links]
        if not wanted:
            return cls({}, {})
        limited = {*wanted, *(links[step.ifb].index for step in steps if step.ifb in links)}
        found = tc.buckets(nl.dump(_GETQDISC, tc.qdiscs()), limited)
        buckets = {index: Bucket(rate, limit) for index, rate, limit in found}
        redirects = {index: target for index in wanted if (target := _redirect(nl, index))}
        return cls(buckets, redirects)

    def drift(self, step: Shape, links: Mapping[str, Link]) -> str:
        """Say what is wrong with a limit; empty when nothing."""
        link, ifb = links.get(step.link), links.get(step.ifb) if step.ifb else None
        if link is None or (step.ifb and ifb is None):
            return MISSING
        received, sent = Bucket.of(step)
        wrong = []
        if self.buckets.get(link.index) != received:
            wrong.append("what it receives")
        there = self.buckets.get(ifb.index) if ifb else None
        if there != sent or self.redirects.get(link.index, 0) != (ifb.index if ifb else 0):
            wrong.append("what it sends")
        if wrong and link.index not in self.buckets and link.index not in self.redirects:
            return MISSING
        return f"does not limit {' and '.join(wrong)} to {step.rate} bit/s" if wrong else ""


def ensure_ifb(nl: Netlink, step: Ifb) -> Outcome:
    """Bring an intermediate functional block about.

    Raises:
        LinkBusyError: wait for the deletion, then try again.
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
            router_advertisements.write_ipv6(step.name, router_advertisements.AS_PORT)
            nl.request(
                RTM_NEWLINK,
                by_name(step.name, IFF_UP) + router_advertisements.ipv4_attributes(router_advertisements.AS_PORT),
            )
        return Outcome.CREATED
    found = rtnl.link(nl, step.name)
    if found is None or not found.is_ours(step.name):
        raise StepError("exists", step, f"link {step.name!r} exists and is not ours", hint="remove or rename it")
    if found.being_deleted:
        raise LinkBusyError
    return adjust(nl, found, _ifb_differences(step, found))


def ifb_drift(step: Ifb, found: Link | None) -> str:
    """Say what is wrong with an intermediate functional block; empty when nothing."""
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
    """Limit a link."""
    names = (step.link, *([step.ifb] if step.ifb else []))
    links = {name: found for name in names if (found := rtnl.link(nl, name))}
    for name in names:
        if name not in links:
            raise StepError("not_found", step, f"link {name!r} is missing")
    drift = Found.of(nl, (step,), links).drift(step, links)
    if not drift:
        return Outcome.EQUAL
    link = links[step.link].index
    _clear(nl, link)
    received, sent = Bucket.of(step)
    if received:
        _hold_back(nl, link, received, step.burst[0])
    if sent:
        ifb = links[step.ifb].index
        _hold_back(nl, ifb, sent, step.burst[1])
        nl.request(_NEWQDISC, tc.ingress(link), NEW)
        nl.request(_NEWFILTER, tc.redirect(link, ifb), NEW)
    return Outcome.CREATED if drift == MISSING else Outcome.ADJUSTED


def remove(nl: Netlink, step: Shape) -> None:
    """Take the limit off a link; its block goes by itself."""
    if found := rtnl.link(nl, step.link):
        _clear(nl, found.index)


def _clear(nl: Netlink, index: int) -> None:
    for parent in (tc.ROOT, tc.INGRESS):
        try:
            nl.request(_DELQDISC, tc.no_qdisc(index, parent))
        except NetlinkError as error:
            if error.errno not in {errno.ENOENT, errno.EINVAL, errno.ENODEV}:
                raise


def _hold_back(nl: Netlink, index: int, bucket: Bucket, burst: int) -> None:
    """Hold back what goes out of a link."""
    message = tc.bucket(index, bucket.rate, bucket.limit, burst)
    nl.request(_NEWQDISC, message, NLM_F_CREATE | NLM_F_REPLACE)


def _redirect(nl: Netlink, index: int) -> int:
    """Return the index to which all that comes in by a link is redirected, 0 when there is none."""
    try:
        return tc.redirected(nl.dump(_GETFILTER, tc.filters(index)))
    except NetlinkError as error:
        if error.errno in {errno.EINVAL, errno.ENODEV, errno.ENOENT}:
            return 0
        raise
