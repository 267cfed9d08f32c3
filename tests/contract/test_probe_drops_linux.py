"""Probes on the real kernel: which rule, or which reason of the kernel, drops a packet."""

import asyncio
import os
from ipaddress import ip_address

import pytest
from linux_host import run
from probed_hosts import Hosts, dropped, dropping, seen

from netplug.kernel.probes.api import Flow, Job, Kind, Origin, Post, Prober, What, new_mark
from netplug.kernel.probes.prober import WorkerProbes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")


async def test_a_rule_of_nft_that_drops_is_named(hosts: Hosts, prober: Prober) -> None:
    run("nft", "add table inet shop; add chain inet shop gate { type filter hook forward priority 0; }")
    run("nft", "add rule inet shop gate tcp dport 81 accept; add rule inet shop gate tcp dport 80 drop")
    report = await prober.run(hosts.job(repeat=2))
    rules = [it for it in report.rules if it.drops]
    assert [(it.table, it.chain, it.text, it.hook, it.number, it.back) for it in rules] == [
        ("shop", "gate", "tcp dport 80 drop", "forward", number, False) for number in (0, 1)
    ]
    assert rules[0].handle
    assert set(seen(report, What.SYN)) == {"client", "bridge"}
    assert not report.reply


async def test_a_rule_that_drops_the_answer_is_named(hosts: Hosts, prober: Prober) -> None:
    run("nft", "add table ip shop; add chain ip shop gate { type filter hook forward priority 0; }")
    run("nft", "add rule ip shop gate tcp sport 80 drop")
    rule = dropping(await prober.run(hosts.job()))
    assert (rule.family, rule.table, rule.text, rule.back) == ("ip", "shop", "tcp sport 80 drop", True)


async def test_a_rule_on_a_link_is_named(hosts: Hosts, prober: Prober) -> None:
    run("nft", 'add table netdev shop; add chain netdev shop vc { type filter hook ingress device "vc" priority 0; }')
    run("nft", "add rule netdev shop vc ip saddr 10.0.0.2 drop")
    posts = (*hosts.posts, Post("port", "", "vc"))
    rule = dropping(await prober.run(hosts.job(posts=posts)))
    assert (rule.family, rule.chain, rule.text) == ("netdev", "vc", "ip saddr 10.0.0.2 drop")


async def test_a_rule_of_the_bridge_is_named(hosts: Hosts, prober: Prober) -> None:
    run("nft", "add table bridge shop; add chain bridge shop in { type filter hook prerouting priority 0; }")
    run("nft", "add rule bridge shop in tcp dport 80 drop")
    rule = dropping(await prober.run(hosts.job()))
    assert (rule.family, rule.text, rule.hook) == ("bridge", "tcp dport 80 drop", "prerouting")


async def test_a_rejecting_rule_is_named(hosts: Hosts, prober: Prober) -> None:
    run("nft", "add table inet shop; add chain inet shop gate { type filter hook forward priority 0; }")
    run("nft", "add rule inet shop gate tcp dport 80 reject")
    report = await prober.run(hosts.job())
    assert dropping(report).verdict == "reject"
    assert report.reply
    assert (report.reply.what, report.reply.source) == (What.UNREACHABLE, ip_address("10.0.0.1"))


@pytest.mark.parametrize("program", ["iptables-nft", "ip6tables-nft"])
async def test_a_rule_of_iptables_nft_is_named_in_its_words(hosts: Hosts, prober: Prober, program: str) -> None:
    words = ("-p", "tcp", "-m", "comment", "--comment", "closed", "-m", "tcp", "--dport", "80", "-j", "DROP")
    run(program, "-A", "FORWARD", *words)
    rule = dropping(await prober.run(hosts.job(to="10.0.1.2" if program == "iptables-nft" else "2001:db8:1::2")))
    assert (rule.flavour, rule.table, rule.chain) == ("iptables-nft", "filter", "FORWARD")
    assert rule.text == "-A FORWARD -p tcp -m comment --comment closed -m tcp --dport 80 -j DROP"


async def test_a_firewall_inside_the_container_is_named(hosts: Hosts, prober: Prober) -> None:
    hosts.inside(hosts.server, "iptables-nft", "-P", "INPUT", "DROP")
    rule = dropping(await prober.run(hosts.job()))
    assert (rule.netns, rule.chain, rule.text, rule.hook) == (hosts.server, "INPUT", "policy drop", "input")


async def test_a_rule_for_packets_from_outside_is_named(hosts: Hosts, prober: Prober) -> None:
    run("nft", "add table inet shop; add chain inet shop gate { type filter hook forward priority 0; }")
    run("nft", "add rule inet shop gate iifname vs ip daddr 10.0.0.2 drop")
    flow = Flow(ip_address("10.0.0.2"), Kind.UDP, 80, ip_address("10.0.1.9"))
    report = await prober.run(Job(flow, new_mark(), Origin(link="vs"), hosts.posts, ("",)))
    assert dropping(report).text == 'iifname "vs" ip daddr 10.0.0.2 drop'


@pytest.mark.parametrize(
    ("program", "target", "to"),
    [
        ("iptables-legacy", "DROP", "10.0.1.2"),
        ("iptables-legacy", "REJECT", "10.0.1.2"),
        ("ip6tables-legacy", "DROP", "2001:db8:1::2"),
    ],
)
async def test_a_rule_of_iptables_legacy_is_named(
    hosts: Hosts, prober: Prober, program: str, target: str, to: str
) -> None:
    run(program, "-A", "FORWARD", "-p", "tcp", "--dport", "81", "-j", "DROP")
    run(program, "-A", "FORWARD", "-p", "tcp", "--dport", "80", "-j", target)
    report = await prober.run(hosts.job(to=to, legacy=("", hosts.server), repeat=3, wait_ms=1500))
    rule = dropping(report)
    assert (rule.netns, rule.flavour, rule.table, rule.chain) == ("", "iptables-legacy", "filter", "FORWARD")
    assert rule.text.startswith("-A FORWARD -p tcp -m tcp --dport 80 -j " + target)
    assert (rule.verdict, rule.packets, rule.hook) == (target.lower(), 3, "forward")
    assert ("netfilter_drop", "") in dropped(report)
    names = hosts.inside(hosts.server, "cat", "/proc/net/ip_tables_names")
    assert not names.strip()  # nothing came into being there by looking


async def test_a_policy_of_iptables_legacy_is_named(hosts: Hosts, prober: Prober) -> None:
    hosts.inside(hosts.server, "iptables-legacy", "-P", "INPUT", "DROP")
    rule = dropping(await prober.run(hosts.job(legacy=(hosts.server,))))
    assert (rule.netns, rule.chain, rule.text) == (hosts.server, "INPUT", "policy drop")


async def test_a_rule_that_keeps_the_sender_from_sending_is_named(hosts: Hosts, prober: Prober) -> None:
    hosts.inside(
        hosts.client, "nft", "add table ip shop; add chain ip shop out { type filter hook output priority 0; }"
    )
    hosts.inside(hosts.client, "nft", "add rule ip shop out tcp dport 80 drop")
    report = await prober.run(hosts.job())
    assert (report.sent, report.refused) == (0, "EPERM: operation not permitted")
    assert dropping(report).text == "tcp dport 80 drop"
    hosts.inside(hosts.client, "iptables-legacy", "-A", "OUTPUT", "-p", "udp", "-j", "DROP")
    report = await prober.run(hosts.job(Kind.UDP, legacy=(hosts.client,)))
    assert (dropping(report).flavour, dropping(report).chain) == ("iptables-legacy", "OUTPUT")


REASONS = {
    "no_socket": ("10.0.1.2", 81, "server", ()),
    "ip_inaddrerrors": ("10.0.1.2", 80, "", ("sysctl -qw net.ipv4.ip_forward=0",)),
    "ip_innoroutes": ("10.0.9.1", 80, "", ()),
    "not_specified": ("10.0.9.1", 80, "", ("ip route add blackhole 10.0.9.0/24",)),
    "otherhost": ("10.0.1.2", 80, "server", ("ip neighbour replace 10.0.1.2 lladdr 02:00:00:00:00:99 dev vs",)),
    "bridge_ingress_stp_state": ("10.0.1.2", 80, "", ("bridge link set dev vc state 0",)),
    "ip_rpfilter": (
        "10.0.1.2",
        80,
        "server",
        (
            "@server sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1",
            "@server ip route del default",
        ),
    ),
    "no_tx_target": (
        "10.0.2.2",
        80,
        "",
        (
            "ip link add vx up type vxlan id 42 dstport 4789 local 10.0.1.1",
            "ip address add 10.0.2.1/24 dev vx",
            "ip neighbour add 10.0.2.2 lladdr 02:00:00:00:00:02 dev vx",
        ),
    ),
    "vxlan_vni_not_found": (
        "10.0.2.2",
        80,
        "server",
        (
            "ip link add vx up type vxlan id 42 dstport 4789 local 10.0.1.1 remote 10.0.1.2",
            "ip address add 10.0.2.1/24 dev vx",
            "ip neighbour add 10.0.2.2 lladdr 02:00:00:00:00:02 dev vx",
            "@server ip link add vx up type vxlan id 43 dstport 4789 local 10.0.1.2",
        ),
    ),
}
"""By what the kernel says: destination and port of a packet, where it is dropped, and what is done before."""


@pytest.mark.parametrize("reason", REASONS)
async def test_the_kernels_reasons_are_told(hosts: Hosts, prober: Prober, reason: str) -> None:
    to, port, where, before = REASONS[reason]
    await prober.run(hosts.job())  # so that neighbours are known
    for command in before:
        within = hosts.server if command.startswith("@server ") else ""
        words = command.removeprefix("@server ").split()
        hosts.inside(within, *words) if within else run(*words)
    report = await prober.run(hosts.job(to=to, port=port, repeat=2))
    told = [(it.reason, it.netns, it.count) for it in report.drops if not it.back]
    assert told == [(reason, hosts.server if where else "", 2)]


async def test_the_reverse_path_filter_is_told_of_packets_from_outside(hosts: Hosts, prober: Prober) -> None:
    run("sysctl", "-qw", "net.ipv4.conf.vs.rp_filter=1", "net.ipv4.conf.all.rp_filter=1")
    spoofed = Flow(ip_address("10.0.0.2"), Kind.TCP, 80, ip_address("10.0.0.77"))
    report = await prober.run(Job(spoofed, new_mark(), Origin(link="vs"), hosts.posts, ("",)))
    assert [(it.reason, it.netns, it.link, it.function) for it in report.drops] == [
        ("ip_rpfilter", "", "vs", "ip_rcv_finish_core")
    ]


async def test_a_packet_that_is_too_large_is_told(hosts: Hosts, prober: Prober) -> None:
    run("ip", "link", "set", "vs", "mtu", "1300")
    report = await prober.run(hosts.job(Kind.UDP, size=1400))
    assert dropped(report) == [("pkt_too_big", "")]


async def test_a_neighbour_that_does_not_answer_is_told(hosts: Hosts, prober: Prober) -> None:
    report = await prober.run(hosts.job(to="10.0.1.99", wait_ms=4500))
    assert ("neigh_failed", "") in dropped(report)
    assert report.reply
    assert (report.reply.what, report.reply.code) == (What.UNREACHABLE, "host unreachable")


async def test_what_others_trace_is_left_out(hosts: Hosts, prober: Prober) -> None:
    run("nft", "add table ip shop; add chain ip shop gate { type filter hook forward priority 0; }")
    run("nft", "add rule ip shop gate meta nftrace set 1")
    for port in (80, 81):
        run("nft", f"add rule ip shop gate tcp dport {port} drop")
    async with WorkerProbes().start() as other:
        reports = await asyncio.gather(*(it.run(hosts.job(port=port)) for it, port in ((prober, 80), (other, 81))))
    assert [dropping(it).text for it in reports] == ["tcp dport 80 drop", "tcp dport 81 drop"]
