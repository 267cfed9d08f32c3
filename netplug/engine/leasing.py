"""Addresses without links, for plugins of others that name ours as their IPAM (``netplug-ipam``).

The addresses are those of a network that has nothing else, so they are listed, limited and freed like all others.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog

from netplug.drivers.naming import short
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import IPAddress
from netplug.engine.endpoints import Endpoints
from netplug.engine.implicit_networks import ImplicitNetworks
from netplug.engine.networks import Networks
from netplug.engine.records import EndpointRecord, EndpointSpec, NetworkRecord, NetworkSpec
from netplug.engine.registry import Registry
from netplug.engine.sandboxes import identity, is_there
from netplug.errors import NetplugError
from netplug.kernel.sandbox.api import Sandboxes

log = structlog.get_logger(__name__)


class Leasing:
    """Leases addresses to interfaces that somebody else makes.

    A lease that fails leaves neither an address nor a network behind. The caller works on one network at a time
    (`ImplicitNetworks.one_at_a_time`).
    """

    def __init__(
        self,
        registry: Registry,
        networks: Networks,
        implicit_networks: ImplicitNetworks,
        endpoints: Endpoints,
        sandboxes: Sandboxes,
        drivers: Drivers,
    ) -> None:
        self._registry = registry
        self._networks = networks
        self._implicit_networks = implicit_networks
        self._endpoints = endpoints
        self._sandboxes = sandboxes
        self._drivers = drivers

    @asynccontextmanager
    async def leased(
        self, network: NetworkSpec, spec: EndpointSpec, wanted: Sequence[IPAddress], netns: str
    ) -> AsyncIterator[tuple[NetworkRecord, EndpointRecord]]:
        """Yield a network, made if it does not exist, and an endpoint with addresses; both go if the block fails.

        `spec`: its network is left open. `wanted`: addresses that are asked for. `netns`: path of the sandbox.

        Raises:
            NetworkDiffersError: the network is not as asked for.
            NetplugError, IpamError: there is no address.
        """
        record = self._implicit_networks.find(network.name)
        made = record is None
        if record is None:
            record = await self._networks.create(network)
        else:
            self._refuse_other(record, network)
        try:
            elsewhere = (netns, await identity(self._sandboxes, netns) or "")
            spec = replace(spec, network=record.network.id, elsewhere=elsewhere)
            await self._forget_former(spec)
            built = await self._endpoints.create(spec, wanted)
            try:
                yield record, built
            except BaseException:
                await self._endpoints.delete(record.network.id, built.endpoint.id)
                raise
        except BaseException:
            if made:
                await self._networks.delete(record.network.id, by=network.front_end)
            raise

    async def _forget_former(self, spec: EndpointSpec) -> None:
        """Delete the endpoint of a former life of a container, which ended without a word: its sandbox is gone."""
        former = self._registry.find(spec.network, spec.id)
        if former is None or (former.sandbox, former.sandbox_id) == spec.elsewhere:
            return
        if not await is_there(self._sandboxes, former):
            log.info("endpoint.dead", endpoint=short(spec.id), sandbox=former.sandbox)
            await self._endpoints.delete(spec.network, spec.id)

    def _refuse_other(self, record: NetworkRecord, wanted: NetworkSpec) -> None:
        """Refuse a network that has links of its own, or differs otherwise."""
        mode, found = self._drivers.parse(wanted.options).mode, record.network.options.mode
        if found != mode:
            words = f"network {record.network.name!r} is of mode {found}, not {mode}"
            hint = "give the configuration another name, or use netplug's own type"
            raise NetplugError("invalid", words, hint=hint)
        self._implicit_networks.refuse_disagreement(record, wanted)

    async def release(self, network: str, endpoint_id: str) -> None:
        """Give back the addresses of an endpoint in the network of this name; absent is success."""
        if record := self._implicit_networks.find(network):
            await self._endpoints.delete(record.network.id, endpoint_id)

    def find(self, network: str, endpoint_id: str) -> EndpointRecord | None:
        """Return an endpoint in the network of this name."""
        record = self._implicit_networks.find(network)
        return self._registry.find(record.network.id, endpoint_id) if record else None
