"""Published ports in trouble: taken, moved, absent, and many; by a real dockerd.

That everything is gone afterwards is asserted by the leak check of every test, see `conftest.py`.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import (
    CommandError,
    Dockerd,
    Host,
    Netplug,
    SeenServer,
    Wire,
    container,
    docker_network,
    http_get,
    tcp_ask,
    udp_ask,
)

from netplug.lab.image import IMAGE, PAGE

Ask = Callable[..., str]

pytestmark = pytest.mark.usefixtures("netplug")


def test_a_taken_port_harms_no_sibling_that_is_just_starting(
    dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire
) -> None:
    """As in `compose up` of a project in which one service wants a port that a process of the host has."""

    def run(net: str, port: int) -> str:
        serve = ("httpd", "-f", "-h", "/www")
        return dockerd.docker("run", "-d", "--init", "--network", net, "-p", f"{port}:80", IMAGE, *serve)

    def refused(net: str) -> bool:
        with pytest.raises(CommandError, match=r"port 0\.0\.0\.0:8099/tcp is already in use"):
            run(net, 8099)
        return True

    with docker_network(dockerd) as net, SeenServer(dockerd.host, "tcp", 8099), ThreadPoolExecutor(12) as pool:
        siblings = []
        for at in range(4):
            failing = [pool.submit(refused, net) for _ in range(4)]
            siblings += [pool.submit(run, net, 9000 + 4 * at + number) for number in range(4)]
            assert all(it.result() for it in failing)
        idents = [it.result().strip() for it in siblings]
        try:
            for number in range(len(idents)):
                assert PAGE in http_get(client, wire.left, 9000 + number)
            assert len(netplug.json("ps")) == len(idents)
        finally:
            created = dockerd.docker("ps", "-aq").split()
            dockerd.docker("rm", "-f", *created)


@pytest.mark.parametrize(("proto", "ask"), [("tcp", tcp_ask), ("udp", udp_ask)])
@pytest.mark.parametrize("address", ["", "[::]:", "[fd00:cafe::1]:"])
def test_a_container_of_ipv4_alone_serves_clients_of_ipv6(
    dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire, proto: str, ask: Ask, address: str
) -> None:
    assert wire.left6 == "fd00:cafe::1"
    with (
        docker_network(dockerd) as net,
        container(dockerd, "--network", net, "-p", f"{address}8080:80/{proto}") as web,
        SeenServer(web, proto, 80),
    ):
        gateway = dockerd.inspect(net)["IPAM"]["Config"][0]["Gateway"].split("/")[0]
        assert ask(client, wire.left6, 8080) == gateway
        assert ask(dockerd.host, wire.left6, 8080) == gateway
        if address != "[fd00:cafe::1]:":
            assert ask(dockerd.host, "::1", 8080) == gateway
        netplug.restart()
        assert ask(client, wire.left6, 8080) == gateway
        if not address:
            assert ask(client, wire.left, 8080) == wire.right


@pytest.mark.parametrize(("proto", "ask"), [("tcp", tcp_ask), ("udp", udp_ask)])
def test_an_internal_network_reaches_no_port_by_relay(dockerd: Dockerd, proto: str, ask: Ask) -> None:
    def dual(number: int) -> tuple[str, ...]:
        subnets = ("--subnet", f"10.77.{number}.0/24", "--subnet", f"fd00:77:{number}::/64")
        return ("--ipv6", *subnets, "--gateway", f"fd00:77:{number}::1")

    with (
        docker_network(dockerd) as net,
        container(dockerd, "--network", net, "-p", f"8080:80/{proto}") as web,
        SeenServer(web, proto, 80),
        docker_network(dockerd, "--internal", *dual(1)) as internal,
        docker_network(dockerd, *dual(2)) as other,
        container(dockerd, "--network", internal) as confined,
        container(dockerd, "--network", other) as free,
    ):
        gateway = dockerd.inspect(net)["IPAM"]["Config"][0]["Gateway"].split("/")[0]
        assert ask(free, "fd00:77:2::1", 8080) == gateway
        try:
            said = ask(confined, "fd00:77:1::1", 8080)
        except OSError:
            said = ""
        assert not said


def test_a_host_address_that_comes_later_works_when_it_is_there(
    dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire
) -> None:
    late = "203.0.113.77"
    with (
        docker_network(dockerd) as net,
        container(dockerd, "--network", net, "-p", f"{late}:8080:80") as web,
        SeenServer(web, "tcp", 80),
    ):
        (shown,) = (port for row in netplug.json("ps") for port in row["ports"])
        assert shown == f"{late}:8080->80/tcp (address absent)"
        assert f"this host has no address {late}" in netplug.drift()
        dockerd.host.run(["ip", "addr", "add", f"{late}/24", "dev", wire.left_link])
        try:
            assert tcp_ask(client, late, 8080) == wire.right
            assert not netplug.drift()
            (shown,) = (port for row in netplug.json("ps") for port in row["ports"])
            assert shown == f"{late}:8080->80/tcp"
        finally:
            dockerd.host.run(["ip", "addr", "del", f"{late}/24", "dev", wire.left_link])


def test_a_range_is_one_entry_and_the_port_of_the_name_server_can_be_published(
    dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire
) -> None:
    with (
        docker_network(dockerd) as net,
        container(dockerd, "--network", net, "-p", "9000-9999:7000-7999", "-p", "25353:80") as web,
        SeenServer(web, "tcp", 7500),
        SeenServer(web, "tcp", 80),
    ):
        (row,) = netplug.json("ps")
        assert row["ports"][:2] == ["0.0.0.0:25353->80/tcp", "[::]:25353->80/tcp"]
        assert row["ports"][2:] == ["0.0.0.0:9000-9999->7000-7999/tcp", "[::]:9000-9999->7000-7999/tcp"]
        assert tcp_ask(client, wire.left, 9500) == wire.right
        assert tcp_ask(client, wire.left, 25353) == wire.right
        netplug.restart()
        assert tcp_ask(client, wire.left, 9500) == wire.right
        assert tcp_ask(client, wire.left, 25353) == wire.right
