"""Networks of the cluster: defined once in the store, built on every host.

A definition is one transaction, guarded against all others that define: so name, VNI and subnets are looked for in a
state that does not change meanwhile. Every host brings its own networks in line with the definitions (`mirror`). What
cannot be built here (an mtu too large, a VNI that a stranger holds) is told to whoever asks for it.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog

from netplug.cluster.allocation import completed, free_subnet, gateways_of, refuse_other, subnets_for, vni_for
from netplug.cluster.catalogue import Catalogue
from netplug.cluster.claims import SharedLeases
from netplug.cluster.identity import AdmissionGate
from netplug.cluster.records import GUARD, IDENTITY, MEMBERS, NETWORKS, Definition, as_put
from netplug.cluster.records import parse as parse_record
from netplug.cluster.view import View
from netplug.drivers.api import Scope
from netplug.drivers.naming import short
from netplug.drivers.steps import IPAddress, IPNetwork
from netplug.engine import Engine
from netplug.engine.records import FrontEnd, NetworkRecord, NetworkSpec
from netplug.errors import NetplugError, Reportable
from netplug.ipam.pool import GLOBAL
from netplug.store.api import Compare, Delete, Put, Record, StoreError
from netplug.tasks.uncancellable import uncancellable

log = structlog.get_logger(__name__)

_TRIES = 100
"""Of a transaction that others, who define networks too, come before: 50 hosts at once."""
WAY_S = 20.0
"""For which a network that Docker is about to make is not built by us; it takes some milliseconds."""
_HALF_OF_ALL = 1  # default routes, also those of a VPN, are no obstacle


class Definitions:
    """Defines networks, deletes them, and builds here what is defined.

    `identity`: the cluster's id as this host knows it; empty until it does. `called`: what Docker calls its networks.
    """

    def __init__(self, engine: Engine, store: AdmissionGate, view: View, leases: SharedLeases, me: str) -> None:
        self.identity = ""
        self.called: Callable[[str], str] = short
        self.catalogue = Catalogue(store, engine.store, view, me)
        self._breaker = leases.breaker
        self._engine = engine
        self._store = store
        self._view = view
        self._me = me
        self._lock = asyncio.Lock()
        self._making_way: dict[str, float] = {}

    # Use cases

    @uncancellable
    async def create(self, spec: NetworkSpec) -> NetworkRecord:
        """Define a network, and build it here. To Docker it may be there already, if it is as asked for.

        Raises:
            NetplugError, DriverError, IpamError: and nothing was changed.
            StoreError: the store does not answer.
        """
        await self._ready()
        async with self._lock:
            if spec.front_end is FrontEnd.DOCKER:
                return await self._adopt(spec)
            ident = spec.id or secrets.token_hex(32)
            definition = await self._define(ident, spec)
            return await self._build_defined(ident, definition)

    async def _build_defined(self, ident: str, definition: Definition, docker: str = "") -> NetworkRecord:
        """Build what was defined just now, or undo that."""
        try:
            record = await self._engine.networks.build(definition.to_spec(ident, docker))
        except BaseException:
            await uncancellable(self.catalogue.remove(ident, definition))
            raise
        log.info("network.defined", network=short(ident), name=definition.name, vni=definition.options["vni"])
        return record

    async def _adopt(self, spec: NetworkSpec) -> NetworkRecord:
        """Make a network of this host's Docker one of the cluster, with the others that have its name."""
        name = self._engine.drivers.parse(spec.options).name
        spaces = {pool.space for it in spec.subnets if it.pool and (pool := self._engine.allocator.pool_of(it.pool))}
        if not name or spaces != {GLOBAL}:
            raise NetplugError(
                "invalid",
                "a network over several hosts needs a name of its own, and addresses that no other host gives out",
                hint="docker network create -d pynet --ipam-driver pynet --ipam-opt name=blue -o mode=overlay "
                "-o name=blue blue",
            )
        found = next(((ident, it) for ident, it in (await self.catalogue.all()).items() if it.name == name), None)
        if found is None:
            ident = secrets.token_hex(32)
            record = await self._build_defined(ident, await self._define(ident, spec), spec.id)
        else:
            ident, definition = found
            try:
                refuse_other(definition, spec, self._engine.drivers)
                record = await self._take_over(ident, definition, spec.id)
            finally:  # refused, it is to be here as it was
                self._making_way.pop(ident, None)
                self.look_at(ident)
        await self._store.txn([], [Put(f"{MEMBERS}{ident}/{self._me}", {"network": spec.id})])
        return record

    async def _take_over(self, ident: str, definition: Definition, docker: str) -> NetworkRecord:
        """Build a network under the id that Docker has for it, in place of the one that is here."""
        mirrored = self.shared().get(ident)
        if mirrored is not None:
            self._refuse_second(mirrored)
            self._refuse_endpoints(mirrored)
            await self._engine.networks.take_down(mirrored.network.id, by=FrontEnd.CLI)
        return await self._engine.networks.build(definition.to_spec(ident, docker))

    @uncancellable
    async def delete(self, record: NetworkRecord, *, by: FrontEnd, orphaned: bool = False) -> None:
        """Delete a network on all hosts; one of Docker's on this one alone, as long as it is wanted elsewhere.

        Raises:
            NetplugError: "forbidden": it has endpoints, or Docker has it, and where.
            StoreError: the store does not answer.
        """
        ident = ident_of(record)
        async with self._lock:
            if record.front_end is FrontEnd.DOCKER:
                await self._engine.networks.take_down(record.network.id, by=by, orphaned=orphaned)
                await self._leave(ident)
                return
            stored = await self._store.get(NETWORKS + ident)
            if stored is None:
                await self._engine.networks.take_down(record.network.id, by=FrontEnd.CLI)
                return
            await self.catalogue.refuse_used(ident, record.network.name)  # before anybody is kept out for a moment
            async with self._closed(ident, stored) as definition:
                await self.catalogue.refuse_used(ident, definition.name)
                await self._engine.networks.take_down(record.network.id, by=FrontEnd.CLI)
            await self.catalogue.remove(ident, definition)

    async def _leave(self, ident: str) -> None:
        """Note that this host's Docker has a network no more, and delete it when that was all that it was for."""
        try:
            await self._store.txn([], [Delete(f"{MEMBERS}{ident}/{self._me}")])
            ended = await self.end_unwanted(ident)
        except StoreError as exc:
            log.warning("network.kept", network=short(ident), reason=str(exc))
            ended = False
        if not ended:
            self.look_at(ident)

    async def end_unwanted(self, ident: str) -> bool:
        """Delete a network that Docker made and no host's Docker has any more, and tell whether that was so.

        Raises:
            StoreError: the store does not answer.
        """
        stored = await self._store.get(NETWORKS + ident)
        if stored is None or not stored.value.get("docker"):
            return False
        try:
            await self.catalogue.refuse_used(ident, str(stored.value.get("name")))
            async with self._closed(ident, stored) as definition:
                await self.catalogue.refuse_used(ident, definition.name)
        except NetplugError as exc:
            log.debug("network.kept", network=short(ident), reason=exc.message)
            return False
        await self.catalogue.remove(ident, definition)
        return True

    @asynccontextmanager
    async def _closed(self, ident: str, stored: Record) -> AsyncIterator[Definition]:
        """Let nobody join a network during the block, and for good if that ends well."""
        key, definition = NETWORKS + ident, parse_record(Definition, stored)
        # From now on nobody publishes an endpoint: that compares this record.
        marked = {**stored.value, "deleting": True, "deleter": self._me}
        revision = await self._store.txn([Compare(key, stored.revision)], [Put(key, marked)])
        if revision is None:
            raise NetplugError("unavailable", f"network {definition.name!r} is just being changed", hint="try again")
        try:
            yield definition
        except BaseException:
            opened = {**stored.value, "deleting": False, "deleter": ""}
            await uncancellable(self._store.txn([Compare(key, revision)], [Put(key, opened)]))
            raise

    async def subnet(self, name: str, wanted: IPNetwork | None, *, v6: bool) -> tuple[IPNetwork, IPAddress]:
        """Return the subnet of a network that may be still to be made, and its gateway.

        Raises:
            NetplugError: "unavailable": there is no free subnet; "exists": the network has endpoints here.
            StoreError: the store does not answer.
        """
        await self._ready()
        others, version = await self.catalogue.all(), 6 if v6 else 4
        ident, known = next(((ident, it) for ident, it in others.items() if it.name == name), ("", None))
        for it in known.subnets if known else ():
            if wanted in {None, it.subnet} and it.subnet.version == version:
                if wanted is None:
                    await self._make_way(ident)
                    await self._refuse_routes(it.subnet, name)
                return it.subnet, it.gateway
        network = wanted or free_subnet(version, others, await self._taken(), self.identity)
        return network, network[1]

    async def gateway(self, subnet: IPNetwork) -> IPAddress | None:
        """Return the gateway of the network that has a subnet; None when there is none yet.

        Raises:
            StoreError: the store does not answer.
        """
        definitions = (await self.catalogue.all()).values()
        return next((it.gateway for one in definitions for it in one.subnets if it.subnet == subnet), None)

    async def _make_way(self, ident: str) -> None:
        """Take a network down that Docker is about to make.

        A subnet that it did not choose itself it only takes when the host has no route to it, and asks for another one
        for ever (libnetwork, requestPoolHelper).
        """
        async with self._lock:
            mirrored = self.shared().get(ident)
            if mirrored is None:
                return
            self._refuse_second(mirrored)
            self._refuse_endpoints(mirrored)
            loop = asyncio.get_running_loop()
            self._making_way[ident] = loop.time() + WAY_S
            loop.call_later(WAY_S, self.look_at, ident)
            await self._engine.networks.take_down(mirrored.network.id, by=FrontEnd.CLI)

    async def _refuse_routes(self, subnet: IPNetwork, name: str) -> None:
        """Refuse a subnet that Docker would not take, for the reason said at `_make_way`."""
        for taken in await self._taken():
            if taken.version == subnet.version and taken.overlaps(subnet):
                words = f"subnet {subnet} of network {name!r} of the cluster overlaps {taken}, which this host reaches"
                raise NetplugError("exists", words, hint=f"if that is as it should be, add --subnet {subnet}")

    def _refuse_second(self, mirrored: NetworkRecord) -> None:
        if mirrored.front_end is FrontEnd.DOCKER:
            name, called = mirrored.network.name, self.called(mirrored.network.id) or short(mirrored.network.id)
            words = f"network {name!r} of the cluster is here as Docker network {called!r}"
            raise NetplugError("exists", words, hint="use that one, or remove it first")

    def _refuse_endpoints(self, mirrored: NetworkRecord) -> None:
        if self._engine.registry.endpoints(mirrored.network.id):
            words = f"network {mirrored.network.name!r} is on this host without docker, and has endpoints"
            raise NetplugError("exists", words, hint="detach them first, or make the network by docker before")

    async def _ready(self) -> None:
        if self._store.refusal:
            raise NetplugError("unavailable", self._store.refusal)
        if not self.identity:
            raise NetplugError("unavailable", "this host has not reached the cluster's store yet", hint="try again")
        await self._breaker.resumed()

    def look_at(self, ident: str) -> None:
        """Have the network built again if it ought to be here, and its peers told of."""
        self._view.redefined = True
        self._view.touch(ident)

    # Defining

    async def _define(self, ident: str, spec: NetworkSpec) -> Definition:
        drivers = self._engine.drivers
        options = drivers.parse(spec.options)
        driver = drivers.named(options.mode)
        if driver.scope is not Scope.CLUSTER:
            words = f"a network of mode {options.mode!r} is of one host alone"
            raise NetplugError(
                "invalid", words, hint=f"leave out --cluster, or use mode {drivers.default(Scope.CLUSTER)}"
            )
        name = options.name or spec.name or short(ident)
        host = await self._engine.base_plan.read_host()
        options = driver.complete(options, host)
        taken = await self._taken()
        for _ in range(_TRIES):
            guard = await self._store.get(GUARD)
            others = await self.catalogue.all()
            if other := next((other for other, it in others.items() if it.name == name), None):
                here = self.shared().get(other)  # whose id may be another one, if Docker has it
                words = f"network {name!r} exists already in the cluster ({short(here.network.id if here else other)})"
                raise NetplugError("exists", words, hint="choose another name")
            vni = vni_for(ident, options.vni, options.vxlan_port, others, drivers)
            subnets = subnets_for(spec, others, taken, self.identity)
            raw = completed(spec.options, mtu=str(options.mtu), vni=str(vni))
            definition = Definition(name, raw, subnets, spec.internal, docker=spec.front_end is FrontEnd.DOCKER)
            revision = await self._store.txn(
                [Compare(GUARD, guard.revision if guard else 0), Compare(NETWORKS + ident, 0)],
                [Put(GUARD, {"last": ident}), as_put(NETWORKS + ident, definition), *gateways_of(ident, definition)],
            )
            if revision is not None:
                return definition
        raise NetplugError("unavailable", "too many networks are being created at once", hint="try again")

    async def _taken(self) -> list[IPNetwork]:
        """Return the subnets that this host has, and those that it has routes to."""
        host = await self._engine.base_plan.read_host()
        routes = [route for route, _ in host.routes if route.prefixlen > _HALF_OF_ALL]
        return routes + [subnet.pool for net in self._engine.registry.all_networks() for subnet in net.subnets]

    # Keeping up

    def shared(self) -> dict[str, NetworkRecord]:
        """Return the networks of the cluster that are built here, by the cluster's ids."""
        drivers = self._engine.drivers
        return {
            ident_of(record): record
            for record in self._engine.registry.networks()
            if drivers.of(record.network).scope is Scope.CLUSTER
        }

    async def mirror(self) -> None:
        """Build here what is defined and not here, and take down what is here and no longer defined.

        Raises:
            StoreError: the store does not answer.
        """
        async with self._lock:
            defined, built, absent = self._view.networks(), self.shared(), self._engine.registry.absent
            for name in absent.keys() - {definition.name for definition in defined.values()}:
                del absent[name]
            for ident, definition in list(defined.items()):
                if definition.deleting and (definition.deleter == self._me or not self._view.alive(definition.deleter)):
                    await self._end_deletion(ident)
                waits = self._making_way.get(ident, 0.0) > asyncio.get_running_loop().time()
                waits |= self._breaker.closed.is_set()  # it may be one that a backup brought back
                if ident not in built and not definition.deleting and not waits:
                    await self._build(ident, definition)
            for ident in built.keys() - defined.keys():
                await self._take_down(built[ident])

    async def _end_deletion(self, ident: str) -> None:
        """Bring to its end a deletion in the middle of which a daemon died; the caller holds the lock."""
        stored = await self._store.get(NETWORKS + ident)
        if stored is None or not stored.value.get("deleting"):
            return  # our view is late
        definition = replace(parse_record(Definition, stored), deleting=False, deleter="")
        log.warning("network.half_deleted", network=short(ident), name=definition.name)
        try:
            await self.catalogue.refuse_used(ident, definition.name)
        except NetplugError:
            ops = [as_put(NETWORKS + ident, definition), *gateways_of(ident, definition)]
            await self._store.txn([Compare(NETWORKS + ident, stored.revision)], ops)
        else:
            await self.catalogue.remove(ident, definition)

    async def _build(self, ident: str, definition: Definition) -> None:
        absent = self._engine.registry.absent
        try:
            await self._engine.networks.build(definition.to_spec(ident))
        except Exception as exc:
            if not isinstance(exc, Reportable):
                raise
            if absent.get(definition.name) != exc.message:
                log.warning("network.absent", network=short(ident), name=definition.name, error=exc.message)
            absent[definition.name] = exc.message
        else:
            absent.pop(definition.name, None)
            await self.catalogue.exhume(ident)
            self._view.touch(ident)

    async def _take_down(self, record: NetworkRecord) -> None:
        ident = ident_of(record)
        if await self._store.get(NETWORKS + ident) is not None:
            return  # our view is late
        stored = await self._store.get(IDENTITY)
        if stored is None or stored.value.get("id") != self.identity:
            return  # the store lost all it had: see `restore`
        if self._engine.registry.endpoints(record.network.id) or record.front_end is FrontEnd.DOCKER:
            await self.catalogue.put_back(ident, Definition.of(record), record)
        else:
            await self._engine.networks.take_down(record.network.id, by=FrontEnd.CLI)
            await self.catalogue.bury(ident)


def ident_of(record: NetworkRecord) -> str:
    """Return what the cluster calls a network."""
    return record.cluster or record.network.id
