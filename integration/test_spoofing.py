"""Nobody in a bridge network sends with an address or MAC that is not his own, with frames.

Each frame is sent from the thief's namespace by a raw socket, and looked for where it would do harm: at a neighbour and
at the host's bridge. A frame of his own, sent after it, says when to stop looking: frames do not overtake each other.
That everything is gone afterwards is asserted by the leak check of every test, see `conftest.py`.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import pytest
from harness import (
    Container,
    Dockerd,
    Host,
    Namespace,
    Netplug,
    attached,
    cli_network,
    container,
    docker_network,
    wait_until,
)
from harness.frames import Eye
from harness.netns import in_netns
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLQuery,
    ICMPv6MLQuery2,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6NDOptUnknown,
    IPv6,
    IPv6ExtHdrHopByHop,
    RouterAlert,
    _ICMPv6NDGuessPayload,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from netplug.drivers.naming import bridge_name, eui64

SUBNETS = ("--ipv6", "--subnet", "10.93.0.0/24", "--subnet", "fd00:93::/64")
GATEWAY4, GATEWAY6 = "10.93.0.1", "fd00:93::1"
ALL = "ff:ff:ff:ff:ff:ff"
ALL_NODES = "ff02::1"
STRANGER = "02:00:00:00:00:99"
NONCE = ICMPv6NDOptUnknown(type=14, len=1, data=b"nonce!")
ARRIVAL_TIMEOUT_S = 5

pytestmark = pytest.mark.usefixtures("netplug")
_marks = count()


class Placed(Protocol):
    @property
    def netns(self) -> Path: ...


@dataclass(frozen=True)
class Station:
    """Someone in the network, with what is his own."""

    place: Placed
    ip4: str
    ip6: str
    mac: str

    @property
    def local(self) -> str:
        return str(eui64(self.mac))


@dataclass(frozen=True)
class Scene:
    """Who there is; `gateway` is the MAC of the bridge."""

    thief: Station
    victim: Station
    gateway: str


Frame = Callable[[Scene], Packet]


def ether(scene: Scene, mac: str = "", to: str = "") -> Packet:
    return Ether(src=mac or scene.thief.mac, dst=to or scene.victim.mac)


def ip4(scene: Scene, source: str, **fields: Any) -> Packet:
    return ether(scene, **fields) / IP(src=source, dst=scene.victim.ip4) / ICMP()


def ip6(scene: Scene, source: str, **fields: Any) -> Packet:
    return ether(scene, **fields) / IPv6(src=source, dst=scene.victim.ip6) / ICMPv6EchoRequest()


def arp(scene: Scene, address: str, mac: str = "", source: str = "", operation: int = 2) -> Packet:
    sender = ARP(op=operation, hwsrc=mac or scene.thief.mac, psrc=address, hwdst=ALL, pdst=scene.victim.ip4)
    return ether(scene, source, ALL) / sender


def advertisement(scene: Scene, target: str, source: str = "", mac: str = "") -> Packet:
    own = ICMPv6NDOptDstLLAddr(lladdr=mac or scene.thief.mac)
    inner = IPv6(src=source or scene.thief.ip6, dst=ALL_NODES, hlim=255) / ICMPv6ND_NA(tgt=target, R=0, S=0, O=1) / own
    return ether(scene, to="33:33:00:00:00:01") / inner


def solicitation(scene: Scene, target: str) -> Packet:
    """Duplicate address detection: from no address (RFC 4862 5.4)."""
    return ether(scene, to="33:33:00:00:00:01") / IPv6(src="::", dst=ALL_NODES, hlim=255) / ICMPv6ND_NS(tgt=target)


def question(scene: Scene, options: Packet | None = None) -> Packet:
    """Where a neighbour is."""
    asked = ICMPv6ND_NS(tgt=scene.victim.ip6)
    frame = ether(scene, to="33:33:00:00:00:01") / IPv6(src=scene.thief.ip6, dst=ALL_NODES, hlim=255)
    return frame / (asked / options if options else asked)


def probe(scene: Scene, target: str) -> Packet:
    """Whether an address is free (RFC 5227 2.1.1)."""
    return ether(scene, to=ALL) / ARP(op=1, hwsrc=scene.thief.mac, psrc="0.0.0.0", pdst=target)


def udp(scene: Scene, source: int, to: int) -> Packet:
    return ether(scene) / IP(src=scene.thief.ip4, dst=scene.victim.ip4) / UDP(sport=source, dport=to)


def igmp(scene: Scene, kind: int) -> Packet:
    return ether(scene, to=ALL) / IP(src=scene.thief.ip4, dst="224.0.0.1", proto=2) / Raw(bytes((kind, 0, 0, 0)))


def router(scene: Scene, message: Packet) -> Packet:
    return ether(scene, to="33:33:00:00:00:01") / IPv6(src=scene.thief.local, dst=ALL_NODES, hlim=255) / message


def tagged(inner: Packet, *, tags: int = 1) -> Packet:
    """Priority tags, VLAN 0: receivers take the frame as if there were none (IEEE 802.1Q 6.7)."""
    frame, payload = Ether(src=inner.src, dst=inner.dst), inner.payload
    for _ in range(tags):
        frame /= Dot1Q(vlan=0)
    return frame / payload


OWN: dict[str, Frame] = {
    "IPv4": lambda it: ip4(it, it.thief.ip4),
    "IPv4 link-local": lambda it: ether(it) / IP(src="169.254.7.7", dst="169.254.7.8") / ICMP(),
    "IPv4, tagged": lambda it: tagged(ip4(it, it.thief.ip4)),
    "DHCP": lambda it: (
        ether(it, to=ALL) / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / Raw(b"?")
    ),
    "ARP": lambda it: arp(it, it.thief.ip4),
    "ARP probe": lambda it: probe(it, it.thief.ip4),
    "ARP probe, link-local": lambda it: probe(it, "169.254.7.7"),
    "ARP link-local": lambda it: arp(it, "169.254.7.7"),
    "IPv6": lambda it: ip6(it, it.thief.ip6),
    "IPv6 link-local": lambda it: ip6(it, it.thief.local),
    "IPv6 link-local of a user's choice": lambda it: ip6(it, "fe80::77"),
    "neighbour advertisement": lambda it: advertisement(it, it.thief.ip6),
    "neighbour solicitation": lambda it: question(it, ICMPv6NDOptSrcLLAddr(lladdr=it.thief.mac)),
    "neighbour solicitation without a MAC": question,
    "duplicate address detection with a nonce": lambda it: solicitation(it, it.thief.ip6) / NONCE,
    "duplicate address detection, link-local": lambda it: solicitation(it, it.thief.local),
    "router solicitation": lambda it: router(it, ICMPv6ND_RS() / ICMPv6NDOptSrcLLAddr(lladdr=it.thief.mac)),
    "MLD report": lambda it: router(it, ICMPv6MLReport2()),
    "IGMP report": lambda it: igmp(it, 0x22),
    "ping": lambda it: ip4(it, it.thief.ip4),
    "UDP": lambda it: udp(it, 5000, 53),
    "of a DHCP server's port to another": lambda it: udp(it, 67, 67),
    "neighbour advertisement, link-local": lambda it: advertisement(it, it.thief.local, it.thief.local),
    "duplicate address detection": lambda it: solicitation(it, it.thief.ip6),
    "another protocol": lambda it: Ether(src=it.thief.mac, dst=it.victim.mac, type=0x88B5) / Raw(b"local experiment"),
}
SPOOFED: dict[str, Frame] = {
    "MAC of a neighbour": lambda it: ip4(it, it.thief.ip4, mac=it.victim.mac),
    "MAC of the gateway": lambda it: ip4(it, it.thief.ip4, mac=it.gateway),
    "MAC of nobody": lambda it: ip6(it, it.thief.ip6, mac=STRANGER),
    "another protocol, MAC of a neighbour": lambda it: Ether(src=it.victim.mac, dst=ALL, type=0x88B5) / Raw(b"x" * 46),
    "IPv4 of a neighbour": lambda it: ip4(it, it.victim.ip4),
    "IPv4 of the gateway": lambda it: ip4(it, GATEWAY4),
    "IPv4 of the network, free": lambda it: ip4(it, "10.93.0.200"),
    "IPv4 of the world": lambda it: ip4(it, "198.51.100.7"),
    "IPv4 of nobody": lambda it: ip4(it, "0.0.0.0"),
    "IPv4 of a neighbour, tagged": lambda it: tagged(ip4(it, it.victim.ip4)),
    "IPv4 of a neighbour, tagged twice": lambda it: tagged(ip4(it, it.victim.ip4), tags=2),
    "ARP for a neighbour": lambda it: arp(it, it.victim.ip4),
    "ARP for the gateway": lambda it: arp(it, GATEWAY4),
    "ARP for the gateway, tagged": lambda it: tagged(arp(it, GATEWAY4)),
    "ARP request as the gateway": lambda it: arp(it, GATEWAY4, operation=1),
    "ARP with another's MAC inside": lambda it: arp(it, it.thief.ip4, mac=it.victim.mac),
    "ARP from another's MAC": lambda it: arp(it, it.thief.ip4, source=it.victim.mac),
    "IPv6 of a neighbour": lambda it: ip6(it, it.victim.ip6),
    "IPv6 of the gateway": lambda it: ip6(it, GATEWAY6),
    "IPv6 of the world": lambda it: ip6(it, "2001:db8::7"),
    "link-local address of a neighbour": lambda it: ip6(it, it.victim.local),
    "link-local address of the gateway": lambda it: ip6(it, str(eui64(it.gateway))),
    "neighbour advertisement for a neighbour": lambda it: advertisement(it, it.victim.ip6),
    "neighbour advertisement for the gateway": lambda it: advertisement(it, GATEWAY6),
    "neighbour advertisement for a neighbour's link-local address": lambda it: advertisement(it, it.victim.local),
    "neighbour advertisement as a neighbour": lambda it: advertisement(it, it.victim.ip6, it.victim.ip6),
    "router advertisement": lambda it: router(it, ICMPv6ND_RA()),
    "redirect": lambda it: router(it, ICMPv6ND_Redirect(tgt=it.thief.local, dst="2001:db8::7")),
    "ARP probe for a neighbour": lambda it: probe(it, it.victim.ip4),
    "ARP probe for a free address": lambda it: probe(it, "10.93.0.200"),
    "duplicate address detection for a neighbour": lambda it: solicitation(it, it.victim.ip6),
    "duplicate address detection for a neighbour's link-local address": lambda it: solicitation(it, it.victim.local),
    "duplicate address detection for a free address": lambda it: solicitation(it, "fd00:93::200"),
    "neighbour solicitation with another's MAC": lambda it: question(it, ICMPv6NDOptSrcLLAddr(lladdr=it.victim.mac)),
    "neighbour solicitation with another's MAC behind a nonce": lambda it: question(
        it, NONCE / ICMPv6NDOptSrcLLAddr(lladdr=it.victim.mac)
    ),
    "router solicitation with another's MAC": lambda it: router(
        it, ICMPv6ND_RS() / ICMPv6NDOptSrcLLAddr(lladdr=it.victim.mac)
    ),
    "neighbour advertisement with another's MAC": lambda it: advertisement(it, it.thief.ip6, mac=it.victim.mac),
    "DHCP answer": lambda it: udp(it, 67, 68),
    "DHCP answer from another port": lambda it: udp(it, 1067, 68),
    "DHCPv6 answer": lambda it: ether(it) / IPv6(src=it.thief.local, dst=ALL_NODES) / UDP(sport=547, dport=546),
    "IGMP query": lambda it: igmp(it, 0x11),
    "IGMP router": lambda it: igmp(it, 0x30),
    "PIM": lambda it: ether(it, to=ALL) / IP(src=it.thief.ip4, dst="224.0.0.13", proto=103) / Raw(b" \0\0\0"),
    "MLD query": lambda it: router(it, ICMPv6MLQuery()),
    "MLDv2 query": lambda it: router(it, ICMPv6MLQuery2()),
    "MLD query behind an option": lambda it: router(it, IPv6ExtHdrHopByHop(options=[RouterAlert()]) / ICMPv6MLQuery()),
}


class Stage:
    """Sends the thief's frames, and tells who saw them."""

    def __init__(self, scene: Scene, eyes: dict[str, Eye]) -> None:
        self._scene = scene
        self._eyes = eyes
        self._sender = in_netns(scene.thief.place.netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        self._sender.bind(("eth0", 0))

    def send(self, frame: Frame) -> set[str]:
        """Return those who saw a frame."""
        made = frame(self._scene)
        if any(isinstance(layer, _ICMPv6NDGuessPayload) for layer in made.iterpayloads()):
            # Neighbour discovery is options to its end, so there the mark is the flow label in the IPv6 header.
            made[IPv6].fl = next(_marks)
            mark = bytes(made[IPv6])[:40]
        else:
            mark = self._mark("case")
            made /= Raw(mark)
        self._sender.send(bytes(made))
        end = self._mark("end")
        own = Ether(src=self._scene.thief.mac, dst=ALL) / IP(src=self._scene.thief.ip4, dst="255.255.255.255") / UDP()
        self._sender.send(bytes(own / Raw(end)))
        wait_until(lambda: all(eye.saw(end) for eye in self._eyes.values()), ARRIVAL_TIMEOUT_S, "the frame of his own")
        return {name for name, eye in self._eyes.items() if eye.saw(mark)}

    @staticmethod
    def _mark(kind: str) -> bytes:
        return f"<netplug {kind} {next(_marks):06}>".encode()

    def close(self) -> None:
        self._sender.close()


@contextmanager
def stage(scene: Scene, host: Host, bridge: str) -> Iterator[Stage]:
    with ExitStack() as stack:
        eyes = {"victim": Eye(scene.victim.place, "eth0"), "bridge": Eye(host, bridge)}
        for eye in eyes.values():
            stack.callback(eye.close)
        it = Stage(scene, eyes)
        stack.callback(it.close)
        yield it


def contained(it: Container) -> Station:
    (entry,) = it.inspect()["NetworkSettings"]["Networks"].values()
    return Station(it, entry["IPAddress"], entry["GlobalIPv6Address"], entry["MacAddress"])


def station(lab: Namespace, result: dict[str, Any]) -> Station:
    v4, v6 = (address.split("/")[0] for address in result["addresses"])
    return Station(lab, v4, v6, result["mac"])


def bridge_of(host: Host, netplug: Netplug, network: str) -> tuple[str, str]:
    """Return the name and the MAC of a network's bridge."""
    (ident,) = (it["id"] for it in netplug.json("network", "ls") if it["name"] == network)
    name = bridge_name(ident)
    return name, host.output("cat", f"/sys/class/net/{name}/address").strip()


def test_bare_namespaces_send_what_is_their_own_and_nothing_else(host: Host, netplug: Netplug) -> None:
    with (
        cli_network(netplug, *SUBNETS) as net,
        attached(netplug, net) as thief,
        attached(netplug, net) as victim,
    ):
        name, mac = bridge_of(host, netplug, net)
        with stage(Scene(station(*thief), station(*victim), mac), host, name) as it:
            lost = [what for what, frame in OWN.items() if "victim" not in it.send(frame)]
            assert ", ".join(lost) == ""
            assert {what: seen for what, frame in SPOOFED.items() if (seen := it.send(frame))} == {}
            assert it.send(OWN["IPv4"]), "the thief may still send"


@pytest.mark.parametrize("spoofchk", [True, False], ids=["", "spoofchk=false"])
def test_container_spoofs_only_where_it_is_let(
    dockerd: Dockerd, host: Host, netplug: Netplug, *, spoofchk: bool
) -> None:
    options = () if spoofchk else ("-o", "spoofchk=false")
    with (
        docker_network(dockerd, *SUBNETS, *options) as net,
        container(dockerd, "--network", net) as thief,
        container(dockerd, "--network", net) as victim,
    ):
        name, mac = bridge_of(host, netplug, dockerd.inspect(net)["Name"])
        with stage(Scene(contained(thief), contained(victim), mac), host, name) as it:
            for what in ("IPv4 of a neighbour", "ARP for the gateway", "neighbour advertisement for the gateway"):
                assert bool(it.send(SPOOFED[what])) != spoofchk, what
            assert it.send(OWN["IPv4"])


def test_chosen_addresses_are_his_own(dockerd: Dockerd, host: Host, netplug: Netplug) -> None:
    chosen = ("--ip", "10.93.0.66", "--ip6", "fd00:93::66", "--mac-address", "02:00:00:00:00:66")
    with (
        docker_network(dockerd, *SUBNETS) as net,
        container(dockerd, "--network", net, *chosen) as one,
        container(dockerd, "--network", net) as two,
    ):
        assert two.pings("10.93.0.66")
        assert two.pings("fd00:93::66")
        assert one.pings(two.ip())
        name, mac = bridge_of(host, netplug, dockerd.inspect(net)["Name"])
        with stage(Scene(contained(one), contained(two), mac), host, name) as it:
            assert "victim" in it.send(OWN["IPv6 link-local"])


def test_guard_holds_without_the_daemon(dockerd: Dockerd, host: Host, netplug: Netplug) -> None:
    with (
        docker_network(dockerd, *SUBNETS) as net,
        container(dockerd, "--network", net) as thief,
        container(dockerd, "--network", net) as victim,
    ):
        name, mac = bridge_of(host, netplug, dockerd.inspect(net)["Name"])
        netplug.kill()
        with stage(Scene(contained(thief), contained(victim), mac), host, name) as it:
            assert it.send(SPOOFED["IPv4 of a neighbour"]) == set()
            assert "victim" in it.send(OWN["IPv4"])
        netplug.start()
        assert not netplug.drift()


def test_rules_are_as_many_for_ten_containers_as_for_one(dockerd: Dockerd, host: Host) -> None:
    def rules() -> list[str]:
        return host.output("nft", "--stateless", "--terse", "list", "ruleset").splitlines()

    with docker_network(dockerd, *SUBNETS) as net, ExitStack() as stack:
        stack.enter_context(container(dockerd, "--network", net, "-p", "9000:80"))
        before = rules()
        for number in range(1, 10):
            stack.enter_context(container(dockerd, "--network", net, "-p", f"{9000 + number}:80"))
        assert rules() == before
