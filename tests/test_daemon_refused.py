"""A store that refuses, shared or own, takes nothing from what does not need it, and the daemon lives on."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clustered import Hosts, address_of, attach, create, detach, has, networks, reaches
from etcd_server import Member, needs_etcd
from living import Living, living, until

from netplug.cli import UNREACHABLE, CliError
from netplug.drivers.tables import ANTISPOOF

pytestmark = pytest.mark.own_etcd


def told(etcd: Member) -> set[str]:
    return {value["mac"] for value in etcd.records("cluster/endpoints/").values()}


def own_networks_work(host: Living) -> None:
    host.client.post("networks", body={"name": "own"})
    attach(host, "lab3", "own")
    detach(host, "lab3", "own")
    host.client.delete("networks", "own")


@needs_etcd
def test_a_host_starts_with_an_etcd_that_is_full(hosts: Hosts, etcd: Member) -> None:
    etcd.refuse()
    one = hosts.start(1, refused=True)
    own_networks_work(one)
    until(lambda: "its database is full" in str(one.client.get("diff")), "diff says so")
    etcd.refuse(full=False)
    until(lambda: any(value["name"] == "host-1" for value in etcd.records("cluster/hosts/").values()), "it joins")
    until(lambda: one.client.get("diff")["differences"] == [], "all is well")
    create(one)


@needs_etcd
def test_an_etcd_that_becomes_full_takes_nothing_from_who_is_there(hosts: Hosts, etcd: Member) -> None:
    one, other = hosts.start(1), hosts.start(2)
    create(one)
    has(other)
    attach(one)
    there = attach(other)
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    etcd.refuse()
    with pytest.raises(CliError, match="its database is full") as caught:
        attach(one, "lab2")
    assert caught.value.code == UNREACHABLE
    own_networks_work(one)
    detach(one)
    # What Docker says of a container, in the background, meets the same refusal.
    hosts.look_again(one)
    for host in (one, other):
        own_networks_work(host)
        assert networks(host) == ["blue"]
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    etcd.refuse(full=False)
    reaches(other)
    late = attach(one, "lab2")
    reaches(other, f"{address_of(late)} at 192.0.2.1")


@needs_etcd
def test_an_etcd_that_takes_permission_away_is_outlived(hosts: Hosts, etcd: Member) -> None:
    one, other = hosts.start(1), hosts.start(2)
    create(one)
    has(other)
    here, there = attach(one), attach(other)
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    etcd.enable_authentication("admin")
    hosts.look_again(one)
    with pytest.raises(CliError, match="it requires authentication"):
        attach(one, "lab2")
    detach(one)
    own_networks_work(one)
    # Who was let in before starts again, and has its own networks.
    other.stop()
    other = hosts.start(2, refused=True)
    own_networks_work(other)
    assert networks(other) == ["blue"]
    etcd.disable_authentication("admin")
    until(lambda: told(etcd) == {there["mac"]}, "what was done meanwhile is told")
    assert here["mac"] != there["mac"]
    late = attach(one, "lab2")
    reaches(other, f"{address_of(late)} at 192.0.2.1")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Living]:
    with living(tmp_path) as it:
        yield it


def limit_disk(host: Living, *, full: bool) -> None:
    """Let the database grow no further, as on a full disk; or, again."""

    def limited(store: Any) -> Any:
        database = store._database._db
        (used,) = database.execute("PRAGMA page_count").fetchone()
        database.execute(f"PRAGMA max_page_count = {used if full else 2**30}")

    def work(daemon: Any) -> Any:
        store = daemon._background["reconciler"].__self__._engine.store
        return store._submit(functools.partial(limited, store))

    done = host.do_and_get(work)
    until(done.done, "it is limited")


def attach_many(host: Living) -> None:
    for n in range(200):
        attach(host, f"lab{n}", aliases=[f"name-{n}-{i}" for i in range(100)])


def test_a_full_disk_of_its_own_is_outlived(host: Living) -> None:
    host.client.post("networks", body={"name": "blue"})
    attach(host)
    limit_disk(host, full=True)
    with pytest.raises(CliError, match="the disk is full"):
        attach_many(host)
    assert networks(host) == ["blue"]
    assert host.client.get("diff")["differences"] == []
    host.kernel.lose(f"table/{ANTISPOOF}")
    host.kernel.changed.set()
    until(lambda: host.client.get("diff")["differences"] == [], "others' harm is mended all the same")
    limit_disk(host, full=False)
    attach(host, "late")


def test_no_failing_task_ends_the_daemon(host: Living) -> None:
    """Whatever it fails with: it is shown, begun anew, and forgotten once it goes well again."""

    def break_it(daemon: Any) -> None:
        server, left = daemon._background["dns"].__self__, [KeyError("nobody thought of this")] * 3
        original = server.host_resolvers.read

        def broken() -> None:
            if left:
                raise left.pop()
            original()

        server.host_resolvers.read = broken

    host.do_and_get(break_it)
    until(lambda: "nobody thought of this" in str(host.client.get("diff")), "it is shown")
    until(lambda: host.client.get("diff")["differences"] == [], "it is over")
    assert host.alive
