"""Several hosts claim addresses of one pool at once, on a real etcd: no duplicate, hardly a claim in vain."""

import asyncio
from collections.abc import Sequence
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
