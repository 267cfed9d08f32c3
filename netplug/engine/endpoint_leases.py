"""Leases of an endpoint's addresses, from its record on.

The one thing to know: a lease that Docker requested of netplug's IPAM is pending whenever the store has no record of
the endpoint. It becomes the endpoint's after the record is written, and is pending again before the record is deleted.
So wherever the process dies, nobody else gets the address before Docker releases it.
"""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import structlog

from netplug.drivers.codec import decode
from netplug.drivers.naming import mac_of_address, short
from netplug.engine.journal import Journal
from netplug.engine.records import ENDPOINTS, EndpointRecord, FrontEnd
from netplug.engine.refused_releases import RefusedReleases
from netplug.engine.registry import Registry
from netplug.ipam.allocator import Allocator
from netplug.ipam.errors import IpamError
from netplug.ipam.lease import IPAddress, Lease, Owner, OwnerKind
from netplug.ipam.pool import EXTERNAL
from netplug.store.api import Store, StoreError

log = structlog.get_logger(__name__)


class EndpointLeases:
    """Gives leases to endpoints with a record, and takes them back."""

    def __init__(
        self, registry: Registry, journal: Journal, allocator: Allocator, store: Store, refused: RefusedReleases
    ) -> None:
        self._registry = registry
        self._journal = journal
        self._allocator = allocator
        self._store = store
        self._refused = refused

    async def settle(self, record: EndpointRecord) -> None:
        """Give an endpoint with a record the addresses that were requested for it. Repeating it has no effect.

        Raises:
            IpamError: somebody else has got one, since Docker released it meanwhile.
            StoreError: the store refuses.
        """
        owner = Owner(OwnerKind.ENDPOINT, record.endpoint.id, record.name)
        for pool, address in _addresses(record):
            lease = self._allocator.lease(pool, address)
            if lease is not None and lease.owner.kind is OwnerKind.PENDING:
                await self._allocator.assign(pool, address, owner)
            elif lease is None or lease.owner.id != owner.id:
                await self._allocator.request_address(pool, address=address, owner=owner)

    async def return_to_docker(self, record: EndpointRecord) -> None:
        """Have what Docker requested for an endpoint wait for its ReleaseAddress, before the record is deleted.

        What the store refuses is left to `release`.
        """
        with suppress(StoreError):
            for lease in self._leases(record):
                if self._is_requested(record, lease):
                    await self._return(record, lease)

    async def release(self, record: EndpointRecord) -> None:
        """Give the addresses of a deleted endpoint back, as soon as the store takes it.

        A sticky network retains them for the endpoint's name. The caller holds the lock of the network.
        """
        await self._refused.attempt(record.endpoint.network, partial(self._release, record))

    async def _release(self, record: EndpointRecord) -> None:
        for lease in self._leases(record):
            if self._is_requested(record, lease):
                await self._return(record, lease)
            else:
                await self._allocator.release_address(lease.pool, lease.address, mac=_own_mac(record))

    def _leases(self, record: EndpointRecord) -> list[Lease]:
        """Return those that are the endpoint's."""
        found = (self._allocator.lease(*it) for it in _addresses(record))
        return [lease for lease in found if lease is not None and lease.owner.id == record.endpoint.id]

    def _is_requested(self, record: EndpointRecord, lease: Lease) -> bool:
        """Tell whether Docker requested an address, and so releases it."""
        pool = self._allocator.pool(lease.pool)
        return record.front_end is FrontEnd.DOCKER and pool is not None and pool.space != EXTERNAL

    async def _return(self, record: EndpointRecord, lease: Lease) -> None:
        owner = Owner(OwnerKind.PENDING, name=record.name)
        with suppress(IpamError):  # Docker has released it meanwhile
            await self._allocator.assign(lease.pool, lease.address, owner, _own_mac(record))

    # At a start

    async def return_of_dying(self) -> None:
        """Return to Docker the leases of endpoints whose records `Journal.recover` is about to delete."""
        for key in await self._journal.dropped():
            stored = await self._store.get(key) if key.startswith(ENDPOINTS) else None
            if stored is not None:
                with suppress(ValueError):  # it cannot be used: its leases are nobody's
                    await self.return_to_docker(decode(EndpointRecord, stored.value))

    async def settle_all(self) -> None:
        """Give the endpoints of Docker's that are there what they did not get before the process died."""
        for record in self._registry.endpoints():
            if record.front_end is FrontEnd.DOCKER and any(self._is_pending(*it) for it in _addresses(record)):
                try:
                    await self.settle(record)
                except StoreError as error:  # of a cluster, whose store this host has not reached yet
                    log.info("lease.pending", endpoint=short(record.endpoint.id), reason=str(error))

    def _is_pending(self, pool: str, address: IPAddress) -> bool:
        lease = self._allocator.lease(pool, address)
        return lease is not None and lease.owner.kind is OwnerKind.PENDING


def _own_mac(record: EndpointRecord) -> str:
    """Return an endpoint's MAC if the user chose it; empty if it was made from the address and belongs to that."""
    endpoint = record.endpoint
    made = {mac_of_address(address) for address in endpoint.addresses}
    return "" if endpoint.mac in made else endpoint.mac


def _addresses(record: EndpointRecord) -> Iterator[tuple[str, IPAddress]]:
    """Yield pool and address; addresses from a DHCP server are of no pool."""
    addresses = (it.ip for it in record.endpoint.addresses)
    return iter(zip(record.pools, addresses, strict=bool(record.pools)))
