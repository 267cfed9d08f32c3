"""Hosts of bench/path.py: one with both engines, and one without a firewall; with the lines to measure on them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ballast
from harness import Container, Dockerd, Host, Netplug, connect

WAYS = ("to container", "to outside", "from outside", "from host")
PUBLISHED = WAYS[2:]
FIRST_PORTS = {"pynet": 7000, "bridge": 7100, "plain": 7000}
"""The server's port is this and the number of the way. Where it is published, it is so at the same number."""
SUBNET = "10.{}.{}.0/24"
SHORT_S = 1
"""What `flows` leaves in connection tracking ends after this time, so that its source ports are free again."""


@dataclass(frozen=True)
class Line:
    """A client's and a server's namespace, where the client sends to, and the port, of the server too."""

    client: Path
    server: Path
    address: str
    port: int


Lines = dict[str, Line]
"""By way."""


def _lines(driver: str, places: list[tuple[Path, Path, str]]) -> Lines:
    return {way: Line(*place, _port(driver, way)) for way, place in zip(WAYS, places, strict=True)}


def _port(driver: str, way: str) -> int:
    return FIRST_PORTS[driver] + WAYS.index(way)


@contextmanager
def engines(
    name: str, drivers: tuple[str, ...], *, networks: int = 0, endpoints: int = 0, docker_networks: int = 0
) -> Iterator[list[Lines]]:
    """A host with dockerd and, if a driver is its, the daemon, and these ballasts; yields the lines of each driver."""
    with Host(name) as host, Host("outside") as outside:
        wire = connect(host, outside)
        dockerd = Dockerd(host)
        if "pynet" in drivers:
            ballast.lay(host, Netplug(host), networks, endpoints)
        for number in range(docker_networks):
            subnet = SUBNET.format(128 + number // 256, number % 256)
            dockerd.docker("network", "create", "--subnet", subnet, f"ballast{number}")
        containers: list[Container] = []
        found = []
        for driver in drivers:
            network = f"own-{driver}"
            dockerd.docker("network", "create", "-d", driver, network)
            ports = [_port(driver, way) for way in PUBLISHED]
            options = [f"-p={port}:{port}/{proto}" for port in ports for proto in ("tcp", "udp")]
            client, server = (dockerd.run("--network", network, *it) for it in ((), options))
            containers += [client, server]
            places = [
                (client.netns, server.netns, server.ip(network)),
                (client.netns, outside.netns, wire.right),
                (outside.netns, server.netns, wire.left),
                (host.netns, server.netns, wire.left),
            ]
            found.append(_lines(driver, places))
        host.run(["sysctl", "-qw", f"net.netfilter.nf_conntrack_udp_timeout={SHORT_S}"])
        yield found
        for container in containers:
            container.remove()


@contextmanager
def plain() -> Iterator[list[Lines]]:
    """A host with a bridge, veth pairs and routes, by `ip`: no firewall, no NAT, no connection tracking."""
    with Host("plain") as host, Host("outside") as outside:
        wire = connect(host, outside)
        base = (
            "sysctl -qw net.ipv4.ip_forward=1",
            "ip link add br0 type bridge",
            "ip addr add 10.94.1.1/24 dev br0",
            "ip link set br0 up",
        )
        host.run(["sh", "-ec", "\n".join(base)])
        boxes = []
        for number, name in ((2, "one"), (3, "two")):
            host.run(["ip", "netns", "add", name])
            boxes.append(host.path(f"/run/netns/{name}"))
            lines = (
                f"ip link add {name} type veth peer name eth0 netns {name}",
                f"ip link set {name} master br0 up",
                f"ip -n {name} addr add 10.94.1.{number}/24 dev eth0",
                f"ip -n {name} link set eth0 up",
                f"ip -n {name} route add default via 10.94.1.1",
            )
            host.run(["sh", "-ec", "\n".join(lines)])
        server = "10.94.1.3"
        places = [
            (boxes[0], boxes[1], server),
            (boxes[0], outside.netns, wire.right),
            (outside.netns, boxes[1], server),
            (host.netns, boxes[1], server),
        ]
        yield [_lines("plain", places)]
