"""Use cases of published ports. Host ports are reserved before any rule leads to them."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import structlog

from netplug.drivers import port_ranges, shared_ports
from netplug.drivers.api import Network, PortMapping
from netplug.drivers.naming import short
from netplug.drivers.plan import Plan
from netplug.drivers.registry import Drivers
from netplug.engine.journal import Intent, Journal
from netplug.engine.port_reservation import Chosen, Inherited, Sharing, addresses, in_order, reserved
from netplug.engine.records import Caller, EndpointRecord, FrontEnd
from netplug.engine.registry import Record, Registry, put
from netplug.engine.sandboxes import is_there
from netplug.errors import NetplugError
from netplug.kernel.api import IN_USE, HostKernel
from netplug.kernel.host.api import Reservations
from netplug.tasks.uncancellable import uncancellable

log = structlog.get_logger(__name__)

_NOBODY = Caller()
GRACE_S = 3.0
"""After our start, Docker may be starting a container that has no process yet."""
_POLL_S = 0.05


class Publishing:
    """Publishes ports of endpoints, and takes them back, under the lock of the network.

    A host port has one endpoint. It is reserved by a bound socket, so no other process can take it. A publish that
    fails changes nothing. A port that a dead endpoint of Docker's holds is freed for the next one that asks.
    """

    def __init__(self, registry: Registry, journal: Journal, kernel: HostKernel, drivers: Drivers) -> None:
        self._registry = registry
        self._journal = journal
        self._kernel = kernel
        self._drivers = drivers
        self.drop: Callable[[EndpointRecord], Awaitable[None]]
        self._started = time.monotonic()
        self._known: set[str] = set()
        self.lost: dict[str, Mapping[PortMapping, str]] = {}
        """By endpoint: ports that it should have inherited from another endpoint of its container, and why not."""
        self._sharing = Sharing(registry)
        self._chosen = Chosen()
        registry.watchers.append(self._changed)

    def begin_session(self) -> None:
        """Note that dockerd has started: endpoints that published before may be dead."""
        self._known.clear()

    def _changed(self, before: Record | None, after: Record | None) -> None:
        if not isinstance(before, EndpointRecord):
            return
        if after is None:
            self._known.discard(before.key)
            self.lost.pop(before.key, None)
        if before.published and not (isinstance(after, EndpointRecord) and after.published):
            self._chosen.remember(before)

    @uncancellable
    async def publish(
        self, network_id: str, endpoint_id: str, ports: Sequence[PortMapping] | None = None
    ) -> EndpointRecord:
        """Publish the endpoint's ports, or `ports` in their place. If they are published already, nothing changes.

        Raises:
            NetplugError: "not_found"; "unavailable": a host port is taken; the message names it.
        """
        try:
            return await self._publish_locked(network_id, endpoint_id, ports)
        except NetplugError as exc:
            if exc.kind != "unavailable" or not await self._drop_dead_holders(network_id, endpoint_id, ports):
                raise
            return await self._publish_locked(network_id, endpoint_id, ports)

    async def _publish_locked(
        self, network_id: str, endpoint_id: str, ports: Sequence[PortMapping] | None
    ) -> EndpointRecord:
        async with self._registry.lock(network_id):
            built = self._registry.endpoint(network_id, endpoint_id)
            wanted = built.endpoint.ports if ports is None else in_order(ports)
            if built.exposed and wanted == in_order(built.endpoint.ports):
                self._known.add(built.key)
                return built
            if built.exposed:
                built = await self._unpublish(built)
            return await self._publish(replace(built, endpoint=replace(built.endpoint, ports=wanted)))

    async def _publish(self, built: EndpointRecord) -> EndpointRecord:
        net = self._registry.network(built.endpoint.network).network
        async with self.exposed(net, built) as open_:
            if open_.exposed:
                intent = Intent(f"ports of endpoint {short(open_.endpoint.id)}", open_.exposed)
                key, _ = await self._journal.build(intent)
                await self._journal.commit(key, [put(open_)])
                self._registry.remember(open_)
                self._known.add(open_.key)
        return open_

    @asynccontextmanager
    async def exposed(
        self, net: Network, built: EndpointRecord, caller: Caller = _NOBODY
    ) -> AsyncIterator[EndpointRecord]:
        """Yield the record with its ports reserved and published. The reservations end if the block fails."""
        if not self._drivers.of(net).expose(net, built.endpoint):
            yield built
            return
        shares = built.front_end.shares
        for mapping in built.endpoint.ports if shares else ():
            shared_ports.check(mapping)
        theirs = self._kernel.ports.reservations(caller.pid, built.container) if shares else None
        with self._sharing.claimed(built, _on_hosts(net, built.endpoint.ports)) as ports:
            relayed = not shares
            number = sum(mapping.count * len(addresses(built.endpoint, mapping, relayed=relayed)) for mapping in ports)
            self._kernel.ports.admit(number, f"publishing {sum(mapping.count for mapping in ports)} ports")
            had = self._chosen.before(built.sandbox, ports)
            async with AsyncExitStack() as held:
                try:
                    work = reserved(self._kernel, built.endpoint, ports, theirs, had)
                    published = await held.enter_async_context(work)
                except NetplugError as exc:
                    raise self._with_holder(exc, built, ports) from exc
                yield self._with(net, built, published)

    def _with_holder(self, error: NetplugError, built: EndpointRecord, ports: Sequence[PortMapping]) -> NetplugError:
        """Return the error of a taken port with the name of the endpoint that has it, if it is one of ours."""
        what, here, _ = error.message.partition(IN_USE)
        for single in (single for mapping in ports for single in port_ranges.singles(mapping) if here):
            if f":{single.host_port}/{single.proto}" not in what:
                continue
            for other in self._registry.endpoints():
                if other.key != built.key and _holds(other, [single]):
                    net = self._registry.find_network(other.endpoint.network)
                    holder = f"container {other.name!r}" if other.name else f"endpoint {short(other.endpoint.id)}"
                    words = f"{what}{here} by {holder} of network {(net.network.name if net else '?')!r}"
                    return NetplugError(error.kind, words, hint=error.hint)
        return error

    def _with(self, net: Network, built: EndpointRecord, published: tuple[PortMapping, ...]) -> EndpointRecord:
        """Return an endpoint with more published ports."""
        exposed = self._drivers.of(net).expose(net, replace(built.endpoint, ports=published))
        if not exposed:
            return built
        if built.front_end.shares:
            exposed = shared_ports.shared(exposed)
        exposed = built.exposed + exposed.without(step.key for step in built.present)
        return replace(built, exposed=exposed, published=in_order((*built.published, *published)))

    @uncancellable
    async def inherit(self, gone: EndpointRecord) -> None:
        """Publish the ports of a deleted endpoint at another endpoint of its container. No lock is held."""
        for heir in self._sharing.siblings(gone) if gone.published else ():
            if await is_there(self._kernel.sandboxes, heir):  # else it is about to be deleted, too
                await self._inherit(heir, Inherited(gone))

    @uncancellable
    async def regain(self) -> None:
        """Publish `lost` ports that are free by now. No lock is held."""
        lacking = self._sharing.lacking(self._wanted)
        self.lost = {record.key: self.lost[record.key] for record in lacking if record.key in self.lost}
        for record in lacking:
            if await is_there(self._kernel.sandboxes, record):
                await self._inherit(record, self._kernel.ports.reservations(0, record.container))

    def _wanted(self, record: EndpointRecord) -> Sequence[PortMapping]:
        """Return the ports to publish at an endpoint; none if its network publishes nothing."""
        found = self._registry.find_network(record.endpoint.network)
        if found is None or not self._drivers.of(found.network).expose(found.network, record.endpoint):
            return ()
        return _on_hosts(found.network, record.endpoint.ports)

    async def _inherit(self, heir: EndpointRecord, theirs: Reservations) -> None:
        ident = heir.endpoint.network
        async with self._registry.lock(ident):
            found = self._registry.find(ident, heir.endpoint.id)
            if found is None or not found.linked or not (wanted := self._wanted(found)):
                return
            net, lost = self._registry.network(ident).network, dict[PortMapping, NetplugError]()
            with self._sharing.claimed(found, wanted) as ports:
                try:
                    async with reserved(self._kernel, found.endpoint, ports, theirs, lost=lost) as published:
                        await self._add(net, found, published)
                except NetplugError as exc:
                    lost = dict.fromkeys(ports, exc)
            before = self.lost.pop(found.key, {})
            if lost:
                self.lost[found.key] = {it: self._with_holder(exc, found, [it]).message for it, exc in lost.items()}
            if self.lost.get(found.key, {}) != before:
                log.warning("ports.lost", endpoint=short(found.endpoint.id), ports=[*map(str, lost)])

    async def _add(self, net: Network, built: EndpointRecord, published: tuple[PortMapping, ...]) -> None:
        more = self._with(net, built, published)
        if more is not built:
            added = more.exposed.without(step.key for step in built.exposed)
            key, _ = await self._journal.build(Intent(f"ports of endpoint {short(built.endpoint.id)}", added))
            await self._journal.commit(key, [put(more)])
            self._registry.remember(more)

    async def _drop_dead_holders(self, network_id: str, endpoint_id: str, ports: Sequence[PortMapping] | None) -> bool:
        """Delete dead endpoints of Docker's that hold a port which an endpoint wants; tell whether there were any.

        After a crash of dockerd nobody tells us that they died, and the restarted container wants the same port.
        The caller holds no lock.
        """
        net = self._registry.network(network_id).network
        built = self._registry.endpoint(network_id, endpoint_id)
        wanted = _on_hosts(net, built.endpoint.ports if ports is None else ports)
        dropped = False
        for other in self._registry.endpoints():
            if other.key != built.key and _holds(other, wanted) and await self._is_dead(other):
                dropped |= await self._bury(other)
        return dropped

    async def _bury(self, dead: EndpointRecord) -> bool:
        network_id, endpoint_id = dead.endpoint.network, dead.endpoint.id
        async with self._registry.lock(network_id):
            now = self._registry.find(network_id, endpoint_id)
            if now is None or (now.sandbox, now.published) != (dead.sandbox, dead.published):
                return False
            log.warning("endpoint.dead", endpoint=short(endpoint_id), ports=list(map(str, dead.published)))
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

    @uncancellable
    async def unpublish(self, network_id: str, endpoint_id: str) -> None:
        """Unpublish an endpoint's ports; absent is success."""
        async with self._registry.lock(network_id):
            built = self._registry.find(network_id, endpoint_id)
            if built is not None and built.exposed:
                await self._unpublish(built)

    async def _unpublish(self, built: EndpointRecord) -> EndpointRecord:
        hidden = replace(built, exposed=Plan(), published=())
        intent = Intent(f"ports of endpoint {short(built.endpoint.id)}", built.exposed)
        await self._journal.take_down(intent, [put(hidden)])
        self._registry.remember(hidden)
        return hidden


def _on_hosts(net: Network, ports: Sequence[PortMapping]) -> tuple[PortMapping, ...]:
    """Return the mappings with the network's default host address if they name none."""
    default = net.options.host_binding_ipv4
    return tuple(replace(it, host_address=default) if default and it.host_address is None else it for it in ports)


def _holds(holder: EndpointRecord, wanted: Sequence[PortMapping]) -> bool:
    """Tell whether an endpoint has published one of the wanted ports."""
    return any(
        have.proto == want.proto
        and want.host_port < have.host_port + have.count
        and have.host_port <= max(want.host_port + want.count - 1, want.host_port_end)
        and (_everywhere(have) or _everywhere(want) or have.host_address == want.host_address)
        for have in holder.published
        for want in wanted
    )


def _everywhere(mapping: PortMapping) -> bool:
    return mapping.host_address is None or mapping.host_address.is_unspecified
