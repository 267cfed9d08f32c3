"""The allocator with tasks side by side, cancelled ones, and stores that refuse or fail."""

import asyncio
from ipaddress import ip_address, ip_network

import pytest
from test_ipam_store import DictStore, StoreBrokenError

from netplug.ipam.allocator import Allocator
from netplug.ipam.errors import IpamError
from netplug.ipam.lease import IPAddress, Owner, OwnerKind
from netplug.ipam.pool import Base, Pool, Space
from netplug.ipam.spaces import default_spaces, ula

PENDING = Owner(OwnerKind.PENDING)
WEB = Owner(OwnerKind.ENDPOINT, "0123456789abcdef", "web")
SPACES = default_spaces(ula(b"test"))


@pytest.fixture
def store() -> DictStore:
    return DictStore()


@pytest.fixture
def ipam(store: DictStore) -> Allocator:
    return Allocator(store, SPACES)


async def _pool(ipam: Allocator, network: str) -> Pool:
    return await ipam.request_pool("local", network=ip_network(network))


async def _take(ipam: Allocator, pool: Pool, address: str | None = None) -> IPAddress:
    static = ip_address(address) if address else None
    return (await ipam.request_address(pool.id, address=static, owner=PENDING)).address


async def test_tasks_side_by_side_never_get_the_same(ipam: Allocator) -> None:
    pools = await asyncio.gather(*(ipam.request_pool("local") for _ in range(50)))
    assert len({pool.id for pool in pools}) == 50
    taken = await asyncio.gather(*(_take(ipam, pools[0]) for _ in range(254)))
    assert len(set(taken)) == 254
    same = await asyncio.gather(*(_pool(ipam, "10.1.0.0/24") for _ in range(5)))
    assert max(pool.holds for pool in same) == 5
    results = await asyncio.gather(*(_take(ipam, same[0], "10.1.0.9") for _ in range(3)), return_exceptions=True)
    assert sorted(isinstance(result, IpamError) for result in results) == [False, True, True]


async def test_release_twice_at_the_same_time_releases_once(ipam: Allocator) -> None:
    pool = await _pool(ipam, "10.1.0.0/30")
    first = await _take(ipam, pool)
    results = await asyncio.gather(*(ipam.release_address(pool.id, first) for _ in range(2)))
    assert results == [True, False]
    assert ipam.usage(pool.id).free == 2


async def test_addresses_that_others_hold_are_passed_over_and_asked_for_again_at_the_end(
    ipam: Allocator, store: DictStore
) -> None:
    pool = await _pool(ipam, "10.1.0.0/29")
    store.elsewhere = {ip_address(f"10.1.0.{number}") for number in (1, 2, 4)}
    assert [str(await _take(ipam, pool)) for _ in range(3)] == ["10.1.0.3", "10.1.0.5", "10.1.0.6"]
    with pytest.raises(IpamError, match="6 of 6 are leased"):
        await _take(ipam, pool)
    with pytest.raises(IpamError, match=r"address 10.1.0.2 of pool 10.1.0.0/29 is leased on another host"):
        await _take(ipam, pool, "10.1.0.2")
    store.elsewhere = {ip_address("10.1.0.1")}
    assert str(await _take(ipam, pool)) == "10.1.0.4"
    assert str(await _take(ipam, pool, "10.1.0.2")) == "10.1.0.2"
    await ipam.release_address(pool.id, ip_address("10.1.0.2"))
    assert str(await _take(ipam, pool)) == "10.1.0.2"
    asked = len(store.calls)
    with pytest.raises(IpamError, match="6 of 6 are leased"):
        await _take(ipam, pool)
    assert store.calls[asked:] == ["claim"]  # only for the one that another host still has


async def test_store_that_refuses_everything_is_not_asked_for_ever(ipam: Allocator, store: DictStore) -> None:
    pool = await _pool(ipam, "fd00::/64")
    store.elsewhere = {pool.network[number] for number in range(1, 5000)}
    with pytest.raises(IpamError):
        await _take(ipam, pool)
    assert store.calls.count("claim") == 1024 + 16


async def test_subnets_that_other_hosts_have_are_passed_over(ipam: Allocator, store: DictStore) -> None:
    store.foreign_pool = lambda pool: pool.network in (ip_network("10.208.0.0/24"), ip_network("10.1.0.0/24"))
    assert str((await ipam.request_pool("local")).network) == "10.208.1.0/24"
    with pytest.raises(IpamError, match=r"subnet 10.1.0.0/24 overlaps a pool of another host"):
        await _pool(ipam, "10.1.0.0/24")
    assert len(ipam.pools()) == 1


async def test_subnet_once_refused_is_not_asked_for_again_in_the_same_request(store: DictStore) -> None:
    ipam = Allocator(store, [Space("local", (Base(ip_network("10.0.0.0/22"), 24),))])
    store.foreign_pool = lambda _: True
    with pytest.raises(IpamError, match="has no free IPv4 subnet"):
        await ipam.request_pool("local")
    assert store.calls.count("save_pool") == 4
    store.foreign_pool = lambda _: False
    assert str((await ipam.request_pool("local")).network) == "10.0.0.0/24"


@pytest.mark.parametrize("address", [None, "10.1.0.1"])
async def test_cancelled_request_leaks_no_address(ipam: Allocator, store: DictStore, address: str | None) -> None:
    pool = await _pool(ipam, "10.1.0.0/30")
    store.gate.clear()
    task = asyncio.ensure_future(_take(ipam, pool, address))
    await asyncio.sleep(0)
    assert ipam.usage(pool.id).free == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    store.gate.set()
    assert ipam.usage(pool.id).free == 2
    assert len({await _take(ipam, pool), await _take(ipam, pool)}) == 2


async def test_cancelled_request_of_a_pool_leaves_none(ipam: Allocator, store: DictStore) -> None:
    store.gate.clear()
    task = asyncio.ensure_future(_pool(ipam, "10.1.0.0/24"))
    await asyncio.sleep(0)
    task.cancel()
    store.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (ipam.pools(), store.pools) == ((), {})
    assert (await _pool(ipam, "10.1.0.0/16")).holds == 1


async def test_pool_survives_when_one_of_two_requests_is_cancelled(ipam: Allocator, store: DictStore) -> None:
    store.gate.clear()
    first, second = (asyncio.ensure_future(_pool(ipam, "10.1.0.0/24")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    store.gate.set()
    pool = await second
    with pytest.raises(asyncio.CancelledError):
        await first
    assert ipam.pool(pool.id) == store.pools[pool.id] == Pool("local", pool.network, holds=1)


async def test_failing_store_leaves_memory_as_it_was(ipam: Allocator, store: DictStore) -> None:
    pool = await _pool(ipam, "10.1.0.0/30")
    lease = await ipam.request_address(pool.id, owner=PENDING)
    store.broken = {"claim", "drop", "update", "save_pool", "drop_pool"}
    for work in (
        ipam.request_address(pool.id, owner=PENDING),
        ipam.release_address(pool.id, lease.address),
        ipam.assign(pool.id, lease.address, WEB),
        ipam.release_pool(pool.id),
        ipam.bind(pool.id, "n1"),
        ipam.request_pool("local"),
        ipam.request_pool("local", network=pool.network),
    ):
        with pytest.raises(StoreBrokenError):
            await work
    assert (ipam.pools(), list(ipam.leases(pool.id))) == ((pool,), [lease])
    store.broken = set()
    assert await ipam.release_address(pool.id, lease.address)
    assert await ipam.release_pool(pool.id)
    assert (store.pools, store.leases) == ({}, {})


async def test_address_claimed_while_its_pool_goes_is_given_back(ipam: Allocator, store: DictStore) -> None:
    pool = await _pool(ipam, "10.1.0.0/24")
    store.gate.clear()
    release = asyncio.ensure_future(ipam.release_pool(pool.id))
    claim = asyncio.ensure_future(_take(ipam, pool))
    late = asyncio.ensure_future(_pool(ipam, "10.1.0.0/24"))
    await asyncio.sleep(0)
    store.gate.set()
    assert await release
    with pytest.raises(IpamError, match="does not exist"):
        await claim
    with pytest.raises(IpamError, match=r"subnet 10.1.0.0/24 is being released"):
        await late
    assert (store.pools, store.leases) == ({}, {})


@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_claim_under_way_when_its_pool_is_deleted_is_dropped(
    ipam: Allocator, store: DictStore, turns: int
) -> None:
    pool = await _pool(ipam, "10.1.0.0/24")
    store.gate.clear()
    claim = asyncio.ensure_future(_take(ipam, pool))
    await asyncio.sleep(0)
    release = asyncio.ensure_future(ipam.release_pool(pool.id))
    for _ in range(turns):
        await asyncio.sleep(0)
    store.gate.set()
    with pytest.raises(IpamError, match="does not exist"):
        await claim
    assert await release
    assert (ipam.pools(), store.pools, store.leases) == ((), {}, {})


async def test_pool_that_is_just_going_still_has_numbers(ipam: Allocator, store: DictStore) -> None:
    pool = await _pool(ipam, "10.1.0.0/24")
    store.gate.clear()
    release = asyncio.ensure_future(ipam.release_pool(pool.id))
    await asyncio.sleep(0)
    assert not release.done()
    assert [ipam.usage(it.id).size for it in ipam.pools()] == [254]
    store.gate.set()
    assert await release
    assert ipam.pools() == ()


async def test_owner_changed_while_the_address_is_released_does_not_come_back(
    ipam: Allocator, store: DictStore
) -> None:
    pool = await _pool(ipam, "10.1.0.0/24")
    address = await _take(ipam, pool)
    store.gate.clear()
    assign = asyncio.ensure_future(ipam.assign(pool.id, address, WEB))
    release = asyncio.ensure_future(ipam.release_address(pool.id, address))
    late = asyncio.ensure_future(ipam.assign(pool.id, address, WEB))
    await asyncio.sleep(0)
    store.gate.set()
    await assign
    assert await release
    with pytest.raises(IpamError, match=r"10.1.0.1 of pool 10.1.0.0/24 is not leased"):
        await late
    assert (list(ipam.leases(pool.id)), store.leases) == ([], {})


async def test_lease_that_the_store_has_lost_is_no_lease(ipam: Allocator, store: DictStore) -> None:
    pool = await _pool(ipam, "10.1.0.0/24")
    address = await _take(ipam, pool)
    store.leases.clear()
    with pytest.raises(IpamError, match="is not leased"):
        await ipam.assign(pool.id, address, WEB)
    assert ipam.lease(pool.id, address) is None
