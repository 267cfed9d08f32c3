"""podman (4.3, by CNI) on our networks: run, stop, start, restart, rm, with ports, static addresses and aliases."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from shutil import which
from typing import Any

import pytest
from harness import (
    BIN_DIR,
    CommandError,
    Host,
    Netplug,
    Podman,
    Wire,
    assert_same,
    connect,
    http_get,
    namespace,
    snapshot,
    wait_until,
)

pytestmark = pytest.mark.skipif(which("podman") is None, reason="needs podman (make setup)")


@dataclass
class Place:
    host: Host
    client: Host
    wire: Wire
    netplug: Netplug
    podman: Podman

    def ends(self) -> list[dict[str, Any]]:
        return sorted(self.netplug.json("ps"), key=lambda end: str(end["name"]))


@pytest.fixture
def place(new_host: Callable[..., Host]) -> Iterator[Place]:
    host, client = new_host(), new_host("client")
    wire = connect(host, client)
    netplug = Netplug(host, "--docker-host", "none")
    netplug.cli("cni", "install", "--bin-dir", BIN_DIR)
    netplug.cli("network", "create", "blue", "--subnet", "10.91.0.0/24", "--ipv6")
    podman = Podman(host, "blue", netplug.cli("cni", "config", "blue"))
    before = snapshot(host, netplug)
    yield Place(host, client, wire, netplug, podman)
    assert_same(before, lambda: snapshot(host, netplug) | {"netns": before["netns"]})
    netplug.stop()


def test_podman_lists_the_network(place: Place) -> None:
    (net,) = json.loads(place.podman("network", "ls", "--format", "json"))
    assert (net["name"], net["driver"]) == ("blue", "pynet")


def test_life_of_a_podman_container(place: Place) -> None:
    """Its address, names and port are there after each start, and nothing is after each stop."""
    options = ("--network", "blue:alias=www,ip=10.91.0.77,mac=02:00:00:00:00:77", "-p", "8080:80")
    place.podman.run("web", *options)
    for again in (("start",), ("restart", "-t", "0"), None):
        (end,) = place.ends()
        assert (end["name"], end["mac"], end["front_end"]) == ("web", "02:00:00:00:00:77", "cni")
        assert "10.91.0.77/24" in end["addresses"]
        assert end["aliases"][0] == "www"
        shown = place.podman.networks("web")["blue"]
        assert (shown["IPAddress"], shown["Gateway"]) == ("10.91.0.77", "10.91.0.1")
        place.podman("exec", "-d", "web", "httpd", "-h", "/www")
        assert "netplug" in _page(place)
        if again and again[0] == "start":
            place.podman("stop", "-t", "0", "web")
            wait_until(lambda: place.ends() == [], what="the end of the endpoint")
        if again:
            place.podman(*again, "web")
    place.podman("rm", "-f", "-t", "0", "web")
    assert place.ends() == []


def _page(place: Place, port: int = 8080) -> str:
    return str(wait_until(lambda: http_get(place.client, place.wire.left, port), 10, ignoring=(OSError,)))


def test_a_port_is_added_to_a_running_container(place: Place) -> None:
    place.podman.run("web", "-p", "8080:80")
    place.podman("exec", "-d", "web", "httpd", "-h", "/www")
    place.netplug.cli("publish", "web", "9090:80")
    for port in (8080, 9090):
        assert "netplug" in _page(place, port)
    place.netplug.restart()
    assert "netplug" in _page(place, 9090)
    (end,) = place.ends()
    assert end["added_ports"] == ["0.0.0.0:9090->80/tcp", "[::]:9090->80/tcp"]
    place.podman("restart", "-t", "0", "web")
    (end,) = place.ends()
    assert (len(end["ports"]), end["added_ports"]) == (2, [])
    place.podman("rm", "-f", "-t", "0", "web")


def test_podman_containers_and_bare_namespaces_meet(place: Place) -> None:
    place.podman.run("one")
    place.podman.run("two")
    one, two = (place.podman.networks(name)["blue"]["IPAddress"] for name in ("one", "two"))
    place.podman("exec", "one", "ping", "-c1", "-W2", two)
    with namespace(place.host) as lab:
        lab.attach(place.netplug, "blue")
        assert lab.pings(one)
        lab.detach(place.netplug, "blue")
    place.podman("rm", "-f", "-t", "0", "one", "two")


def test_port_of_another_container_is_refused(place: Place) -> None:
    place.podman.run("one", "-p", "8080:80")
    with pytest.raises(CommandError, match="8080"):
        place.podman.run("two", "-p", "8080:80")
    place.podman("rm", "-f", "-t", "0", "one", "two")


def test_two_networks_and_no_daemon(place: Place) -> None:
    """A second network comes and goes while the container runs; the daemon is down at the end."""
    place.netplug.cli("network", "create", "red", "--subnet", "10.92.0.0/24")
    place.podman.configure("red", place.netplug.cli("cni", "config", "red"))
    place.podman.run("web", "--network", "blue")
    place.podman("network", "connect", "red", "web")
    assert {end["network"]: end["interface"] for end in place.ends()} == {"blue": "eth0", "red": "eth1"}
    place.podman("network", "disconnect", "red", "web")
    assert [end["network"] for end in place.ends()] == ["blue"]
    place.host.path("/run/cni-net.d/red.conflist").unlink()
    place.netplug.cli("network", "rm", "red")
    place.netplug.stop()
    place.host.env["NETPLUG_STATE_DIR"] = str(place.netplug.state_dir)
    place.podman("rm", "-f", "-t", "0", "web")
    place.podman.run("web", "-p", "8080:80")
    place.podman("rm", "-f", "-t", "0", "web")
    place.netplug.start()
    assert place.ends() == []


def test_podman_containers_resolve_names_of_all_runtimes(place: Place) -> None:
    """By libc and the resolv.conf that podman writes of our result."""
    place.podman.run("web", "--network", "blue:alias=www")
    place.podman.run("asker")
    web = place.podman.networks("web")["blue"]["IPAddress"]
    with namespace(place.host) as lab:
        result = lab.attach(place.netplug, "blue", "--name", "lab")
        conf = place.podman("exec", "asker", "cat", "/etc/resolv.conf")
        assert "nameserver 10.91.0.1" in conf
        assert "blue.netplug.internal" in conf
        for name, address in (("web", web), ("www", web), ("lab", result["addresses"][0].partition("/")[0])):
            assert f"({address})" in place.podman("exec", "asker", "ping", "-4", "-c1", "-W2", name)
        lab.detach(place.netplug, "blue")
    for name in ("web", "asker"):
        place.podman("rm", "-f", "-t", "0", name)
