"""Who attaches is reached by address and name from all other hosts when that returns; and waits for nobody in vain."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from clustered import Hosts, address_of, attach, create, detach, has, reached
from etcd_server import Member, needs_etcd
from living import Living, until

from netplug.cluster import barrier
from netplug.daemon.life import Daemon

pytestmark = needs_etcd

PATIENCE_S = 2.5
"""Longer than the daemon's own: on a busy machine all else takes some tenths of a second."""
QUICK_S = PATIENCE_S * 0.8
"""Less than a wait in vain takes."""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(barrier, "PATIENCE_S", PATIENCE_S)


def named(host: Living, name: str) -> list[str]:
    """Return what a container of a host finds for a name, asked once."""
    body = {"name": name, "type": "A", "networks": ["blue"]}
    return [one["data"] for one in host.client.post("dns", "query", body=body)["answers"]]


def timed(host: Living, netns: str = "lab1", **body: object) -> tuple[str, float]:
    started = time.monotonic()
    made = attach(host, netns, **body)
    return address_of(made), time.monotonic() - started


def knows(host: Living, count: int = 2) -> None:
    """Let a host learn how many live, itself too: for others it does not wait."""

    def living(daemon: Daemon) -> int:
        assert daemon.cluster
        return sum(map(daemon.cluster.view.alive, daemon.cluster.view.hosts()))

    until(lambda: host.do_and_get(living) == count, f"{count} live")


def late(host: Living) -> list[str]:
    """Return whom a host does not wait for although he lives."""

    def found(daemon: Daemon) -> list[str]:
        assert daemon.cluster
        return list(daemon.cluster.barrier._late)

    return host.do_and_get(found)


def test_attached_is_reached_by_address_and_name_at_once(hosts: Hosts) -> None:
    living = [hosts.start(number) for number in (1, 2, 3)]
    create(living[0])
    for host in living:
        has(host)
        knows(host, 3)
    for turn in range(5):
        for number, here in enumerate(living, 1):
            address, _ = timed(here, f"lab{turn}", name=f"web{turn}-{number}")
            for other in living:
                if other is not here:  # asked once, and at once
                    assert f"{address} at 192.0.2.{number}" in reached(other)
                    assert named(other, f"web{turn}-{number}") == [address]


def test_two_that_attach_at_once_do_not_wait_for_each_other_in_vain(hosts: Hosts) -> None:
    one, two = hosts.start(1), hosts.start(2)
    create(one)
    has(two)
    knows(one)
    knows(two)
    for turn in range(5):
        found = both(one, two, f"lab{turn}")
        assert max(took for _, took in found) < QUICK_S
        assert f"{found[0][0]} at 192.0.2.1" in reached(two)
        assert f"{found[1][0]} at 192.0.2.2" in reached(one)


def both(one: Living, two: Living, netns: str) -> list[tuple[str, float]]:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda host: timed(host, netns), (one, two)))


def test_alone_nobody_is_waited_for(hosts: Hosts) -> None:
    one, two = hosts.start(1), hosts.start(2)
    create(one)
    has(two)
    two.stop()
    knows(one, 1)
    _, took = timed(one)
    assert took < QUICK_S
    assert late(one) == []


def test_who_does_not_confirm_costs_once_until_he_does(hosts: Hosts) -> None:
    one, two = hosts.start(1), hosts.start(2)
    create(one)
    has(two)
    knows(one)
    with two.held():
        _, first = timed(one, "lab1")
        assert PATIENCE_S <= first < PATIENCE_S * 4
        _, second = timed(one, "lab2")
        assert second < QUICK_S
    until(lambda: not late(one), "it has confirmed")
    address, third = timed(one, "lab3")
    assert third < QUICK_S
    assert f"{address} at 192.0.2.1" in reached(two)


def test_confirmations_go_with_who_gave_them(hosts: Hosts, etcd: Member) -> None:
    one, two = hosts.start(1), hosts.start(2)
    create(one)
    has(two)
    knows(one)
    attach(one)
    assert len(etcd.records("confirmed/")) == 1
    detach(one)
    two.stop()
    assert etcd.records("confirmed/") == {}


def test_nonsense_confirms_nothing(hosts: Hosts, etcd: Member) -> None:
    one, two = hosts.start(1), hosts.start(2)
    create(one)
    has(two)
    knows(one)
    attach(one)
    (key,) = etcd.records("confirmed/")
    for value in ({"revision": "all"}, {}, ["revision"]):
        etcd.write(key, value)
    address, took = timed(one, "lab2")
    assert took < QUICK_S
    assert f"{address} at 192.0.2.1" in reached(two)
