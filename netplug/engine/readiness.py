"""Whether endpoints are as they were made, and whether a network could take another one."""

from collections.abc import Collection, Sequence
from contextlib import suppress

from netplug.drivers.api import Network
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import IPNetwork, Step
from netplug.engine.base_plan import BasePlan
from netplug.engine.implicit_networks import ImplicitNetworks
from netplug.engine.records import EndpointRecord, NetworkRecord, NetworkSpec
from netplug.engine.registry import Registry
from netplug.errors import NetplugError, Reportable
from netplug.ipam.allocator import Allocator
from netplug.kernel.api import Drift, Kernel
from netplug.kernel.executor import Executor


class NotReadyError(NetplugError):
    """A network cannot take an endpoint now. `damaged`: those that are in it suffer too."""

    def __init__(self, message: str, details: str = "", *, damaged: bool = False) -> None:
        super().__init__("unavailable", message, hint=details)
        self.damaged = damaged


class Readiness:
    """Compares networks and endpoints with the kernel. It changes nothing, but repairs what others displaced."""

    def __init__(
        self,
        registry: Registry,
        base_plan: BasePlan,
        implicit_networks: ImplicitNetworks,
        kernel: Kernel,
        executor: Executor,
        allocator: Allocator,
        drivers: Drivers,
    ) -> None:
        self._registry = registry
        self._base_plan = base_plan
        self._implicit_networks = implicit_networks
        self._kernel = kernel
        self._executor = executor
        self._allocator = allocator
        self._drivers = drivers

    async def faults(self, network: NetworkRecord, built: EndpointRecord) -> str:
        """Return all that is missing or different of an endpoint and its network, in words; empty when nothing is."""
        return _words(await self._kernel.drift((*network.plan, *built.present)))

    async def refuse_unready(
        self,
        record: NetworkRecord | None,
        wanted: NetworkSpec,
        groups: Sequence[Collection[IPNetwork]] | None = None,
    ) -> None:
        """Refuse if an endpoint could not be made in a network, or if those that are in it suffer.

        What can be repaired is: what others displaced a moment ago is no reason to send a runtime away. `record` None:
        the network does not exist yet. `groups`: sets of subnets, of each of which an endpoint gets an address; None:
        one of each IP version.

        Raises:
            NotReadyError: with the reason.
            NetworkDiffersError: the network is not as wanted.
        """
        if record is None:
            await self._refuse_unmakeable(wanted)
            return
        name = record.network.name
        self._implicit_networks.refuse_disagreement(record, wanted)
        seen = await self._kernel.compare(self._plan(record))
        if seen.drifts:
            await self._repair(record)
            seen = await self._kernel.compare(self._plan(record))
        if seen.drifts:
            raise NotReadyError(f"network {name!r} is damaged", _words(seen.drifts), damaged=True)
        link = self._drivers.of(record.network).segment(record.network)
        if link and not any(one.name == link and one.up for one in seen.facts.links):
            raise NotReadyError(f"link {link!r} of network {name!r} is gone or down", damaged=True)
        pools = {subnet.pool: pool for pool, subnet in zip(record.pools, record.network.subnets, strict=True)}
        versions = ([it for it in pools if it.version == family] for family in record.network.families())
        for group in versions if groups is None else groups:
            if not any(self._has_room(pools[subnet]) for subnet in group if subnet in pools):
                many = f" of {', '.join(map(str, group))}" if groups is not None and len(groups) > 1 else ""
                version = next(iter(group)).version
                raise NotReadyError(f"no IPv{version} address{many} is free in network {name!r}")

    def _has_room(self, pool: str) -> bool:
        """Tell whether a request for any address would get one: those that are kept by name are given away at last."""
        usage = self._allocator.usage(pool)
        return usage.free + usage.kept > 0

    def _plan(self, record: NetworkRecord) -> tuple[Step, ...]:
        return (*self._base_plan.plan, *record.plan)

    async def _repair(self, record: NetworkRecord) -> None:
        """Repair a network and what it shares with others; what cannot be repaired is found by the next comparison."""
        with suppress(NetplugError, ExceptionGroup):
            await self._base_plan.mend(self._registry.all_networks)
        async with self._registry.lock(record.network.id):
            if record in self._registry.networks():
                with suppress(NetplugError, ExceptionGroup):
                    await self._executor.mend(record.plan)

    async def _refuse_unmakeable(self, wanted: NetworkSpec) -> None:
        """Refuse a network that its first endpoint could not make."""
        options = self._drivers.parse(wanted.options)
        driver = self._drivers.named(options.mode)
        host = await self._base_plan.read_host()
        net = Network("status", wanted.name, options=driver.complete(options, host), internal=wanted.internal)
        try:
            driver.check(net, self._registry.all_networks(), host)
        except Exception as exc:
            if not isinstance(exc, Reportable) or exc.kind not in {"invalid", "exists"}:
                raise
            raise NotReadyError(str(exc)) from None


def _words(drifts: Sequence[Drift]) -> str:
    return "; ".join(f"{drift.step.key}: {drift.what}" for drift in drifts)
