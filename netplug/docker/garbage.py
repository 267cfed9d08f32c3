"""Garbage collection of endpoints, networks, pools and addresses that Docker no longer has.

Docker does not repeat deletions that the plugin missed, and after a crash of dockerd it sends few. It repeats a request
whose answer was lost, but without its body; and a dockerd that has no network of ours does not say that it has started
anew. So after a restart of either, and after such a request, the records of Docker are compared with Docker's lists.
Only records from before that moment are considered: objects that are being created are not in the lists yet.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from netplug.drivers.naming import short
from netplug.drivers.steps import IPAddress
from netplug.engine import Engine
from netplug.engine.happenings import because
from netplug.engine.records import DockerView, EndpointRecord, FrontEnd
from netplug.engine.sandboxes import has_processes
from netplug.errors import NetplugError
from netplug.ipam.lease import Lease, OwnerKind
from netplug.ipam.pool import Pool

log = structlog.get_logger(__name__)

RETRY_S = 0.5
PATIENCE_S = 900.0
"""Longest wait for Docker's API: dockerd serves it after restarting all containers, which may take minutes."""
GRACE_S = 3.0
"""Time between two looks at Docker's lists. What is in neither is gone: Docker lists a container some time after it has
asked for the endpoint."""
REPEATS_S = 15.0
"""Docker repeats a request for this time when the connection broke: after 1, 3, 7 and 15 s. Removals take as long."""

View = Callable[[], Awaitable[DockerView | None]]


@dataclass(frozen=True, slots=True)
class Suspects:
    """Objects that may be orphaned. `pools`: with their holds.

    `leases`: of addresses that were requested, but have no endpoint.
    """

    endpoints: frozenset[str]
    networks: frozenset[str]
    pools: Mapping[str, int]
    leases: tuple[Lease, ...]


class GarbageCollector:
    """Finds and deletes them. `view`: returns Docker's objects, or None if Docker does not answer; None: no Docker."""

    def __init__(self, engine: Engine, view: View | None) -> None:
        self._engine = engine
        self._view = view
        self._freed: set[tuple[str, IPAddress]] = set()
        """Addresses of endpoints that were deleted here: their release by Docker may have been missed."""
        self._restarts: asyncio.Queue[Suspects] = asyncio.Queue()
        self._request_lost = asyncio.Event()
        self._cause = ""
        self._releasing = asyncio.Lock()

    def on_activate(self) -> None:
        """Note a restart of dockerd: endpoints may have died without a notification."""
        self._restarts.put_nowait(self.suspects())

    def on_lost_request(self) -> None:
        """Note that Docker repeats a request without its body: what it wanted to delete is not deleted."""
        self._lost("docker repeated a request without its body")

    def on_return(self) -> None:
        """Note that Docker's events come again: it may have been killed at work."""
        self._lost("docker has come back")

    def _lost(self, cause: str) -> None:
        self._cause = cause
        self._request_lost.set()

    async def run(self, suspects: Suspects, repair: Callable[[], Awaitable[object]]) -> None:
        """Collect after the start, and after each event, until cancelled.

        `suspects`: those of the start. `repair`: compares records and kernel.
        """
        keep = self._engine.supervisor.keep
        async with asyncio.TaskGroup() as group:
            group.create_task(keep("orphans", lambda: self.after_start(suspects)))
            group.create_task(keep("docker.restarts", lambda: self._on_restarts(repair)))
            group.create_task(keep("docker.requests", self._on_lost_requests))

    async def _on_restarts(self, repair: Callable[[], Awaitable[object]]) -> None:
        while True:
            suspects = await self._restarts.get()
            with because("docker has started anew"):
                await repair()
                await self._bury(suspects)

    async def _bury(self, suspects: Suspects) -> None:
        await self._engine.supervisor.keep("orphans", lambda: self.after_restart_of_docker(suspects))

    async def _on_lost_requests(self) -> None:
        while True:
            await self._request_lost.wait()
            self._request_lost.clear()
            with because(self._cause):
                await self.after_lost_request(self.suspects())

    def suspects(self) -> Suspects:
        """Return all present objects of Docker."""
        registry, allocator = self._engine.registry, self._engine.allocator
        return Suspects(
            frozenset(r.endpoint.id for r in registry.endpoints() if r.front_end is FrontEnd.DOCKER),
            frozenset(r.network.id for r in registry.networks() if r.front_end is FrontEnd.DOCKER and r.claimed),
            {pool.id: pool.holds for pool in allocator.pools()},
            tuple(
                lease
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
        """Delete what Docker deleted while netplug was stopped, and what it is deleting now."""
        await self._delete_missing(suspects, asyncio.get_running_loop().time() + REPEATS_S)

    async def after_lost_request(self, suspects: Suspects) -> None:
        """Delete what Docker took for deleted when a request was lost. Containers that it starts meanwhile stay."""
        await asyncio.sleep(REPEATS_S)
        await self._delete_missing(suspects, 0.0)

    async def _delete_missing(self, suspects: Suspects, until: float) -> None:
        """Delete what two successive looks at Docker's lists miss. Go on `until` (loop time) and while lists shrink."""
        alive, view = await self._with_processes(suspects), await self._ask()
        while True:
            await asyncio.sleep(GRACE_S)
            alive_now = await self._with_processes(suspects)
            later = await self._ask() if view else None
            if view is None or later is None:
                await self._delete_dead(suspects, alive | alive_now)
                return
            await self._delete_dead(suspects, alive | alive_now | view.endpoints | later.endpoints)
            await self._delete_rest(suspects, view | later)
            shrunk = alive - alive_now or view.lacks(later)
            if not shrunk and asyncio.get_running_loop().time() >= until:
                return
            # Else a container of the former look would be spared for good.
            alive, view = alive_now, later

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
        async with self._releasing:
            for pool in allocator.pools():
                await self._release_holds(pool, suspects.pools.get(pool.id, 0), view)
        for lease in suspects.leases:
            # Not one of the same address that was requested since.
            if allocator.lease(lease.pool, lease.address) is lease:
                await self._release(lease, view)
        for pool_id, address in frozenset(self._freed):
            self._freed.discard((pool_id, address))
            if freed := allocator.lease(pool_id, address):
                await self._release(freed, view)

    async def _release_holds(self, pool: Pool, suspected: int, view: DockerView) -> None:
        """Release the holds of a pool that no network of Docker's explains. `suspected`: how many there were."""
        # A network that Docker does not list may be another Docker's.
        known = max(sum(subnet == pool.network for subnet, _ in view.holds), pool.network in view.subnets)
        known = max(known, bool(pool.holders))
        orphaned = min(suspected, pool.holds) - known
        if orphaned > 0:
            log.info("pool.orphaned", pool=pool.id, holds=orphaned)
        for _ in range(orphaned):
            await self._engine.allocator.release_pool(pool.id)
        if pool.holds - max(orphaned, 0) > known:
            # One of two requests was lost, and the other is younger than the suspects: look again later.
            self._lost("docker may have lost a request for a subnet")

    async def _release(self, lease: Lease, view: DockerView) -> None:
        if lease.owner.kind is OwnerKind.PENDING and lease.address not in view.addresses:
            log.info("lease.orphaned", address=str(lease.address), name=lease.owner.name)
            await self._engine.allocator.release_address(lease.pool, lease.address)

    async def _delete_network(self, ident: str) -> None:
        try:
            await self._engine.networks.delete(ident, by=FrontEnd.DOCKER)
        except NetplugError as exc:
            if exc.kind != "not_found":
                raise
