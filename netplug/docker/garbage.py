"""Garbage collection of endpoints, networks, pools and addresses that Docker no longer has.

Docker does not repeat deletions that the plugin missed, and after a crash of dockerd it sends few. So after a restart
of either, the records of Docker are compared with Docker's lists. Only records from before the restart are considered:
objects that are being created are not in the lists yet.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from netplug.drivers.naming import short
from netplug.drivers.steps import IPAddress
from netplug.engine import Engine
from netplug.engine.happenings import because
from netplug.engine.records import DockerView, EndpointRecord, FrontEnd
from netplug.engine.sandboxes import has_processes
from netplug.errors import NetplugError
from netplug.ipam.lease import OwnerKind

log = structlog.get_logger(__name__)

RETRY_S = 0.5
PATIENCE_S = 900.0
"""Longest wait for Docker's API: dockerd serves it after restarting all containers, which may take minutes."""
GRACE_S = 3.0
"""After a start of netplug, Docker may be starting a container; after this time it lists it."""

View = Callable[[], Awaitable[DockerView | None]]


@dataclass(frozen=True, slots=True)
class Suspects:
    """Objects that a restart may have orphaned. `addresses`: by pool, requested but without an endpoint."""

    endpoints: frozenset[str]
    networks: frozenset[str]
    pools: frozenset[str]
    addresses: frozenset[tuple[str, IPAddress]]


class GarbageCollector:
    """Finds and deletes them. `view`: returns Docker's objects, or None if Docker does not answer; None: no Docker."""

    def __init__(self, engine: Engine, view: View | None) -> None:
        self._engine = engine
        self._view = view
        self._freed: set[tuple[str, IPAddress]] = set()
        """Addresses of endpoints that were deleted here: their release by Docker may have been missed."""

    def suspects(self) -> Suspects:
        """Return all present objects of Docker."""
        registry, allocator = self._engine.registry, self._engine.allocator
        return Suspects(
            frozenset(r.endpoint.id for r in registry.endpoints() if r.front_end is FrontEnd.DOCKER),
            frozenset(r.network.id for r in registry.networks() if r.front_end is FrontEnd.DOCKER and r.claimed),
            frozenset(pool.id for pool in allocator.pools() if not pool.holders),
            frozenset(
                (pool.id, lease.address)
                for pool in allocator.pools()
                for lease in allocator.leases(pool.id)
                if lease.owner.kind is OwnerKind.PENDING
            ),
        )

    async def after_restart_of_docker(self, suspects: Suspects) -> None:
        """Delete what Docker does not have after its restart, when it has stopped or restarted all containers."""
        view = await self._ask()
        if view is None:
            await self._delete_dead(suspects, await self._with_processes(suspects))
            return
        await self._delete_dead(suspects, view.endpoints)
        await self._delete_rest(suspects, view)
        await self._engine.allocator.end_session(view.subnets)

    async def after_start(self, suspects: Suspects) -> None:
        """Delete what Docker deleted while netplug was stopped."""
        alive, view = await self._with_processes(suspects), await self._ask()
        await asyncio.sleep(GRACE_S)
        alive |= await self._with_processes(suspects)
        later = await self._ask() if view else None
        if view is None or later is None:
            await self._delete_dead(suspects, alive)
            return
        view |= later
        await self._delete_dead(suspects, alive | view.endpoints)
        await self._delete_rest(suspects, view)

    async def _ask(self) -> DockerView | None:
        """Ask Docker until it answers; None if it does not, or is not used."""
        if self._view is None:
            return None
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        while (view := await self._view()) is None:
            if asyncio.get_running_loop().time() > deadline:
                log.warning("docker.silent", after_s=PATIENCE_S)
                return None
            await asyncio.sleep(RETRY_S)
        return view

    async def _with_processes(self, suspects: Suspects) -> frozenset[str]:
        """Return the endpoints whose sandbox has a process; this needs no answer of Docker."""
        sandboxes = self._engine.kernel.sandboxes
        records = [r for r in self._engine.registry.endpoints() if r.endpoint.id in suspects.endpoints]
        return frozenset([r.endpoint.id for r in records if await has_processes(sandboxes, r)])

    async def _delete_dead(self, suspects: Suspects, alive: frozenset[str]) -> None:
        """Delete dead endpoints. After a failure, the next try still knows the addresses of those that are gone."""
        dead = suspects.endpoints - alive
        for record in self._engine.registry.endpoints():
            if record.endpoint.id in dead:
                self._freed.update(zip(record.pools, (it.ip for it in record.endpoint.addresses), strict=True))
                await self._delete_endpoint(record)

    async def _delete_endpoint(self, record: EndpointRecord) -> None:
        log.info("endpoint.dead", endpoint=short(record.endpoint.id), name=record.name)
        with because("docker does not have it any more"):
            await self._engine.endpoints.delete(record.endpoint.network, record.endpoint.id)

    async def _delete_rest(self, suspects: Suspects, view: DockerView) -> None:
        registry, allocator = self._engine.registry, self._engine.allocator
        for record in registry.networks():
            ident = record.network.id
            if ident in suspects.networks - view.networks and not registry.endpoints(ident):
                log.info("network.orphaned", network=short(ident), name=record.network.name)
                with because("docker does not have it any more"):
                    await self._delete_network(ident)
        for pool in allocator.pools():
            if pool.id in suspects.pools and not pool.holders and pool.network not in view.subnets:
                log.info("pool.orphaned", pool=pool.id)
                for _ in range(pool.holds):
                    await allocator.release_pool(pool.id)
        for pool_id, address in suspects.addresses | self._freed:
            self._freed.discard((pool_id, address))
            lease = allocator.lease(pool_id, address)
            if lease and lease.owner.kind is OwnerKind.PENDING and address not in view.addresses:
                log.info("lease.orphaned", address=str(address), name=lease.owner.name)
                await allocator.release_address(pool_id, address)

    async def _delete_network(self, ident: str) -> None:
        try:
            await self._engine.networks.delete(ident, by=FrontEnd.DOCKER)
        except NetplugError as exc:
            if exc.kind != "not_found":
                raise
