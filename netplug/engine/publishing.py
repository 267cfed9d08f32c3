"""Use cases of published ports. Host ports are reserved before any rule leads to them."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace

import structlog

from netplug.drivers import port_ranges, shared_ports
from netplug.drivers.api import Network, PortMapping
from netplug.drivers.errors import DriverError
from netplug.drivers.naming import short
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import Proto
from netplug.engine import port_moves
from netplug.engine.convergence import Change
from netplug.engine.dead_holders import DeadHolders
from netplug.engine.journal import Intent, Journal
from netplug.engine.planning import Planner
from netplug.engine.port_matching import missing, on_hosts, still
from netplug.engine.port_moves import Move
from netplug.engine.port_reservation import Chosen, Inherited, Sharing, addresses, in_order, reserved
from netplug.engine.records import Caller, EndpointRecord, NetworkRecord
from netplug.engine.registry import Record, Registry
from netplug.engine.sandboxes import is_there
from netplug.errors import NetplugError
from netplug.kernel.api import HostKernel
from netplug.kernel.host.api import Reservations
from netplug.store.api import StoreError
from netplug.tasks.best_effort import BestEffort
from netplug.tasks.turns import aside
from netplug.tasks.uncancellable import uncancellable

log = structlog.get_logger(__name__)

_NOBODY = Caller()
_ANY = PortMapping(Proto.TCP, 1, host_port=1)
"""To ask a driver whether it publishes ports at all."""


class Publishing:
    """Publishes ports of endpoints, and takes them back, under the lock of the network.

    A host port has one endpoint. It is reserved by a bound socket, so no other process can take it. A publish that
    fails changes nothing. A port that a dead endpoint of Docker's holds is freed for the next one that asks.
    """

    def __init__(
        self, registry: Registry, journal: Journal, kernel: HostKernel, drivers: Drivers, planner: Planner
    ) -> None:
        self._registry = registry
        self._planner = planner
        self._journal = journal
        self._kernel = kernel
        self._drivers = drivers
        self.dead_holders = DeadHolders(registry, kernel)
        self.lost: dict[str, Mapping[PortMapping, str]] = {}
        """By endpoint: ports that it should publish by now, and why it does not."""
        self._behind: dict[str, str] = {}
        """Networks whose ports do not follow from their records, since the store refuses, and why."""
        self._sharing = Sharing(registry)
        self._chosen = Chosen()
        registry.watchers.append(self._changed)

    def _changed(self, before: Record | None, after: Record | None) -> None:
        if not isinstance(before, EndpointRecord):
            return
        if after is None:
            self.dead_holders.forget(before)
            self.lost.pop(before.key, None)
        if before.published and not (isinstance(after, EndpointRecord) and after.published == before.published):
            self._chosen.remember(before)

    @uncancellable
    async def publish(
        self, network_id: str, endpoint_id: str, ports: Sequence[PortMapping] | None = None
    ) -> EndpointRecord:
        """Publish the endpoint's ports, or `ports` in their place. If they are published already, nothing changes.

        Raises:
            NetplugError: "not_found"; "unavailable": a host port is taken; the message names it.
        """

        async def attempt() -> EndpointRecord:
            return await self._publish_locked(network_id, endpoint_id, ports)

        return await self.dead_holders.evade(network_id, endpoint_id, ports, attempt)

    async def _publish_locked(
        self, network_id: str, endpoint_id: str, ports: Sequence[PortMapping] | None
    ) -> EndpointRecord:
        async with self._registry.lock(network_id):
            built = self._registry.endpoint(network_id, endpoint_id)
            wanted = built.endpoint.ports if ports is None else in_order(ports)
            if (built.published or built.withheld) and wanted == in_order(built.endpoint.ports):
                self.dead_holders.note_alive(built)
                return built
            hidden = await self._unpublish(built) if built.published or built.withheld else None
            try:
                return await self._publish(replace(hidden or built, endpoint=replace(built.endpoint, ports=wanted)))
            except (NetplugError, DriverError, StoreError):
                if hidden:
                    with suppress(NetplugError, DriverError, StoreError):
                        await self._publish(hidden)  # as it was
                raise

    async def _publish(self, built: EndpointRecord) -> EndpointRecord:
        net = self._registry.network(built.endpoint.network).network
        async with self.exposed(net, built) as open_:
            if open_.published:
                await self.grow((built, open_))
                self.dead_holders.note_alive(open_)
                return open_
        if net.internal and built.endpoint.ports and not built.withheld:
            # They are published as soon as the network is not internal.
            await self._registry.save(built := replace(built, withheld=True))
        return built

    @asynccontextmanager
    async def exposed(
        self, net: Network, built: EndpointRecord, caller: Caller = _NOBODY
    ) -> AsyncIterator[EndpointRecord]:
        """Yield the record with its ports reserved and published. The reservations end if the block fails."""
        if not await aside(len(built.endpoint.ports), self._drivers.of(net).expose, net, built.endpoint):
            yield built
            return
        shares = built.front_end.shares
        for mapping in built.endpoint.ports if shares else ():
            shared_ports.check(mapping)
        theirs = self._kernel.ports.reservations(caller.pid, built.container) if shares else None
        with self._sharing.claimed(built, on_hosts(net, built.endpoint.ports)) as ports:
            relayed = not shares
            number = sum(mapping.count * len(addresses(built.endpoint, mapping, relayed=relayed)) for mapping in ports)
            self._kernel.ports.admit(number, f"publishing {sum(mapping.count for mapping in ports)} ports")
            had = self._chosen.before(built, ports)
            async with AsyncExitStack() as held:
                try:
                    work = reserved(self._kernel, built.endpoint, ports, theirs, had)
                    published = await held.enter_async_context(work)
                except NetplugError as exc:
                    raise self.dead_holders.with_holder(exc, built, ports) from exc
                open_ = replace(built, published=in_order((*built.published, *published)))
                yield await aside(len(published), self.planned, net, open_)

    def planned(self, net: Network, record: EndpointRecord) -> EndpointRecord:
        """Return an endpoint with the plan of the ports that it says are in force."""
        return replace(record, exposed=self._planner.exposed(net, record))

    async def grow(self, *moves: Move) -> None:
        """Publish more ports of endpoints of one network, whose lock the caller holds: all or none.

        `moves`: each endpoint before and after; the later plan has all objects of the former.
        """
        more = await aside(sum(len(new.exposed) for _, new in moves), port_moves.added, moves)
        key, _ = await self._journal.build(Intent(port_moves.described(moves), more))
        await self._journal.commit(key, await aside(len(more), port_moves.puts, moves))
        for _, new in moves:
            self._registry.remember(new)

    async def shrink(self, *moves: Move) -> None:
        """Publish fewer ports, as `grow`; the later plan has no other objects than the former."""
        gone = await aside(
            sum(len(old.exposed) for old, _ in moves), port_moves.added, [(new, old) for old, new in moves]
        )
        await self._journal.take_down(
            Intent(port_moves.described(moves), gone), await aside(len(gone), port_moves.puts, moves)
        )
        for _, new in moves:
            self._registry.remember(new)

    # Ports in force follow from records

    @uncancellable
    async def converge(self, *network_ids: str) -> None:
        """Bring the published ports of networks to what follows from their records. No lock is held.

        A port that cannot be published is in `lost`, and tried again by `regain`; so are networks whose ports the store
        refuses to change. Endpoints that are as they should be are not touched.
        """
        self._behind |= dict.fromkeys(network_ids, "")
        await self.regain()  # other endpoints of these containers may publish what these do not any more

    async def _follow(self, ident: str) -> None:
        """Bring the ports of a network to what follows, unless the store refuses."""
        async with self._registry.lock(ident):
            found = self._registry.find_network(ident)
            every = self._registry.endpoints(ident) if found else ()
            records = [it for it in every if it.endpoint.ports or it.added or it.exposed]
            try:
                if found:
                    await self._fill_all(found.network, await self._shrunk(found.network, records))
            except StoreError as exc:
                self._behind[ident] = str(exc)
                log.warning("ports.behind", network=short(ident), error=str(exc))
            else:
                self._behind.pop(ident, None)

    def preview(self, record: NetworkRecord) -> list[Change]:
        """Return what `converge` will do when a network is as this record says, if no port is taken."""
        found: list[Change] = []
        for one in self._registry.endpoints(record.network.id):
            if not (one.endpoint.ports or one.added or one.exposed):
                continue
            old, new = one.exposed, self._ideal(record.network, one).exposed
            found += [Change(one.described, it.key, "added") for it in port_ranges.less(new, port_ranges.keys(old))]
            found += [Change(one.described, it.key, "removed") for it in port_ranges.less(old, port_ranges.keys(new))]
        return found

    def _ideal(self, net: Network, record: EndpointRecord) -> EndpointRecord:
        """Return an endpoint with all that it wants to publish. A host port that was chosen stays."""
        wanted = self._allowed(net, record, record.asked)
        kept = replace(
            record, published=still(record.published, wanted), opened=in_order(self._allowed(net, record, record.added))
        )
        if not record.front_end.shares:
            wanted = missing(wanted, kept.published)
        with self._sharing.claimed(kept, wanted) as ports:
            had = self._chosen.before(record, ports)
            numbered = (replace(it, host_port=had.get(it, it.host_port), host_port_end=0) for it in ports)
            new = [it for it in numbered if port_ranges.definite(it)]
            return self.planned(net, replace(kept, published=in_order((*kept.published, *new))))

    async def settle(self, record: EndpointRecord) -> EndpointRecord:
        """Do as `converge` for one endpoint; the caller holds the lock of its network."""
        net = self._registry.network(record.endpoint.network).network
        (kept,) = await self._shrunk(net, [record])
        return await self._fill(net, kept, self._reservations(kept))

    @uncancellable
    async def inherit(self, gone: EndpointRecord) -> None:
        """Publish the ports of a deleted endpoint at another endpoint of its container. No lock is held."""
        for heir in self._sharing.siblings(gone) if gone.published else ():
            if await is_there(self._kernel.sandboxes, heir):  # else it is about to be deleted, too
                await self._regain(heir, Inherited(gone))

    @uncancellable
    async def regain(self) -> None:
        """Publish `lost` ports that are free by now, and unpublish what is due. No lock is held."""
        work = BestEffort()
        for ident in list(self._behind):
            await work.do(self._follow(ident))
        lacking = {record.key: record for record in self._sharing.lacking(self._wanted)}
        lacking |= {record.key: record for record in self._registry.endpoints() if self._lacks(record)}
        self.lost = {key: self.lost[key] for key in lacking if key in self.lost}
        for record in lacking.values():
            if await is_there(self._kernel.sandboxes, record):
                await work.do(self._regain(record, self._reservations(record)))
        work.settle()

    async def _regain(self, record: EndpointRecord, theirs: Reservations | None) -> None:
        async with self._registry.lock(record.endpoint.network):
            found = self._registry.find(record.endpoint.network, record.endpoint.id)
            if found is not None:
                await self._fill(self._registry.network(record.endpoint.network).network, found, theirs)

    def _lacks(self, record: EndpointRecord) -> bool:
        """Tell whether ports are wanted beyond those that `Sharing` knows of, and are not published."""
        if not (record.withheld or record.added):
            return False
        withheld = record.withheld and missing(self._wanted(record), record.published)
        return bool(withheld or missing(self._wanted(record, record.added), record.opened))

    def _wanted(self, record: EndpointRecord, ports: Sequence[PortMapping] | None = None) -> tuple[PortMapping, ...]:
        """Return the ports to publish at an endpoint now, of the runtime's or `ports`."""
        found = self._registry.find_network(record.endpoint.network)
        return self._allowed(found.network, record, record.asked if ports is None else ports) if found else ()

    def _allowed(self, net: Network, record: EndpointRecord, ports: Sequence[PortMapping]) -> tuple[PortMapping, ...]:
        """Return ports as a network lets them be published; none if it is internal."""
        return on_hosts(net, ports) if ports and record.linked and self.publishes(net, record) else ()

    def publishes(self, net: Network, record: EndpointRecord) -> bool:
        """Tell whether ports of an endpoint can be published at all."""
        return bool(self._drivers.of(net).expose(net, replace(record.endpoint, ports=(_ANY,))))

    def _reservations(self, record: EndpointRecord) -> Reservations | None:
        return self._kernel.ports.reservations(0, record.container) if record.front_end.shares else None

    async def _shrunk(self, net: Network, records: Sequence[EndpointRecord]) -> list[EndpointRecord]:
        """Unpublish what is not wanted any more at endpoints of a network, and return them."""
        moves = [(record, self._kept(net, record)) for record in records]
        if changed := [move for move in moves if move[0] is not move[1]]:
            await self.shrink(*changed)
        return [kept for _, kept in moves]

    def _kept(self, net: Network, record: EndpointRecord) -> EndpointRecord:
        """Return an endpoint without the ports that are not wanted any more."""
        published = still(record.published, self._wanted(record))
        opened = still(record.opened, self._wanted(record, record.added)) if record.opened else ()
        if (published, opened) == (record.published, record.opened):
            return record
        withheld = bool(record.asked) and not record.front_end.shares
        return self.planned(net, replace(record, published=published, opened=opened, withheld=withheld))

    async def _fill_all(self, net: Network, records: Sequence[EndpointRecord]) -> None:
        """Publish what is wanted at endpoints of a network, by one change of the kernel if possible."""
        try:
            async with AsyncExitStack() as held:
                moves = [(one, await self._filled(net, one, self._reservations(one), held)) for one in records]
                if moves := [move for move in moves if move[0] is not move[1]]:
                    await self.grow(*moves)
        except NetplugError as exc:
            log.warning("ports.one_by_one", network=short(net.id), error=str(exc))
            for one in records:
                await self._fill(net, one, self._reservations(one))

    async def _fill(self, net: Network, found: EndpointRecord, theirs: Reservations | None) -> EndpointRecord:
        """Publish what is wanted and is not published, as far as possible; the rest is `lost`."""
        try:
            async with AsyncExitStack() as held:
                filled = await self._filled(net, found, theirs, held)
                if filled is not found:
                    await self.grow((found, filled))
        except NetplugError as exc:
            self._lose(found, dict.fromkeys(self._lacking(found), exc))
            return found
        return filled

    def _lacking(self, found: EndpointRecord) -> tuple[PortMapping, ...]:
        wanted = missing(self._wanted(found), found.published)
        return wanted + missing(self._wanted(found, found.added), found.opened)

    async def _filled(
        self, net: Network, found: EndpointRecord, theirs: Reservations | None, held: AsyncExitStack
    ) -> EndpointRecord:
        """Return an endpoint with what it shall publish, as far as its ports could be reserved; the rest is `lost`.

        The reservations end with `held`, if that ends by an error.
        """
        wanted, added = self._wanted(found), missing(self._wanted(found, found.added), found.opened)
        if not found.front_end.shares:
            wanted = missing(wanted, found.published)
        if not (wanted or added or found.withheld):
            self._lose(found, {})
            return found
        lost, filled, ep = dict[PortMapping, NetplugError](), found, found.endpoint
        ports = held.enter_context(self._sharing.claimed(found, wanted))
        try:
            async with AsyncExitStack() as mine:
                had = self._chosen.before(found, ports)
                published = await mine.enter_async_context(reserved(self._kernel, ep, ports, theirs, had, lost))
                opened = await mine.enter_async_context(reserved(self._kernel, ep, added, lost=lost))
                filled = self._with(net, found, published, opened)
                await held.enter_async_context(mine.pop_all())
        except (NetplugError, DriverError) as exc:
            lost = dict.fromkeys((*ports, *added), NetplugError(str(exc.kind), exc.message, hint=exc.hint))
        self._lose(found, lost)
        return filled

    def _with(
        self, net: Network, found: EndpointRecord, published: Sequence[PortMapping], opened: Sequence[PortMapping]
    ) -> EndpointRecord:
        """Return an endpoint with more ports in force; the same object if there are none."""
        more = found
        if published or opened:
            published = in_order((*found.published, *published)) if published else found.published
            opened = in_order((*found.opened, *opened)) if opened else found.opened
            more = self.planned(net, replace(found, published=published, opened=opened))
        asked = on_hosts(net, found.asked)
        withheld = bool(not found.front_end.shares and missing(asked, more.published))
        return more if withheld == more.withheld else replace(more, withheld=withheld)

    def _lose(self, found: EndpointRecord, lost: Mapping[PortMapping, NetplugError]) -> None:
        """Note which wanted ports of an endpoint are not published, and why."""
        before = self.lost.pop(found.key, {})
        if lost:
            self.lost[found.key] = {
                it: self.dead_holders.with_holder(exc, found, [it]).message for it, exc in lost.items()
            }
        if self.lost.get(found.key, {}) != before:
            log.warning("ports.lost", endpoint=short(found.endpoint.id), ports=[*map(str, lost)])

    def missed(self, network_id: str) -> Iterator[str]:
        """Yield in words which ports of a network are not published as they should be by now, and why."""
        if why := self._behind.get(network_id):
            yield f"published ports do not follow yet: {why}"
        for record in self._registry.endpoints(network_id):
            for port, why in self.lost.get(record.key, {}).items():
                yield f"port {port} of {record.name or short(record.endpoint.id)} is not published: {why}"

    def forget_lost(self, record: EndpointRecord) -> None:
        """Forget ports that could not be published and are not wanted any more."""
        wanted = (*self._wanted(record), *self._wanted(record, record.added))
        left = {it: why for it, why in self.lost.pop(record.key, {}).items() if still((it,), wanted)}
        if left:
            self.lost[record.key] = left

    # The runtime's ports are gone

    @uncancellable
    async def unpublish(self, network_id: str, endpoint_id: str) -> None:
        """Unpublish an endpoint's ports; absent is success."""
        async with self._registry.lock(network_id):
            built = self._registry.find(network_id, endpoint_id)
            if built is not None and (built.published or built.withheld):
                await self._unpublish(built)

    async def _unpublish(self, built: EndpointRecord) -> EndpointRecord:
        """Unpublish the runtime's ports; those that a user added stay."""
        net = self._registry.network(built.endpoint.network).network
        hidden = self.planned(net, replace(built, published=(), withheld=False))
        await self.shrink((built, hidden))
        self.forget_lost(hidden)
        return hidden
