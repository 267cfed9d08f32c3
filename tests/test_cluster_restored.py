"""The store is given a backup of yesterday while hosts run: what runs wins, and nobody in it is touched."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from clustered import Hosts, address_of, attach, create, detach, has, networks, reached
from etcd_server import Member, needs_etcd
from living import Living, until

from netplug.cli import CliError
from netplug.cluster import cluster, recovery
from netplug.daemon.life import Daemon
from netplug.engine.records import FrontEnd
from netplug.store.api import Restored
from netplug.store.restore_guard import MARKS, RestoreGuard

pytestmark = [needs_etcd, pytest.mark.own_etcd]

PASSED = 300
"""Writes of others that bring the revision past all that hosts have seen."""


class Log:
    """What hosts log of the cluster, with its keys."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, _: str) -> Any:
        return lambda event, **keys: self.said.append((event, keys))

    def count(self, event: str) -> int:
        return sum(1 for said, _ in self.said if said == event)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    it = Log()
    monkeypatch.setattr(recovery, "log", it)
    monkeypatch.setattr(cluster, "log", it)
    return it


def told(etcd: Member) -> set[str]:
    return {value["mac"] for value in etcd.records("cluster/endpoints/").values()}


def addresses(*members: Living) -> list[str]:
    return [
        address_of(one)
        for host in members
        for one in host.client.get("endpoints")["endpoints"]
        if one["host"] == host.settings.host_name
    ]


def marked(etcd: Member, *members: Living) -> None:
    """Wait until the marks cover what was done, and hosts saw them: what a backup lacks is noticed from then on.

    A mark that is on its way to the store is none yet: on a busy machine the store would end before it has it.
    """

    def settled() -> bool:
        stored = etcd.records("cluster/marks/")
        newest = {mark_of(host, stored) for host in members}
        return len(newest) == 1 and None not in newest

    def mark_of(host: Living, stored: dict[str, Any]) -> object:
        guard = host.do_and_get(lambda daemon: daemon.cluster._guard)
        count, waiting, seen = host.do_and_get(lambda _: (guard._count, guard._changed.is_set(), guard.seen))
        written = int(stored.get(guard._key, {"count": 0})["count"])
        return seen[:2] if seen and not waiting and count == written else None

    until(settled, "all is marked")


@contextmanager
def unchanged(*members: Living) -> Iterator[None]:
    """Nothing changes in the kernels of hosts, not even for a moment."""
    before = [frozenset(host.kernel.dump().splitlines()) for host in members]
    seen: list[str] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for host, lines in zip(members, before, strict=True):
                if gone := lines - frozenset(host.kernel.dump().splitlines()):
                    seen.extend(gone)
            over.wait(0.002)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(look)
        try:
            yield
        finally:
            over.set()
            watching.result()
    assert seen == []


@pytest.mark.parametrize("writes", [0, PASSED])
def test_what_runs_wins_over_a_backup(hosts: Hosts, etcd: Member, tmp_path: Path, log: Log, writes: int) -> None:
    one, other = hosts.start(1), hosts.start(2)
    create(one, subnets=[{"subnet": "10.90.0.0/28"}])
    create(other, "ended")
    has(one, "ended")
    has(other)
    attach(one, "early")
    attach(one, "leaving", "blue")
    etcd.save(tmp_path / "yesterday")
    # What is done since then is what the backup lacks.
    detach(one, "leaving")
    one.client.delete("networks", "ended")
    create(one, "empty")
    create(other, "late")
    has(one, "late")
    has(other, "empty")
    for host in (one, other):
        for n in range(3):
            attach(host, f"lab{n}")
    attach(other, "lab9", "late")
    until(lambda: len(reached(one)) == 4, "all is known")
    until(lambda: len(reached(other)) == 4, "all is known")
    until(lambda: "ended" not in networks(other), "it has ended")
    marked(etcd, one, other)
    before = sorted(addresses(one, other))
    with unchanged(one, other):
        etcd.restore(tmp_path / "yesterday", writes=writes)
        until(lambda: log.count("cluster.data_restored") == 2, "both notice")
        until(lambda: len(told(etcd)) == len(before), "all is told again")
        for host in (one, other):
            assert sorted(networks(host)) == ["blue", "empty", "late"]
        # Whoever wants something new gets what nobody has: all that is left.
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: attach_if_free((one, other)[n % 2], f"new{n}"), range(10)))
    everything = addresses(one, other)
    assert len(everything) == len(set(everything))
    assert set(before) < set(everything)
    assert len([it for it in everything if it.startswith("10.90.0.")]) == 13
    assert log.count("cluster.data_restored") == 2
    assert log.count("address.lost") == 0
    assert sorted(value["name"] for value in etcd.records("cluster/networks/").values()) == ["blue", "empty", "late"]
    for host in (one, other):
        until(lambda host=host: host.client.get("diff")["differences"] == [], "no difference")  # type: ignore[misc]
        until(lambda host=host: host.client.get("ipam/audit")["findings"] == [], "no finding")  # type: ignore[misc]


def attach_if_free(host: Living, netns: str) -> None:
    with suppress_full():
        attach(host, netns)


@contextmanager
def suppress_full() -> Iterator[None]:
    """Let no other refusal pass."""
    try:
        yield
    except CliError as exc:
        if "no free address" not in str(exc):
            raise


def test_addresses_of_a_host_that_is_down_are_kept_for_it(hosts: Hosts, etcd: Member, tmp_path: Path, log: Log) -> None:
    """Its containers run, and nobody else tells of them."""
    one, other = hosts.start(1), hosts.start(2)
    create(one, subnets=[{"subnet": "10.90.0.0/29"}])
    has(other)
    etcd.save(tmp_path / "yesterday")
    theirs = [address_of(attach(other, f"lab{n}")) for n in range(2)]
    until(lambda: len(reached(one)) == 2, "all is known")
    other.stop()
    marked(etcd, one)
    with unchanged(one, other):
        etcd.restore(tmp_path / "yesterday")
        until(lambda: log.count("cluster.data_restored") == 1, "it notices")
        mine = [address_of(attach(one, f"lab{n}")) for n in range(3)]
        with pytest.raises(CliError, match="no free address"):
            attach(one, "late")
    assert not set(mine) & set(theirs)
    with unchanged(other):
        other = hosts.start(2)
        until(lambda: log.count("cluster.data_restored") == 2, "it notices")
        until(lambda: len(reached(other)) == 3, "it reaches all")
    until(lambda: len(reached(one)) == 2, "it is reached")
    assert log.count("address.lost") == 0
    with pytest.raises(CliError, match="no free address"):
        attach(other, "late")


def test_a_daemon_that_starts_later_knows_what_it_saw(hosts: Hosts, etcd: Member, tmp_path: Path, log: Log) -> None:
    one, other = hosts.start(1), hosts.start(2)
    create(one)
    has(other)
    here, there = attach(one), attach(other)
    etcd.save(tmp_path / "yesterday")
    create(one, "late")
    has(other, "late")
    late = attach(one, "lab2")
    detach(other)
    until(lambda: len(reached(other)) == 2, "all is known")
    marked(etcd, one, other)
    for host in (one, other):
        host.stop()
    etcd.restore(tmp_path / "yesterday", writes=PASSED)
    one, other = hosts.start(1), hosts.start(2)
    until(lambda: log.count("cluster.data_restored") == 2, "both notice")
    until(lambda: told(etcd) == {here["mac"], late["mac"]}, "what is there, and no more")
    assert there["mac"] != late["mac"]
    for host in (one, other):
        until(lambda host=host: networks(host) == ["blue", "late"], "both networks")  # type: ignore[misc]
        until(lambda host=host: host.client.get("diff")["differences"] == [], "no difference")  # type: ignore[misc]
    until(lambda: len(reached(other)) == 2 and not reached(one), "kernels have what there is")


def test_a_daemon_that_died_before_its_mark_writes_it_later(
    hosts: Hosts, etcd: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies_before_it(_: RestoreGuard) -> None:
        pass

    with monkeypatch.context() as patched:
        patched.setattr(RestoreGuard, "mark", dies_before_it)
        one = hosts.start(1)
        create(one)
        has(one)
        one.stop()
    assert etcd.records("cluster/marks/") == {}
    one = hosts.start(1)
    marked(etcd, one)


def test_a_deletion_finds_that_the_network_is_missing_in_a_backup(hosts: Hosts, etcd: Member) -> None:
    """Before anything else has: if it counted as deleted already, other hosts would bring it back."""
    one = hosts.start(1)
    ident = create(one)["id"]
    marked(etcd, one)
    (key,) = etcd.records("cluster/networks/")

    async def delete(daemon: Daemon) -> None:
        network = daemon.cluster.networks._engine.registry.network(ident)
        daemon.cluster.view._on_event = lambda _: None  # type: ignore[method-assign] # it hears nothing of it
        daemon.cluster._guard.see(f"{MARKS}other", 1_000_000)  # what it has seen, and the backup lacks
        etcd.delete(key)
        await daemon.cluster.networks.delete(network, by=FrontEnd.CLI)

    with pytest.raises(Restored):
        one.wait_for(delete)
    until(lambda: key in etcd.records("cluster/networks/"), "it is defined again")
    assert networks(one) == ["blue"]


def test_it_happens_again(hosts: Hosts, etcd: Member, tmp_path: Path, log: Log) -> None:
    one, other = hosts.start(1), hosts.start(2)
    create(one)
    has(other)
    for n in range(1, 3):
        attach(one, f"before{n}")
        etcd.save(tmp_path / f"day{n}")
        attach(one, f"lab{n}")
        marked(etcd, one, other)
        etcd.restore(tmp_path / f"day{n}")
        until(lambda: log.count("cluster.data_restored") == 2 * n, "both notice")  # noqa: B023
        until(lambda: len(told(etcd)) == 2 * n, "all is told again")  # noqa: B023
        until(lambda: len(reached(other)) == 2 * n, "all is reached")  # noqa: B023
