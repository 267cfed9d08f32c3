"""`netplug graph`: what hangs together how, the same each time, with names that are data in each form."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from clustered import Hosts, apart, attach, create, has, reaches
from etcd_server import Member, needs_etcd
from living import Living, living
from test_cli import Cli

from netplug.cli import USAGE
from netplug.insight import drawing
from netplug.insight.graph import Container, Endpoint, Graph, Host, Network, Subnet
from netplug.insight.svg import BOX_H, BOX_W, svg

EVIL = '<img src=x onerror=alert(1)>"]; end\\ #35; |x| \x1b[31m\x00'


def graph_of(hosts: int = 3, networks: int = 5, containers: int = 30, name: str = "") -> Graph:
    """Return a graph in which each ninth container is in two networks, and two of five networks are of one host."""
    places = [Host(name=f"host-{number}", me=number == 0, address=f"192.0.2.{number + 1}") for number in range(hosts)]
    graph = Graph(hosts=places, networks=[], containers=[], endpoints=[])
    for number in range(networks):
        subnet = Subnet(subnet=f"10.1.{number}.0/24", gateway=f"10.1.{number}.1", size=254, used=7)
        shared = number % 5 < 3
        at = [host.name for host in places] if shared else ["host-0"]
        kind = "overlay" if shared else "bridge"
        network = Network(
            id=f"net{number}", name=name or f"blue-{number}", mode=kind, internal=False, shared=shared, mtu=1450,
            subnets=[subnet], hosts=at,
        )  # fmt: skip
        graph.networks.append(network)
    for number in range(containers):
        network = graph.networks[number % networks]
        host = network.hosts[number % len(network.hosts)]
        one = Container(key=f"{host}/c{number}", name=name or f"web-{number}", id="", host=host, front_end="docker")
        graph.containers.append(one)
        for other in {number % networks, (number + 1) % networks if number % 9 == 0 else number % networks}:
            graph.endpoints.append(
                Endpoint(
                    id=f"{number}-{other}",
                    network=f"net{other}",
                    container=one.key,
                    ports=[],
                    healthy=True,
                    addresses=[f"10.1.{other}.{number % 250 + 2}"],
                    mac="02:00:00:00:00:01",
                )
            )
    return graph


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Living]:
    with living(tmp_path) as daemon:
        for name, subnet in (("blue", "10.1.0.0/24"), ("red", "10.2.0.0/24")):
            daemon.client.post("networks", body={"name": name, "subnets": [{"subnet": subnet}]})
        for network, netns, name, ifname in (
            ("blue", "web", "web", "eth0"),
            ("red", "web", "web", "eth1"),
            ("blue", "db", "db", "eth0"),
        ):
            body = {"network": network, "netns": f"/run/netns/{netns}", "ifname": ifname, "name": name}
            daemon.client.post("attach", body=body)
        yield daemon


@pytest.fixture
def cli(daemon: Living, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(daemon.settings.run_dir, capsys)


def test_text_shows_each_network_with_its_containers(cli: Cli) -> None:
    assert cli("graph") == (
        "host host-a (this host)\n"
        "\n"
        "network blue  bridge 10.1.0.0/24 3/254\n"
        "  ├─ db   10.1.0.3\n"
        "  └─ web  10.1.0.2\n"
        "\n"
        "network red  bridge 10.2.0.0/24 2/254\n"
        "  └─ web  10.2.0.2\n"
    )


def test_a_container_in_two_networks_is_one(cli: Cli) -> None:
    found = cli.json("graph")
    assert list(found) == ["hosts", "networks", "containers", "endpoints", "note"]
    assert [one["name"] for one in found["containers"]] == ["db", "web"]
    web = next(one["key"] for one in found["containers"] if one["name"] == "web")
    names = {one["id"]: one["name"] for one in found["networks"]}
    assert [names[one["network"]] for one in found["endpoints"] if one["container"] == web] == ["blue", "red"]
    assert [one["subnets"][0]["used"] for one in found["networks"]] == [3, 2]  # with the gateway


def test_all_forms_are_the_same_each_time_and_exclude_each_other(cli: Cli) -> None:
    for form in ("--mermaid", "--dot", "--svg"):
        assert cli("graph", form) == cli("graph", form)
    assert "exclude each other" in cli("graph", "--dot", "--svg", code=USAGE)


@needs_etcd
@pytest.mark.own_etcd
def test_without_the_store_it_has_what_this_host_knows(
    hosts: Hosts, etcd: Member, capsys: pytest.CaptureFixture[str]
) -> None:
    one = hosts.start(1)
    create(one, subnets=apart())
    attach(one, name="web")
    etcd.stop()
    cli = Cli(one.settings.run_dir, capsys)
    found = cli.json("graph")
    assert [host["name"] for host in found["hosts"]] == ["host-1"]
    assert [container["name"] for container in found["containers"]] == ["web"]
    assert "hosts are not shown: " in found["note"]


@needs_etcd
def test_in_a_cluster_it_has_the_other_hosts(hosts: Hosts, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = hosts.start(1), hosts.start(2)
    create(one, subnets=apart())
    has(other)
    attached = attach(other, name="db")
    address = attached["addresses"][0].partition("/")[0]
    reaches(one, f"{address} at 192.0.2.2")
    found = Cli(one.settings.run_dir, capsys).json("graph")
    assert [(host["name"], host["me"], host["alive"]) for host in found["hosts"]] == [
        ("host-1", True, True),
        ("host-2", False, True),
    ]
    (db,) = found["containers"]
    assert (db["name"], db["host"]) == ("db", "host-2")
    assert found["endpoints"][0]["addresses"] == [address]
    assert [network["subnets"][0]["used"] for network in found["networks"]] == [2]  # with the gateway
    other.stop()
    found = Cli(one.settings.run_dir, capsys).json("graph")
    assert [host["alive"] for host in found["hosts"]] == [True, False]


def test_the_image_is_well_formed_and_nothing_lies_upon_another() -> None:
    tree = ET.fromstring(svg(graph_of()))  # noqa: S314 - our own
    name = "{http://www.w3.org/2000/svg}"
    width, height = float(tree.attrib["width"]), float(tree.attrib["height"])
    boxes = [
        tuple(float(rect.attrib[key]) for key in ("x", "y"))
        for rect in tree.iter(f"{name}rect")
        if "box" in rect.attrib["class"]
    ]
    assert len(boxes) == len(graph_of().endpoints)
    assert all(0 < x < width - BOX_W and 0 < y < height - BOX_H for x, y in boxes)
    for x, y in boxes:
        assert sum(abs(x - u) < BOX_W and abs(y - v) < BOX_H for u, v in boxes) == 1


def test_the_image_shows_names_as_text() -> None:
    tree = ET.fromstring(svg(graph_of(name=EVIL)))  # noqa: S314 - our own
    assert {element.tag.partition("}")[2] for element in tree.iter()} == {
        "svg",
        "style",
        "rect",
        "path",
        "text",
        "g",
        "title",
    }
    assert any(
        "<img src=x onerror=alert(1)>" in (text.text or "") for text in tree.iter("{http://www.w3.org/2000/svg}title")
    )


def test_mermaid_and_dot_quote_names() -> None:
    graph = graph_of(1, 1, 1, EVIL)
    chart = drawing.mermaid(graph)
    assert "<img" not in chart
    assert all(line.count('"') in {0, 2} for line in chart.splitlines())
    label = re.search(r"c0 \[shape=box, label=(\"(?:[^\"\\]|\\.)*\")\];", drawing.dot(graph))
    assert label
    assert json.loads(label[1].replace("\x1b", "?").replace("\x00", "?")).startswith(
        '<img src=x onerror=alert(1)>"]; end\\ '
    )


def test_text_has_no_commands_for_the_terminal() -> None:
    assert "\x1b" not in drawing.text(graph_of(name=EVIL))


def test_an_empty_host_is_drawn_too() -> None:
    graph = Graph(hosts=[Host(name="host-a", me=True)], networks=[], containers=[], endpoints=[])
    assert drawing.text(graph) == "host host-a (this host)"
    assert ET.fromstring(svg(graph)).tag.endswith("svg")  # noqa: S314 - our own
    assert drawing.dot(graph).endswith("}")
    assert "host-a" in drawing.mermaid(graph)
