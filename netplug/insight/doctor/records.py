"""Checks of records against the kernel and against each other. They need the daemon, which has the records."""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from netplug.engine.audit import audit
from netplug.engine.conditions import QUARANTINE, Difference
from netplug.insight.doctor.findings import Finding, failure, warning
from netplug.ipam.pool import LOCAL
from netplug.ipam.room import room

if TYPE_CHECKING:
    from netplug.insight.insight import Subject

_HEAL_S = 0.7
_NEARLY = 0.9
_MOST = 20
"""Of findings of one check that are listed."""


async def drift(subject: "Subject") -> Iterable[Finding]:
    """Find what differs between kernel and records."""
    found = await subject.reconciler.drift()
    if found:  # the daemon repairs most within a second
        await asyncio.sleep(_HEAL_S)
        again = set(await subject.reconciler.drift())
        found = [it for it in found if it in again]
    return _some([failure(f"{it.owner}: {it.object} {it.what}", "netplug repair") for it in found])


async def conditions(subject: "Subject") -> Iterable[Finding]:
    """Find faults that the daemon knows of and that are not in the kernel. `quarantine` finds those of records."""
    return _some([_of_condition(it) for it in subject.engine.conditions.all(without=QUARANTINE)])


def _of_condition(it: Difference) -> Finding:
    """Return the finding of a fault. Those of firewalld, addresses and routes end in the command that helps."""
    for before, command in ((": ", "firewall-cmd "), ("; remove it: ", "ip ")):
        why, found, rest = it.what.partition(before + command)
        if found:
            return warning(f"{it.owner}: {it.object}: {why}", command + rest)
    return warning(f"{it.owner}: {it.object}: {it.what}", "netplug diff")


async def quarantine(subject: "Subject") -> Iterable[Finding]:
    """Find records that this version cannot use."""
    found = subject.engine.quarantine.all()
    mend = "start the version of netplug, or install the driver, that made it"
    return _some([failure(f"{it.describe()}: record {it.key} cannot be used: {it.why}", mend) for it in found])


async def leases(subject: "Subject") -> Iterable[Finding]:
    """Find leases without endpoints, and endpoints without leases."""
    found = await audit(subject.engine)
    if subject.cluster is not None:
        found += await subject.cluster.audit()
    words = [f"{it.address or it.pool.network} of {it.pool.network}: {it.what}" for it in found]
    mend = f"{subject.settings.restart} (its start releases leaked leases)"
    return _some([warning(it, mend) for it in words])


async def pools(subject: "Subject") -> Iterable[Finding]:
    """Find subnets without free addresses."""
    allocator, registry = subject.engine.allocator, subject.engine.registry
    found: list[Finding] = []
    for pool in allocator.pools():
        usage = allocator.usage(pool.id)
        nets = [it.network for it in registry.networks() if pool.id in it.pools]
        if not nets or not usage.size or usage.free > usage.size * (1 - _NEARLY):
            continue
        kept = f", {usage.kept} of them kept for stopped containers" if usage.kept else ""
        used = f"{usage.size - usage.free} of {usage.size} addresses of {pool.network}"
        words = f"network {nets[0].name}: {used} are in use{kept}"
        mend = f"netplug network update {nets[0].name} --subnet-add CIDR, or see who has them: netplug ipam ls"
        full = usage.free == 0 and not usage.kept
        found.append(failure(f"{words}: nobody else can join", mend) if full else warning(words, mend))
    return found


async def subnets(subject: "Subject") -> Iterable[Finding]:
    """Find address spaces from which no more networks get subnets."""
    found = []
    allocator = subject.engine.allocator
    for it in room(allocator.spaces, allocator.pools()):
        words = f"{it.size - it.free} of {it.size} subnets of address space {it.space} are taken"
        mend = "netplug serve --address-pool base=CIDR,size=BITS, with the former ones" if it.space == LOCAL else ""
        if it.free == 0:
            found.append(failure(f"{words}: networks need a --subnet of their own", mend))
        elif it.free < it.size * (1 - _NEARLY):
            found.append(warning(words, mend))
    return found


def _some(found: list[Finding]) -> list[Finding]:
    """Return the first of many, and how many more there are."""
    rest = len(found) - _MOST
    return found if rest <= 0 else [*found[:_MOST], Finding(found[0].verdict, f"and {rest} more", found[0].mend)]
