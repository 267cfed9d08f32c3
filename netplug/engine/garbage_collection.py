"""CNI's GC: what a runtime left behind on a network is freed.

A runtime lists what is attached as far as it knows, and several may use one network, by one configuration or by several
of one name (containernetworking/cni issue 1086). So what another runtime attached is garbage only when its sandbox is
gone.
"""

from collections.abc import Awaitable, Collection
from dataclasses import dataclass

import structlog

from netplug.drivers.naming import short
from netplug.engine.endpoints import Endpoints
from netplug.engine.host_services import Runtimes
from netplug.engine.implicit_networks import ImplicitNetworks
from netplug.engine.networks import Networks
from netplug.engine.records import EndpointRecord, FrontEnd, NetworkRecord
from netplug.engine.registry import Registry
from netplug.engine.sandboxes import is_there
from netplug.errors import NetplugError
from netplug.kernel.sandbox.api import Sandboxes

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Collected:
    """What came of a collection.

    `kept`: (container, interface) of endpoints that other runtimes have. `failures`: why others could not be deleted.
    """

    kept: frozenset[tuple[str, str]] = frozenset()
    failures: tuple[NetplugError, ...] = ()


class GarbageCollection:
    """Frees endpoints that no runtime has any more.

    It never frees one that the asking runtime names, nor one of another runtime whose sandbox exists. A failure does
    not stop it.
    """

    def __init__(
        self,
        registry: Registry,
        networks: Networks,
        implicit_networks: ImplicitNetworks,
        endpoints: Endpoints,
        sandboxes: Sandboxes,
        runtimes: Runtimes,
    ) -> None:
        self._registry = registry
        self._implicit_networks = implicit_networks
        self._networks = networks
        self._endpoints = endpoints
        self._sandboxes = sandboxes
        self._runtimes = runtimes

    async def collect(self, record: NetworkRecord, valid: Collection[tuple[str, str]], runtime: str) -> Collected:
        """Free what is garbage; the network too, if a configuration made it and nobody is in it, or just joins it.

        The caller lets nobody join the network meanwhile (`ImplicitNetworks.one_at_a_time`).

        `valid`: (container, interface) of the attachments that stay. `runtime`: the one that asks, see `Caller`.
        """
        ident, failures = record.network.id, list[NetplugError]()
        kept: set[tuple[str, str]] = set()
        for built in self._registry.endpoints(ident):
            attached = (built.container, built.ifname)
            if built.front_end is not FrontEnd.CNI or attached in valid:
                continue
            if await self._is_garbage(built, runtime):
                await _noting(self._endpoints.delete(ident, built.endpoint.id), failures)
            else:
                kept.add(attached)
        used = self._registry.endpoints(ident) or self._implicit_networks.is_joined(record.network.name)
        if record.front_end is FrontEnd.CNI and not used:
            await _noting(self._networks.delete(ident, by=FrontEnd.CNI), failures)
        return Collected(frozenset(kept), tuple(failures))

    async def _is_garbage(self, built: EndpointRecord, runtime: str) -> bool:
        if self._runtimes.same_runtime(built.runtime, runtime) or not await is_there(self._sandboxes, built):
            return True
        log.info("gc.kept", endpoint=short(built.endpoint.id), container=built.container, runtime=built.runtime)
        return False


async def _noting(work: Awaitable[object], failures: list[NetplugError]) -> None:
    try:
        await work
    except NetplugError as exc:
        failures.append(exc)
