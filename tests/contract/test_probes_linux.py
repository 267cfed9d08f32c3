"""Probes on the real kernel: what is sent, seen and answered."""

import asyncio
import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from linux_host import run
from probed_hosts import Hosts, dropping, seen, until

from netplug.errors import NetplugError
from netplug.kernel.fake.kernel import FakeKernel
from netplug.kernel.linux import LinuxKernel
from netplug.kernel.probes.api import Flow, Job, Kind, Origin, Post, Prober, What, new_mark
from netplug.kernel.probes.codec import from_json, to_json
from netplug.kernel.probes.prober import WorkerProbes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")


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


@pytest.mark.parametrize("link", [False, True])
async def test_a_datagram_for_the_port_of_tunnels_is_seen(hosts: Hosts, prober: Prober, *, link: bool) -> None:
    """Whether UDP 4789 reaches a VTEP."""
    if link:
        run("ip", "-n", hosts.server, "link", "add", "vx", "up", "type", "vxlan", "id", "42", "dstport", "4789")
    report = await prober.run(hosts.job(Kind.UDP, port=4789))
    assert set(seen(report, What.UDP)) == {"client", "bridge", "cable", "server"}
    assert bool(report.reply) is not link


async def test_jobs_of_one_mark_follow_each_other(hosts: Hosts, prober: Prober) -> None:
    job = hosts.job(Kind.UDP)
    for _ in range(5):
        report = await prober.run(job)
        assert report.reply
        assert not report.lacks


def runs(process: int) -> bool:
    return Path(f"/proc/{process}/comm").exists()


DAEMON = """
import asyncio
from netplug.kernel.probes.prober import WorkerProbes

async def main():
    async with WorkerProbes().start() as prober:
        print(prober._process.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_the_process_ends_with_the_daemon(hosts: Hosts) -> None:
    daemon = await asyncio.create_subprocess_exec(sys.executable, "-c", DAEMON, stdout=asyncio.subprocess.PIPE)
    assert daemon.stdout
    process = int(await daemon.stdout.readline())
    assert runs(process)
    daemon.kill()
    await daemon.wait()
    await until(lambda: not runs(process))
