"""Audit of the addresses of other hosts: claims compared with advertised endpoints.

A host claims an address before it advertises the endpoint, and releases it afterwards. So a difference may be
temporary: it counts only if a second comparison finds it again.
"""

import asyncio
from collections.abc import Mapping

from netplug.cluster.claims import Claim, SharedLeases
from netplug.cluster.view import View, name_of
from netplug.drivers.naming import short
from netplug.engine import Engine
from netplug.engine.audit import Finding
from netplug.engine.records import NetworkRecord
from netplug.ipam.lease import OwnerKind
from netplug.ipam.pool import Pool

RECHECK_S = 0.5
"""Pause before the second comparison: ten times the duration of an attach."""


async def audit(
    engine: Engine, view: View, leases: SharedLeases, networks: Mapping[str, NetworkRecord], me: str
) -> list[Finding]:
    """Return faults of the addresses of other hosts in these networks. The engine audits those of this host.

    Raises:
        StoreError: the store does not answer.
    """
    suspects = await _compare(engine, view, leases, networks, me)
    if not suspects:
        return []
    await asyncio.sleep(RECHECK_S)
    return [found for found in await _compare(engine, view, leases, networks, me) if found in suspects]


async def _compare(
    engine: Engine, view: View, leases: SharedLeases, networks: Mapping[str, NetworkRecord], me: str
) -> list[Finding]:
    found = []
    for network, record in networks.items():
        for pool in filter(None, map(engine.allocator.pool, record.pools)):
            claims = await leases.claims(pool.id)
            found += _unused(view, pool, network, claims, me) + _unclaimed(view, pool, network, claims, me)
    return found


def _unused(view: View, pool: Pool, network: str, claims: list[Claim], me: str) -> list[Finding]:
    """Return addresses whose claims have no endpoint."""
    found = []
    for claim in claims:
        owner, host = claim.lease.owner, claim.host
        if not host or host == me:
            continue
        if host not in view.hosts():
            words = f"leased to {owner} on host {short(host)}, which is not in the cluster"
            found.append(Finding(pool, words, claim.lease.address))
        elif owner.kind is OwnerKind.ENDPOINT and owner.id not in view.endpoints(network, host):
            words = f"leased to {owner} on host {name_of(view, host)}, which advertises no such endpoint"
            found.append(Finding(pool, words, claim.lease.address))
    return found


def _unclaimed(view: View, pool: Pool, network: str, claims: list[Claim], me: str) -> list[Finding]:
    """Return addresses that are used without a claim, or that another host has claimed."""
    holders = {claim.lease.address: claim for claim in claims}
    found = []
    for host in sorted(view.hosts().keys() - {me}):
        for ident, advert in view.endpoints(network, host).items():
            for address in advert.addresses:
                if address not in pool.network:
                    continue
                claim = holders.get(address)
                if claim is None or (claim.host, claim.lease.owner.id) != (host, ident):
                    other = f"leased to {claim.lease.owner} on {name_of(view, claim.host)}" if claim else "not leased"
                    words = f"used by endpoint {advert.name or short(ident)} on host {name_of(view, host)}, but {other}"
                    found.append(Finding(pool, words, address))
    return found
