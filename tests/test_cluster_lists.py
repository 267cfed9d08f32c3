"""Lists show what all hosts have, and say so when they cannot."""

import json
from typing import Any

import pytest
from clustered import Hosts, address_of, attach, create, detach, has, reaches
from etcd_server import Member, needs_etcd
from living import Living, until
from typer.testing import CliRunner

from netplug.cli.app import app

pytestmark = [needs_etcd, pytest.mark.own_etcd]


def said(host: Living, *args: str) -> tuple[str, str]:
    done = CliRunner().invoke(app, [*args, "--run-dir", str(host.settings.run_dir)])
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def shown(host: Living, *args: str) -> Any:
    out, err = said(host, *args, "--json")
    assert err == ""
    return json.loads(out)


def test_all_hosts_endpoints_are_listed_everywhere(hosts: Hosts) -> None:
    one, other = hosts.start(1), hosts.start(2)
    create(one)
    has(other)
    here, there = attach(one, name="web", aliases=["www"]), attach(other, name="db")
    for host, far in ((one, there), (other, here)):
        reaches(host, f"{address_of(far)} at 192.0.2.{2 if host is one else 1}")
        rows = {row["name"]: row for row in shown(host, "ps")}
        assert {name: row["host"] for name, row in rows.items()} == {"web": "host-1", "db": "host-2"}
        for name, made in (("web", here), ("db", there)):
            row = rows[name]
            assert (row["id"], row["addresses"], row["mac"]) == (made["endpoint"], made["addresses"], made["mac"])
            assert (row["front_end"], row["network"]) == ("cli", "blue")
        assert rows["web"]["aliases"] == ["www"]
        assert [net["endpoint_count"] for net in shown(host, "network", "ls")] == [2]
        detail = shown(host, "network", "inspect", "blue")
        assert detail["endpoint_count"] == 2
        assert {end["host"] for end in detail["endpoints"]} == {"host-1", "host-2"}
        assert [row["name"] for row in shown(host, "ps", "--network", "blue")] == ["db", "web"]
        assert "host-1" in said(host, "ps")[0]
        assert "host-2" in said(host, "ps")[0]
    detach(other)
    until(lambda: [row["name"] for row in shown(one, "ps")] == ["web"], "it is gone")


def test_without_the_store_the_own_are_listed_and_that_is_said(hosts: Hosts, etcd: Member) -> None:
    one, other = hosts.start(1), hosts.start(2)
    create(one)
    has(other)
    attach(one, name="web")
    far = attach(other, name="db")
    reaches(one, f"{address_of(far)} at 192.0.2.2")
    etcd.stop()
    until(lambda: said(one, "ps")[1] != "", "it is said")
    for args in (("ps", "--json"), ("network", "ls", "--json"), ("network", "inspect", "blue", "--json")):
        out, err = said(one, *args)
        assert err.startswith("netplug: only endpoints of host host-1 are listed: the shared store does not answer")
        data = json.loads(out)
        rows = data["endpoints"] if isinstance(data, dict) else data
        assert [row.get("host", "host-1") for row in rows] == ["host-1"]
        assert "note" not in data
    assert shown_count(one) == 1
    etcd.start()
    until(lambda: said(one, "ps")[1] == "", "all are listed again")
    until(lambda: len(shown(one, "ps")) == 2, "all are listed again")


def shown_count(host: Living) -> int:
    return int(json.loads(said(host, "network", "ls", "--json")[0])[0]["endpoint_count"])
