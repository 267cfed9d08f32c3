"""Use cases of endpoints: create, join, leave, delete; attach and detach for sandboxes without a runtime."""

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from functools import partial
from hashlib import sha256

import structlog

from netplug.drivers.api import Driver, Network
from netplug.drivers.naming import short
from netplug.drivers.plan import Plan
from netplug.drivers.registry import Drivers
from netplug.drivers.sandbox import moved
from netplug.drivers.steps import IPAddress
from netplug.engine.addressing import Addressing
from netplug.engine.disagreement import differences_of_endpoint
from netplug.engine.endpoint_building import EndpointBuilder
from netplug.engine.endpoint_leases import EndpointLeases
from netplug.engine.happenings import because
from netplug.engine.journal import Intent, Journal
from netplug.engine.listener import EndpointListener, NullListener, leaving
from netplug.engine.lost_answers import LostAnswers
from netplug.engine.planning import Planner
from netplug.engine.publishing import Publishing
from netplug.engine.records import (
    AttachSpec,
    Description,
    EndpointRecord,
    EndpointSpec,
    FrontEnd,
    NetworkRecord,
)
from netplug.engine.refused_releases import RefusedReleases
from netplug.engine.registry import Registry, put
from netplug.engine.sandboxes import is_there, name_of
from netplug.engine.way_out import WayOut, tolerant
from netplug.errors import NetplugError
from netplug.kernel.api import HostKernel
from netplug.store.api import StoreError
from netplug.tasks.locks import Locks
from netplug.tasks.uncancellable import uncancellable

log = structlog.get_logger(__name__)


class Endpoints:
    """Creates, joins, changes and deletes endpoints, each under the lock of its network.

    A create or attach that fails changes nothing. A delete succeeds for what does not exist, and the endpoint is gone
    even if the kernel refuses: the journal tries the rest again.

    `listener`: told of each endpoint; the cluster is.
    """

    def __init__(
        self,
        registry: Registry,
        planner: Planner,
        journal: Journal,
        addressing: Addressing,
        kernel: HostKernel,
        drivers: Drivers,
        publishing: Publishing,
        lost_answers: LostAnswers,
        endpoint_leases: EndpointLeases,
        refused: RefusedReleases,
    ) -> None:
        self._registry = registry
        self._lost_answers = lost_answers
        self._endpoint_leases = endpoint_leases
        self._refused = refused
        self._journal = journal
        self._addressing = addressing
        self._kernel = kernel
        self._drivers = drivers
        self._publishing = publishing
        self.way_out = WayOut(registry, journal, planner)
        self._builder = EndpointBuilder(
            registry, planner, journal, addressing, kernel, drivers, publishing, self.way_out
        )
        publishing.dead_holders.drop = self.drop
        self._attaching: set[str] = set()
        self._sandboxes = Locks()
        self._calls = Locks()
        self._ids = Locks()
        self.listener: EndpointListener = NullListener()

    @uncancellable
    async def create(self, spec: EndpointSpec, wanted: Sequence[IPAddress] = ()) -> EndpointRecord:
        """Create an endpoint and its links. `wanted`: addresses that the user asks for; the runtime's are in `spec`.

        If another endpoint of Docker's holds the address, Docker lost that one in a crash: it is deleted.

        Raises:
            NetplugError, DriverError, IpamError: and nothing was changed.
        """
        network_id = self._registry.network(spec.network).network.id
        async with self._ids.hold(spec.id), self._registry.lock(network_id):
            await self._refused.settle(network_id)
            record = self._registry.network(network_id)
            self._registry.refuse_elsewhere(network_id, spec.id)
            if (there := self._registry.find(network_id, spec.id)) is not None:
                if self._lost_answers.is_endpoint(there, spec, [it.ip for it in spec.addresses]):
                    await self._endpoint_leases.settle(there)
                    return there
                raise NetplugError("exists", f"endpoint {spec.id[:12]!r} exists already")
            await self._drop_superseded(spec, record)
            return await self._told(await self._builder.create(record, spec, wanted))

    async def _told(self, built: EndpointRecord) -> EndpointRecord:
        """Give a new endpoint what Docker requested for it, and tell the listener; else delete it, once that can be."""
        try:
            await self._endpoint_leases.settle(built)
            await self.listener.joined(built)
        except Exception:
            await self._refused.attempt(built.endpoint.network, partial(self._drop_untold, built))
            raise
        return built

    async def _drop_untold(self, built: EndpointRecord) -> None:
        if now := self._registry.find(built.endpoint.network, built.endpoint.id):
            await self.drop(now)

    async def _drop_superseded(self, spec: EndpointSpec, record: NetworkRecord) -> None:
        if spec.front_end is not FrontEnd.DOCKER:
            return
        for address in spec.addresses:
            other = self._registry.find(record.network.id, self._addressing.holder(record, address.ip))
            if other is not None and other.front_end is FrontEnd.DOCKER:
                log.warning("endpoint.superseded", endpoint=short(other.endpoint.id), by=short(spec.id))
                with because(f"docker gives its address to endpoint {short(spec.id)}"):
                    await self.drop(other)

    @uncancellable
    async def join(self, network_id: str, endpoint_id: str, sandbox: str) -> EndpointRecord:
        """Join an endpoint to a sandbox. After a Leave its links are built anew.

        Raises:
            NetplugError: "not_found"; "exists" when the endpoint is in another sandbox.
        """
        async with self._registry.lock(network_id):
            built = self._registry.endpoint(network_id, endpoint_id)
            if built.sandbox and built.sandbox != sandbox:
                raise NetplugError("exists", f"endpoint {endpoint_id[:12]!r} is already in sandbox {built.sandbox}")
            same = built.sandbox_id if built.sandbox else ""
            joined = replace(built, sandbox=sandbox, sandbox_id=same, linked=True, plan=moved(built.plan, sandbox))
            if built.linked:
                await self._registry.save(joined)
            else:
                key, _ = await self._journal.build(Intent(f"endpoint {short(endpoint_id)}", built.plan))
                await self._journal.commit(key, [put(joined)])
                self._registry.remember(joined)
                joined = await self._publishing.settle(joined)
                await self.listener.joined(joined)
        await self.listener.settled(joined)
        return joined

    @uncancellable
    async def leave(self, network_id: str, endpoint_id: str) -> None:
        """Remove an endpoint's links and published ports. It keeps its addresses. Absent is success."""
        async with self._registry.lock(network_id):
            built = self._registry.find(network_id, endpoint_id)
            if built is None or not built.linked:
                return
            left = replace(built, sandbox="", sandbox_id="", linked=False, exposed=Plan(), published=())
            left = replace(left, plan=moved(built.plan, None), opened=(), withheld=False)
            intent = Intent(f"endpoint {short(endpoint_id)}", built.plan + built.exposed)
            await self._journal.take_down(intent, [put(left)])
            self._registry.remember(left)

    @uncancellable
    async def delete(self, network_id: str, endpoint_id: str) -> bool:
        """Delete an endpoint in any state; False if it did not exist."""
        if leaving := self._registry.find(network_id, endpoint_id):
            with tolerant(leaving.sandbox):
                await self.way_out.converge(leaving.sandbox, leaving.sandbox_id, leaving.key)
        async with self._registry.lock(network_id):
            built = self._registry.find(network_id, endpoint_id)
            if built is None:
                return False
            await self.drop(built)
        await self._publishing.inherit(built)
        return True

    async def delete_by_id(self, endpoint_id: str, addresses: Collection[IPAddress] = ()) -> None:
        """Delete the endpoint with this id, in whatever network it is; absent is success.

        `addresses`: those that it had, as far as the caller knows. If the present endpoint has none of them, the
        request came late, and meant a former endpoint with the same id: nothing is deleted.
        """
        for record in self._registry.networks():
            built = self._registry.find(record.network.id, endpoint_id)
            ours = {address.ip for address in built.endpoint.addresses} if built else set()
            if built is not None and not (ours and addresses and ours.isdisjoint(addresses)):
                await self.delete(record.network.id, endpoint_id)

    @uncancellable
    async def drop(self, built: EndpointRecord) -> None:
        """Delete an endpoint. The caller holds the lock of its network."""
        intent = Intent(f"endpoint {short(built.endpoint.id)}", built.present, (built.key,))
        async with leaving(self.listener, built):
            await self._journal.take_down(intent, then=partial(self._endpoint_leases.return_to_docker, built))
        # At once: else reconcile would report what is gone as missing.
        self._registry.forget(built)
        await self._endpoint_leases.release(built)
        log.info("endpoint.deleted", endpoint=short(built.endpoint.id), name=built.name)

    @uncancellable
    async def describe(self, network_id: str, endpoint_id: str, description: Description) -> None:
        """Learn the container of an endpoint, and its names."""
        async with self._registry.lock(network_id):
            built = self._registry.find(network_id, endpoint_id)
            if built is None:
                return
            if built.name not in {"", description.name} and not built.container:
                # The name was inferred from Docker's files, wrongly: the address may be the other container's.
                log.warning(
                    "endpoint.mistaken", endpoint=short(endpoint_id), taken_for=built.name, name=description.name
                )
            described = replace(built, container=description.container, name=description.name)
            if description.details:
                described = replace(
                    described, aliases=description.aliases, hostname=description.hostname, serves=description.serves
                )
                described = replace(
                    described,
                    healthy=description.healthy,
                    domainname=description.domainname,
                    resolves=description.resolves,
                )
            if described != built:
                await self._registry.save(described)
                await self.listener.joined(described)

    @uncancellable
    async def identify(self, record: EndpointRecord, sandbox_id: str) -> None:
        """Learn the identity of an endpoint's sandbox, unless the record has changed since."""
        async with self._registry.lock(record.endpoint.network):
            if self._registry.find(record.endpoint.network, record.endpoint.id) is record:
                plan = record.plan.of_namespace(sandbox_id)
                await self._registry.save(replace(record, sandbox_id=sandbox_id, plan=plan))

    def one_at_a_time(self, endpoint_id: str) -> AbstractAsyncContextManager[None]:
        """Do what a runtime asks for one of its endpoints during the block, after what it has asked before.

        A runtime that was killed, or ran out of patience, deletes what its former request is just creating.
        """
        return self._calls.hold(endpoint_id)

    # Sandboxes without a runtime

    @uncancellable
    async def attach(self, spec: AttachSpec) -> EndpointRecord:
        """Attach a network namespace: link, addresses, routes, published ports.

        Raises:
            NetplugError: "not_found"; "exists", and how it differs; what `create`, `publish` raise. Nothing changed.
        """
        network_id = self._registry.network(spec.network).network.id
        path, ident = await self._kernel.sandboxes.find(spec.netns)
        endpoint_id = spec.id or _attachment_id(ident, spec.ifname)
        wanted = spec.endpoint(endpoint_id, network_id, path, ident)
        if endpoint_id in self._attaching:
            raise NetplugError("exists", f"{spec.ifname} of {spec.netns} is just being attached")
        self._attaching.add(endpoint_id)
        try:
            # The namespace first, since another attach may be choosing its default route; then the network.
            async with self._sandboxes.hold(ident):
                async with self._registry.lock(network_id):
                    await self._refused.settle(network_id)
                    record = self._registry.network(network_id)
                    _refuse_unlinked(self._drivers.of(record.network), record.network, spec)
                    built = await self._repeated(record, wanted, spec) or await self._told(
                        await self._builder.create(record, wanted, spec.addresses)
                    )
                await self._leave_by(built)
            await self.listener.settled(built)
            return self._registry.endpoint(network_id, built.endpoint.id)
        finally:
            self._attaching.discard(endpoint_id)

    @uncancellable
    async def readdress(self, spec: AttachSpec) -> EndpointRecord:
        """Give an attached endpoint, by its id, the addresses and routes of `spec`. Its link stays.

        For DHCP, which needs the link to find addresses.

        Raises:
            NetplugError: "not_found"; what `attach` raises.
        """
        network_id = self._registry.network(spec.network).network.id
        where = _where(self._registry.endpoint(network_id, spec.id))
        async with self._sandboxes.hold(where):
            async with self._registry.lock(network_id):
                net = self._registry.network(network_id).network
                built = self._registry.endpoint(network_id, spec.id)
                readdressed = replace(built, endpoint=replace(built.endpoint, addresses=spec.leased))
                wanted = spec.endpoint(spec.id, network_id, built.sandbox, built.sandbox_id)
                built = await self._told(await self._builder.build(net, readdressed, wanted))
            await self._leave_by(built)
        await self.listener.settled(built)
        return self._registry.endpoint(network_id, built.endpoint.id)

    async def _leave_by(self, built: EndpointRecord) -> None:
        """Have a new endpoint provide its sandbox's default route if its network shall; else it is deleted."""
        try:
            await self.way_out.converge(built.sandbox, built.sandbox_id)
        except (NetplugError, StoreError):
            try:
                await self.delete(built.endpoint.network, built.endpoint.id)
            except StoreError:
                async with self._registry.lock(built.endpoint.network):
                    await self._refused.attempt(built.endpoint.network, partial(self._drop_untold, built))
            raise

    async def _repeated(self, record: NetworkRecord, wanted: EndpointSpec, spec: AttachSpec) -> EndpointRecord | None:
        """Return the endpoint of the same request if its answer was lost; None where nothing is attached.

        Other interfaces that are attached already are refused, unless their namespace is gone: a new one may have path
        and id. The message says how it differs from what is asked for.
        """
        here = [one for one in self._registry.in_sandbox(wanted.netns, wanted.netns_id) if one.ifname == wanted.ifname]
        found = (self._registry.find(network.network.id, wanted.id) for network in self._registry.networks())
        for other in {one.key: one for one in (*here, *found) if one is not None}.values():
            if other.endpoint.network == record.network.id and await self._kernel.drift(tuple(other.plan)):
                await self.drop(other)
                continue
            if other.endpoint.id == wanted.id and self._lost_answers.is_endpoint(other, wanted, spec.addresses):
                return other
            name = self._registry.network(other.endpoint.network).network.name
            differing = self._differing(record, other, wanted, spec)
            raise NetplugError(
                "exists",
                f"{wanted.ifname} of {spec.netns} is attached to network {name!r} already, {differing}",
                hint="detach it first or choose another --ifname",
            )
        return None

    def _differing(self, record: NetworkRecord, other: EndpointRecord, wanted: EndpointSpec, spec: AttachSpec) -> str:
        """Return how an endpoint differs from what is asked for, to follow what it is."""
        if other.endpoint.network != record.network.id:
            return f"not to {record.network.name!r}"
        words = differences_of_endpoint(other, wanted, spec.addresses, record.network.options.mode, self._drivers)
        return f"and differs: {'; '.join(words)}" if words else "as asked for"

    @uncancellable
    async def detach(self, network: str, netns: str, ifname: str) -> None:
        """Detach a namespace, which may be gone.

        Raises:
            NetplugError: "not_found": it is not attached; "unavailable": its record cannot be used.
        """
        net = self._registry.network(network).network
        found = self._attached(net.id, netns, ifname)
        if not found and self._attaching:
            await self._settled(netns)
            found = self._attached(net.id, netns, ifname)
        # The present namespace at this path is meant; a former one if there is no other.
        found = [built for built in found if await is_there(self._kernel.sandboxes, built)] or found
        if not found:
            self._registry.quarantine.refuse_in(net.id, netns, ifname)
            raise NetplugError("not_found", f"{ifname} of {netns} is not attached to network {net.name!r}")
        for built in found:
            async with self._sandboxes.hold(_where(built)):
                await self.delete(net.id, built.endpoint.id)

    def _attached(self, network_id: str, netns: str, ifname: str) -> list[EndpointRecord]:
        return [
            built
            for built in self._registry.endpoints(network_id)
            if built.ifname == ifname and netns in {built.sandbox, name_of(built.sandbox)}
        ]

    async def _settled(self, netns: str) -> None:
        """Wait for an attach of this namespace: who asked for it may have been killed."""
        with suppress(NetplugError):
            _, ident = await self._kernel.sandboxes.find(netns)
            async with self._sandboxes.hold(ident):
                pass


def _where(record: EndpointRecord) -> str:
    return record.sandbox_id or record.sandbox


def _refuse_unlinked(driver: Driver, net: Network, spec: AttachSpec) -> None:
    """Refuse options that need a link, or a way out, that the network does not have."""
    given = {"--ip": spec.addresses, "--mac": spec.mac, "--publish": spec.ports}
    if not driver.linked and (flags := [flag for flag, value in given.items() if value]):
        words = f"network {net.name!r} is of mode {net.options.mode!r}: its sandboxes have no interface but loopback"
        raise NetplugError("invalid", words, hint=f"leave out {' and '.join(flags)}")
    if net.internal and spec.ports and spec.front_end is FrontEnd.CLI:
        words = f"network {net.name!r} is internal: nothing can be published there"
        raise NetplugError("invalid", words, hint="leave out --publish, or attach to a network that is not")


def _attachment_id(sandbox: str, ifname: str) -> str:
    return sha256(f"{sandbox} {ifname}".encode()).hexdigest()
