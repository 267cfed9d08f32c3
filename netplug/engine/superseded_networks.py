"""Networks of a runtime that removes and changes them without a word, as podman does.

podman keeps the definitions of its networks itself, and tells a netavark plugin of one when a container joins. So a
network of its that nobody is in and that contradicts what podman says now is no more.
"""

from contextlib import suppress
from typing import NamedTuple

import structlog

from netplug.drivers import shared
from netplug.drivers.api import Scope
from netplug.drivers.registry import Drivers
from netplug.engine.implicit_networks import ImplicitNetworks
from netplug.engine.network_updates import NetworkChange, NetworkUpdates
from netplug.engine.networks import Networks
from netplug.engine.records import FrontEnd, NetworkRecord, NetworkSpec
from netplug.engine.registry import Registry
from netplug.errors import NetplugError
from netplug.ipam.allocator import Allocator
from netplug.ipam.pool import Pool
from netplug.ipam.shared_subnet import disjoint

log = structlog.get_logger(__name__)


class _Obstacle(NamedTuple):
    """Why a network stands in the way of a new one. `shareable`: both can exist if the old one must stay."""

    why: str
    shareable: bool


class SupersededNetworks:
    """Deletes and changes networks as a runtime has done without telling.

    It touches only networks of the front end that asks. It deletes none that has endpoints, and none of the cluster.
    """

    def __init__(
        self,
        registry: Registry,
        networks: Networks,
        updates: NetworkUpdates,
        implicit_networks: ImplicitNetworks,
        allocator: Allocator,
        drivers: Drivers,
    ) -> None:
        self._registry = registry
        self._networks = networks
        self._updates = updates
        self._implicit_networks = implicit_networks
        self._allocator = allocator
        self._drivers = drivers

    async def forget(self, spec: NetworkSpec) -> None:
        """Delete the network of this name if nobody is in it: its runtime makes a new one, so it removed the old one.

        Else the options of the old one would hold for the new one.

        Raises:
            DriverError, NetplugError: the options are wrong; then nothing is changed.
        """
        self._drivers.parse(spec.options)
        record = self._own(spec)
        if record is not None and not self._registry.endpoints(record.network.id):
            log.info("network.superseded", name=spec.name, reason="podman makes it anew")
            with suppress(NetplugError):  # somebody has come
                await self._delete(record, spec.front_end)

    async def make_room(self, spec: NetworkSpec) -> None:
        """Delete what stands in the way of a network that does not exist yet: no two networks of podman's overlap.

        Raises:
            NetplugError: "exists": a network that cannot be deleted has such a subnet.
        """
        if self._implicit_networks.find(spec.name) is None:
            for other in self._registry.networks():
                if obstacle := self._obstacle(other, spec):
                    await self._clear_away(other, spec.front_end, obstacle)

    async def follow(self, spec: NetworkSpec) -> None:
        """Ask the upstreams that a network's definition names now: ``podman network update`` tells nobody."""
        record, upstream = self._own(spec), spec.options.get("dns_upstream", "")
        if record is not None and upstream != record.options.get("dns_upstream", ""):
            change = NetworkChange({shared.DNS_UPSTREAM.key: upstream})
            await self._updates.update_here(record.network.id, change)

    def _own(self, spec: NetworkSpec) -> NetworkRecord | None:
        """Return the network of this name if it is the front end's own, and on this host alone."""
        record = self._implicit_networks.find(spec.name)
        if record is None or record.front_end is not spec.front_end:
            return None
        cluster = self._drivers.of(record.network).scope is Scope.CLUSTER
        return None if cluster else record

    async def _clear_away(self, other: NetworkRecord, front_end: FrontEnd, obstacle: _Obstacle) -> None:
        net = other.network
        used = self._registry.endpoints(net.id) or self._implicit_networks.is_joined(net.name)
        if other.front_end is not front_end or used:
            if obstacle.shareable:
                return
            hint = f"choose another, or remove that network: {other.front_end.removal(net.name)}"
            raise NetplugError("exists", f"{obstacle.why} of network {net.name!r}", hint=hint)
        log.info("network.superseded", name=net.name, reason=obstacle.why)
        await self._delete(other, front_end)

    async def _delete(self, record: NetworkRecord, front_end: FrontEnd) -> None:
        async with self._implicit_networks.unjoined(record.network.name):
            await self._networks.delete(record.network.id, by=front_end)

    def _obstacle(self, other: NetworkRecord, wanted: NetworkSpec) -> _Obstacle | None:
        """Return what keeps a network from existing beside another one; None if nothing does."""
        segment = self._drivers.of(other.network).segment(other.network)
        lan = bool(segment) and wanted.options.get("mode") == other.network.options.mode
        for one in wanted.subnets:
            for pool, subnet in zip(other.pools, other.network.subnets, strict=True):
                if one.pool is None or one.pool.version != subnet.pool.version or not one.pool.overlaps(subnet.pool):
                    continue
                theirs = self._allocator.pool(pool) if lan else None
                if theirs is None or not disjoint(Pool(theirs.space, one.pool, ends=one.ends), theirs):
                    return _Obstacle(f"subnet {one.pool} overlaps {subnet.pool}", shareable=False)
        bridge = wanted.options.get(shared.BRIDGE.key, "")
        if bridge and bridge == other.options.get(shared.BRIDGE.key):
            return _Obstacle(f"link {bridge!r} is the bridge", shareable=True)
        return None
