"""What Docker no longer has: endpoints, networks, pools and addresses of whose end nobody told us.

A plugin that is down when Docker deletes something is not told of it later, and after a crash of dockerd it is told of
next to nothing. So when either of the two has restarted, what we had before is compared with what Docker has now.
Only what was there before counts: what is being made meanwhile is not yet in Docker's lists.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from netplug.drivers.naming import short
from netplug.drivers.steps import IPAddress
from netplug.engine import Engine
from netplug.engine.records import DockerView, EndpointRecord, FrontEnd
from netplug.engine.sandboxes import has_processes
from netplug.errors import NetplugError
from netplug.ipam.lease import OwnerKind

log = structlog.get_logger(__name__)

RETRY_S = 0.5
PATIENCE_S = 900.0
"""dockerd serves its API only after it restarted all containers that are to be restarted; that may take minutes."""
GRACE_S = 3.0
"""After a start of ours Docker may be in the middle of starting a container; a little later it has it."""

View = Callable[[], Awaitable[DockerView | None]]


@dataclass(frozen=True, slots=True)
class Suspects:
    """What Docker's restart, or ours, may have orphaned. `addresses`: by pool, requested and not yet an endpoint's."""

    endpoints: frozenset[str]
    networks: frozenset[str]
    pools: frozenset[str]
    addresses: frozenset[tuple[str, IPAddress]]


class GarbageCollector:
    """Finds and removes them. `view`: what Docker has, None while it does not answer; no `view`: it is not asked."""

    def __init__(self, engine: Engine, view: View | None) -> None:
        self._engine = engine
        self._view = view

    def suspects(self) -> Suspects:
        """Return what Docker has had of us up to now."""
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
        """Remove what Docker does not have after its restart; it has ended or restarted all containers by then."""
        view = await self._ask()
        if view is None:
            await self._bury(suspects, await self._inhabited(suspects))
            return
        left = await self._bury(suspects, view.endpoints)
        await self._clear(suspects, view, left)
        await self._engine.allocator.end_session()

    async def after_start(self, suspects: Suspects) -> None:
        """Remove what Docker did away with while we were down."""
        alive, view = await self._inhabited(suspects), await self._ask()
        await asyncio.sleep(GRACE_S)
        alive |= await self._inhabited(suspects)
        later = await self._ask() if view else None
        if view is None or later is None:
            await self._bury(suspects, alive)
            return
        view |= later
        left = await self._bury(suspects, alive | view.endpoints)
        await self._clear(suspects, view, left)

    async def _ask(self) -> DockerView | None:
        """Ask Docker until it answers; None when it does not, or must not be asked."""
        if self._view is None:
            return None
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        while (view := await self._view()) is None:
            if asyncio.get_running_loop().time() > deadline:
                log.warning("docker.silent", after_s=PATIENCE_S)
                return None
            await asyncio.sleep(RETRY_S)
        return view

    async def _inhabited(self, suspects: Suspects) -> frozenset[str]:
        """Return the endpoints in whose sandbox a process lives: all that can be told without asking Docker."""
        kernel = self._engine.kernel
        records = [r for r in self._engine.registry.endpoints() if r.endpoint.id in suspects.endpoints]
        return frozenset([r.endpoint.id for r in records if await has_processes(kernel, r)])

    async def _bury(self, suspects: Suspects, alive: frozenset[str]) -> frozenset[tuple[str, IPAddress]]:
        """Delete the dead; return the addresses that they leave: Docker may have given them back to deaf ears."""
        dead = suspects.endpoints - alive
        left: set[tuple[str, IPAddress]] = set()
        for record in self._engine.registry.endpoints():
            if record.endpoint.id in dead:
                left.update(zip(record.pools, (it.ip for it in record.endpoint.addresses), strict=True))
                await self._bury_one(record)
        return frozenset(left)

    async def _bury_one(self, record: EndpointRecord) -> None:
        log.info("endpoint.dead", endpoint=short(record.endpoint.id), name=record.name)
        await self._engine.endpoints.delete(record.endpoint.network, record.endpoint.id)

    async def _clear(self, suspects: Suspects, view: DockerView, left: frozenset[tuple[str, IPAddress]]) -> None:
        registry, allocator = self._engine.registry, self._engine.allocator
        for record in registry.networks():
            ident = record.network.id
            if ident in suspects.networks - view.networks and not registry.endpoints(ident):
                log.info("network.orphaned", network=short(ident), name=record.network.name)
                await self._delete_network(ident)
        for pool in allocator.pools():
            if pool.id in suspects.pools and not pool.holders and pool.network not in view.subnets:
                log.info("pool.orphaned", pool=pool.id)
                for _ in range(pool.holds):
                    await allocator.release_pool(pool.id)
        for pool_id, address in suspects.addresses | left:
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
