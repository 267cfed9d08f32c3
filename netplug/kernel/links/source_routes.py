"""Default routes by source address: a rule and a routing table for each, in sandboxes with several networks.

Two kinds of rules come before the one that leads to the main table: the first looks there for all but default routes
(``suppress_prefixlength 0``), the others lead by source address to a table with nothing but a default route.
"""

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from struct import Struct
from zlib import crc32

from netplug.drivers.steps import IPAddress, SourceRoute
from netplug.kernel.api import MISSING, Outcome, StepError
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import (
    NEW,
    NLM_F_CREATE,
    NLM_F_REPLACE,
    RTM_DELROUTE,
    RTM_NEWROUTE,
    Netlink,
    NetlinkError,
    attr,
    attrs,
    number,
    u8,
    u32,
)
from netplug.kernel.netlink.rtnl import PROTOCOL, RTMSG, Link, LinkRoute

RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
_FRA_SRC, _FRA_PRIORITY, _FRA_SUPPRESS_PREFIXLEN, _FRA_TABLE, _FRA_PROTOCOL = 2, 6, 14, 15, 21
_RULE = Struct("=8BI")
"""struct fib_rule_hdr of linux/fib_rules.h."""
_TO_TABLE, _UNICAST = 1, 1
_MAIN_FIRST, _BY_SOURCE = 32_000, 32_001
"""Preferences: before that of the main table (32766), and behind what an administrator usually chooses."""
_TABLES = 0x6E70_0000
"""Numbers of our tables begin here."""
_NONE = 0xFFFF_FFFF
_GONE = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL})


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of ip-rule(8). `source` None: of all. `suppress`: prefix length up to which routes do not count, or -1."""

    version: int
    preference: int
    table: int
    source: IPAddress | None = None
    suppress: int = -1


def table_of(step: SourceRoute) -> int:
    """Return the number of a step's table."""
    return _TABLES + (crc32(f"{step.link} {step.gateway}".encode()) & 0xFFFF)


def others(routes: Iterable[LinkRoute]) -> list[LinkRoute]:
    """Return the routes that are not of our tables."""
    return [route for route in routes if not _TABLES <= route.table <= _TABLES + 0xFFFF]


def wanted(step: SourceRoute) -> tuple[Rule, Rule]:
    """Return the rules of a step."""
    version = step.source.version
    return _first(version), Rule(version, _BY_SOURCE, table_of(step), step.source)


def rules(nl: Netlink) -> list[Rule]:
    """Return our rules."""
    asked = (_RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0) for family in (2, rtnl.AF_INET6))
    return [rule for query in asked for rule in _ours(nl.dump(RTM_GETRULE, query))]


def ensure(nl: Netlink, step: SourceRoute) -> Outcome:
    """Make the table and the rules, as far as they are not there."""
    index = rtnl.index(nl, step.link)
    if index is None:
        raise StepError("not_found", step, f"link {step.link!r} is missing in sandbox {step.netns}")
    there = rules(nl)
    route = any(_leads(it, step, index) for it in rtnl.routes(nl, table_of(step)))
    missing = [rule for rule in wanted(step) if rule not in there]
    if route and not missing:
        return Outcome.EQUAL
    try:
        nl.request(RTM_NEWROUTE, _route(step, index), NLM_F_CREATE | NLM_F_REPLACE)
    except NetlinkError as error:
        if error.errno in {errno.ENETUNREACH, errno.EINVAL, errno.EHOSTUNREACH}:
            words = f"gateway {step.gateway} is not reachable on link {step.link!r}"
            raise StepError("invalid", step, words) from error
        raise
    for rule in missing:
        try:
            nl.request(RTM_NEWRULE, _packed(rule), NEW)
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
    return Outcome.CREATED if wanted(step)[1] in missing else Outcome.ADJUSTED


def remove(nl: Netlink, step: SourceRoute) -> None:
    """Remove a step's rule and table, and the rule for all with the last of them."""
    first, own = wanted(step)
    _tolerant(nl, RTM_DELRULE, _packed(own))
    left = [rule for rule in rules(nl) if rule.version == own.version and rule.source is not None]
    if not left:
        _tolerant(nl, RTM_DELRULE, _packed(first))
    index = rtnl.index(nl, step.link)
    if index is not None and not any(rule.table == own.table for rule in left):
        _tolerant(nl, RTM_DELROUTE, _route(step, index))


def drift(step: SourceRoute, link: Link | None, routes: Iterable[LinkRoute], there: Iterable[Rule]) -> str:
    """Return how the kernel differs from a step; empty if it does not."""
    if link is None or not any(_leads(it, step, link.index) for it in routes):
        return MISSING
    return "" if set(wanted(step)) <= set(there) else MISSING


def _first(version: int) -> Rule:
    return Rule(version, _MAIN_FIRST, rtnl.RT_TABLE_MAIN, suppress=0)


def _leads(route: LinkRoute, step: SourceRoute, index: int) -> bool:
    here = route.table == table_of(step) and not route.destination.prefixlen
    return here and (route.destination.version, route.index, route.gateway) == (
        step.source.version,
        index,
        step.gateway,
    )


def _ours(dump: Iterable[bytes]) -> Iterable[Rule]:
    for data in dump:
        family, _, length, _, _, _, _, action, _ = _RULE.unpack_from(data)
        found = attrs(data, _RULE.size)
        if action != _TO_TABLE or found.get(_FRA_PROTOCOL) != bytes((PROTOCOL,)):
            continue
        source = ip_address(found[_FRA_SRC]) if length else None
        suppress = number(found.get(_FRA_SUPPRESS_PREFIXLEN), _NONE)
        version = 4 if family == 2 else 6
        table = number(found.get(_FRA_TABLE))
        yield Rule(version, number(found.get(_FRA_PRIORITY)), table, source, -1 if suppress == _NONE else suppress)


def _packed(rule: Rule) -> bytes:
    family = 2 if rule.version == 4 else rtnl.AF_INET6
    return (
        _RULE.pack(family, 0, rule.source.max_prefixlen if rule.source else 0, 0, 0, 0, 0, _TO_TABLE, 0)
        + u32(_FRA_PRIORITY, rule.preference)
        + u32(_FRA_TABLE, rule.table)
        + (attr(_FRA_SRC, rule.source.packed) if rule.source else b"")
        + (u32(_FRA_SUPPRESS_PREFIXLEN, rule.suppress) if rule.suppress >= 0 else b"")
        + u8(_FRA_PROTOCOL, PROTOCOL)
    )


def _route(step: SourceRoute, index: int) -> bytes:
    family = 2 if step.source.version == 4 else rtnl.AF_INET6
    return (
        RTMSG.pack(family, 0, 0, 0, 0, PROTOCOL, 0, _UNICAST, 0)
        + attr(rtnl.RTA_GATEWAY, step.gateway.packed)
        + u32(rtnl.RTA_OIF, index)
        + u32(rtnl.RTA_TABLE, table_of(step))
    )


def _tolerant(nl: Netlink, kind: int, message: bytes) -> None:
    try:
        nl.request(kind, message)
    except NetlinkError as error:
        if error.errno not in _GONE:
            raise
