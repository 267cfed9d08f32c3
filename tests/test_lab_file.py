import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from netplug.cli import NO, USAGE, main
from netplug.errors import NetplugError
from netplug.lab.file import Lab, load
from netplug.lab.status import graph

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples" / "lab").glob("*.yaml"))
LAB: dict[str, Any] = {
    "hosts": {"a": {"docker": True}, "b": {"mtu": 1400, "rate": "100mbit"}},
    "networks": {"blue": {"hosts": ["a"]}, "green": {}},
    "containers": {
        "web": {"host": "a", "runtime": "docker", "networks": ["blue", "green"]},
        "one": {"host": "a", "networks": ["green"]},
        "two": {"host": "b", "networks": ["green"]},
        "six": {"host": "b", "networks": ["green"]},
    },
}


def write(path: Path, data: object) -> Path:
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False))
    return path


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return load(write(tmp_path / "mine.yaml", LAB))


def test_name_is_the_files_unless_it_says_another(tmp_path: Path, lab: Lab) -> None:
    assert lab.name == "mine"
    assert load(write(tmp_path / "x.yaml", LAB | {"name": "yours"})).name == "yours"


def test_networks_of_one_host_connect_its_containers_alone(lab: Lab) -> None:
    assert lab.pairs() == [("green", "web", "one"), ("green", "two", "six")]
    assert lab.nodes("green") == ("a", "b")
    assert lab.by_docker("green", "a")
    assert not lab.by_docker("green", "b")


def test_overlays_connect_hosts_unless_they_separate_containers(tmp_path: Path) -> None:
    nets = {"blue": {"mode": "overlay"}, "green": {"mode": "overlay", "options": {"icc": False}}}
    lab = load(write(tmp_path / "x.yaml", LAB | {"store": "etcd", "networks": nets}))
    assert lab.pairs() == []
    both = {name: it | {"networks": ["blue"]} for name, it in LAB["containers"].items()}
    lab = load(write(tmp_path / "x.yaml", LAB | {"store": "etcd", "networks": nets, "containers": both}))
    assert [pair[1:] for pair in lab.pairs()] == [
        ("web", "one"),
        ("web", "two"),
        ("web", "six"),
        ("one", "two"),
        ("one", "six"),
        ("two", "six"),
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("hosts: [", "is not YAML"),
        ("- a", "is not a mapping"),
        ({"hots": {"a": {}}, "hosts": None}, "hots: unknown key, did you mean 'hosts'"),
        ({"hosts": {}}, "hosts: is empty"),
        ({"hosts": {"A": {}}}, "hosts.A: 'A' is not a name: 1 to 32 characters a-z"),
        ({"hosts": {"etcd": {}}}, "'etcd' is reserved for the host of the store"),
        ({"hosts": {"a": {"mtu": 100}}}, "hosts.a.mtu: .*576"),
        ({"hosts": {"a": {"rate": "fast"}}}, "hosts.a.rate: 'fast' is not a rate such as 100mbit"),
        ({"hosts": {"a": {"colour": 1}}}, "hosts.a.colour: unknown key; valid keys are mtu, rate, docker, serve"),
        ({"hosts": {"a": {"dokcer": True}}}, "hosts.a.dokcer: unknown key, did you mean 'docker'?"),
        ({"host": {}}, "host: unknown key, did you mean 'hosts'?"),
        ({"underlay": {"mtus": 1}}, "underlay.mtus: unknown key, did you mean 'mtu'?"),
        (
            {"networks": {"blue": {"subnet": "10.1.0.0/24"}}},
            "networks.blue.subnet: unknown key, did you mean 'subnets'?",
        ),
        ({"networks": {"blue": {"hosts": ["z"]}}}, "networks.blue.hosts: host 'z' does not exist; there are a, b"),
        ({"networks": {"blue": {"subnets": ["10.0.0.1/8"]}}}, "networks.blue.subnets.0: .*host bits"),
        ({"networks": {"blue": {"mode": "overlay"}}}, "networks.blue: mode overlay needs 'store: etcd'"),
        (
            {"containers": {"c": {"host": "z", "networks": ["green"]}}},
            "containers.c.host: host 'z' does not exist; there are a",
        ),
        ({"containers": {"c": {"host": "a", "networks": []}}}, "containers.c.networks: "),
        (
            {"containers": {"c": {"host": "a", "networks": ["red"]}}},
            "network 'red' does not exist; there are blue,",
        ),
        ({"containers": {"c": {"host": "b", "networks": ["blue"]}}}, "network 'blue' is not on host 'b'"),
        (
            {"containers": {"c": {"host": "b", "networks": ["green"], "runtime": "docker"}}},
            r"containers.c: host 'b' has no dockerd \('docker: true'\)",
        ),
        (
            {"containers": {"c": {"host": "a", "networks": ["blue", "green"], "ip": ["10.1.0.9"]}}},
            "containers.c: with 'ip' or runtime cni there can be only one network",
        ),
        ({"underlay": {"ipv4": "198.18.0.0/28"}}, "underlay: an underlay must be a /24 or larger"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, change: Any, words: str) -> None:
    path = write(tmp_path / "bad.yaml", change if isinstance(change, str) else LAB | change)
    with pytest.raises(NetplugError) as caught:
        load(path)
    assert caught.value.kind == "invalid"
    assert caught.value.message.startswith(f"{path}: ") or caught.value.message.startswith(f"{path} is")
    assert re.search(words, caught.value.message)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_labs_and_can_be_drawn(path: Path) -> None:
    lab = load(path)
    assert lab.name == path.stem
    drawn = graph(lab)
    assert drawn.startswith("flowchart TB\n")
    for name in (*lab.hosts, *lab.containers, *lab.networks):
        assert name in drawn


def test_podman_has_the_networks_of_its_containers_that_of_the_first_before_others(tmp_path: Path) -> None:
    parts = {
        "one": {"host": "a", "runtime": "podman", "networks": ["green"]},
        "two": {"host": "a", "runtime": "podman", "networks": ["blue", "green"]},
        "six": {"host": "b", "networks": ["green"]},
    }
    lab = load(write(tmp_path / "x.yaml", LAB | {"containers": parts}))
    assert lab.of_podman("a") == ["green", "blue"]
    assert lab.of_podman("b") == []


def test_graph_shows_links_and_who_is_where(lab: Lab) -> None:
    drawn = graph(lab).splitlines()
    assert '  host-b ---|"mtu 1400, 100mbit"| switch' in drawn
    assert '    c-web["web<br/>docker"]' in drawn
    assert "  c-web --- n-blue-a" in drawn
    assert "  c-two --- n-green-b" in drawn
    assert "n-blue-b" not in graph(lab)


def test_commands_say_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETPLUG_LAB_DIR", str(tmp_path / "labs"))
    assert main(["lab", "up", str(tmp_path / "absent.yaml")]) == USAGE
    assert capsys.readouterr().err == f"netplug: {tmp_path}/absent.yaml cannot be read: no such file or directory\n"
    assert main(["lab", "graph"]) == NO
    assert capsys.readouterr().err == "netplug: no lab is up (netplug lab up FILE)\n"
    assert main(["lab", "graph", "--lab", "x"]) == NO
    assert capsys.readouterr().err == "netplug: no lab 'x' is up (labs that are up: none)\n"
    assert main(["lab", "ls"]) == 0
    assert capsys.readouterr().out == ""
