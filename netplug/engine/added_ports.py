"""Use cases of ports that a user adds to a living endpoint, of whatever runtime, and takes back."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import structlog

from netplug.drivers import port_ranges
from netplug.drivers.api import Network, PortMapping
from netplug.drivers.naming import short
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import IPAddress
from netplug.engine.endpoints import Endpoints
from netplug.engine.port_matching import assigned, fits, on_hosts, overlap
from netplug.engine.port_reservation import addresses, in_order, reserved
from netplug.engine.publishing import Publishing
from netplug.engine.records import EndpointRecord, FrontEnd
from netplug.engine.registry import Registry
from netplug.errors import NetplugError
from netplug.kernel.api import HostKernel
from netplug.tasks.uncancellable import uncancellable

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Added:
    """An endpoint with more published ports. `present`: those that were published already. `notes`: what is amiss."""

    record: EndpointRecord
    present: tuple[PortMapping, ...] = ()
    notes: tuple[str, ...] = ()


class AddedPorts:
    """Publishes more ports of living endpoints, and takes them back, under the lock of the network.

    They stay as long as the endpoint, whatever its runtime does with ports of its own. An add or remove that fails
    changes nothing.
    """

    def __init__(
        self, registry: Registry, publishing: Publishing, endpoints: Endpoints, kernel: HostKernel, drivers: Drivers
    ) -> None:
        self._registry = registry
        self._publishing = publishing
        self._endpoints = endpoints
        self._kernel = kernel
        self._drivers = drivers

    @uncancellable
    async def add(self, ref: str, ports: Sequence[PortMapping]) -> Added:
        """Publish more ports of an endpoint.

        `ref`: see `Registry.endpoints_called`. Of a container's endpoints it means the one that can publish; of several
        the one by which the container answers, since others do not get answers from elsewhere.

        Raises:
            NetplugError, DriverError: "not_found"; "invalid": several endpoints are meant, or its network publishes
                nothing; "exists": a host port leads to another port of the endpoint; "unavailable": a host port is
                taken. Nothing was changed.
        """
        found = await self._publishable(ref)
        network_id, endpoint_id = found.endpoint.network, found.endpoint.id

        async def attempt() -> Added:
            async with self._registry.lock(network_id):
                return await self._add(network_id, endpoint_id, ports)

        done = await self._publishing.dead_holders.evade(network_id, endpoint_id, ports, attempt)
        return replace(done, notes=await self._notes(done.record))

    async def _add(self, network_id: str, endpoint_id: str, ports: Sequence[PortMapping]) -> Added:
        net = self._registry.network(network_id).network
        built = self._registry.endpoint(network_id, endpoint_id)
        self._refuse(net, built)
        new, present = [], []
        for single in _singles(in_order(ports)):
            (want,) = on_hosts(net, [single])
            if same := [it for it in _singles(built.in_force) if fits(it, want)]:
                present += same
                continue
            if own := [it for it in _singles(built.in_force) if overlap(it, want) and want.host_port]:
                words = f"port {own[0]} of {built.called} is published"
                raise NetplugError("exists", words, hint="unpublish it first, or choose another host port")
            new.append(single)
        return Added(await self._publish(net, built, new) if new else built, tuple(present))

    def _refuse(self, net: Network, built: EndpointRecord) -> None:
        """Refuse an endpoint without links, and a network that publishes nothing."""
        if not built.linked:
            raise NetplugError("unavailable", f"{built.called} is not running", hint="start it first")
        if net.internal:
            words = f"network {net.name!r} is internal: nothing can be published there"
            raise NetplugError("invalid", words, hint="connect the container to another network as well")
        if not self._publishing.publishes(net, built):
            if not self._drivers.of(net).linked or built.endpoint.addresses:
                words = f"network {net.name!r} is of mode {net.options.mode!r}, which publishes no ports"
                raise NetplugError("invalid", words)
            raise NetplugError("unavailable", f"{built.called} has no address yet", hint="try again later")

    async def _publish(self, net: Network, built: EndpointRecord, new: Sequence[PortMapping]) -> EndpointRecord:
        wanted = on_hosts(net, new)
        self._drivers.of(net).expose(net, replace(built.endpoint, ports=wanted))  # it refuses what cannot be
        needed = sum(len(addresses(built.endpoint, it, relayed=True)) for it in wanted)
        self._kernel.ports.admit(needed, f"publishing {len(wanted)} ports")
        opened: list[PortMapping] = []
        added: list[PortMapping] = []
        async with AsyncExitStack() as held:
            try:
                for asked, want in zip(new, wanted, strict=True):
                    (got,) = await held.enter_async_context(reserved(self._kernel, built.endpoint, [want]))
                    opened.append(got)
                    added.append(replace(asked, host_port=got.host_port, host_port_end=0))
            except NetplugError as exc:
                raise self._publishing.dead_holders.with_holder(exc, built, wanted) from exc
            more = replace(built, added=in_order((*built.added, *added)), opened=in_order((*built.opened, *opened)))
            more = self._publishing.planned(net, more)
            await self._publishing.grow((built, more))
        try:
            await self._endpoints.listener.joined(more)
        except BaseException:
            await self._publishing.shrink((more, built))
            raise
        new = port_ranges.joined(opened)
        log.info("ports.added", endpoint=short(built.endpoint.id), name=built.name, ports=list(map(str, new)))
        return more

    @uncancellable
    async def remove(self, ref: str, ports: Sequence[PortMapping]) -> EndpointRecord:
        """Unpublish ports that a user published. A mapping without a host port means all of its container port.

        Raises:
            NetplugError: "not_found": the endpoint, or it has not published one of the ports; "forbidden": its runtime
                has; "invalid": several endpoints are meant. Nothing was changed.
        """
        found = self._holder(ref, ports)
        network_id, endpoint_id = found.endpoint.network, found.endpoint.id
        async with self._registry.lock(network_id):
            net = self._registry.network(network_id).network
            built = self._registry.endpoint(network_id, endpoint_id)
            gone = tuple(it for single in _singles(in_order(ports)) for it in self._removable(net, built, single))
            less = self._publishing.planned(net, _less(net, built, gone))
            await self._publishing.shrink((built, less))
            self._publishing.forget_lost(less)
            try:
                await self._endpoints.listener.joined(less)
            except NetplugError as exc:
                log.warning("ports.untold", endpoint=short(endpoint_id), reason=str(exc))
        old = port_ranges.joined(gone)
        log.info("ports.removed", endpoint=short(endpoint_id), name=built.name, ports=list(map(str, old)))
        return less

    def _removable(self, net: Network, built: EndpointRecord, want: PortMapping) -> list[PortMapping]:
        """Return the user's ports that a mapping means, with their host addresses."""
        mine = _of_user(net, built)
        if found := [it for it in mine if _means(want, it)]:
            return found
        if theirs := [it for it in _singles(built.published) if _means(want, it)]:
            words = f"port {theirs[0]} of {built.called} was published by {_MAKERS[built.front_end]}"
            raise NetplugError("forbidden", words, hint="it goes with the container")
        has = ", ".join(map(str, port_ranges.joined(mine)[:_NAMED])) or "none"
        words = f"{built.called} has not published port {_shown(want)}"
        raise NetplugError("not_found", words, hint=f"its published ports are: {has}" if mine else "")

    # Which endpoint

    async def _publishable(self, ref: str) -> EndpointRecord:
        found = self._registry.endpoints_called(ref)
        able = [it for it in found if it.linked and self._publishing.publishes(self._net(it), it)]
        if len(able) > 1 and len({it.sandbox for it in able}) == 1:
            ways = await self._kernel.sandboxes.gateways(able[0].sandbox)
            # The networks of its default routes; if there are two, that of IPv4.
            chosen = {way.version: it for it in able for way in ways & self._gateways(it)}
            able = [chosen[min(chosen)]] if chosen else able
        return self._one(ref, able or found)

    def _gateways(self, record: EndpointRecord) -> frozenset[IPAddress]:
        return frozenset(subnet.gateway.ip for subnet in self._net(record).subnets if subnet.gateway)

    async def _notes(self, record: EndpointRecord) -> tuple[str, ...]:
        """Return that a container answers by another network, where its answers are taken for spoofed ones."""
        ways = await self._kernel.sandboxes.gateways(record.sandbox)
        if not ways or ways & self._gateways(record):
            return ()
        by = ", ".join(sorted(map(str, ways)))
        words = f"{record.called} has its default route by {by}, in another network"
        return (f"{words}: the ports of this network are reached from 127.0.0.1 only",)

    def _holder(self, ref: str, ports: Sequence[PortMapping]) -> EndpointRecord:
        found = self._registry.endpoints_called(ref)
        wanted = list(_singles(ports))
        mine = {it.key: _of_user(self._net(it), it) for it in found}
        theirs = {it.key: _singles(it.published) for it in found}
        for have in (mine, theirs):
            if holders := [it for it in found if any(_means(want, one) for want in wanted for one in have[it.key])]:
                return self._one(ref, holders)
        return self._one(ref, found[:1] if _same_container(found) else found)

    def _net(self, record: EndpointRecord) -> Network:
        return self._registry.network(record.endpoint.network).network

    def _one(self, ref: str, found: Sequence[EndpointRecord]) -> EndpointRecord:
        if len(found) == 1:
            return found[0]
        names = sorted(f"{self._net(it).name}/{it.name or short(it.endpoint.id)}" for it in found)
        if len(set(names)) < len(names):
            names = sorted(f"{self._net(it).name}/{short(it.endpoint.id)}" for it in found)
        words = f"{len(found)} endpoints are called {ref[:80]!r}: {', '.join(names)}"
        raise NetplugError("invalid", words, hint="choose one of these names")


_NAMED = 8
"""Published ports that an error lists at most."""
_MAKERS = {FrontEnd.DOCKER: "docker", FrontEnd.CNI: "its CNI runtime", FrontEnd.NETAVARK: "podman"}


def _singles(ports: Sequence[PortMapping]) -> list[PortMapping]:
    return [single for mapping in ports for single in port_ranges.singles(mapping)]


def _of_user(net: Network, record: EndpointRecord) -> list[PortMapping]:
    """Return the ports that a user may take back. Those of ``netplug attach`` are a user's, too."""
    own = record.published if record.front_end is FrontEnd.CLI else ()
    return _singles((*on_hosts(net, record.added), *own))


def _means(want: PortMapping, have: PortMapping) -> bool:
    """Tell whether a user means a published port; without a host address, on any."""
    return fits(have, want if want.host_address else replace(want, host_address=have.host_address))


def _less(net: Network, built: EndpointRecord, gone: Sequence[PortMapping]) -> EndpointRecord:
    """Return an endpoint without some published ports."""

    def left(ports: Sequence[PortMapping]) -> tuple[PortMapping, ...]:
        kept = (it for it in _singles(ports) if not any(fits(one, *on_hosts(net, [it])) for one in gone))
        return in_order(tuple(kept))

    less = replace(built, added=left(built.added), opened=left(built.opened))
    if built.front_end is FrontEnd.CLI:
        served = assigned(on_hosts(net, built.endpoint.ports), built.published)
        asked = (it for it in _singles(built.endpoint.ports) if not set(served[on_hosts(net, [it])[0]]) & set(gone))
        ports = in_order(tuple(asked))
        less = replace(less, published=left(built.published), endpoint=replace(built.endpoint, ports=ports))
    return less


def _shown(mapping: PortMapping) -> str:
    """Return a mapping as it is asked for."""
    address = f"{mapping.host_address}:" if mapping.host_address else ""
    host = f"{mapping.host_port}:" if mapping.host_port else ""
    return f"{address}{host}{mapping.port}/{mapping.proto}"


def _same_container(found: Sequence[EndpointRecord]) -> bool:
    return len({(it.front_end, it.container) for it in found}) == 1 and bool(found and found[0].container)
