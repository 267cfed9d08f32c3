"""Macvlan networks: containers and bare namespaces on the segment of the host's uplink, with packets.

The segment is the cable to `client`, who plays the router and the neighbour. That everything is gone afterwards is
asserted by the leak check of every test, see `conftest.py`.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
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
    attached,
    cli_network,
    container,
    docker_network,
    namespace,
    tcp_ask,
    udp_ask,
    wait_until,
)

SUBNETS = ("--subnet", "203.0.113.0/24", "--ip-range", "203.0.113.128/25", "--gateway", "203.0.113.2")
SUBNETS6 = ("--ipv6", "--subnet", "fd00:cafe::/64", "--ip-range", "fd00:cafe::100/120", "--gateway", "fd00:cafe::2")
MACVLAN = ("-o", "mode=macvlan")
PYNET_IPAM = ("--ipam-driver", "pynet")
HEAL_TIMEOUT_S = 20

pytestmark = pytest.mark.usefixtures("netplug")


def fails_with(dockerd: Dockerd, *args: str) -> str:
    with pytest.raises(CommandError) as caught:
        dockerd.docker(*args)
    return caught.value.stderr


def ip6(it: Container) -> str:
    (found,) = it.inspect()["NetworkSettings"]["Networks"].values()
    return str(found["GlobalIPv6Address"])


def addresses(result: dict[str, Any]) -> list[str]:
    return [address.partition("/")[0] for address in result["addresses"]]


def neighbour(place: Host, address: str, link: str) -> str:
    """Return the MAC that a host believes an address to be at."""
    found = json.loads(place.output("ip", "-j", "neigh", "show", "to", address, "dev", link) or "[]")
    return str(found[0].get("lladdr", "")) if found else ""


@contextmanager
def alias(client: Host, wire: Wire, *addresses: str) -> Iterator[None]:
    """Give the station on the segment more addresses for the length of the block."""
    for address in addresses:
        client.output("ip", "address", "add", address, "dev", wire.right_link, *["nodad"] * (":" in address))
    try:
        yield
    finally:
        for address in addresses:
            client.output("ip", "address", "del", address, "dev", wire.right_link)


# On the segment


@pytest.mark.parametrize("mode", ["bridge", "vepa", "private", "passthru"])
def test_container_and_station_reach_each_other(dockerd: Dockerd, client: Host, wire: Wire, mode: str) -> None:
    with (
        docker_network(dockerd, *MACVLAN, "-o", f"macvlan_mode={mode}", *SUBNETS, *SUBNETS6) as net,
        container(dockerd, "--network", net) as it,
        SeenServer(client, "tcp", 7000),
        SeenServer(client, "udp", 7000),
        SeenServer(it, "tcp", 80),
        SeenServer(it, "udp", 80),
        SeenServer(client, "tcp", 7006, "::"),
        SeenServer(it, "udp", 806, "::"),
    ):
        assert it.pings(wire.right)
        assert it.pings(wire.right6)
        assert client.run(["busybox", "ping", "-c", "3", "-i", "0.2", "-W", "1", it.ip()]).returncode == 0
        # Nothing stands between them: each sees the other's own address.
        assert tcp_ask(it, wire.right, 7000) == it.ip()
        assert udp_ask(it, wire.right, 7000) == it.ip()
        assert tcp_ask(client, it.ip(), 80) == wire.right
        assert udp_ask(client, it.ip(), 80) == wire.right
        assert tcp_ask(it, wire.right6, 7006) == ip6(it)
        assert udp_ask(client, ip6(it), 806) == wire.right6
        assert it.exec("ip", "route", "show", "default").split()[:3] == ["default", "via", wire.right]
        assert it.exec("ip", "-6", "route", "show", "default").split()[:3] == ["default", "via", wire.right6]
        assert neighbour(client, it.ip(), wire.right_link) == it.mac()
        assert it.exec("ls", "/sys/class/net").split() == ["eth0", "lo"]


@pytest.mark.parametrize(("mode", "reached"), [("bridge", True), ("private", False)])
def test_containers_reach_each_other_as_the_mode_says(dockerd: Dockerd, mode: str, reached: bool) -> None:
    with (
        docker_network(dockerd, *MACVLAN, "-o", f"macvlan_mode={mode}", *SUBNETS, *SUBNETS6) as net,
        container(dockerd, "--network", net) as one,
        container(dockerd, "--network", net) as two,
    ):
        assert one.pings(two.ip()) is reached
        assert one.pings(ip6(two)) is reached


@contextmanager
def switch(host: Host) -> Iterator[tuple[str, str]]:
    """A link of the host, and the namespace of the switch that its cable leads to, by port0."""
    with namespace(host) as it:
        host.output("ip", "link", "add", "up0", "up", "type", "veth", "peer", "name", "port0", "netns", it.name)
        it.exec("ip", "link", "add", "sw0", "up", "type", "bridge")
        it.exec("ip", "link", "set", "port0", "up", "master", "sw0")
        yield "up0", it.name
        host.output("ip", "link", "del", "up0")


@pytest.mark.parametrize("ipam", [(), PYNET_IPAM], ids=["docker's ipam", "pynet's ipam"])
def test_one_lan_on_two_parents_and_in_two_ranges(
    dockerd: Dockerd, netplug: Netplug, host: Host, wire: Wire, ipam: tuple[str, ...]
) -> None:
    """Docker's own IPAM judges ranges itself; it counts the router among its addresses."""

    def create(parent: str, part: str, router: str = "") -> tuple[str, ...]:
        given = {"--ip-range": part, "--gateway": router}
        options = [word for option, value in given.items() if value for word in (option, value)]
        return (*MACVLAN, "-o", f"parent={parent}", "--subnet", "203.0.113.0/24", *ipam, *options)

    upper, middle, low, within = (f"203.0.113.{part}" for part in ("192/26", "128/26", "64/26", "144/28"))
    again = wire.right if ipam else ""
    ours = r"203\.0\.113\.0/24 is .*--ip-range"
    refused = [("", "", ours if ipam else "Pool overlaps"), (middle, "", ours if ipam else "Pool overlaps")]
    refused += [(within, "", ours) if ipam else ("203.0.113.32/27", wire.right, "Address already in use")]
    with (
        switch(host) as (parent, _),
        docker_network(dockerd, *create(wire.left_link, upper, wire.right)) as one,
        docker_network(dockerd, *create(parent, middle, again)) as two,
        docker_network(dockerd, *create(wire.left_link, low, again)) as three,
        container(dockerd, "--network", one) as first,
        container(dockerd, "--network", two) as second,
        container(dockerd, "--network", three) as third,
    ):
        for it, part in ((first, upper), (second, middle), (third, low)):
            assert ip_address(it.ip()) in ip_network(part)
        assert first.pings(third.ip())
        assert not first.pings(second.ip())
        assert first.pings(wire.right)
        for part, router, words in refused:
            said = fails_with(dockerd, "network", "create", "-d", "pynet", *create(parent, part, router), "four")
            assert re.search(words, said)
            assert not re.search(r"\b(local|external)/", said), "the id of a pool"
        assert not netplug.drift()


def test_vepa_goes_by_way_of_a_switch_that_sends_back(dockerd: Dockerd, host: Host) -> None:
    """IEEE 802.1Qbg: what is for a neighbour goes to the switch, which reflects it or does not."""
    subnets = ("--subnet", "10.97.0.0/24", "--ipv6", "--subnet", "fd00:97::/64")
    with (
        switch(host) as (parent, namespace_of_switch),
        docker_network(dockerd, *MACVLAN, "-o", f"parent={parent}", "-o", "macvlan_mode=vepa", *subnets) as net,
        container(dockerd, "--network", net) as one,
        container(dockerd, "--network", net) as two,
    ):
        assert not one.pings(two.ip())
        reflect = ("bridge", "link", "set", "dev", "port0", "hairpin", "on")
        host.output("nsenter", f"--net=/run/netns/{namespace_of_switch}", *reflect)
        assert one.pings(two.ip())
        assert one.pings(ip6(two))


def test_bare_namespace_is_on_the_segment_too(netplug: Netplug, client: Host, wire: Wire) -> None:
    options = ("--mode", "macvlan", "--subnet", "fd00:cafe::/64", "-o", f"parent={wire.left_link}")
    with (
        cli_network(netplug, *SUBNETS, *options) as net,
        attached(netplug, net) as (lab, result),
        SeenServer(client, "tcp", 7000),
    ):
        v4, v6 = addresses(result)
        assert lab.pings(wire.right)
        assert lab.pings(wire.right6)
        assert tcp_ask(lab, wire.right, 7000) == v4
        assert client.run(["busybox", "ping", "-c", "3", "-i", "0.2", "-W", "1", v6]).returncode == 0
        assert not netplug.drift()


def test_published_port_opens_nothing_on_the_host(dockerd: Dockerd, host: Host, client: Host, wire: Wire) -> None:
    with (
        docker_network(dockerd, *MACVLAN, *SUBNETS) as net,
        container(dockerd, "--network", net, "-p", "8080:80") as web,
        SeenServer(web, "tcp", 80),
    ):
        assert tcp_ask(client, web.ip(), 80) == wire.right
        with pytest.raises(ConnectionRefusedError):
            tcp_ask(client, wire.left, 8080)
        assert ":8080" not in host.output("ss", "-Hltn")


@pytest.mark.parametrize("options", [SUBNETS, ("--internal", *SUBNETS)], ids=["gateway", "internal"])
def test_container_is_on_no_other_network(dockerd: Dockerd, options: tuple[str, ...], wire: Wire) -> None:
    with docker_network(dockerd, *MACVLAN, *options) as net, container(dockerd, "--network", net) as it:
        routes = it.exec("ip", "route").splitlines()
        assert routes[-1].startswith("203.0.113.0/24 dev eth0")
        assert [line.split()[2] for line in routes[:-1]] == [wire.right] * ("--internal" not in options)


# The host beside its containers


@pytest.mark.parametrize("ipam", [(), PYNET_IPAM], ids=["docker's ipam", "pynet's ipam"])
def test_host_and_container_reach_each_other(dockerd: Dockerd, host: Host, ipam: tuple[str, ...]) -> None:
    own = () if ipam else ("--aux-address", "host=203.0.113.130")
    families = (*SUBNETS, *SUBNETS6) if ipam else SUBNETS
    with (
        docker_network(dockerd, *MACVLAN, "-o", "host_access=true", *families, *ipam, *own) as net,
        container(dockerd, "--network", net) as it,
        SeenServer(host, "tcp", 7000),
        SeenServer(it, "tcp", 80),
    ):
        (link,) = (name for name in host.output("ls", "/sys/class/net").split() if name.startswith("npm"))
        shown = json.loads(host.output("ip", "-j", "address", "show", link))[0]["addr_info"]
        mine = {item["family"]: item["local"] for item in shown if item["scope"] == "global"}
        assert tcp_ask(host, it.ip(), 80) == mine["inet"]
        assert tcp_ask(it, mine["inet"], 7000) == it.ip()
        if ipam:
            assert it.pings(mine["inet6"])
            assert host.run(["busybox", "ping", "-c", "3", "-i", "0.2", "-W", "1", ip6(it)]).returncode == 0
        assert f"{it.ip()} dev {link}" in host.output("ip", "route")
    assert "npm" not in host.output("ls", "/sys/class/net")


def test_host_without_an_address_of_its_own_is_refused_with_the_way_out(dockerd: Dockerd) -> None:
    said = fails_with(dockerd, "network", "create", "-d", "pynet", *MACVLAN, "-o", "host_access=true", *SUBNETS, "lan")
    assert "--aux-address host=ADDRESS" in said


# Others on the segment


def test_address_of_a_stranger_is_passed_over(dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire) -> None:
    taken = ("203.0.113.128", "203.0.113.129", "fd00:cafe::100", "fd00:cafe::101")
    with (
        alias(client, wire, *taken),
        docker_network(dockerd, *MACVLAN, *PYNET_IPAM, *SUBNETS, *SUBNETS6) as net,
        container(dockerd, "--network", net) as it,
        attached(netplug, net) as (lab, result),
    ):
        assert not {it.ip(), ip6(it), *addresses(result)} & set(taken)
        assert it.pings(wire.right)
        assert lab.pings(wire.right6)


@pytest.mark.parametrize("ipam", [(), PYNET_IPAM], ids=["docker's ipam", "pynet's ipam"])
@pytest.mark.parametrize(
    ("option", "address"), [("--ip", "203.0.113.200"), ("--ip6", "fd00:cafe::1f0")], ids=["IPv4", "IPv6"]
)
def test_wanted_address_that_a_stranger_has_is_refused(
    dockerd: Dockerd, client: Host, wire: Wire, ipam: tuple[str, ...], option: str, address: str
) -> None:
    mac = json.loads(client.output("ip", "-j", "link", "show", wire.right_link))[0]["address"]
    with alias(client, wire, address), docker_network(dockerd, *MACVLAN, *ipam, *SUBNETS, *SUBNETS6) as net:
        said = fails_with(dockerd, "run", "--rm", "--network", net, option, address, "bb:1", "true")
        assert f"address {address} is in use on the segment of '{wire.left_link}' by {mac}" in said


def test_address_of_the_host_itself_is_refused(netplug: Netplug, wire: Wire) -> None:
    with (
        cli_network(netplug, "--mode", "macvlan", *SUBNETS) as net,
        namespace(netplug.host) as lab,
        pytest.raises(CommandError, match=f"address {wire.left} is the host's own"),
    ):
        lab.attach(netplug, net, "--ip", wire.left)


def test_stations_learn_where_an_address_is_now(netplug: Netplug, client: Host, wire: Wire) -> None:
    wanted = ("203.0.113.200", "fd00:cafe::1f0")
    with cli_network(netplug, *SUBNETS, "--mode", "macvlan", "--subnet", "fd00:cafe::/64") as net:
        for address in wanted:
            entry = ("lladdr", "02:00:00:00:00:aa", "dev", wire.right_link, "nud", "stale")
            client.output("ip", "neigh", "replace", address, *entry)
        with attached(netplug, net, "--ip", wanted[0], "--ip", wanted[1]) as (_, result):
            for address in wanted:
                wait_until(
                    lambda address=address: neighbour(client, address, wire.right_link) == result["mac"],
                    5,
                    f"word of {address}",
                )
        client.output("ip", "neigh", "flush", "dev", wire.right_link)


# Coming and going


def test_container_comes_back_after_stop_restart_and_kill(dockerd: Dockerd, wire: Wire) -> None:
    with docker_network(dockerd, *MACVLAN, *SUBNETS) as net, container(dockerd, "--network", net) as it:
        for verbs in (("stop", "-t", "0"), ("start",)), (("restart", "-t", "0"),), (("kill",), ("start",)):
            for verb in verbs:
                dockerd.docker(*verb, it.id)
            assert it.pings(wire.right)


def test_container_outlives_the_daemon_and_dies_without_a_trace(dockerd: Dockerd, netplug: Netplug, wire: Wire) -> None:
    with docker_network(dockerd, *MACVLAN, *PYNET_IPAM, *SUBNETS, may_miscount=True) as net:
        it = dockerd.run("--network", net)
        netplug.kill()
        assert it.pings(wire.right)
        netplug.start()
        assert it.pings(wire.right)
        assert not netplug.drift()
        netplug.kill()
        # Docker tells of the death, which nobody hears, and goes on trying for some seconds.
        dockerd.host.output("kill", "-9", str(it.inspect()["State"]["Pid"]))
        netplug.start()
        wait_until(lambda: not it.running and not netplug.json("ps"), HEAL_TIMEOUT_S, "the end of the endpoint")
        it.remove()


def test_second_container_in_passthru_is_refused(dockerd: Dockerd, wire: Wire) -> None:
    with (
        docker_network(dockerd, *MACVLAN, "-o", "macvlan_mode=passthru", *SUBNETS) as net,
        container(dockerd, "--network", net) as it,
    ):
        said = fails_with(dockerd, "run", "--rm", "--network", net, "bb:1", "true")
        assert f"network '{net}' has a container, and macvlan_mode=passthru allows only one" in said
        assert it.pings(wire.right)
        said = fails_with(dockerd, "network", "create", "-d", "pynet", *MACVLAN, "--subnet", "10.77.0.0/24", "second")
        assert "with passthru a parent has one macvlan only" in said


# Bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("parent=nowhere0",), "option parent=nowhere0: the host has no such link"),
        (("parent=lo",), "option parent=lo: the loopback link has no segment"),
        (("parent=port0",), "option parent=port0: is a port of 'lan0' (choose 'lan0')"),
        (("parent=a link",), "option parent='a link': must be"),
        (("macvlan_mode=source",), "option macvlan_mode='source': must be one of bridge, vepa, private, passthru"),
        (("host_access=maybe",), "option host_access='maybe': must be true or false"),
        (("host_access=true", "macvlan_mode=private"), "host_access=true needs macvlan_mode=bridge, not private"),
        (("mtu=9000",), "option mtu=9000: parent 'eth0' has mtu 1500"),
        (("icc=false",), "option 'icc' exists only in mode bridge and overlay, the network has mode 'macvlan'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_work_is_refused_and_changes_nothing(
    dockerd: Dockerd, host: Host, options: tuple[str, ...], words: str
) -> None:
    host.run(["sh", "-ec", "ip link add down0 type veth peer port0; ip link add lan0 type bridge"])
    host.run(["sh", "-ec", "ip link set port0 master lan0 up"])
    try:
        raw = [word for option in options for word in ("-o", option)]
        said = fails_with(dockerd, "network", "create", "-d", "pynet", *MACVLAN, *raw, *SUBNETS, "lan")
        assert words in said
    finally:
        host.run(["sh", "-ec", "ip link del down0; ip link del lan0"])
