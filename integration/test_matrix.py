"""Every way of running containers beside every other on one network: who reaches whom, by address and by name.

A row asks, a column is asked: containers of Docker, podman (CNI), a bare CNI runtime, netavark, and `netplug attach`,
in each mode in which containers meet, on one host and on two. One table a test: a failure shows which pairs fail.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from shutil import which
from typing import Any

import pytest
from harness import (
    BIN_DIR,
    CommandError,
    Dockerd,
    Host,
    Namespace,
    Netplug,
    Podman,
    Runtime,
    assert_same,
    connect,
    namespace,
    resolve,
    snapshot,
    wait_until,
)
from harness.cluster import cluster, needs_etcd
from harness.dockerd import SOCKET

pytestmark = [
    needs_etcd,
    pytest.mark.skipif(which("podman") is None, reason="needs podman (make setup)"),
    pytest.mark.timeout(300),  # some fifteen containers a test
]

NETWORK = "matrix"


@dataclass(frozen=True)
class End:
    """A container. `pings`: whether an address answers it. `finds`: the address that it has for a name, "" for none."""

    name: str
    ip: str
    pings: Callable[[str], bool]
    finds: Callable[[str], str]


@dataclass
class Place:
    """A host with all runtimes. `gateway`: where namespaces without files of their own ask for names; "" for nowhere.

    `shown`: the network as podman shows it to netavark.
    """

    host: Host
    netplug: Netplug
    dockerd: Dockerd
    gateway: str = ""
    runtimes: dict[str, Any] = field(default_factory=dict)

    def configure(self) -> None:
        """Tell podman and the CNI runtime of the network, which Docker or the command has made."""
        self.netplug.cli("cni", "install", "--bin-dir", BIN_DIR)
        conflist = self.netplug.cli("cni", "config", NETWORK)
        listed = json.loads(conflist)
        self.runtimes["cni"] = Runtime(self.host, *listed["plugins"], name=NETWORK, version=listed["cniVersion"])
        if "podman" in self.runtimes:
            self.runtimes["podman"].configure(NETWORK, conflist)
        else:
            self.runtimes["podman"] = Podman(self.host, NETWORK, conflist)


@contextmanager
def of_docker(place: Place, name: str) -> Iterator[End]:
    box = place.dockerd.run("--network", NETWORK, "--name", name)
    yield End(name, box.ip(), box.pings, lambda other: _pinged(lambda: box.exec("ping", "-4", "-c", "1", other)))
    box.remove()


@contextmanager
def of_podman(place: Place, name: str) -> Iterator[End]:
    podman: Podman = place.runtimes["podman"]
    podman.run(name, "--network", NETWORK)

    def ping(other: str) -> str:
        return podman("exec", name, "ping", "-4", "-c", "2", "-W", "1", other)

    ip = podman.networks(name)[NETWORK]["IPAddress"]
    yield End(name, ip, lambda other: _pinged(lambda: ping(other)) == other, lambda other: _pinged(lambda: ping(other)))
    podman("rm", "-f", "-t", "0", name)


@contextmanager
def of_cni(place: Place, name: str) -> Iterator[End]:
    runtime: Runtime = place.runtimes["cni"]
    with namespace(place.host) as it:
        one = runtime.add(it, args=f"K8S_POD_NAME={name}")
        yield _bare(place, it, name, one.ip)
        runtime.delete(one)


@contextmanager
def of_netavark(place: Place, name: str) -> Iterator[End]:
    network = {
        "name": NETWORK,
        "id": "1d" * 32,
        "driver": "pynet",
        "ipam_options": {"driver": "pynet"},
    }
    asked = json.dumps(
        {
            "container_id": name.encode().hex().ljust(64, "0"),
            "container_name": name,
            "port_mappings": None,
            "network": network,
            "network_options": {"interface_name": "eth0", "aliases": None, "static_ips": None, "static_mac": None},
        }
    )
    env = {"NETPLUG_STATE_DIR": str(place.netplug.state_dir)}
    with namespace(place.host) as it:
        path = f"/run/netns/{it.name}"
        said = json.loads(place.host.run([f"{BIN_DIR}/pynet", "setup", path], stdin=asked, env=env).stdout)
        (subnet,) = said["interfaces"]["eth0"]["subnets"]
        yield _bare(place, it, name, subnet["ipnet"].partition("/")[0])
        place.host.run([f"{BIN_DIR}/pynet", "teardown", path], stdin=asked, env=env)


@contextmanager
def of_attach(place: Place, name: str) -> Iterator[End]:
    with namespace(place.host) as it:
        it.attach(place.netplug, NETWORK, "--name", name)
        yield _bare(place, it, name, it.addresses[0])
        it.detach(place.netplug, NETWORK)


RUNTIMES = {"docker": of_docker, "podman": of_podman, "cni": of_cni, "netavark": of_netavark, "attach": of_attach}


def _bare(place: Place, it: Namespace, name: str, ip: str) -> End:
    def finds(other: str) -> str:
        return ",".join(resolve(it, place.gateway, other).data)

    return End(name, ip, it.pings, finds)


def _pinged(ping: Callable[[], str]) -> str:
    """Return the address that answered a ping, "" for none."""
    try:
        said = ping()
    except CommandError:
        return ""
    return said.partition("(")[2].partition(")")[0] if " 0% packet loss" in said else ""


def ends(stack: ExitStack, place: Place, suffix: str) -> list[End]:
    """One container of each runtime, started at once."""
    made = [make(place, f"{kind}{suffix}") for kind, make in RUNTIMES.items()]
    with ThreadPoolExecutor() as pool:
        started = [pool.submit(it.__enter__) for it in made]
    for it in made:
        stack.push(it)
    return [it.result() for it in started]


def check(rows: Sequence[End], columns: Sequence[End], *, names: bool = True) -> None:
    """Assert that each row reaches each column. `names`: those without files of their own have whom to ask."""
    with ThreadPoolExecutor() as pool:
        table = list(pool.map(lambda row: [_cell(row, column, names=names) for column in columns], rows))
    head = f"{'':12}" + "".join(f"{column.name:>12}" for column in columns)
    lines = [
        f"{row.name:12}" + "".join(f"{cell:>12}" for cell in cells) for row, cells in zip(rows, table, strict=True)
    ]
    assert {cell for cells in table for cell in cells} == {"ok"}, "\n".join(["who (rows) reaches whom:", head, *lines])


def _cell(row: End, column: End, *, names: bool) -> str:
    if not row.pings(column.ip):
        return "silent"
    return "ok" if not names or row.finds(column.name) == column.ip else "no name"


def warmed(dockerd: Dockerd) -> Dockerd:
    """Have dockerd make what it makes once and keeps."""
    dockerd.docker("network", "create", "-d", "bridge", "warm-up")
    dockerd.docker("run", "--rm", "--network", "warm-up", "-p", "1", "bb:1", "true")
    dockerd.docker("network", "rm", "warm-up")
    return dockerd


def leaving_nothing(places: Iterable[Place], stack: ExitStack) -> None:
    """Assert at the end of the block that the network's links, rules and leases are gone."""
    for place in places:
        before = snapshot(place.host, place.netplug)
        # podman keeps its pause of namespaces; what is ours is told by the rest.
        stack.callback(
            lambda p=place, b=before: assert_same(b, lambda: snapshot(p.host, p.netplug) | {"netns": b["netns"]})
        )


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Place, Place]]:
    """Two hosts on one segment, without a cluster."""
    with Host("left") as left, Host("right") as right:
        connect(left, right)
        places = [Place(host, Netplug(host), warmed(Dockerd(host))) for host in (left, right)]
        for place in places:
            create(place.dockerd, "--subnet", "10.99.0.0/24")
            place.dockerd.docker("run", "--rm", "--network", NETWORK, "-p", "1", "bb:1", "true")
            place.dockerd.docker("network", "rm", NETWORK)
        yield places[0], places[1]


@pytest.fixture(scope="module")
def members() -> Iterator[tuple[Place, Place]]:
    """Two hosts of a cluster."""
    with cluster(0) as it:
        made = [it.add("--docker-host", f"unix://{SOCKET}") for _ in range(2)]
        yield tuple(Place(one.host, one.netplug, warmed(Dockerd(one.host))) for one in made)  # type: ignore[misc]


def create(dockerd: Dockerd, *options: str) -> None:
    dockerd.docker("network", "create", "-d", "pynet", "--ipam-driver", "pynet", *options, NETWORK)


def test_on_a_bridge(pair: tuple[Place, Place]) -> None:
    place = pair[0]
    with ExitStack() as stack:
        leaving_nothing([place], stack)
        create(place.dockerd, "--subnet", "10.92.0.0/24")
        stack.callback(place.dockerd.docker, "network", "rm", NETWORK)
        place.gateway = "10.92.0.1"
        place.configure()
        check(ends(stack, place, "1"), ends(stack, place, "2"))
        assert not place.netplug.drift()


def test_on_a_macvlan_segment(pair: tuple[Place, Place]) -> None:
    """On this segment nobody answers for names but Docker's own resolver, in its containers."""
    with ExitStack() as stack:
        leaving_nothing(pair, stack)
        for number, place in enumerate(pair):
            part = f"10.93.0.{64 * (number + 1)}/26"
            options = ("-o", "mode=macvlan", "--subnet", "10.93.0.0/24", "--ip-range", part, "--gateway", "10.93.0.254")
            create(place.dockerd, *options)
            stack.callback(place.dockerd.docker, "network", "rm", NETWORK)
            place.gateway = ""
            place.configure()
        here, there = ends(stack, pair[0], "1"), ends(stack, pair[1], "2")
        check(here, ends(stack, pair[0], "3"), names=False)
        check(here, there, names=False)
        check(there, here, names=False)
        assert not any(place.netplug.drift() for place in pair)


def test_on_an_overlay(members: tuple[Place, Place]) -> None:
    with ExitStack() as stack:
        first = members[0].netplug
        first.cli("network", "create", NETWORK, "--cluster", "--subnet", "10.94.0.0/24")
        stack.callback(first.cli, "network", "rm", NETWORK)
        # Docker removes its own record of it, and the host has the cluster's again a moment later.
        listed = lambda: NETWORK in first.cli("network", "ls")  # noqa: E731
        stack.callback(wait_until, listed, what="the network without Docker")
        for place in members:
            wait_until(lambda p=place: NETWORK in p.netplug.cli("network", "ls"), what="the network on both")  # type: ignore[misc]
            create(place.dockerd, "--ipam-opt", f"name={NETWORK}", "-o", "mode=overlay", "-o", f"name={NETWORK}")
            stack.callback(place.dockerd.docker, "network", "rm", NETWORK)
            place.gateway = "10.94.0.1"
            place.configure()
        here, there = ends(stack, members[0], "1"), ends(stack, members[1], "2")
        check(here, ends(stack, members[0], "3"))
        check(here, there)
        check(there, here)
        # Hosts hear of each other's containers in their time.
        wait_until(lambda: not any(place.netplug.drift() for place in members), what="no drift")
