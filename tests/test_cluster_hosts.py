"""`netplug host`: who is in the cluster, and what is left of a dead host that is forgotten."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from clustered import Hosts, address_of, apart, attach, create, detach, has, reached, reaches
from etcd_server import Member, needs_etcd
from living import Living, living, until
from test_cli import Cli

from netplug import __version__
from netplug.cli import NO, UNREACHABLE
from netplug.cluster.host_happenings import FORGOTTEN, STOPPED
from netplug.store.api import Compare, Delete, Put
from netplug.store.etcd import EtcdStore
from netplug.store.schema import VERSION

pytestmark = [needs_etcd, pytest.mark.own_etcd]


@pytest.fixture
def two(hosts: Hosts) -> tuple[Living, Living]:
    one, other = hosts.start(1), hosts.start(2)
    create(one, subnets=apart())
    has(other)
    return one, other


def cli_of(host: Living, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(host.settings.run_dir, capsys)


def test_ls_shows_who_lives_and_what_each_has(
    two: tuple[Living, Living], etcd: Member, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = two
    cli = cli_of(one, capsys)
    attach(other, "lab1")
    attach(other, "lab2")
    mine, theirs = cli.json("host", "ls")
    shown = ["id", "name", "vtep", "alive", "me", "endpoints", "addresses", "notes", "behind"]
    assert list(mine) == [*shown, "version", "schema_version"]
    said = [__version__, VERSION]
    assert [mine[key] for key in list(mine)[1:]] == ["host-1", "192.0.2.1", True, True, 0, 0, [], {}, *said]
    assert [theirs[key] for key in list(theirs)[1:]] == ["host-2", "192.0.2.2", True, False, 2, 2, [], {}, *said]
    other.stop()
    assert [it["alive"] for it in cli.json("host", "ls")] == [True, False]
    etcd.write(f"cluster/hosts/{theirs['id']}", {"vtep": "nonsense"})
    assert sorted((it["name"], it["vtep"]) for it in cli.json("host", "ls")) == [("", None), ("host-1", "192.0.2.1")]
    text = cli("host", "ls")
    assert all(word in text for word in ("host-1", "192.0.2.1", "this host", theirs["id"][:12], "no"))


def test_what_a_dead_host_had_is_free_when_it_is_forgotten(
    two: tuple[Living, Living], hosts: Hosts, etcd: Member, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hard cases 1 and 16."""
    one, other = two
    cli = cli_of(one, capsys)
    attach(one)
    lost = attach(other, name="db", addresses=["10.224.0.50"])
    reaches(one, f"{address_of(lost)} at 192.0.2.2")
    ident = cli.json("host", "ls")[1]["id"]
    refused = "host 'host-2' is alive, or was less than 15 s ago (stop its daemon; the host counts as dead 15 s later)"
    assert refused in cli("host", "forget", "host-2", code=NO)
    assert "host 'host-1' is alive" in cli("host", "forget", "host-1", code=NO)
    other.stop()
    # It may just be restarted.
    assert refused in cli("host", "forget", "host-2", code=NO)
    hosts.past_the_grace(etcd)
    # It may come back: what it has stays its own.
    assert "is leased on another host" in cli("attach", "blue", "--netns", "lab2", "--ip", "10.224.0.50", code=NO)
    cli("host", "forget", "host-2")
    reaches(one)
    assert [key for key in etcd.records("") if ident in key] == [f"cluster/marks/{ident}"]
    assert "there is no host 'host-2' (there are host-1)" in cli("host", "forget", "host-2", code=NO)
    assert cli.json("ipam", "audit") == []
    left = [STOPPED, FORGOTTEN]
    until(
        lambda: [it["cause"] for it in one.client.get("events", kind="host.left")["events"]] == left, "told as events"
    )
    moved = attach(one, "lab2", addresses=["10.224.0.50"])
    # Back it finds out that somebody else has its address, and does not fight.
    back = hosts.start(2)
    until(lambda: f"{address_of(moved)} at 192.0.2.1" in reached(back), "it knows who has it")
    assert [it["name"] for it in cli.json("host", "ls")] == ["host-1", "host-2"]
    assert reached(one) == set()
    assert one.client.get("diff")["differences"] == []
    detach(back)
    fresh = attach(back, "lab2")
    reaches(one, f"{address_of(fresh)} at 192.0.2.2")
    for host in (one, back):
        until(lambda host=host: host.client.get("diff")["differences"] == [], "no difference")  # type: ignore[misc]
    assert cli.json("ipam", "audit") == []


def test_an_address_that_is_leased_again_while_its_host_is_forgotten_stays_leased(
    two: tuple[Living, Living], hosts: Hosts, etcd: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else forgets the host, too."""
    one, other = two
    there = attach(other, addresses=["10.224.0.50"])
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    (key,) = (key for key in etcd.records("ipam/leases/") if key.endswith("/10.224.0.50"))
    leased = {**etcd.records(key)[key], "host": "c" * 32}
    other.stop()
    hosts.past_the_grace(etcd)
    delete = EtcdStore.txn

    async def leased_first(
        store: EtcdStore, compares: Sequence[Compare], ops: Sequence[Put | Delete], **flags: bool
    ) -> int | None:
        if Delete(key) in ops and etcd.records(key)[key] != leased:
            etcd.write(key, leased)
        return await delete(store, compares, ops, **flags)

    monkeypatch.setattr(EtcdStore, "txn", leased_first)
    one.client.delete("hosts", "host-2")
    assert etcd.records(key)[key] == leased
    assert [it["name"] for it in one.client.get("hosts")["hosts"]] == ["", "host-1"]


def test_several_of_one_name_are_told_apart_by_id(
    hosts: Hosts, etcd: Member, capsys: pytest.CaptureFixture[str]
) -> None:
    one = hosts.start(1)
    for number in (2, 3):
        hosts.start(number, host_name="same").stop()
    hosts.past_the_grace(etcd)
    cli = cli_of(one, capsys)
    ids = [it["id"] for it in cli.json("host", "ls") if it["name"] == "same"]
    text = cli("host", "forget", "same", code=NO)
    assert "several hosts match 'same'" in text
    assert all(ident[:12] in text for ident in ids)
    cli("host", "forget", ids[0][:12])
    cli("host", "forget", "same")
    assert [it["name"] for it in cli.json("host", "ls")] == ["host-1"]


def test_without_the_store_or_a_cluster_it_says_so(
    two: tuple[Living, Living], etcd: Member, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, _ = two
    etcd.stop()
    for args in (("ls",), ("forget", "host-2")):
        assert "netplug: store: " in cli_of(one, capsys)("host", *args, code=UNREACHABLE)
    etcd.start()
    with living(tmp_path / "alone") as alone:
        for args in (("ls",), ("forget", "host-2")):
            assert "this daemon is not part of a cluster" in cli_of(alone, capsys)("host", *args, code=NO)
