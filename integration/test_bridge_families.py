"""Bridge networks in IPv4 and IPv6 alike, with packets: what works, and what must not.

That everything is gone afterwards is asserted by the leak check of every test, see `conftest.py`.
"""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest
from harness import (
    Container,
    Dockerd,
    Host,
    Netplug,
    SeenServer,
    Wire,
    attached,
    cli_network,
    container,
    docker_network,
    resolve,
    tcp_ask,
    udp_ask,
)
from harness.netns import open_socket

BLUE = ("--ipv6", "--subnet", "10.92.1.0/24", "--subnet", "fd00:92:1::/64")
RED = ("--ipv6", "--subnet", "10.92.2.0/24", "--subnet", "fd00:92:2::/64")
UNREACHED = r"timed out|refused|unreachable"
ASKS = pytest.mark.parametrize(("proto", "ask"), [("tcp", tcp_ask), ("udp", udp_ask)])
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])

pytestmark = pytest.mark.usefixtures("netplug")
Ask = Callable[..., str]


@dataclass(frozen=True)
class Family:
    """The addresses of a test in one family."""

    version: int
    host: str
    client: str
    everywhere: str

    def of(self, it: Container, network: str = "") -> str:
        found = it.inspect()["NetworkSettings"]["Networks"]
        entry = found[network] if network else next(iter(found.values()))
        return str(entry["IPAddress" if self.version == 4 else "GlobalIPv6Address"])

    def gateway(self, subnet: str) -> str:
        return f"10.92.{subnet}.1" if self.version == 4 else f"fd00:92:{subnet}::1"


@pytest.fixture
def at(wire: Wire, family: int) -> Family:
    if family == 4:
        return Family(4, wire.left, wire.right, "0.0.0.0")
    return Family(6, wire.left6, wire.right6, "::")


def unreached(ask: Ask, place: Host | Container, address: str, port: int) -> bool:
    try:
        ask(place, address, port)
    except OSError:
        return True
    return False


@FAMILIES
@ASKS
def test_containers_the_host_and_the_world_speak(
    dockerd: Dockerd, host: Host, client: Host, at: Family, proto: str, ask: Ask
) -> None:
    with (
        docker_network(dockerd, *BLUE) as net,
        container(dockerd, "--network", net) as one,
        container(dockerd, "--network", net) as two,
        SeenServer(two, proto, 80, at.everywhere),
        SeenServer(client, proto, 7000, at.everywhere),
    ):
        assert one.pings(at.of(two))
        assert one.pings(at.gateway("1"))
        assert one.pings(at.client)
        assert ask(one, at.of(two), 80) == at.of(one)
        assert ask(host, at.of(two), 80) == at.gateway("1")
        # Under the host's address, in IPv6 too.
        assert ask(one, at.client, 7000) == at.host


@FAMILIES
@ASKS
def test_routed_network_keeps_its_addresses(
    dockerd: Dockerd, client: Host, wire: Wire, at: Family, proto: str, ask: Ask
) -> None:
    with (
        docker_network(dockerd, *BLUE, "-o", "masquerade=false") as net,
        container(dockerd, "--network", net) as it,
        SeenServer(client, proto, 7000, at.everywhere),
    ):
        # The client's default route leads here.
        assert ask(it, at.client, 7000) == at.of(it)
        assert wire.right_link in client.output("ip", "route", "show", "default")


@FAMILIES
@ASKS
def test_published_port_is_open_from_every_side(
    dockerd: Dockerd, host: Host, client: Host, at: Family, proto: str, ask: Ask
) -> None:
    with (
        docker_network(dockerd, *BLUE) as net,
        docker_network(dockerd, *RED) as other,
        container(dockerd, "--network", net, "-p", f"8080:80/{proto}") as web,
        container(dockerd, "--network", net) as neighbour,
        container(dockerd, "--network", other) as stranger,
        SeenServer(web, proto, 80, at.everywhere),
    ):
        assert ask(client, at.host, 8080) == at.client
        assert ask(host, at.host, 8080) in {at.host, at.gateway("1")}
        assert ask(neighbour, at.host, 8080)
        assert ask(web, at.host, 8080)
        # A stranger is masqueraded as on his way to anywhere else.
        assert ask(stranger, at.host, 8080) == at.gateway("1")
        # Only what is published is open.
        assert unreached(ask, client, at.of(web), 80)


@FAMILIES
def test_port_published_on_one_address_is_closed_on_others(dockerd: Dockerd, client: Host, at: Family) -> None:
    bound = f"[{at.host}]" if at.version == 6 else at.host
    loopback = "[::1]" if at.version == 6 else "127.0.0.1"
    with (
        docker_network(dockerd, *BLUE) as net,
        docker_network(dockerd, *RED) as other,
        container(dockerd, "--network", net, "-p", f"{bound}:8080:80", "-p", f"{loopback}:8081:80") as web,
        container(dockerd, "--network", other) as stranger,
        SeenServer(web, "tcp", 80, at.everywhere),
    ):
        assert tcp_ask(client, at.host, 8080) == at.client
        for place in (client, stranger):
            assert unreached(tcp_ask, place, at.host, 8081)
        for gateway in (at.gateway("1"), at.gateway("2")):
            for port in (8080, 8081):
                assert unreached(tcp_ask, stranger, gateway, port)


@FAMILIES
@ASKS
def test_networks_are_isolated_by_every_path(dockerd: Dockerd, at: Family, proto: str, ask: Ask) -> None:
    with (
        docker_network(dockerd, *BLUE) as net,
        docker_network(dockerd, *RED) as other,
        container(dockerd, "--network", net) as one,
        container(dockerd, "--network", other) as two,
        SeenServer(two, proto, 80, at.everywhere) as server,
    ):
        assert not one.pings(at.of(two))
        assert unreached(ask, one, at.of(two), 80)
        # By way of the other network's gateway address: nothing is published there.
        assert unreached(ask, one, at.gateway("2"), 80)
        # By a route of the container's own making.
        subnet = "10.92.2.0/24" if at.version == 4 else "fd00:92:2::/64"
        enter = ("nsenter", "-t", str(one.inspect()["State"]["Pid"]), "-n", "ip", f"-{at.version}")
        dockerd.host.output(*enter, "route", "add", subnet, "via", at.gateway("1"))
        assert unreached(ask, one, at.of(two), 80)
        assert not server.seen


@pytest.fixture(scope="module")
def docker_blocks(dockerd: Dockerd, wire: Wire) -> set[str]:
    """The paths from one of Docker's own bridge networks to another that Docker blocks."""
    return _blocked(dockerd, wire, "bridge", ("10.93.1.0/24", "10.93.2.0/24"))


def _blocked(dockerd: Dockerd, wire: Wire, driver: str, subnets: tuple[str, str]) -> set[str]:
    gateway = subnets[1].replace(".0/24", ".1")
    with ExitStack() as stack:
        nets = [stack.enter_context(docker_network(dockerd, "--subnet", it, driver=driver)) for it in subnets]
        one = stack.enter_context(container(dockerd, "--network", nets[0]))
        ports = ("-p", f"{wire.left}:8080:80", "-p", "127.0.0.1:8081:80")
        two = stack.enter_context(container(dockerd, "--network", nets[1], *ports))
        stack.enter_context(SeenServer(two, "tcp", 80))
        paths = {
            "its address": (two.ip(), 80),
            "its gateway": (gateway, 80),
            "published elsewhere, by its gateway": (gateway, 8080),
            "published on loopback, by its gateway": (gateway, 8081),
            "published on loopback, by the host": (wire.left, 8081),
        }
        return {name for name, (address, port) in paths.items() if unreached(tcp_ask, one, address, port)}


def test_what_dockers_own_bridges_block_is_blocked(dockerd: Dockerd, wire: Wire, docker_blocks: set[str]) -> None:
    assert docker_blocks, "Docker blocks nothing: the test is wrong"
    assert docker_blocks <= _blocked(dockerd, wire, "pynet", ("10.93.3.0/24", "10.93.4.0/24"))


@FAMILIES
def test_without_icc_neighbours_are_silent(dockerd: Dockerd, client: Host, at: Family) -> None:
    with (
        docker_network(dockerd, *BLUE, "-o", "icc=false") as net,
        container(dockerd, "--network", net) as one,
        container(dockerd, "--network", net) as two,
        SeenServer(client, "tcp", 7000, at.everywhere),
    ):
        assert not one.pings(at.of(two))
        assert tcp_ask(one, at.client, 7000) == at.host


@FAMILIES
def test_internal_network_has_no_way_out(dockerd: Dockerd, client: Host, at: Family) -> None:
    with (
        docker_network(dockerd, *BLUE, "--internal") as net,
        container(dockerd, "--network", net, "-p", "8080:80") as one,
        container(dockerd, "--network", net) as two,
        SeenServer(one, "tcp", 80, at.everywhere),
        SeenServer(client, "udp", 53, at.everywhere) as names,
    ):
        assert two.pings(at.of(one))
        assert not one.pings(at.client)
        assert unreached(udp_ask, one, at.client, 53)
        # By a route of the container's own making.
        enter = ("nsenter", "-t", str(one.inspect()["State"]["Pid"]), "-n", "ip", f"-{at.version}")
        dockerd.host.output(*enter, "route", "add", "default", "via", at.gateway("1"))
        assert unreached(udp_ask, one, at.client, 53)
        assert unreached(tcp_ask, client, at.host, 8080)
        assert not names.seen


@ASKS
@pytest.mark.parametrize("published", ["8080:80", "[::1]:8080:80"])
def test_published_port_is_open_at_the_loopback_address_of_ipv6(
    dockerd: Dockerd, netplug: Netplug, host: Host, client: Host, wire: Wire, proto: str, ask: Ask, published: str
) -> None:
    with (
        docker_network(dockerd, *BLUE) as net,
        container(dockerd, "--network", net, "-p", f"{published}/{proto}") as web,
        SeenServer(web, proto, 80, "::"),
    ):
        assert ask(host, "::1", 8080) == "fd00:92:1::1"
        if published.startswith("["):
            assert unreached(ask, client, wire.left6, 8080)
            assert unreached(ask, host, wire.left6, 8080)
        else:
            assert ask(client, wire.left6, 8080) == wire.right6
        netplug.kill()
        netplug.start()
        assert not netplug.drift()
        assert ask(host, "::1", 8080) == "fd00:92:1::1"


def test_relayed_connection_carries_all_both_ways(dockerd: Dockerd, host: Host) -> None:
    """More than any buffer holds, and the end of one direction before that of the other."""
    sent = bytes(range(256)) * 8192
    with (
        docker_network(dockerd, *BLUE) as net,
        container(dockerd, "--network", net, "-p", "8080:80") as web,
        open_socket(web.netns, socket.SOCK_STREAM, family=6) as listener,
        open_socket(host.netns, socket.SOCK_STREAM, family=6) as client,
        ThreadPoolExecutor() as pool,
    ):
        for sock in (listener, client):
            sock.settimeout(20)
        listener.bind(("::", 80))
        listener.listen()
        client.connect(("::1", 8080))
        server, _ = listener.accept()
        with server:
            server.settimeout(20)

            def send() -> None:
                client.sendall(sent)
                client.shutdown(socket.SHUT_WR)

            sending = pool.submit(send)
            heard = b"".join(iter(lambda: server.recv(1 << 16), b""))
            sending.result()
            answering = pool.submit(server.sendall, heard[::-1])
            answered = bytearray()
            while len(answered) < len(sent):
                answered += client.recv(1 << 16)
            answering.result()
        assert (heard, bytes(answered)) == (sent, sent[::-1])
        assert client.recv(1) == b""


@FAMILIES
@pytest.mark.parametrize("mode", ["bridge", "host"])
def test_internal_network_asks_no_resolver_of_the_host(dockerd: Dockerd, host: Host, at: Family, mode: str) -> None:
    with (
        docker_network(dockerd, *BLUE, "--internal", "-o", f"mode={mode}") as net,
        container(dockerd, "--network", net) as it,
        SeenServer(host, "udp", 53, at.everywhere) as names,
        SeenServer(host, "tcp", 853, at.everywhere) as secret,
        SeenServer(host, "udp", 7000, at.everywhere) as service,
    ):
        assert it.pings(at.gateway("1"))
        assert udp_ask(it, at.gateway("1"), 7000) == at.of(it)
        assert unreached(udp_ask, it, at.gateway("1"), 53)
        assert unreached(tcp_ask, it, at.gateway("1"), 853)
        # By a route of the container's own making.
        enter = ("nsenter", "-t", str(it.inspect()["State"]["Pid"]), "-n", "ip", f"-{at.version}")
        host.output(*enter, "route", "add", "default", "via", at.gateway("1"))
        for port in (53, 7000):
            assert unreached(udp_ask, it, at.host, port)
        assert (names.seen, secret.seen, service.seen) == ([], [], [at.of(it)])


@FAMILIES
@pytest.mark.parametrize("dns", ["on", "off"])
def test_other_networks_ask_a_resolver_of_the_host(dockerd: Dockerd, host: Host, at: Family, dns: str) -> None:
    """At the gateway it is our own name server that answers, unless that is off."""
    with (
        docker_network(dockerd, *BLUE, "-o", f"dns={dns}") as net,
        container(dockerd, "--network", net) as it,
        SeenServer(host, "tcp", 53, at.everywhere) as resolver,
    ):
        assert tcp_ask(it, at.host, 53) == at.of(it)
        if dns == "off":
            assert tcp_ask(it, at.gateway("1"), 53) == at.of(it)
        else:
            assert resolve(it, at.gateway("1"), "host.netplug.internal", tcp=True).code == "NOERROR"
            assert resolver.seen == [at.of(it)]


@contextmanager
def two_families(netplug: Netplug, *options: str) -> Iterator[str]:
    with cli_network(netplug, "--subnet", "10.92.3.0/24", "--subnet", "fd00:92:3::/64", *options) as net:
        yield net


@FAMILIES
@ASKS
def test_bare_namespaces_do_all_that_containers_do(
    netplug: Netplug, client: Host, at: Family, proto: str, ask: Ask
) -> None:
    with (
        two_families(netplug) as net,
        attached(netplug, net, "--publish", f"8080:80/{proto}") as (one, first),
        attached(netplug, net) as (two, _),
        SeenServer(one, proto, 80, at.everywhere),
        SeenServer(client, proto, 7000, at.everywhere),
    ):
        address = first["addresses"][at.version == 6].partition("/")[0]
        assert two.pings(address)
        assert ask(two, address, 80)
        assert ask(two, at.client, 7000) == at.host
        assert ask(client, at.host, 8080) == at.client
        assert unreached(ask, client, address, 80)


def test_ula_is_chosen_where_no_subnet_is_given(netplug: Netplug, wire: Wire) -> None:
    with cli_network(netplug, "--ipv6") as net, attached(netplug, net) as (lab, result):
        assert [":" in address for address in result["addresses"]] == [False, True]
        assert result["addresses"][1].startswith("fd")
        assert lab.pings(wire.right6)


def test_rules_are_as_many_for_twenty_networks_as_for_one(netplug: Netplug, host: Host) -> None:
    def rules() -> list[str]:
        return host.output("nft", "--stateless", "--terse", "list", "ruleset").splitlines()

    with cli_network(netplug, "--ipv6") as net, attached(netplug, net), attached(netplug, net), ExitStack() as stack:
        few = rules()
        for _ in range(20):
            stack.enter_context(attached(netplug, stack.enter_context(cli_network(netplug, "--ipv6"))))
        assert rules() == few


def test_link_local_address_of_docker_run(dockerd: Dockerd) -> None:
    with (
        docker_network(dockerd, *BLUE) as net,
        container(dockerd, "--network", net, "--link-local-ip", "169.254.7.7") as one,
        container(dockerd, "--network", net, "--link-local-ip", "169.254.7.8") as two,
    ):
        assert "169.254.7.7/16" in one.exec("ip", "address", "show", "eth0")
        assert two.pings("169.254.7.7")


def test_way_out_is_that_of_a_network_which_has_one(dockerd: Dockerd, client: Host, wire: Wire) -> None:
    with (
        docker_network(dockerd, "--internal") as inner,
        docker_network(dockerd) as outer,
        container(dockerd, "--network", inner) as it,
        SeenServer(client, "tcp", 7000),
    ):
        assert unreached(tcp_ask, it, wire.right, 7000)
        dockerd.docker("network", "connect", outer, it.id)
        assert tcp_ask(it, wire.right, 7000) == wire.left
        dockerd.docker("network", "disconnect", outer, it.id)
        assert unreached(tcp_ask, it, wire.right, 7000)
