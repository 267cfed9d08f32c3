"""None mode (`-o mode=none`): a sandbox has its loopback and nothing else."""

from typing import Any

import pytest
from harness import (
    CommandError,
    Container,
    Dockerd,
    Namespace,
    Netplug,
    attached,
    cli_network,
    container,
    docker_network,
    namespace,
    wait_until,
)

NONE = ("-o", "mode=none")

pytestmark = pytest.mark.usefixtures("netplug")


def links(place: Container | Namespace) -> list[str]:
    """Return the names of a sandbox's interfaces."""
    return [line.split(":")[1].strip().partition("@")[0] for line in place.exec("ip", "-o", "link").splitlines()]


def only_loopback(place: Container | Namespace) -> bool:
    routes = place.exec("ip", "route") + place.exec("ip", "-6", "route", "show", "default")
    return links(place) == ["lo"] and not routes and place.pings("127.0.0.1")


def leased(netplug: Netplug) -> list[Any]:
    return [lease for pool in netplug.json("ipam", "ls") for lease in pool["leases"]]


def refusal(netplug: Netplug, *args: str) -> str:
    with pytest.raises(CommandError) as caught:
        netplug.cli(*args)
    assert caught.value.code == 1
    (line,) = caught.value.stderr.splitlines()
    return line


@pytest.mark.parametrize("ipam", [(), ("--ipam-driver", "pynet")], ids=["docker's ipam", "pynet's ipam"])
def test_container_has_only_its_loopback_and_no_lease(
    dockerd: Dockerd, netplug: Netplug, ipam: tuple[str, ...]
) -> None:
    """Docker insists on a subnet and an address each, and shows them; nobody bears them."""
    dual_stack = ("--ipv6", "--subnet", "10.92.1.0/24", "--subnet", "fd00:92::/64")
    with docker_network(dockerd, *NONE, *ipam, *dual_stack) as net:
        assert leased(netplug) == []
        with container(dockerd, "--network", net, "--name", "alone", "-p", "8081:80") as one:
            assert only_loopback(one)
            (shown,) = netplug.json("ps", "--network", net)
            assert (shown["addresses"], shown["ports"]) == ([], [])
            assert leased(netplug) == []
            assert not netplug.drift()
            dockerd.docker("restart", "-t", "0", one.id)
            assert only_loopback(one)
        if ipam:
            assert [(pool["used"], pool["networks"]) for pool in netplug.json("ipam", "ls")] == [(0, [net])] * 2


def test_restart_of_dockerd_leases_nothing_either(dockerd: Dockerd, netplug: Netplug) -> None:
    """It repeats then what it asked for, to whoever is its IPAM driver."""
    options = ("--network-alias", "alone", "--restart", "always")
    with (
        docker_network(dockerd, *NONE, "--ipam-driver", "pynet") as net,
        container(dockerd, "--network", net, *options) as one,
    ):
        dockerd.restart()
        wait_until(lambda: one.running, what="the restart of the container")
        assert only_loopback(one)
        assert leased(netplug) == []


def test_container_is_as_one_of_dockers_own_none(dockerd: Dockerd) -> None:
    """Docker switches IPv6 off there, even on the loopback."""
    with (
        docker_network(dockerd, *NONE) as net,
        container(dockerd, "--network", net) as ours,
        container(dockerd, "--network", "none") as dockers,
    ):
        for command in ("ip -o addr", "ip route", "ip -6 route", "cat /proc/sys/net/ipv6/conf/lo/disable_ipv6"):
            assert ours.exec(*command.split()) == dockers.exec(*command.split())


def test_no_docker_gwbridge_comes_into_being(dockerd: Dockerd) -> None:
    with docker_network(dockerd, *NONE) as net, container(dockerd, "--network", net):
        assert "docker_gwbridge" not in dockerd.docker("network", "ls", "--format", "{{.Name}}").split()


def test_addresses_that_the_user_names_are_ignored_as_docker_does(dockerd: Dockerd) -> None:
    options = ("--subnet", "10.92.2.0/24", "--ipam-driver", "pynet")
    given = ("--ip", "10.92.2.7", "--mac-address", "02:42:0a:5c:02:07")
    with docker_network(dockerd, *NONE, *options) as net, container(dockerd, "--network", net, *given) as one:
        assert only_loopback(one)


def test_container_keeps_the_way_out_of_its_other_network(dockerd: Dockerd, netplug: Netplug) -> None:
    with (
        docker_network(dockerd, *NONE) as none,
        docker_network(dockerd) as blue,
        container(dockerd, "--network", blue, "-p", "8082:80") as one,
    ):
        dockerd.docker("network", "connect", none, one.id)
        assert links(one) == ["lo", "eth0"]
        assert "default" in one.exec("ip", "route")
        assert [row["ports"] for row in netplug.json("ps", "--network", blue)] == [
            ["0.0.0.0:8082->80/tcp", "[::]:8082->80/tcp"]
        ]
        dockerd.docker("network", "disconnect", none, one.id)
        assert links(one) == ["lo", "eth0"]


def test_bare_namespace_gets_its_loopback_up_and_nothing_else(netplug: Netplug) -> None:
    with cli_network(netplug, "--mode", "none") as net:
        assert netplug.json("ipam", "ls") == []
        with attached(netplug, net, "--name", "alone") as (lab, result):
            assert only_loopback(lab)
            assert lab.pings("::1")
            assert (result["addresses"], result["gateways"], result["routes"]) == ([], [], [])
            assert (result["interface"], result["mac"], result["ports"]) == ("", "", [])
            assert leased(netplug) == []
            netplug.restart()
            assert only_loopback(lab)
            assert not netplug.drift()

            def told() -> bool:  # the comparison at intervals may heal it before it is asked for
                lab.exec("ip", "link", "set", "lo", "down")
                return "loopback" in netplug.drift()

            wait_until(told, what="netplug diff names what is lost")
            netplug.cli("repair")
            assert only_loopback(lab)
            (shown,) = netplug.json("network", "inspect", net)["endpoints"]
            assert (shown["name"], shown["addresses"]) == ("alone", [])


def test_what_needs_an_interface_or_a_subnet_is_refused(netplug: Netplug) -> None:
    with cli_network(netplug, "--mode", "none") as net, namespace(netplug.host) as lab:
        for flag, value in (("--ip", "10.92.3.7"), ("--mac", "02:42:0a:5c:03:07"), ("--publish", "8083:80")):
            words = refusal(netplug, "attach", net, "--netns", lab.name, flag, value)
            assert f"network {net!r} is of mode 'none': its sandboxes have no interface but loopback" in words
            assert f"leave out {flag}" in words
    for flags in (("--subnet", "10.92.3.0/24"), ("--ipv6",)):
        words = refusal(netplug, "network", "create", "bad", "--mode", "none", *flags)
        assert "a network of mode 'none' has no addresses" in words
