"""Two engines of rules on one host: netplug beside Docker's own networks, whoever starts first.

That everything is gone afterwards is asserted by the leak check of every test, see `conftest.py`; hosts of a test's own
end with it.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import (
    Container,
    Dockerd,
    Host,
    Netplug,
    SeenServer,
    Wire,
    connect,
    container,
    docker_network,
    namespace,
    snapshot,
    tcp_ask,
    wait_until,
)
from harness.snapshot import Snapshot, assert_same

NewHost = Callable[..., Host]

SETTLE_S = 10
RESTART_TIMEOUT_S = 30
MANY = 70
UNREACHED = r"timed out|refused|unreachable"
LEGACY = Path("/usr/sbin/xtables-legacy-multi")


class Beside:
    """A container of ours and one of Docker's own bridge on a host, each with a published port."""

    def __init__(self, dockerd: Dockerd, client: Host, wire: Wire) -> None:
        self.dockerd, self.client, self.wire = dockerd, client, wire
        dockerd.docker("network", "create", "-d", "pynet", "blue")
        dockerd.docker("network", "create", "own")
        web = ("httpd", "-f", "-h", "/www")
        always = ("--restart", "always")
        self.ours = dockerd.run(*always, "--network", "blue", "-p", "8080:80", command=web)
        self.dockers = dockerd.run(*always, "--network", "own", "-p", "8090:80", command=web)
        self.default = dockerd.run(*always, command=web)

    def check(self, order: str) -> None:
        """Assert that ports work, networks are apart, and DOCKER-USER is obeyed, each within some seconds."""
        for it in (self.ours, self.dockers, self.default):
            wait_until(lambda it=it: it.running and it.ip(), RESTART_TIMEOUT_S, f"{order}: restart by policy")  # type: ignore[misc]
        for port in (8080, 8090):
            wait_until(lambda port=port: self.reached(port), SETTLE_S, f"{order}: port {port} to work")  # type: ignore[misc]
        wait_until(lambda: not any(self.together()), SETTLE_S, f"{order}: networks to be apart")
        with self.user_rule("-s", self.wire.right, "-j", "REJECT"):
            assert not self.reached(8080), f"{order}: DOCKER-USER drops"
            assert not self.reached(8090), f"{order}: DOCKER-USER drops"
        pair = self.ours.ip(), self.dockers.ip()
        with (
            self.user_rule("-s", pair[0], "-d", pair[1], "-j", "ACCEPT"),
            self.user_rule("-s", pair[1], "-d", pair[0], "-j", "ACCEPT"),
        ):
            # It opens Docker's network, and not ours.
            assert self.ours.pings(pair[1]), f"{order}: DOCKER-USER accepts"
            assert not self.dockers.pings(pair[0]), f"{order}: DOCKER-USER accepts"

    def reached(self, port: int) -> bool:
        try:
            tcp_ask_page(self.client, self.wire.left, port)
        except OSError:
            return False
        return True

    def together(self) -> list[bool]:
        """Tell of each of our container's ways to Docker's and back whether it is open."""
        ways = [(self.ours, it) for it in (self.dockers, self.default)]
        ways += [(it, self.ours) for it in (self.dockers, self.default)]
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda way: way[0].pings(way[1].ip()), ways))

    @contextmanager
    def user_rule(self, *rule: str) -> Iterator[None]:
        self.dockerd.host.run(["iptables", "-I", "DOCKER-USER", *rule])
        yield
        self.dockerd.host.run(["iptables", "-D", "DOCKER-USER", *rule])


def tcp_ask_page(place: Host, address: str, port: int) -> None:
    """Connect and read nothing but the answer's beginning; raises OSError."""
    done = subprocess.run(
        place.inside(["curl", "-sS", "--fail", "--max-time", "2", f"http://{address}:{port}/"]),
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ConnectionError(done.stderr)


@pytest.fixture
def far(new_host: NewHost) -> Host:
    """A client of the test's own host."""
    return new_host("far")


def test_netplug_starts_before_dockerd(new_host: NewHost, far: Host) -> None:
    host = new_host("order")
    wire = connect(host, far)
    Netplug(host)
    Beside(Dockerd(host), far, wire).check("netplug, dockerd")


@pytest.mark.timeout(240)
def test_daemons_restart_in_every_order(new_host: NewHost, far: Host) -> None:
    host = new_host("order")
    wire = connect(host, far)
    dockerd = Dockerd(host)
    netplug = Netplug(host)
    beside = Beside(dockerd, far, wire)
    beside.check("dockerd, netplug")
    netplug.restart()
    beside.check("netplug again")
    dockerd.restart()
    beside.check("dockerd again")
    netplug.stop()
    dockerd.stop()
    netplug.start()
    dockerd.start()
    beside.check("both again, netplug first")
    dockerd.stop()
    netplug.stop()
    with ThreadPoolExecutor(1) as pool:
        # It restarts its containers before it answers, and waits for the plugin then.
        starting = pool.submit(dockerd.start)
        wait_until(lambda: dockerd.log.stat().st_size and dockerd.running)
        wait_until(lambda: "DOCKER-USER" in host.output("iptables", "-S"), what="dockerd's rules")
        netplug.start()
        starting.result()
    beside.check("both again, dockerd first")
    assert wait_until(lambda: not netplug.drift())


def test_demo_uses_the_engine_that_runs_and_leaves_it_as_it_was(new_host: NewHost) -> None:
    """To the demo the simulated host is the machine."""
    host = new_host("machine")
    dockerd = Dockerd(host)
    mine = dockerd.run("-p", "8090:80")
    before = snapshot(host)
    demo = Path(__file__).with_name("demo.py")
    assert "beside the engine that runs" in host.output(sys.executable, str(demo))
    assert_same(before, lambda: snapshot(host))
    assert dockerd.docker("ps", "-aq", "--no-trunc") == mine.id
    assert dockerd.docker("image", "ls", "-q")


# Other firewalls and kernel settings


@pytest.mark.skipif(not LEGACY.exists(), reason="needs xtables-legacy-multi")
def test_legacy_iptables_of_the_host_is_used(new_host: NewHost, far: Host) -> None:
    host = new_host("legacy")
    wire = connect(host, far)
    folder = host.dir / "bin"
    folder.mkdir()
    for family in ("ip", "ip6"):
        for tool in ("tables", "tables-save", "tables-restore"):
            (folder / f"{family}{tool}").symlink_to(LEGACY)
    host.env["PATH"] = f"{folder}:{host.env['PATH']}"
    assert "legacy" in host.output("iptables", "--version")
    dockerd, netplug = Dockerd(host), Netplug(host)

    def rules_and_links() -> Snapshot:
        taken = snapshot(host, netplug)
        return {name: lines for name, lines in taken.items() if "tables" in name or name in {"sets", "links"}}

    with container(dockerd) as docker_s:
        before = rules_and_links()
        with (
            docker_network(dockerd) as blue,
            docker_network(dockerd) as red,
            container(dockerd, "--network", blue, "-p", "8080:80") as web,
            container(dockerd, "--network", blue) as neighbour,
            container(dockerd, "--network", red) as stranger,
            SeenServer(web, "tcp", 80),
            SeenServer(far, "tcp", 7000),
        ):
            assert "NETPLUG-FORWARD" in host.output("iptables-legacy-save")
            assert "NETPLUG" not in host.run(["iptables-nft-save"], check=False).stdout
            assert tcp_ask(far, wire.left, 8080) == wire.right
            assert tcp_ask(host, "127.0.0.1", 8080)
            assert tcp_ask(neighbour, wire.left, 8080)
            assert tcp_ask(neighbour, wire.right, 7000) == wire.left
            assert neighbour.pings(web.ip())
            with ThreadPoolExecutor() as pool:
                ways = [(web, stranger), (stranger, web), (web, docker_s), (docker_s, web)]
                assert not any(pool.map(lambda way: way[0].pings(way[1].ip()), ways))
            assert not netplug.drift()
            netplug.restart()
            assert tcp_ask(far, wire.left, 8080) == wire.right
            assert not netplug.drift()
        assert_same(before, rules_and_links)  # links go a moment after the call that ends their network


def test_hairpin_works_when_bridges_pass_frames_to_iptables_and_docker_has_no_proxy(
    new_host: NewHost, far: Host
) -> None:
    host = new_host("hairpin")
    wire = connect(host, far)
    key = "net.bridge.bridge-nf-call-iptables"
    if host.run(["sysctl", "-n", key], check=False).returncode:
        pytest.skip("needs the kernel module br_netfilter")
    host.run(["sysctl", "-qw", f"{key}=1"])
    dockerd, netplug = Dockerd(host, "--userland-proxy=false"), Netplug(host)
    with (
        docker_network(dockerd) as net,
        docker_network(dockerd, driver="bridge") as dockers,
        container(dockerd, "--network", net, "-p", "8080:80") as web,
        container(dockerd, "--network", net) as neighbour,
        container(dockerd, "--network", dockers, "-p", "8090:80") as other,
        container(dockerd, "--network", dockers) as stranger,
        SeenServer(web, "tcp", 80),
        SeenServer(other, "tcp", 80),
    ):
        assert host.output("sysctl", "-n", key) == "1"
        for place in (web, neighbour, stranger):
            assert tcp_ask(place, wire.left, 8080), "ours by the host's address"
        for place in (other, stranger, neighbour):
            assert tcp_ask(place, wire.left, 8090), "Docker's by the host's address"
        assert tcp_ask(host, "127.0.0.1", 8080)
        assert tcp_ask(far, wire.left, 8080) == wire.right
        assert neighbour.pings(web.ip())
        assert not stranger.pings(web.ip())
        assert not web.pings(stranger.ip())
        assert not netplug.drift()


# Ports and subnets


def port_of(netplug: Netplug, one: Container, inside: int) -> int:
    """Return the host port that leads to a container's port, as `netplug ps` shows it: contiguous ones as a range."""
    (shown,) = (it for it in netplug.json("ps") if one.ip() in it["addresses"][0])
    ranges = [re.search(r":(\d+)(?:-\d+)?->(\d+)(?:-(\d+))?/", text) for text in shown["ports"] if "[" not in text]
    found = [(int(it[1]), int(it[2]), int(it[3] or it[2])) for it in ranges if it]
    (port,) = (outer + inside - first for outer, first, last in found if first <= inside <= last)
    return port


def test_ports_of_a_restarted_container_work_again(
    dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire
) -> None:
    ports = ("-p", "8100-8109:80", "-p", "8110-8111:81-82", "-p", "83")
    with (
        docker_network(dockerd) as net,
        container(dockerd, "--network", net, *ports) as web,
    ):
        for _ in range(2):
            assert 8100 <= port_of(netplug, web, 80) <= 8109
            assert [port_of(netplug, web, inside) for inside in (81, 82)] == [8110, 8111]
            for inside in (80, 81, 82, 83):
                with SeenServer(web, "tcp", inside):
                    assert tcp_ask(client, wire.left, port_of(netplug, web, inside)) == wire.right
            dockerd.docker("restart", "-t", "0", web.id)


@pytest.mark.parametrize("ipam", [(), ("--ipam-driver", "pynet")], ids=["docker's ipam", "pynet's ipam"])
def test_network_has_two_subnets(
    dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire, ipam: tuple[str, ...]
) -> None:
    subnets = ("--subnet", "10.101.0.0/24", "--subnet", "10.102.0.0/24")
    with (
        docker_network(dockerd, *ipam, *subnets) as net,
        container(dockerd, "--network", net, "--ip", "10.101.0.9") as one,
        container(dockerd, "--network", net, "--ip", "10.102.0.9", "-p", "8080:80") as two,
        container(dockerd, "--network", net) as three,
        SeenServer(client, "tcp", 7000),
        SeenServer(two, "tcp", 80),
    ):
        assert one.pings("10.102.0.9")
        assert two.pings("10.101.0.9")
        assert three.pings("10.101.0.9")
        assert three.pings("10.102.0.9")
        for it in (one, two):
            assert tcp_ask(it, wire.right, 7000) == wire.left
        assert tcp_ask(client, wire.left, 8080) == wire.right
        assert tcp_ask(one, wire.left, 8080)
        assert not netplug.drift()


# Many networks


def attach(netplug: Netplug, network: str, place: Any) -> str:
    result = json.loads(netplug.cli("attach", network, "--netns", place.name))
    return str(result["addresses"][0]).partition("/")[0]


@pytest.mark.parametrize("named", [False, True], ids=["our bridges", "the user's bridges"])
def test_seventy_networks_live_side_by_side(netplug: Netplug, client: Host, wire: Wire, named: bool) -> None:
    names = [f"many{number}" for number in range(MANY)]
    with ThreadPoolExecutor(4) as pool, ExitStack() as stack:
        options = {name: ("-o", f"bridge=user-{name}") if named else () for name in names}
        list(pool.map(lambda name: netplug.cli("network", "create", name, *options[name]), names))
        try:
            assert {row["name"] for row in netplug.json("network", "ls")} >= set(names)
            assert not netplug.drift()
            one, last, neighbour = (stack.enter_context(namespace(netplug.host)) for _ in range(3))
            attach(netplug, names[0], one)
            address = attach(netplug, names[-1], last)
            attach(netplug, names[-1], neighbour)
            with SeenServer(client, "tcp", 7000):
                assert tcp_ask(last, wire.right, 7000) == wire.left
            assert neighbour.pings(address)
            assert not one.pings(address)
            for name, it in ((names[0], one), (names[-1], last), (names[-1], neighbour)):
                it.detach(netplug, name)
        finally:
            list(pool.map(lambda some: netplug.cli("network", "rm", *some), [names[i::4] for i in range(4)]))
