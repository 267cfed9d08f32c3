"""What a container can do to its host and neighbours with any frame it likes, in each mode.

Each frame is sent from the thief's namespace by a raw socket. After it comes one that is right and must arrive, so that
nobody waits for what shall not be seen: frames do not overtake each other. See docs/security.md for the whole list.
"""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pytest
from harness import Host, Mesh, Node, Station, links_are_gone, overlay, wait_until
from harness.netns import in_netns, open_socket
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6NDOptPrefixInfo, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from netplug.drivers.naming import eui64

V4 = ["10.95.1.0/24"]
DUAL = [*V4, "fd00:95:1::/64"]
MODES: dict[str, dict[str, str]] = {
    "bridge": {"mode": "bridge"},
    "spoofchk=false": {"mode": "bridge", "spoofchk": "false"},
    "internal": {"mode": "bridge", "internal": "true"},
    "host": {"mode": "host"},
    "overlay": {"vni": "20005"},
    "overlay, spoofchk=false": {"vni": "20005", "spoofchk": "false"},
}
BRIDGED = [mode for mode in MODES if mode != "host"]
RESERVED = [f"01:80:c2:00:00:{last:02x}" for last in (0x02, 0x03, 0x0E)]
"""Group addresses that a bridge does not forward but hands to the host, by the port (IEEE 802.1D, table 7-10)."""
ALL_NODES_MAC, ALL_NODES = "33:33:00:00:00:01", "ff02::1"
VTEP = "192.0.2.1"
OWN = ("10.95.1.2", "fd00:95:1::2")
NEIGHBOUR = ("10.95.1.9", "fd00:95:1::9")
FALSE = (*NEIGHBOUR, "192.0.2.53", "198.51.100.7", "127.0.0.1", "2001:db8::5", "::1")
"""Of a neighbour, of a name server on the underlay, of the world, of the host itself."""
PORTS = (53, 4790, 9999)
ARRIVAL_TIMEOUT_S = 5

each_mode = pytest.mark.parametrize("mode", MODES)


@dataclass(frozen=True)
class Place:
    """A host that nobody else uses."""

    host: Host
    node: Node


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with Host("hostile") as host:
        # An underlay with nobody on it.
        for line in (
            "link add uplink type veth peer name far",
            "link set uplink up",
            "link set far up",
            f"addr add {VTEP}/24 dev uplink",
        ):
            host.run(["ip", *line.split()])
        node = Node(host, VTEP)
        # What is made once and kept: sysctls.
        with overlay("warm-up", (node,), DUAL, mode="bridge"):
            pass
        links_are_gone(host)
        yield Place(host, node)
        node.close()


@dataclass(frozen=True)
class Thief:
    """A container with NET_RAW; `gateway`, `port`: MACs of the host's link that it speaks to, and of its own port."""

    station: Station
    mac: str
    gateway: str
    port: str
    sender: socket.socket

    @property
    def local(self) -> str:
        return str(eui64(self.mac))

    def send(self, frame: Packet) -> None:
        self.sender.send(bytes(frame))

    def ways(self) -> list[str]:
        """Return the MACs by which a frame may come to the host."""
        return ["01:80:c2:00:00:00", *RESERVED, self.gateway, self.port, ALL_NODES_MAC, "ff:ff:ff:ff:ff:ff"]


@contextmanager
def thief(place: Place, mode: str, subnets: list[str]) -> Iterator[tuple[Thief, Mesh]]:
    addresses = [subnet.partition("/")[0].rstrip("0") + "2" for subnet in subnets]
    with (
        overlay("lair", (place.node,), subnets, **MODES[mode]) as mesh,
        mesh.station(place.node, *addresses) as station,
    ):
        (own,) = json.loads(station.place.exec("ip", "-j", "link", "show", "eth0"))
        links = json.loads(place.host.output("ip", "-j", "link"))
        (port,) = (it for it in links if it["ifindex"] == own["link_index"])
        gateway = next((it["address"] for it in links if it["ifname"] == port.get("master")), port["address"])
        with in_netns(station.netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as sender:
            sender.bind(("eth0", 0))
            yield Thief(station, own["address"], gateway, port["address"], sender), mesh


def advertisement(source: str, mac: str, to: str) -> Packet:
    """A router offers itself and a prefix (RFC 4861 4.2)."""
    prefix = ICMPv6NDOptPrefixInfo(prefix="2001:db8:bad::", prefixlen=64, L=1, A=1)
    body = ICMPv6ND_RA(routerlifetime=1800) / ICMPv6NDOptSrcLLAddr(lladdr=mac) / prefix
    return Ether(src=mac, dst=to) / IPv6(src=source, dst=ALL_NODES, hlim=255) / body


def routes_by(host: Host, link: str = "") -> list[str]:
    """Return the IPv6 routes that routers have advertised, all or those by a link."""
    lines = host.output("ip", "-6", "route", "show", "proto", "ra").splitlines()
    lines += host.output("ip", "-6", "route", "show", "proto", "kernel").splitlines()
    return [line for line in lines if ("default" in line or "2001:db8:" in line) and f"dev {link}" in line]


@contextmanager
def listening(host: Host) -> Iterator[None]:
    """A host that does not forward IPv6, and so listens to routers."""
    before = host.output("sysctl", "-n", "net.ipv6.conf.all.forwarding").strip()
    host.run(["sysctl", "-qw", "net.ipv6.conf.all.forwarding=0"])
    yield
    for what in (
        "addr flush dev uplink scope global dynamic",
        "route flush proto ra",
        "route flush root 2001:db8::/32",
    ):
        host.run(["ip", "-6", *what.split()])
    host.run(["sysctl", "-qw", f"net.ipv6.conf.all.forwarding={before}"])


@each_mode
def test_host_takes_no_router_for_one_that_is_a_container(place: Place, mode: str) -> None:
    with listening(place.host), thief(place, mode, V4) as (it, _):
        for to in it.ways():
            it.send(advertisement(it.local, it.mac, to))
            it.send(advertisement(str(eui64(it.gateway)), it.mac, to))
        # The host does listen to routers: to one on its uplink.
        with in_netns(place.host.netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as far:
            far.bind(("far", 0))
            mac = place.host.output("cat", "/sys/class/net/far/address").strip()

            def believed() -> bool:
                far.send(bytes(advertisement(str(eui64(mac)), mac, ALL_NODES_MAC)))
                return bool(routes_by(place.host, "uplink"))

            wait_until(believed, ARRIVAL_TIMEOUT_S, "a router on the uplink")
        assert [line for line in routes_by(place.host) if "dev uplink" not in line and "dev far" not in line] == []


@contextmanager
def lent_bridge(host: Host) -> Iterator[None]:
    """A bridge of the user's own with a cable, at whose end there may be anybody."""
    for line in (
        "link add lent type bridge",
        "link set lent up",
        "link add lentport master lent up type veth peer name lentfar",
        "link set lentfar up",
    ):
        host.run(["ip", *line.split()])
    yield
    host.run(["ip", "link", "del", "lent"])
    host.run(["ip", "link", "del", "lentport"])


@pytest.mark.parametrize("slaac", [False, True])
@pytest.mark.parametrize("mode", ["macvlan", "bridge"])
def test_sandbox_believes_routers_of_its_segment_only_if_it_shall(place: Place, mode: str, *, slaac: bool) -> None:
    far, options = ("far", {"mode": "macvlan", "parent": "uplink"})
    if mode == "bridge":
        far, options = "lentfar", {"mode": "bridge", "bridge": "lent"} | ({"spoofchk": "false"} if slaac else {})
    with (
        lent_bridge(place.host),
        overlay("lair", (place.node,), V4, slaac=str(slaac).lower(), **options) as mesh,
        mesh.station(place.node, "10.95.1.2") as station,
        in_netns(place.host.netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as router,
    ):
        router.bind((far, 0))
        (own,) = json.loads(station.place.exec("ip", "-j", "link", "show", "eth0"))
        sent = advertisement("fe80::1", "02:00:00:00:00:99", own["address"])

        def taken() -> str:
            router.send(bytes(sent))
            return station.place.exec("ip", "-6", "route", "show", "default")

        # Its link-local address is there after duplicate address detection; by then it would take what it takes.
        wait_until(lambda: "tentative" not in station.place.exec("ip", "-6", "addr", "show", "dev", "eth0"), 10)
        if slaac:
            wait_until(taken, ARRIVAL_TIMEOUT_S, "the router's route")
        assert bool(taken()) == slaac
        assert ("2001:db8:bad:" in station.place.exec("ip", "-6", "addr")) == slaac


def hears(place: Place, mode: str, it: Thief, port: int) -> set[bytes]:
    """Send packets to the host from all kinds of sources by all ways, and return what those say that came."""
    with (
        open_socket(place.host.netns, socket.SOCK_DGRAM, family=6) as server,
        open_socket(place.host.netns, socket.SOCK_DGRAM) as own,
    ):
        server.setblocking(False)
        server.bind(("::", port))
        for to in it.ways():
            for source in (*OWN, *FALSE):
                right = source in OWN and (mode == "host" or to not in RESERVED)
                mark = Raw(b"right" if right else f"{source} by {to}".encode())
                ip = IPv6 if ":" in source else IP
                for target in ("fd00:95:1::1",) if ":" in source else (VTEP, "10.95.1.1"):
                    it.send(Ether(src=it.mac, dst=to) / ip(src=source, dst=target) / UDP(dport=port) / mark)
        own.sendto(b"end", ("127.0.0.1", port))
        found: set[bytes] = set()

        def ended() -> bool:
            with suppress(BlockingIOError):
                while True:
                    found.add(server.recv(2048))
            return b"end" in found

        wait_until(ended, ARRIVAL_TIMEOUT_S, "the host's own packet")
        return found - {b"end"}


@each_mode
def test_host_hears_no_packet_past_the_bridge_or_from_a_false_source(place: Place, mode: str) -> None:
    with thief(place, mode, DUAL) as (it, _):
        found = {port: hears(place, mode, it, port) for port in PORTS}
        # Whoever may take a neighbour's address may speak to the host by it.
        let = {f"{source} by {to}".encode() for source in NEIGHBOUR for to in it.ways() if to not in RESERVED}
        assert set().union(*found.values()) - (let if "spoofchk" in mode else set()) == {b"right"}
        assert b"right" in found[9999]


@pytest.mark.parametrize("mode", BRIDGED)
def test_host_learns_no_neighbours_past_the_bridge(place: Place, mode: str) -> None:
    with thief(place, mode, V4) as (it, _):
        for number in range(100):
            for to in RESERVED:
                question = ARP(op=1, hwsrc=it.mac, psrc=f"10.95.1.{100 + number}", pdst="10.95.1.1")
                it.send(Ether(src=it.mac, dst=to) / question)
        own = ARP(op=1, hwsrc=it.mac, psrc="10.95.1.2", pdst="10.95.1.1")
        it.send(Ether(src=it.mac, dst="ff:ff:ff:ff:ff:ff") / own)

        def known() -> list[str]:
            return [entry["dst"] for entry in json.loads(place.host.output("ip", "-j", "-4", "neigh"))]

        wait_until(lambda: "10.95.1.2" in known(), ARRIVAL_TIMEOUT_S, "the thief's own address")
        assert known() == ["10.95.1.2"]


@pytest.mark.parametrize("mode", BRIDGED)
def test_bridge_learns_nobody_from_reserved_groups(place: Place, mode: str) -> None:
    with (
        thief(place, mode, V4) as (it, mesh),
        mesh.station(place.node, "10.95.1.3") as victim,
    ):
        (link,) = json.loads(victim.place.exec("ip", "-j", "link", "show", "eth0"))
        mac = link["address"]
        for to in RESERVED:
            it.send(Ether(src=mac, dst=to, type=0x88B5) / Raw(b"x" * 46))
            for number in range(50):
                it.send(Ether(src=f"02:bb:00:00:00:{number:02x}", dst=to, type=0x88B5) / Raw(b"x" * 46))
        assert it.station.place.pings("10.95.1.3")
        after = place.host.output("bridge", "fdb", "show")
        assert "02:bb:" not in after
        ours = [line.split()[2] for line in after.splitlines() if line.startswith(it.mac)]
        theirs = [line.split()[2] for line in after.splitlines() if line.startswith(mac)]
        assert set(ours) & set(theirs) == set()
        assert victim.place.pings("10.95.1.2")
