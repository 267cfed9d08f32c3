"""Projects of `docker compose`: by the real command, and by what its successors ask Docker for.

Three services on two networks: `proxy` in front, `db` in an internal network, `web` in both. That everything is gone
afterwards is asserted by the leak check of every test, see `conftest.py`.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from shutil import which

import pytest
from harness import (
    CommandError,
    Container,
    Dockerd,
    Host,
    Netplug,
    Wire,
    container,
    docker_network,
    http_get,
    wait_until,
)

from netplug.lab.image import IMAGE, PAGE

RESTART_TIMEOUT_S = 30
"""Docker waits 0.1, 0.2, 0.4 … s between tries of its restart policy."""
LOOKUP = ("-type=a", "-retry=1", "-timeout=2")
"""Docker knows its names at once; what it does not know it asks elsewhere, in vain."""
PROJECT = "shop"
SERVE = ["httpd", "-f", "-h", "/www"]
FRONT = "10.95.1.0/24"
BACK = "10.95.2.0/24"
SERVICE = {"image": IMAGE, "init": True, "command": SERVE, "restart": "always", "stop_grace_period": "0s"}
"""busybox's httpd does not end by SIGTERM under every init."""


def _net(subnet: str, **more: object) -> dict[str, object]:
    settings = {"subnet": subnet, "gateway": subnet.replace("0/24", "1")}
    return {"driver": "pynet", "driver_opts": {"mtu": "1400"}, "ipam": {"driver": "pynet", "config": [settings]}} | more


FILE = {
    "services": {
        "proxy": SERVICE
        | {"ports": ["8080:80"], "networks": {"front": {"ipv4_address": "10.95.1.10", "aliases": ["site"]}}},
        "web": SERVICE
        | {"ports": ["8091-8093:80"], "networks": {"front": {"aliases": ["app"]}, "back": {}}, "depends_on": ["db"]},
        "db": SERVICE | {"networks": {"back": {"ipv4_address": "10.95.2.10", "aliases": ["store"]}}},
    },
    "networks": {"front": _net(FRONT), "back": _net(BACK, internal=True)},
}

pytestmark = pytest.mark.usefixtures("netplug")


class Project:
    """A running project."""

    def __init__(self, dockerd: Dockerd) -> None:
        self.dockerd = dockerd
        self._file = dockerd.host.dir / "compose.yaml"
        self._file.write_text(json.dumps(FILE, indent=1))  # JSON is YAML

    def compose(self, *args: str) -> str:
        command = ("docker-compose", "-p", PROJECT, "-f", str(self._file), *args)
        return self.dockerd.host.run(command, timeout_s=90).stdout

    def up(self, *options: str) -> None:
        self.compose("up", "-d", *options)

    def containers(self, service: str) -> list[Container]:
        return [Container(self.dockerd, ident) for ident in self.compose("ps", "-q", service).split()]

    def one(self, service: str) -> Container:
        (it,) = self.containers(service)
        return it


@pytest.fixture
def project(dockerd: Dockerd) -> Iterator[Project]:
    """The project, up with one container a service; removed at the end if the test got there."""
    if not which("docker-compose"):
        pytest.skip("needs docker-compose (make setup)")
    it = Project(dockerd)
    it.up()
    yield it
    it.compose("down")


@contextmanager
def by_hand(dockerd: Dockerd) -> Iterator[tuple[Container, Container, Container]]:
    """Proxy, web and db by the calls of compose 2: names with dashes, labels, each service's name as an alias."""

    def service(name: str, network: str, *flags: str) -> tuple[str, ...]:
        labels = ("--label", f"com.docker.compose.project={PROJECT}", "--label", f"com.docker.compose.service={name}")
        named = ("--name", f"{PROJECT}-{name}-1", "--hostname", name, *labels)
        return (*named, "--network", network, "--network-alias", name, *flags)

    with (
        docker_network(dockerd, "--subnet", FRONT) as front,
        docker_network(dockerd, "--subnet", BACK, "--internal") as back,
        container(dockerd, *service("db", back)) as db,
        container(dockerd, *service("web", front), command=SERVE) as web,
        container(dockerd, *service("proxy", front, "-p", "8080:80"), command=SERVE) as proxy,
    ):
        dockerd.docker("network", "connect", "--alias", "web", "--alias", "app", "--ip", "10.95.2.20", back, web.id)
        yield proxy, web, db


def resolved(place: Container, name: str) -> set[str]:
    """Return the IPv4 addresses that Docker's resolver at 127.0.0.11 has for a name, asked in a container."""
    try:
        said = place.exec("nslookup", *LOOKUP, name, "127.0.0.11")
    except CommandError:
        return set()
    return set(re.findall(r"^Address(?: \d+)?: ([0-9.]+)(?: |$)", said.partition("\n\n")[2], re.MULTILINE))


def page(place: Host, address: str, port: int) -> str:
    """Fetch a page once somebody answers: a container may still be starting its server."""
    return wait_until(lambda: http_get(place, address, port), ignoring=(OSError,))


def address(it: Container, network: str) -> str:
    return it.ip(f"{PROJECT}_{network}")


def leased(netplug: Netplug) -> list[str]:
    """Return the addresses that endpoints of the project have."""
    pools = [pool for pool in netplug.json("ipam", "ls") if pool["subnet"] in {FRONT, BACK}]
    return sorted(it["address"] for pool in pools for it in pool["leases"] if it["owner_kind"] == "endpoint")


def test_services_find_each_other_and_only_the_neighbours(project: Project, client: Host, wire: Wire) -> None:
    proxy, web, db = map(project.one, ("proxy", "web", "db"))
    assert page(client, wire.left, 8080) == PAGE
    assert address(proxy, "front") == "10.95.1.10"
    assert address(db, "back") == "10.95.2.10"
    assert "mtu 1400" in web.exec("ip", "link", "show", "eth0")

    for name in ("web", "app"):
        assert resolved(proxy, name) == {address(web, "front")}
    assert resolved(web, "site") == resolved(web, "proxy") == {"10.95.1.10"}
    assert resolved(web, "store") == resolved(web, "db") == {"10.95.2.10"}
    assert resolved(db, "web") == {address(web, "back")}
    assert proxy.pings("web")
    assert web.pings("store")
    assert db.pings("web")

    assert not resolved(proxy, "db")
    assert not resolved(db, "proxy")
    assert not proxy.pings("10.95.2.10")
    assert not db.pings("10.95.1.10")
    # The middle one goes out by the network in front, the last one not at all.
    assert web.pings(wire.right)
    assert not db.pings(wire.right)


def test_service_is_scaled_up_and_back(project: Project, netplug: Netplug, client: Host, wire: Wire) -> None:
    proxy, db, (before,) = project.one("proxy"), project.one("db"), project.containers("web")
    assert len(leased(netplug)) == 4
    project.up("--scale", "web=3")
    replicas = project.containers("web")
    assert len(replicas) == 3
    assert resolved(proxy, "web") == {address(it, "front") for it in replicas}
    assert resolved(db, "web") == {address(it, "back") for it in replicas}
    assert all(proxy.pings(address(it, "front")) for it in replicas)
    assert all(db.pings(address(it, "back")) for it in replicas)
    assert len(set(leased(netplug))) == 8
    # Each has a port of the range.
    assert {page(client, wire.left, port) for port in (8091, 8092, 8093)} == {PAGE}

    project.up("--scale", "web=1")
    assert [it.id for it in project.containers("web")] == [before.id]
    assert resolved(proxy, "web") == {address(before, "front")}
    assert resolved(db, "app") == set(), "an alias of the other network"
    assert len(leased(netplug)) == 4
    (port,) = (port for it in netplug.json("ps") for port in it["ports"] if port.startswith("0.0.0.0:809"))
    assert page(client, wire.left, int(port.partition("->")[0].rpartition(":")[2])) == PAGE


@pytest.mark.parametrize("service", ["proxy", "web", "db"])
def test_killed_service_comes_back_with_its_networks(
    project: Project, netplug: Netplug, client: Host, wire: Wire, service: str
) -> None:
    it = project.one(service)
    dead = it.inspect()["State"]["Pid"]
    project.dockerd.host.run(["kill", "-9", str(dead)])
    wait_until(lambda: it.inspect()["State"]["Pid"] not in {0, dead}, RESTART_TIMEOUT_S, "the restart")

    proxy, web, db = map(project.one, ("proxy", "web", "db"))
    assert page(client, wire.left, 8080) == PAGE
    assert address(proxy, "front") == "10.95.1.10"
    assert address(db, "back") == "10.95.2.10"
    assert resolved(proxy, "app") == {address(web, "front")}
    assert resolved(web, "site") == {"10.95.1.10"}
    assert resolved(db, "web") == {address(web, "back")}
    assert proxy.pings("app")
    assert web.pings("site")
    assert web.pings("store")
    assert db.pings("web")
    assert web.pings(wire.right)
    assert len(leased(netplug)) == 4
    assert wait_until(lambda: not netplug.drift())


def test_changed_service_is_replaced_on_its_address(project: Project, client: Host, wire: Wire) -> None:
    """`up` after an edit: the new container asks for the address and the port that the old one had just now."""
    before = project.one("proxy")
    project.up("--force-recreate", "--no-deps", "proxy")
    after = project.one("proxy")
    assert after.id != before.id
    assert address(after, "front") == "10.95.1.10"
    assert page(client, wire.left, 8080) == PAGE
    assert resolved(project.one("web"), "site") == {"10.95.1.10"}


def test_restarted_project_is_whole(project: Project, netplug: Netplug, client: Host, wire: Wire) -> None:
    project.compose("stop")
    # Docker says that a container has stopped before it has taken it from its networks.
    wait_until(lambda: not [it for it in netplug.json("ps") if it["ports"]], what="no ports")
    project.compose("start")
    assert page(client, wire.left, 8080) == PAGE
    assert project.one("proxy").pings("app")
    assert project.one("web").pings("store")


def test_connected_by_alias_and_address_while_running(dockerd: Dockerd, client: Host, wire: Wire) -> None:
    with by_hand(dockerd) as (proxy, web, db):
        assert page(client, wire.left, 8080) == PAGE
        assert resolved(db, "app") == resolved(db, "web") == {"10.95.2.20"}
        assert "10.95.2.20/24" in web.exec("ip", "address", "show", "eth1")
        assert db.pings("app")
        assert web.pings("db")
        assert web.pings(wire.right), "its way out is still the network in front"
        assert not resolved(proxy, "app"), "an alias of the other network"
        assert proxy.pings("web")

        (back,) = db.inspect()["NetworkSettings"]["Networks"]
        dockerd.docker("network", "disconnect", back, web.id)
        assert not resolved(db, "web")
        assert not db.pings("10.95.2.20")
        assert "eth1" not in web.exec("ip", "link")
        assert proxy.pings("web"), "the other network stays"

        dockerd.docker("network", "connect", "--alias", "desk", "--ip", "10.95.2.30", back, web.id)
        assert resolved(db, "desk") == {"10.95.2.30"}
        assert not resolved(db, "app"), "an alias of the former connection"
        assert db.pings("desk")
