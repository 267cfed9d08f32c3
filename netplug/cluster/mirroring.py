"""Networks of the cluster on this host, as they are defined in the store.

Level-triggered: what is defined is compared with what is built. A network that cannot be built on this host (an MTU too
large, a VNI in use) is recorded as absent, with the reason. One that cannot follow an update stays as it was. Both are
tried again when addresses or MTUs of this host change, and on a timer.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog

from netplug.cluster.allocation import gateways_of
from netplug.cluster.catalogue import Catalogue
from netplug.cluster.claims import CircuitBreaker
from netplug.cluster.definition_changes import to_follow
from netplug.cluster.following import Followed, Following
from netplug.cluster.foreign_networks import Allowed, refuse_foreign
from netplug.cluster.identity import NOT_YET, AdmissionGate
from netplug.cluster.records import IDENTITY, NETWORKS, Definition, ident_of, parse, rewritten, version_of
from netplug.cluster.view import View, name_of
from netplug.drivers.api import Scope
from netplug.drivers.naming import short
from netplug.drivers.steps import IPNetwork
from netplug.engine import Engine
from netplug.engine.conditions import Difference
from netplug.engine.network_updates import NetworkChange, Updated
from netplug.engine.records import FrontEnd, NetworkRecord
from netplug.errors import NetplugError, Reportable
from netplug.store.api import Compare, Put, StoreError

log = structlog.get_logger(__name__)

_HALF_OF_DEFAULT = 1  # default routes, also the halves that a VPN sets, do not conflict
_LOOKS = 100
_LOOK_S = 0.02
"""Longest wait, together 2 s, of a creation for the end of a deletion: it takes some hundredths of a second."""


class Mirroring:
    """Builds networks that are defined, and takes down those that are not defined any more.

    `lock`: held while networks of the cluster change. `expected_from_docker`: until when (time of the loop) a network
    is not built, since Docker is about to create it. `on_update`: called after a network was updated. `allowed`: what
    networks that other hosts have defined may have here.
    """

    def __init__(
        self,
        engine: Engine,
        store: AdmissionGate,
        view: View,
        catalogue: Catalogue,
        following: Following,
        breaker: CircuitBreaker,
        me: str,
    ) -> None:
        self.catalogue = catalogue
        self.lock = asyncio.Lock()
        self.on_update: Callable[[], None] = lambda: None
        self.allowed = Allowed()
        self._following = following
        self._behind: dict[str, str] = {}
        self.expected_from_docker: dict[str, float] = {}
        self._engine = engine
        self._store = store
        self._view = view
        self._breaker = breaker
        self._me = me

    def soon(self, ident: str) -> None:
        """Have a network and its peers reconciled."""
        self._view.redefined = True
        self._view.touch(ident)

    def shared(self) -> dict[str, NetworkRecord]:
        """Return the networks of the cluster that are built here, by their ids in the cluster."""
        drivers = self._engine.drivers
        return {
            ident_of(record): record
            for record in self._engine.registry.networks()
            if drivers.of(record.network).scope is Scope.CLUSTER
        }

    def here(self, ident: str, name: str) -> NetworkRecord:
        """Return a network of the cluster as it is built here.

        Raises:
            NetplugError: "unavailable": it is not built, with the reason; "not_found".
        """
        return self.shared().get(ident) or self._engine.registry.network(name)

    async def ready(self) -> None:
        """Refuse changes of networks of the cluster while this host cannot take part in it.

        Raises:
            NetplugError: "unavailable".
            Restored: the store is being recovered.
        """
        await self._breaker.begun()
        if self._store.refusal:
            raise NetplugError("unavailable", self._store.refusal)
        if not self.catalogue.identity:
            raise NetplugError("unavailable", NOT_YET, hint="try again")
        await self._breaker.resumed()

    async def taken(self) -> list[IPNetwork]:
        """Return the subnets of this host's networks and routes."""
        host = await self._engine.base_plan.read_host()
        routes = [route for route, _ in host.routes if route.prefixlen > _HALF_OF_DEFAULT]
        return routes + [subnet.pool for net in self._engine.registry.all_networks() for subnet in net.subnets]

    async def not_free(self) -> list[IPNetwork]:
        """Return the subnets of which none is chosen: `taken`, and those that Docker has requested for new networks."""
        return [*await self.taken(), *(pool.network for pool in self._engine.allocator.pools())]

    def retry(self) -> None:
        """Try again what could not be built or followed, since something on this host has changed."""
        if self._behind or self._engine.registry.absent:
            self._view.redefined = True
            self._view.changed.set()

    async def mirror(self) -> None:
        """Build, update and take down networks until they are those that are defined.

        Raises:
            StoreError: the store does not answer.
        """
        async with self.lock:
            defined, built, absent = self._view.networks(), self.shared(), self._engine.registry.absent
            for name in absent.keys() - {definition.name for definition in defined.values()}:
                del absent[name]
            self._behind = {}
            for ident, definition in list(defined.items()):
                await self.end_deletion(ident, definition)
                if definition.closing and self._has_ended(definition.closer):
                    await self._open(ident)
                waits = self.expected_from_docker.get(ident, 0.0) > asyncio.get_running_loop().time()
                waits |= self._breaker.closed.is_set()  # a backup may have brought it back
                if definition.deleting:
                    continue
                if ident in built:
                    await self._keep_up(ident, definition, built[ident])
                elif not waits and await self._store.get(NETWORKS + ident) is not None:  # else the view is out of date
                    await self._build(ident, definition)
            await self.take_down_deleted()
            self._report(defined)
            await self._following.tell(self._followed(defined))

    def _has_ended(self, host: str) -> bool:
        """Whether a host does not go on with what it began. What this host did, it did under the lock."""
        return host == self._me or not self._view.alive(host)

    async def end_deletion(self, ident: str, definition: Definition) -> None:
        """Finish the deletion of a network, if its daemon died meanwhile; the caller holds the lock."""
        if not definition.deleting or not self._has_ended(definition.deleter):
            return
        stored = await self._store.get(NETWORKS + ident)
        if stored is None or not stored.value.get("deleting"):
            return  # the view is out of date
        definition = parse(Definition, stored)
        log.warning("network.half_deleted", network=short(ident), name=definition.name)
        try:
            await self.catalogue.refuse_used(ident, definition.name)
        except NetplugError:
            kept = {**stored.value, "deleting": False, "deleter": ""}  # also what a later version wrote
            ops = [Put(NETWORKS + ident, kept), *gateways_of(ident, definition)]
            await self._store.txn([Compare(NETWORKS + ident, stored.revision)], ops)
        else:
            await self.catalogue.remove(ident, definition, stored.revision)

    async def _open(self, ident: str) -> None:
        """Allow joins of subnets again whose removal was not finished; the caller holds the lock."""
        stored = await self._store.get(NETWORKS + ident)
        if stored is None or not stored.value.get("closing"):
            return  # the view is out of date
        opened = replace(parse(Definition, stored), closing=(), closer="")
        await self._store.txn([Compare(stored.key, stored.revision)], [rewritten(stored, opened)])

    # Updates

    async def follow(self, ident: str, definition: Definition) -> Updated:
        """Make a network on this host as it is defined, all or nothing; the caller holds the lock.

        Raises:
            NetplugError, DriverError, IpamError, StoreError: this host cannot; it keeps the network as it was.
        """
        record, registry = self.here(ident, definition.name), self._engine.registry
        change, updated = to_follow(definition, record, self._engine.drivers), Updated(record)
        if change != NetworkChange():
            updated = await self._engine.network_updates.update_here(record.network.id, change)
        elif _noted(record, definition) == record:
            return updated
        async with registry.lock(record.network.id):
            noted = _noted(registry.network(record.network.id), definition)
            await registry.save(noted)
        if change != NetworkChange():
            self._view.touch(ident)  # peers may have addresses in a new subnet
            self.on_update()
        return replace(updated, record=noted)

    async def _keep_up(self, ident: str, definition: Definition, record: NetworkRecord) -> None:
        """Follow the updates of a network. What this host cannot is recorded, and tried again."""
        if definition.version < record.version:
            stored = await self._store.get(NETWORKS + ident)
            if stored is not None and version_of(stored) < record.version:  # else the view is out of date
                await self.catalogue.restore(ident, Definition.of(record), record)
            return
        try:
            if definition.version > record.version:
                await self._refuse_foreign(definition, record)
            await self.follow(ident, definition)
        except Exception as exc:
            known = isinstance(exc, Reportable | StoreError)
            self._behind[ident] = exc.message if isinstance(exc, Reportable) else str(exc) or repr(exc)
            log.debug("network.behind", network=short(ident), error=str(exc), exc_info=None if known else exc)

    def _report(self, defined: Mapping[str, Definition]) -> None:
        found = [
            Difference(f"network {defined[ident].name}", "update", f"not as the cluster has it: {why}")
            for ident, why in self._behind.items()
        ]
        self._engine.conditions.report("updates", found)

    def _followed(self, defined: Mapping[str, Definition]) -> dict[str, Followed]:
        """Return what the other hosts are told of the networks that were updated, or are not as defined."""
        built, absent, found = self.shared(), self._engine.registry.absent, {}
        for ident, definition in defined.items():
            record = built.get(ident)
            why = self._behind.get(ident, "") if record else absent.get(definition.name, "")
            if why or (record and record.version):
                version = record.version if record else 0
                found[ident] = Followed(version, why, definition.version if why else 0)
        return found

    # Building

    async def built(self, ident: str, definition: Definition) -> NetworkRecord:
        """Return a network as it is here, built now if it was not yet; the caller holds the lock.

        Raises:
            NetplugError: "unavailable": it cannot be built on this host, with the reason.
        """
        if ident not in self.shared():
            await self._build(ident, definition)
        return self.here(ident, definition.name)

    async def _build(self, ident: str, definition: Definition) -> None:
        absent = self._engine.registry.absent
        try:
            await self._refuse_foreign(definition)
            await self._engine.networks.build(definition.to_spec(ident))
        except Exception as exc:
            if not isinstance(exc, Reportable):
                raise
            if absent.get(definition.name) != exc.message:
                log.warning("network.absent", network=short(ident), name=definition.name, error=exc.message)
            absent[definition.name] = exc.message
        else:
            absent.pop(definition.name, None)
            await self.catalogue.remove_tombstone(ident)
            self._view.touch(ident)

    async def _refuse_foreign(self, definition: Definition, record: NetworkRecord | None = None) -> None:
        """Refuse a definition with what this host does not allow others. `record`: the network as it is here."""
        host = await self._engine.base_plan.read_host()
        refuse_foreign(definition, record.network if record else None, self.allowed, self._engine.drivers, host)

    async def await_deletions(self, name: str) -> None:
        """Wait until no network of this name is being deleted, and take down what was; the caller holds the lock.

        Raises:
            NetplugError: "unavailable": another host takes too long.
        """
        for _ in range(_LOOKS):
            defined = await self.catalogue.all()
            deleted = {ident: it for ident, it in defined.items() if it.name == name and it.deleting}
            for ident, definition in deleted.items():
                await self.end_deletion(ident, definition)
            # Only the events tell that they were deleted: a store that was restored from older data lacks some, too.
            gone = self.shared().keys() - defined.keys()
            if not deleted and not gone & self._view.networks().keys():
                break
            await asyncio.sleep(_LOOK_S)
        else:
            for definition in deleted.values():
                words = f"network {name!r} is being deleted by host {name_of(self._view, definition.deleter)}"
                raise NetplugError("unavailable", words, hint="try again")
        await self.take_down_deleted()

    async def take_down_deleted(self) -> None:
        """Take down what is not defined any more; the caller holds the lock."""
        if self._view.synced.is_set():
            built = self.shared()
            for ident in built.keys() - self._view.networks().keys():
                await self._take_down(built[ident])

    async def _take_down(self, record: NetworkRecord) -> None:
        ident = ident_of(record)
        if await self._store.get(NETWORKS + ident) is not None:
            return  # the view is out of date
        stored = await self._store.get(IDENTITY)
        if stored is None or stored.value.get("id") != self.catalogue.identity:
            return  # the store has lost its data, see `Recovery`
        if self._engine.registry.endpoints(record.network.id) or record.front_end is FrontEnd.DOCKER:
            await self.catalogue.restore(ident, Definition.of(record), record)
        else:
            await self._engine.networks.take_down(record.network.id, by=FrontEnd.CLI)
            await self.catalogue.add_tombstone(ident)


def _noted(record: NetworkRecord, definition: Definition) -> NetworkRecord:
    """Return a network that is as defined, with what its definition says beyond that."""
    created = definition.created or record.created  # an older version kept none
    return replace(record, version=definition.version, origin=definition.origin, created=created)
