"""The allocator's messages, its order of pools, and sessions of dockerd."""

from collections.abc import Awaitable, Callable
from ipaddress import ip_address, ip_network

import pytest
from test_ipam_store import DictStore

from netplug.ipam.allocator import Allocator
from netplug.ipam.errors import IpamError, Kind
from netplug.ipam.lease import IPAddress, Owner, OwnerKind
from netplug.ipam.pool import Base, IPNetwork, Pool, Space
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


async def _pool(ipam: Allocator, network: str, part: str | None = None, space: str = "local") -> Pool:
    return await ipam.request_pool(space, network=ip_network(network), range=ip_network(part) if part else None)


async def _take(ipam: Allocator, pool: Pool, address: str | None = None, owner: Owner = PENDING) -> IPAddress:
    static = ip_address(address) if address else None
    return (await ipam.request_address(pool.id, address=static, owner=owner)).address


Case = Callable[[Allocator], Awaitable[object]]


def _request(space: str = "local", network: str | None = None, part: str | None = None, *, v6: bool = False) -> Case:
    return lambda ipam: ipam.request_pool(
        space,
        network=ip_network(network) if network else None,
        range=ip_network(part) if part else None,
        v6=v6,
    )


def _address(text: str | None, pool: str = "local/10.1.0.0/29") -> Case:
    return lambda ipam: ipam.request_address(pool, address=ip_address(text) if text else None, owner=PENDING)


@pytest.mark.parametrize(
    ("case", "kind", "message"),
    [
        (
            _request("remote"),
            Kind.INVALID,
            "address space 'remote' is unknown (choose one of external, global, local)",
        ),
        (
            _request(part="10.1.0.0/24"),
            Kind.INVALID,
            "range 10.1.0.0/24 needs the subnet that contains it (give --subnet)",
        ),
        (
            _request(network="10.2.0.0/24", part="10.3.0.0/25"),
            Kind.INVALID,
            "range 10.3.0.0/25 is not in subnet 10.2.0.0/24 (choose an --ip-range inside the subnet)",
        ),
        (
            _request(network="10.2.0.0/24", part="10.2.0.0/16"),
            Kind.INVALID,
            "range 10.2.0.0/16 is not in subnet 10.2.0.0/24 (choose an --ip-range inside the subnet)",
        ),
        (
            _request(network="10.2.0.0/24", part="fd00::/64"),
            Kind.INVALID,
            "range fd00::/64 is IPv6, but subnet 10.2.0.0/24 is IPv4 (use the same family for both)",
        ),
        (
            _request(network="10.2.0.0/24", v6=True),
            Kind.INVALID,
            "subnet 10.2.0.0/24 is IPv4, but the request is for an IPv6 pool (give an IPv6 --subnet)",
        ),
        (
            _request(network="10.1.0.0/16"),
            Kind.EXISTS,
            "subnet 10.1.0.0/16 overlaps subnet 10.1.0.0/29 (choose another --subnet)",
        ),
        (
            _request("external", network="10.1.0.4/30"),
            Kind.EXISTS,
            "subnet 10.1.0.4/30 overlaps subnet 10.1.0.0/29 (choose another --subnet)",
        ),
        (
            _request("external"),
            Kind.UNAVAILABLE,
            "address space 'external' has no IPv4 range to choose a subnet from (choose one with --subnet)",
        ),
        (
            _address("10.2.0.1"),
            Kind.INVALID,
            "address 10.2.0.1 is not in subnet 10.1.0.0/29 (choose an address of the network's subnet)",
        ),
        (
            _address("::a01:1"),  # the same number as 10.1.0.1
            Kind.INVALID,
            "address ::a01:1 is not in subnet 10.1.0.0/29 (choose an address of the network's subnet)",
        ),
        (
            _address("10.1.0.0"),
            Kind.INVALID,
            "address 10.1.0.0 is the network address of subnet 10.1.0.0/29",
        ),
        (
            _address("10.1.0.7"),
            Kind.INVALID,
            "address 10.1.0.7 is the broadcast address of subnet 10.1.0.0/29",
        ),
        (
            _address("10.1.0.1"),
            Kind.UNAVAILABLE,
            "address 10.1.0.1 of pool 10.1.0.0/29 is leased to gateway (choose another address, or none)",
        ),
        (
            _address("10.1.0.2"),
            Kind.UNAVAILABLE,
            (
                "address 10.1.0.2 of pool 10.1.0.0/29 is leased to endpoint web"
                " (stop or detach it, or choose another address, or none)"
            ),
        ),
        (
            _address("10.1.0.3"),
            Kind.UNAVAILABLE,
            (
                "address 10.1.0.3 of pool 10.1.0.0/29 is leased to endpoint 0123456789ab"
                " (stop or detach it, or choose another address, or none)"
            ),
        ),
        (
            _address(None),
            Kind.UNAVAILABLE,
            (
                "pool 10.1.0.0/29 has no free address: 6 of 6 are leased"
                " (remove an endpoint, or create the network with a larger subnet)"
            ),
        ),
        (
            _address(None, "local/10.9.0.0/24/10.9.0.8/31"),
            Kind.UNAVAILABLE,
            (
                "range 10.9.0.8/31 of pool 10.9.0.0/24 has no free address: 2 of 2 are leased"
                " (remove an endpoint, or create the network with a larger subnet)"
            ),
        ),
        (
            _address(None, "local/10.7.0.0/24"),
            Kind.NOT_FOUND,
            "pool 'local/10.7.0.0/24' does not exist (request it first)",
        ),
        (
            lambda ipam: ipam.assign("local/10.9.0.0/24/10.9.0.8/31", ip_address("10.9.0.77"), WEB),
            Kind.NOT_FOUND,
            "address 10.9.0.77 of pool 10.9.0.0/24 is not leased",
        ),
        (
            lambda ipam: ipam.bind("local/10.7.0.0/24", "n1"),
            Kind.NOT_FOUND,
            "pool 'local/10.7.0.0/24' does not exist (request it first)",
        ),
    ],
)
async def test_error_names_what_the_user_can_mend(ipam: Allocator, case: Case, kind: Kind, message: str) -> None:
    full = await _pool(ipam, "10.1.0.0/29")
    for owner in (Owner(OwnerKind.GATEWAY), WEB, Owner(OwnerKind.ENDPOINT, "0123456789abcdef"), *[PENDING] * 3):
        await _take(ipam, full, owner=owner)
    ranged = await _pool(ipam, "10.9.0.0/24", "10.9.0.8/31")
    for _ in range(2):
        await _take(ipam, ranged)
    with pytest.raises(IpamError) as caught:
        await case(ipam)
    assert (caught.value.kind, str(caught.value)) == (kind, message)


async def test_unknown_pools_and_addresses_are_released_without_error(ipam: Allocator) -> None:
    pool = await _pool(ipam, "10.1.0.0/24")
    await _take(ipam, pool, "10.1.0.5")
    assert not await ipam.release_pool("local/10.7.0.0/24")
    assert not await ipam.unbind(pool.id, "n1")
    assert not await ipam.release_address("local/10.7.0.0/24", ip_address("10.7.0.1"))
    assert not await ipam.release_address(pool.id, ip_address("10.1.0.6"))
    assert not await ipam.release_address(pool.id, ip_address("::a01:5"))
    assert ipam.lease(pool.id, ip_address("::a01:5")) is None
    assert list(ipam.leases("local/10.7.0.0/24")) == []


async def test_range_of_the_whole_subnet_is_no_range(ipam: Allocator) -> None:
    pool = await _pool(ipam, "10.1.0.0/24", "10.1.0.0/24")
    assert pool.id == "local/10.1.0.0/24"
    assert ipam.pool_of(ip_network("10.1.0.0/24")) == ipam.pool(pool.id) == pool


async def test_static_address_may_lie_outside_the_range(ipam: Allocator) -> None:
    pool = await _pool(ipam, "10.1.0.0/16", "10.1.5.0/24")
    assert pool.id == "local/10.1.0.0/16/10.1.5.0/24"
    await _take(ipam, pool, "10.1.0.1")
    assert await _take(ipam, pool) == ip_address("10.1.5.0")
    usage = ipam.usage(pool.id)
    assert (usage.size, usage.free, usage.leased) == (256, 255, 2)


async def test_each_request_gives_another_subnet_while_earlier_ones_are_held(ipam: Allocator) -> None:
    pools = [await ipam.request_pool("local") for _ in range(3)]
    assert [str(pool.network) for pool in pools] == ["10.208.0.0/24", "10.208.1.0/24", "10.208.2.0/24"]
    await ipam.release_pool(pools[0].id)
    assert str((await ipam.request_pool("local")).network) == "10.208.3.0/24"
    assert (await ipam.request_pool("local", v6=True)).network.subnet_of(ula(b"test"))  # type: ignore[arg-type]
    assert str((await ipam.request_pool("global")).network) == "10.224.0.0/24"


async def test_chosen_subnet_meets_neither_pools_nor_routes(ipam: Allocator) -> None:
    await _pool(ipam, "10.208.0.0/14", space="external")
    routes = ["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "::/0", "10.212.0.0/16", "10.213.0.7/32", "10.0.0.0/24"]
    pool = await ipam.request_pool("local", avoid=[ip_network(route) for route in routes])
    assert str(pool.network) == "10.213.1.0/24"


async def test_released_subnets_are_used_last_and_longest_released_first(store: DictStore) -> None:
    ipam = Allocator(store, [Space("local", (Base(ip_network("10.0.0.0/22"), 24),))])
    pools = [await ipam.request_pool("local") for _ in range(3)]
    for index in (1, 0):
        await ipam.release_pool(pools[index].id)
    assert [str((await ipam.request_pool("local")).network) for _ in range(3)] == [
        "10.0.3.0/24",
        "10.0.1.0/24",
        "10.0.0.0/24",
    ]
    with pytest.raises(IpamError, match=r"address space 'local' has no free IPv4 subnet in 10.0.0.0/22"):
        await ipam.request_pool("local")


async def test_choosing_among_thousands_of_pools_and_routes_looks_at_few(ipam: Allocator) -> None:
    routes: list[IPNetwork] = [*ip_network("10.208.0.0/12").subnets(new_prefix=25)][::4]
    for _ in range(1000):
        await ipam.request_pool("local")
    before = ipam._cutters["local"].steps
    await ipam.request_pool("local", avoid=routes)
    assert ipam._cutters["local"].steps - before <= 2


async def test_external_pools_are_picked_from_the_middle_and_others_where_told(store: DictStore) -> None:
    ipam = Allocator(store, SPACES)
    assert await _take(ipam, await _pool(ipam, "10.1.0.0/24", space="external")) == ip_address("10.1.0.128")
    # 172.18.128.0 would read as a subnet.
    assert await _take(ipam, await _pool(ipam, "172.18.0.0/16", space="external")) == ip_address("172.18.128.1")
    hashed = Allocator(DictStore(), SPACES, start=lambda _: 0.25)
    assert await _take(hashed, await _pool(hashed, "fd00::/64")) == ip_address("fd00::4000:0:0:0")


async def test_pool_kept_by_a_network_outlives_its_release(ipam: Allocator, store: DictStore) -> None:
    pool = await ipam.request_pool("local")
    await ipam.bind(pool.id, "n1")
    await ipam.bind(pool.id, "n1")
    await _take(ipam, pool)
    assert await ipam.release_pool(pool.id)
    assert not await ipam.release_pool(pool.id)
    assert ipam.pool(pool.id) == Pool("local", pool.network, None, 0, ("n1",))
    assert await ipam.unbind(pool.id, "n1")
    assert (ipam.pools(), store.pools, store.leases) == ((), {}, {})


async def test_replay_takes_holds_and_leases_again_once(ipam: Allocator, store: DictStore) -> None:
    pool = await _pool(ipam, "10.1.0.0/24")
    gateway = await _take(ipam, pool, owner=Owner(OwnerKind.GATEWAY))
    forgotten = await _pool(ipam, "10.2.0.0/24")
    ipam = Allocator(store, SPACES)
    await ipam.load()
    ipam.begin_session()
    assert (await _pool(ipam, "10.1.0.0/24")).holds == 1
    again = await ipam.request_address(pool.id, address=gateway, owner=PENDING, mac="m")
    assert (again.owner.kind, again.mac) == (OwnerKind.GATEWAY, "")
    with pytest.raises(IpamError, match="leased to gateway"):
        await _take(ipam, pool, str(gateway))
    assert ipam.unreplayed() == (forgotten,)
    assert (await _pool(ipam, "10.1.0.0/24")).holds == 2


async def test_pools_that_docker_has_but_did_not_replay_are_kept_for_its_restart(ipam: Allocator) -> None:
    """dockerd activates a managed plugin that is enabled, too, and replays nothing then."""
    pool = await _pool(ipam, "10.1.0.0/24")
    gateway = await _take(ipam, pool, owner=Owner(OwnerKind.GATEWAY))
    lost = await _pool(ipam, "10.2.0.0/24")
    ipam.begin_session()
    await ipam.end_session({pool.network})
    assert (ipam.pools(), ipam.unreplayed()) == ((pool,), ())
    assert lost not in ipam.pools()
    with pytest.raises(IpamError, match="leased to gateway"):
        await _take(ipam, pool, str(gateway))
    ipam.begin_session()
    assert (await _pool(ipam, "10.1.0.0/24")).holds == 1
    assert (await ipam.request_address(pool.id, address=gateway, owner=PENDING)).owner.kind is OwnerKind.GATEWAY


async def test_released_hold_is_not_taken_again(ipam: Allocator) -> None:
    pool = await _pool(ipam, "10.1.0.0/24")
    await ipam.bind(pool.id, "n1")
    ipam.begin_session()
    await ipam.release_pool(pool.id)
    assert (await _pool(ipam, "10.1.0.0/24")).holds == 1


async def test_replay_does_not_confirm_leases_of_pools_that_docker_never_requested(ipam: Allocator) -> None:
    pool = await _pool(ipam, "10.1.0.0/24")
    await ipam.bind(pool.id, "n1")
    await ipam.release_pool(pool.id)
    address = await _take(ipam, pool, owner=WEB)
    ipam.begin_session()
    with pytest.raises(IpamError, match="leased to endpoint web"):
        await _take(ipam, pool, str(address))


async def test_lease_with_a_new_owner_is_not_confirmed_to_another(ipam: Allocator) -> None:
    pool = await _pool(ipam, "10.1.0.0/24")
    address = await _take(ipam, pool)
    ipam.begin_session()
    await ipam.assign(pool.id, address, WEB)
    with pytest.raises(IpamError, match="leased to endpoint web"):
        await _take(ipam, pool, str(address))


async def test_address_released_after_a_restart_is_not_confirmed(ipam: Allocator) -> None:
    pool = await _pool(ipam, "10.1.0.0/24")
    address = await _take(ipam, pool)
    ipam.begin_session()
    await ipam.release_address(pool.id, address)
    lease = await ipam.request_address(pool.id, address=address, owner=WEB)
    assert lease.owner == WEB


async def test_leases_without_a_pool_are_dropped_at_load(ipam: Allocator, store: DictStore) -> None:
    pool = await _pool(ipam, "10.1.0.0/24")
    await _take(ipam, pool)
    store.pools.clear()
    ipam = Allocator(store, SPACES)
    await ipam.load()
    assert store.leases == {}
