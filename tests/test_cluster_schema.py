"""Hosts of several releases in one cluster: who says what, and who may write."""

import pytest
from clustered import Hosts, address_of, apart, attach, create, has, reaches
from etcd_server import Member, needs_etcd
from living import Living, until
from test_cli import Cli

from netplug import __version__
from netplug.cli import NO
from netplug.store.schema import OLDEST, VERSION

pytestmark = [needs_etcd, pytest.mark.own_etcd]

SCHEMA = "cluster/schema"
OURS = {"version": VERSION, "oldest": OLDEST, "release": __version__}
LATER = {"version": VERSION + 1, "oldest": OLDEST, "release": "9.0.0"}
TOO_NEW = LATER | {"oldest": VERSION + 1}


def heartbeat(host: Living) -> None:
    """Let a host's daemon do what it does every 5 s."""
    host.do(lambda daemon: daemon.cluster.membership.wake())


def whats(host: Living) -> list[str]:
    return [it["what"] for it in host.client.get("diff")["differences"] if it["object"] == SCHEMA]


def test_store_says_the_newest_schema_of_its_hosts(hosts: Hosts, etcd: Member) -> None:
    one = hosts.start(1)
    until(lambda: etcd.records(SCHEMA) == {SCHEMA: OURS}, "the schema")
    etcd.write(SCHEMA, LATER)
    create(one)
    heartbeat(one)
    create(one, "red")
    assert etcd.records(SCHEMA) == {SCHEMA: LATER}
    for former in (None, {"version": 1, "oldest": 1, "release": "0.1.0"}, {"version": "x"}):
        if former is None:
            etcd.delete(SCHEMA)
        else:
            etcd.write(SCHEMA, former)
        heartbeat(one)
        until(lambda: etcd.records(SCHEMA) == {SCHEMA: OURS}, "the schema again")


def test_host_that_cannot_use_the_schema_writes_nothing_and_says_what_to_do(
    hosts: Hosts, etcd: Member, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = hosts.start(1), hosts.start(2)
    create(one, subnets=apart())
    has(other)
    there = attach(other)
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    etcd.write(SCHEMA, TOO_NEW)
    heartbeat(one)
    words = (
        "the shared store has schema 3, which releases before schema 3 cannot use;"
        f" this is netplug {__version__} with schema 2: install netplug 9.0.0 again, or a later release"
    )
    until(lambda: whats(one) == [words], "it is said")
    before = etcd.records("cluster/networks/")
    cli = Cli(one.settings.run_dir, capsys)
    assert words in cli("network", "create", "red", "--cluster", code=NO)
    assert etcd.records("cluster/networks/") == before
    # What there is goes on, and so do this host's own networks.
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    cli("network", "create", "own")
    etcd.write(SCHEMA, OURS)
    heartbeat(one)
    until(lambda: whats(one) == [], "it is over")
    create(one, "red", subnets=apart(1))
    has(other, "red")


def test_host_of_a_release_that_does_not_say_its_version_is_listed(
    hosts: Hosts, etcd: Member, capsys: pytest.CaptureFixture[str]
) -> None:
    one = hosts.start(1)
    etcd.write("cluster/hosts/old", {"name": "old", "vtep": "192.0.2.9", "epoch": 1})
    cli = Cli(one.settings.run_dir, capsys)
    found = {it["name"]: (it["version"], it["schema_version"]) for it in cli.json("host", "ls")}
    assert found == {"host-1": (__version__, VERSION), "old": ("", 1)}
    lines = {line.split()[1]: line.split()[-3] for line in cli("host", "ls").splitlines()}
    assert lines == {"NAME": "ENDPOINTS", "host-1": __version__, "old": "-"}
