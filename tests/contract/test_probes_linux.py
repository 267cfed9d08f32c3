"""Probes on the real kernel: a client behind a bridge, a router (the host), a server."""

import asyncio
import fcntl
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from uuid import uuid4

import pytest

pytest.register_assert_rewrite("linux_host")

from linux_host import run  # noqa: E402

from netplug.errors import NetplugError  # noqa: E402
from netplug.kernel.fake.kernel import FakeKernel  # noqa: E402
from netplug.kernel.linux import LinuxKernel  # noqa: E402
from netplug.kernel.probes.api import (  # noqa: E402
    Flow,
    Job,
    Kind,
    Look,
    Origin,
    Post,
    Prober,
    Report,
    Rule,
    What,
    new_mark,
)
from netplug.kernel.probes.codec import from_json, to_json  # noqa: E402
from netplug.kernel.probes.prober import WorkerProbes  # noqa: E402
from netplug.kernel.sandbox import netns  # noqa: E402

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")

SERVER = """
import socket, sys
for family, address in ((socket.AF_INET, "10.0.1.2"), (socket.AF_INET6, "2001:db8:1::2")):
    tcp = socket.create_server((address, 80), family=family)
    globals()[f"tcp{family}"] = tcp
    udp = socket.socket(family, socket.SOCK_DGRAM); udp.bind((address, 80))
    globals()[f"udp{family}"] = udp
print(flush=True)
while True:
    data, sender = globals()["udp2"].recvfrom(2048)
    globals()["udp2"].sendto(b"pong", sender)
"""


class Hosts:
    """A client with an address on a bridge of the host, and a server with one behind another link."""

    def __init__(self) -> None:
        name = uuid4().hex[:8]
        self.client, self.server = f"np-c-{name}", f"np-s-{name}"
        run("ip", "link", "set", "lo", "up")
        at_once = ("sysctl", "-qw", "net.ipv6.conf.default.dad_transmits=0")
        run(*at_once)
        for it in (self.client, self.server):
            run("ip", "netns", "add", it)
            self.inside(it, *at_once)
            run("ip", "-n", it, "link", "set", "lo", "up")
        run("ip", "link", "add", "br0", "up", "type", "bridge")
        self._cable("vc", self.client, "0")
        self._cable("vs", self.server, "1")
        run("ip", "link", "set", "vc", "master", "br0")
        for link, net in (("br0", "0"), ("vs", "1")):
            run("ip", "address", "add", f"10.0.{net}.1/24", "dev", link)
            run("ip", "address", "add", f"2001:db8:{net}::1/64", "dev", link, "nodad")
        for it, net in ((self.client, "0"), (self.server, "1")):
            run("ip", "-n", it, "route", "add", "default", "via", f"10.0.{net}.1")
            run("ip", "-n", it, "route", "add", "default", "via", f"2001:db8:{net}::1")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
        program = ["ip", "netns", "exec", self.server, sys.executable, "-c", SERVER]
        self._listening = subprocess.Popen(program, stdout=subprocess.PIPE)
        assert self._listening.stdout
        self._listening.stdout.readline()

    @staticmethod
    def _cable(link: str, sandbox: str, net: str) -> None:
        run("ip", "link", "add", link, "up", "type", "veth", "peer", "name", "eth0", "netns", sandbox)
        run("ip", "-n", sandbox, "link", "set", "eth0", "up")
        run("ip", "-n", sandbox, "address", "add", f"10.0.{net}.2/24", "dev", "eth0")
        run("ip", "-n", sandbox, "address", "add", f"2001:db8:{net}::2/64", "dev", "eth0", "nodad")

    @property
    def listening(self) -> int:
        return self._listening.pid

    @property
    def posts(self) -> tuple[Post, ...]:
        inside = Post("client", self.client, "eth0"), Post("server", self.server, "eth0")
        return (inside[0], Post("bridge", "", "br0"), Post("cable", "", "vs"), inside[1])

    def inside(self, sandbox: str, *command: str) -> str:
        return run("ip", "netns", "exec", sandbox, *command)

    def close(self) -> None:
        self._listening.kill()
        self._listening.communicate()
        for it in (self.client, self.server):
            run("ip", "netns", "del", it)

    def job(self, kind: Kind = Kind.TCP, port: int = 80, to: str = "10.0.1.2", **fields: object) -> Job:
        size = int(str(fields.pop("size", 0)))
        given = {"traces": (self.client, "", self.server), "posts": self.posts, "origin": Origin(self.client)}
        return Job(Flow(ip_address(to), kind, port, size=size), new_mark(), **(given | fields))  # type: ignore[arg-type]

    @staticmethod
    def links() -> list[str]:
        return [line.split(":")[1] for line in run("ip", "-o", "link").splitlines()]

    @staticmethod
    def tables() -> str:
        return run("nft", "list", "tables")


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with netns.temporary_netns():
        found = Hosts()
        yield found
        found.close()


@pytest.fixture
async def prober(hosts: Hosts) -> AsyncIterator[Prober]:
    async with WorkerProbes().start() as found:
        yield found
    assert "np-probe" not in hosts.tables()


async def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not await asyncio.to_thread(done):
        assert time.monotonic() < deadline


def seen(report: Report, what: What, *, back: bool = False) -> list[str]:
    return [it.post for it in report.sightings if it.what is what and it.back is back]


def dropping(report: Report) -> Rule:
    found = [it for it in report.rules if it.drops]
    assert len(found) == 1, report
    return found[0]


@pytest.mark.parametrize(
    ("kind", "there", "answer"),
    [
        (Kind.TCP, What.SYN, What.SYN_ACK),
        (Kind.UDP, What.UDP, What.UDP),
        (Kind.ICMP, What.ECHO_REQUEST, What.ECHO_REPLY),
    ],
)
@pytest.mark.parametrize("to", ["10.0.1.2", "2001:db8:1::2"])
async def test_packets_and_answers_are_seen_at_each_post(
    hosts: Hosts, prober: Prober, kind: Kind, there: What, answer: What, to: str
) -> None:
    # The host asks for its IPv6 neighbours as soon as its own addresses are checked (DAD).
    report = await prober.run(hosts.job(kind, to=to, wait_ms=3000))
    assert report.sent == 1, report
    assert not report.refused
    assert set(seen(report, there)) == {"client", "bridge", "cable", "server"}
    if kind is Kind.UDP and ":" in to:
        return  # nothing answers there
    assert set(seen(report, answer, back=True)) == {"client", "bridge", "cable", "server"}
    assert report.reply
    assert (report.reply.what, report.reply.source) == (answer, ip_address(to))
    assert not [it for it in report.rules if it.drops]
    assert not report.lacks


async def test_a_port_that_nothing_listens_on_answers_no(hosts: Hosts, prober: Prober) -> None:
    report = await prober.run(hosts.job(port=81))
    assert report.reply
    assert report.reply.what is What.RST
    report = await prober.run(hosts.job(Kind.UDP, port=81))
    assert report.reply
    assert (report.reply.what, report.reply.code) == (What.UNREACHABLE, "port unreachable")


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


async def test_nat_does_not_hide_a_packet(hosts: Hosts, prober: Prober) -> None:
    run("nft", "add table ip shop; add chain ip shop to { type nat hook prerouting priority -100; }")
    run("nft", "add chain ip shop from { type nat hook postrouting priority 100; }")
    run("nft", "add rule ip shop to tcp dport 8080 dnat to 10.0.1.2:80; add rule ip shop from oifname vs masquerade")
    report = await prober.run(hosts.job(port=8080, to="10.0.0.1"))
    last = [it for it in report.sightings if it.what is What.SYN][-1]
    assert (str(last.source), str(last.destination), last.port) == ("10.0.1.1", "10.0.1.2", 80)
    assert report.reply
    assert (report.reply.what, str(report.reply.source)) == (What.SYN_ACK, "10.0.0.1")


async def test_a_packet_is_seen_inside_vxlan(hosts: Hosts, prober: Prober) -> None:
    """The server's cable is the underlay of a tunnel between it and the host."""
    link = ("type", "vxlan", "id", "42", "dstport", "4789")
    run("ip", "link", "add", "vx", "up", *link, "local", "10.0.1.1", "remote", "10.0.1.2")
    run("ip", "address", "add", "10.0.2.1/24", "dev", "vx")
    run("ip", "-n", hosts.server, "link", "add", "vx", "up", *link, "local", "10.0.1.2", "remote", "10.0.1.1")
    run("ip", "-n", hosts.server, "address", "add", "10.0.2.2/24", "dev", "vx")
    report = await prober.run(hosts.job(port=81, to="10.0.2.2"))
    syn = [it for it in report.sightings if it.what is What.SYN and it.post == "cable"]
    assert [(it.vni, str(it.vtep_source), str(it.vtep_destination), it.incoming) for it in syn] == [
        (42, "10.0.1.1", "10.0.1.2", False)
    ]
    assert {it.post for it in report.sightings if it.vni and it.what is What.ARP_REQUEST} == {"cable", "server"}
    run("nft", "add table ip shop; add chain ip shop out { type filter hook output priority 0; }")
    run("nft", "add rule ip shop out udp dport 4789 drop")
    assert dropping(await prober.run(hosts.job(port=81, to="10.0.2.2"))).text == "udp dport 4789 drop"


async def test_a_packet_that_is_too_large_tells_the_mtu(hosts: Hosts, prober: Prober) -> None:
    run("ip", "link", "set", "vs", "mtu", "1400")
    report = await prober.run(hosts.job(Kind.ICMP, size=1400))
    assert report.reply
    assert report.reply.what is What.ECHO_REPLY
    report = await prober.run(hosts.job(Kind.UDP, size=1401))
    assert report.reply
    assert (report.reply.what, report.reply.mtu) == (What.TOO_BIG, 1400)
    report = await prober.run(hosts.job(Kind.ICMP, size=1501))
    assert report.sent == 0
    assert report.refused.startswith("EMSGSIZE: ")


async def test_a_destination_without_route_is_refused(hosts: Hosts, prober: Prober) -> None:
    run("ip", "-n", hosts.client, "route", "del", "default")
    report = await prober.run(hosts.job())
    assert (report.sent, report.refused) == (0, "ENETUNREACH: network is unreachable")


async def test_another_host_watches(hosts: Hosts, prober: Prober) -> None:
    job = hosts.job()
    far = Job(job.flow, job.mark, posts=(Post("server", hosts.server, "eth0"),), traces=(hosts.server,))
    async with WorkerProbes().start() as other, other.watch(far) as watch:
        await prober.run(Job(job.flow, job.mark, job.origin))
        report = await watch.report()
    assert seen(report, What.SYN) == ["server"]
    assert seen(report, What.SYN_ACK, back=True) == ["server"]


async def test_a_segment_tells_who_has_an_address(hosts: Hosts, prober: Prober) -> None:
    for address in ("10.0.1.2", "2001:db8:1::2"):
        assert len((await prober.who_has("", "vs", ip_address(address))).macs) == 1
    assert not (await prober.who_has("", "vs", ip_address("10.0.1.99"), 100)).macs
    with pytest.raises(NetplugError, match="no such device"):
        await prober.who_has("", "vx", ip_address("10.0.1.2"))


async def test_a_missing_namespace_or_link_is_told(hosts: Hosts, prober: Prober) -> None:
    with pytest.raises(NetplugError, match="namespace /run/netns/np-none cannot be opened"):
        await prober.run(hosts.job(origin=Origin("np-none")))
    with pytest.raises(NetplugError, match="link 'none' cannot be watched: no such device"):
        await prober.run(hosts.job(posts=(Post("none", "", "none"),)))


@pytest.mark.parametrize("link", ["", "vs"])
async def test_nothing_stays_when_the_process_is_killed(hosts: Hosts, link: str) -> None:
    before = hosts.tables(), hosts.links()
    flow = Flow(ip_address("10.0.0.99"), Kind.UDP, 9, ip_address("10.0.1.9") if link else None)
    origin = Origin("" if link else hosts.server, link)
    async with WorkerProbes().start() as prober:
        job = Job(flow, new_mark(), origin, hosts.posts, ("", hosts.server), wait_ms=5000)
        work = asyncio.create_task(prober.run(job))
        await until(lambda: "np-probe" in hosts.tables() and (not link or hosts.links() != before[1]))
        prober._process.kill()
        with pytest.raises(NetplugError, match="ended"):
            await work
    assert hosts.tables() == before[0]
    assert "np-probe" not in hosts.inside(hosts.server, "nft", "list", "tables")
    await until(lambda: hosts.links() == before[1])


def test_jobs_and_reports_travel_as_json() -> None:
    flow = Flow(ip_address("10.0.1.2"), Kind.DNS, 53, name="web", source=ip_address("10.0.0.2"))
    job = Job(flow, 7, Origin("c"), (Post("a", "c", "eth0"),), ("c", ""), repeat=3, also=(ip_address("::1"),))
    assert from_json(Job, to_json(job)) == job
    with pytest.raises(ValueError, match="no Job"):
        from_json(Job, {"mark": 7})


def test_a_kernel_in_memory_sends_nothing() -> None:
    with pytest.raises(NetplugError, match="sends no packets"):
        FakeKernel().probes.start()


async def test_a_namespace_is_read(hosts: Hosts, prober: Prober) -> None:
    wanted = Look(
        hosts.server,
        ((ip_address("10.0.0.2"), None), (ip_address("10.0.0.2"), ip_address("10.0.1.2"))),
        ("net/ipv4/ip_forward", "net/none"),
        listeners=True,
    )
    found = await prober.look(wanted)
    assert not found.lacks
    link = next(it for it in found.links if it.name == "eth0")
    assert (link.up, link.carrier, link.mtu, link.kind, link.state) == (True, True, 1500, "veth", "up")
    assert link.peer
    assert not link.peer_here
    assert "10.0.1.2/24" in map(str, link.addresses)
    assert {(it.link, str(it.gateway), str(it.preferred)) for it in found.lookups} == {("eth0", "10.0.1.1", "10.0.1.2")}
    assert "0.0.0.0/0" in {str(it.destination) for it in found.routes}
    assert found.sysctls == (("net/ipv4/ip_forward", "0"), ("net/none", ""))
    tcp = next(it for it in found.listeners if (it.proto, str(it.address)) == ("tcp", "10.0.1.2"))
    assert (tcp.port, tcp.pid, tcp.frozen) == (80, hosts.listening, False)
    assert found.processes == 1


async def test_a_way_that_is_missing_is_told(hosts: Hosts, prober: Prober) -> None:
    run("ip", "-n", hosts.client, "route", "del", "default")
    run("ip", "-n", hosts.client, "route", "add", "blackhole", "10.0.9.0/24")
    wanted = tuple((ip_address(it), None) for it in ("10.0.1.2", "10.0.9.1"))
    found = (await prober.look(Look(hosts.client, wanted))).lookups
    assert [it.error for it in found] == ["network is unreachable", "invalid argument"]


async def test_a_stopped_process_is_told(hosts: Hosts, prober: Prober) -> None:
    os.kill(hosts.listening, signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while not (found := await prober.look(Look(hosts.server, listeners=True))).frozen:
        assert time.monotonic() < deadline
    assert all(it.frozen for it in found.listeners)


async def test_neighbours_and_entries_of_the_bridge_are_read(hosts: Hosts, prober: Prober) -> None:
    await prober.run(hosts.job())
    found = await prober.look(Look(forwarding=True))
    inside = await prober.look(Look(hosts.client))
    mac = next(it.mac for it in inside.links if it.name == "eth0")
    assert {(it.mac, it.link) for it in found.neighbours if str(it.address) == "10.0.0.2"} == {(mac, "br0")}
    assert (mac, "vc", True) in {(it.mac, it.link, it.bridge) for it in found.forwarding}
    port = next(it for it in found.links if it.name == "vc")
    assert (port.master, port.hairpin) == ("br0", False)


@pytest.fixture
def contained(tmp_path: Path) -> Iterator[int]:
    """A process with a root of its own."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "resolv.conf").write_text("nameserver 10.0.0.1\nsearch a b\noptions ndots:2\n")
    code = f"import os; os.chroot({str(tmp_path)!r}); print(flush=True); input()"
    with subprocess.Popen((sys.executable, "-c", code), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process.pid
        process.kill()


async def test_name_servers_are_those_of_a_process(hosts: Hosts, prober: Prober, contained: int) -> None:
    found = await prober.look(Look(hosts.server, resolv_conf=True, pid=contained))
    assert ([str(it) for it in found.nameservers], found.search) == (["10.0.0.1"], ("a", "b"))
    assert found.resolv_options == ("ndots:2",)
    assert (await prober.look(Look(hosts.server, resolv_conf=True))).nameservers != found.nameservers


@pytest.mark.parametrize(
    ("source", "to"), [("203.0.113.9", "10.0.0.2"), ("2001:db8:9::9", "2001:db8::2")], ids=["IPv4", "IPv6"]
)
async def test_packets_come_from_outside(hosts: Hosts, prober: Prober, source: str, to: str) -> None:
    """Through the cable, to the client behind the bridge, as if the server's side had sent them."""
    run("ip", "route", "add", "default", "via", "10.0.1.2")
    run("ip", "route", "add", "default", "via", "2001:db8:1::2")
    links = hosts.links()
    flow = Flow(ip_address(to), Kind.TCP, 81, ip_address(source))
    job = Job(flow, new_mark(), Origin(link="vs"), hosts.posts, ("", hosts.client), wait_ms=3000)
    report = await prober.run(job)
    assert (report.sent, report.refused) == (1, "")
    syn = [(it.post, it.incoming) for it in report.sightings if it.what is What.SYN]
    assert syn == [("cable", True), ("bridge", False), ("client", True)]
    assert report.reply
    assert (report.reply.what, str(report.reply.source)) == (What.RST, to)
    await until(lambda: hosts.links() == links)


async def test_a_rule_for_packets_from_outside_is_named(hosts: Hosts, prober: Prober) -> None:
    run("nft", "add table inet shop; add chain inet shop gate { type filter hook forward priority 0; }")
    run("nft", "add rule inet shop gate iifname vs ip daddr 10.0.0.2 drop")
    flow = Flow(ip_address("10.0.0.2"), Kind.UDP, 80, ip_address("10.0.1.9"))
    report = await prober.run(Job(flow, new_mark(), Origin(link="vs"), hosts.posts, ("",)))
    assert dropping(report).text == 'iifname "vs" ip daddr 10.0.0.2 drop'


def dropped(report: Report) -> list[tuple[str, str]]:
    return [(it.reason, it.netns) for it in report.drops if not it.back]


async def test_the_kernels_reasons_are_told(hosts: Hosts, prober: Prober) -> None:
    """No socket; spoofed by what `rp_filter` says; forwarding off; too big; connection tracking full."""
    assert dropped(await prober.run(hosts.job(port=81))) == [("no_socket", hosts.server)]
    report = await prober.run(hosts.job(Kind.UDP, size=1401, to="10.0.1.99", repeat=1))
    assert dropped(report) == []

    run("sysctl", "-qw", "net.ipv4.conf.vs.rp_filter=1", "net.ipv4.conf.all.rp_filter=1")
    spoofed = Flow(ip_address("10.0.0.2"), Kind.TCP, 80, ip_address("10.0.0.77"))
    report = await prober.run(Job(spoofed, new_mark(), Origin(link="vs"), hosts.posts, ("",)))
    assert [(it.reason, it.netns, it.link) for it in report.drops] == [("ip_rpfilter", "", "vs")]

    run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    report = await prober.run(hosts.job(repeat=2))
    [drop] = [it for it in report.drops if not it.back]
    assert (drop.netns, drop.link, drop.count) == ("", "br0", 2)
    assert drop.function in {"ip_error", "ip_route_input_slow", "ip_rcv_finish_core"}, drop
    run("sysctl", "-qw", "net.ipv4.ip_forward=1")

    run("ip", "link", "set", "vs", "mtu", "1300")
    report = await prober.run(hosts.job(Kind.UDP, size=1400))
    assert dropped(report) == [("pkt_too_big", "")]


async def test_a_neighbour_that_does_not_answer_is_told(hosts: Hosts, prober: Prober) -> None:
    report = await prober.run(hosts.job(to="10.0.1.99", wait_ms=4500))
    assert ("neigh_failed", "") in dropped(report)
    assert report.reply
    assert (report.reply.what, report.reply.code) == (What.UNREACHABLE, "host unreachable")


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


@pytest.fixture
def plain(hosts: Hosts) -> Iterator[str]:
    """A link without Ethernet, by which 10.0.3.0/24 is reached."""
    with open("/dev/net/tun", "r+b", buffering=0) as tun:  # noqa: PTH123 - a device
        fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"plain", 0x1001))
        run("ip", "link", "set", "plain", "up")
        run("ip", "address", "add", "10.0.3.1/24", "dev", "plain")
        yield "plain"


async def test_a_link_without_ethernet_is_watched(hosts: Hosts, prober: Prober, plain: str) -> None:
    posts = (Post("plain", "", plain),)
    for kind in (Kind.TCP, Kind.UDP, Kind.ICMP):
        report = await prober.run(hosts.job(kind, to="10.0.3.2", posts=posts, wait_ms=50))
        assert [(it.post, it.incoming, str(it.destination)) for it in report.sightings] == [
            ("plain", False, "10.0.3.2")
        ]


async def test_tunnels_with_a_port_of_their_own_are_looked_into(hosts: Hosts, prober: Prober) -> None:
    link = ("type", "vxlan", "id", "42", "dstport", "4242", "local", "10.0.1.1", "remote", "10.0.1.2")
    run("ip", "link", "add", "vx", "up", *link)
    run("ip", "address", "add", "10.0.2.1/24", "dev", "vx")
    run("ip", "neighbour", "add", "10.0.2.2", "lladdr", "02:00:00:00:00:02", "dev", "vx")
    report = await prober.run(hosts.job(to="10.0.2.2", vxlan_ports=(4242,)))
    assert [(it.vni, it.port) for it in report.sightings if it.post == "cable" and it.what is What.SYN] == [(42, 80)]


NAME_SERVER = """
import socket
from dnslib import DNSRecord, RCODE, RR
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("10.0.1.2", 53))
print(flush=True)
while True:
    data, sender = sock.recvfrom(512)
    question = DNSRecord.parse(data)
    answer = question.reply()
    if str(question.q.qname) == "web.":
        answer.add_answer(*RR.fromZone("web. 60 A 10.9.9.9"))
    else:
        answer.header.rcode = RCODE.NXDOMAIN
    sock.sendto(answer.pack(), sender)
"""


@pytest.fixture
def name_server(hosts: Hosts) -> Iterator[None]:
    command = ("ip", "netns", "exec", hosts.server, sys.executable, "-c", NAME_SERVER)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield
        process.kill()


async def test_a_name_server_is_asked(hosts: Hosts, prober: Prober, name_server: None) -> None:
    for name, text in (("web", "10.9.9.9"), ("none", "nxdomain")):
        flow = Flow(ip_address("10.0.1.2"), Kind.DNS, 53, name=name)
        report = await prober.run(Job(flow, new_mark(), Origin(hosts.client), hosts.posts, ("",)))
        assert report.reply
        assert (report.reply.what, report.reply.text) == (What.UDP, text)
        assert set(seen(report, What.UDP)) == set(seen(report, What.UDP, back=True))
        assert len(seen(report, What.UDP)) == 4
    flow = Flow(ip_address("10.0.1.1"), Kind.DNS, 53, name="web")
    report = await prober.run(Job(flow, new_mark(), Origin(hosts.client)))
    assert report.reply
    assert report.reply.code == "port unreachable"


async def test_the_daemon_takes_no_notice_of_a_trace(hosts: Hosts) -> None:
    async with await LinuxKernel.open() as kernel:
        commits = kernel.changes.commits()
        async with kernel.probes.start() as prober:
            await prober.run(hosts.job())
        assert not commits.is_set()
        run("nft", "add", "table", "ip", "shop")
        async with asyncio.timeout(10):
            await commits.wait()
