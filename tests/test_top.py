"""`netplug top`: directions as the container sees them, rates, order, and what is said when there is nothing."""

import json
import re
from collections.abc import Iterator

import pytest
from dns_packets import query
from living import Living, living

from netplug.cli import OK, USAGE, main
from netplug.cli.top import ORDERS, rates, render
from netplug.daemon.life import Daemon
from netplug.dns.server import open_sockets
from netplug.drivers.steps import Ifb, Macvlan, Resolver, Veth
from netplug.kernel.links.api import LinkCounters


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Living]:
    with living(tmp_path_factory.mktemp("top")) as daemon:
        yield daemon


@pytest.fixture
def blue(daemon: Living) -> Iterator[str]:
    daemon.client.post("networks", body={"name": "blue", "options": {}})
    yield "blue"
    for row in daemon.client.get("endpoints")["endpoints"]:
        daemon.client.post("detach", body={"network": row["network"], "netns": row["sandbox"]})
    for row in daemon.client.get("networks")["networks"]:
        daemon.client.delete("networks", row["id"])
    daemon.kernel.counted.clear()


def attach(daemon: Living, name: str, network: str = "blue", **options: str) -> None:
    daemon.client.post("attach", body={"network": network, "netns": name, "name": name, "options": options})


def links(daemon: Living, *kinds: type[Veth | Ifb | Macvlan]) -> list[Veth | Ifb | Macvlan]:
    return [step for step in daemon.kernel._world.state.values() if isinstance(step, kinds)]


def row(ident: str, received: int, sent: int) -> dict[str, object]:
    ways = {"received": received, "sent": sent}
    counts = {way: {"bytes": count, "packets": count, "dropped": 0} for way, count in ways.items()}
    asked = {"queries": sent, "failed": 0}
    return {"id": ident, "network": "blue", "name": ident, "container": "", **counts, "dns": asked}


def test_directions_are_those_of_the_container(daemon: Living, blue: str) -> None:
    attach(daemon, "web", rate="10mbit")
    (veth,), (block,) = links(daemon, Veth), links(daemon, Ifb)
    daemon.kernel.counted[veth.name] = LinkCounters(10, 1, 2, 300, 3, 4)
    daemon.kernel.counted[block.name] = LinkCounters(tx_dropped=5)
    (found,) = daemon.client.get("traffic")["endpoints"]
    assert (found["name"], found["network"]) == ("web", "blue")
    assert found["received"] == {"bytes": 300, "packets": 3, "dropped": 4}
    assert found["sent"] == {"bytes": 10, "packets": 1, "dropped": 2 + 5}


def test_a_macvlan_is_counted_in_its_sandbox(daemon: Living, blue: str) -> None:
    daemon.kernel.foreign.links["eth9"] = ""
    body = {"name": "lan", "options": {"mode": "macvlan", "parent": "eth9"}, "subnets": [{"subnet": "10.77.0.0/24"}]}
    daemon.client.post("networks", body=body)
    attach(daemon, "inside", "lan")
    (link,) = links(daemon, Macvlan)
    daemon.kernel.counted[link.mac] = LinkCounters(rx_bytes=10, tx_bytes=300)
    (found,) = daemon.client.get("traffic", network="lan")["endpoints"]
    assert (found["received"]["bytes"], found["sent"]["bytes"]) == (10, 300)
    assert daemon.client.get("traffic", network="blue")["endpoints"] == []


def test_rates_are_of_the_time_between_two_looks() -> None:
    dns = {"network": "blue", "queries": 4, "failed": 0}
    before = {"at": 10.0, "endpoints": [row("web", 100, 0), row("anew", 900, 0)], "dns": [dns]}
    now = {
        "at": 12.0,
        "endpoints": [row("web", 500, 20), row("anew", 50, 0), row("new", 70, 0)],
        "dns": [{**dns, "queries": 10}],
    }
    found = rates(before, now)
    ways = {it["id"]: (it["received"]["bytes_per_s"], it["sent"]["packets_per_s"]) for it in found["endpoints"]}
    assert [it["dns"]["queries_per_s"] for it in found["endpoints"]] == [10.0, 0.0, 0.0]
    assert ways == {"web": (200.0, 10.0), "anew": (25.0, 0.0), "new": (0.0, 0.0)}
    assert found["dns"] == [{**dns, "queries": 10, "queries_per_s": 3.0, "failed_per_s": 0.0}]
    assert found["interval_s"] == 2.0


def test_command_prints_tables_or_json(daemon: Living, blue: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["top", "-i", "0.1", "--run-dir", str(daemon.settings.run_dir)]
    assert main(command) == OK
    assert capsys.readouterr().out == "no endpoints on this host\n"
    attach(daemon, "web")
    attach(daemon, "db")
    for link, count in zip(links(daemon, Veth), (1500, 2_000_000), strict=True):
        daemon.kernel.counted[link.name] = LinkCounters(tx_bytes=count)
    assert main([*command, "--sort", "total"]) == OK
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:4] == ["NETWORK", "NAME", "CONTAINER", "IN/S"]
    assert [(line[1], line[-4:]) for line in lines[1:]] == [
        ("db", ["2.0", "MB", "0", "B"]),
        ("web", ["1.5", "kB", "0", "B"]),
    ]
    assert main([*command, "--json", "--sort", "name"]) == OK
    found = json.loads(capsys.readouterr().out)
    assert [it["name"] for it in found["endpoints"]] == ["db", "web"]
    ways = ["bytes", "packets", "dropped", "bytes_per_s", "packets_per_s", "dropped_per_s"]
    assert list(found["endpoints"][0]["sent"]) == ways
    assert found["endpoints"][0]["dns"] == dict.fromkeys(("queries", "failed"), 0) | dict.fromkeys(
        ("queries_per_s", "failed_per_s"), 0.0
    )
    assert main([*command, "-n", "2"]) == OK
    assert capsys.readouterr().out.count("NETWORK") == 2


def test_dns_queries_are_those_of_the_endpoint(daemon: Living, blue: str) -> None:
    attach(daemon, "db")
    attach(daemon, "web")

    def ask(alive: Daemon) -> None:
        """Ask as containers do; the fake kernel has no gateway to ask at."""
        names, registry = alive._parts.name_server, alive._parts.engine.registry
        (network,) = registry.networks()
        (web,) = (it.endpoint.addresses[0].ip for it in registry.endpoints() if it.name == "web")
        step = Resolver(network.network.id, "np-test", network.resolvers[0], 25353)
        serving = names._serve(step, *open_sockets("127.0.0.1", 0))
        assert serving.listener._answers([(query("web"), web.packed)] * 20) != [None] * 20
        serving.close()

    before = daemon.client.get("traffic")
    daemon.do_and_get(ask)
    now = daemon.client.get("traffic")
    assert [(it["name"], it["dns"]) for it in now["endpoints"]] == [
        ("db", {"queries": 0, "failed": 0}),
        ("web", {"queries": 20, "failed": 0}),
    ]
    found = rates({**before, "at": 0.0}, {**now, "at": 2.0})
    found["endpoints"].sort(key=ORDERS["dns"])
    heading, first, *_ = (re.split(r"  +", line.strip()) for line in render(found).splitlines())
    assert first[0:2] == ["blue", "web"]
    assert (heading[-3], first[-3]) == ("DNS/S", "10")


def test_a_screen_shows_as_many_rows_as_fit() -> None:
    rows = [row(str(it), it, 0) for it in range(40)]
    found = rates({"at": 0.0, "endpoints": [], "dns": []}, {"at": 1.0, "endpoints": rows, "dns": []})
    assert len(render(found).splitlines()) == 41
    lines = render(found, 10).splitlines()
    assert (len(lines), lines[-1]) == (12, "… and 30 more")


@pytest.mark.parametrize("flags", [["--sort", "size"], ["-i", "0"], ["-n", "-1"]])
def test_wrong_use_is_named(daemon: Living, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", *flags, "--run-dir", str(daemon.settings.run_dir)]) == USAGE
    assert flags[1] in capsys.readouterr().err
