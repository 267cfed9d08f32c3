"""What a container that sends any frame it likes cannot reach: the host's resolver, neighbours, other networks.

The attacker sends by a raw socket, in each mode. After what must not arrive it sends what must: frames do not overtake
each other, so whoever has not seen the former by then never will. See docs/security.md.
"""

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Protocol

import pytest
from harness import Host, SeenServer, Wire, tcp_ask, udp_ask, wait_until
from harness.frames import Eye
from harness.netns import in_netns
from harness.overlay import Mesh, Node, Station, overlay
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from netplug.drivers.naming import eui64

BLUE, RED = ["10.94.1.0/24", "fd00:94:1::/64"], ["10.94.2.0/24", "fd00:94:2::/64"]
EVERYWHERE = "::"
ARRIVAL_TIMEOUT_S = 5
UNGUARDED = {"spoofchk": "false"}
"""What is here does not lean on the guards of ports."""

_marks = count()


class Placed(Protocol):
    @property
    def netns(self) -> Path: ...


@pytest.fixture(scope="module")
def node(host: Host, wire: Wire) -> Iterator[Node]:
    it = Node(host, wire.left)
    # What is made once and kept: sysctls.
    with overlay("warm-up", (it,), BLUE, vni="20001"):
        pass

    def links() -> list[str]:
        return host.output("sh", "-c", "ls /proc/sys/net/ipv4/conf").split()

    wait_until(lambda: not any(name.startswith("np-") for name in links()), 10, "links of the warm-up are gone")
    for name in links():
        host.run(["sysctl", "-qw", f"net/ipv4/conf/{name}/rp_filter=0"])
    yield it
    it.close()


@contextmanager
def network(node: Node, name: str, subnets: Sequence[str], mode: str, **options: str) -> Iterator[Mesh]:
    if mode == "overlay":
        options["vni"] = str(20001 + len(name))
    if mode != "host":
        options |= UNGUARDED
    with overlay(name, (node,), list(subnets), mode=mode, **options) as it:
        yield it


def settled(host: Host, *stations: Station) -> None:
    """Wait until all have done with duplicate address detection."""
    for exec_ in (host.output, *(station.place.exec for station in stations)):
        wait_until(lambda: not exec_("ip", "-6", "addr", "show", "tentative"), 10, "addresses are settled")  # noqa: B023


class Attacker:
    """Sends frames from a station; `gateway`: the MAC that it reaches the host by."""

    def __init__(self, station: Station, addresses: Sequence[str]) -> None:
        self.ip4, self.ip6 = addresses
        self.mac = mac_of(station)
        self.local = str(eui64(self.mac))
        self._station = station
        station.place.exec("busybox", "ping", "-c", "1", gateway_of(self.ip4))
        (found,) = json.loads(station.place.exec("ip", "-j", "neigh", "show", gateway_of(self.ip4)))
        self.gateway: str = found["lladdr"]
        self._socket = in_netns(station.netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        self._socket.bind(("eth0", 0))

    def send(self, packet: Packet, to: str = "") -> None:
        self._socket.send(bytes(Ether(src=self.mac, dst=to or self.gateway) / packet))

    def close(self) -> None:
        self._socket.close()


def marked() -> bytes:
    return f"<netplug {next(_marks):06}>".encode()


def mac_of(station: Station) -> str:
    (found,) = json.loads(station.place.exec("ip", "-j", "link", "show", "eth0"))
    return str(found["address"])


def gateway_of(address: str) -> str:
    return address.rpartition(".")[0] + ".1"


@contextmanager
def attacking(station: Station, *addresses: str) -> Iterator[Attacker]:
    it = Attacker(station, addresses)
    try:
        yield it
    finally:
        it.close()


def group_mac(address: str) -> str:
    if ":" in address:
        return "33:33:00:00:00:01"
    return "ff:ff:ff:ff:ff:ff" if address.startswith("255") else "01:00:5e:00:00:01"


# The host's resolver


@pytest.mark.parametrize("mode", ["bridge", "overlay", "host"])
def test_internal_network_reaches_no_resolver_of_the_host_by_any_address_of_the_link(
    node: Node, host: Host, mode: str
) -> None:
    with (
        network(node, "blue", BLUE, mode, internal="true") as blue,
        blue.station(node, "10.94.1.2", "fd00:94:1::2") as station,
        attacking(station, "10.94.1.2", "fd00:94:1::2") as it,
        ExitStack() as stack,
    ):
        servers = {
            (port, address): stack.enter_context(SeenServer(host, "udp", port, address))
            for port in (53, 853, 7000)
            for address in ("0.0.0.0", "::")
        }

        def seen(port: int) -> list[list[str]]:
            # Some of IPv4 comes to both.
            by4, by6 = (servers[port, address].seen for address in ("0.0.0.0", "::"))
            return [by4, [it for it in by6 if not it.startswith("::ffff:")]]

        settled(host, station)
        gateway = str(eui64(it.gateway))
        for port in (53, 853):
            for source in (it.ip6, it.local, "fe80::77"):
                it.send(IPv6(src=source, dst=gateway) / UDP(sport=4000, dport=port) / Raw(b"?"))
                it.send(IPv6(src=source, dst="ff02::1") / UDP(sport=4000, dport=port), "33:33:00:00:00:01")
            for source in (it.ip4, "169.254.7.7"):
                for group in ("255.255.255.255", "224.0.0.1"):
                    it.send(IP(src=source, dst=group) / UDP(sport=4000, dport=port) / Raw(b"?"), group_mac(group))
        # The host itself is reached by the same addresses.
        it.send(IPv6(src=it.local, dst=gateway) / UDP(sport=4000, dport=7000) / Raw(b"?"))
        it.send(IPv6(src=it.local, dst="ff02::1") / UDP(sport=4000, dport=7000) / Raw(b"?"), "33:33:00:00:00:01")
        it.send(IP(src=it.ip4, dst="224.0.0.1") / UDP(sport=4000, dport=7000) / Raw(b"?"), "01:00:5e:00:00:01")
        it.send(IP(src=it.ip4, dst="255.255.255.255") / UDP(sport=4000, dport=7000) / Raw(b"?"), "ff:ff:ff:ff:ff:ff")
        wait_until(lambda: [len(found) for found in seen(7000)] == [2, 2], ARRIVAL_TIMEOUT_S, "what is for the host")
        assert seen(53) + seen(853) == [[]] * 4


# The store that hosts share


@pytest.mark.parametrize("mode", ["bridge", "overlay", "host"])
@pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
def test_store_of_the_hosts_is_none_of_the_containers_business(
    node: Node, host: Host, client: Host, wire: Wire, family: int, mode: str
) -> None:
    outside, own = (wire.right, wire.left) if family == 4 else (wire.right6, wire.left6)
    node.do("keep_away", store=[[wire.right, 2379], [wire.right6, 2379], ["127.0.0.1", 2479]])
    try:
        with (
            network(node, "blue", BLUE, mode) as blue,
            blue.station(node, "10.94.1.2", "fd00:94:1::2") as station,
            ExitStack() as stack,
        ):
            seen = {
                (place, port): stack.enter_context(SeenServer(place, "tcp", port, EVERYWHERE))
                for place in (client, host)
                for port in (2379, 2479, 7000)
            }
            for address, port in ((outside, 2379), (own, 2479)):
                with pytest.raises(ConnectionRefusedError):
                    tcp_ask(station, address, port)
            assert tcp_ask(host, outside, 2379)
            for address, port in ((outside, 2479), (own, 2379), (outside, 7000)):
                assert tcp_ask(station, address, port)
            assert (len(seen[client, 2379].seen), seen[host, 2479].seen) == (1, [])
    finally:
        node.do("keep_away", store=[])


# Neighbours of a network without icc


@pytest.fixture(params=[0, 1], ids=["", "bridge-nf-call"])
def bridge_netfilter(request: pytest.FixtureRequest, host: Host) -> Iterator[int]:
    """Whether frames that a bridge forwards come to the rules of the host."""
    keys = ("net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables")
    if host.run(["sysctl", "-n", *keys], check=False).returncode:
        pytest.skip("needs the kernel module br_netfilter")
    before = host.output("sysctl", *keys).splitlines()
    host.run(["sysctl", "-qw", *(f"{key}={request.param}" for key in keys)])
    yield request.param
    host.run(["sysctl", "-qw", *(line.replace(" ", "") for line in before)])


@pytest.mark.usefixtures("bridge_netfilter")
@pytest.mark.parametrize("mode", ["bridge", "overlay"])
def test_neighbour_without_icc_is_not_reached_through_the_gateway(node: Node, host: Host, mode: str) -> None:
    with (
        network(node, "blue", BLUE, mode, icc="false") as blue,
        blue.station(node, "10.94.1.2", "fd00:94:1::2") as station,
        blue.station(node, "10.94.1.3", "fd00:94:1::3") as victim,
        attacking(station, "10.94.1.2", "fd00:94:1::2") as it,
        SeenServer(victim, "udp", 80, EVERYWHERE) as reached,
        SeenServer(host, "udp", 7000, EVERYWHERE) as service,
    ):
        settled(host, station, victim)
        host.run(["busybox", "ping", "-c", "1", "fd00:94:1::3"])
        ask = UDP(sport=4000, dport=80) / Raw(b"?")
        victims = ("fd00:94:1::3", str(eui64(mac_of(victim))))
        for source in (it.local, "fe80::77", "::", it.ip6):
            for address in victims:
                it.send(IPv6(src=source, dst=address) / ask)
        for source in (it.ip4, "169.254.7.7", "0.0.0.0"):
            it.send(IP(src=source, dst="10.94.1.3") / ask)
        it.send(IPv6(src=it.local, dst=str(eui64(it.gateway))) / UDP(sport=4000, dport=7000) / Raw(b"?"))
        wait_until(lambda: service.seen, ARRIVAL_TIMEOUT_S, "what is for the host")
        assert reached.seen == []


@pytest.mark.usefixtures("bridge_netfilter")
def test_neighbours_speak_by_link_local_addresses_where_all_else_is_dropped(node: Node, host: Host) -> None:
    for program in ("iptables", "ip6tables"):
        host.run([program, "-P", "FORWARD", "DROP"])
    try:
        with (
            network(node, "blue", BLUE, "bridge") as blue,
            blue.station(node, "10.94.1.2", "fd00:94:1::2") as one,
            blue.station(node, "10.94.1.3", "fd00:94:1::3") as two,
        ):
            settled(host, one, two)
            for address in (str(eui64(mac_of(two))), "10.94.1.3", "fd00:94:1::3"):
                one.place.exec("busybox", "ping", "-c", "1", "-W", "3", "-I", "eth0", address)
    finally:
        for program in ("iptables", "ip6tables"):
            host.run([program, "-P", "FORWARD", "ACCEPT"])


@pytest.mark.parametrize("mode", ["bridge", "overlay", "host"])
def test_link_local_sources_are_not_routed(node: Node, client: Host, wire: Wire, mode: str) -> None:
    with (
        network(node, "blue", BLUE, mode) as blue,
        blue.station(node, "10.94.1.2", "fd00:94:1::2") as station,
        attacking(station, "10.94.1.2", "fd00:94:1::2") as it,
        closing(Eye(client, wire.right_link)) as eye,
    ):
        marks = {source: marked() for source in ("169.254.7.7", it.ip4)}
        for source, mark in marks.items():
            it.send(IP(src=source, dst=wire.right) / UDP(sport=4000, dport=7000) / Raw(mark))
        wait_until(lambda: eye.saw(marks[it.ip4]), ARRIVAL_TIMEOUT_S, "what has a source of the network")
        assert not eye.saw(marks["169.254.7.7"])


# Connections of other networks


@pytest.mark.parametrize(
    ("mode", "of_victim"),
    [("bridge", "bridge"), ("overlay", "bridge"), ("host", "bridge"), ("bridge", "overlay"), ("bridge", "host")],
)
@pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
def test_connection_of_another_network_is_not_touched(
    node: Node, client: Host, wire: Wire, family: int, mode: str, of_victim: str
) -> None:
    outside, own = (wire.right, wire.left) if family == 4 else (wire.right6, wire.left6)
    inside = ("10.94.2.2", "fd00:94:2::2")[family == 6]
    with ExitStack() as stack:
        blue = stack.enter_context(network(node, "blue", BLUE, mode))
        red = stack.enter_context(network(node, "red", RED, of_victim))
        ports = {} if of_victim == "host" else {"udp/80": 8080}
        victim = stack.enter_context(red.station(node, "10.94.2.2", "fd00:94:2::2", ports=ports))
        station = stack.enter_context(blue.station(node, "10.94.1.2", "fd00:94:1::2"))
        it = stack.enter_context(attacking(station, "10.94.1.2", "fd00:94:1::2"))
        inner = 8080 if of_victim == "host" else 80
        stack.enter_context(SeenServer(client, "udp", 7000, EVERYWHERE))
        stack.enter_context(SeenServer(victim, "udp", inner, EVERYWHERE))
        eye = Eye(victim, "eth0")
        stack.callback(eye.close)

        asking, asked = 5000 + 2 * next(_marks), 5001 + 2 * next(_marks)
        assert udp_ask(victim, outside, 7000, source_port=asking)
        assert udp_ask(client, own, 8080, source_port=asked)
        mine = it.ip4 if family == 4 else it.ip6

        def packet(source: str, target: str, sport: int, dport: int) -> Packet:
            layer = IP if family == 4 else IPv6
            return layer(src=source, dst=target) / UDP(sport=sport, dport=dport)

        def error(to: str, about: Packet) -> tuple[bytes, Packet]:
            mark = marked()
            if family == 4:
                return mark, IP(src=mine, dst=to) / ICMP(type=3, code=4, nexthopmtu=600) / Raw(bytes(about / Raw(mark)))
            return mark, IPv6(src=mine, dst=to) / ICMPv6PacketTooBig(mtu=1280) / Raw(bytes(about / Raw(mark)))

        def claim(about: Packet) -> tuple[bytes, Packet]:
            mark = marked()
            return mark, about / Raw(mark)

        tried = {
            "error about what it asked": error(inside, packet(inside, outside, asking, 7000)),
            "error about what it asked, to the host": error(own, packet(own, outside, asking, 7000)),
            "error about what it answered": error(inside, packet(inside, outside, inner, asked)),
            "error about what it answered, to the host": error(own, packet(own, outside, 8080, asked)),
            "answer": claim(packet(outside, inside, 7000, asking)),
            "answer, to the host": claim(packet(outside, own, 7000, asking)),
            "question": claim(packet(outside, own, asked, 8080)),
            "question, to itself": claim(packet(outside, inside, asked, inner)),
        }
        for _, sent in tried.values():
            it.send(sent)
        end, last = claim(packet(mine, own, 4003, 8080))
        it.send(last)
        wait_until(lambda: eye.saw(end), ARRIVAL_TIMEOUT_S, "what goes to a published port")
        assert [what for what, (mark, _) in tried.items() if eye.saw(mark)] == []
