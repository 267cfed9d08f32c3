"""What `StoredLeases` adds to the conformance suite in test_ipam_store.py."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from netplug.ipam.allocator import Allocator
from netplug.ipam.lease import Lease, Owner, OwnerKind
from netplug.ipam.pool import Pool
from netplug.ipam.spaces import default_spaces, ula
from netplug.store.api import Compare, Delete, Put, Record, StoreError, Unreachable
from netplug.store.leases import StoredLeases, lease_key, pool_key
from netplug.store.sqlite import SqliteStore

POOL = Pool("local", ip_network("10.1.0.0/24"), holds=1)
LEASE = Lease(POOL.id, ip_address("10.1.0.7"), Owner(OwnerKind.ENDPOINT, "e1", "web"))


@pytest.fixture
async def store() -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(":memory:")
    yield store
    await store.close()


class SlowStore:
    """Passes transactions on, but keeps their answers back until `answer` is set."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.get = store.get
        self.answer = asyncio.Event()
        self.done = asyncio.Event()
        self.durable: list[bool] = []

    async def txn(
        self, compares: Sequence[Compare], ops: Sequence[Put | Delete], *, durable: bool = False
    ) -> int | None:
        self.durable.append(durable)
        revision = await self._store.txn(compares, ops, durable=durable)
        self.done.set()
        await self.answer.wait()
        return revision


@pytest.mark.parametrize("taken", [False, True])
async def test_cancelled_claim_leaves_the_store_as_it_was(store: SqliteStore, *, taken: bool) -> None:
    other = replace(LEASE, owner=Owner(OwnerKind.PENDING))
    if taken:
        await StoredLeases(store).claim(other)
    slow = SlowStore(store)
    task = asyncio.ensure_future(StoredLeases(slow).claim(LEASE))  # type: ignore[arg-type] # only txn is used
    await slow.done.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # the impatient
    await asyncio.sleep(0)
    assert not task.done()
    slow.answer.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await StoredLeases(store).load())[1] == ([other] if taken else [])


async def test_gateways_and_pools_outlive_a_loss_of_power_and_endpoints_need_not(store: SqliteStore) -> None:
    slow = SlowStore(store)
    slow.answer.set()
    leases = StoredLeases(slow)  # type: ignore[arg-type] # only txn is used
    await leases.claim(LEASE)
    await leases.claim(replace(LEASE, address=ip_address("10.1.0.1"), owner=Owner(OwnerKind.GATEWAY)))
    await leases.save_pool(POOL)
    assert slow.durable == [False, True, True]


async def test_failing_store_is_heard_by_who_claims(store: SqliteStore) -> None:
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await StoredLeases(store).claim(LEASE)


class MuteStore:
    """Does transactions, and when `mute` hides it."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.get = store.get
        self.mute = self.deaf = False

    async def txn(
        self, compares: Sequence[Compare], ops: Sequence[Put | Delete], *, durable: bool = False
    ) -> int | None:
        revision = None if self.deaf else await self._store.txn(compares, ops, durable=durable)
        if self.mute or self.deaf:
            raise Unreachable("nobody answers")
        return revision


@pytest.mark.parametrize("again", [LEASE, replace(LEASE, address=ip_address("10.1.0.8"))])
async def test_a_claim_that_nobody_answered_is_taken_back(store: SqliteStore, again: Lease) -> None:
    mute = MuteStore(store)
    leases = StoredLeases(mute)  # type: ignore[arg-type] # only get and txn are used
    mute.mute = True
    with pytest.raises(Unreachable):
        await leases.claim(LEASE)
    with pytest.raises(Unreachable):
        await leases.claim(again)
    mute.mute = False
    assert all(await asyncio.gather(leases.claim(again), leases.claim(replace(LEASE, address=ip_address("10.1.0.9")))))
    assert {lease.address for lease in (await StoredLeases(store).load())[1]} == {
        again.address,
        ip_address("10.1.0.9"),
    }


@pytest.mark.parametrize("owner", [Owner(OwnerKind.PENDING), Owner(OwnerKind.ENDPOINT, "e2")])
async def test_what_another_host_claimed_meanwhile_is_not_taken_back(store: SqliteStore, owner: Owner) -> None:
    mute = MuteStore(store)
    leases = StoredLeases(mute)  # type: ignore[arg-type] # only get and txn are used
    mine = LEASE if owner.id else replace(LEASE, owner=owner)
    mute.deaf = True
    with pytest.raises(Unreachable):
        await leases.claim(mine)
    other = replace(LEASE, owner=owner)
    assert await StoredLeases(store).claim(other)
    mute.deaf = False
    assert not await leases.claim(mine)
    assert (await StoredLeases(store).load())[1] == [other]


async def test_unreadable_records_are_named_and_keep_what_they_are_of(store: SqliteStore) -> None:
    pool, lease = pool_key(POOL.id), lease_key(POOL.id, LEASE.address)
    await store.txn([], [Put(pool, {"space": "local", "colour": "blue"}), Put(lease, {"owner": 7})])
    leases = StoredLeases(store)
    assert await leases.load() == ([replace(POOL, holds=0)], [])
    assert re.search(r"'ipam/pools/local%2F10.1.0.0%2F24' is not a pool: .*'colour'", leases.unreadable[pool])
    assert not await leases.claim(LEASE)
    assert await leases.save_pool(POOL.more())
    await leases.drop_pool(POOL.id)
    assert {record.key for record in (await store.range(""))[0]} == {pool, lease}


async def test_keys_of_leases_are_readable() -> None:
    assert lease_key("local/fd00::/64", ip_address("fd00::5")) == "ipam/leases/local%2Ffd00::%2F64/fd00::5"


async def test_allocator_goes_on_after_a_restart_of_the_daemon(tmp_path: Path) -> None:
    spaces = default_spaces(ula(b"test"))
    store = await SqliteStore.open(tmp_path / "state.db")
    first = Allocator(StoredLeases(store), spaces)
    await first.load()
    pool = await first.request_pool("local", v6=True)
    await first.bind(pool.id, "n1")
    lease = await first.request_address(pool.id, owner=Owner(OwnerKind.PENDING))
    assigned = await first.assign(pool.id, lease.address, Owner(OwnerKind.ENDPOINT, "e1"), "02:00:00:00:00:01")
    await store.close()

    store = await SqliteStore.open(tmp_path / "state.db")
    second = Allocator(StoredLeases(store), spaces)
    await second.load()
    assert second.pools() == (replace(pool, holders=("n1",)),)
    assert list(second.leases(pool.id)) == [assigned]
    assert await second.release_pool(pool.id)
    assert await second.unbind(pool.id, "n1")
    assert (await store.range("ipam/"))[0] == []
    await store.close()


@pytest.mark.parametrize("error", [StoreError("its database is full"), RuntimeError("odd"), asyncio.CancelledError()])
async def test_a_claim_stays_doubtful_whatever_keeps_it_from_being_taken_back(
    store: SqliteStore, error: BaseException
) -> None:
    mute = MuteStore(store)
    leases = StoredLeases(mute, "host-1")  # type: ignore[arg-type] # only get and txn are used
    mute.mute = True
    with pytest.raises(Unreachable):
        await leases.claim(LEASE)
    mute.mute = False

    async def refuses(key: str) -> Record | None:
        raise error

    get, mute.get = mute.get, refuses  # type: ignore[method-assign]
    with pytest.raises(type(error)):
        await leases.claim(replace(LEASE, address=ip_address("10.1.0.8")))
    mute.get = get  # type: ignore[method-assign]
    assert await leases.claim(replace(LEASE, address=ip_address("10.1.0.9")))
    assert {lease.address for lease in (await StoredLeases(store).load())[1]} == {ip_address("10.1.0.9")}


async def test_a_cancelled_claim_that_cannot_be_taken_back_at_once_is_so_later(store: SqliteStore) -> None:
    slow = SlowStore(store)
    leases = StoredLeases(slow, "host-1")  # type: ignore[arg-type] # only get and txn are used
    task = asyncio.ensure_future(leases.claim(LEASE))
    await slow.done.wait()
    task.cancel()
    await asyncio.sleep(0)

    async def refuses(*_: object, **__: object) -> int | None:
        raise Unreachable("nobody answers")

    txn, slow.txn = slow.txn, refuses  # type: ignore[method-assign, assignment]
    slow.answer.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    slow.txn = txn  # type: ignore[method-assign]
    assert await leases.claim(replace(LEASE, address=ip_address("10.1.0.9")))
    assert {lease.address for lease in (await StoredLeases(store).load())[1]} == {ip_address("10.1.0.9")}


async def test_what_another_host_has_by_now_is_neither_changed_nor_released(store: SqliteStore) -> None:
    one, other = StoredLeases(store, "host-1"), StoredLeases(store, "host-2")
    assert await one.claim(LEASE)
    await one.drop(LEASE.pool, LEASE.address)
    theirs = replace(LEASE, owner=Owner(OwnerKind.ENDPOINT, "e2"))
    assert await other.claim(theirs)
    await one.drop(LEASE.pool, LEASE.address)
    assert not await one.update(LEASE)
    assert (await StoredLeases(store).load())[1] == [theirs]
    assert await other.update(replace(theirs, mac="02:00:00:00:00:01"))
    await other.drop(LEASE.pool, LEASE.address)
    assert (await StoredLeases(store).load())[1] == []
