"""The pure parts: pools, subnets, the picker, the cutter, spaces; and all doctests of ipam."""

import doctest
import importlib
import tracemalloc
from collections.abc import Callable
from ipaddress import IPv4Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

import netplug.ipam.address_allocator
import netplug.ipam.subnet_allocator
from netplug.drivers.codec import decode, encode
from netplug.ipam.address_allocator import AddressAllocator
from netplug.ipam.errors import IpamError, Kind
from netplug.ipam.lease import Lease, Owner, OwnerKind
from netplug.ipam.ledger import Ledger
from netplug.ipam.pool import Base, IPNetwork, Pool, parse_network
from netplug.ipam.spaces import default_spaces, ula
from netplug.ipam.subnet_allocator import SubnetAllocator
from netplug.ipam.subnets import Subnets

MODULES = (
    "allocator",
    "subnet_allocator",
    "errors",
    "lease",
    "ledger",
    "address_allocator",
    "pool",
    "spaces",
    "store",
    "subnets",
)
V4 = st.builds(
    lambda number, length: IPv4Network((number >> (32 - length) << (32 - length), length)),
    st.integers(0x0A000000, 0x0A0000FF),
    st.integers(20, 32),
)


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_hold(module: str) -> None:
    assert doctest.testmod(importlib.import_module(f"netplug.ipam.{module}")).failed == 0


@pytest.mark.parametrize(
    ("network", "part", "first", "last", "size"),
    [
        ("10.1.0.0/24", None, "10.1.0.1", "10.1.0.254", 254),
        ("10.1.0.0/30", None, "10.1.0.1", "10.1.0.2", 2),
        ("10.1.0.0/31", None, "10.1.0.0", "10.1.0.1", 2),
        ("10.1.0.0/32", None, "10.1.0.0", "10.1.0.0", 1),
        ("10.1.0.0/24", "10.1.0.0/29", "10.1.0.1", "10.1.0.7", 7),
        ("10.1.0.0/24", "10.1.0.64/29", "10.1.0.64", "10.1.0.71", 8),
        ("10.1.0.0/24", "10.1.0.248/29", "10.1.0.248", "10.1.0.254", 7),
        ("10.1.0.0/24", "10.1.0.0/32", None, None, 0),
        ("fd00::/64", None, "fd00::1", "fd00::ffff:ffff:ffff:ffff", 2**64 - 1),
        ("fd00::/126", None, "fd00::1", "fd00::3", 3),
        ("fd00::/127", None, "fd00::", "fd00::1", 2),
        ("fd00::/128", None, "fd00::", "fd00::", 1),
    ],
)
def test_addresses_with_a_meaning_of_their_own_are_never_picked(
    network: str, part: str | None, first: str | None, last: str | None, size: int
) -> None:
    ledger = Ledger(Pool("local", ip_network(network), ip_network(part) if part else None), 0.0)
    assert ledger.usage().size == size
    number = ledger.picker.pick()
    assert (ledger.pool.address(number) if number is not None else None) == (first and ip_address(first))
    if last is not None:
        assert ledger.pool.address(ledger.pool.window[1]) == ip_address(last)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.1.0.5/16", "subnet 10.1.0.5/16 has host bits set (did you mean 10.1.0.0/16?)"),
        ("fd00::1/64", "subnet fd00::1/64 has host bits set (did you mean fd00::/64?)"),
        ("blue", "subnet 'blue' is not an address range (write it as 10.1.0.0/16 or fd00:1::/64)"),
        ("10.1.0.0/33", "subnet '10.1.0.0/33' is not an address range (write it as"),
    ],
)
def test_networks_that_cannot_be_read_are_named(text: str, message: str) -> None:
    with pytest.raises(IpamError) as caught:
        parse_network(text)
    assert caught.value.kind is Kind.INVALID
    assert str(caught.value).startswith(message)


def test_base_that_cannot_be_cut_so_is_refused() -> None:
    with pytest.raises(IpamError, match=r"base 10.0.0.0/16 cannot be divided into /8") as caught:
        Base(ip_network("10.0.0.0/16"), 8)
    assert caught.value.hint == "choose a size from 16 to 32"


@pytest.mark.parametrize(
    "record",
    [
        Pool("local", ip_network("10.1.0.0/24"), ip_network("10.1.0.0/25"), 2, ("n1", "n2")),
        Pool("global", ip_network("fd00::/64")),
        Lease("local/x", ip_address("10.1.0.7"), Owner(OwnerKind.ENDPOINT, "e1", "web"), "02:42:00:00:00:01"),
        Lease("local/x", ip_address("fd00::7"), Owner(OwnerKind.PENDING)),
    ],
)
def test_records_survive_the_codec(record: Pool | Lease) -> None:
    assert decode(type(record), encode(record)) == record


def test_spaces_of_two_seeds_differ_and_the_halves_do_not_meet() -> None:
    assert ula(b"a") != ula(b"b")
    assert ula(b"a").subnet_of(ip_network("fd00::/8"))  # type: ignore[arg-type]
    local, cluster, external = default_spaces(ula(b"a"))
    for one in local.bases:
        assert not any(one.network.overlaps(other.network) for other in cluster.bases)
    assert external.bases == ()


@given(st.lists(V4), st.lists(V4), V4)
def test_overlap_is_found_as_by_comparing_with_all(
    kept: list[IPv4Network], removed: list[IPv4Network], wanted: IPv4Network
) -> None:
    subnets = Subnets(4, kept[::2])
    for network in [*kept[1::2], *removed]:
        subnets.add(network)
    for network in removed:
        subnets.remove(network)
    others = [network for network in set(kept) - set(removed) if network.overlaps(wanted)]
    found = subnets.overlap(wanted)
    assert found in others if others else found is None


def _lease_some(network: str, count: int, churn: int) -> int:
    """Return the bytes that a pool with these leases takes, after some have come and gone."""
    owner = Owner(OwnerKind.PENDING)
    tracemalloc.start()
    try:
        ledger = Ledger(Pool("local", ip_network(network)), 0.0)
        leases = []
        for _ in range(count):
            number = ledger.picker.pick()
            assert number is not None
            leases.append(Lease("p", ledger.pool.address(number), owner))
            ledger.settle(leases[-1])
        for _ in range(churn):
            ledger.release(leases.pop(0).address)
            number = ledger.picker.pick()
            assert number is not None
            leases.append(Lease("p", ledger.pool.address(number), owner))
            ledger.settle(leases[-1])
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("network", ["10.0.0.0/8", "fd00::/64", "::/0"])
def test_large_pool_takes_no_more_memory_than_a_small_one_with_the_same_leases(network: str) -> None:
    small, large = _lease_some("10.1.0.0/24", 200, 54), _lease_some(network, 200, 54)
    assert large < small * 1.3


def test_released_addresses_are_remembered_in_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netplug.ipam.address_allocator, "REMEMBERED", 16)
    picker = AddressAllocator(0, 2**64 - 1)
    for _ in range(1000):
        number = picker.pick()
        assert number is not None
        picker.release(number)
    assert len(picker._released) == 16


@given(st.lists(st.booleans(), max_size=200), st.integers(0, 3), st.sampled_from([0.0, 0.5, 0.99]))
def test_forgotten_addresses_are_found_again(moves: list[bool], remembered: int, start: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(netplug.ipam.address_allocator, "REMEMBERED", remembered)
        picker = AddressAllocator(10, 21, start)
        taken: list[int] = []
        for take in moves:
            if take:
                number = picker.pick()
                assert (number is None) == (len(taken) == 12)
                if number is not None:
                    assert number not in taken
                    assert 10 <= number <= 21
                    taken.append(number)
            elif taken:
                picker.release(taken.pop(0))
            assert picker.taken == len(taken)


@pytest.mark.parametrize("release", [lambda taken: taken.pop(0), lambda taken: taken.pop()])
def test_pick_and_release_take_the_same_steps_however_many_leases_there_are(
    release: Callable[[list[int]], int],
) -> None:
    picker = AddressAllocator(1, 40_000)
    taken = []
    for _ in range(39_990):
        number = picker.pick()
        assert number is not None
        taken.append(number)
    for _ in range(20_000):
        picker.release(release(taken))
        number = picker.pick()
        assert number is not None
        taken.append(number)
    assert picker.steps <= 40_000  # each number once; the released ones need none


def test_static_addresses_are_passed_over_once() -> None:
    picker = AddressAllocator(1, 2**20)
    for number in range(1, 5001):
        picker.take(number)
    assert [picker.pick() for _ in range(3)] == [5001, 5002, 5003]
    assert picker.steps == 5003


def test_longest_released_address_is_picked_first() -> None:
    picker = AddressAllocator(1, 4)
    for _ in range(4):
        picker.pick()
    for number in (3, 1, 4):
        picker.release(number)
    assert [picker.pick() for _ in range(4)] == [3, 1, 4, None]


def test_subnet_released_ahead_of_the_cursor_is_cut_last_and_again_last_when_it_was_used_again() -> None:
    one, two, three = (ip_network(f"10.0.0.{number}/32") for number in (1, 2, 3))
    cutter = SubnetAllocator([Base(ip_network("10.0.0.0/30"), 32)])
    taken = set()

    def cut() -> IPNetwork:
        network = cutter.cut(4, lambda network: network if network in taken else None)
        assert network is not None
        cutter.take(network)
        taken.add(network)
        return network

    cutter.release(three)
    cutter.release(one)
    assert [cut() for _ in range(4)] == [ip_network("10.0.0.0/32"), two, three, one]
    for network in (one, three):
        taken.remove(network)
        cutter.release(network)
    assert [cut(), cut()] == [one, three]


def test_released_address_that_was_taken_again_is_not_picked() -> None:
    picker = AddressAllocator(1, 3)
    for _ in range(3):
        picker.pick()
    for number in (1, 2):
        picker.release(number)
    picker.take(1)
    assert [picker.pick() for _ in range(2)] == [2, None]


def test_picking_starts_where_told_and_goes_round() -> None:
    picker = AddressAllocator(1, 4, 0.5)
    assert [picker.pick() for _ in range(5)] == [3, 4, 1, 2, None]


def test_number_outside_the_window_makes_no_difference() -> None:
    picker = AddressAllocator(5, 6)
    picker.take(4)
    picker.take(7)
    picker.release(4)
    assert picker.taken == 0
    assert [picker.pick() for _ in range(3)] == [5, 6, None]


def _blocker(*blocked: str) -> Callable[[IPNetwork], IPNetwork | None]:
    return Subnets(4, [ip_network(text) for text in blocked]).overlap


def test_wide_obstacle_is_stepped_over_at_once() -> None:
    cutter = SubnetAllocator([Base(ip_network("10.0.0.0/8"), 30)])
    assert cutter.cut(4, _blocker("10.0.0.0/9", "10.128.0.0/10")) == ip_network("10.192.0.0/30")
    assert cutter.steps == 3


def test_bases_are_used_in_their_order_and_by_family() -> None:
    bases = [
        Base(ip_network("10.0.0.0/31"), 32),
        Base(ip_network("fd00::/64"), 64),
        Base(ip_network("10.9.0.0/32"), 32),
    ]
    cutter = SubnetAllocator(bases)
    free = _blocker()
    assert [str(cutter.cut(4, free)) for _ in range(3)] == ["10.0.0.0/32", "10.0.0.1/32", "10.9.0.0/32"]
    assert cutter.cut(6, free) == ip_network("fd00::/64")


def test_subnet_that_was_blocked_when_passed_is_found_later() -> None:
    cutter = SubnetAllocator([Base(ip_network("10.0.0.0/30"), 31)])
    assert cutter.cut(4, _blocker("10.0.0.0/30")) is None
    assert cutter.cut(4, _blocker("10.0.0.0/31")) == ip_network("10.0.0.2/31")


def test_released_subnets_are_remembered_in_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netplug.ipam.subnet_allocator, "REMEMBERED", 2)
    cutter = SubnetAllocator([Base(ip_network("fd00::/16"), 64)])
    for _ in range(10):
        network = cutter.cut(6, lambda _: None)
        assert network is not None
        cutter.release(network)
    assert len(cutter._released) == 2
