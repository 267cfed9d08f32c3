"""The host forwards for our networks alone, keeps what a router told it, and is as before when we are gone."""

import json
import socket
from collections.abc import Callable

from harness import (
    Container,
    Dockerd,
    Host,
    Netplug,
    SeenServer,
    attached,
    cli_network,
    connect,
    container,
    docker_network,
    tcp_ask,
    wait_until,
)
from harness.netns import in_netns
from harness.wire import Wire
from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6NDOptPrefixInfo, IPv6
from scapy.layers.l2 import Ether

SUBNETS = ("--subnet", "10.95.0.0/24", "--subnet", "fd00:95::/64")
FORWARDING = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
AT_ONCE_S = 8
"""Less than the time between two full comparisons (30 s)."""
ROUTE_TIMEOUT_S = WORKS_TIMEOUT_S = 10


def advertise(router: Host, link: str, router_mac: str) -> None:
    """Send a router advertisement (RFC 4861) with a default route and a prefix."""
    frame = (
        Ether(src=router_mac, dst="33:33:00:00:00:01")
        / IPv6(src="fe80::1", dst="ff02::1", hlim=255)
        / ICMPv6ND_RA(routerlifetime=1800)
        / ICMPv6NDOptPrefixInfo(prefix="2001:db8:95::", prefixlen=64, L=1, A=1)
    )
    with in_netns(router.netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as sock:
        sock.bind((link, 0))
        sock.send(bytes(frame))


def router_in_the_middle(new_host: Callable[..., Host]) -> tuple[tuple[Host, Host, Host], tuple[Wire, Wire]]:
    """Return a host with another one on each side, and its wires. The right one sends all that it has to this host."""
    host, left, right = new_host(), new_host("left"), new_host("right")
    first = connect(host, left)
    second = connect(host, right, "198.51.100.0/24", "fd00:beef::/64", routes=False)
    right.run(["ip", "route", "add", "default", "via", second.left])
    right.run(["ip", "-6", "route", "add", "default", "via", second.left6])
    return (host, left, right), (first, second)


def test_network_makes_no_router_of_the_host(new_host: Callable[..., Host]) -> None:
    (host, left, right), (first, second) = router_in_the_middle(new_host)
    host.run(["ip", "-6", "route", "del", "default"])
    host.run(["sysctl", "-qw", *(f"{key}=0" for key in FORWARDING), f"net.ipv6.conf.{first.left_link}.accept_ra=1"])

    def told() -> bool:
        return "proto ra" in host.output("ip", "-6", "route", "show", "default")

    def settings() -> list[str]:
        keys = (*FORWARDING, f"net.ipv6.conf.{first.left_link}.accept_ra")
        return host.output("sysctl", "-n", *keys).split()

    router = left.output("cat", f"/sys/class/net/{first.right_link}/address").strip()

    def listens() -> bool:
        advertise(left, first.right_link, router)
        return told()

    wait_until(listens, ROUTE_TIMEOUT_S, "the route of the router")
    netplug = Netplug(host, "--docker-host", "none")
    with (
        cli_network(netplug, *SUBNETS) as net,
        attached(netplug, net, "--publish", "8080:80") as (it, _),
        SeenServer(left, "tcp", 7000, "::"),
        SeenServer(it, "tcp", 80, "::"),
    ):
        assert settings() == ["1", "1", "2"]
        assert told(), "forwarding made the host forget the router"
        for outside in (first.right, first.right6):
            assert tcp_ask(it, outside, 7000)
        for inside in (second.left, second.left6):
            assert tcp_ask(right, inside, 8080)
        for beyond in (first.right, first.right6):
            try:
                tcp_ask(right, beyond, 7000)
            except OSError:
                continue
            raise AssertionError(f"the host forwards what is of others, to {beyond}")
        assert not netplug.drift()
    assert settings() == ["0", "0", "1"]
    assert told()
    assert "netplug" not in host.output("nft", "list", "tables")
    netplug.stop()


def test_uplink_that_comes_later_is_kept_apart_at_once(new_host: Callable[..., Host]) -> None:
    """The comparison at intervals is not what sees it: it is longer away than this waits."""
    host, left, right = new_host(), new_host("left"), new_host("right")
    first = connect(host, left)
    host.run(["sysctl", "-qw", *(f"{key}=0" for key in FORWARDING)])
    netplug = Netplug(host, "--docker-host", "none")

    def apart(family: int) -> set[str]:
        shown = json.loads(host.output("nft", "-j", "list", "set", "inet", "netplug", f"strangers{family}"))
        return set(shown["nftables"][1]["set"].get("elem", ()))

    with cli_network(netplug, *SUBNETS), SeenServer(left, "tcp", 7000, "::"):
        assert apart(4) == apart(6) == {first.left_link}
        second = connect(host, right, "198.51.100.0/24", "fd00:beef::/64", routes=False)
        right.run(["ip", "route", "add", "default", "via", second.left])
        wait_until(lambda: second.left_link in apart(4) & apart(6), AT_ONCE_S, "the second uplink is kept apart")
        assert not answers(right, first.right, 7000), "the host forwards what is of others"
        assert not netplug.drift()
        host.run(["ip", "link", "del", second.left_link])
        wait_until(lambda: apart(4) == apart(6) == {first.left_link}, AT_ONCE_S, "nothing is left of the second uplink")
        assert "forwarding.unguarded" not in netplug.log.read_text()
    netplug.stop()


def test_docker_that_comes_later_works_and_makes_no_router_of_the_host(new_host: Callable[..., Host]) -> None:
    """It turns forwarding on with a policy of DROP only where forwarding is off."""
    (host, left, right), (first, second) = router_in_the_middle(new_host)
    host.run(["sysctl", "-qw", *(f"{key}=0" for key in FORWARDING)])
    host.run(["iptables", "-P", "FORWARD", "ACCEPT"])
    netplug = Netplug(host)

    def check(dockerd: Dockerd) -> None:
        with (
            docker_network(dockerd, driver="bridge") as own,
            container(dockerd, "--network", own, "-p", "8090:80") as web,
            container(dockerd, "--network", own) as neighbour,
            container(dockerd) as default,
            SeenServer(web, "tcp", 80),
            SeenServer(left, "tcp", 7000),
        ):
            for it in (web, default):
                wait_until(lambda it=it: answers(it, first.right, 7000), WORKS_TIMEOUT_S, "the way out")  # type: ignore[misc]
            wait_until(lambda: answers(right, second.left, 8090), WORKS_TIMEOUT_S, "the published port")
            assert neighbour.pings(web.ip())
            assert "-P FORWARD ACCEPT" in host.output("iptables", "-S", "FORWARD")
            assert not answers(right, first.right, 7000), "the host forwards what is of others"
            wait_until(lambda: not netplug.drift(), WORKS_TIMEOUT_S, "peace")

    with cli_network(netplug, *SUBNETS):
        dockerd = Dockerd(host)
        check(dockerd)
    check(dockerd)
    assert host.output("sysctl", "-n", *FORWARDING).split()[0] == "1"


def answers(place: Host | Container, address: str, port: int) -> bool:
    try:
        tcp_ask(place, address, port)
    except OSError:
        return False
    return True


def test_iptables_that_does_not_work_is_in_nobodys_way(new_host: Callable[..., Host]) -> None:
    host, other = new_host(), new_host("other")
    wire = connect(host, other)
    # In the host's own mount namespace; all programs of a flavour are one file.
    for tool in ("xtables-nft-multi", "xtables-legacy-multi"):
        host.run(["mount", "--bind", "/dev/null", host.output("sh", "-c", f"command -v {tool}")])
    netplug = Netplug(host, "--docker-host", "none")
    with (
        cli_network(netplug, *SUBNETS) as net,
        attached(netplug, net, "--publish", "8080:80") as (it, _),
        SeenServer(other, "tcp", 7000, "::"),
        SeenServer(it, "tcp", 80, "::"),
    ):
        for _ in range(2):
            for outside in (wire.right, wire.right6):
                assert tcp_ask(it, outside, 7000)
            for inside in (wire.left, wire.left6):
                assert tcp_ask(other, inside, 8080)
            assert not netplug.drift()
            netplug.restart()
    assert "netplug" not in host.output("nft", "list", "tables")
    netplug.stop()


def test_host_forwards_for_others_if_told_so(new_host: Callable[..., Host]) -> None:
    (host, left, right), (first, _) = router_in_the_middle(new_host)
    host.run(["sysctl", "-qw", *(f"{key}=0" for key in FORWARDING)])
    netplug = Netplug(host, "--docker-host", "none", "--forward-others")
    with cli_network(netplug, *SUBNETS), SeenServer(left, "tcp", 7000, "::"):
        for beyond in (first.right, first.right6):
            assert tcp_ask(right, beyond, 7000)
        assert not netplug.drift()
    netplug.stop()
