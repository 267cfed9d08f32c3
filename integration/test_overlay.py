"""Overlay networks over two hosts, with packets: what crosses from host to host, and what must not.

All tests run over an IPv4 underlay and over an IPv6 one. Engines are real, and told of each other's endpoints by the
test in place of a cluster. That everything is gone afterwards is asserted by the leak check of every test.
"""

import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from harness import (
    Host,
    Node,
    NodeError,
    SeenServer,
    Station,
    Underlay,
    Wire,
    overlay,
    pair,
    tcp_ask,
    udp_ask,
    wait_until,
)
from harness.frames import captured, inner
from harness.netns import open_socket
from harness.overlay import BLUE, VNI
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP
from scapy.packet import Packet

RED = ["10.94.2.0/24", "fd00:94:2::/64"]
OVERHEAD = {4: 50, 6: 70}
ASKS = pytest.mark.parametrize(("proto", "ask"), [("tcp", tcp_ask), ("udp", udp_ask)])
INSIDE = pytest.mark.parametrize("inside", [0, 1], ids=["IPv4-inside", "IPv6-inside"])
EVERYWHERE = "::"
"""IPv4 too: sockets of IPv6 are of both by default."""

Ask = Callable[..., str]


def unreached(ask: Ask, place: Station | Host, address: str, port: int) -> bool:
    try:
        ask(place, address, port)
    except OSError:
        return True
    return False


def asks_for_addresses(frame: Packet) -> bool:
    return ARP in frame or "ICMPv6 Neighbor Discovery - Neighbor Solicitation" in frame


@INSIDE
@ASKS
def test_stations_on_two_hosts_speak_under_their_own_addresses(
    nodes: tuple[Node, Node], inside: int, proto: str, ask: Ask
) -> None:
    with pair(nodes) as (_, one, two), SeenServer(two, proto, 80, EVERYWHERE), SeenServer(one, proto, 80, EVERYWHERE):
        for client, server in ((one, two), (two, one)):
            assert client.place.pings(server.addresses[inside])
            assert ask(client, server.addresses[inside], 80).removeprefix("::ffff:") == client.addresses[inside]


def test_each_host_answers_who_has_an_address(nodes: tuple[Node, Node], host: Host, under: Underlay) -> None:
    """Nobody's question crosses the underlay: not for who is there, nor for who is not."""
    with pair(nodes) as (_, one, two), captured(host, under.links[0]) as frames:
        for address in (*two.addresses, "10.94.1.1", "fd00:94:1::1"):
            assert one.place.pings(address)
        assert not one.place.pings("10.94.1.99")
        assert not one.place.pings("fd00:94:1::99")
    seen = inner(frames)
    # One at least each way and family.
    assert len(seen) >= 4
    assert {it[IP].dst for it in seen if IP in it} == {one.addresses[0], two.addresses[0]}
    assert not [it.summary() for it in seen if asks_for_addresses(it)]


@pytest.mark.parametrize("bum", ["false", "true"])
def test_broadcast_crosses_only_when_asked_for(nodes: tuple[Node, Node], bum: str) -> None:
    with pair(nodes, bum=bum) as (_, one, two), SeenServer(two, "udp", 9, "0.0.0.0") as server:
        sock = open_socket(one.netns, socket.SOCK_DGRAM)
        with sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.sendto(b"all", ("10.94.1.255", 9))
        assert udp_ask(one, two.addresses[0], 9) == one.addresses[0]
        # They go by the bridge and past it, so the first may come last.
        if bum == "true":
            wait_until(lambda: len(server.seen) == 2, what="the broadcast arrives")
        else:
            assert len(server.seen) == 1


@ASKS
@pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
def test_each_host_is_the_way_out_and_publishes_ports(
    nodes: tuple[Node, Node], host: Host, client: Host, wire: Wire, family: int, proto: str, ask: Ask
) -> None:
    left, right = (wire.left, wire.right) if family == 4 else (wire.left6, wire.right6)
    own = ("10.94.1.4", "fd00:94:1::4")
    with (
        pair(nodes) as (blue, one, two),
        blue.station(nodes[0], *own, ports={f"{proto}/80": 8080}) as web,
        SeenServer(web, proto, 80, "0.0.0.0" if family == 4 else "::"),
        SeenServer(host, proto, 7000, "0.0.0.0" if family == 4 else "::"),
        SeenServer(client, proto, 7000, "0.0.0.0" if family == 4 else "::"),
    ):
        # Out by the own host, under its address.
        assert ask(one, right, 7000) == left
        assert ask(two, left, 7000) == right
        # In by the host of the container.
        assert ask(client, left, 8080) == right
        # From the same network, by the other host and by the same.
        assert ask(two, left, 8080) == right
        assert ask(one, left, 8080)
        assert unreached(ask, client, own[family == 6], 80)


def test_internal_overlay_spans_hosts_and_leads_nowhere_else(
    nodes: tuple[Node, Node], client: Host, wire: Wire
) -> None:
    with (
        pair(nodes, internal="true") as (_, one, two),
        SeenServer(client, "tcp", 7000, EVERYWHERE),
        SeenServer(two, "tcp", 80, EVERYWHERE),
    ):
        for address, outside in zip(two.addresses, (wire.right, wire.right6), strict=True):
            assert tcp_ask(one, address, 80)
            assert unreached(tcp_ask, one, outside, 7000)


@INSIDE
def test_overlays_and_bridges_are_isolated(nodes: tuple[Node, Node], inside: int) -> None:
    with (
        pair(nodes) as (_, one, two),
        overlay("red", nodes, RED, vni="20002") as red,
        red.station(nodes[0], "10.94.2.2", "fd00:94:2::2") as near,
        red.station(nodes[1], "10.94.2.3", "fd00:94:2::3") as far,
        overlay("plain", nodes[:1], ["10.94.3.0/24", "fd00:94:3::/64"], mode="bridge") as plain,
        plain.station(nodes[0], "10.94.3.2", "fd00:94:3::2") as local,
        ExitStack() as stack,
    ):
        addresses = {
            one: one.addresses[inside],
            two: two.addresses[inside],
            near: near.addresses[inside],
            far: far.addresses[inside],
            local: ("10.94.3.2", "fd00:94:3::2")[inside],
        }
        for it in addresses:
            stack.enter_context(SeenServer(it, "udp", 80, EVERYWHERE))
        assert udp_ask(one, addresses[two], 80)
        assert udp_ask(near, addresses[far], 80)
        wrong = [(one, near), (one, far), (one, local), (local, one), (near, local)]
        with ThreadPoolExecutor() as pool:
            assert all(pool.map(lambda ways: unreached(udp_ask, ways[0], addresses[ways[1]], 80), wrong))


def test_two_overlays_may_use_the_same_subnet_of_no_host(nodes: tuple[Node, Node]) -> None:
    with pair(nodes), pytest.raises(NodeError, match=r"overlap"), overlay("red", nodes, BLUE, vni="20002"):
        pass


@INSIDE
def test_network_without_icc_separates_hosts_too(nodes: tuple[Node, Node], inside: int) -> None:
    with pair(nodes, icc="false") as (_, one, two), SeenServer(two, "udp", 80, EVERYWHERE) as server:
        assert unreached(udp_ask, one, two.addresses[inside], 80)
        assert server.seen == []
        assert one.place.pings(("10.94.1.1", "fd00:94:1::1")[inside])


def _largest(place: Station, address: str) -> int:
    """Return the mtu that the kernel knows for a destination after having sent what the first link carries."""
    family = 6 if ":" in address else 4
    level, discover, do, mtu = (
        (socket.IPPROTO_IPV6, 23, 2, 24) if family == 6 else (socket.IPPROTO_IP, 10, 2, 14)
    )  # linux/in6.h, linux/in.h: MTU_DISCOVER, PMTUDISC_DO, MTU
    with open_socket(place.netns, socket.SOCK_DGRAM, family=family) as sock:
        sock.setsockopt(level, discover, do)
        sock.connect((address, 9))
        known: int = struct.unpack("i", sock.getsockopt(level, mtu, 4))[0]
        sock.send(b"x" * (known - (48 if family == 6 else 28)))
        return known


@INSIDE
def test_packets_are_as_large_as_the_underlay_carries(
    nodes: tuple[Node, Node], host: Host, under: Underlay, inside: int
) -> None:
    room = 1500 - OVERHEAD[under.family]
    with pair(nodes) as (_, one, two), SeenServer(two, "udp", 9, EVERYWHERE) as server:
        with captured(host, under.links[0]) as frames:
            assert _largest(one, two.addresses[inside]) == room
            wait_until(lambda: server.seen, what="the largest packet")
        # In one piece, and filling the cable.
        assert max(map(len, frames)) == 1500 + 14


@INSIDE
def test_smaller_mtu_on_the_way_is_told_to_the_sender(
    nodes: tuple[Node, Node], host: Host, under: Underlay, inside: int
) -> None:
    route = ["ip", "route", "replace", under.right, "dev", under.links[0], "mtu", "1400"]
    with pair(nodes) as (_, one, two), SeenServer(two, "tcp", 80, EVERYWHERE):
        host.run(route)
        try:
            wanted = 1400 - OVERHEAD[under.family]
            address = two.addresses[inside]
            wait_until(lambda: _largest(one, address) == wanted, what=f"path mtu {wanted}", ignoring=(OSError,))
            assert tcp_ask(one, address, 80)
        finally:
            host.run(["ip", "route", "del", under.right, "dev", under.links[0]])


def test_mtu_too_large_for_the_underlay_is_refused(nodes: tuple[Node, Node], under: Underlay) -> None:
    words = f"option mtu=1500: VXLAN over IPv{under.family} adds {OVERHEAD[under.family]} bytes"
    with pytest.raises(NodeError, match=words), overlay("blue", nodes, BLUE, vni=VNI, mtu="1500"):
        pass


def test_hosts_keep_no_state_of_tunnels(nodes: tuple[Node, Node], host: Host, client: Host) -> None:
    """Nor of the flow inside, which passes by their firewalls."""
    with pair(nodes) as (_, one, two), SeenServer(two, "tcp", 80, EVERYWHERE):
        assert tcp_ask(one, two.addresses[0], 80)
        for place in (host, client):
            tracked = [place.output("conntrack", "-L", "-f", family) for family in ("ipv4", "ipv6")]
            assert "dport=4789" not in "".join(tracked)
            assert f"dst={two.addresses[0]}" not in tracked[0]


def test_frames_leave_from_the_tunnel_end(nodes: tuple[Node, Node], host: Host, under: Underlay) -> None:
    """Frames go out from the VTEP that the peers were told, not from the address that the route would choose."""
    with pair(nodes) as (_, one, two), captured(host, under.links[0]) as frames:
        assert one.place.pings(two.addresses[0])
    outer = "IP" if under.family == 4 else "IPv6"
    assert {it[outer].src for it in frames if UDP in it and it[UDP].dport == 4789} == {under.left, under.right}


def test_foreign_firewall_leaves_an_overlay_alone(nodes: tuple[Node, Node], host: Host) -> None:
    """Docker sets all of these on most hosts."""
    bad = [
        "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP",
        "sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1",
        "iptables -t nat -A POSTROUTING -s 10.94.0.0/16 -o lo -j MASQUERADE",
    ]
    good = [
        "iptables -t nat -D POSTROUTING -s 10.94.0.0/16 -o lo -j MASQUERADE",
        "iptables -P FORWARD ACCEPT; ip6tables -P FORWARD ACCEPT",
    ]
    with pair(nodes) as (_, one, two), SeenServer(two, "tcp", 80, EVERYWHERE):
        before = host.output("sh", "-c", "cat /proc/sys/net/bridge/bridge-nf-call-ip*tables").split()
        host.run(["sh", "-ec", "\n".join(bad)])
        try:
            for inside in (0, 1):
                seen = tcp_ask(one, two.addresses[inside], 80).removeprefix("::ffff:")
                assert seen == one.addresses[inside]
        finally:
            names = ("ip6tables", "iptables")
            restore = [f"sysctl -qw net.bridge.bridge-nf-call-{n}={v}" for n, v in zip(names, before, strict=True)]
            host.run(["sh", "-ec", "\n".join((*good, *restore))])
