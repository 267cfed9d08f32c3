"""`netplug capture` and `netplug top` with real containers, which have no tools of their own."""

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from harness import (
    Dockerd,
    Host,
    Netplug,
    Process,
    Wire,
    attached,
    cli_network,
    container,
    docker_network,
    namespace,
    resolve,
    wait_until,
)
from harness.cluster import Cluster, cluster, needs_etcd
from harness.netplugd import COMMAND, RUN_DIR
from scapy.layers.inet import IP
from scapy.utils import PcapNgReader

HTTPD = ("httpd", "-f", "-p", "80", "-h", "/etc")
END_S = 30
_CAPTURE = re.compile(r"/netplug capture |capture_worker")
needs_tshark = pytest.mark.skipif(not (which("tshark") and which("capinfos")), reason="needs tshark (make setup)")


class Capture:
    """A running `netplug capture`. `file`: what it writes, if it does."""

    def __init__(self, netplug: Netplug, *args: str, to_file: bool = False) -> None:
        host = netplug.host
        self.log = host.dir / "capture.log"
        self.log.unlink(missing_ok=True)
        self.file = host.dir / "capture.pcapng"
        self.file.unlink(missing_ok=True)
        write = ("-w", str(self.file)) if to_file else ()
        command = [str(COMMAND), "capture", *write, *args]
        self.process: Process = host.popen(command, log=self.log.name, env={"NETPLUG_RUN_DIR": RUN_DIR})
        wait_until(self._begun, END_S, "begin of the capture")

    def _begun(self) -> bool:
        assert self.process.alive, self.text
        return "netplug: capturing " in self.text

    @property
    def text(self) -> str:
        return self.log.read_text()

    @property
    def lines(self) -> list[str]:
        return [line for line in self.text.splitlines() if not line.startswith("netplug: ")]

    def shows(self, pattern: str) -> None:
        wait_until(lambda: re.search(pattern, self.text), END_S, f"{pattern} in the capture")

    def end(self) -> str:
        """Press Ctrl-C; return the summary."""
        self.process.signal(signal.SIGINT)
        assert self.process.wait(END_S) == 0, self.text
        return next(line for line in self.text.splitlines() if " captured, " in line)


@contextmanager
def capturing(netplug: Netplug, *args: str, to_file: bool = False) -> Iterator[Capture]:
    it = Capture(netplug, *args, to_file=to_file)
    try:
        yield it
    finally:
        it.process.kill()


@contextmanager
def station(netplug: Netplug, *names: str) -> Iterator[tuple[Any, ...]]:
    """A network, and a namespace in it for each name."""
    with cli_network(netplug) as net, ExitStack() as stack:
        found = [stack.enter_context(attached(netplug, net, "--name", name))[0] for name in names]
        yield net, *found


def captures(host: Host) -> list[str]:
    """The processes of captures on a host."""
    return [line for line in host.output("ps", "-eo", "args").splitlines() if _CAPTURE.search(line)]


def test_http_of_a_container_is_shown_as_lines(dockerd: Dockerd, netplug: Netplug) -> None:
    with (
        docker_network(dockerd) as net,
        container(dockerd, "--network", net, "--name", "web", command=HTTPD) as web,
        container(dockerd, "--network", net, "--name", "client") as client,
        capturing(netplug, "web", "tcp", "port", "80") as capture,
    ):
        address = web.ip(net)
        client.exec("ping", "-c", "1", address)
        client.exec("wget", "-qO-", f"http://{address}/hostname")
        capture.shows("out .* FIN")
        assert re.fullmatch(r"netplug: \d+ packets captured, 0 dropped by the kernel", capture.end())
        first, *rest = capture.lines
        assert re.fullmatch(
            rf"\d\d:\d\d:\d\d\.\d{{6}} in  {client.ip(net)}:\d+ → {address}:80  TCP 74  SYN seq .*", first
        )
        assert re.search(rf" out {address}:80 → {client.ip(net)}:\d+  TCP 74  SYN\+ACK ", rest[0])
        assert any(" in " in line and line.endswith(" GET /hostname HTTP/1.1") for line in rest)
        assert any(" out " in line and line.endswith(" HTTP/1.1 200 OK") for line in rest)
        assert not any("ICMP" in line or "ARP" in line for line in capture.lines)


def test_dns_of_docker_containers_is_one_line_a_question(dockerd: Dockerd, netplug: Netplug) -> None:
    with (
        docker_network(dockerd) as net,
        container(dockerd, "--network", net, "--name", "web") as web,
        container(dockerd, "--network", net, "--name", "client") as client,
        capturing(netplug, "client", "--dns") as capture,
    ):
        client.exec("nslookup", f"web.{net}.netplug.internal")
        capture.shows(rf"A web\.{net}\.netplug\.internal: {web.ip(net)}  \d+\.\d ms, from 127\.0\.0\.11:53")
        capture.end()
        assert len([line for line in capture.lines if f" A web.{net}.netplug.internal: " in line]) == 1


def test_a_file_is_read_by_others(netplug: Netplug) -> None:
    with station(netplug, "web", "client") as (_, one, other):
        with capturing(netplug, "web", "-c", "4", "icmp", "or", "port", "80", to_file=True) as capture:
            other.exec("busybox", "ping", "-c", "2", one.addresses[0])
            assert capture.process.wait(END_S) == 0, capture.text
        with PcapNgReader(str(capture.file)) as reader:
            packets = list(reader)
        client, web = other.addresses[0], one.addresses[0]
        assert [(it[IP].src, it.direction) for it in packets] == [(client, 1), (web, 2), (client, 1), (web, 2)]
        times = [float(it.time) for it in packets]
        assert times == sorted(times)
        assert capture.lines == []


@needs_tshark
def test_wireshark_opens_a_file_from_a_pipe(netplug: Netplug) -> None:
    with station(netplug, "web", "client") as (net, one, other):
        file = netplug.host.dir / "pipe.pcapng"
        command = f"exec {COMMAND} capture {net}/web -w - -s 60 >{file}"
        process = netplug.host.popen(["sh", "-c", command], log="capture.log", env={"NETPLUG_RUN_DIR": RUN_DIR})
        wait_until(lambda: file.exists() and file.stat().st_size > 0, END_S, "begin of the file")
        other.exec("busybox", "ping", "-c", "1", "-s", "500", one.addresses[0])
        wait_until(lambda: file.stat().st_size > 600, END_S, "packets in the file")
        process.signal(signal.SIGINT)
        assert process.wait(END_S) == 0
        wanted = ("interface_name", "packet_flags_direction", "len", "cap_len")
        fields = [word for name in wanted for word in ("-e", f"frame.{name}")]
        shown = output("tshark", "-r", str(file), "-Y", "icmp", "-T", "fields", *fields).splitlines()
        name = f"{netplug.host.name}/web/eth0"
        assert [line.split() for line in shown] == [[name, f"0x0000000{way}", "542", "60"] for way in (1, 2)]
        told = output("capinfos", str(file))
        for line in (
            "pcapng",
            "Time resolution = 0x09",
            f"Name = {name}",
            f"Description = web of network {net}, eth0 ",
        ):
            assert line in told


def output(*argv: str) -> str:
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip()


def test_a_macvlan_is_read_and_counted_in_its_sandbox(netplug: Netplug, wire: Wire) -> None:
    flags = ("--mode", "macvlan", "--subnet", "10.91.0.0/24", "-o", f"parent={wire.left_link}")
    with cli_network(netplug, *flags) as net, attached(netplug, net, "--name", "lan") as (one, _):
        with capturing(netplug, "lan", "arp") as capture:
            before = top(netplug, net)["lan"]["sent"]["packets"]
            assert not one.pings("10.91.0.99")
            capture.shows(r" out .* ARP 42  who has 10\.91\.0\.99\? tell ")
            capture.end()
        assert top(netplug, net)["lan"]["sent"]["packets"] > before


def test_a_file_is_whole_when_the_capture_is_terminated(netplug: Netplug) -> None:
    with station(netplug, "web", "other") as (_, one, other):
        with capturing(netplug, "web", "icmp", to_file=True) as capture:
            assert other.pings(one.addresses[0])
            assert capture.process.stop(END_S) == 0
        assert len(packets_of(capture)) == 6
        assert "6 packets captured, 0 dropped by the kernel" in capture.text


def test_both_ends_of_one_host_are_in_one_file(netplug: Netplug) -> None:
    with station(netplug, "web", "client") as (_, one, other):
        with capturing(netplug, "web", "icmp", "and", "host", "client", "--both-ends") as capture:
            other.exec("busybox", "ping", "-c", "1", one.addresses[0])
            capture.shows(r"web/eth0  out")
            capture.shows(r"client/eth0  in")
            capture.end()
        ways = {tuple(line.split()[1:3]) for line in capture.lines}
        host = netplug.host.name
        assert ways == {(f"{host}/{name}/eth0", way) for name in ("web", "client") for way in ("in", "out")}


def test_without_its_sandbox_the_host_side_is_read(netplug: Netplug) -> None:
    with cli_network(netplug) as net, namespace(netplug.host) as one, attached(netplug, net) as (other, _):
        said = one.attach(netplug, net, "--name", "web")
        stays = netplug.host.popen(["nsenter", f"--net=/run/netns/{one.name}", "sleep", "100"], log="sleep.log")
        wait_until(lambda: Path(f"/proc/{stays.pid}/comm").read_text() == "sleep\n", what="it is in there")
        one.remove()  # its path; the process keeps the namespace
        with capturing(netplug, "web", "icmp") as capture:
            assert "its sandbox cannot be entered: " in capture.text
            other.exec("busybox", "ping", "-c", "1", one.addresses[0])
            capture.shows(" out ")
            capture.end()
            assert re.search(
                rf" in  {other.addresses[0]} → {one.addresses[0]}  ICMP 98  echo request", capture.lines[0]
            )
        netplug.cli("detach", net, "--netns", said["sandbox"])
        stays.kill()


def test_a_capture_ends_with_its_link_and_with_its_reader(netplug: Netplug) -> None:
    with cli_network(netplug) as net, namespace(netplug.host) as one:
        one.attach(netplug, net, "--name", "web")
        with capturing(netplug, "web") as capture:
            one.detach(netplug, net)
            assert capture.process.wait(END_S) == 0
            assert "eth0: link eth0 is gone or down" in capture.text
        one.attach(netplug, net, "--name", "web")
        command = f"{COMMAND} capture web --seconds 20 | head -n 1"
        process = netplug.host.popen(["sh", "-c", command], log="capture.log", env={"NETPLUG_RUN_DIR": RUN_DIR})

        def ended() -> bool:
            one.pings(one_gateway(netplug, net))
            return not process.alive

        wait_until(ended, END_S, "end of the capture")
        wait_until(lambda: captures(netplug.host) == [], END_S, "end of all its processes")
        assert "Traceback" not in capture.text
        one.detach(netplug, net)


def one_gateway(netplug: Netplug, net: str) -> str:
    return str(netplug.json("network", "inspect", net)["subnets"][0]["gateway"])


def test_wrong_filters_and_endpoints_are_named(netplug: Netplug) -> None:
    with station(netplug, "web"):
        for args, code, words in (
            (("web", "port", "nonsense80"), 2, "filter 'port nonsense80': "),
            (("nobody",), 1, "there is no endpoint 'nobody'"),
            (("web", "-w", "/nowhere/file"), 1, "/nowhere/file cannot be written"),
        ):
            done = netplug.host.run([str(COMMAND), "capture", *args], check=False, env={"NETPLUG_RUN_DIR": RUN_DIR})
            assert (done.returncode, words in done.stderr) == (code, True), done.stderr
            assert done.stderr.count("\n") == 1


def test_top_shows_traffic_where_it_is(netplug: Netplug) -> None:
    with station(netplug, "web", "client", "idle") as (net, one, other, _):
        before = top(netplug, net)
        other.exec("busybox", "ping", "-c", "50", "-i", "0.01", "-s", "1400", one.addresses[0])
        other.exec("busybox", "ping", "-c", "50", "-i", "0.01", "-s", "1400", one.addresses[0])
        after = top(netplug, net)
        gained = {
            (name, way): after[name][way]["packets"] - before[name][way]["packets"]
            for name in after
            for way in ("received", "sent")
        }
        assert all(gained[name, way] >= 100 for name in ("web", "client") for way in ("received", "sent"))
        assert gained["idle", "sent"] < 20
        assert after["web"]["received"]["bytes"] - before["web"]["received"]["bytes"] >= 100 * 1442
        stays = netplug.host.popen(
            [
                "nsenter",
                f"--net=/run/netns/{other.name}",
                "busybox",
                "ping",
                "-i",
                "0.01",
                "-s",
                "1400",
                one.addresses[0],
            ],
            log="ping.log",
        )
        wait_until(lambda: top(netplug, net)["web"]["received"]["bytes_per_s"] > 10_000, END_S, "traffic now")
        shown = netplug.cli("top", "--once", "-i", "0.5", "--network", net).splitlines()
        assert {line.split()[1] for line in shown[1:3]} == {"web", "client"}
        stays.kill()


def test_top_counts_dns_queries_where_they_are_asked(dockerd: Dockerd, netplug: Netplug) -> None:
    def asked(net: str) -> dict[str, float]:
        return {name: it["dns"]["queries"] for name, it in top(netplug, net).items()}

    with (
        docker_network(dockerd) as net,
        container(dockerd, "--network", net, "--name", "web"),
        container(dockerd, "--network", net, "--name", "client") as client,
    ):
        before = asked(net)
        client.exec("nslookup", f"web.{net}.netplug.internal")
        after = asked(net)
        assert after["client"] > before["client"]
        assert after["web"] == before["web"]
    with station(netplug, "web", "client") as (net, one, other):
        gateway = one_gateway(netplug, net)
        for tcp in (False, False, True):
            resolve(other, gateway, "web", tcp=tcp)
        assert asked(net) == {"web": 0, "client": 3}
        resolve(one, gateway, "client")
        assert asked(net) == {"web": 1, "client": 3}
        heading, *rows = netplug.cli("top", "--once", "-i", "0.3", "--network", net, "--sort", "name").splitlines()[:3]
        assert "  DNS/S  " in heading
        assert [row.split()[1] for row in rows] == ["client", "web"]


def top(netplug: Netplug, net: str) -> dict[str, dict[str, dict[str, float]]]:
    return {it["name"]: it for it in netplug.json("top", "-i", "0.3", "--network", net)["endpoints"]}


def test_drops_are_shown_with_their_rules(netplug: Netplug) -> None:
    foreign = "table inet foreign { chain input { type filter hook input priority 5; ip daddr %s icmp type 8 drop; }; }"
    inside = "table inet own { chain output { type filter hook output priority 0; tcp dport 98-99 counter drop; }; }"
    with station(netplug, "web", "other") as (net, one, other):
        gateway = one_gateway(netplug, net)
        netplug.host.run(["nft", foreign % gateway])
        one.exec("nft", inside)
        one.exec("ip", "addr", "add", "10.66.0.1/32", "dev", "eth0")
        with capturing(netplug, "web", "--drops", "not", "port", "98") as capture:
            assert one.pings(other.addresses[0])
            one.exec("sh", "-c", f"busybox nc -w 1 {gateway} 98 </dev/null || true")
            assert not other.pings(gateway)
            one.exec("sh", "-c", f"busybox ping -c 1 -W 1 {gateway} || true")
            capture.shows(
                rf" out {one.addresses[0]} → {gateway}  ICMP 98  echo request .*"
                rf"dropped by nft inet foreign input, on the host: ip daddr {gateway} icmp type echo-request drop\n"
            )
            one.exec("sh", "-c", f"busybox nc -w 1 {gateway} 99 </dev/null || true")
            capture.shows(
                rf" out .* → {gateway}:99  TCP 74  SYN .* dropped by nft inet own output, in its sandbox: .*drop\n"
            )
            one.exec("sh", "-c", f"busybox ping -c 1 -W 1 -I 10.66.0.1 {other.addresses[0]} || true")
            capture.shows(
                r" out 10\.66\.0\.1 → .* dropped by nft bridge netplug other_ipv4, on the host: drop \(anti-spoofing: "
            )
            capture.end()
        assert f"{gateway}:98 " not in capture.text
        assert other.addresses[0] not in "".join(line for line in capture.lines if "foreign" in line)
        assert "np-probe" not in netplug.host.output("nft", "list", "tables")
        netplug.host.run(["nft", "delete table inet foreign"])


def test_what_iptables_legacy_drops_is_counted(netplug: Netplug) -> None:
    with station(netplug, "web") as (net, one):
        gateway = one_gateway(netplug, net)
        rule = ("INPUT", "-d", f"{gateway}/32", "-p", "icmp", "-j", "DROP")
        netplug.host.run(["iptables-legacy", "-w", "-I", *rule])
        one.exec("iptables-legacy", "-w", "-I", "OUTPUT", "-d", "10.66.0.1/32", "-j", "REJECT")
        try:
            with capturing(netplug, "web", "--drops") as capture:
                for where in ("on the host", "in its sandbox"):
                    assert f"netplug: iptables-legacy drops too, {where} (rules that do: 1)" in capture.text
                netplug.host.run(["iptables-legacy", "-w", "-I", "INPUT", "-d", "192.0.2.1", "-j", "DROP"])
                one.exec("sh", "-c", f"busybox ping -c 2 -i 0.1 -W 1 {gateway} || true")
                capture.end()
        finally:
            netplug.host.run(["iptables-legacy", "-w", "-D", "INPUT", "-d", "192.0.2.1", "-j", "DROP"], check=False)
            netplug.host.run(["iptables-legacy", "-w", "-D", *rule])
        said = [line for line in capture.text.splitlines() if "not shown: " in line]
        told = f"netplug: not shown: iptables-legacy ip filter INPUT, on the host: -A {' '.join(rule)}: "
        assert said == [f"{told}2 packets meanwhile, of any sender"]
        netplug.client.post("repair")
        wait_until(lambda: "NETPLUG" not in netplug.host.output("iptables-legacy-save"), 40, "the gate goes")


# Two hosts


@pytest.fixture(scope="module")
def two() -> Iterator[Cluster]:
    with cluster(2) as it:
        yield it


@needs_etcd
def test_both_ends_of_an_overlay_are_in_one_file(two: Cluster) -> None:
    here, there = two.members
    with (
        two.network("blue") as net,
        two.station(here, net, "--name", "web") as web,
        two.station(there, net, "--name", "db") as db,
    ):
        with capturing(here.netplug, "web", "icmp", "and", "host", "db", "--both-ends", to_file=True) as capture:
            assert re.search(r"/db/eth0: clock [+-]\d+\.\d ms from this host's", capture.text)
            assert captures(there.host) != []
            assert web.pings(db.addresses[0])
            wait_until(lambda: len(packets_of(capture)) == 12, END_S, "packets of both ends")
            assert capture.end() == "netplug: 12 packets captured, 0 dropped by the kernel"
        links = {name: f"{member.host.name}/{name}/eth0" for name, member in (("web", here), ("db", there))}
        first = [(it.sniffed_on, it.direction, it[IP].src) for it in packets_of(capture)[:4]]
        asking, asked = web.addresses[0], db.addresses[0]
        assert first == [
            (links["web"], 2, asking), (links["db"], 1, asking), (links["db"], 2, asked), (links["web"], 1, asked),
        ]  # fmt: skip
        wait_until(lambda: captures(there.host) == [], END_S, "end of the process on the other host")


@needs_etcd
def test_a_killed_capture_leaves_nothing_on_another_host(two: Cluster) -> None:
    here, there = two.members
    with two.network("blue") as net, two.station(there, net, "--name", "db") as db:
        with capturing(here.netplug, "db", "arp", "or", "icmp") as capture:  # it is on the other host alone
            assert db.pings(one_gateway(there.netplug, net))
            capture.shows(r" out .* ICMP 98  echo request")
            capture.process.kill()
        wait_until(lambda: captures(here.host) == [], END_S, "end of all processes here")
        wait_until(lambda: captures(there.host) == [], 40, "end of the process on the other host")


@needs_etcd
def test_an_end_that_cannot_be_read_is_said(two: Cluster) -> None:
    here, there = two.members
    with (
        two.network("blue") as net,
        two.station(here, net, "--name", "web") as web,
        two.station(there, net, "--name", "db") as db,
    ):
        with capturing(here.netplug, "web", "icmp", "--both-ends") as capture:
            assert captures(there.host) != []
            there.netplug.stop()
            assert "Traceback" not in there.netplug.log.read_text()
            wait_until(lambda: captures(there.host) == [], END_S, "end of the process on the other host")
            assert web.pings(db.addresses[0])
            capture.shows(" in .* echo reply")
            capture.end()
            assert f"netplug: {there.host.name}/db/eth0: host {there.host.name} " in capture.text
        with capturing(here.netplug, "web", "icmp", "--both-ends") as capture:
            assert f"netplug: the other end 'db' is not read: host {there.host.name} " in capture.text
            assert web.pings(db.addresses[0])
            capture.shows(" in .* echo reply")
            capture.end()
        there.netplug.start()


def packets_of(capture: Capture) -> list[Any]:
    with PcapNgReader(str(capture.file)) as reader:
        return list(reader)
