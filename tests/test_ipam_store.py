"""The allocator's store in memory, for other tests, and one conformance suite for it and the real one."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from netplug.ipam.lease import IPAddress, Lease, Owner, OwnerKind
from netplug.ipam.pool import Pool
from netplug.ipam.store import LeaseStore
from netplug.store.leases import StoredLeases
from netplug.store.sqlite import SqliteStore

POOL = Pool("local", ip_network("10.1.0.0/24"), ip_network("10.1.0.128/25"), 1, ("n1",))
LEASE = Lease(POOL.id, ip_address("10.1.0.7"), Owner(OwnerKind.ENDPOINT, "e1", "web"), "02:42:0a:01:00:07")


class StoreBrokenError(Exception):
    """What a broken store raises here."""


class DictStore:
    """`LeaseStore` in memory.

    Attributes:
        elsewhere: addresses that another host holds.
        foreign_pool: tells whether another host has a pool that overlaps this one.
        broken: names of methods that raise instead of doing anything.
        gate: while it is not set, calls wait before they do anything.
    """

    def __init__(self) -> None:
        self.pools: dict[str, Pool] = {}
        self.leases: dict[tuple[str, IPAddress], Lease] = {}
        self.elsewhere: set[IPAddress] = set()
        self.foreign_pool: Callable[[Pool], bool] = lambda _: False
        self.broken: set[str] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self.calls: list[str] = []
        self.unreadable: dict[str, str] = {}

    async def _enter(self, call: str) -> None:
        self.calls.append(call)
        await asyncio.sleep(0)
        await self.gate.wait()
        if call in self.broken:
            raise StoreBrokenError(call)

    async def load(self) -> tuple[list[Pool], list[Lease]]:
        await self._enter("load")
        return list(self.pools.values()), list(self.leases.values())

    async def claim(self, lease: Lease) -> bool:
        await self._enter("claim")
        key = (lease.pool, lease.address)
        if lease.address in self.elsewhere or key in self.leases:
            return False
        self.leases[key] = lease
        return True

    async def update(self, lease: Lease) -> bool:
        await self._enter("update")
        key = (lease.pool, lease.address)
        if key not in self.leases:
            return False
        self.leases[key] = lease
        return True

    async def drop(self, pool_id: str, address: IPAddress) -> None:
        await self._enter("drop")
        self.leases.pop((pool_id, address), None)

    async def save_pool(self, pool: Pool) -> bool:
        await self._enter("save_pool")
        if self.foreign_pool(pool):
            return False
        self.pools[pool.id] = pool
        return True

    async def drop_pool(self, pool_id: str) -> None:
        await self._enter("drop_pool")
        self.pools.pop(pool_id, None)
        self.leases = {key: lease for key, lease in self.leases.items() if lease.pool != pool_id}


@pytest.fixture(params=["dict", "sqlite"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[LeaseStore]:
    if request.param == "dict":
        yield DictStore()
        return
    sqlite = await SqliteStore.open(":memory:")
    yield StoredLeases(sqlite)
    await sqlite.close()


async def test_what_was_stored_is_loaded(store: LeaseStore) -> None:
    v6 = Pool("global", ip_network("fd00::/64"))
    lease = Lease(v6.id, ip_address("fd00::1"), Owner(OwnerKind.GATEWAY))
    for pool in (POOL, v6):
        assert await store.save_pool(pool)
    for each in (LEASE, lease):
        assert await store.claim(each)
    pools, leases = await store.load()
    assert {pool.id: pool for pool in pools} == {POOL.id: POOL, v6.id: v6}
    assert set(leases) == {LEASE, lease}


async def test_second_claim_of_an_address_is_refused_until_it_is_dropped(store: LeaseStore) -> None:
    assert await store.claim(LEASE)
    assert not await store.claim(replace(LEASE, owner=Owner(OwnerKind.PENDING)))
    await store.drop(LEASE.pool, LEASE.address)
    await store.drop(LEASE.pool, LEASE.address)
    assert await store.claim(LEASE)


async def test_update_changes_the_owner_and_makes_no_lease(store: LeaseStore) -> None:
    changed = replace(LEASE, owner=Owner(OwnerKind.ENDPOINT, "e2"))
    assert not await store.update(changed)
    await store.claim(LEASE)
    assert await store.update(changed)
    assert list((await store.load())[1]) == [changed]


async def test_dropping_a_pool_drops_its_leases_and_no_others(store: LeaseStore) -> None:
    whole = Pool("local", POOL.network)
    for pool in (POOL, whole):
        await store.save_pool(pool)
        for number in range(1, 240):
            await store.claim(replace(LEASE, pool=pool.id, address=POOL.network[number]))
    await store.drop_pool(whole.id)
    pools, leases = await store.load()
    assert list(pools) == [POOL]
    assert {lease.pool for lease in leases} == {POOL.id}
    assert len(leases) == 239
