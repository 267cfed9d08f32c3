"""Recovery of a shared store that has lost data, or was restored from a backup: running state wins over the store.

Every host writes its networks, leases and endpoints again. It also writes what may be missed of other hosts: claims of
their addresses, and all records of dead hosts. Until all hosts have done so, no new addresses are given out, and the
kernels keep the peers they have.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterator, Mapping

import structlog

from netplug.cluster.claims import SharedLeases
from netplug.cluster.membership import Membership
from netplug.cluster.mirroring import Mirroring
from netplug.cluster.records import (
    ENDPOINTS,
    HOSTS,
    IDENTITY,
    MEMBERS,
    RECOVERED,
    Definition,
    EndpointAdvert,
    as_put,
    endpoint_key,
)
from netplug.cluster.view import View
from netplug.engine import Engine
from netplug.engine.records import EndpointRecord, FrontEnd, NetworkRecord
from netplug.ipam.lease import Lease, Owner, OwnerKind
from netplug.store.api import Compare, Delete, Put, Record, Store
from netplug.store.leases import OPS_PER_TXN
from netplug.store.restore_guard import RestoreGuard

log = structlog.get_logger(__name__)

SEEN = "cluster/seen"
"""In this host's own store: the newest mark that this host has seen in the shared one."""
GRACE_S = 20.0
"""Longest wait for other hosts to write their records; they detect the loss within `membership.HEARTBEAT_S`."""
_POLL_S = 0.1


class Recovery:
    """Recovery by this host. `advert`: returns the record of an endpoint."""

    def __init__(
        self,
        engine: Engine,
        own: Store,
        store: RestoreGuard,
        view: View,
        membership: Membership,
        mirroring: Mirroring,
        leases: SharedLeases,
        advert: Callable[[EndpointRecord], EndpointAdvert],
    ) -> None:
        self._engine = engine
        self._own = own
        self._store = store
        self._view = view
        self._membership = membership
        self._mirroring = mirroring
        self._catalogue = mirroring.catalogue
        self._leases = leases
        self._breaker = leases.breaker
        self._me = membership.me
        self._advert = advert
        self._awaited: set[str] | None = None
        self._identifying = asyncio.Lock()
        self._reported: set[str] = set()
        self._until = 0.0

    async def load(self) -> None:
        """Load the mark that an earlier process has seen."""
        await load_mark(self._own, self._store)

    async def run(self) -> None:
        """Detect and repair losses of data until cancelled."""
        keep = self._engine.supervisor.keep
        async with asyncio.TaskGroup() as group:
            group.create_task(keep("cluster.marks", self._write_marks))
            group.create_task(keep("cluster.data", self._recover_lost_data))
            group.create_task(keep("cluster.gate", self._resume))

    def complete(self) -> bool:
        """Whether the store has all its data: it lost none, or the recovery is over."""
        lost = bool(self._catalogue.identity) and self._view.identity != self._catalogue.identity
        return not lost and asyncio.get_running_loop().time() >= self._until

    async def identify(self) -> None:
        """Read the cluster's id. If it is not the one that this host knows, the store has lost data: recover it.

        The first host gives the cluster a new id, so every host detects the loss by itself. The same is done if a host
        finds that the store was restored from older data.
        """
        async with self._identifying:
            known = await self._own.get(IDENTITY)
            before = str(known.value["id"]) if known else ""
            with self._store.recovering():
                stored = await self._store.get(IDENTITY)
                while stored is None or (before and self._store.data_lost.is_set() and stored.value["id"] == before):
                    put = Put(IDENTITY, {"id": secrets.token_hex(16), "restored": stored is not None})
                    await self._store.txn([Compare(IDENTITY, stored.revision if stored else 0)], [put])
                    stored = await self._store.get(IDENTITY)
                now = str(stored.value["id"])
                if now != before:
                    await self._recover(before, now, restored=bool(stored.value.get("restored")))
                elif not self._catalogue.identity:  # the first time since the start
                    self._store.owe_mark()
            self._catalogue.identity = now
            self._breaker.answers = True
            self._breaker.begin()

    async def _recover(self, before: str, now: str, *, restored: bool) -> None:
        if before:
            self._breaker.suspend()
            self._store.report_loss()
            if before not in self._reported:
                self._reported.add(before)
                log.error("cluster.data_restored" if restored else "cluster.data_lost", cluster=before, now=now)
            loop = asyncio.get_running_loop()
            self._until = loop.time() + GRACE_S
            loop.call_later(GRACE_S, self._view.touch_all)
            await self._membership.register()
        await self._republish(now, self._mirroring.shared())
        await self._own.txn([], [Put(IDENTITY, {"id": now})], durable=True)
        self._store.accept()

    async def _recover_lost_data(self) -> None:
        while True:
            await self._store.data_lost.wait()
            if self._membership.admitted:
                await self.identify()
            else:
                await asyncio.sleep(_POLL_S)

    async def _republish(self, cluster: str, built: Mapping[str, NetworkRecord]) -> None:
        """Write this host's records to the store. `cluster`: the cluster's id; `built`: this host's networks, by id.

        Raises:
            StoreError: the store does not answer, or refuses; the caller tries again.
        """
        # A backup makes dead hosts appear alive for the duration of a lease, so remember who was alive before.
        self._awaited = self._view.all_alive() if self._view.synced.is_set() else None
        await self._catalogue.sweep(built)
        await self._define(built)
        pools = {pool for record in built.values() for pool in record.pools}
        recovered = {
            record.key.removeprefix(RECOVERED): record.value for record in (await self._store.range(RECOVERED))[0]
        }
        # Claims of hosts that have written their records are valid; those of others may be out of date.
        await self._leases.reconcile(
            pools, vouched={host for host, value in recovered.items() if value.get("id") == cluster}
        )
        await self._leases.claim_for_others(self._claims_of_others(built))
        await self._endpoints(built)
        await self._store.txn([], [Put(RECOVERED + self._me, {"id": cluster})])

    async def _define(self, built: Mapping[str, NetworkRecord]) -> None:
        known, dead = self._view.networks(), await self._catalogue.tombstones()
        for ident in {*built, *known} - (dead - built.keys()):
            record, definition = built.get(ident), known.get(ident)
            if record is None and definition is not None and definition.deleting:
                continue
            if definition is None or definition.deleting:
                assert record is not None  # noqa: S101 - it is one of the two
                definition = Definition.of(record)
            await self._catalogue.restore(ident, definition, record)

    def _claims_of_others(self, built: Mapping[str, NetworkRecord]) -> Iterator[tuple[Lease, str]]:
        """Yield the leases of endpoints that other hosts have advertised, with the ids of the hosts."""
        for network, host, ident, advert in self._view.all_endpoints():
            if network not in built or host == self._me:
                continue
            for pool in filter(None, map(self._engine.allocator.pool, built[network].pools)):
                for address in advert.addresses:
                    if address in pool.network:
                        yield Lease(pool.id, address, Owner(OwnerKind.ENDPOINT, ident, advert.name)), host

    async def _endpoints(self, built: Mapping[str, NetworkRecord]) -> None:
        """Make the store's endpoints those of this host. Add the records of dead hosts, which no other host writes."""
        there = {record.key: record for record in (await self._store.range(ENDPOINTS))[0]}
        mine = {
            endpoint_key(network, self._me, record.endpoint.id): self._advert(record)
            for network, here in built.items()
            for record in self._engine.registry.endpoints(here.network.id)
        }
        puts = [as_put(key, advert) for key, advert in mine.items()]
        ops: list[Put | Delete] = [put for put in puts if not _equals(there.get(put.key), put)]
        ops += [Delete(key) for key in there if key.split("/")[-2:-1] == [self._me] and key not in mine]
        ops += await self._surplus_members(built)
        for start in range(0, len(ops), OPS_PER_TXN):
            await self._store.txn([], ops[start : start + OPS_PER_TXN])
        dead = self._view.hosts().keys() - self._view.all_alive() - {self._me}
        late = [as_put(HOSTS + host, self._view.hosts()[host]) for host in dead]
        late += [
            as_put(endpoint_key(network, host, ident), advert)
            for network, host, ident, advert in self._view.all_endpoints()
            if host in dead
        ]
        for put in late:
            if put.key not in there:
                await self._store.txn([Compare(put.key, 0)], [put])

    async def _surplus_members(self, built: Mapping[str, NetworkRecord]) -> list[Delete]:
        """Return the deletions of networks that this host's Docker does not have, although the store says so."""
        has = {ident for ident, record in built.items() if record.front_end is FrontEnd.DOCKER}
        records, _ = await self._store.range(MEMBERS)
        found = [(record.key, *record.key.removeprefix(MEMBERS).partition("/")[::2]) for record in records]
        return [Delete(key) for key, network, host in found if host == self._me and network not in has]

    async def _write_marks(self) -> None:
        """Write marks after changes, and store the newest mark seen."""

        async def remember(mark: str, revision: int) -> None:
            put = Put(SEEN, {"mark": mark, "revision": revision, "cluster": self._catalogue.identity})
            await self._own.txn([], [put])

        await self._store.write_marks(remember)

    async def _resume(self) -> None:
        """Allow new claims when every living host has written its records, or after `GRACE_S`."""
        loop = asyncio.get_running_loop()
        while True:
            await self._breaker.closed.wait()
            # Polled, since the death of a host sets no event.
            while self._store.data_lost.is_set() or (not self._all_recovered() and loop.time() < self._until):  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S)
            self._breaker.resume()
            self._view.touch_all()

    def _all_recovered(self) -> bool:
        view = self._view
        known = view.all_alive() if self._awaited is None else self._awaited & view.all_alive()
        return bool(view.identity) and all(view.recovered.get(host) == view.identity for host in known | {self._me})


async def load_mark(own: Store, store: RestoreGuard) -> None:
    """Load the newest mark that this host has seen in the shared store, if it is of this cluster."""
    record, known = await own.get(SEEN), await own.get(IDENTITY)
    if record is not None and known is not None and record.value["cluster"] == known.value["id"]:
        store.see(str(record.value["mark"]), int(str(record.value["revision"])))


def _equals(record: Record | None, put: Put) -> bool:
    return record is not None and record.value == put.value
