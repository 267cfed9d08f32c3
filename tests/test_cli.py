"""The command: exit codes, one line for an error, field names that stay, tables that hide nothing."""

import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from living import Living, living

from netplug.cli import NO, OK, UNREACHABLE, USAGE, main
from netplug.cli.output import table
from netplug.daemon.drivers import load_drivers

NETWORK_FIELDS = [
    "id", "name", "mode", "subnets", "internal", "front_end", "options", "mtu", "endpoint_count",
    "labels", "created",
]  # fmt: skip
ENDPOINT_FIELDS = [
    "id", "network", "network_id", "name", "aliases", "container", "addresses", "mac", "host", "front_end",
    "sandbox", "interface", "ports", "added_ports",
]  # fmt: skip
ATTACH_FIELDS = [
    "endpoint", "network", "sandbox", "interface", "mac", "mtu", "addresses", "gateways", "routes", "ports", "dns",
]  # fmt: skip
POOL_FIELDS = ["id", "space", "subnet", "range", "size", "used", "kept", "networks", "leases"]
LEASE_FIELDS = ["address", "owner_kind", "owner_id", "owner_name", "mac", "until", "host"]


class Cli:
    """Runs commands in this process."""

    def __init__(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.run_dir = run_dir
        self._capsys = capsys

    def __call__(self, *args: str, code: int = OK) -> str:
        """Run a command, expect its exit code, and return what it printed."""
        self._capsys.readouterr()
        found = main([*args, "--run-dir", str(self.run_dir)])
        captured = self._capsys.readouterr()
        assert found == code, captured.err
        if code in {USAGE, UNREACHABLE}:
            assert captured.out == ""
        if code and captured.err:
            assert re.fullmatch(r"netplug: .+\n", captured.err), captured.err
            return captured.err
        return captured.out

    def json(self, *args: str) -> Any:
        return json.loads(self(*args, "--json"))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Living]:
    with living(tmp_path_factory.mktemp("cli")) as daemon:
        daemon.kernel.vanish("/run/netns/no-such")
        yield daemon


@pytest.fixture
def cli(daemon: Living, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    cli = Cli(daemon.settings.run_dir, capsys)
    yield cli
    for endpoint in daemon.client.get("endpoints")["endpoints"]:
        body = {"network": endpoint["network"], "netns": endpoint["sandbox"], "ifname": endpoint["interface"]}
        daemon.client.post("detach", body=body)
    for row in daemon.client.get("networks")["networks"]:
        daemon.client.delete("networks", row["id"])
    assert daemon.client.get("ipam")["pools"] == []


@pytest.fixture
def alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(tmp_path, capsys)


# Listings


def test_field_names_of_json_stay(cli: Cli) -> None:
    cli("network", "create", "blue", "--subnet", "10.1.0.0/24")
    attached = json.loads(cli("attach", "blue", "--netns", "c1", "--name", "web", "--publish", "18080:80"))
    assert list(attached) == ATTACH_FIELDS
    assert list(cli.json("network", "ls")[0]) == NETWORK_FIELDS
    assert list(cli.json("network", "inspect", "blue")) == [*NETWORK_FIELDS, "as_created", "endpoints"]
    assert list(cli.json("network", "ls")[0]["subnets"][0]) == ["subnet", "gateway"]
    assert list(cli.json("ps")[0]) == ENDPOINT_FIELDS
    pool = cli.json("ipam", "ls")[0]
    assert list(pool) == POOL_FIELDS
    assert list(pool["leases"][0]) == LEASE_FIELDS
    assert list(cli.json("version")) == ["version", "daemon"]
    assert cli.json("diff") == []


def test_inspect_shows_a_network_as_text(cli: Cli) -> None:
    flags = ["-o", "icc=false", "-o", "ttl=5", "-o", "com.docker.network.driver.mtu=1400", "--label", "team=net"]
    cli("network", "create", "blue", "--subnet", "10.1.0.0/28", "--ip-range", "10.1.0.8/29", *flags)
    assert cli("network", "inspect", "blue").endswith("\n\nno endpoints\n")
    cli("attach", "blue", "--netns", "c1", "--name", "web", "--publish", "18080:80")
    head, subnets, options, endpoints = cli("network", "inspect", "blue").split("\n\n")
    facts = dict(re.split(r": +", line) for line in head.splitlines())
    assert facts.pop("id")
    assert facts.pop("created")
    shown = {"name": "blue", "mode": "bridge", "mtu": "1400", "internal": "no", "made by": "cli", "labels": "team=net"}
    assert facts == shown
    assert [line.split() for line in subnets.splitlines()] == [
        ["SUBNET", "GATEWAY", "RANGE", "USED", "KEPT", "FREE", "FULL"],
        ["10.1.0.0/28", "10.1.0.8", "10.1.0.8/29", "2", "0", "5", "29%"],
    ]
    assert [line.split()[:2] for line in options.splitlines()] == [
        ["OPTION", "VALUE"],
        ["mtu", "1400"],
        ["icc", "false"],
    ]
    assert "default" not in options
    (endpoint,) = cli.json("ps")
    assert endpoints.splitlines()[1].split() == [
        endpoint["id"][:12], "web", "10.1.0.9", endpoint["mac"], endpoint["host"], "eth0", ",".join(endpoint["ports"]),
    ]  # fmt: skip
    cli("network", "update", "blue", "-o", "icc=true", "-o", "rate=1mbit")
    head = cli("network", "inspect", "blue").partition("\n\n")[0]
    assert re.search(r"^changed: +icc was false, rate was not set$", head, re.MULTILINE)


def test_attach_prints_what_the_sandbox_got(cli: Cli) -> None:
    cli("network", "create", "blue", "--subnet", "10.1.0.0/24", "--gateway", "10.1.0.254")
    flags = ["--ip", "10.1.0.7", "--mac", "02:00:00:00:00:07", "--publish", "127.0.0.1:18081:80", "--alias", "www"]
    attached = json.loads(cli("attach", "blue", "--netns", "c1", "--ifname", "net0", *flags))
    assert attached["addresses"] == ["10.1.0.7/24"]
    assert attached["gateways"] == ["10.1.0.254"]
    assert attached["interface"] == "net0"
    assert attached["mac"] == "02:00:00:00:00:07"
    assert attached["ports"] == ["127.0.0.1:18081->80/tcp"]
    assert attached["sandbox"] == "/run/netns/c1"


def test_ps_shows_addresses_and_ports_uncut(cli: Cli) -> None:
    cli("network", "create", "a-network-with-quite-a-long-name", "--subnet", "10.1.0.0/24", "--subnet", "fd00:1::/64")
    publish = [part for port in range(18100, 18110) for part in ("--publish", f"{port}:80")]
    cli("attach", "a-network-with-quite-a-long-name", "--netns", "c1", "--name", "web", *publish)
    lines = cli("ps").splitlines()
    assert lines[0].split() == [
        "ID",
        "NETWORK",
        "NAME",
        "CONTAINER",
        "ADDRESSES",
        "MAC",
        "HOST",
        "FRONT",
        "END",
        "PORTS",
    ]
    assert len(lines) == 2
    for text in ("10.1.0.2", "fd00:1::", "host-a", "cli", "0.0.0.0:18109->80/tcp", "[::]:18109->80/tcp"):
        assert text in lines[1]
    assert "\x1b" not in lines[1]


def test_publish_prints_what_is_published_now_and_ps_marks_it(cli: Cli) -> None:
    cli("network", "create", "blue", "--subnet", "10.1.0.0/24")
    cli("attach", "blue", "--netns", "c1", "--name", "web", "--publish", "127.0.0.1:18080:80")
    done = cli.json("publish", "web", "127.0.0.1:18443:443", "127.0.0.1:15353:53/udp")
    assert list(done) == ["endpoint", "network", "name", "container", "front_end", "ports", "added_ports"]
    assert done["added_ports"] == ["127.0.0.1:15353->53/udp", "127.0.0.1:18443->443/tcp"]
    assert done["ports"] == ["127.0.0.1:18080->80/tcp", *done["added_ports"]]
    assert cli.json("ps")[0]["added_ports"] == done["added_ports"]
    assert "127.0.0.1:18080->80/tcp,127.0.0.1:15353->53/udp (added),127.0.0.1:18443->443/tcp (added)" in cli("ps")
    lines = cli("publish", "blue/web", "127.0.0.1:18443:443").splitlines()
    assert [line.split() for line in lines] == [
        ["NETWORK", "NAME", "PORT"],
        ["blue", "web", "127.0.0.1:18080->80/tcp"],
        ["blue", "web", "127.0.0.1:15353->53/udp", "(added)"],
        ["blue", "web", "127.0.0.1:18443->443/tcp", "(added)"],
    ]
    assert cli.json("unpublish", "c1", "443", "53/udp", "80")["ports"] == []
    assert cli("publish", "web", "80/icmp", code=USAGE).startswith("netplug: published port '80/icmp'")
    assert "there is no endpoint 'db'" in cli("publish", "db", "80", code=NO)
    assert "has not published port 443/tcp" in cli("unpublish", "web", "443", code=NO)


def test_ipam_ls_names_the_owners(cli: Cli) -> None:
    cli("network", "create", "blue", "--subnet", "10.1.0.0/24", "--ip-range", "10.1.0.128/25")
    cli("attach", "blue", "--netns", "c1", "--name", "web")
    pool = cli.json("ipam", "ls")[0]
    assert (pool["subnet"], pool["range"], pool["used"]) == ("10.1.0.0/24", "10.1.0.128/25", 2)
    assert pool["networks"] == ["blue"]
    assert {(one["owner_kind"], one["owner_name"]) for one in pool["leases"]} == {
        ("gateway", "blue"), ("endpoint", "web"),
    }  # fmt: skip
    text = cli("ipam", "ls")
    assert "10.1.0.128/25" in text
    assert re.search(r"10\.1\.0\.\d+ +endpoint +web", text)


def test_ipam_audit_says_so_when_all_is_well(cli: Cli) -> None:
    assert cli.json("ipam", "audit") == []
    assert cli("ipam", "audit") == "no findings\n"


def test_ipam_ls_tells_for_whom_and_until_when_an_address_is_kept(cli: Cli) -> None:
    cli("network", "create", "blue", "--subnet", "10.1.0.0/24", "-o", "sticky=2h")
    cli("attach", "blue", "--netns", "c1", "--name", "web", "--ip", "10.1.0.7")
    cli("detach", "blue", "--netns", "c1")
    pool = cli.json("ipam", "ls")[0]
    assert (pool["used"], pool["kept"]) == (1, 1)
    (found,) = (one for one in pool["leases"] if one["owner_kind"] == "kept")
    assert (found["address"], found["owner_name"]) == ("10.1.0.7", "web")
    left = datetime.fromisoformat(found["until"]) - datetime.now(UTC)
    assert timedelta(minutes=119) < left <= timedelta(hours=2)
    assert re.search(rf"10\.1\.0\.7 +kept +web +host-a +{re.escape(found['until'])}", cli("ipam", "ls"))


def test_network_ls_and_create_agree_on_the_id(cli: Cli) -> None:
    ident = cli("network", "create", "blue", "--internal", "-o", "mtu=1400").strip()
    row = cli.json("network", "ls")[0]
    assert (row["id"], row["internal"], row["mtu"], row["options"]) == (ident, True, 1400, {"mtu": "1400"})
    assert ident[:12] in cli("network", "ls")
    assert cli("network", "rm", ident[:6]) == f"{ident[:6]}\n"
    assert cli.json("network", "ls") == []


def test_labels_and_the_time_of_creation_are_shown(cli: Cli) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    cli("network", "create", "blue", "--label", "team=net", "--label", "keep", "--label", "url=a=b")
    row = cli.json("network", "ls")[0]
    assert row["labels"] == {"team": "net", "keep": "", "url": "a=b"}
    assert before <= datetime.fromisoformat(row["created"]) <= datetime.now(UTC)
    assert cli.json("network", "inspect", "blue")["labels"] == row["labels"]


def test_update_prints_what_changes_and_inspect_shows_both(cli: Cli) -> None:
    cli("network", "create", "blue", "--subnet", "10.1.0.0/24", "-o", "icc=false", "--label", "old")
    cli("attach", "blue", "--netns", "c1", "--name", "web")
    told = cli("network", "update", "blue", "-o", "rate=10mbit", "-o", "icc=", "--dry-run")
    assert told.splitlines()[0].split() == ["OWNER", "OBJECT", "CHANGE"]
    assert {line.split()[-1] for line in told.splitlines()[1:]} == {"added", "changed"}
    assert cli.json("network", "inspect", "blue")["options"] == {"icc": "false"}
    assert cli("network", "update", "blue", "-o", "rate=10mbit", "-o", "icc=") == told
    found = cli.json("network", "inspect", "blue")
    assert (found["options"], found["as_created"]) == (
        {"rate": "10mbit"},
        {"options": {"icc": "false"}, "internal": False},
    )
    change = ["--internal", "true", "--label", "team=net", "--label-rm", "old", "--subnet-add", "fd00:1::/64"]
    answer = cli.json("network", "update", "blue", *change)
    assert list(answer) == ["network", "changes", "notes", "dry_run"]
    assert (answer["network"]["internal"], answer["network"]["labels"]) == (True, {"team": "net"})
    assert [it["subnet"] for it in answer["network"]["subnets"]] == ["10.1.0.0/24", "fd00:1::/64"]
    assert list(answer["changes"][0]) == ["owner", "object", "what"]
    cli("network", "update", "blue", "--subnet-rm", "fd00:1::/64")
    assert cli("network", "update", "blue", "-o", "ttl=60") == "no kernel object changes\n"


def test_prune_asks_first_and_takes_the_end_of_the_input_for_no(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli("network", "create", "blue", "--label", "team=net")
    for answer in ("", "n\n", "\n"):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        assert main(["network", "prune", "--run-dir", str(cli.run_dir)]) == NO
    assert len(cli.json("network", "ls")) == 1
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert cli("network", "prune", "--filter", "label=team=net") == "blue\n"
    assert cli("network", "prune") == ""


def test_prune_prints_what_went_and_with_json_what_stays_and_why(cli: Cli) -> None:
    cli("network", "create", "blue")
    cli("network", "create", "red")
    cli("attach", "red", "--netns", "c1")
    assert cli("network", "prune", "--dry-run") == "blue\n"
    found = cli.json("network", "prune", "-f", "--filter", "label!=keep=yes", "--filter", "label!=other")
    assert [row["name"] for row in found["removed"]] == ["blue"]
    assert [(row["name"], row["reason"]) for row in found["kept"]] == [("red", "it has an endpoint")]
    assert "'colour'" in cli("network", "prune", "--filter", "colour=red", code=NO)


def test_ipv6_adds_the_family_that_has_no_subnet(cli: Cli) -> None:
    cli("network", "create", "four", "--subnet", "10.1.0.0/24")
    cli("network", "create", "both", "--ipv6", "--subnet", "10.2.0.0/24")
    cli("network", "create", "six", "--subnet", "fd00:9::/64")
    cli("network", "create", "none", "--mode", "none")
    families = {
        row["name"]: sorted(":" in subnet["subnet"] for subnet in row["subnets"]) for row in cli.json("network", "ls")
    }
    assert families == {"four": [False], "both": [False, True], "six": [True], "none": []}


def test_tables_of_nothing_have_a_head(cli: Cli) -> None:
    for command in (["ps"], ["network", "ls"]):
        assert len(cli(*command).splitlines()) == 1


# Exit codes


def test_refusals_end_with_one(cli: Cli) -> None:
    cli("network", "create", "blue", "--subnet", "10.1.0.0/24")
    refused = [
        (["network", "create", "blue"], "'blue' exists already"),
        (["network", "create", "red", "--subnet", "10.1.0.0/16"], "overlaps"),
        (["network", "create", "red", "-o", "colour=red"], "unknown option 'colour'"),
        (["network", "create", "x" * 10_000], "is not a name"),
        (["network", "create", "red", "--mode", "teleport"], "mode"),
        (["network", "rm", "green"], "no network 'green'"),
        (["network", "inspect", "../etc"], "no network '../etc'"),
        (["network", "inspect", "100% ä"], "no network"),
        (["network", "update", "green", "-o", "ttl=1"], "no network 'green'"),
        (["network", "update", "blue", "-o", "vni=7"], "exists only in mode overlay"),
        (["network", "update", "blue", "-o", "ifname=lan"], "cannot change: links in sandboxes have their names"),
        (["network", "update", "blue", "--subnet-rm", "10.9.0.0/24"], "has no subnet 10.9.0.0/24"),
        (["ps", "--network", "green"], "no network 'green'"),
        (["attach", "green", "--netns", "c1"], "no network 'green'"),
        (["attach", "blue", "--netns", "no-such"], "no-such"),
        (["attach", "blue", "--netns", "c1", "--ip", "10.2.0.5"], "10.2.0.5"),
        (["detach", "blue", "--netns", "c1"], "not attached"),
    ]
    for args, words in refused:
        assert words in cli(*args, code=NO), args
    cli("attach", "blue", "--netns", "c1")
    assert "endpoint" in cli("network", "rm", "blue", code=NO)
    assert "already" in cli("attach", "blue", "--netns", "c1", code=NO)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "command"),
        (["fly"], "fly"),
        (["network"], "command"),
        (["network", "create"], "'NAME'"),
        (["network", "create", "a", "--colour"], "--colour"),
        (["network", "create", "a", "--subnet", "10.1.0.5/16"], "did you mean 10.1.0.0/16?"),
        (["network", "create", "a", "--subnet", "house"], "'house' is not an address range"),
        (["network", "create", "a", "--gateway", "10.1.0.1"], "needs a --subnet"),
        (["network", "create", "a", "--subnet", "10.1.0.0/24", "--gateway", "10.2.0.1"], "not in subnet 10.1.0.0/24"),
        (["network", "create", "a", "--subnet", "10.1.0.0/24", "--ip-range", "10.1.0.0/16"], "not in subnet"),
        (["network", "create", "a", "--subnet", "10.1.0.0/24", "--gateway", "x"], "--gateway 'x'"),
        (["network", "create", "a", "--label", "=x"], "label '=x' is not of the form key=value"),
        (["network", "prune", "--filter", "label"], "filter 'label' is not of the form key=value"),
        (["network", "update", "a"], "nothing to change is given"),
        (["network", "update", "a", "--internal", "maybe"], "--internal 'maybe' is neither true nor false"),
        (["network", "update", "a", "--subnet-add", "10.1.0.5/24"], "did you mean 10.1.0.0/24?"),
        (["network", "create", "a", "-o", "mtu"], "'mtu' is not of the form key=value"),
        (["network", "create", "a", "-o", "mode=none", "--mode", "bridge"], "'mode' is given as"),
        (["attach", "a", "--netns", "n", "--publish", "x"], "published port 'x'"),
        (["attach", "a", "--netns", "n", "--mac", "12"], "--mac '12'"),
        (["attach", "a", "--netns", "n", "--ip", "1.2.3"], "--ip '1.2.3'"),
        (["attach", "a", "--netns", "n", "--ifname", "sixteen-signs-xx"], "--ifname"),
        (["attach", "a"], "--netns"),
        (["attach", "a", "--netns", "/proc/self/ns/net"], "/proc/PID/ns/net"),
        (["ps", "superfluous"], "superfluous"),
        (["capture", "web", "--seconds", "0"], "--seconds 0 would end before the first packet"),
        (["capture", "web", "--seconds", "nan"], "--seconds nan"),
        (["capture", "web", "-c", "0"], "-c 0"),
        (["capture", "web", "-c", "-1"], "-c -1"),
        (["trace", "asker", "web:"], "no port is behind the colon"),
        (["trace", "asker", "web:99999"], "99999 is no port"),
        (["trace", "asker", "http://web/"], "is a URL"),
        (["trace", "asker", "10.0.0.0/24"], "is a subnet"),
        (["trace", "web:80", "asker"], "SRC 'web:80' has a port"),
        (["trace", "outside", "outside"], "are both outside"),
        (["trace", "outside", "outside=192.0.2.1:80"], "are both outside"),
    ],
)
def test_wrong_usage_ends_with_two(alone: Cli, args: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"netplug: .+\n", captured.err)
    assert words in captured.err


@pytest.mark.parametrize(
    "args",
    [
        ["ps"], ["network", "ls"], ["network", "inspect", "a"], ["network", "rm", "a"], ["network", "create", "a"],
        ["network", "update", "a", "-o", "ttl=1"],
        ["ipam", "ls"], ["ipam", "audit"], ["dns", "ls"], ["dns", "query", "web", "--network", "a"],
        ["diff"], ["repair"], ["attach", "a", "--netns", "n"], ["detach", "a", "--netns", "n"],
    ],
)  # fmt: skip
def test_without_a_daemon_commands_end_with_three(alone: Cli, args: list[str]) -> None:
    said = alone(*args, code=UNREACHABLE)
    assert said == f"netplug: no daemon answers at {alone.run_dir}/netplug.sock (start it with: netplug serve)\n"


def test_a_dead_socket_is_no_daemon(alone: Cli) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(alone.run_dir / "netplug.sock"))
    assert "no daemon answers" in alone("ps", code=UNREACHABLE)


def test_version_needs_no_daemon(alone: Cli) -> None:
    assert re.fullmatch(r"netplug \S+\n", alone("version"))
    assert alone.json("version")["daemon"] is None


def test_what_newcomers_type_first_is_answered(alone: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == OK
    assert capsys.readouterr().out == alone("version")
    for args in ([], ["network"], ["network", "create"], ["serve"]):
        assert main([*args, "-h"]) == OK
        short = capsys.readouterr().out
        assert main([*args, "--help"]) == OK
        assert short == capsys.readouterr().out
        assert short.startswith("Usage: netplug")


def test_diff_ends_with_one_until_repair(cli: Cli, daemon: Living) -> None:
    cli("network", "create", "blue", "--subnet", "10.1.0.0/24", "-o", "bridge=br-blue")
    assert cli("diff") == "no differences: 1 network and 0 endpoints compared with the kernel\n"
    daemon.kernel.lose("link/br-blue")
    found = cli("diff", code=NO)
    assert re.search(r"network blue +link/br-blue +missing", found)
    assert "link/br-blue" in cli("repair")
    cli("diff")
    assert cli("repair") == "nothing to repair\n"


def test_repair_tells_what_it_mended_and_what_is_left(
    cli: Cli, daemon: Living, capsys: pytest.CaptureFixture[str]
) -> None:
    cli("network", "create", "mendable", "-o", "bridge=br-mendable")
    cli("network", "create", "broken", "-o", "bridge=br-broken")
    daemon.kernel.lose("link/br-mendable")
    daemon.kernel.lose("link/br-broken")
    daemon.kernel.fail_at("link/br-broken")
    command = ["repair", "--run-dir", str(cli.run_dir)]
    assert main(command) == NO
    said = capsys.readouterr()
    assert re.match(
        r"repaired:\n.*\nnetwork mendable +link/br-mendable +missing\n.*remaining:\n.*\nnetwork broken +",
        said.out,
        re.DOTALL,
    )
    assert "remain after the repair" in said.err
    assert main(command) == NO
    assert capsys.readouterr().out.startswith("remaining:\n")
    daemon.kernel.heal()
    assert "link/br-broken" in cli("repair")
    assert cli("diff") == "no differences: 2 networks and 0 endpoints compared with the kernel\n"


CUT = b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{}"


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", b"nonsense\r\n\r\n", b"", CUT]
)
def test_what_is_not_the_daemon_is_said_so(alone: Cli, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(alone.run_dir / "netplug.sock"))
        listening.listen()
        thread = threading.Thread(target=_answer, args=(listening, answer))
        thread.start()
        said = alone("ps", code=UNREACHABLE)
        assert str(alone.run_dir) in said
        assert not re.search(r"[a-z][A-Z]|Errno", said.replace(str(alone.run_dir), "")), said
        thread.join()


def test_a_store_that_does_not_answer_ends_with_three(alone: Cli) -> None:
    body = b'{"error": {"kind": "unreachable", "message": "store: the disk is full", "hint": ""}}'
    answer = b"HTTP/1.1 503 X\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(alone.run_dir / "netplug.sock"))
        listening.listen()
        thread = threading.Thread(target=_answer, args=(listening, answer))
        thread.start()
        assert alone("ps", code=UNREACHABLE) == "netplug: store: the disk is full\n"
        thread.join()


def _answer(listening: socket.socket, answer: bytes) -> None:
    connection, _ = listening.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(answer)


def test_serve_with_wrong_settings_ends_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--log-format", "poem"]) == USAGE
    assert re.fullmatch(r"netplug: .*--log-format.*poem.*\n", capsys.readouterr().err)


def test_a_closed_pipe_ends_a_command_quietly(daemon: Living) -> None:
    code = "import sys; from netplug.cli import main; sys.exit(main(['ps', '--run-dir', sys.argv[1]]))"
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", code, str(daemon.settings.run_dir)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_client_commands_import_no_daemon() -> None:
    code = (
        "import sys; from netplug.cli import main; main(['ps', '--run-dir', '/nonexistent']);"
        "heavy = ['pydantic', 'pydantic_settings', 'fastapi', 'pyroute2', 'structlog', 'rich'];"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_daemon_imports_no_command_line_of_its_server() -> None:
    code = (
        "import sys; import netplug.daemon.life, netplug.frontends.serving as it; assert it.uvicorn.Server;"
        "print([name for name in ('click', 'multiprocessing.connection', 'uvicorn.main') if name in sys.modules]);"
        "import uvicorn.main; print(uvicorn.main.main.name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nmain\n"


@pytest.mark.parametrize(
    "group", [[], ["network"], ["ipam"], ["dns"], ["cni"], ["host"], ["lab"]], ids=lambda it: " ".join(it) or "netplug"
)
def test_what_a_command_does_fits_its_line(
    group: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*group, "--help"]) == OK
    listed = capsys.readouterr().out.partition("Commands:\n")[2]
    assert listed
    assert [line for line in listed.splitlines() if line.endswith("...")] == []


def test_help_of_network_create_names_each_mode(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["network", "create", "--help"]) == OK
    said = capsys.readouterr().out
    assert {mode for mode in load_drivers() if mode not in said} <= {"ipam"}  # of the executable netplug-ipam alone


def test_a_narrow_terminal_cuts_no_port_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    ports = ["0.0.0.0:8000-8999->8000-8999/tcp", "[::]:8000-8999->8000-8999/tcp"]
    row = ("0a1b2c3d4e5f", "shop_default", "shop-web-1", "0a1b2c3d4e5f", ["10.208.0.2"], "02:00:0a:d0:00:02", "host-a")
    columns = ("id", "network", "name", "container", "addresses", "mac", "host", "front end", "ports")
    text = table(columns, [(*row, "docker", ports)])
    for port in (*ports, "10.208.0.2"):
        assert port in text


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives it away")
def test_serve_says_that_it_needs_root() -> None:
    code = "import os, sys; from netplug.cli import CliError, serving; os.setuid(65534)\n"
    code += "try: serving._refuse_without_rights()\nexcept CliError as exc: print(exc); sys.exit(exc.code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == NO
    assert re.fullmatch(r"netplug serve needs root: .* \(sudo netplug serve\)\n", done.stdout)
