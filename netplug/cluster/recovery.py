"""What hosts do when the store has lost its data, or was given older ones: what runs wins over what it says.

Every host tells it what it has: its networks, addresses and endpoints. Of others it tells what would be missed if they
come late, or never: that their addresses are taken, and what hosts have that are dead. Until all have told, nobody gets
anything new, and the kernels keep what they have.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterator, Mapping

import structlog

from netplug.cluster.claims import SharedLeases
from netplug.cluster.membership import Membership
from netplug.cluster.networks import Definitions
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
"""In this host's own store: the newest mark that was seen in the shared one."""
GRACE_S = 20.0
"""For which the others may tell anew what a store has lost: they find that out within `membership.HEARTBEAT_S`."""
_LOOK_S = 0.1


class Recovery:
    """Of one host. `told`: returns what it says of an endpoint."""

    def __init__(
        self,
        engine: Engine,
        own: Store,
        store: RestoreGuard,
        view: View,
        membership: Membership,
        networks: Definitions,
        leases: SharedLeases,
        told: Callable[[EndpointRecord], EndpointAdvert],
    ) -> None:
        self._engine = engine
        self._own = own
        self._store = store
        self._view = view
        self._membership = membership
        self._networks = networks
        self._catalogue = networks.catalogue
        self._leases = leases
        self._breaker = leases.breaker
        self._me = membership.me
        self._told = told
        self._awaited: set[str] | None = None
        self._identifying = asyncio.Lock()
        self._said: set[str] = set()
        self._until = 0.0

    async def load(self) -> None:
        """Know again what an earlier life saw."""
        await remembered(self._own, self._store)

    async def run(self) -> None:
        """Notice and mend, until cancelled."""
        keep = self._engine.supervisor.keep
        async with asyncio.TaskGroup() as group:
            group.create_task(keep("cluster.marks", self._marking))
            group.create_task(keep("cluster.data", self._mending))
            group.create_task(keep("cluster.gate", self._opening))

    def whole(self) -> bool:
        """Whether the store has all that it ever had."""
        lost = bool(self._networks.identity) and self._view.identity != self._networks.identity
        return not lost and asyncio.get_running_loop().time() >= self._until

    async def identify(self) -> None:
        """Learn which cluster this is. If not the one that this host knows, the store has lost its data: tell it all.

        Every host finds that out by itself, since who comes first gives the cluster a new id. So does who notices that
        the store was given older data.
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
            self._networks.identity = now

    async def _recover(self, before: str, now: str, *, restored: bool) -> None:
        if before:
            self._breaker.suspend()
            self._store.report_loss()
            if before not in self._said:
                self._said.add(before)
                log.error("cluster.data_restored" if restored else "cluster.data_lost", cluster=before, now=now)
            loop = asyncio.get_running_loop()
            self._until = loop.time() + GRACE_S
            loop.call_later(GRACE_S, self._view.touch_all)
            await self._membership.register()
        await self._tell(now, self._networks.shared())
        await self._own.txn([], [Put(IDENTITY, {"id": now})], durable=True)
        self._store.accept()

    async def _mending(self) -> None:
        while True:
            await self._store.data_lost.wait()
            if self._membership.admitted:
                await self.identify()
            else:
                await asyncio.sleep(_LOOK_S)

    async def _tell(self, cluster: str, built: Mapping[str, NetworkRecord]) -> None:
        """Make the store say what this host has. `cluster`: its id from now on; `built`: networks, by id.

        Raises:
            StoreError: the store does not answer, or refuses; to be done again.
        """
        # Who was dead as far as this host knows is alive again by a backup, for as long as a lease.
        self._awaited = self._view.all_alive() if self._view.synced.is_set() else None
        await self._catalogue.sweep(built)
        await self._define(built)
        pools = {pool for record in built.values() for pool in record.pools}
        told = {record.key.removeprefix(RECOVERED): record.value for record in (await self._store.range(RECOVERED))[0]}
        # What those hold who have told of it already they have; of others the store does not know yet.
        await self._leases.reconcile(
            pools, vouched={host for host, value in told.items() if value.get("id") == cluster}
        )
        await self._leases.claim_for_others(self._of_others(built))
        await self._endpoints(built)
        await self._store.txn([], [Put(RECOVERED + self._me, {"id": cluster})])

    async def _define(self, built: Mapping[str, NetworkRecord]) -> None:
        known, dead = self._view.networks(), await self._catalogue.graves()
        for ident in {*built, *known} - (dead - built.keys()):
            record, definition = built.get(ident), known.get(ident)
            if record is None and definition is not None and definition.deleting:
                continue
            if definition is None or definition.deleting:
                assert record is not None  # noqa: S101 - it is one of the two
                definition = Definition.of(record)
            await self._catalogue.put_back(ident, definition, record)

    def _of_others(self, built: Mapping[str, NetworkRecord]) -> Iterator[tuple[Lease, str]]:
        """Yield the addresses that hosts have told of, with the ids of these."""
        for network, host, ident, told in self._view.all_endpoints():
            if network not in built or host == self._me:
                continue
            for pool in filter(None, map(self._engine.allocator.pool, built[network].pools)):
                for address in told.addresses:
                    if address in pool.network:
                        yield Lease(pool.id, address, Owner(OwnerKind.ENDPOINT, ident, told.name)), host

    async def _endpoints(self, built: Mapping[str, NetworkRecord]) -> None:
        """Tell of this host's endpoints, of those alone; and of those of dead hosts, which nobody else tells of."""
        there = {record.key: record for record in (await self._store.range(ENDPOINTS))[0]}
        mine = {
            endpoint_key(network, self._me, record.endpoint.id): self._told(record)
            for network, here in built.items()
            for record in self._engine.registry.endpoints(here.network.id)
        }
        puts = [as_put(key, told) for key, told in mine.items()]
        ops: list[Put | Delete] = [put for put in puts if not _says(there.get(put.key), put)]
        ops += [Delete(key) for key in there if key.split("/")[-2:-1] == [self._me] and key not in mine]
        ops += await self._surplus_members(built)
        for start in range(0, len(ops), OPS_PER_TXN):
            await self._store.txn([], ops[start : start + OPS_PER_TXN])
        dead = self._view.hosts().keys() - self._view.all_alive() - {self._me}
        late = [as_put(HOSTS + host, self._view.hosts()[host]) for host in dead]
        late += [
            as_put(endpoint_key(network, host, ident), told)
            for network, host, ident, told in self._view.all_endpoints()
            if host in dead
        ]
        for put in late:
            if put.key not in there:
                await self._store.txn([Compare(put.key, 0)], [put])

    async def _surplus_members(self, built: Mapping[str, NetworkRecord]) -> list[Delete]:
        """Return what the store says that this host's Docker has, and that it has not."""
        has = {ident for ident, record in built.items() if record.front_end is FrontEnd.DOCKER}
        records, _ = await self._store.range(MEMBERS)
        found = [(record.key, *record.key.removeprefix(MEMBERS).partition("/")[::2]) for record in records]
        return [Delete(key) for key, network, host in found if host == self._me and network not in has]

    async def _marking(self) -> None:
        """Mark the store after changes, and remember what was seen in it."""

        async def remember(mark: str, revision: int) -> None:
            put = Put(SEEN, {"mark": mark, "revision": revision, "cluster": self._networks.identity})
            await self._own.txn([], [put])

        await self._store.write_marks(remember)

    async def _opening(self) -> None:
        """Let all go on when every host that lives has told what it has, or after a while."""
        loop = asyncio.get_running_loop()
        while True:
            await self._breaker.closed.wait()
            # Polled, since that hosts die wakes nobody.
            while self._store.data_lost.is_set() or (not self._all_told() and loop.time() < self._until):  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_S)
            self._breaker.resume()
            self._view.touch_all()

    def _all_told(self) -> bool:
        view = self._view
        known = view.all_alive() if self._awaited is None else self._awaited & view.all_alive()
        return bool(view.identity) and all(view.recovered.get(host) == view.identity for host in known | {self._me})


async def remembered(own: Store, store: RestoreGuard) -> None:
    """Know again what an earlier life saw in the shared store, as that of this cluster."""
    record, known = await own.get(SEEN), await own.get(IDENTITY)
    if record is not None and known is not None and record.value["cluster"] == known.value["id"]:
        store.see(str(record.value["mark"]), int(str(record.value["revision"])))


def _says(record: Record | None, put: Put) -> bool:
    return record is not None and record.value == put.value
