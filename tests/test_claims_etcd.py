"""Several hosts claim addresses of one pool at once, on a real etcd: no duplicate, hardly a claim in vain."""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from etcd_server import Member, needs_etcd

from netplug.cluster.claims import NotAdmitted, SharedLeases
from netplug.cluster.identity import AdmissionGate
from netplug.ipam.allocator import SECOND_TRIES, Allocator
from netplug.ipam.errors import IpamError
from netplug.ipam.lease import Lease, Owner, OwnerKind
from netplug.ipam.pool import Pool
from netplug.ipam.scan_offset import HashedStart
from netplug.ipam.spaces import default_spaces, ula
from netplug.store.access import EtcdAccess
from netplug.store.api import Compare, Delete, Put, Record
from netplug.store.etcd import EtcdStore
from netplug.store.leases import StoredLeases
from netplug.store.restore_guard import RestoreGuard
from netplug.store.sqlite import SqliteStore

pytestmark = needs_etcd
SPACES = default_spaces(ula(b"test"))
HOSTS = ("alpha", "beta", "gamma", "delta")
AT_ONCE = 8  # containers that start together on a host


class Counting:
    """A store that counts transactions."""

    def __init__(self, store: EtcdStore) -> None:
        self._store = store
        self.range, self.get = store.range, store.get
        self.count = 0

    async def txn(
        self, compares: Sequence[Compare], ops: Sequence[Put | Delete], *, durable: bool = False
    ) -> int | None:
        self.count += 1
        return await self._store.txn(compares, ops, durable=durable)


class Site:
    """A host: its allocator on a connection of its own."""

    def __init__(self, name: str, store: EtcdStore) -> None:
        self.name = name
        self.store = store
        self.counting = Counting(store)
        self.allocator = Allocator(
            StoredLeases(self.counting),  # type: ignore[arg-type] # what it uses is there
            SPACES,
            start=HashedStart(name),
        )

    async def claim(self, pool: Pool, count: int) -> list[Lease]:
        """Lease addresses, some at once, until there are so many or none is left."""
        leases: list[Lease] = []
        owners = (Owner(OwnerKind.ENDPOINT, f"{self.name}-{n}") for n in range(count))

        async def work() -> None:
            for owner in owners:
                try:
                    leases.append(await self.allocator.request_address(pool.id, owner=owner))
                except IpamError:
                    return

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
        return leases


async def sites(etcd: Member, network: str) -> tuple[Pool, list[Site]]:
    hosts = [Site(name, await EtcdStore.open(EtcdAccess((etcd.host,)))) for name in HOSTS]
    pool = await hosts[0].allocator.request_pool("global", network=ip_network(network))
    for host in hosts:
        await host.allocator.load()
        host.counting.count = 0
    return pool, hosts


@pytest.mark.parametrize("network", ["10.64.0.0/20", "fd00:64::/64"])
async def test_four_hosts_claim_two_thousand_addresses_and_none_twice(etcd: Member, network: str) -> None:
    pool, hosts = await sites(etcd, network)
    claimed = [lease for leases in await asyncio.gather(*(host.claim(pool, 500) for host in hosts)) for lease in leases]
    assert len(claimed) == len({lease.address for lease in claimed}) == 2000
    _, stored = await StoredLeases(hosts[0].store).load()
    assert {lease for lease in stored if lease.pool == pool.id} == set(claimed)
    transactions = sum(host.counting.count for host in hosts)
    assert 2000 <= transactions <= 1.1 * 2000, transactions
    for host in hosts:
        await host.store.close()


async def test_a_small_pool_is_shared_out_to_the_last_address(etcd: Member) -> None:
    pool, hosts = await sites(etcd, "10.65.0.0/26")
    claimed = [lease for leases in await asyncio.gather(*(host.claim(pool, 62) for host in hosts)) for lease in leases]
    assert len({lease.address for lease in claimed}) == len(claimed) == 62
    with pytest.raises(IpamError, match="has no free address"):
        await hosts[0].allocator.request_address(pool.id, owner=Owner(OwnerKind.PENDING))
    mine = next(hosts[0].allocator.leases(pool.id))
    await hosts[0].allocator.release_address(pool.id, mine.address)
    # Nobody tells the others: each request asks for some of the addresses that were refused before.
    found = None
    for _ in range(pool.network.num_addresses // SECOND_TRIES):
        with suppress(IpamError):
            found = await hosts[1].allocator.request_address(pool.id, owner=Owner(OwnerKind.ENDPOINT, "late"))
            break
    assert found is not None
    assert found.address == mine.address
    for host in hosts:
        await host.store.close()


async def test_what_a_dead_daemon_claimed_is_its_hosts(etcd: Member) -> None:
    """It died before it noted the claim in its own store; the runtime asks for the same address again."""
    store = await EtcdStore.open(EtcdAccess((etcd.host,)))
    locals_ = [await SqliteStore.open(":memory:") for _ in range(2)]
    here, there = (SharedLeases(local, store, host) for local, host in zip(locals_, HOSTS, strict=False))
    lease = Lease("global/10.7.0.0/24", ip_address("10.7.0.9"), Owner(OwnerKind.ENDPOINT, "web"))
    assert await StoredLeases(store, HOSTS[0]).claim(lease)
    assert not await there.claim(lease)
    assert await here.claim(lease)
    assert not await here.claim(lease)
    assert await StoredLeases(locals_[0]).load() == ([], [lease])
    for it in (store, *locals_):
        await it.close()


class ReleasesLate(EtcdStore):
    """Deletes a claim when somebody has found it there, and before they look whose it is."""

    def __init__(self, store: EtcdStore) -> None:
        self.__dict__.update(store.__dict__)
        self.asked, self._found, self._deleted = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def txn(
        self, compares: Sequence[Compare], ops: Sequence[Put | Delete], *, durable: bool = False
    ) -> int | None:
        if isinstance(ops[0], Put):
            done = await super().txn(compares, ops, durable=durable)
            self._found.set()
            return done
        self.asked.set()
        await self._found.wait()
        done = await super().txn(compares, ops, durable=durable)
        self._deleted.set()
        return done

    async def get(self, key: str) -> Record | None:
        await self._deleted.wait()
        return await super().get(key)


async def test_what_a_dead_daemon_claimed_is_asked_for_while_it_is_released(etcd: Member) -> None:
    store, local = await EtcdStore.open(EtcdAccess((etcd.host,))), await SqliteStore.open(":memory:")
    late = ReleasesLate(store)
    leases = SharedLeases(local, late, HOSTS[0])
    lease = Lease("global/10.9.0.0/24", ip_address("10.9.0.9"), Owner(OwnerKind.ENDPOINT, "web"))
    assert await StoredLeases(store, HOSTS[0]).claim(lease)
    releasing = asyncio.create_task(leases.reconcile([lease.pool]))
    async with asyncio.timeout(10):
        await late.asked.wait()
        assert await leases.claim(lease)
        await releasing
    assert [(it.lease, it.host) for it in await leases.claims(lease.pool)] == [(lease, HOSTS[0])]
    assert await StoredLeases(local).load() == ([], [lease])
    await store.close()
    await local.close()


class AnswersLate(EtcdStore):
    """Answers a change of a claim late: when `go_on` is set."""

    def __init__(self, store: EtcdStore) -> None:
        self.__dict__.update(store.__dict__)
        self.changed, self.go_on = asyncio.Event(), asyncio.Event()

    async def txn(
        self, compares: Sequence[Compare], ops: Sequence[Put | Delete], *, durable: bool = False
    ) -> int | None:
        done = await super().txn(compares, ops, durable=durable)
        if isinstance(ops[0], Put) and compares[0].revision:
            self.changed.set()
            await self.go_on.wait()
        return done


async def test_an_address_that_is_released_while_its_owner_changes_is_free(etcd: Member) -> None:
    store, local = await EtcdStore.open(EtcdAccess((etcd.host,))), await SqliteStore.open(":memory:")
    late = AnswersLate(store)
    leases = SharedLeases(local, late, HOSTS[0])
    lease = Lease("global/10.10.0.0/24", ip_address("10.10.0.9"), Owner(OwnerKind.PENDING))
    owned = replace(lease, owner=Owner(OwnerKind.ENDPOINT, "web"))
    assert await leases.claim(lease)
    changing = asyncio.create_task(leases.update(owned))
    async with asyncio.timeout(10):
        await late.changed.wait()
        releasing = asyncio.create_task(leases.drop(lease.pool, lease.address))
        for _ in range(20):  # more requests than the release has: it is over now, or waits for the change
            await store.get("nothing")
        late.go_on.set()
        await asyncio.gather(changing, releasing)
    assert await leases.reconcile([lease.pool]) == []
    assert await leases.claims(lease.pool) == []
    assert await leases.claim(lease)
    await store.close()
    await local.close()


async def test_a_pool_is_deleted_while_its_addresses_are_released(etcd: Member) -> None:
    store, local = await EtcdStore.open(EtcdAccess((etcd.host,))), await SqliteStore.open(":memory:")
    leases = SharedLeases(local, store, HOSTS[0])
    some = [
        Lease("global/10.11.0.0/24", ip_address(f"10.11.0.{n}"), Owner(OwnerKind.KEPT, name=f"web-{n}"))
        for n in range(2, 6)
    ]
    for lease in some:
        assert await leases.claim(lease)
    releasing = [leases.drop(lease.pool, lease.address) for lease in reversed(some)]
    await asyncio.gather(leases.drop_pool(some[0].pool), *releasing)
    assert await leases.claims(some[0].pool) == []
    assert await StoredLeases(local).load() == ([], [])
    await store.close()
    await local.close()


class Interrupted(EtcdStore):
    """Does something before each change of a claim."""

    def __init__(self, store: EtcdStore) -> None:
        self.__dict__.update(store.__dict__)
        self.before: list[Coroutine[object, object, object]] = []

    async def txn(
        self, compares: Sequence[Compare], ops: Sequence[Put | Delete], *, durable: bool = False
    ) -> int | None:
        while self.before:
            await self.before.pop()
        return await super().txn(compares, ops, durable=durable)


async def test_addresses_are_released_while_a_restored_store_is_written(etcd: Member) -> None:
    """The backup has them as another host's, which has not written its records yet."""
    store, local = await EtcdStore.open(EtcdAccess((etcd.host,))), await SqliteStore.open(":memory:")
    other = StoredLeases(store, HOSTS[1])
    some = [
        Lease("global/10.12.0.0/24", ip_address(f"10.12.0.{n}"), Owner(OwnerKind.ENDPOINT, f"web-{n}")) for n in (2, 3)
    ]
    for lease in some:
        assert await StoredLeases(local).claim(lease)
        assert await other.claim(lease)
    busy = Interrupted(store)
    leases = SharedLeases(local, busy, HOSTS[0])
    await leases.load()
    busy.before = [leases.drop(lease.pool, lease.address) for lease in some]
    assert await leases.reconcile([some[0].pool], vouched=()) == []
    await store.close()
    await local.close()


async def test_a_claim_that_the_store_has_lost_changes_its_owner(etcd: Member) -> None:
    """As when its host was forgotten by mistake, or etcd was restored, and its daemon did not notice yet."""
    store, local = await EtcdStore.open(EtcdAccess((etcd.host,))), await SqliteStore.open(":memory:")
    leases = SharedLeases(local, store, HOSTS[0])
    allocator = Allocator(leases, SPACES, start=HashedStart(HOSTS[0]))
    pool = await allocator.request_pool("global", network=ip_network("10.13.0.0/24"))
    wanted = Owner(OwnerKind.ENDPOINT, "web")
    lost, waiting, gone = [await allocator.request_address(pool.id, owner=Owner(OwnerKind.PENDING)) for _ in range(3)]
    for lease in (lost, waiting, gone):
        await StoredLeases(store, HOSTS[0]).drop(pool.id, lease.address)
    assert await StoredLeases(store, HOSTS[1]).claim(gone)
    await allocator.assign(pool.id, lost.address, wanted)
    await allocator.assign(pool.id, waiting.address, replace(waiting.owner, name="web"))
    with pytest.raises(IpamError, match="is not leased"):
        await allocator.assign(pool.id, gone.address, wanted)
    assert await leases.reconcile([pool.id]) == []
    claimed = {claim.lease.address: claim.host for claim in await leases.claims(pool.id)}
    assert claimed == {lost.address: HOSTS[0], waiting.address: HOSTS[0], gone.address: HOSTS[1]}
    _, mine = await StoredLeases(local).load()
    assert {lease.address for lease in mine} == {lost.address, waiting.address}
    await store.close()
    await local.close()


async def test_who_waits_for_a_release_is_written_later_if_the_store_does_not_answer(etcd: Member) -> None:
    store, local = await EtcdStore.open(EtcdAccess((etcd.host,))), await SqliteStore.open(":memory:")
    gate = AdmissionGate(RestoreGuard(store, HOSTS[0]))
    leases = SharedLeases(local, gate, HOSTS[0])
    mine = Lease("global/10.8.0.0/24", ip_address("10.8.0.9"), Owner(OwnerKind.ENDPOINT, "web"))
    waiting, other = (replace(mine, owner=it) for it in (Owner(OwnerKind.PENDING), Owner(OwnerKind.ENDPOINT, "db")))
    gate.refusal = ""
    assert await leases.claim(mine)
    gate.refusal = "this host is not admitted"
    with pytest.raises(NotAdmitted):
        await leases.update(other)
    assert await leases.update(waiting)
    assert await StoredLeases(local).load() == ([], [waiting])
    assert [it.lease for it in await leases.claims(mine.pool)] == [mine]
    gate.refusal = ""
    assert await leases.reconcile([mine.pool]) == []
    assert [it.lease for it in await leases.claims(mine.pool)] == [waiting]
    await leases.drop(mine.pool, mine.address)
    assert await leases.claims(mine.pool) == []
    await store.close()
    await local.close()
