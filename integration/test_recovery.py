"""What crashes and careless hands do, and how it is mended.

That everything is gone afterwards is asserted by the leak check of every test, see `conftest.py`.
"""

import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from harness import (
    CommandError,
    Container,
    Dockerd,
    Host,
    Netplug,
    SeenServer,
    Wire,
    connect,
    container,
    docker_network,
    tcp_ask,
    udp_ask,
    wait_until,
)

from netplug.lab.image import IMAGE

NewHost = Callable[..., Host]

PARALLEL = 20
HEAL_TIMEOUT_S = 10
PLUGIN_PATIENCE_S = 120
"""dockerd waits 15 s for an absent plugin at each of its calls; removing a container takes some."""

pytestmark = pytest.mark.usefixtures("netplug")


@pytest.fixture(autouse=True)
def netplug_runs_again(netplug: Netplug, leak_check: None) -> Iterator[None]:  # noqa: ARG001 - before that cleans up
    """Start the daemon again where a test failed while it was down."""
    yield
    if not netplug.running:
        netplug.start()


def endpoints(netplug: Netplug) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = netplug.json("ps")
    return found


def owners(netplug: Netplug, *networks: str) -> list[str]:
    """Return the kinds of the owners of all leases in the pools of some networks."""
    pools = [pool for pool in netplug.json("ipam", "ls") if {*pool["networks"]} & {*networks}]
    return sorted(lease["owner_kind"] for pool in pools for lease in pool["leases"])


def bridge_of(dockerd: Dockerd, network: str) -> str:
    return f"np-{dockerd.inspect(network)['Id'][:12]}"


def tried(work: Callable[[], object]) -> str:
    """Return what docker says when it fails, or nothing."""
    try:
        work()
    except CommandError as exc:
        return exc.stderr or "failed"
    return ""


# The daemon is killed in the middle of its work


@pytest.mark.timeout(200)
@pytest.mark.parametrize("ipam", [(), ("--ipam-driver", "pynet")], ids=["docker's ipam", "pynet's ipam"])
def test_daemon_killed_while_containers_start_loses_and_leaks_nothing(
    dockerd: Dockerd, netplug: Netplug, ipam: tuple[str, ...]
) -> None:
    with docker_network(dockerd, *ipam, "--subnet", "10.91.0.0/24", may_miscount=True) as net:
        names = [f"mass{number}" for number in range(PARALLEL)]
        run = ("run", "-d", "--init", "--network", net, "--label", "mass", "-p", "80", "--name")
        with ThreadPoolExecutor(PARALLEL) as pool:
            runs = [pool.submit(tried, lambda n=n: dockerd.docker(*run, n, IMAGE, "sleep", "3600")) for n in names]  # type: ignore[misc]
            wait_until(lambda: len(endpoints(netplug)) > 3, what="some endpoints")
            netplug.kill()
            netplug.start()
        failed = [said for it in runs if (said := it.result())]
        assert len(failed) < PARALLEL, failed
        assert wait_until(lambda: not netplug.drift(), HEAL_TIMEOUT_S)
        alive = [Container(dockerd, ident) for ident in dockerd.docker("ps", "-q", "--no-trunc").split()]
        assert alive
        wait_until(
            lambda: len(endpoints(netplug)) == len(alive),
            HEAL_TIMEOUT_S,
            f"as many endpoints as containers ({len(alive)}; {failed})",
        )
        addresses = [it.ip() for it in alive]
        with ThreadPoolExecutor(PARALLEL) as pool:
            assert all(pool.map(alive[0].pings, addresses))
        with container(dockerd, "--network", net) as late:
            assert late.pings(addresses[0])
        dockerd.docker("rm", "-f", *dockerd.docker("ps", "-aq", "--filter", "label=mass").split())
        assert not endpoints(netplug)
        assert owners(netplug, net) == ["gateway"]


@pytest.mark.timeout(200)
def test_daemon_killed_while_containers_are_removed_leaves_nothing(dockerd: Dockerd, netplug: Netplug) -> None:
    with docker_network(dockerd, "--ipam-driver", "pynet", "--subnet", "10.92.0.0/24", may_miscount=True) as net:
        with ThreadPoolExecutor(PARALLEL) as pool:
            started = list(pool.map(lambda _: dockerd.run("--network", net, "-p", "80"), range(PARALLEL)))
            removals = [pool.submit(tried, it.remove) for it in started]
            wait_until(lambda: len(endpoints(netplug)) < PARALLEL - 3, what="some endpoints to go")
            netplug.kill()
            netplug.start()
        failed = [said for it in removals if (said := it.result())]
        if rest := dockerd.docker("ps", "-aq").split():
            dockerd.docker("rm", "-f", *rest)
        wait_until(lambda: not endpoints(netplug), HEAL_TIMEOUT_S, f"endpoints to go ({failed})")
        wait_until(lambda: owners(netplug, net) == ["gateway"], HEAL_TIMEOUT_S, f"leases to go ({failed})")
        assert wait_until(lambda: not netplug.drift(), HEAL_TIMEOUT_S)


@pytest.mark.timeout(300)
def test_what_docker_removes_while_the_daemon_is_down_is_gone_when_it_is_back(
    dockerd: Dockerd, netplug: Netplug
) -> None:
    """Containers on networks of either IPAM, and a whole network; dockerd waits long for each, so all at once."""
    own = ("--ipam-driver", "pynet")
    with docker_network(dockerd) as one, docker_network(dockerd, *own) as two:
        dockerd.docker("network", "create", "-d", "pynet", *own, "--subnet", "10.93.0.0/24", "late")
        first = dockerd.run("--network", one, "-p", "8080:80")
        second = dockerd.run("--network", two, "-p", "8081:80")
        netplug.kill()
        with ThreadPoolExecutor() as pool:
            removals = [
                pool.submit(tried, lambda argv=argv: dockerd.docker(*argv, timeout_s=PLUGIN_PATIENCE_S))  # type: ignore[misc]
                for argv in (("rm", "-f", first.id), ("rm", "-f", second.id), ("network", "rm", "late"))
            ]
        said = [it.result() for it in removals]
        assert not dockerd.docker("ps", "-aq")
        netplug.start()
        wait_until(lambda: not endpoints(netplug), HEAL_TIMEOUT_S, f"endpoints to go ({said})")
        for port in (8080, 8081):
            with SeenServer(dockerd.host, "tcp", port):
                pass
        # Docker goes on with the network's removal when it starts, not before.
        dockerd.restart()
        names = {one, two}
        wait_until(lambda: {row["name"] for row in netplug.json("network", "ls")} == names, 30, "the network to go")
        wait_until(lambda: owners(netplug, one, two) == ["gateway"] * 2, 30, "leases to go")
        assert wait_until(lambda: not netplug.drift(), HEAL_TIMEOUT_S)
        with container(dockerd, "--network", two) as again:
            assert again.running


def test_lost_state_takes_what_it_knew_with_it(dockerd: Dockerd, netplug: Netplug) -> None:
    """Objects that bear our mark and that no record knows go at the next start; docker can still clean up its side."""
    host = dockerd.host
    with (
        docker_network(dockerd) as one,
        docker_network(dockerd, "--ipam-driver", "pynet") as two,
        container(dockerd, "--network", one, "-p", "8080:80"),
        container(dockerd, "--network", two),
    ):
        netplug.stop()
        shutil.rmtree(netplug.state_dir)
        netplug.start()
        listing = "ip -d link; nft list ruleset"
        wait_until(
            lambda: "netplug" not in host.output("sh", "-c", f"({listing}) | tr A-Z a-z"),
            HEAL_TIMEOUT_S,
            "everything marked to go",
        )
        assert not endpoints(netplug)
        assert not netplug.drift()


# Others interfere


def test_deleted_bridge_comes_back_with_its_ports(dockerd: Dockerd, client: Host, wire: Wire) -> None:
    with (
        docker_network(dockerd) as net,
        container(dockerd, "--network", net, "-p", "8080:80") as web,
        container(dockerd, "--network", net) as neighbour,
        SeenServer(web, "tcp", 80),
    ):
        dockerd.host.run(["ip", "link", "del", bridge_of(dockerd, net)])
        asked = wait_until(lambda: tcp_ask(client, wire.left, 8080), HEAL_TIMEOUT_S, "healing", ignoring=(OSError,))
        assert asked == wire.right
        assert wait_until(lambda: neighbour.pings(web.ip()), HEAL_TIMEOUT_S)
        assert tcp_ask(neighbour, wire.left, 8080), "hairpin"
        assert tcp_ask(dockerd.host, "127.0.0.1", 8080)


FLUSHED = {
    "the bridge's addresses": "ip addr flush dev {bridge}",
    "the bridge is down": "ip link set {bridge} down",
    "a port's master": "ip link set $(ls /sys/class/net/{bridge}/brif | head -1) nomaster",
    "the bridge's route_localnet": "sysctl -qw net.ipv4.conf.{bridge}.route_localnet=0",
    "the published ports": "nft flush map inet netplug published4_any",
    "the guards of ports": "nft flush set bridge netplug own4",
    "the table of guards": "nft delete table bridge netplug",
    "the table of networks": "nft delete table inet netplug",
    "our rules": "nft flush chain inet netplug forward",
    "a foreign rule among ours": "nft insert rule inet netplug forward drop",
    "a chain's policy": "nft 'chain inet netplug forward {{ policy drop; }}'",
    "which chain is a network's": "nft flush map inet netplug to",
    "an element of a set": "nft flush set inet netplug icc",
    "the jump in FORWARD": "iptables -D FORWARD -j NETPLUG-FORWARD",
    "the rules of the gate": "iptables -F NETPLUG-FORWARD",
    "a foreign rule in the gate": "iptables -I NETPLUG-FORWARD -j DROP",
    "forwarding": "sysctl -qw net.ipv4.ip_forward=0",
}


def test_damage_is_mended_or_shown_and_repaired(dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire) -> None:
    """Not all changes are told by the kernel; `netplug repair` need not wait for the slow timer."""
    with (
        docker_network(dockerd) as net,
        container(dockerd, "--network", net, "-p", "8080:80") as web,
        container(dockerd, "--network", net) as neighbour,
        SeenServer(web, "tcp", 80),
    ):
        assert netplug.process
        for what, command in FLUSHED.items():
            # Rules are back within milliseconds, and a set that rules use cannot go.
            netplug.process.freeze()
            dockerd.host.run(["sh", "-ec", command.format(bridge=bridge_of(dockerd, net))])
            netplug.process.signal(signal.SIGCONT)
            shown = netplug.drift()
            netplug.cli("repair")
            assert netplug.drift() == "", f"{what}; shown before repair: {shown or 'nothing'}"
            assert tcp_ask(client, wire.left, 8080) == wire.right, what
            assert tcp_ask(dockerd.host, "127.0.0.1", 8080), what
            assert neighbour.pings(web.ip()), what


def test_addresses_flushed_from_the_bridge_come_back_by_themselves(
    dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire
) -> None:
    with (
        docker_network(dockerd) as net,
        container(dockerd, "--network", net, "-p", "8080:80") as web,
        SeenServer(web, "tcp", 80),
    ):
        dockerd.host.run(["ip", "addr", "flush", "dev", bridge_of(dockerd, net)])
        asked = wait_until(lambda: tcp_ask(client, wire.left, 8080), HEAL_TIMEOUT_S, "healing", ignoring=(OSError,))
        assert asked == wire.right
        assert wait_until(lambda: not netplug.drift())


def test_isolation_taken_from_a_port_comes_back_by_itself(dockerd: Dockerd, netplug: Netplug) -> None:
    """Its bridge tells of it; the slow timer would take half a minute."""
    host = dockerd.host
    with docker_network(dockerd, "-o", "icc=false") as net, container(dockerd, "--network", net):
        (port,) = host.output("ls", f"/sys/class/net/{bridge_of(dockerd, net)}/brif").split()
        isolated = f"/sys/class/net/{port}/brport/isolated"
        assert host.output("cat", isolated).strip() == "1"
        host.run(["bridge", "link", "set", "dev", port, "isolated", "off"])
        wait_until(lambda: host.output("cat", isolated).strip() == "1", HEAL_TIMEOUT_S, "healing")
        assert not netplug.drift()


# Reserved ports


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_published_port_is_held_also_after_a_crash(
    dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire, proto: str
) -> None:
    ask = {"tcp": tcp_ask, "udp": udp_ask}[proto]
    with (
        docker_network(dockerd) as net,
        container(dockerd, "--network", net, "-p", f"8080:80/{proto}") as web,
        SeenServer(web, proto, 80),
    ):
        for restart in (None, Netplug.kill, Netplug.stop):
            if restart:
                restart(netplug)
                netplug.start()
            with pytest.raises(OSError, match="already in use"):
                SeenServer(dockerd.host, proto, 8080)
            assert ask(client, wire.left, 8080) == wire.right


# dockerd restarts under running containers


def test_containers_live_through_a_restart_of_dockerd(new_host: NewHost, client: Host) -> None:
    host = new_host("live")
    wire = connect(host, client, "198.51.100.0/24", "fd00:beef::/64")
    dockerd, netplug = Dockerd(host, "--live-restore"), Netplug(host)
    with (
        docker_network(dockerd) as one,
        docker_network(dockerd, "--ipam-driver", "pynet") as two,
        container(dockerd, "--network", one, "-p", "8080:80", "-p", "80") as web,
        container(dockerd, "--network", one) as neighbour,
        container(dockerd, "--network", two) as other,
        SeenServer(web, "tcp", 80),
    ):
        before = endpoints(netplug)
        leases = netplug.json("ipam", "ls")
        for end in (Dockerd.stop, Dockerd.kill):
            end(dockerd)
            assert tcp_ask(client, wire.left, 8080) == wire.right
            dockerd.start()
            assert web.running
            assert neighbour.pings(web.ip())
            assert tcp_ask(client, wire.left, 8080) == wire.right
            assert endpoints(netplug) == before
            assert netplug.json("ipam", "ls") == leases
            assert not netplug.drift()
            with container(dockerd, "--network", two) as late:
                assert late.ip() != other.ip()
                assert late.pings(other.ip())
    assert not endpoints(netplug)
    assert not netplug.json("ipam", "ls")
    assert "endpoint.dead" not in netplug.log.read_text()
