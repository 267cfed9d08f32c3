"""What netlink costs by hand and by pyroute2, as a part of what users wait for.

A real daemon in a namespace of its own, with endpoints on a bridge network, then as many on one with a rate. Measured
are its start, an attach of each kind, one with a published port that a thousand flows are tracked to, healing, and
`netplug diff`; then the same of a host that joins an overlay with a thousand endpoints elsewhere. These are wall times:
medians, of `diff` the best. What either way of packing and reading takes is processor time, the best of some tries.

The rule: pyroute2, unless it takes more than 10 % of what users wait for.

Run it as root: ``make bench`` or ``.venv/bin/python bench/netlink.py [--endpoints N] [--json]``.
"""

import argparse
import json
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))

from cluster import ME, Writer, macs
from harness import Host, Netplug
from harness.cluster import Cluster, Member
from harness.netns import in_netns
from harness.wait import wait_until
from memory import Api
from netlink_ways import NEIGHBOURS, ByHand, ByPyroute2, Heard, Way, dump_entries, dump_flows, of_bridge, of_port
from ports import restarted_ms

from netplug.cluster.records import HOSTS, HostRecord, as_put
from netplug.kernel.host import socket_filters
from netplug.kernel.netlink import rtnl, watch
from netplug.kernel.netlink.connection import NETLINK_NETFILTER, Netlink
from netplug.kernel.netlink.link_filter import chatter_filter

MOST_PERCENT = 10.0
TRIES, ATTACHES, FLOWS, PORT = 5, 30, 1000, 5353
TABLE = 1000
"""Entries of the tables that the daemon does not fill."""
HEALING_S = 60
LOADING = """
import asyncio, ipaddress, logging, socket, struct, time
from netplug.kernel.netlink.pyroute2_messages import load
pages = lambda: int(open("/proc/self/statm").read().split()[1])
before, started = pages(), time.process_time()
{}
print((time.process_time() - started) * 1000, (pages() - before) / 256)
"""
SCHEMAS = "for it in ('rtnl.ifinfmsg', 'rtnl.ifaddrmsg', 'rtnl.rtmsg', 'rtnl.ndmsg'): load('pyroute2.netlink.' + it)"
LOADED = {
    "the whole library": "import pyroute2",
    "schemas of links, addresses, routes, neighbours": SCHEMAS,
    "schemas of traffic control": "load('pyroute2.netlink.rtnl.tcmsg')",
    "schemas of connection tracking": "load('pyroute2.netlink.nfnetlink.nfctsocket')",
}


@dataclass(frozen=True)
class Row:
    """Milliseconds by either way, and those that users wait for what it is part of."""

    what: str
    by_hand: float
    by_pyroute2: float
    part_of: str
    whole: float

    @property
    def percent(self) -> float:
        return 100 * (self.by_pyroute2 - self.by_hand) / self.whole


class Daemon:
    """A daemon, and how long users wait for it; milliseconds."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._netplug = Netplug(host, "--docker-host", "none")
        self._api = Api(host.path("/run/netplug/netplug.sock"))
        self._number = 0
        for name, subnet, *options in (("blue", "10.90.0.0/16"), ("slow", "10.91.0.0/16", "-o", "rate=100mbit")):
            self._netplug.cli("network", "create", name, "--subnet", subnet, "-o", f"bridge={name}", *options)

    def attach(self, network: str, *ports: dict[str, Any]) -> float:
        self._number += 1
        name = f"box{self._number}"
        self._host.run(["ip", "netns", "add", name])
        body = {"network": network, "netns": name, "name": name, "ports": list(ports)}
        return waited(lambda: self._api.post("/v1/attach", body))

    def attaches(self, network: str, times: int) -> float:
        return statistics.median(self.attach(network) for _ in range(times))

    def start(self) -> float:
        took = restarted_ms(self._netplug)
        self._api = Api(self._host.path("/run/netplug/netplug.sock"))
        return took

    def diff(self) -> float:
        return min(waited(self._netplug.drift) for _ in range(TRIES))

    def heal(self) -> float:
        """Delete a bridge, and wait until all is as it was."""
        self._host.run(["ip", "link", "delete", "blue"])
        return waited(lambda: wait_until(lambda: not self._netplug.drift(), HEALING_S, "no drift"))

    def stop(self) -> None:
        self._netplug.stop()


def waited(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def cost(work: Callable[[], object]) -> float:
    """Return how many milliseconds of a processor the work takes."""
    took = []
    for _ in range(TRIES):
        started = time.process_time()
        work()
        took.append(time.process_time() - started)
    return min(took) * 1000


def heard(host: Host, work: Callable[[], float]) -> tuple[Heard, float]:
    """Return type and body of each message that a daemon hears while some work is done, and what that returned."""

    def listening() -> socket.socket:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        sock.bind((0, watch.GROUPS))
        return sock

    found = []
    with in_netns(host.netns, listening) as sock:
        socket_filters.attach(sock, chatter_filter({1500}))
        result = work()
        sock.setblocking(False)
        with suppress(BlockingIOError):
            while data := sock.recv(1 << 16):
                at = 0
                while at < len(data):
                    length, kind = struct.unpack_from("=IH", data, at)
                    found.append((kind, data[at + 16 : at + length]))
                    at += (length + 3) & ~3
    return found, result


def track(host: Host) -> None:
    """Have flows tracked to a port."""
    host.run(["nft", "add table ip t; add chain ip t o { type filter hook output priority 0; }"])
    host.run(["nft", "add rule ip t o ct state new accept"])
    for _ in range(FLOWS):
        with in_netns(host.netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            sock.sendto(b"", ("127.0.0.1", PORT))


def fill(host: Host) -> None:
    """Add addresses, and with each a route, to a link that is nobody's."""
    lines = ["link add filled type bridge", "link set filled up"]
    lines += [f"address add 10.{200 + it // 256}.{it % 256}.1/24 dev filled" for it in range(TABLE)]
    host.path("/run/filled").write_text("\n".join(lines))
    host.run(["ip", "-batch", "/run/filled"])


def loading(program: str) -> tuple[float, float]:
    """Return the milliseconds and megabytes that it takes to load something, beside what a daemon has loaded anyway."""
    done = subprocess.run([sys.executable, "-c", LOADING.format(program)], capture_output=True, text=True, check=True)
    milliseconds, megabytes = map(float, done.stdout.split())
    return milliseconds, megabytes


class Measuring:
    """Fills rows, with one daemon that gets more and more to do."""

    def __init__(self, host: Host, endpoints: int) -> None:
        self.rows: list[Row] = []
        self._host = host
        self._endpoints = endpoints
        self._daemon = Daemon(host)
        self._ways = ByHand(), ByPyroute2()
        self._nl = in_netns(host.netns, Netlink.open)

    def all(self) -> list[Row]:
        for part in (self._plain, self._limited, self._published, self._tables):
            part()
        self._daemon.stop()
        return self.rows

    def _bridge(self, name: str) -> int:
        return rtnl.index(self._nl, name) or 0

    def _row(self, what: str, work: Callable[[Way], object], part_of: str, whole: float) -> None:
        by_hand, by_pyroute2 = (cost(partial(work, way)) for way in self._ways)
        self.rows.append(Row(what, by_hand, by_pyroute2, part_of, whole))
        print(what, file=sys.stderr)

    def _plain(self) -> None:
        self._daemon.attaches("blue", self._endpoints)
        start, diff = self._daemon.start(), self._daemon.diff()
        attach = self._daemon.attaches("blue", ATTACHES)
        nl, links, bridge = self._nl, rtnl.links(self._nl), self._bridge("blue")
        fdb = of_bridge(bridge)
        entries = len(dump_entries(nl, fdb))
        for part_of, whole in (("start", start), ("diff", diff)):
            self._row(f"dump of {len(links)} links", lambda way: way.links(nl), part_of, whole)
            self._row(f"dump of {entries} FDB entries", lambda way: way.entries(nl, fdb), part_of, whole)
        self._row("messages of an attach", lambda way: way.attach(), "attach", attach)
        messages, _ = heard(self._host, lambda: self._daemon.attach("blue"))
        self._row(f"{len(messages)} messages heard of it", lambda way: way.hear(messages), "attach", attach)
        lost, healing = heard(self._host, self._daemon.heal)
        self._row(f"{len(lost)} messages heard of a lost bridge", lambda way: way.hear(lost), "healing", healing)

    def _limited(self) -> None:
        self._daemon.attaches("slow", self._endpoints)
        start, diff = self._daemon.start(), self._daemon.diff()
        attach = self._daemon.attaches("slow", ATTACHES)
        links = rtnl.links(self._nl)
        blocks = [link.index for link in links if link.kind == "ifb"]
        limited = [link.index for link in links if link.master == self._bridge("slow")]
        self._row("messages of a limit", lambda way: way.limit(), "attach with a rate", attach)
        what = f"limits of {self._endpoints + ATTACHES} endpoints"
        for part_of, whole in (("start", start), ("diff", diff)):
            self._row(what, lambda way: way.limits(self._nl, limited, blocks), part_of, whole)

    def _published(self) -> None:
        track(self._host)
        with in_netns(self._host.netns, lambda: Netlink.open(NETLINK_NETFILTER)) as ct:
            dump = dump_flows(ct, PORT)
        publish = self._daemon.attach("blue", {"proto": "udp", "port": PORT, "host_port": PORT})
        self._row(f"{len(dump)} flows to a port", lambda way: way.flows(dump), "attach with that port", publish)

    def _tables(self) -> None:
        fill(self._host)
        start = self._daemon.start()
        self._row(f"dump of {TABLE} addresses", lambda way: way.addresses(self._nl), "start", start)
        self._row(f"dump of {TABLE} routes", lambda way: way.routes(self._nl), "start", start)

    def overlay(self, stack: ExitStack) -> None:
        """Measure a host that joins a cluster with endpoints on another."""
        cluster = Cluster(stack)
        member = cluster.add()
        network = member.cli("network", "create", "blue", "--cluster", "--subnet", "10.77.0.0/16")
        writer = Writer(cluster.router, network)
        writer.do([as_put(HOSTS + ME, HostRecord(ME, ip_address(member.wire.right), 1))])
        writer.do([writer.claim(number) for number in range(TABLE)])
        writer.do([writer.put(number) for number in range(TABLE)])
        host, wire = cluster.prepare()
        joined: list[Member] = []

        def join() -> None:
            joined.append(cluster.join(host, wire))
            wait_until(lambda: len(macs(host)) == TABLE, HEALING_S, "all endpoints are reached")

        told, cold = heard(host, lambda: waited(join))
        diff = min(waited(joined[0].netplug.drift) for _ in range(TRIES))
        nl = in_netns(host.netns, Netlink.open)
        queries = *(of_port(link.index) for link in rtnl.links(nl) if link.vxlan), NEIGHBOURS
        what = f"dump of {len(dump_entries(nl, *queries))} entries of an overlay"
        self._row(what, lambda way: way.entries(nl, *queries), "diff", diff)
        self._row(f"{len(told)} messages heard of them", lambda way: way.hear(told), "start", cold)


def main() -> None:
    """Measure, and print or dump."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoints", type=int, default=300, help="of each of the two networks")
    parser.add_argument("--json", action="store_true", help="the numbers as JSON")
    options = parser.parse_args()
    with Host("netlink") as host:
        measuring = Measuring(host, options.endpoints)
        rows = measuring.all()
    with ExitStack() as stack:
        measuring.overlay(stack)
    loads = {what: loading(program) for what, program in LOADED.items()}
    if options.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "loads": loads}))
        return
    table = Table("", "by hand", "by pyroute2", "part of", "", "more of it", f"within {MOST_PERCENT:g} %", title="ms")
    for row in rows:
        held = "yes" if row.percent <= MOST_PERCENT else "NO"
        figures = f"{row.by_hand:.2f}", f"{row.by_pyroute2:.2f}", row.part_of, f"{row.whole:.1f}"
        table.add_row(row.what, *figures, f"{row.percent:.1f} %", held)
    Console(width=140).print(table)
    for what, (milliseconds, megabytes) in loads.items():
        print(f"to load {what}: {milliseconds:.0f} ms, {megabytes:.1f} MB")


if __name__ == "__main__":
    main()
