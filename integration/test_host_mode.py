"""Host mode: a container that gets what the host's own services do not want, with packets.

That everything is gone afterwards is asserted by the leak check of every test, see `conftest.py`.
"""

import socket
from collections.abc import Callable

import pytest
from harness import (
    CommandError,
    Dockerd,
    Host,
    Netplug,
    SeenServer,
    Wire,
    attached,
    cli_network,
    container,
    docker_network,
    tcp_ask,
    udp_ask,
    wait_until,
)
from harness.netns import open_socket

HOST = ("-o", "mode=host")
DUAL = ("--subnet", "10.91.0.0/24", "--ipv6", "--subnet", "fd00:91::/64", "--gateway", "fd00:91::1")
HEAL_TIMEOUT_S = 20

pytestmark = pytest.mark.usefixtures("netplug")
Ask = Callable[..., str]


def answers(client: Host, ask: Ask, address: str, port: int, server: SeenServer) -> bool:
    """Tell whether it was this server who answered."""
    before = len(server.seen)
    try:
        ask(client, address, port)
    except OSError:
        return False
    return len(server.seen) > before


@pytest.mark.parametrize(("proto", "ask"), [("tcp", tcp_ask), ("udp", udp_ask)])
@pytest.mark.parametrize("family", [4, 6])
def test_any_free_port_of_the_host_leads_to_the_container(
    dockerd: Dockerd, client: Host, wire: Wire, proto: str, ask: Ask, family: int
) -> None:
    here, there, everywhere = (wire.left, wire.right, "0.0.0.0") if family == 4 else (wire.left6, wire.right6, "::")
    with docker_network(dockerd, *HOST, *DUAL) as net, container(dockerd, "--network", net) as it:
        for port in (53, 8080, 40123):
            with SeenServer(it, proto, port, everywhere) as server:
                # With the client's address kept.
                assert ask(client, here, port) == there
                assert server.seen == [there]


@pytest.mark.parametrize(("proto", "ask"), [("tcp", tcp_ask), ("udp", udp_ask)])
@pytest.mark.parametrize("family", [4, 6])
def test_service_of_the_host_wins_also_one_that_starts_later(
    dockerd: Dockerd, host: Host, client: Host, wire: Wire, proto: str, ask: Ask, family: int
) -> None:
    here, everywhere = (wire.left, "0.0.0.0") if family == 4 else (wire.left6, "::")
    with (
        docker_network(dockerd, *HOST, *DUAL) as net,
        SeenServer(host, proto, 8081, everywhere) as early,
        container(dockerd, "--network", net) as it,
        SeenServer(it, proto, 8080, everywhere) as inside,
        SeenServer(it, proto, 8081, everywhere),
    ):
        assert answers(client, ask, here, 8081, early)
        assert answers(client, ask, here, 8080, inside)
        with SeenServer(host, proto, 8080, everywhere) as late:
            assert answers(client, ask, here, 8080, late)
        with SeenServer(host, proto, 8080, here) as bound:
            assert answers(client, ask, here, 8080, bound)
        assert answers(client, ask, here, 8080, inside)


def test_udp_flow_follows_to_the_next_container(dockerd: Dockerd, client: Host, wire: Wire) -> None:
    """A client that keeps its source port would stay bound to nobody, or to the dead container, by conntrack."""
    with docker_network(dockerd, *HOST, "--subnet", "10.91.0.0/24") as net:
        with pytest.raises(OSError, match=r"timed out|refused"):
            udp_ask(client, wire.left, 5353, source_port=40000)
        for address in ("10.91.0.7", "10.91.0.8"):
            with (
                container(dockerd, "--network", net, "--ip", address) as it,
                SeenServer(it, "udp", 5353),
            ):
                assert udp_ask(client, wire.left, 5353, source_port=40000) == wire.right


@pytest.mark.parametrize("driver", ["pynet", "bridge"])
def test_published_port_of_another_network_wins(dockerd: Dockerd, client: Host, wire: Wire, driver: str) -> None:
    with (
        docker_network(dockerd, *HOST, *DUAL) as net,
        container(dockerd, "--network", net) as it,
        docker_network(dockerd, driver=driver) as other,
        container(dockerd, "--network", other, "-p", "8080:80") as web,
        SeenServer(it, "tcp", 8080) as edge,
        SeenServer(it, "tcp", 8081),
        SeenServer(web, "tcp", 80) as published,
    ):
        assert answers(client, tcp_ask, wire.left, 8080, published)
        assert not edge.seen
        assert tcp_ask(client, wire.left, 8081) == wire.right
        # A neighbouring network may use the host's ports as everybody may; its own addresses stay its own.
        assert tcp_ask(web, wire.left, 8081) == "10.91.0.1"


@pytest.mark.parametrize("masquerade", [True, False])
def test_container_reaches_the_world_under_the_host_s_address_or_its_own(
    dockerd: Dockerd, client: Host, wire: Wire, masquerade: bool
) -> None:
    option = ("-o", f"masquerade={str(masquerade).lower()}")
    with (
        docker_network(dockerd, *HOST, *DUAL, *option) as net,
        container(dockerd, "--network", net) as it,
        SeenServer(client, "tcp", 7000),
        SeenServer(client, "udp", 7000, "::"),
    ):
        (found,) = it.inspect()["NetworkSettings"]["Networks"].values()
        assert tcp_ask(it, wire.right, 7000) == (wire.left if masquerade else it.ip())
        assert udp_ask(it, wire.right6, 7000) == (wire.left6 if masquerade else found["GlobalIPv6Address"])
        assert it.pings(wire.right)
        assert it.pings(wire.right6)
        assert it.exec("ls", "/sys/class/net").split() == ["eth0", "lo"]


def test_host_keeps_its_ping_and_its_own_conversations(dockerd: Dockerd, host: Host, client: Host, wire: Wire) -> None:
    with (
        docker_network(dockerd, *HOST, *DUAL) as net,
        container(dockerd, "--network", net) as it,
        SeenServer(it, "udp", 40000) as inside,
        SeenServer(client, "udp", 7000),
        SeenServer(client, "tcp", 7000),
    ):
        # Answers to what the host asked itself are the host's, whatever the container listens on.
        assert udp_ask(host, wire.right, 7000, source_port=40000) == wire.left
        assert tcp_ask(host, wire.right, 7000) == wire.left
        assert not inside.seen
        assert client.run(["busybox", "ping", "-c", "1", "-W", "1", wire.left]).returncode == 0


def test_container_is_reached_by_the_host_at_its_own_address_alone(dockerd: Dockerd, host: Host, client: Host) -> None:
    with (
        docker_network(dockerd, *HOST, *DUAL) as net,
        container(dockerd, "--network", net) as it,
        docker_network(dockerd) as other,
        container(dockerd, "--network", other) as stranger,
        SeenServer(it, "tcp", 80) as server,
    ):
        assert answers(host, tcp_ask, it.ip(), 80, server)
        for place in (client, stranger):
            with pytest.raises(OSError, match=r"timed out|unreachable|refused"):
                tcp_ask(place, it.ip(), 80)
        assert not it.pings(stranger.ip())


@pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
def test_container_cannot_speak_with_another_s_address(dockerd: Dockerd, client: Host, wire: Wire, family: int) -> None:
    mine, far = ("10.91.0.77", wire.right) if family == 4 else ("fd00:91::77", wire.right6)
    with (
        docker_network(dockerd, *HOST, *DUAL, "-o", "masquerade=false") as net,
        container(dockerd, "--network", net) as it,
        SeenServer(client, "udp", 7000, "0.0.0.0" if family == 4 else "::") as server,
        open_socket(it.netns, socket.SOCK_DGRAM, family=family) as spoofer,
    ):
        entry = it.inspect()["NetworkSettings"]["Networks"][net]
        own = entry["IPAddress"] if family == 4 else entry["GlobalIPv6Address"]
        inside = ("nsenter", "-t", str(it.inspect()["State"]["Pid"]), "-n", "ip", "address", "add")
        dockerd.host.output(*inside, mine, "dev", "eth0", *["nodad", "preferred_lft", "0"] * (family == 6))
        spoofer.bind((mine, 0))
        spoofer.sendto(b"?", (far, 7000))
        assert udp_ask(it, far, 7000) == own
        assert server.seen == [own]


def test_bare_namespace_gets_the_ports_too(netplug: Netplug, client: Host, wire: Wire) -> None:
    with (
        cli_network(netplug, "--mode", "host", "--subnet", "10.91.0.0/24", "--subnet", "fd00:91::/64") as net,
        attached(netplug, net) as (lab, result),
        SeenServer(lab, "tcp", 8080),
        SeenServer(lab, "tcp", 8086, "::"),
        SeenServer(client, "tcp", 7000),
    ):
        assert result["addresses"] == ["10.91.0.2/24", "fd00:91::2/64"]
        assert tcp_ask(client, wire.left, 8080) == wire.right
        assert tcp_ask(client, wire.left6, 8086) == wire.right6
        assert tcp_ask(lab, wire.right, 7000) == wire.left
        assert not netplug.drift()


def test_daemon_comes_back_and_heals_what_was_flushed(
    dockerd: Dockerd, netplug: Netplug, host: Host, client: Host, wire: Wire
) -> None:
    with (
        docker_network(dockerd, *HOST, *DUAL) as net,
        container(dockerd, "--network", net) as it,
        SeenServer(it, "tcp", 8080) as server,
    ):
        netplug.kill()
        assert answers(client, tcp_ask, wire.left, 8080, server)
        netplug.start()
        assert answers(client, tcp_ask, wire.left, 8080, server)
        assert not netplug.drift()
        host.output("nft", "flush", "chain", "inet", "netplug-host", "prerouting")
        wait_until(lambda: answers(client, tcp_ask, wire.left, 8080, server), HEAL_TIMEOUT_S, "the chain to be filled")
        wait_until(lambda: not netplug.drift(), HEAL_TIMEOUT_S, "the drift to be mended")


def test_second_container_and_second_network_are_refused(dockerd: Dockerd, netplug: Netplug) -> None:
    with docker_network(dockerd, *HOST, *DUAL) as net, container(dockerd, "--network", net):
        with pytest.raises(CommandError) as caught:
            dockerd.docker("run", "--rm", "--network", net, "bb:1", "true")
        assert "only one can receive the host's ports" in caught.value.stderr
        with pytest.raises(CommandError) as caught:
            dockerd.docker("network", "create", "-d", "pynet", *HOST, "second")
        assert f"network '{net}' already has mode host" in caught.value.stderr
        assert not netplug.drift()


def test_published_port_is_not_needed_and_holds_nothing(dockerd: Dockerd, client: Host, wire: Wire) -> None:
    with (
        docker_network(dockerd, *HOST, *DUAL) as net,
        container(dockerd, "--network", net, "-p", "9090:80") as it,
        SeenServer(it, "tcp", 80),
    ):
        assert tcp_ask(client, wire.left, 80) == wire.right
        with pytest.raises(ConnectionRefusedError):
            tcp_ask(client, wire.left, 9090)


def test_internal_network_has_no_ports_and_no_way_out(dockerd: Dockerd, client: Host, wire: Wire) -> None:
    with (
        docker_network(dockerd, *HOST, "--internal") as net,
        container(dockerd, "--network", net) as it,
        SeenServer(it, "tcp", 8080) as server,
    ):
        assert not answers(client, tcp_ask, wire.left, 8080, server)
        assert not it.pings(wire.right)
        assert "default" not in it.exec("ip", "route", "list", "type", "unicast")
