"""What a container sends and receives is limited, measured with bytes.

That everything is gone afterwards, the links on which packets wait too, is asserted by the leak check of every test.
"""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import pytest
from harness import (
    CommandError,
    Container,
    Dockerd,
    Host,
    Netplug,
    Wire,
    attached,
    cli_network,
    container,
    docker_network,
)
from harness.netns import open_socket

from netplug.drivers.naming import host_side

SUBNETS = ("--ipv6", "--subnet", "10.95.0.0/24", "--subnet", "fd00:95::/64")
SHAPED = ("-o", "rate=16mbit", "-o", "burst=16kb")
RATE = 2_000_000
"""Of `SHAPED`, in bytes a second."""
SENT = 1_500_000
"""Bytes; so a transfer takes about 0.8 s."""
PORT = 7100

pytestmark = pytest.mark.usefixtures("netplug")


class Placed(Protocol):
    @property
    def netns(self) -> Path: ...


def bytes_a_second(sender: Placed, receiver: Placed, address: str) -> float:
    """Return how fast `SENT` bytes of a TCP connection get to the receiver, whose address it is."""
    family = 6 if ":" in address else 4
    with (
        open_socket(receiver.netns, socket.SOCK_STREAM, family=family) as listener,
        open_socket(sender.netns, socket.SOCK_STREAM, family=family) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("::" if family == 6 else "0.0.0.0", PORT))
        listener.listen()
        listener.settimeout(20)
        client.settimeout(20)
        client.connect((address, PORT))
        server, _ = listener.accept()
        with server:
            server.settimeout(20)
            started = time.monotonic()
            sending = pool.submit(client.sendall, bytes(SENT))
            left = SENT
            while left:
                left -= len(server.recv(1 << 16))
            sending.result()
            return SENT / (time.monotonic() - started)


def limited(speed: float, rate: int = RATE) -> bool:
    """Headers take a twentieth, and the burst goes at once; what waits in sockets is neither."""
    return 0.7 * rate < speed < 1.2 * rate


def port_of(netplug: Netplug, it: Container) -> str:
    (endpoint,) = (found["id"] for found in netplug.json("ps") if found["container"].startswith(it.id[:12]))
    return host_side(endpoint)


@pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
def test_container_is_limited_both_ways(dockerd: Dockerd, client: Host, wire: Wire, family: int) -> None:
    with (
        docker_network(dockerd, *SUBNETS, *SHAPED, "-o", "masquerade=false") as net,
        container(dockerd, "--network", net) as it,
        container(dockerd, "--network", net) as other,
    ):
        entry = other.inspect()["NetworkSettings"]["Networks"][net]
        neighbour = entry["GlobalIPv6Address"] if family == 6 else entry["IPAddress"]
        assert limited(bytes_a_second(it, client, wire.right6 if family == 6 else wire.right))
        assert limited(bytes_a_second(it, other, neighbour))
        assert limited(bytes_a_second(dockerd.host, other, neighbour))


def test_own_limit_comes_before_that_of_the_network(dockerd: Dockerd) -> None:
    with (
        docker_network(dockerd, *SUBNETS, *SHAPED) as net,
        docker_network(dockerd, "--subnet", "10.96.0.0/24") as other,
        container(dockerd, "--network", other) as it,
    ):
        slow = ("--driver-opt", "rate=4mbit", "--driver-opt", "burst=16kb")
        dockerd.docker("network", "connect", *slow, net, it.id)
        assert limited(bytes_a_second(it, dockerd.host, "10.95.0.1"), 500_000)
        assert bytes_a_second(it, dockerd.host, "10.96.0.1") > 10 * RATE, "the other network has no limit"
        dockerd.docker("network", "disconnect", net, it.id)


def test_bare_namespace_is_limited_alone(netplug: Netplug, host: Host) -> None:
    with (
        cli_network(netplug, *SUBNETS) as net,
        attached(netplug, net, *SHAPED) as (slow, _),
        attached(netplug, net) as (quick, result),
    ):
        assert limited(bytes_a_second(slow, quick, result["addresses"][0].split("/")[0]))
        assert limited(bytes_a_second(host, slow, "10.95.0.2"))
        assert bytes_a_second(host, quick, "10.95.0.3") > 10 * RATE


def test_host_mode_is_limited_too(dockerd: Dockerd, client: Host, wire: Wire) -> None:
    with (
        docker_network(dockerd, "-o", "mode=host", *SHAPED) as net,
        container(dockerd, "--network", net) as it,
    ):
        assert limited(bytes_a_second(it, client, wire.right))
        assert limited(bytes_a_second(client, it, wire.left))


@pytest.mark.parametrize(
    "damage", ["tc qdisc del dev {port} root", "tc qdisc del dev {port} ingress", "ip link del {block}"]
)
def test_damage_is_shown_and_repaired(dockerd: Dockerd, host: Host, netplug: Netplug, damage: str) -> None:
    with docker_network(dockerd, *SUBNETS, *SHAPED) as net, container(dockerd, "--network", net) as it:
        port = port_of(netplug, it)
        host.run(["sh", "-ec", damage.format(port=port, block=port.replace("nph", "npi"))])
        netplug.cli("repair")
        assert netplug.drift() == ""
        assert limited(bytes_a_second(it, host, "10.95.0.1"))
        assert limited(bytes_a_second(host, it, it.ip()))


def test_limit_survives_the_daemon(dockerd: Dockerd, host: Host, netplug: Netplug) -> None:
    with docker_network(dockerd, *SUBNETS, *SHAPED) as net, container(dockerd, "--network", net) as it:
        netplug.kill()
        assert limited(bytes_a_second(it, host, "10.95.0.1"))
        netplug.start()
        assert netplug.drift() == ""
        dockerd.docker("restart", "-t", "0", it.id)
        assert limited(bytes_a_second(it, host, "10.95.0.1"))


def test_bad_limits_are_refused_and_change_nothing(dockerd: Dockerd, netplug: Netplug) -> None:
    with docker_network(dockerd, *SUBNETS) as net, container(dockerd, "--network", "none") as it:
        dockerd.docker("network", "disconnect", "none", it.id)
        for option, words in {
            "rate=fast": "option rate='fast': must be a number with a unit",
            "rate=1bit": "must be from 8kbit to 1tbit",
            "burst=32kb": "option burst is without option rate",
            "mtu=1400": "option 'mtu' is of networks, not of endpoints",
        }.items():
            with pytest.raises(CommandError, match=words):
                dockerd.docker("network", "connect", "--driver-opt", option, net, it.id)
        assert netplug.json("ps") == []
        assert netplug.drift() == ""
