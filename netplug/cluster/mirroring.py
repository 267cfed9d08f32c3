"""Networks of the cluster on this host, as they are defined in the store.

Level-triggered: what is defined is compared with what is built. A network that cannot be built on this host (an MTU too
large, a VNI in use) is recorded as absent, with the reason.
"""

import asyncio

import structlog

from netplug.cluster.allocation import gateways_of
from netplug.cluster.catalogue import Catalogue
from netplug.cluster.claims import CircuitBreaker
from netplug.cluster.identity import AdmissionGate
from netplug.cluster.records import IDENTITY, NETWORKS, Definition, ident_of, parse
from netplug.cluster.view import View
from netplug.drivers.api import Scope
from netplug.drivers.naming import short
from netplug.engine import Engine
from netplug.engine.records import FrontEnd, NetworkRecord
from netplug.errors import NetplugError, Reportable
from netplug.store.api import Compare, Put

log = structlog.get_logger(__name__)


class Mirroring:
    """Builds networks that are defined, and takes down those that are not defined any more.

    `lock`: held while networks of the cluster change. `expected_from_docker`: until when (time of the loop) a network
    is not built, since Docker is about to create it.
    """

    def __init__(
        self, engine: Engine, store: AdmissionGate, view: View, catalogue: Catalogue, breaker: CircuitBreaker, me: str
    ) -> None:
        self.catalogue = catalogue
        self.lock = asyncio.Lock()
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

    async def mirror(self) -> None:
        """Build networks that are defined and missing here; take down networks that are not defined any more.

        Raises:
            StoreError: the store does not answer.
        """
        async with self.lock:
            defined, built, absent = self._view.networks(), self.shared(), self._engine.registry.absent
            for name in absent.keys() - {definition.name for definition in defined.values()}:
                del absent[name]
            for ident, definition in list(defined.items()):
                if definition.deleting and (definition.deleter == self._me or not self._view.alive(definition.deleter)):
                    await self._end_deletion(ident)
                waits = self.expected_from_docker.get(ident, 0.0) > asyncio.get_running_loop().time()
                waits |= self._breaker.closed.is_set()  # a backup may have brought it back
                if ident not in built and not definition.deleting and not waits:
                    await self._build(ident, definition)
            for ident in built.keys() - defined.keys():
                await self._take_down(built[ident])

    async def _end_deletion(self, ident: str) -> None:
        """Finish a deletion during which a daemon died; the caller holds the lock."""
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
            await self.catalogue.remove_tombstone(ident)
            self._view.touch(ident)

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
