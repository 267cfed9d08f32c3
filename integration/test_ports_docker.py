"""Published ports in trouble: taken, moved, absent, and many; by a real dockerd.

That everything is gone afterwards is asserted by the leak check of every test, see `conftest.py`.
"""

import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from harness import (
    CommandError,
    Container,
    Dockerd,
    Host,
    Namespace,
    Netplug,
    SeenServer,
    Wire,
    assert_same,
    cli_network,
    container,
    docker_network,
    http_get,
    namespace,
    snapshot,
    tcp_ask,
    udp_ask,
    wait_until,
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

    with (
        docker_network(dockerd, may_miscount=True) as net,
        SeenServer(dockerd.host, "tcp", 8099),
        ThreadPoolExecutor(12) as pool,
    ):
        siblings = []
        for at in range(4):
            failing = [pool.submit(refused, net) for _ in range(4)]
            siblings += [pool.submit(run, net, 9000 + 4 * at + number) for number in range(4)]
            assert all(it.result() for it in failing)
        idents = [it.result().strip() for it in siblings]
        try:
            for number in range(len(idents)):
                at = 9000 + number
                assert PAGE in wait_until(lambda at=at: http_get(client, wire.left, at), ignoring=(OSError,))  # type: ignore[misc]
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


def chosen(netplug: Netplug, one: Container) -> dict[str, int]:
    """Return the host ports of a container by its own, as `netplug ps` shows those of IPv4."""
    mine = {it["IPAddress"] for it in one.inspect()["NetworkSettings"]["Networks"].values()}
    rows = (it for it in netplug.json("ps") if it["addresses"][0].partition("/")[0] in mine)
    found = [
        re.fullmatch(r"0\.0\.0\.0:(\d+)->(\d+/\w+)", text) for it in rows for text in it["ports"] if "[" not in text
    ]
    assert all(found)
    return {it[2]: int(it[1]) for it in found if it}


@pytest.mark.parametrize("driver", ["pynet", "bridge"])
def test_chosen_ports_stay_while_the_container_runs(
    dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire, driver: str
) -> None:
    """Docker chooses one of a container's networks for its way out, and asks for all ports anew by that one."""
    with (
        docker_network(dockerd) as one,
        docker_network(dockerd, driver=driver) as two,
        container(dockerd, "--network", one, "-p", "80", "-p", "9100-9199:81", "-p", "53/udp") as web,
        container(dockerd, "--network", one, "-p", "80") as other,
        SeenServer(web, "tcp", 80),
        SeenServer(web, "tcp", 81),
        SeenServer(web, "udp", 53),
    ):
        before, others = chosen(netplug, web), chosen(netplug, other)
        assert len(before) == 3
        theirs = dockerd.inspect(two)["IPAM"]["Config"][0]["Gateway"].split("/")[0] if driver == "bridge" else "none"
        ways = set()

        def holds() -> None:
            ways.add(way := web.exec("ip", "-4", "route", "show", "default").split()[2])
            assert chosen(netplug, web) == ({} if way == theirs else before)
            for ask, port in ((tcp_ask, "80/tcp"), (tcp_ask, "81/tcp"), (udp_ask, "53/udp")) if way != theirs else ():
                assert ask(client, wire.left, before[port]) == wire.right

        holds()
        for verb, net in (("connect", two), ("disconnect", one), ("connect", one), ("disconnect", two)):
            dockerd.docker("network", verb, net, web.id)
            holds()
        assert len(ways) == 2
        assert chosen(netplug, other) == others
        assert not netplug.drift()


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


# Many ports


def test_ten_thousand_ports_of_a_container(dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire) -> None:
    """Docker tells of them in three requests of more than a MiB each."""
    with (
        docker_network(dockerd) as net,
        container(dockerd, "--network", net, "-p", "0.0.0.0:10000-19999:10000-19999") as web,
        SeenServer(web, "tcp", 19_999),
    ):
        assert tcp_ask(client, wire.left, 19_999) == wire.right
        (row,) = netplug.json("ps")
        assert row["ports"] == ["0.0.0.0:10000-19999->10000-19999/tcp"]
        assert not netplug.drift()


class Scarce(Netplug):
    """A daemon that may open few files."""

    files = 256

    def command(self) -> list[str]:
        return ["prlimit", f"--nofile={self.files}:{self.files}", *super().command()]

    def cpu_s(self) -> float:
        """Return the processor time that it took up to now."""
        assert self.process
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    @contextmanager
    def idle(self, name: str) -> Iterator[None]:
        """Assert that after the block it has little to do, and does not fill its log, for a second."""
        yield
        began, spent, said = time.monotonic(), self.cpu_s(), self.log.stat().st_size
        wait_until(lambda: time.monotonic() > began + 1, 3)
        assert (self.cpu_s() - spent < 0.4, self.log.stat().st_size - said < 10_000) == (True, True), name

    def known(self) -> int:
        """Return how many endpoints it lists, by the API: no process."""
        return len(self.client.get("endpoints")["endpoints"])


def test_ports_that_would_take_the_last_open_files_are_refused(new_host: Callable[..., Host]) -> None:
    """And whoever asks is answered all the same, without end and without being busy."""
    host = new_host("scarce")
    netplug = Scarce(host, "--docker-host", "none")
    refused = r"publishing 200 ports needs 400 open files, but (\d+) of 256 are free \(raise LimitNOFILE"
    with cli_network(netplug) as net, ExitStack() as stack:
        one, two, late = (stack.enter_context(namespace(host)) for _ in range(3))

        def left(place: Namespace) -> int:
            before = snapshot(host, netplug)
            with pytest.raises(CommandError, match=refused) as caught:
                place.attach(netplug, net, "--publish", "8000-8199:8000-8199")
            assert_same(before, lambda: snapshot(host, netplug))
            return int(re.findall(refused, str(caught.value))[0])

        many = (left(one) - 22) // 2
        ports = f"8000-{7999 + many}:8000-{7999 + many}"
        one.attach(netplug, net, "--name", "one", "--publish", ports)
        assert left(two) < 26
        two.attach(netplug, net)
        with netplug.idle("full"), pytest.raises(CommandError, match="LimitNOFILE"):
            late.attach(netplug, net, "--publish", "9000-9019:80-99")
        assert len(netplug.json("ps")) == 2
        with ExitStack() as idle:
            # Who takes what was kept is waited for.
            for _ in range(100):
                sock = idle.enter_context(socket.socket(socket.AF_UNIX))
                sock.connect(str(host.path("/run/netplug/netplug.sock")))
            with netplug.idle("overrun"):
                pass
        assert netplug.known() == 2
        netplug.files = 128
        with netplug.idle("less than there is"):
            netplug.restart()
            assert f"hostport/tcp/::/8000-{7999 + many}" in netplug.drift()
        assert "LimitNOFILE" in netplug.log.read_text()
        assert netplug.known() == 2
        netplug.files = 256
        netplug.restart()
        assert not netplug.drift()
        one.detach(netplug, net)
        late.attach(netplug, net, "--publish", "9000-9019:80-99")
        two.detach(netplug, net)
        late.detach(netplug, net)
        assert not netplug.drift()
