"""What a container sends and receives is limited, measured with bytes.

That everything is gone afterwards, the links on which packets wait too, is asserted by the leak check of every test.
"""

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
    faster,
    limited,
)

from netplug.drivers.naming import host_side

SUBNETS = ("--ipv6", "--subnet", "10.95.0.0/24", "--subnet", "fd00:95::/64")
SHAPED = ("-o", "rate=16mbit", "-o", "burst=16kb")
RATE = 2_000_000
"""Of `SHAPED`, in bytes a second."""

pytestmark = pytest.mark.usefixtures("netplug")


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
        assert limited(it, client, wire.right6 if family == 6 else wire.right, RATE)
        assert limited(it, other, neighbour, RATE)
        assert limited(dockerd.host, other, neighbour, RATE)


def test_own_limit_comes_before_that_of_the_network(dockerd: Dockerd) -> None:
    with (
        docker_network(dockerd, *SUBNETS, *SHAPED) as net,
        docker_network(dockerd, "--subnet", "10.96.0.0/24") as other,
        container(dockerd, "--network", other) as it,
    ):
        slow = ("--driver-opt", "rate=4mbit", "--driver-opt", "burst=16kb")
        dockerd.docker("network", "connect", *slow, net, it.id)
        assert limited(it, dockerd.host, "10.95.0.1", 500_000)
        assert faster(it, dockerd.host, "10.96.0.1", 10 * RATE), "the other network has no limit"
        dockerd.docker("network", "disconnect", net, it.id)


def test_bare_namespace_is_limited_alone(netplug: Netplug, host: Host) -> None:
    with (
        cli_network(netplug, *SUBNETS) as net,
        attached(netplug, net, *SHAPED) as (slow, _),
        attached(netplug, net) as (quick, result),
    ):
        assert limited(slow, quick, result["addresses"][0].split("/")[0], RATE)
        assert limited(host, slow, "10.95.0.2", RATE)
        assert faster(host, quick, "10.95.0.3", 10 * RATE)


def test_each_direction_has_its_own_limit(netplug: Netplug, host: Host) -> None:
    sides = ("-o", "rate=16mbit/4mbit", "-o", "burst=16kb")
    with (
        cli_network(netplug, *SUBNETS) as net,
        attached(netplug, net, *sides) as (it, result),
        attached(netplug, net, "-o", "rate=0/4mbit") as (other, _),
    ):
        address = result["addresses"][0].split("/")[0]
        assert limited(host, it, address, RATE)
        assert limited(it, host, "10.95.0.1", RATE // 4)
        assert faster(host, other, "10.95.0.3", 10 * RATE)


def test_host_mode_is_limited_too(dockerd: Dockerd, client: Host, wire: Wire) -> None:
    with (
        docker_network(dockerd, "-o", "mode=host", *SHAPED) as net,
        container(dockerd, "--network", net) as it,
    ):
        assert limited(it, client, wire.right, RATE)
        assert limited(client, it, wire.left, RATE)


@pytest.mark.parametrize(
    "damage", ["tc qdisc del dev {port} root", "tc qdisc del dev {port} ingress", "ip link del {block}"]
)
def test_damage_is_shown_and_repaired(dockerd: Dockerd, host: Host, netplug: Netplug, damage: str) -> None:
    with docker_network(dockerd, *SUBNETS, *SHAPED) as net, container(dockerd, "--network", net) as it:
        port = port_of(netplug, it)
        host.run(["sh", "-ec", damage.format(port=port, block=port.replace("nph", "npi"))])
        netplug.cli("repair")
        assert netplug.drift() == ""
        assert limited(it, host, "10.95.0.1", RATE)
        assert limited(host, it, it.ip(), RATE)


def test_limit_survives_the_daemon(dockerd: Dockerd, host: Host, netplug: Netplug) -> None:
    with docker_network(dockerd, *SUBNETS, *SHAPED) as net, container(dockerd, "--network", net) as it:
        netplug.kill()
        assert limited(it, host, "10.95.0.1", RATE)
        netplug.start()
        assert netplug.drift() == ""
        dockerd.docker("restart", "-t", "0", it.id)
        assert limited(it, host, "10.95.0.1", RATE)


def test_bad_limits_are_refused_and_change_nothing(dockerd: Dockerd, netplug: Netplug) -> None:
    with docker_network(dockerd, *SUBNETS) as net, container(dockerd, "--network", "none") as it:
        dockerd.docker("network", "disconnect", "none", it.id)
        for option, words in {
            "rate=fast": "option rate='fast': must be a number with a unit",
            "rate=1bit": "must be from 8kbit to 1tbit",
            "burst=32kb": "option burst needs option rate",
            "mtu=1400": "option 'mtu' applies to networks, not to endpoints",
        }.items():
            with pytest.raises(CommandError, match=words):
                dockerd.docker("network", "connect", "--driver-opt", option, net, it.id)
        assert netplug.json("ps") == []
        assert netplug.drift() == ""
