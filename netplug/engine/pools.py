"""Pools and addresses as Docker asks for them: before it makes the network, and before it makes the endpoint.

Such leases are *pending* until a network or an endpoint takes them. Docker gives an address back before it deletes the
network, and after it deleted the endpoint; what still belongs to somebody is then left to them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_interface

import structlog

from netplug.drivers.naming import short
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import IPAddress, IPInterface, IPNetwork
from netplug.engine.addressing import lease_of
from netplug.engine.base_plan import BasePlan
from netplug.engine.conflict_detection import ConflictDetection
from netplug.engine.endpoints import Endpoints
from netplug.engine.networks import Networks
from netplug.engine.records import FrontEnd, NetworkRecord
from netplug.engine.registry import Registry
from netplug.errors import NetplugError
from netplug.ipam.allocator import Allocator
from netplug.ipam.lease import Lease, Owner, OwnerKind
from netplug.ipam.pool import GLOBAL, Pool

log = structlog.get_logger(__name__)

ContainerOf = Callable[[str], Awaitable[str]]
"""Infers the name of the container that asks for an address of a pool, by the pool's id; empty when it cannot."""


async def container_unknown(_: str) -> str:
    """Infer nothing."""
    return ""


class Pools:
    """Gives pools and addresses to Docker, and takes them back.

    No address goes to two owners. A release never takes an address from a network or an endpoint that lives; an
    endpoint of Docker's whose address Docker gives back is dead, and is deleted. All requests can be repeated.
    """

    def __init__(
        self,
        registry: Registry,
        allocator: Allocator,
        base_plan: BasePlan,
        conflict_detection: ConflictDetection,
        networks: Networks,
        endpoints: Endpoints,
        drivers: Drivers,
    ) -> None:
        self._drivers = drivers
        self._registry = registry
        self._allocator = allocator
        self._base_plan = base_plan
        self._conflict_detection = conflict_detection
        self._networks = networks
        self._endpoints = endpoints
        self._asking = asyncio.Lock()

    async def request(
        self, space: str, network: IPNetwork | None, part: IPNetwork | None, *, v6: bool, cluster_name: str = ""
    ) -> Pool:
        """Give a pool. `network` None: one is chosen that the host has no routes to. `part`: addresses to give out.

        `cluster_name`: of a network of the cluster, which has the same pool on all hosts.

        Raises:
            IpamError, NetplugError: there is none.
            StoreError: the store that the hosts share does not answer.
        """
        cluster = self._networks.cluster
        if cluster_name and cluster is not None:
            network, _ = await cluster.subnet(cluster_name, network, v6=v6)
            space = GLOBAL
        routes = (await self._base_plan.read_host()).routes if network is None else ()
        avoid = [route for route, _ in routes]
        return await self._allocator.request_pool(space, network=network, range=part, v6=v6, avoid=avoid)

    async def release(self, pool_id: str) -> None:
        """Take a pool back; absent is success."""
        await self._allocator.release_pool(pool_id)

    async def request_address(
        self,
        pool_id: str,
        wanted: IPAddress | None,
        owner: Owner,
        mac: str = "",
        container_of: ContainerOf = container_unknown,
    ) -> IPInterface:
        """Lease an address, with the length of its pool; `wanted` None: one is chosen.

        `container_of`: is asked where the container's name decides about the address and `owner` has none.

        Raises:
            IpamError, NetplugError: there is none, or somebody has it.
        """
        pool = self._allocator.pool(pool_id)
        if pool and pool.sticky_s and wanted is None and owner == Owner(OwnerKind.PENDING):
            # One at a time, since who has got an address tells who asks for the next.
            async with self._asking:
                lease = await self._lease(pool_id, wanted, replace(owner, name=await container_of(pool.id)), mac)
        else:
            lease = await self._lease(pool_id, wanted, owner, mac)
        pool = self._allocator.pool(lease.pool)
        if pool is not None and self._unaddressed(pool):
            # Docker insists on an address, which nobody will bear.
            await self._allocator.release_address(pool.id, lease.address, forget=True)
        length = pool.network.prefixlen if pool is not None else lease.address.max_prefixlen
        return ip_interface(f"{lease.address}/{length}")

    async def _lease(self, pool_id: str, wanted: IPAddress | None, owner: Owner, mac: str) -> Lease:
        pool = self._allocator.pool(pool_id)
        if owner.kind is OwnerKind.GATEWAY and pool is not None and pool.space == GLOBAL:
            return await self._gateway(pool, wanted, owner)
        if owner.kind is OwnerKind.PENDING:
            return await self._conflict_detection.request(pool_id, wanted, owner, mac)
        return await self._allocator.request_address(pool_id, address=wanted, owner=owner, mac=mac)

    async def _gateway(self, pool: Pool, wanted: IPAddress | None, owner: Owner) -> Lease:
        """Give the gateway of a network of the cluster, which is the same on all hosts; it may be here already."""
        cluster = self._networks.cluster
        if wanted is None and cluster is not None:
            wanted = await cluster.gateway(pool.network)
        wanted = wanted or pool.network[1]
        lease = self._allocator.lease(pool.id, wanted)
        if lease is not None and lease.owner.kind is OwnerKind.GATEWAY:
            return lease
        return await self._allocator.request_address(pool.id, address=wanted, owner=owner)

    async def release_address(self, pool_id: str, address: IPAddress) -> None:
        """Take an address back, unless a network or an endpoint of ours still lives on it; absent is success."""
        lease = self._allocator.lease(pool_id, address)
        if lease is not None and not await self._lives(lease):
            await self._allocator.release_address(pool_id, address)

    def container_of(self, record: NetworkRecord, addresses: Collection[IPInterface]) -> str:
        """Return the name of the container that one of these addresses was given to and that has no endpoint yet.

        Docker tells it from 29.0 on, and a moment before it makes the endpoint. Empty when nobody did.
        """
        for address in addresses:
            lease = lease_of(self._allocator, record, address.ip)
            if lease is not None and lease.owner.kind is OwnerKind.PENDING and lease.owner.name:
                return lease.owner.name
        return ""

    def _unaddressed(self, pool: Pool) -> bool:
        """Tell whether a pool is of a network whose endpoints have no addresses."""
        for holder in pool.holders:
            with suppress(NetplugError):  # it is just being made
                return not self._drivers.of(self._registry.network(holder).network).addressed
        return False

    async def _lives(self, lease: Lease) -> bool:
        """Tell whether an address must stay.

        Docker gives a gateway back before it deletes the network: it goes with the pool. An endpoint of Docker's whose
        address it gives back is dead, whether or not we heard of its end.
        """
        owner, pool = lease.owner, self._allocator.pool(lease.pool)
        holders = pool.holders if pool is not None else ()
        if owner.kind is not OwnerKind.ENDPOINT:
            return owner.id in holders
        for network in holders:
            built = self._registry.find(network, owner.id)
            if built is not None and built.front_end is not FrontEnd.DOCKER:
                return True
            if built is not None:
                log.warning("endpoint.dead", endpoint=short(owner.id), released=str(lease.address))
                await self._endpoints.delete(network, owner.id)
        return False
