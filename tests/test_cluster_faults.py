"""What a cluster outlives: a store that is away, hangs, forgets or lies, and hosts that are forgotten.

Each test ends with hosts whose kernels agree with their records, and a store that has what they have.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from clustered import Hosts, address_of, apart, attach, create, detach, has, networks, reached, reaches
from etcd_server import Member, needs_etcd
from living import Living, until

from netplug.cli import UNREACHABLE, CliError
from netplug.cluster import claims

pytestmark = [needs_etcd, pytest.mark.own_etcd]

FAST_S = 3.0
"""A refusal must come before whoever asks gives up: dockerd waits 15 s for a plugin."""


@pytest.fixture
def two(hosts: Hosts, etcd: Member) -> Iterator[tuple[Living, Living]]:
    """Two hosts with a network; at the end store, records and kernels tell one story."""
    one, other = hosts.start(1), hosts.start(2)
    create(one, subnets=apart())
    has(other)
    yield one, other
    for host in hosts.living:
        until(lambda host=host: host.client.get("diff")["differences"] == [], "no difference")  # type: ignore[misc]
    until(lambda: told(etcd) == endpoints(hosts), "the store has the endpoints that there are")
    until(lambda: claimed(etcd) == leased(hosts), "the store has the addresses that there are")
    for host in hosts.living:
        mine = {f"192.0.2.{host.settings.vtep[-1]}"}
        reaches(host, *(where for where in everything(hosts) if where.rpartition(" ")[2] not in mine))


def own(host: Living) -> list[Any]:
    return [it for it in host.client.get("endpoints")["endpoints"] if it["host"] == host.settings.host_name]


def endpoints(hosts: Hosts) -> set[str]:
    return {one["mac"] for host in hosts.living for one in own(host)}


def everything(hosts: Hosts) -> set[str]:
    return {
        f"{one['addresses'][0].partition('/')[0]} at {host.settings.vtep}" for host in hosts.living for one in own(host)
    }


def told(etcd: Member) -> set[str]:
    return {value["mac"] for value in etcd.records("cluster/endpoints/").values()}


def claimed(etcd: Member) -> set[str]:
    return {value["address"] for value in etcd.records("ipam/leases/").values() if value["owner"]["kind"] == "endpoint"}


def leased(hosts: Hosts) -> set[str]:
    return {where.partition(" ")[0] for where in everything(hosts)}


def refusal(work: Callable[[], Any]) -> CliError:
    started = time.monotonic()
    with pytest.raises(CliError) as caught:
        work()
    assert time.monotonic() - started < FAST_S
    return caught.value


@contextmanager
def away(etcd: Member) -> Iterator[None]:
    """Nobody listens any more; then there it is again, with its data."""
    etcd.stop()
    yield
    etcd.start()


@contextmanager
def hung(etcd: Member) -> Iterator[None]:
    etcd.pause()
    try:
        yield
    finally:
        etcd.resume()


@pytest.mark.parametrize("fault", [away, hung])
def test_without_the_store_all_goes_on_and_detaching_is_told_later(
    two: tuple[Living, Living], etcd: Member, fault: Callable[[Member], Any]
) -> None:
    """Hard cases 3 and 4."""
    one, other = two
    here, there = attach(one), attach(other)
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    with fault(etcd):
        until(lambda: "does not answer" in str(refusal_of(lambda: attach(one, "lab2"))), "it notices")
        error = refusal(lambda: attach(one, "lab2"))
        assert error.code == UNREACHABLE
        assert "store: the shared store does not answer" in str(error)
        assert reached(one) == {f"{address_of(there)} at 192.0.2.2"}
        # Its own networks are nobody else's business.
        one.client.post("networks", body={"name": "own"})
        attach(one, "lab3", "own")
        detach(one, "lab3", "own")
        one.client.delete("networks", "own")
        started = time.monotonic()
        detach(one)
        assert time.monotonic() - started < FAST_S
        assert reached(other) == {f"{address_of(here)} at 192.0.2.1"}
    reaches(other)
    assert address_of(attach(one, "lab2"))


def refusal_of(work: Callable[[], Any]) -> object:
    try:
        work()
    except CliError as exc:
        return exc
    return None


def test_a_start_without_the_store_keeps_what_the_kernel_has(
    two: tuple[Living, Living], hosts: Hosts, etcd: Member
) -> None:
    """Hard case 3: the daemon is restarted meanwhile."""
    one, other = two
    attach(one)
    there = attach(other)
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    one.stop()
    with away(etcd):
        one = hosts.start(1)
        assert networks(one) == ["blue"]
        assert reached(one) == {f"{address_of(there)} at 192.0.2.2"}
        assert one.client.get("diff")["differences"] == []
        detach(one)
    reaches(other)
    reaches(one, f"{address_of(there)} at 192.0.2.2")


@pytest.mark.parametrize("fault", [away, hung])
def test_claims_of_a_new_daemon_wait_for_the_first_answer(
    two: tuple[Living, Living], hosts: Hosts, etcd: Member, fault: Callable[[Member], Any]
) -> None:
    """After a power failure hosts and etcd start together, and nobody starts a container again that was refused."""
    two[0].stop()
    with ThreadPoolExecutor() as pool:
        with fault(etcd):
            one = hosts.start(1)
            waiting = [pool.submit(attach, one), pool.submit(create, one, "late")]
            one.client.post("networks", body={"name": "own"})
            attach(one, "lab3", "own")
            assert networks(one) == ["blue", "own"]
            detach(one, "lab3", "own")
            assert not any(it.done() for it in waiting)
        reaches(two[1], f"{address_of(waiting[0].result())} at 192.0.2.1")
        assert waiting[1].result()["name"] == "late"


def test_claims_that_wait_for_the_first_answer_are_refused_in_the_end(
    two: tuple[Living, Living], hosts: Hosts, etcd: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the time is over, or the daemon stops."""
    two[0].stop()
    with ThreadPoolExecutor() as pool, away(etcd):
        one = hosts.start(1)
        waiting = pool.submit(refusal_of, lambda: attach(one))
        until(lambda: one.client.get("version"), "it is not held up")
        assert not waiting.done()
        began = time.monotonic()
        one.stop()
        assert time.monotonic() - began < FAST_S
        assert isinstance(waiting.result(), CliError)
        monkeypatch.setattr(claims, "FIRST_ANSWER_S", 0.2)
        one = hosts.start(1)
        assert "does not answer" in str(refusal_of(lambda: attach(one)))
        one.stop()


def test_a_store_that_lost_its_data_is_told_again(two: tuple[Living, Living], etcd: Member) -> None:
    """Hard case 18: no endpoint is touched, and what there was is there again."""
    one, other = two
    here, there = attach(one), attach(other)
    create(other, "idle")
    has(one, "idle")
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    before = [sorted(host.kernel.dump().splitlines()) for host in two]
    etcd.wipe()
    etcd.start()
    until(lambda: told(etcd) == {here["mac"], there["mac"]}, "both are told of again")
    until(lambda: claimed(etcd) == {address_of(here), address_of(there)}, "both addresses are claimed again")
    until(lambda: len(etcd.records("cluster/networks/")) == 2, "both networks are defined again")
    for host in two:
        until(lambda host=host: sorted(networks(host)) == ["blue", "idle"], "both networks")  # type: ignore[misc]
    for host, lines in zip(two, before, strict=True):
        assert sorted(host.kernel.dump().splitlines()) == lines
    # What a host says meanwhile counts: an address that goes is another host's the next moment.
    detach(other)
    moved = attach(one, "lab3", addresses=[address_of(there)])
    until(lambda: reached(one) == set(), "it is here")
    until(lambda: f"{address_of(moved)} at 192.0.2.1" in reached(other), "it is there")
    third = attach(other, "lab2")
    reaches(one, f"{address_of(third)} at 192.0.2.2")


def test_deleting_all_keys_is_the_same(two: tuple[Living, Living], etcd: Member) -> None:
    one, other = two
    here = attach(one)
    reaches(other, f"{address_of(here)} at 192.0.2.1")
    etcd.empty()
    until(lambda: told(etcd) == {here["mac"]}, "it is told of again")
    reaches(other, f"{address_of(here)} at 192.0.2.1")


def test_what_was_compacted_during_an_absence_is_read_anew(
    two: tuple[Living, Living], hosts: Hosts, etcd: Member
) -> None:
    """Hard case 5."""
    one, other = two
    attach(one)
    attach(other)
    with away(etcd):
        pass
    for _ in range(3):
        attach(other, "lab2")
        detach(other, "lab2")
    etcd.compact()
    last = attach(other, "lab3")
    until(lambda: f"{address_of(last)} at 192.0.2.2" in reached(one), "it is reached")


def test_poisoned_records_are_ignored_and_keep_no_other_out(two: tuple[Living, Living], etcd: Member) -> None:
    """Hard case 23."""
    one, other = two
    there = attach(other)
    (key,) = etcd.records("cluster/endpoints/")
    network, host, _ = key.removeprefix("cluster/endpoints/").split("/")
    good = {"mac": "02:6e:0a:00:00:09", "addresses": ["10.224.0.9"]}
    poison: dict[str, object] = {
        f"cluster/endpoints/{network}/{host}/multicast": {**good, "mac": "01:00:5e:00:00:01"},
        f"cluster/endpoints/{network}/{host}/outside": {**good, "addresses": ["192.168.1.1"]},
        f"cluster/endpoints/{network}/{host}/gateway": {**good, "addresses": ["10.224.0.1"]},
        f"cluster/endpoints/{network}/{host}/form": {"mac": 7},
        f"cluster/endpoints/{network}/{host}/list": ["mac"],
        f"cluster/endpoints/{network}/nobody/unknown": good,
        f"cluster/endpoints/{network}/loopback/one": good,
        f"cluster/endpoints/{network}/{host}/../etc": good,
        "cluster/endpoints/nonsense": good,
        "cluster/hosts/loopback": {"name": "x", "vtep": "127.0.0.1", "epoch": 1},
        "cluster/hosts/form": {"vtep": "nowhere"},
        "cluster/networks/form": {"name": 7},
    }
    for name, value in poison.items():
        etcd.write(name, value)
    last = attach(other, "lab2")
    reaches(one, f"{address_of(there)} at 192.0.2.2", f"{address_of(last)} at 192.0.2.2")
    for name in poison:
        etcd.delete(name)


@pytest.mark.parametrize("deleted", [True, False])
def test_why_nobody_can_join_is_said_as_it_is(two: tuple[Living, Living], etcd: Member, *, deleted: bool) -> None:
    one, _ = two

    async def nothing() -> None:
        return

    for host in two:  # so that it stays so for a moment
        host.do_and_get(lambda daemon: setattr(daemon.cluster.mirroring, "mirror", nothing))
    ((key, value),) = etcd.records("cluster/networks/").items()
    (deleter,) = (name for name, host in etcd.records("cluster/hosts/").items() if host["name"] == "host-2")
    if deleted:
        etcd.delete(key)
    else:
        etcd.write(key, {**value, "deleting": True, "deleter": deleter.rpartition("/")[2]})
    words = "was deleted from the shared store" if deleted else "is being deleted by host host-2"
    with pytest.raises(CliError, match=f"network 'blue' {words}"):
        attach(one)
    etcd.write(key, value)
    for host in two:
        host.do_and_get(lambda daemon: delattr(daemon.cluster.mirroring, "mirror"))
    attach(one)


def test_what_a_later_version_adds_to_a_record_is_passed_over(two: tuple[Living, Living], etcd: Member) -> None:
    """Hard case 22."""
    one, other = two
    there = attach(other)
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    for key, value in etcd.records("cluster/").items():
        if key.startswith(("cluster/endpoints/", "cluster/hosts/", "cluster/networks/")):
            etcd.write(key, {**value, "colour": "green"})
    last = attach(other, "lab2")
    reaches(one, f"{address_of(there)} at 192.0.2.2", f"{address_of(last)} at 192.0.2.2")


def test_an_address_that_goes_to_another_host_is_reached_there(two: tuple[Living, Living]) -> None:
    """Hard case 9: address and MAC are the same, and nothing but the VTEP changes."""
    one, other = two
    attach(one, "lab1")
    for _ in range(3):
        attach(one, "lab2", addresses=["10.224.0.50"])
        until(lambda: "10.224.0.50 at 192.0.2.1" in reached(other), "it is at the first host")
        detach(one, "lab2")
        attach(other, "lab2", addresses=["10.224.0.50"])
        until(lambda: "10.224.0.50 at 192.0.2.2" in reached(one), "it is at the other host")
        detach(other, "lab2")


def test_an_address_that_is_had_elsewhere_is_refused(two: tuple[Living, Living]) -> None:
    one, other = two
    attach(one, addresses=["10.224.0.50"])
    with pytest.raises(CliError, match=r"address 10\.224\.0\.50 of pool 10\.224\.0\.0/24 is leased on another host"):
        attach(other, addresses=["10.224.0.50"])


def test_a_host_that_was_forgotten_comes_back(two: tuple[Living, Living], hosts: Hosts, etcd: Member) -> None:
    """Hard case 16: somebody deletes all that a host has told, while its daemon lives."""
    one, other = two
    here = attach(one)
    reaches(other, f"{address_of(here)} at 192.0.2.1")
    (host,) = (key for key, value in etcd.records("cluster/hosts/").items() if value["name"] == "host-1")
    for key in [*etcd.records("cluster/endpoints/"), host]:
        etcd.delete(key)
    reaches(other)
    hosts.look_again(one)
    reaches(other, f"{address_of(here)} at 192.0.2.1")


def test_claims_that_nobody_has_end_with_the_next_look(two: tuple[Living, Living], hosts: Hosts, etcd: Member) -> None:
    """Hard case 8: a daemon died between its claim and its own record."""
    one, _ = two
    attach(one)
    (key,) = (key for key, value in etcd.records("ipam/leases/").items() if value["owner"]["kind"] == "endpoint")
    left = {**etcd.records("ipam/leases/")[key], "address": "10.224.0.77"}
    etcd.write(f"{key.rpartition('/')[0]}/10.224.0.77", left)
    assert "10.224.0.77" in claimed(etcd)
    hosts.look_again(one)
    until(lambda: "10.224.0.77" not in claimed(etcd), "it is free again")


def test_a_dead_endpoint_of_the_store_makes_no_difference(hosts: Hosts, etcd: Member) -> None:
    """Hard case 17."""
    hosts.store = f"etcd://127.0.0.1:1,{etcd.host}"
    one, other = hosts.start(1), hosts.start(2)
    create(one)
    has(other)
    here = attach(one)
    reaches(other, f"{address_of(here)} at 192.0.2.1")
