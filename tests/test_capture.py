"""Captures without a kernel: files as other programs read them, filters against libpcap, packets in words."""

import io
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dnslib
import pytest
from scapy.layers.dns import DNS, DNSQR, DNSRR
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NS,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.layers.vxlan import VXLAN
from scapy.utils import PcapNgReader

from netplug.cli import CliError
from netplug.cli.capture_links import chosen, with_names
from netplug.cli.capture_output import Lines
from netplug.cli.capturing import Reading, Source
from netplug.drivers import tables
from netplug.insight.capture.dns import Pairs
from netplug.insight.capture.packets import summary
from netplug.insight.capture.pcapng import Writer
from netplug.insight.capture.rules import PURPOSES, described, purpose
from netplug.kernel.host.socket_filters import Instruction
from netplug.kernel.probes import filter_language, libpcap
from netplug.kernel.probes.api import Rule
from netplug.kernel.probes.capture import CaptureError, Packet, Place, open_place, whole
from netplug.kernel.probes.capture_worker import MOST_ANSWER_BYTES, MOST_PACKETS, Kept
from netplug.kernel.probes.filter_run import accepts, result

A, B, C = "10.1.0.2", "10.1.0.3", "10.2.0.9"
A6, B6 = "fd00::2", "fd00::3"
E = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:03")
PACKETS = {
    "syn": E / IP(src=A, dst=B) / TCP(sport=4000, dport=80, flags="S", seq=7, window=100),
    "syn with options": E / IP(src=A, dst=C, options=b"\x01" * 8) / TCP(sport=4000, dport=443, flags="SA", ack=8),
    "later fragment": E / IP(src=B, dst=A, proto=6, frag=100) / (b"\x0f\xa0\x00\x50" + bytes(20)),
    "udp": E / IP(src=B, dst=A) / UDP(sport=53, dport=8080) / b"hello",
    "sctp": E / IP(src=C, dst=A) / SCTP(sport=80, dport=81),
    "ping": E / IP(src=C, dst=A) / ICMP(id=3, seq=4),
    "arp": E / ARP(psrc=A, pdst=B, hwsrc="02:00:00:00:00:02"),
    "arp reply": E / ARP(op=2, psrc=B, pdst=A, hwsrc="02:00:00:00:00:03"),
    "syn6": E / IPv6(src=A6, dst=B6) / TCP(sport=80, dport=4000, flags="RA", seq=0, ack=1),
    "udp6": E / IPv6(src=B6, dst=A6) / UDP(sport=1, dport=443),
    "fragment6": E / IPv6(src=A6, dst=B6) / IPv6ExtHdrFragment(nh=17, offset=10) / (b"\0" * 20),
    "neighbour": E / IPv6(src=A6, dst="ff02::1:ff00:3") / ICMPv6ND_NS(tgt=B6) / ICMPv6NDOptSrcLLAddr(),
    "lldp": Ether(type=0x88CC) / (b"\x02\x07" + bytes(40)),
}  # fmt: skip
FRAMES = {name: bytes(packet) for name, packet in PACKETS.items()}


# Files


def test_scapy_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "one.pcapng"
    with path.open("wb") as file:
        writer = Writer(file, "netplug test")
        links = [writer.interface(f"host-{it}/eth0", "a container", 100, expression="tcp", comment="ü") for it in "ab"]
        for number, name in enumerate(("syn", "udp", "arp")):
            frame = FRAMES[name]
            sent, comment = bool(number % 2), "dropped" if number else ""
            time_ns = 1_700_000_000_123_456_789 + number
            writer.packet(links[number % 2], time_ns, frame[:30], len(frame), sent=sent, comment=comment)
        writer.statistics(links[0], 1_700_000_001_000_000_000, 2, 1)
    with PcapNgReader(str(path)) as reader:
        found = list(reader)
    assert [bytes(it)[:30] for it in found] == [FRAMES[name][:30] for name in ("syn", "udp", "arp")]
    assert [it.sniffed_on for it in found] == ["host-a/eth0", "host-b/eth0", "host-a/eth0"]
    assert [it.direction for it in found] == [1, 2, 1]
    assert [it.wirelen for it in found] == [len(FRAMES[name]) for name in ("syn", "udp", "arp")]
    assert [int(it.time * 1_000_000_000) for it in found] == [1_700_000_000_123_456_789 + it for it in range(3)]
    assert [it.comments for it in found] == [None, [b"dropped"], [b"dropped"]]


@pytest.mark.skipif(not shutil.which("tshark"), reason="needs tshark (make setup)")
def test_wireshark_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "one.pcapng"
    with path.open("wb") as file:
        writer = Writer(file, "netplug test")
        number = writer.interface(
            "host-a/web/eth0", "web of network blue", 262_144, expression="port 80", comment="note"
        )
        frame = FRAMES["syn"]
        writer.packet(number, 1_700_000_000_123_456_789, frame, len(frame), sent=True, comment="by rule 7")
        writer.statistics(number, 1_700_000_001_000_000_000, 1, 0)
    command = ["tshark", "-r", str(path), "-T", "json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    (packet,) = (it["_source"]["layers"] for it in json.loads(done.stdout))
    assert packet["frame"]["frame.interface_id_tree"] == {
        "frame.interface_name": "host-a/web/eth0",
        "frame.interface_description": "web of network blue",
    }
    assert packet["frame"]["frame.time_epoch"] == "1700000000.123456789"
    assert "by rule 7" in done.stdout
    assert packet["tcp"]["tcp.dstport"] == "80"


# Filters


FILTERS = (
    "tcp", "udp", "sctp", "icmp", "icmp6", "arp", "ip", "ip6", "port 80", "src port 80", "dst port 80 or 443",
    "tcp port 80", "udp port 443", f"host {A}", f"src host {A}", f"dst {B}", f"host {A6}", f"src {B6}",
    f"tcp and host {B}", f"not host {A}", "not (tcp or udp) and not arp", f"icmp or port 80 and host {C}",
    "net 10.1.0.0/16", "src net 10.2.0.0/24", "net fd00::/16", "portrange 50-90", "tcp src portrange 4000-4001",
    f"arp host {B}", f"ip host {C}", "not port 80", f"host {A} and not port 443 or arp", "! udp && ! tcp", "port 0",
    "port 80 or 443 or 53", "ip6 and (port 443 or icmp6)", "",
)  # fmt: skip


def matches(code: Sequence[Instruction]) -> set[str]:
    return {name for name, frame in FRAMES.items() if accepts(code, frame)}


@pytest.mark.skipif(not libpcap.available(), reason="needs libpcap (make setup)")
@pytest.mark.parametrize("text", FILTERS)
def test_filters_match_what_libpcap_matches(text: str) -> None:
    ours, theirs = filter_language.compiled(text, 100), libpcap.compiled(text, 100)
    assert matches(ours) == matches(theirs)
    assert {result(ours, FRAMES[name]) for name in matches(ours)} <= {100}


@pytest.mark.skipif(not libpcap.available(), reason="needs libpcap (make setup)")
@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("tcp[tcpflags] & (tcp-syn|tcp-rst) != 0", {"syn", "syn with options"}),
        ("ip[2:2] - ((ip[0] & 0xf) << 2) == 20 and tcp", {"syn", "syn with options"}),
        ("ether src 02:00:00:00:00:02 and not ip and not ip6 and not arp", set()),
        ("len <= 42", {"arp", "arp reply", "ping"}),
        ("ip[8] / 2 * 2 = 64 and udp", {"udp"}),
    ],
)
def test_filters_of_libpcap_are_run(text: str, names: set[str]) -> None:
    code = libpcap.compiled(text, 100)
    assert {name for name in matches(code) if name not in {"later fragment", "lldp"}} == names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("tcp port 80", {"syn", "syn6"}),
        (f"host {C} and not icmp", {"syn with options", "sctp"}),
        ("arp or icmp", {"arp", "arp reply", "ping"}),
        ("port 443", {"syn with options", "udp6"}),
    ],
)
def test_filters_match(text: str, names: set[str]) -> None:
    assert matches(filter_language.compiled(text, 100)) == names


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port 99999", "'99999' is not a port"),
        ("host nobody", "'nobody' is not a host"),
        ("(tcp", "a ')' is missing"),
        ("tcp and", "the filter ends in the middle"),
        ("tcp udp", "'udp' is not expected there"),
        ("vlan 7", "'vlan' is not understood"),
    ],
)
def test_wrong_filters_are_named(text: str, words: str) -> None:
    with pytest.raises(filter_language.FilterError, match=words.replace("(", r"\(").replace(")", r"\)")):
        filter_language.compiled(text, 100)


ENDS: list[dict[str, Any]] = [
    {"name": "web", "container": "0a1b", "addresses": [A, A6]},
    {"name": "db", "container": "", "addresses": [B]},
]


def test_names_of_containers_stand_for_their_addresses() -> None:
    assert with_names("tcp and src host web", ENDS) == f"tcp and (src host {A} or src host {A6})"
    assert with_names("(host db or host 1.2.3.4)", ENDS) == f"( (host {B}) or host 1.2.3.4 )"
    assert chosen(f"host {B}", ENDS) == [ENDS[1]]
    assert chosen("tcp", ENDS) == ENDS
    with pytest.raises(CliError, match="would read 40 endpoints"):
        chosen("", ENDS * 20)


# Words


DNS_ANSWER = DNS(id=5, qr=1, qd=DNSQR(qname="web.blue"), an=DNSRR(rrname="web.blue", rdata=A, ttl=5))
SHOWN = {
    "syn": f"{A}:4000 → {B}:80 TCP SYN seq 7 win 100",
    "later fragment": f"{B} → {A} TCP fragment at 800",
    "udp": f"{B}:53 → {A}:8080 UDP 5 bytes",
    "ping": f"{C} → {A} ICMP echo request id 3 seq 4",
    "arp": f"02:00:00:00:00:02 → 02:00:00:00:00:03 ARP who has {B}? tell {A}",
    "arp reply": f"02:00:00:00:00:02 → 02:00:00:00:00:03 ARP {B} is at 02:00:00:00:00:03",
    "syn6": f"[{A6}]:80 → [{B6}]:4000 TCP RST+ACK seq 0 ack 1 win 8192",
    "fragment6": f"{A6} → {B6} UDP fragment at 80",
    "neighbour": f"{A6} → ff02::1:ff00:3 ICMP6 who has {B6}?",
    "dns": f"{B}:53 → {A}:99 UDP DNS A? web.blue: {A}",
    "dns by tcp": f"{A}:99 → {B}:53 TCP PSH+ACK seq 0 ack 0 win 8192 28 bytes DNS AAAA? web.blue",
    "vlan": f"{A} → {B} ICMP echo reply id 0 seq 0",
    "too big": f"{A6} → {B6} ICMP6 packet too big, mtu 1400 for UDP [{B6}]:1 → [{A6}]:443",
    "refused": f"{B} → {A} ICMP port unreachable for UDP {A}:5 → {B}:6",
    "fragmentation": f"{B} → {A} ICMP fragmentation needed, mtu 1300 for UDP {A}:53 → {B}:6",
    "vxlan": f"{A}:9 → {B}:4789 UDP VXLAN 7: {C} → {A} ICMP echo request id 3 seq 4",
    "http": f"{A}:9 → {B}:80 TCP PSH+ACK seq 0 ack 0 win 8192 18 bytes GET /x HTTP/1.1",
}
QUESTION = bytes(dnslib.DNSRecord.question("web.blue", "AAAA").pack())
MORE = {
    "dns": E / IP(src=B, dst=A) / UDP(sport=53, dport=99) / DNS_ANSWER,
    "dns by tcp": E / IP(src=A, dst=B) / TCP(sport=99, dport=53, flags="PA") / (b"\0\x1a" + QUESTION),
    "vlan": E / Dot1Q(vlan=5) / IP(src=A, dst=B) / ICMP(type=0, id=0),
    "too big": E / IPv6(src=A6, dst=B6) / ICMPv6PacketTooBig(mtu=1400) / IPv6(src=B6, dst=A6) / UDP(sport=1, dport=443),
    "refused": E / IP(src=B, dst=A) / ICMP(type=3, code=3) / IP(src=A, dst=B) / UDP(sport=5, dport=6),
    "fragmentation": E / IP(src=B, dst=A) / ICMP(type=3, code=4, nexthopmtu=1300) / IP(src=A, dst=B) / UDP(dport=6),
    "vxlan": E / IP(src=A, dst=B) / UDP(sport=9, dport=4789) / VXLAN(vni=7) / PACKETS["ping"],
    "http": E / IP(src=A, dst=B) / TCP(sport=9, dport=80, flags="PA") / b"GET /x HTTP/1.1\r\n\r",
}  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_packets_in_words(name: str) -> None:
    found = summary(bytes({**PACKETS, **MORE}[name]))
    assert f"{found.source} → {found.destination} {found.protocol} {found.words}".removeprefix("VLAN 5 ") == SHOWN[name]


@pytest.mark.parametrize("name", [*PACKETS, *MORE])
def test_a_cut_or_broken_packet_is_described_all_the_same(name: str) -> None:
    frame = bytes({**PACKETS, **MORE}[name])
    for size in range(len(frame)):
        summary(frame[:size])
        summary(frame[:size] + b"\xff" * (len(frame) - size))


def message(name: str, kind: str, number: int, answer: str = "") -> bytes:
    record = dnslib.DNSRecord.question(name, kind)
    if answer:
        record = record.reply()
        if answer != "none":
            record.add_answer(*dnslib.RR.fromZone(f"{name} 5 {kind} {answer}"))
    record.header.id = number
    return bytes(record.pack())


def test_answers_come_to_their_questions() -> None:
    pairs, client, server = Pairs(), f"{A}:4000", f"{B}:53"
    assert list(pairs.take(0, client, server, message("web.blue", "A", 1))) == []
    assert list(pairs.take(5, client, server, message("web.blue", "AAAA", 2))) == []
    assert list(pairs.take(1, client, server, message("gone.blue", "A", 3))) == []
    (found,) = pairs.take(1_500_000, server, client, message("web.blue", "A", 1, C))
    assert found.line == f"{client}  A web.blue: {C}  1.5 ms, from {server}"
    (found,) = pairs.take(1_000_005, server, client, message("web.blue", "AAAA", 2, "none"))
    assert found.line == f"{client}  AAAA web.blue: no records of this type  1.0 ms, from {server}"
    assert list(pairs.unanswered(1_000_000_000)) == []
    (found,) = pairs.unanswered(2_100_000_001)
    assert found.line == f"{client}  A gone.blue: no answer  in 2.1 s, from {server}"
    assert list(pairs.take(0, client, server, b"nonsense" * 5)) == []


def test_questions_that_are_open_at_the_end_are_told_with_their_time(capsys: pytest.CaptureFixture[str]) -> None:
    source = Source({"id": "1"})
    lines = Lines([source], dns=True)
    frame = bytes(E / IP(src=A, dst=B) / UDP(sport=4000, dport=53) / message("gone.blue", "A", 1))
    lines.packet(source, Packet(time.time_ns() - 1_200_000_000, True, len(frame), frame), "")
    lines.flush()
    assert capsys.readouterr().out == ""
    lines.end()
    told = capsys.readouterr().out
    assert re.fullmatch(rf"[\d:.]+ {A}:4000  A gone\.blue: no answer  in \d\.\d s, from {B}:53\n", told), told


# Rules


def test_rules_are_described_with_what_ours_are_for() -> None:
    rule = Rule("", "nft", "bridge", "netplug", "other_ipv4", "drop", "drop", 7)
    assert described(rule) == f"nft bridge netplug other_ipv4, on the host: drop ({purpose(rule)})"
    assert purpose(rule).startswith("anti-spoofing")
    inside = Rule("/run/netns/c", "nft", "inet", "netplug", "ingress", "drop", "", 9)
    assert described(inside) == "nft inet netplug ingress, in its sandbox: rule 9"
    foreign = Rule("", "iptables-nft", "ip", "filter", "DOCKER-USER", "drop", "-A DOCKER-USER -j DROP", 3)
    assert described(foreign) == "iptables-nft ip filter DOCKER-USER, on the host: -A DOCKER-USER -j DROP"


def test_chains_whose_purpose_is_told_are_there_and_drop() -> None:
    chains = re.findall(r"^chain (\w+) \{\n(.*?)^\}", tables.text("networks"), re.DOTALL | re.MULTILINE)
    dropping = {name for name, body in chains if re.search(r"\b(drop|reject)\b", body)}
    assert set(PURPOSES) <= dropping


# Links


def test_an_endpoint_without_a_link_is_said_so() -> None:
    with pytest.raises(CaptureError, match="the endpoint has no link"):
        open_place(Place(netns="/run/netns/nobody"), whole())


def test_a_sandbox_that_is_gone_is_named() -> None:
    with pytest.raises(CaptureError, match="sandbox /run/netns/nobody: no such file or directory"):
        open_place(Place(netns="/run/netns/nobody", link="eth0"), whole())


# For other hosts


def test_what_is_kept_for_another_host_is_bounded_and_counted() -> None:
    kept = Kept()
    for number in range(MOST_PACKETS + 5):
        kept.add(Packet(number, False, 100, bytes(100)))
    assert (kept.lost, kept.seen) == (5, MOST_PACKETS + 5)
    first = list(kept.take())
    assert len(json.dumps(first, separators=(",", ":"))) <= MOST_ANSWER_BYTES
    found = first
    while batch := list(kept.take()):
        found += batch
    assert [it[0] for it in found] == list(range(MOST_PACKETS))
    assert kept.size == 0


def test_a_file_without_packets_is_a_file() -> None:
    file = io.BytesIO()
    Writer(file, "netplug").interface("a", "b", 100)
    assert len(file.getvalue()) % 4 == 0


class Full:
    """A tap whose packets nobody has read yet; it reads some at a time."""

    ended = ""

    def __init__(self, packets: Sequence[Packet]) -> None:
        self._left = list(packets)

    def read(self) -> Iterator[Packet]:
        now, self._left = self._left[:256], self._left[256:]
        yield from now


def test_what_has_arrived_when_a_capture_is_ended_is_in_it() -> None:
    """It lies in the kernel's buffers then."""
    packets = [Packet(number, True, 3, b"abc") for number in range(600)]
    one, two = (Source({}, tap=Full(part)) for part in (packets[::2], packets[1::2]))  # type: ignore[arg-type]
    assert [packet for _, packet, _ in Reading([one, two], [], 0).rest()] == packets
    assert (one.seen, two.seen) == (300, 300)
