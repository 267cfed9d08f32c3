"""Endpoints that Docker has lost in a crash and that still hold host ports, which somebody else wants."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from netplug.drivers import port_ranges
from netplug.drivers.api import PortMapping
from netplug.drivers.naming import short
from netplug.engine.happenings import because
from netplug.engine.port_matching import on_hosts, overlap
from netplug.engine.records import EndpointRecord, FrontEnd
from netplug.engine.registry import Registry
from netplug.errors import NetplugError
from netplug.kernel.api import IN_USE, HostKernel

log = structlog.get_logger(__name__)

GRACE_S = 3.0
"""After our start, Docker may be starting a container that has no process yet."""
_POLL_S = 0.05
_T = TypeVar("_T")


class DeadHolders:
    """Frees ports that dead endpoints of Docker's hold, by deleting these. `drop`: deletes an endpoint.

    After a crash of dockerd nobody tells us that they died, and the restarted container wants the same port.
    """

    def __init__(self, registry: Registry, kernel: HostKernel) -> None:
        self.drop: Callable[[EndpointRecord], Awaitable[None]]
        self._registry = registry
        self._kernel = kernel
        self._started = time.monotonic()
        self._known: set[str] = set()

    def begin_session(self) -> None:
        """Note that dockerd has started: endpoints that published before may be dead."""
        self._known.clear()

    def note_alive(self, record: EndpointRecord) -> None:
        """Note that the present dockerd has published an endpoint's ports."""
        self._known.add(record.key)

    def forget(self, record: EndpointRecord) -> None:
        """Note that an endpoint is gone."""
        self._known.discard(record.key)

    async def evade(
        self,
        network_id: str,
        endpoint_id: str,
        ports: Sequence[PortMapping] | None,
        attempt: Callable[[], Awaitable[_T]],
    ) -> _T:
        """Publish by `attempt`; if dead endpoints are in the way, delete these and try again. No lock is held.

        `ports`: those that are wanted; None: the endpoint's own.
        """
        try:
            return await attempt()
        except NetplugError as exc:
            if exc.kind != "unavailable" or not await self._drop_all(network_id, endpoint_id, ports):
                raise
            return await attempt()

    async def _drop_all(self, network_id: str, endpoint_id: str, ports: Sequence[PortMapping] | None) -> bool:
        """Delete dead endpoints that hold a wanted port; tell whether there were any."""
        net = self._registry.network(network_id).network
        built = self._registry.endpoint(network_id, endpoint_id)
        wanted = on_hosts(net, built.endpoint.ports if ports is None else ports)
        dropped = False
        for other in self._registry.endpoints():
            if other.key != built.key and holds(other, wanted) and await self._is_dead(other):
                dropped |= await self._bury(other)
        return dropped

    async def _bury(self, dead: EndpointRecord) -> bool:
        network_id, endpoint_id = dead.endpoint.network, dead.endpoint.id
        async with self._registry.lock(network_id):
            now = self._registry.find(network_id, endpoint_id)
            if now is None or (now.sandbox, now.in_force) != (dead.sandbox, dead.in_force):
                return False
            log.warning("endpoint.dead", endpoint=short(endpoint_id), ports=list(map(str, dead.in_force)))
            with because("docker has lost it, and another container asks for its port"):
                await self.drop(now)
            return True

    async def _is_dead(self, holder: EndpointRecord) -> bool:
        """Tell whether Docker has lost a container that published ports.

        An endpoint that the present dockerd published is alive, even without a process: Docker up to 27 publishes
        before it starts the container. After our start it is not known which dockerd published it.
        """
        if holder.front_end is not FrontEnd.DOCKER or holder.key in self._known:
            return False
        while not await self._kernel.sandboxes.has_processes(holder.sandbox, holder.sandbox_id):
            if time.monotonic() - self._started >= GRACE_S:
                return True
            await asyncio.sleep(_POLL_S)
        return False

    def with_holder(self, error: NetplugError, built: EndpointRecord, ports: Sequence[PortMapping]) -> NetplugError:
        """Return the error of a taken port with the name of the endpoint that has it, if it is one of ours."""
        what, here, _ = error.message.partition(IN_USE)
        for single in (single for mapping in ports for single in port_ranges.singles(mapping) if here):
            if f":{single.host_port}/{single.proto}" not in what:
                continue
            for other in self._registry.endpoints():
                if other.key != built.key and holds(other, [single]):
                    net = self._registry.find_network(other.endpoint.network)
                    words = f"{what}{here} by {other.called} of network {(net.network.name if net else '?')!r}"
                    return NetplugError(error.kind, words, hint=error.hint)
        return error


def holds(holder: EndpointRecord, wanted: Sequence[PortMapping]) -> bool:
    """Tell whether an endpoint has published one of the wanted ports."""
    return any(overlap(have, want) for have in holder.in_force for want in wanted)
