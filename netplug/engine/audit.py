"""Compares leases and pools with the records that should own them."""

from collections.abc import Iterator
from dataclasses import dataclass

from netplug.drivers.naming import short
from netplug.engine import Engine
from netplug.engine.records import EndpointRecord
from netplug.engine.sandboxes import is_there
from netplug.ipam.lease import IPAddress, Lease, OwnerKind
from netplug.ipam.pool import Pool


@dataclass(frozen=True, slots=True)
class Finding:
    """A lease or pool that does not match the records. `address` None: the finding is about the pool.

    `lease`: a lease whose owner does not exist. `holder`: id of a network that holds the pool and does not exist.
    """

    pool: Pool
    what: str
    address: IPAddress | None = None
    lease: Lease | None = None
    holder: str = ""


def orphans(engine: Engine) -> list[Finding]:
    """Return leases and pools whose networks or endpoints do not exist."""
    networks = {record.network.id for record in engine.registry.networks()} | engine.quarantine.networks()
    unusable = engine.quarantine.endpoints()
    held = {it.endpoint.id: {address.ip for address in it.endpoint.addresses} for it in engine.registry.endpoints()}
    found = []
    for pool in engine.allocator.pools():
        for lease in engine.allocator.leases(pool.id):
            owner, why = lease.owner, ""
            if owner.kind is OwnerKind.ENDPOINT and owner.id not in unusable:
                there = held.get(owner.id)
                words = "which does not exist" if there is None else "which does not have it"
                why = f"endpoint {short(owner.id)}, {words}" if lease.address not in (there or ()) else ""
            elif owner.kind not in {OwnerKind.ENDPOINT, OwnerKind.PENDING} and owner.id and owner.id not in networks:
                why = f"network {short(owner.id)}, which does not exist"
            if why:
                found.append(Finding(pool, f"leased to {why}", lease.address, lease))
        found += [
            Finding(pool, f"held by network {short(holder)}, which does not exist", holder=holder)
            for holder in sorted(set(pool.holders) - networks)
        ]
        found += _of_others(engine, pool)
    return found


def _of_others(engine: Engine, pool: Pool) -> Iterator[Finding]:
    """Return that a pool, and leases in it, belong to a network that does not have this subnet (any more)."""
    for holder in pool.holders:
        record = engine.registry.find_network(holder)
        if record is None or pool.id in record.pools:
            continue
        words = f"network {short(holder)}, which does not have this subnet"
        for lease in engine.allocator.leases(pool.id):
            if lease.owner.id == holder:
                yield Finding(pool, f"leased to {words}", lease.address, lease)
        yield Finding(pool, f"held by {words}", holder=holder)


async def audit(engine: Engine) -> list[Finding]:
    """Return `orphans`, addresses that are not leased to their endpoint, and endpoints whose sandbox is gone.

    An address that Docker has leased and not used yet is no leak: Docker may use it next.
    """
    found, sandboxes = orphans(engine), engine.kernel.sandboxes
    pools = {pool.id: pool for pool in engine.allocator.pools()}
    for record in engine.registry.endpoints():
        held = [pools[ident] for ident in record.pools if ident in pools]
        for address in (interface.ip for interface in record.endpoint.addresses):
            pool = next((pool for pool in held if address in pool.network), None)
            if pool is None:
                continue  # of Docker's own IPAM, or of another plugin's
            lease = engine.allocator.lease(pool.id, address)
            if lease is None or lease.owner.id != record.endpoint.id:
                holder = f"leased to {lease.owner}" if lease else "not leased"
                found.append(Finding(pool, f"used by {_name(record)}, but {holder}", address))
            elif record.sandbox and not await is_there(sandboxes, record):  # none: between Leave and Join
                found.append(Finding(pool, f"held by {_name(record)}, whose sandbox {record.sandbox} is gone", address))
    return found


def _name(record: EndpointRecord) -> str:
    return f"endpoint {record.name or short(record.endpoint.id)}"
