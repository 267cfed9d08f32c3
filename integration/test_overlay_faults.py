"""Overlay networks and what goes wrong: strangers, foreign links, moves, and what others break.

As `test_overlay.py`, over both underlays.
"""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from harness import (
    Host,
    Namespace,
    Node,
    NodeError,
    SeenServer,
    Station,
    Underlay,
    namespace,
    overlay,
    pair,
    udp_ask,
    wait_until,
)
from harness.frames import captured, inner
from harness.netns import in_netns, open_socket
from harness.overlay import BLUE, VNI
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_RA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw


def _vxlan(one: Station, two: Station, vni: int) -> bytes:
    """A frame as the first station would send it to the second, as carried by UDP."""
    frame = Ether(src=one.peer["mac"], dst=two.peer["mac"])
    frame /= IP(src=one.addresses[0], dst=two.addresses[0]) / UDP(sport=5000, dport=9) / Raw(b"?")
    return bytes(VXLAN(vni=vni, flags="Instance") / frame)


def _send(host: Host, source: str, to: str, payload: bytes) -> None:
    with open_socket(host.netns, socket.SOCK_DGRAM, family=6 if ":" in to else 4) as sock:
        sock.bind((source, 0))
        sock.sendto(payload, (to, 4789))


def test_strangers_cannot_inject(nodes: tuple[Node, Node], host: Host, under: Underlay) -> None:
    """The same frame is taken from the peer's address, and from no other; from the peer only for the right VNI."""
    stranger = "203.0.113.66" if under.family == 4 else "fd00:cafe::66"
    width = 24 if under.family == 4 else 64
    extra = ["dev", under.links[0], *(["nodad"] if under.family == 6 else [])]
    with pair(nodes) as (_, one, two), SeenServer(two, "udp", 9, "0.0.0.0") as server:
        host.run(["ip", "addr", "add", f"{stranger}/{width}", *extra])
        try:
            _send(host, stranger, under.right, _vxlan(one, two, int(VNI)))
            _send(host, under.left, under.right, _vxlan(one, two, 20002))
            assert udp_ask(one, two.addresses[0], 9)
            assert server.seen == [one.addresses[0]]
            _send(host, under.left, under.right, _vxlan(one, two, int(VNI)))
            wait_until(lambda: len(server.seen) == 2, what="the frame from the peer's own address")
        finally:
            host.run(["ip", "addr", "del", f"{stranger}/{width}", "dev", under.links[0]])


def test_a_member_sends_only_into_networks_that_it_has_joined(
    nodes: tuple[Node, Node], host: Host, under: Underlay
) -> None:
    """Each host has both networks, as in a cluster. A host without a container in one of them sends nothing into it."""
    with (
        pair(nodes) as (_, one, two),
        overlay("red", nodes, ["10.94.2.0/24"], vni="20002") as red,
        red.station(nodes[1], "10.94.2.3") as victim,
        SeenServer(two, "udp", 9, "0.0.0.0") as blue_server,
        SeenServer(victim, "udp", 9, "0.0.0.0") as red_server,
    ):
        frame = Ether(src="02:00:00:00:00:77", dst=victim.peer["mac"])
        frame /= IP(src="10.94.2.77", dst="10.94.2.3") / UDP(sport=5000, dport=9) / Raw(b"?")
        forged = bytes(VXLAN(vni=20002, flags="Instance") / frame)
        _send(host, under.left, under.right, forged)
        _send(host, under.left, under.right, _vxlan(one, two, int(VNI)))
        wait_until(lambda: blue_server.seen, what="the frame for the network that it has joined")
        assert red_server.seen == []
        with red.station(nodes[0], "10.94.2.2") as joined:
            _send(host, under.left, under.right, _vxlan(joined, victim, 20002))
            wait_until(lambda: red_server.seen, what="the frame of one that has joined")


@contextmanager
def _of_another_engine(host: Host) -> Iterator[tuple[Namespace, str]]:
    """A namespace on a bridge that is not ours, on a host that checks no sources itself; and the bridge's MAC."""
    loose = ("all", "default")
    before = {name: host.output("sysctl", "-n", f"net.ipv4.conf.{name}.rp_filter").strip() for name in loose}
    host.run(["sysctl", "-qw", *(f"net.ipv4.conf.{name}.rp_filter=0" for name in loose)])
    with namespace(host) as place:
        for line in (
            "link add theirs type bridge",
            "addr add 172.31.0.1/24 dev theirs",
            "link set theirs up",
            f"link add theirport master theirs up type veth peer name eth0 netns {place.name}",
            f"-n {place.name} link set eth0 up",
        ):
            host.run(["ip", *line.split()])
        try:
            yield place, json.loads(host.output("ip", "-j", "link", "show", "theirs"))[0]["address"]
        finally:
            host.run(["ip", "link", "del", "theirs"])
            host.run(["sysctl", "-qw", *(f"net.ipv4.conf.{name}.rp_filter={value}" for name, value in before.items())])


def test_vxlan_is_taken_only_by_the_way_to_its_sender(
    nodes: tuple[Node, Node], host: Host, client: Host, under: Underlay
) -> None:
    """A container of another engine sends to its host as a member of the overlay does."""
    with (
        pair(nodes) as (_, one, two),
        SeenServer(one, "udp", 9, "0.0.0.0") as server,
        _of_another_engine(host) as (place, gateway),
        in_netns(place.netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as sender,
    ):
        sender.bind(("eth0", 0))
        outer = (IP if under.family == 4 else IPv6)(src=under.right, dst=under.left)
        for checked in (True, False):
            udp = UDP(sport=50000, dport=4789, **({} if checked else {"chksum": 0} if under.family == 4 else {}))
            sender.send(bytes(Ether(dst=gateway) / outer / udp / Raw(_vxlan(two, one, int(VNI)))))
        assert udp_ask(two, one.addresses[0], 9)
        assert server.seen == [two.addresses[0]]
        # By its own way the same is taken.
        _send(client, under.right, under.left, _vxlan(two, one, int(VNI)))
        wait_until(lambda: len(server.seen) == 2, what="the frame from the peer itself")


def test_nobody_sends_to_another_host_as_somebody_else(nodes: tuple[Node, Node], host: Host, under: Underlay) -> None:
    """What is his own passes by the bridge; what is not must not pass with it."""
    with pair(nodes) as (_, one, two), captured(host, under.links[0]) as frames:
        mac, (own4, own6), (to4, to6) = one.peer["mac"], one.addresses, two.addresses

        def frame(what: Packet, source: str = mac) -> Packet:
            return Ether(src=source, dst=two.peer["mac"]) / what

        redirect = ICMPv6NDOptDstLLAddr(lladdr=mac)
        forged = {
            "IPv4": frame(IP(src="10.94.1.9", dst=to4) / UDP()),
            "IPv4 of the world": frame(IP(src="198.51.100.7", dst=to4) / UDP()),
            "IPv4 of the receiver": frame(IP(src=to4, dst=to4) / UDP()),
            "MAC": frame(IP(src=own4, dst=to4) / UDP(), "02:00:00:00:00:99"),
            "IPv6": frame(IPv6(src="fd00:94:1::9", dst=to6) / UDP()),
            "MAC, IPv6": frame(IPv6(src=own6, dst=to6) / UDP(), "02:00:00:00:00:99"),
            "advertisement": frame(IPv6(src=own6, dst=to6, hlim=255) / ICMPv6ND_NA(tgt="fd00:94:1::1") / redirect),
            "router": frame(IPv6(src=own6, dst=to6, hlim=255) / ICMPv6ND_RA()),
            "DHCP answer": frame(IP(src=own4, dst=to4) / UDP(sport=67, dport=68)),
            "DHCPv6 answer": frame(IPv6(src=own6, dst=to6) / UDP(sport=547, dport=546)),
            "IGMP query": frame(IP(src=own4, dst="224.0.0.1", proto=2) / Raw(b"\x11\0\0\0")),
        }
        honest = {
            "own IPv4": frame(IP(src=own4, dst=to4) / UDP()),
            "own IPv6": frame(IPv6(src=own6, dst=to6) / UDP()),
        }
        # All that follows in it is options, so it is told by its flow label.
        advertisement = frame(IPv6(src=own6, dst=to6, hlim=255, fl=0x5A5A5) / ICMPv6ND_NA(tgt=own6) / redirect)
        with in_netns(one.netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as sock:
            sock.bind(("eth0", 0))
            for name, it in (forged | honest).items():
                sock.send(bytes(it / Raw(f"<{name}>".encode())))
            sock.send(bytes(advertisement))
        # Sent after them.
        assert one.place.pings(to4)
        assert one.place.pings(to6)
    crossed = b"".join(map(bytes, inner(frames)))
    assert bytes(advertisement[IPv6]) in crossed
    assert [name for name in honest if f"<{name}>".encode() not in crossed] == []
    assert [name for name in forged if f"<{name}>".encode() in crossed] == []


def test_host_without_peers_takes_frames_from_nobody(nodes: tuple[Node, Node], host: Host, under: Underlay) -> None:
    with pair(nodes) as (blue, one, two), SeenServer(two, "udp", 9, "0.0.0.0") as server:
        frame = _vxlan(one, two, int(VNI))
        _send(host, under.left, under.right, frame)
        wait_until(lambda: len(server.seen) == 1, what="the frame from a host with an endpoint")
        blue.leave(one)
        _send(host, under.left, under.right, frame)
        with blue.station(nodes[0], "10.94.1.7", "fd00:94:1::7") as later:
            assert udp_ask(later, two.addresses[0], 9)
        assert server.seen == [one.addresses[0], "10.94.1.7"]


def test_vni_of_a_foreign_link_is_refused(nodes: tuple[Node, Node], host: Host, under: Underlay) -> None:
    family = ["local", under.left]
    host.run(["ip", "link", "add", "flannel.1", "type", "vxlan", "id", VNI, "dstport", "4789", *family])
    try:
        words = f"option vni={VNI}: vxlan link 'flannel.1' of the host uses it on UDP port 4789"
        with pytest.raises(NodeError, match=words), overlay("blue", nodes, BLUE, vni=VNI):
            pass
        with pair(nodes, vxlan_port="4790") as (_, one, two):
            assert one.place.pings(two.addresses[0])
    finally:
        host.run(["ip", "link", "del", "flannel.1"])


@pytest.mark.parametrize("inside", [0, 1], ids=["IPv4-inside", "IPv6-inside"])
def test_address_that_moves_to_another_host_is_found_there(nodes: tuple[Node, Node], inside: int) -> None:
    """Its MAC moves with it, and the bridges had learned it where it was."""
    with (
        pair(nodes) as (blue, one, two),
        blue.station(nodes[1], "10.94.1.5", "fd00:94:1::5") as third,
        SeenServer(third, "udp", 9, "::"),
    ):
        address, mac = two.addresses[inside], two.peer["mac"]
        blue.leave(two)
        for node in (*nodes, *nodes):
            with blue.station(node, *two.addresses, mac=mac) as moved:
                for it in (one, third):
                    assert it.place.pings(address)
                assert udp_ask(moved, third.addresses[inside], 9).removeprefix("::ffff:") == address


@pytest.mark.parametrize(
    "harm",
    [
        "ip link del {vxlan}",
        "ip link set {vxlan} nomaster",
        "ip link set {bridge} down; ip link set {bridge} up",
        "ip link set {vxlan} down",
        "ip -s neigh flush dev {bridge} nud permanent; ip -6 neigh flush dev {bridge} nud permanent",
        "bridge fdb del {mac} dev {vxlan} self",
        "bridge fdb replace {mac} dev {vxlan} self dst {wrong}",
        "bridge fdb del {mac} dev {vxlan} master",
        "nft delete table inet netplug-vxlan",
        "nft flush chain inet netplug-vxlan input",
        "nft flush set inet netplug-vxlan vteps{version}",
        "nft delete table netdev netplug-{vxlan}",
        "nft flush map netdev netplug-{vxlan} near",
        "nft flush map netdev netplug-{vxlan} own4",
        "nft flush chain netdev netplug-{vxlan} {vxlan}",
    ],
)
def test_what_others_break_is_seen_and_mended(nodes: tuple[Node, Node], host: Host, under: Underlay, harm: str) -> None:
    with pair(nodes) as (blue, one, two):
        node = nodes[0]
        assert one.place.pings(two.addresses[0])
        words = {
            "bridge": blue.link(node, "np-"),
            "vxlan": blue.link(node, "npv"),
            "mac": two.peer["mac"],
            "wrong": "198.51.100.1" if under.family == 4 else "2001:db8::1",
            "version": str(under.family),
        }
        host.run(["sh", "-ec", harm.format(**words)])
        assert node.do("diff")
        node.do("repair")
        assert node.do("diff") == []
        for address in two.addresses:
            assert one.place.pings(address)


def test_engine_that_was_away_keeps_traffic_and_drops_what_left(nodes: tuple[Node, Node]) -> None:
    with (
        pair(nodes) as (blue, one, two),
        blue.station(nodes[1], "10.94.1.6", "fd00:94:1::6") as leaver,
    ):
        away = nodes[0]
        away.close()
        try:
            assert one.place.pings(two.addresses[0])
            nodes[1].do("detach", network="blue", netns=leaver.place.name)
            blue.stations.remove(leaver)
        finally:
            away.start()
        assert one.place.pings(two.addresses[0])
        # Nobody has told it yet who is left.
        assert away.do("diff") == []
        blue.tell()
        away.do("repair")
        assert away.do("diff") == []
        assert one.place.pings(two.addresses[0])
        entries = away.host.output("bridge", "fdb", "show")
        assert two.peer["mac"] in entries
        assert leaver.peer["mac"] not in entries
