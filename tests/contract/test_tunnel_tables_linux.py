"""What the tables of overlays do to frames in the real kernel, with elements as drivers write them."""

import os
import socket
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from typing import Any

import pytest
from linux_host import wait_until_passing
from scapy.layers.dhcp6 import DHCP6_Reply
from scapy.layers.inet import IP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_RA,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from netplug.drivers import tunnel_tables
from netplug.drivers.steps import Element, Hook, Step, Table
from netplug.kernel.firewall.tables import Tables
from netplug.kernel.sandbox.netns import temporary_netns

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")

TIMEOUT_S = 20
PACKET_OUTGOING = 4
PORT, VNI, OTHER_VNI = 4789, 0x010203, 0x030201


def run(*command: str, text: str | None = None) -> str:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def load(steps: Iterable[Step]) -> None:
    tables = Tables()
    tables.ensure([step for step in steps if isinstance(step, Table | Element | Hook)])
    tables.close()


def unload(steps: Iterable[Step]) -> None:
    tables = Tables()
    tables.remove([step for step in steps if isinstance(step, Table | Element | Hook)])
    tables.close()


@contextmanager
def at(link: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sock:
        sock.bind((link, 0))
        sock.settimeout(TIMEOUT_S)
        yield sock


def mac_of(link: str) -> str:
    words = run("ip", "-o", "link", "show", link).split()
    return words[words.index("link/ether") + 1]


@contextmanager
def namespace() -> Iterator[None]:
    with temporary_netns():
        # Sources are checked by our tables only, and no link speaks by itself.
        run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")
        run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.default.router_solicitations=0")
        run("ip", "link", "set", "lo", "up")
        yield


class TestWhoMaySend:
    """Link `under` leads to the member, `other` to nobody, both are veths; `tagged` is of another kind."""

    @pytest.fixture(autouse=True)
    def _host(self) -> Iterator[None]:
        with namespace():
            for link, far, four, six in (
                ("under", "wire", "192.0.2.1/24", "fd00:2::1/64"),
                ("other", "far", "198.51.100.1/24", "fd00:6::1/64"),
            ):
                run("ip", "link", "add", link, "type", "veth", "peer", "name", far)
                for address in (four, six):
                    run("ip", "address", "add", address, "dev", link)
                run("ip", "link", "set", link, "up")
                run("ip", "link", "set", far, "up")
            run("ip", "link", "add", "tagged", "link", "other", "type", "macvlan", "mode", "bridge")
            run("ip", "link", "set", "tagged", "up")
            wait_until_passing("under", "other", "tagged")
            members = (ip_address("192.0.2.2"), ip_address("fd00:2::2"))
            elements = (tunnel_tables.filtered(PORT, VNI), *(tunnel_tables.accepted(it, PORT, VNI) for it in members))
            load((tunnel_tables.filter_table(), *elements))
            yield

    @staticmethod
    def _datagram(version: int, name: str, source: str = "", vni: int = VNI, port: int = PORT, size: int = 0) -> Packet:
        outer: Packet
        if version == 4:
            outer = IP(src=source or "192.0.2.2", dst="192.0.2.1")
        else:
            outer = IPv6(src=source or "fd00:2::2", dst="fd00:2::1")
        inner = VXLAN(vni=vni, flags="Instance") / Raw(f"<{name}>".encode() + bytes(size))
        return outer / UDP(sport=50000, dport=port) / inner

    @staticmethod
    def _received(version: int, *frames: tuple[str, str, list[Packet]], port: int = PORT) -> list[str]:
        """Send packets by links, the last of which is known to be accepted; return the names of what came."""
        with ExitStack() as stack:
            family = socket.AF_INET if version == 4 else socket.AF_INET6
            server = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            server.settimeout(TIMEOUT_S)
            server.bind(("", port))
            wires = {link: stack.enter_context(at(link)) for link in ("wire", "far")}
            for link, by, packets in frames:
                for packet in packets:
                    wires[link].send(bytes(Ether(dst=mac_of(by)) / packet))
            names: list[str] = []
            last = frames[-1][2][-1]
            while f"<{names[-1] if names else ''}>".encode() not in bytes(last):
                data = server.recv(65535)
                names.append(data[data.index(b"<") + 1 : data.index(b">")].decode())
            return names

    @pytest.mark.parametrize("version", [4, 6])
    def test_member_is_accepted_by_the_way_to_it_and_nobody_else(self, version: int) -> None:
        stranger = "192.0.2.3" if version == 4 else "fd00:2::3"
        packet = self._datagram
        names = self._received(
            version,
            ("wire", "under", [packet(version, "member")]),
            ("wire", "under", [packet(version, "stranger", stranger)]),
            ("far", "other", [packet(version, "another way, by a container")]),
            ("far", "tagged", [packet(version, "another way")]),
            ("wire", "under", [packet(version, "another's overlay", stranger, OTHER_VNI)]),
            ("far", "other", [packet(version, "another's overlay, another way", stranger, OTHER_VNI)]),
            ("wire", "under", [packet(version, "last")]),
        )
        several = ["another way"] if version == 6 else []
        assert names == ["member", *several, "another's overlay", "another's overlay, another way", "last"]

    @pytest.mark.parametrize("version", [4, 6])
    def test_other_ports_are_not_concerned(self, version: int) -> None:
        stranger = "192.0.2.3" if version == 4 else "fd00:2::3"
        packets = [self._datagram(version, name, stranger, port=8472) for name in ("first", "last")]
        assert self._received(version, *(("wire", "under", [it]) for it in packets), port=8472) == ["first", "last"]

    @pytest.mark.parametrize("version", [4, 6])
    def test_fragments_of_members_only_are_accepted(self, version: int) -> None:
        stranger = "192.0.2.3" if version == 4 else "fd00:2::3"

        def fragments(name: str, source: str, at: int, vni: int = VNI) -> list[Packet]:
            whole = self._datagram(version, name, source, vni, size=100)
            if version == 4:
                return list(fragment(whole, at))  # type: ignore[no-untyped-call]
            # Carried as they are: the checksum of the whole is in the first one.
            body = bytes(IPv6(bytes(whole)).payload)
            head = IPv6(src=whole.src, dst=whole.dst)
            number = sum(map(ord, name))
            one = IPv6ExtHdrFragment(nh=17, m=1, offset=0, id=number) / Raw(body[:at])
            return [head / one, head / IPv6ExtHdrFragment(nh=17, offset=at // 8, id=number) / Raw(body[at:])]

        names = self._received(
            version,
            ("wire", "under", fragments("member", "", 64)),
            ("wire", "under", fragments("stranger", stranger, 64)),
            # Shorter than what is checked.
            ("wire", "under", fragments("stranger, UDP header alone", stranger, 8)),
            ("wire", "under", fragments("another's overlay", stranger, 64, OTHER_VNI)),
            ("wire", "under", [self._datagram(version, "last")]),
        )
        assert names == ["member", "another's overlay", "last"]

    @pytest.mark.parametrize("version", [4, 6])
    def test_tunnels_are_not_tracked(self, version: int) -> None:
        run("nft", "-f", "-", text="""
            table inet probe {
                counter tracked { }
                counter untracked { }
                chain input {
                    type filter hook input priority 0
                    udp dport 4789 ct state untracked counter name untracked
                    udp dport 4789 ct state new,established counter name tracked
                }
                chain output {
                    type filter hook output priority 0
                    udp dport 4789 ct state untracked counter name untracked
                    udp dport 4789 ct state new,established counter name tracked
                }
            }""")  # fmt: skip
        last = self._datagram(version, "last", "192.0.2.3" if version == 4 else "fd00:2::3", OTHER_VNI)
        assert self._received(
            version, ("wire", "under", [self._datagram(version, "ours")]), ("wire", "under", [last])
        ) == ["ours", "last"]
        family, to = (socket.AF_INET, "192.0.2.9") if version == 4 else (socket.AF_INET6, "fd00:2::9")
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            for vni in (VNI, OTHER_VNI):
                sender.sendto(bytes(VXLAN(vni=vni, flags="Instance")), (to, PORT))
        counters = run("nft", "list", "counters", "table", "inet", "probe")
        assert counters.count("packets 2 ") == 2, counters


NEAR, AFAR = "02:00:00:00:00:01", "02:00:00:00:00:02"
OWN4, OWN6 = "10.9.0.1", "fd00:9::1"
TO4, TO6 = "10.9.0.2", "fd00:9::2"


def ip4(src: str = OWN4, dst: str = TO4, **fields: Any) -> Packet:
    return IP(src=src, dst=dst, **fields)


def ip6(src: str = OWN6, dst: str = TO6, **fields: Any) -> Packet:
    return IPv6(src=src, dst=dst, **fields)


class TestFastPath:
    """Ports `nphone` and `nphtwo`, and `npvtest` as the VXLAN link, are veths, whose other ends see what leaves."""

    @pytest.fixture(autouse=True)
    def _host(self) -> Iterator[None]:
        with namespace():
            for link, far in (("nphone", "one"), ("nphtwo", "two"), ("npvtest", "tunnel")):
                run("ip", "link", "add", link, "type", "veth", "peer", "name", far)
                for it in (link, far):
                    run("sysctl", "-qw", f"net.ipv6.conf.{it}.disable_ipv6=1")
                    run("ip", "link", "set", it, "up", "arp", "off")
                wait_until_passing(link)
            addresses = (ip_address(OWN4), ip_address(OWN6))
            others = (ip_address("10.9.0.3"), ip_address("fd00:9::3"))
            load(
                (
                    *tunnel_tables.fast_path("npvtest"),
                    *tunnel_tables.shortcut("nphone", "npvtest", NEAR, addresses),
                    *tunnel_tables.shortcut("nphtwo", "npvtest", "02:00:00:00:00:03", others),
                    tunnel_tables.remote("npvtest", AFAR),
                )
            )
            yield

    @staticmethod
    def _crossed(sent: dict[str, dict[str, Packet]], to_link: str) -> list[str]:
        """Send frames, by link and name; return the names of those that come by another link, up to ``last``."""
        with at(to_link) as receiver:
            for link, frames in sent.items():
                with at(link) as sender:
                    for name, frame in frames.items():
                        sender.send(bytes(frame / Raw(f"<{name}>".encode())))
            names: list[str] = []
            while names[-1:] != ["last"]:
                data, (_, _, kind, *_) = receiver.recvfrom(65535)
                if kind != PACKET_OUTGOING:
                    names.append(data[data.rindex(b"<") + 1 : data.rindex(b">")].decode())
        return names[:-1]

    def test_frames_to_other_hosts_pass_by_if_nobody_else_has_to_look(self) -> None:
        def frame(what: Packet, source: str = NEAR, to: str = AFAR) -> Packet:
            return Ether(src=source, dst=to) / what

        quick = {
            "UDP": frame(ip4() / UDP()),
            "UDP, IPv6": frame(ip6() / UDP()),
            "other protocol": frame(ip4(proto=89)),
            "other protocol, IPv6": frame(ip6(nh=89)),
            "to anywhere": frame(ip4(dst="198.51.100.7") / UDP()),
            "from a DHCP client": frame(ip4() / UDP(sport=68, dport=67)),
            "later fragment": frame(ip4(frag=10, proto=17)),
        }
        looked_at = {
            "to nobody known": frame(ip4() / UDP(), to="02:00:00:00:00:09"),
            "to a neighbour": frame(ip4() / UDP(), to="02:00:00:00:00:03"),
            "broadcast": frame(ip4() / UDP(), to="ff:ff:ff:ff:ff:ff"),
            "address of none": frame(ip4(src="10.9.0.9") / UDP()),
            "address of a neighbour": frame(ip4(src="10.9.0.3") / UDP()),
            "neighbour": frame(ip4(src="10.9.0.3") / UDP(), "02:00:00:00:00:03"),
            "neighbour, IPv6": frame(ip6(src="fd00:9::3") / UDP(), "02:00:00:00:00:03"),
            "MAC": frame(ip4() / UDP(), "02:00:00:00:00:99"),
            "MAC, IPv6": frame(ip6() / UDP(), "02:00:00:00:00:99"),
            "address of none, IPv6": frame(ip6(src="fd00:9::9") / UDP()),
            "advertisement": frame(ip6(hlim=255) / ICMPv6ND_NA(tgt="fd00:9::2")),
            "advertisement behind options": frame(ip6(hlim=255) / IPv6ExtHdrDestOpt() / ICMPv6ND_NA(tgt="fd00:9::2")),
            "fragment that tells no protocol": frame(ip6(nh=44) / IPv6ExtHdrFragment(nh=60, offset=2) / Raw(bytes(16))),
            "router": frame(ip6(hlim=255) / ICMPv6ND_RA()),
            "ICMPv6": frame(ip6() / ICMPv6EchoRequest()),
            "DHCP answer": frame(ip4() / UDP(sport=67, dport=68)),
            "DHCPv6 answer": frame(ip6() / UDP(sport=547, dport=546) / DHCP6_Reply()),
            "IGMP query": frame(ip4(proto=2) / Raw(b"\x11\0\0\0")),
            "ARP": frame(ARP(psrc=OWN4, pdst=TO4, hwsrc=NEAR)),
            "nested VLAN tag": frame(Dot1Q(vlan=1) / Dot1Q(vlan=2) / ip4() / UDP()),
        }
        assert self._crossed({"one": looked_at | quick | {"last": quick["UDP"]}}, "tunnel") == list(quick)

    def test_frames_from_other_hosts_go_to_the_port_of_their_mac(self) -> None:
        def frame(to: str) -> Packet:
            return Ether(src=AFAR, dst=to) / IP(src=TO4, dst=OWN4) / UDP()

        others = {"neighbour": frame("02:00:00:00:00:03"), "broadcast": frame("ff:ff:ff:ff:ff:ff")}
        others |= {"to nobody known": frame("02:00:00:00:00:09"), "ARP": Ether(dst=NEAR) / ARP()}
        assert self._crossed({"tunnel": others | {"last": frame(NEAR)}}, "one") == ["ARP"]

    def test_port_without_its_shortcut_uses_the_bridge_and_others_do_not(self) -> None:
        unload(tunnel_tables.shortcut("nphone", "npvtest", NEAR, map(ip_address, (OWN4, OWN6))))
        neighbour = Ether(src="02:00:00:00:00:03", dst=AFAR) / ip4(src="10.9.0.3") / UDP()
        own: dict[str, Packet] = {
            "IPv4": Ether(src=NEAR, dst=AFAR) / ip4() / UDP(),
            "IPv6": Ether(src=NEAR, dst=AFAR) / ip6() / UDP(),
        }
        assert self._crossed({"one": own, "two": {"last": neighbour}}, "tunnel") == []
        to_own = Ether(src=AFAR, dst=NEAR) / ip4(src=TO4, dst=OWN4) / UDP()
        to_neighbour = Ether(src=AFAR, dst="02:00:00:00:00:03") / ip4(src=TO4, dst="10.9.0.3") / UDP()
        assert self._crossed({"tunnel": {"own": to_own, "last": to_neighbour}}, "two") == []
