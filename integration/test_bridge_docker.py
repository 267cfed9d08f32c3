"""The daily work of Docker users on pynet bridge networks, by a real dockerd.

That everything is gone afterwards is asserted by the leak check of every test, see `conftest.py`.
"""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import ip_address, ip_network
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
    container,
    http_get,
    tcp_ask,
    udp_ask,
    wait_until,
)
from harness import docker_network as network

from netplug.lab.image import IMAGE, PAGE

NewHost = Callable[..., Host]

RESTART_TIMEOUT_S = 30
"""Docker waits 0.1, 0.2, 0.4 … s between tries of its restart policy."""
PARALLEL = 30

pytestmark = pytest.mark.usefixtures("netplug")


def fails_with(dockerd: Dockerd, *args: str) -> str:
    """Return what docker says when it refuses."""
    with pytest.raises(CommandError) as caught:
        dockerd.docker(*args)
    return caught.value.stderr


def endpoints(netplug: Netplug) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = netplug.json("ps")
    return found


def endpoint_of(netplug: Netplug, container: Container) -> dict[str, Any]:
    """Return the one endpoint that has the container's address."""
    address = container.ip()
    (found,) = (it for it in endpoints(netplug) if address in {a.partition("/")[0] for a in it["addresses"]})
    return found


# Create, run, ping, remove


def test_containers_of_a_network_reach_each_other_their_gateway_and_the_world(
    dockerd: Dockerd, client: Host, wire: Wire
) -> None:
    with (
        network(dockerd) as net,
        container(dockerd, "--network", net) as one,
        container(dockerd, "--network", net) as two,
    ):
        assert one.pings(two.ip())
        assert two.pings(one.ip())
        gateway = dockerd.inspect(net)["IPAM"]["Config"][0]["Gateway"].split("/")[0]
        assert one.exec("ip", "route", "show", "default").split()[:3] == ["default", "via", gateway]
        assert one.pings(gateway)
        with SeenServer(client, "tcp", 7000):
            assert tcp_ask(one, wire.right, 7000) == wire.left


def test_containers_of_two_networks_do_not_reach_each_other(dockerd: Dockerd) -> None:
    with (
        network(dockerd) as blue,
        network(dockerd) as red,
        container(dockerd, "--network", blue) as one,
        container(dockerd, "--network", red) as two,
    ):
        assert not one.pings(two.ip())
        with SeenServer(two, "tcp", 80), pytest.raises(OSError, match=r"timed out|refused|unreachable"):
            tcp_ask(one, two.ip(), 80)


def test_containers_do_not_reach_those_of_dockers_own_bridge(dockerd: Dockerd) -> None:
    with (
        network(dockerd) as net,
        container(dockerd, "--network", net) as ours,
        container(dockerd) as docker_s,
    ):
        assert not ours.pings(docker_s.ip())
        assert not docker_s.pings(ours.ip())


def test_without_icc_containers_reach_the_world_but_not_each_other(dockerd: Dockerd, client: Host, wire: Wire) -> None:
    with (
        network(dockerd, "-o", "icc=false") as net,
        container(dockerd, "--network", net) as one,
        container(dockerd, "--network", net) as two,
    ):
        assert not one.pings(two.ip())
        with SeenServer(client, "tcp", 7000):
            assert tcp_ask(one, wire.right, 7000) == wire.left


def test_lists_show_network_endpoint_and_leases(dockerd: Dockerd, netplug: Netplug) -> None:
    with network(dockerd, "--ipam-driver", "pynet", "--subnet", "10.77.0.0/24") as net:
        with container(dockerd, "--network", net, "--name", "web", "-p", "8080:80") as one:
            shown = endpoint_of(netplug, one)
            assert shown["mac"] == one.mac()
            assert shown["ports"] == ["0.0.0.0:8080->80/tcp", "[::]:8080->80/tcp"]
            wait_until(lambda: endpoint_of(netplug, one)["network"] == net, what="the network's name, from Docker")
            wait_until(lambda: endpoint_of(netplug, one)["name"] == "web", what="the container's name, from Docker")
            assert one.ip() in str(netplug.json("ipam", "ls"))
        assert "10.77.0.0/24" in str(netplug.json("ipam", "ls"))
        assert dockerd.inspect(net)["Id"] in str(netplug.json("network", "ls"))
    assert not netplug.drift()


# Addresses


@pytest.mark.parametrize("ipam", [(), ("--ipam-driver", "pynet")], ids=["docker's ipam", "pynet's ipam"])
def test_given_address_and_mac_are_used(dockerd: Dockerd, ipam: tuple[str, ...]) -> None:
    with (
        network(dockerd, *ipam, "--subnet", "10.78.0.0/24", "--gateway", "10.78.0.254") as net,
        container(dockerd, "--network", net, "--ip", "10.78.0.9", "--mac-address", "02:00:00:00:00:99") as one,
        container(dockerd, "--network", net) as two,
    ):
        assert one.ip() == "10.78.0.9"
        shown = one.exec("ip", "addr", "show", "eth0")
        assert "inet 10.78.0.9/24" in shown
        assert "02:00:00:00:00:99" in shown
        assert "via 10.78.0.254" in one.exec("ip", "route", "show", "default")
        assert two.pings("10.78.0.9")


def test_ip_range_limits_and_aux_address_is_left_alone(dockerd: Dockerd) -> None:
    options = ("--ipam-driver", "pynet", "--subnet", "10.79.0.0/24", "--ip-range", "10.79.0.128/30")
    options += ("--aux-address", "router=10.79.0.129", "--gateway", "10.79.0.1")
    with (
        network(dockerd, *options) as net,
        container(dockerd, "--network", net) as one,
        container(dockerd, "--network", net) as two,
    ):
        given = {ip_address(it.ip()) for it in (one, two)}
        assert given <= set(ip_network("10.79.0.128/30"))
        assert ip_address("10.79.0.129") not in given


def test_taken_address_is_refused_by_name(dockerd: Dockerd) -> None:
    with (
        network(dockerd, "--ipam-driver", "pynet", "--subnet", "10.80.0.0/24") as net,
        container(dockerd, "--network", net, "--ip", "10.80.0.9"),
    ):
        said = fails_with(dockerd, "run", "--rm", "--network", net, "--ip", "10.80.0.9", IMAGE, "true")
        assert "10.80.0.9" in said


def test_overlapping_subnet_is_refused_by_name(dockerd: Dockerd) -> None:
    with network(dockerd, "--ipam-driver", "pynet", "--subnet", "10.81.0.0/24"):
        said = fails_with(
            dockerd, "network", "create", "-d", "pynet", "--ipam-driver", "pynet", "--subnet", "10.81.0.0/16", "bad"
        )
        assert "10.81.0.0/16" in said


@pytest.mark.parametrize("option", ["mode=sideways", "colour=blue", "mtu=tall"])
def test_bad_option_is_refused_by_name(dockerd: Dockerd, option: str) -> None:
    said = fails_with(dockerd, "network", "create", "-d", "pynet", "-o", option, "bad")
    key, value = option.split("=")
    assert key in said
    assert value in said or key == "colour"


def test_internal_network_has_no_way_out_nor_in(dockerd: Dockerd, client: Host, wire: Wire) -> None:
    with (
        network(dockerd, "--internal") as net,
        container(dockerd, "--network", net, "-p", "8090:80") as one,
        container(dockerd, "--network", net) as two,
    ):
        assert one.pings(two.ip())
        assert not one.pings(wire.right)
        with SeenServer(one, "tcp", 80), pytest.raises(OSError, match=r"timed out|refused|unreachable"):
            tcp_ask(client, wire.left, 8090)


# Published ports


@pytest.fixture(params=["tcp", "udp"])
def proto(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ask(proto: str) -> Callable[..., str]:
    return tcp_ask if proto == "tcp" else udp_ask


def test_published_page_is_fetched_from_another_host(dockerd: Dockerd, client: Host, wire: Wire) -> None:
    web = ("httpd", "-f", "-h", "/www")
    with network(dockerd) as net, container(dockerd, "--network", net, "-p", "8080:80", command=web):
        assert wait_until(lambda: http_get(client, wire.left, 8080), ignoring=(OSError,)) == PAGE


def test_published_port_is_reached_from_every_side(dockerd: Dockerd, client: Host, wire: Wire, proto: str) -> None:
    with (
        network(dockerd) as net,
        network(dockerd) as far,
        container(dockerd, "--network", net, "-p", f"8080:80/{proto}") as web,
        container(dockerd, "--network", net) as neighbour,
        container(dockerd, "--network", far) as stranger,
        SeenServer(web, proto, 80),
    ):
        gateway = dockerd.inspect(net)["IPAM"]["Config"][0]["Gateway"].split("/")[0]
        assert ask(proto)(client, wire.left, 8080) == wire.right, "another host's address is kept"
        assert ask(proto)(dockerd.host, wire.left, 8080) == wire.left, "the host by its own address"
        assert ask(proto)(dockerd.host, "127.0.0.1", 8080) == gateway, "the host by its loopback"
        assert ask(proto)(web, wire.left, 8080) == gateway, "the container itself"
        assert ask(proto)(neighbour, wire.left, 8080) == gateway, "its neighbour"
        assert ask(proto)(stranger, wire.left, 8080), "a container of another network"


def test_port_published_on_the_loopback_is_the_hosts_alone(
    dockerd: Dockerd, client: Host, wire: Wire, proto: str
) -> None:
    with (
        network(dockerd) as net,
        container(dockerd, "--network", net, "-p", f"127.0.0.1:8080:80/{proto}") as web,
        SeenServer(web, proto, 80) as server,
    ):
        assert ask(proto)(dockerd.host, "127.0.0.1", 8080)
        heard = len(server.seen)
        with pytest.raises(OSError, match=r"timed out|refused|unreachable"):
            ask(proto)(client, wire.left, 8080)
        assert len(server.seen) == heard


def test_range_of_ports_is_published(dockerd: Dockerd, client: Host, wire: Wire) -> None:
    with network(dockerd) as net, container(dockerd, "--network", net, "-p", "8090-8092:90-92") as web:
        for offset in range(3):
            with SeenServer(web, "tcp", 90 + offset):
                assert tcp_ask(client, wire.left, 8090 + offset) == wire.right


def test_ephemeral_port_is_shown_by_ps_and_works(dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire) -> None:
    with (
        network(dockerd) as net,
        container(dockerd, "--network", net, "-p", "80") as web,
        SeenServer(web, "tcp", 80),
    ):
        shown, _ = endpoint_of(netplug, web)["ports"]
        found = re.fullmatch(r"0\.0\.0\.0:(\d+)->80/tcp", shown)
        assert found, shown
        port = int(found[1])
        assert tcp_ask(client, wire.left, port) == wire.right


def test_taken_port_is_refused_by_name_and_leaves_nothing(dockerd: Dockerd) -> None:
    with network(dockerd) as net, SeenServer(dockerd.host, "tcp", 8080):
        said = fails_with(dockerd, "run", "--name", "late", "--network", net, "-p", "8080:80", IMAGE, "true")
        assert "8080" in said
        dockerd.docker("rm", "late")


def test_same_port_for_two_containers_is_refused(dockerd: Dockerd, client: Host, wire: Wire) -> None:
    with network(dockerd) as net, container(dockerd, "--network", net, "-p", "8080:80") as first:
        said = fails_with(dockerd, "run", "--name", "late", "--network", net, "-p", "8080:80", IMAGE, "true")
        assert "8080" in said
        dockerd.docker("rm", "late")
        with SeenServer(first, "tcp", 80):
            assert tcp_ask(client, wire.left, 8080) == wire.right


def test_udp_flow_follows_the_port_to_its_next_container(dockerd: Dockerd, client: Host, wire: Wire) -> None:
    """A client that keeps its source port would stay bound to the dead container by its conntrack entry."""
    with network(dockerd) as net:
        for _ in range(2):
            with (
                container(dockerd, "--network", net, "-p", "5353:53/udp") as server,
                SeenServer(server, "udp", 53),
            ):
                assert udp_ask(client, wire.left, 5353, source_port=40000) == wire.right


def test_ports_work_when_forwarding_is_dropped_by_default(dockerd: Dockerd, client: Host, wire: Wire) -> None:
    """Docker itself sets the policy; the host's administrator may as well."""
    assert "-P FORWARD DROP" in dockerd.host.output("iptables", "-S", "FORWARD")
    with (
        network(dockerd) as net,
        container(dockerd, "--network", net, "-p", "8080:80") as web,
        SeenServer(web, "tcp", 80),
    ):
        assert tcp_ask(client, wire.left, 8080) == wire.right


def test_docker_user_chain_is_honoured(dockerd: Dockerd, client: Host, wire: Wire) -> None:
    rule = ("DOCKER-USER", "-s", wire.right, "-j", "REJECT")
    with (
        network(dockerd) as net,
        container(dockerd, "--network", net, "-p", "8080:80") as web,
        SeenServer(web, "tcp", 80),
    ):
        dockerd.host.run(["iptables", "-I", *rule])
        try:
            with pytest.raises(OSError, match=r"timed out|refused|unreachable"):
                tcp_ask(client, wire.left, 8080)
        finally:
            dockerd.host.run(["iptables", "-D", *rule])
        assert tcp_ask(client, wire.left, 8080) == wire.right


def test_bridges_that_pass_frames_to_iptables_change_nothing(dockerd: Dockerd, client: Host, wire: Wire) -> None:
    key = "net.bridge.bridge-nf-call-iptables"
    if dockerd.host.run(["sysctl", "-n", key], check=False).returncode:
        pytest.skip("needs the kernel module br_netfilter")
    before = dockerd.host.output("sysctl", "-n", key)
    dockerd.host.run(["sysctl", "-qw", f"{key}=1"])
    try:
        with (
            network(dockerd) as net,
            container(dockerd, "--network", net, "-p", "8080:80") as web,
            container(dockerd, "--network", net) as neighbour,
            SeenServer(web, "tcp", 80),
        ):
            assert neighbour.pings(web.ip())
            assert tcp_ask(neighbour, wire.left, 8080)
            assert tcp_ask(client, wire.left, 8080) == wire.right
    finally:
        dockerd.host.run(["sysctl", "-qw", f"{key}={before}"])


# Changes while they run


def test_running_container_is_connected_and_disconnected(dockerd: Dockerd) -> None:
    with (
        network(dockerd) as blue,
        network(dockerd) as red,
        container(dockerd, "--network", blue) as one,
        container(dockerd, "--network", red) as two,
    ):
        dockerd.docker("network", "connect", red, one.id)
        assert one.pings(two.ip())
        assert one.exec("ip", "link", "show", "eth1")
        dockerd.docker("network", "disconnect", red, one.id)
        assert not one.pings(two.ip())
        assert "eth1" not in one.exec("ip", "link")


def test_published_port_survives_disconnecting_another_network(dockerd: Dockerd, client: Host, wire: Wire) -> None:
    with (
        network(dockerd) as blue,
        network(dockerd) as red,
        container(dockerd, "--network", blue, "-p", "8080:80") as web,
        SeenServer(web, "tcp", 80),
    ):
        dockerd.docker("network", "connect", red, web.id)
        assert tcp_ask(client, wire.left, 8080) == wire.right
        dockerd.docker("network", "disconnect", red, web.id)
        assert tcp_ask(client, wire.left, 8080) == wire.right


def test_restarted_container_keeps_its_ports(dockerd: Dockerd, client: Host, wire: Wire) -> None:
    with network(dockerd) as net, container(dockerd, "--network", net, "-p", "8080:80") as web:
        dockerd.docker("restart", "-t", "0", web.id)
        with SeenServer(web, "tcp", 80):
            assert tcp_ask(client, wire.left, 8080) == wire.right


def test_thirty_containers_start_in_parallel(dockerd: Dockerd, netplug: Netplug) -> None:
    with network(dockerd, "--ipam-driver", "pynet", "--subnet", "10.82.0.0/24", may_miscount=True) as net:
        with ThreadPoolExecutor(PARALLEL) as pool:
            started = list(pool.map(lambda _: dockerd.run("--network", net), range(PARALLEL)))
        addresses = {it.ip() for it in started}
        assert len(addresses) == PARALLEL
        assert all(started[0].pings(address) for address in addresses)
        assert len(endpoints(netplug)) == PARALLEL
        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(Container.remove, started))


# The daemons come and go


def test_killed_netplug_leaves_traffic_and_comes_back_to_its_work(
    dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire
) -> None:
    with (
        network(dockerd) as net,
        container(dockerd, "--network", net, "-p", "8080:80") as web,
        container(dockerd, "--network", net) as neighbour,
        SeenServer(web, "tcp", 80),
    ):
        netplug.kill()
        assert neighbour.pings(web.ip())
        assert tcp_ask(client, wire.left, 8080) == wire.right
        netplug.start()
        assert tcp_ask(client, wire.left, 8080) == wire.right
        assert not netplug.drift()
        with container(dockerd, "--network", net) as late:
            assert late.pings(web.ip())


def test_stopped_netplug_leaves_traffic_standing(dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire) -> None:
    with (
        network(dockerd) as net,
        container(dockerd, "--network", net, "-p", "8080:80") as web,
        SeenServer(web, "tcp", 80),
    ):
        netplug.stop()
        assert not netplug.plugin_socket.exists()
        assert tcp_ask(client, wire.left, 8080) == wire.right
        netplug.start()
        assert tcp_ask(client, wire.left, 8080) == wire.right


def test_second_daemon_refuses_to_start_and_says_who_holds_it(netplug: Netplug) -> None:
    done = netplug.host.run(netplug.command(), check=False, timeout_s=20)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert str(netplug.host.output("pgrep", "-of", "netplug serve")) in done.stdout + done.stderr


@pytest.mark.parametrize("end", [Dockerd.stop, Dockerd.kill], ids=["stopped", "killed"])
@pytest.mark.parametrize("ipam", [(), ("--ipam-driver", "pynet")], ids=["docker's ipam", "pynet's ipam"])
def test_containers_come_back_with_their_dockerd(
    dockerd: Dockerd,
    netplug: Netplug,
    client: Host,
    wire: Wire,
    end: Callable[[Dockerd], None],
    ipam: tuple[str, ...],
) -> None:
    options = ("--restart", "always", "--network")
    with (
        network(dockerd, *ipam) as net,
        container(dockerd, *options, net, "-p", "8080:80") as web,
        container(dockerd, *options, net) as neighbour,
    ):
        end(dockerd)
        dockerd.start()
        for it in (web, neighbour):
            wait_until(lambda it=it: it.running and it.ip(), RESTART_TIMEOUT_S, "restart by policy")
        with SeenServer(web, "tcp", 80):
            assert wait_until(lambda: neighbour.pings(web.ip()), RESTART_TIMEOUT_S)
            assert tcp_ask(client, wire.left, 8080) == wire.right
        wait_until(lambda: len(endpoints(netplug)) == 2, what="the endpoints of both")
        assert wait_until(lambda: not netplug.drift())


def test_daemons_may_start_in_the_other_order(new_host: NewHost) -> None:
    host = new_host()
    netplug = Netplug(host)
    dockerd = Dockerd(host)
    with (
        network(dockerd) as net,
        container(dockerd, "--network", net) as one,
        container(dockerd, "--network", net) as two,
    ):
        assert one.pings(two.ip())
    netplug.stop()
    with suppress(FileNotFoundError):
        assert not list(host.path("/run/docker/plugins").iterdir())


def test_flushed_firewall_heals_by_itself(dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire) -> None:
    with (
        network(dockerd) as net,
        container(dockerd, "--network", net, "-p", "8080:80") as web,
        SeenServer(web, "tcp", 80),
    ):
        rules = dockerd.host.run(["iptables-save"]).stdout
        dockerd.host.run(["sh", "-c", "iptables -F; iptables -t nat -F; iptables -P FORWARD DROP"])
        try:
            assert (
                wait_until(lambda: tcp_ask(client, wire.left, 8080), 10, "healing", ignoring=(OSError,)) == wire.right
            )
            assert wait_until(lambda: not netplug.drift())
        finally:
            dockerd.host.run(["iptables-restore"], stdin=rules)
