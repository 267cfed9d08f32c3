"""What a sticky pool does with released addresses."""

import asyncio
from ipaddress import ip_address, ip_network

import pytest
from test_ipam_store import DictStore, StoreBrokenError

from netplug.ipam.allocator import Allocator
from netplug.ipam.errors import IpamError
from netplug.ipam.lease import LASTING, Lease, Owner, OwnerKind
from netplug.ipam.pool import Pool, Usage
from netplug.ipam.spaces import default_spaces, ula

DAY = 86_400
USER_MAC = "02:42:0a:01:00:07"


def named(name: str, ident: str = "") -> Owner:
    return Owner(OwnerKind.ENDPOINT, ident or name, name)


class Sticky:
    """An allocator with one sticky pool, on a clock that stands still."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.store = DictStore()
        self.pool = Pool("local", ip_network("10.1.0.0/29"))
        self.boot()

    def boot(self) -> None:
        self.ipam = Allocator(self.store, default_spaces(ula(b"test")), clock=lambda: self.now)

    async def take(self, name: str, address: str | None = None) -> str:
        return str((await self.lease(name, address)).address)

    async def lease(self, name: str, address: str | None = None) -> Lease:
        static = ip_address(address) if address else None
        return await self.ipam.request_address(self.pool.id, address=static, owner=named(name))

    async def release(self, address: str, **how: str | bool) -> bool:
        return await self.ipam.release_address(self.pool.id, ip_address(address), **how)  # type: ignore[arg-type]

    def kept(self) -> dict[str, str]:
        return {lease.owner.name: str(lease.address) for lease in self.ipam.retained(self.pool.id)}


@pytest.fixture
async def it() -> Sticky:
    it = Sticky()
    await it.ipam.request_pool("local", network=it.pool.network)
    await it.ipam.set_sticky(it.pool.id, DAY)
    return it


async def test_name_that_comes_again_gets_its_address_and_mac(it: Sticky) -> None:
    web = await it.take("web")
    await it.release(web, mac=USER_MAC)
    assert it.kept() == {"web": web}
    assert await it.take("db") != web
    again = await it.lease("web")
    assert (str(again.address), again.mac, again.until) == (web, USER_MAC, 0)
    assert it.kept() == {}


async def test_nothing_is_kept_for_the_nameless_nor_after_a_failure(it: Sticky) -> None:
    for name, forget in (("", False), ("web", True)):
        assert await it.release(await it.take(name), forget=forget)
    assert (it.kept(), it.store.leases) == ({}, {})


async def test_name_has_one_address_the_last(it: Sticky) -> None:
    first, second = await it.take("web"), await it.take("web")
    await it.release(second)
    await it.release(first)
    assert it.kept() == {"web": first}
    assert {str(address) for _, address in it.store.leases} == {first}
    assert it.ipam.usage(it.pool.id).free == 5


async def test_time_is_up_without_a_sweep_and_the_sweep_tidies_up(it: Sticky) -> None:
    web = await it.take("web")
    await it.release(web)
    it.now += DAY
    assert it.kept() == {}
    assert await it.take("web") != web
    assert it.ipam.usage(it.pool.id) == Usage(6, 4, 1, 1)
    await it.ipam.expire()
    assert it.ipam.usage(it.pool.id).free == 5
    assert len(it.store.leases) == 1


async def test_when_nothing_is_free_what_was_kept_longest_goes_first(it: Sticky) -> None:
    held = [await it.take(name) for name in "abcdef"]
    for address in (held[2], held[0]):
        it.now += 1
        await it.release(address)
    assert await it.take("x") == held[2]
    assert await it.take("a") == held[0]
    with pytest.raises(IpamError, match="6 of 6 are leased"):
        await it.take("y")


async def test_who_asks_for_exactly_the_address_gets_it_but_not_the_mac(it: Sticky) -> None:
    web = await it.take("web")
    await it.release(web, mac=USER_MAC)
    assert (await it.lease("db", web)).mac == ""
    assert await it.take("web") != web
    await it.release(web, mac=USER_MAC)
    assert (await it.lease("db", web)).mac == USER_MAC


async def test_what_is_kept_outlives_the_daemon(it: Sticky) -> None:
    first, second = await it.take("web"), await it.take("db")
    await it.release(second)
    it.now += 1
    await it.release(first)
    it.boot()
    await it.ipam.load()
    assert list(it.kept()) == ["db", "web"]
    assert await it.take("x") not in {first, second}
    assert await it.take("web") == first


async def test_pool_that_is_sticky_no_more_forgets_all(it: Sticky) -> None:
    await it.release(await it.take("web"))
    await it.ipam.set_sticky(it.pool.id, 0)
    assert (it.kept(), it.store.leases, it.ipam.usage(it.pool.id).free) == ({}, {}, 6)
    assert it.store.pools[it.pool.id].sticky_s == 0


async def test_pool_takes_what_it_keeps_with_it(it: Sticky) -> None:
    await it.release(await it.take("web"))
    await it.ipam.release_pool(it.pool.id)
    assert (it.store.leases, it.store.pools) == ({}, {})


async def test_two_at_once_never_get_the_same(it: Sticky) -> None:
    web = await it.take("web")
    await it.release(web)
    taken = await asyncio.gather(it.take("web"), it.take("web"), it.take("db", web), return_exceptions=True)
    assert [str(each) for each in taken].count(web) == 1
    assert "is leased to" in str(taken[2])


@pytest.mark.parametrize("call", ["update", "drop"])
async def test_failing_store_leaves_memory_as_it_was(it: Sticky, call: str) -> None:
    web = await it.take("web")
    await it.release(web)
    other = await it.take("web", "10.1.0.5")
    before = dict(it.store.leases)
    it.store.broken = {call}
    if call == "update":
        for work in (it.take("web"), it.take("db", web), it.release(other)):
            with pytest.raises(StoreBrokenError):
                await work
    else:
        with pytest.raises(StoreBrokenError):
            await it.ipam.set_sticky(it.pool.id, 0)
    it.store.broken = set()
    assert it.store.leases == before
    assert it.kept() == {"web": web}
    assert await it.take("web") == web


async def test_older_address_that_the_store_does_not_drop_is_nobodys_until_it_does(it: Sticky) -> None:
    first, second = await it.take("web"), await it.take("web")
    await it.release(second)
    it.store.broken = {"drop"}
    with pytest.raises(StoreBrokenError):
        await it.release(first)
    it.store.broken = set()
    assert {str(address) for _, address in it.store.leases} == {first, second}
    taken = {await it.take(name) for name in "abcd"}
    assert not taken & {first, second}
    assert await it.take("web") == first
    it.now += DAY
    await it.ipam.expire()
    assert len(it.store.leases) == 5


async def test_cancelled_request_keeps_what_was_kept(it: Sticky) -> None:
    web = await it.take("web")
    await it.release(web)
    it.store.gate.clear()
    task = asyncio.ensure_future(it.take("web"))
    await asyncio.sleep(0)
    assert it.kept() == {}
    task.cancel()
    it.store.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert it.kept() == {"web": web}
    assert await it.take("web") == web


async def test_kept_address_that_the_store_has_lost_is_claimed_anew(it: Sticky) -> None:
    web = await it.take("web")
    await it.release(web)
    it.store.leases.clear()
    assert await it.take("web") == web
    assert len(it.store.leases) == 1


# Promises: to containers that were made with an address


async def test_what_is_promised_is_kept_while_the_promise_is_repeated_and_given_out_last(it: Sticky) -> None:
    await it.ipam.set_sticky(it.pool.id, 0)
    taken = await it.take("", "10.1.0.2")
    it.ipam.reserve(it.pool.id, {ip_address(text): name for text, name in (("10.1.0.1", "web"), (taken, "db"))})
    assert it.kept() == {"web": "10.1.0.1"}
    assert [lease.until for lease in it.ipam.retained(it.pool.id)] == [LASTING]
    await it.release(taken)
    assert it.kept() == {"web": "10.1.0.1", "db": taken}
    it.now += 400 * DAY
    await it.ipam.expire()
    assert [await it.take(name) for name in ("web", "x", "y", "z")] == [f"10.1.0.{n}" for n in (3, 4, 5, 6)]
    assert await it.take("last") == "10.1.0.1"
    await it.release("10.1.0.1")
    assert it.kept() == {"web": "10.1.0.1", "db": taken}
    assert await it.take("", "10.1.0.1") == "10.1.0.1"
    it.ipam.reserve(it.pool.id, {})
    await it.ipam.expire()
    assert (it.kept(), it.ipam.usage(it.pool.id).free) == ({}, 1)
    assert ip_address(taken) not in {address for _, address in it.store.leases}


async def test_promise_outlives_the_daemon_from_the_first_release_on(it: Sticky) -> None:
    await it.ipam.set_sticky(it.pool.id, 0)
    it.ipam.reserve(it.pool.id, {ip_address("10.1.0.1"): "web"})
    await it.release(await it.take("", "10.1.0.1"))
    it.boot()
    await it.ipam.load()
    assert await it.take("x") == "10.1.0.2"
    it.ipam.reserve(it.pool.id, {ip_address("10.1.0.1"): "web", ip_address("10.1.0.3"): "db"})
    assert it.kept() == {"web": "10.1.0.1", "db": "10.1.0.3"}
    assert await it.take("y") == "10.1.0.4"


async def test_promise_goes_over_to_another_name_and_ends_as_sticky_as_the_pool_is(it: Sticky) -> None:
    await it.release(await it.take("web", "10.1.0.3"), mac=USER_MAC)
    it.ipam.reserve(it.pool.id, {ip_address("10.1.0.3"): "web"})
    assert [lease.mac for lease in it.ipam.retained(it.pool.id)] == [USER_MAC]
    assert await it.take("web") == "10.1.0.1"  # he was not told to have another: one that is made anew
    it.ipam.reserve(it.pool.id, {ip_address("10.1.0.3"): "db"})
    assert it.kept() == {"db": "10.1.0.3"}
    it.ipam.reserve(it.pool.id, {})
    assert [lease.until for lease in it.ipam.retained(it.pool.id)] == [it.now + DAY]
    assert await it.take("db") == "10.1.0.3"


async def test_promised_address_goes_after_all_that_is_kept_for_a_time(it: Sticky) -> None:
    it.ipam.reserve(it.pool.id, {ip_address("10.1.0.1"): "web"})
    for name in "abcde":
        await it.take(name)
    it.now += 1
    await it.release("10.1.0.4")
    assert [await it.take("x"), await it.take("y")] == ["10.1.0.4", "10.1.0.1"]


@pytest.mark.parametrize("sticky", [0, DAY])
async def test_promise_that_changes_during_a_release_counts(it: Sticky, sticky: int) -> None:
    await it.ipam.set_sticky(it.pool.id, sticky)
    ended, begun = await it.take("x"), await it.take("y")
    it.ipam.reserve(it.pool.id, {ip_address(ended): "web"})
    it.store.gate.clear()
    both = asyncio.gather(it.release(ended), it.release(begun))
    await asyncio.sleep(0)
    it.ipam.reserve(it.pool.id, {ip_address(begun): "db"})
    it.store.gate.set()
    await both
    assert it.kept() == {"db": begun}
    await it.ipam.expire()
    assert it.ipam.usage(it.pool.id).free == 5


async def test_forgotten_lease_and_failed_claim_leave_the_promise(it: Sticky) -> None:
    it.ipam.reserve(it.pool.id, {ip_address("10.1.0.1"): "web"})
    await it.release(await it.take("", "10.1.0.1"), forget=True)
    assert it.kept() == {"web": "10.1.0.1"}
    it.store.broken = {"claim", "update"}
    with pytest.raises(StoreBrokenError):
        await it.take("", "10.1.0.1")
    assert it.kept() == {"web": "10.1.0.1"}
    it.ipam.reserve("nowhere", {ip_address("10.1.0.1"): "web"})


async def _asked_for_while_it_is_freed(
    it: Sticky, *names: str
) -> tuple[str, asyncio.Future[None], list[asyncio.Future[Lease]]]:
    """Let the time of an address be over, and these ask for it while the store, which is held up, deletes it."""
    web = await it.take("web")
    await it.release(web)
    it.now += 2 * DAY
    it.store.gate.clear()
    expiring = asyncio.ensure_future(it.ipam.expire())
    await asyncio.sleep(0)
    asking = [asyncio.ensure_future(it.lease(name, web)) for name in names]
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # calls take effect in the order in which they start
    return web, expiring, asking


@pytest.mark.parametrize("broken", ["", "drop"])
async def test_address_whose_time_is_just_over_is_given_to_who_asks_for_it(it: Sticky, broken: str) -> None:
    web, expiring, asking = await _asked_for_while_it_is_freed(it, "db", "thief")
    it.store.broken = {broken}
    it.store.gate.set()
    await asyncio.gather(expiring, return_exceptions=True)
    lease, refused = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(lease, Lease)
    assert lease.owner == named("db")
    assert isinstance(refused, IpamError)
    assert it.store.leases[it.pool.id, lease.address] == lease
    it.store.broken = set()
    await it.ipam.expire()
    assert (it.kept(), it.ipam.usage(it.pool.id)) == ({}, Usage(6, 5, 1))
    await it.release(web, forget=True)
    assert it.ipam.usage(it.pool.id) == Usage(6, 6, 0)


async def test_address_that_could_not_be_taken_while_it_was_freed_is_free(it: Sticky) -> None:
    _, expiring, (asking,) = await _asked_for_while_it_is_freed(it, "db")
    it.store.broken = {"claim"}
    it.store.gate.set()
    await expiring
    with pytest.raises(StoreBrokenError):
        await asking
    it.store.broken = set()
    await it.ipam.expire()
    assert (it.kept(), it.ipam.usage(it.pool.id).free) == ({}, 6)
