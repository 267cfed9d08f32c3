"""Many of everything on one host: endpoints, networks, ports, requests; and a kernel that another program keeps busy.

A part each, of which `--part` chooses some:

crowd    endpoints on four networks: time and processor time of an attach beside a host with one endpoint, in turn, and
         of a veth pair that is made without netplug on the same bridges; memory with 100 and with all; restarts, the
         last during a ping every 10 ms
churn    callers of CNI, the API and Docker's protocol attach and detach, 1 % are killed in the middle: rate, the
         daemon's processor time for each, and what is left at the end
ports    10 000 UDP ports of one container, and 49152-65535: seconds, megabytes, open files, longest answer meanwhile
networks created, compared, found by a start, deleted: seconds and megabytes
rtnl     another program holds the rtnetlink lock: the longest answers of name server and API, while requests wait

Run it as root: ``make bench`` or ``.venv/bin/python bench/load.py [--part P]… [--endpoints N] [--networks N]
[--json]``. Everything happens in namespaces that it creates and removes.
"""

import argparse
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))

from goals import at_least, at_most
from harness import Host, Netplug, Process, assert_same, namespace, netplugd, snapshot, wait_until
from harness.answers import answers
from harness.crowd import Api, Crowd, files_of, memory_mb, spent_ms
from harness.killing import calling
from harness.rtnl import rtnl_held
from start import cpu_of

from netplug.drivers.naming import bridge_name

SMALL, FULL = 100, 1000
CHUNK = 10
"""Attaches in turn, until as many pairs of links are made without netplug."""
STARTS = 5
RANGES = {"10 000 UDP ports": (20_000, 10_000), "49152-65535/udp": (49_152, 16_384)}
WAITING = 20
"""Requests that wait for the kernel while another program holds its lock."""


@dataclass(frozen=True)
class Figure:
    """What was found. `most`, `least`: the goal."""

    part: str
    what: str
    found: float
    unit: str
    most: float | None = None
    least: float | None = None

    @property
    def verdict(self) -> str:
        return at_most(self.found, self.most, f" {self.unit}") or at_least(self.found, self.least, f" {self.unit}")


def crowd(args: argparse.Namespace) -> Iterator[Figure]:
    with Host("crowd") as host, Host("alone") as other:
        for it in (host, other):
            it.env.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed netplug is compiled
            it.env["PYTHONPYCACHEPREFIX"] = str(it.dir / "compiled")
        netplug, alone = Netplug(host, "--docker-host", "none"), Netplug(other, "--docker-host", "none")
        with Crowd(netplug) as many, Crowd(alone) as few:
            for those in (many, few):
                those.netplug.restart()  # the first start compiled it, which took memory
                those.reconnect()
            many.make_room(args.endpoints + args.rounds + CHUNK)
            few.make_room(1 + args.rounds + CHUNK)
            few.grow(1)
            many.grow(SMALL)
            small = memory_mb(netplug)["rss"]
            yield Figure("crowd", f"resident memory with {SMALL} endpoints", small, "MB", most=80)

            def each() -> float:
                return (memory_mb(netplug)["rss"] - small) * 1024 / (args.endpoints - SMALL)

            many.grow(args.endpoints)
            yield Figure("crowd", "resident memory of each further endpoint", each(), "kB", most=20)
            netplug.cli("diff")
            yield Figure("crowd", "the same after a comparison of all", each(), "kB")
            yield from _attaches(args, many, few)
            yield from _restart(netplug, many, args.endpoints)
            yield Figure("crowd", "memory of each further endpoint after that start", each(), "kB")


def _attaches(args: argparse.Namespace, many: Crowd, few: Crowd) -> Iterator[Figure]:
    """Attach and detach on both hosts in turn."""
    took: dict[str, list[float]] = {"one": [], "all": []}
    bare: dict[str, list[float]] = {"one": [], "all": []}
    spent = dict.fromkeys(took, 0.0)
    sizes = {"one": (few, 1), "all": (many, args.endpoints)}
    for turn in range(args.rounds):
        for which in sorted(sizes, reverse=bool(turn % 2)):
            it, first = sizes[which]
            before = spent_ms(it.netplug)
            took[which].append(it.attach(first + turn))
            spent[which] += spent_ms(it.netplug) - before
            if turn % CHUNK == CHUNK - 1 or turn == args.rounds - 1:
                bare[which] += _bare(it, first + turn + 1)
    yield from _compared("attach with {}, p50", took, args.endpoints, most=1.2)
    for which, words in (("one", "1 endpoint"), ("all", f"{args.endpoints} endpoints")):
        yield Figure("crowd", f"processor time of an attach with {words}", spent[which] / args.rounds, "ms")
    yield from _compared("veth pair without netplug on the bridge with {}, p50", bare, args.endpoints)
    for turn in range(args.rounds):
        for it, first in sizes.values():
            it.detach(first + turn)


def _compared(words: str, took: dict[str, list[float]], endpoints: int, most: float | None = None) -> Iterator[Figure]:
    one, all_ = (statistics.median(took[which]) for which in ("one", "all"))
    yield Figure("crowd", words.format("1 endpoint"), one, "ms")
    yield Figure("crowd", words.format(f"{endpoints} endpoints"), all_, "ms")
    yield Figure("crowd", "ratio of these", all_ / one, "", most=most)


def _bare(crowd: Crowd, first: int) -> list[float]:
    """Return the milliseconds of pairs of links on the first network's bridge, for namespaces from a number on."""
    ident = crowd.api.ask("GET", "networks/crowd0")["id"]
    boxes = (f"box{number}" for number in range(first, first + CHUNK))
    argv = [sys.executable, str(Path(__file__).with_name("bare.py")), bridge_name(ident), *boxes]
    found: list[float] = json.loads(crowd.netplug.host.run(argv).stdout)
    return found


def _restart(netplug: Netplug, many: Crowd, endpoints: int) -> Iterator[Figure]:
    address = netplug.client.get("endpoints", network="crowd0")["endpoints"][0]["addresses"][0].partition("/")[0]
    log = netplug.host.dir / "ping.log"
    argv = ["ip", "netns", "exec", "box4", "busybox", "ping", "-i", "0.01", address]
    ping: Process = netplug.host.popen(argv, log="ping.log")
    wait_until(lambda: log.read_text().count("seq=") > 10, 30, "answers")
    took, spent = [], []
    for _ in range(STARTS):
        netplug.stop()
        begun = time.perf_counter()
        netplug.start()
        took.append(time.perf_counter() - begun)
        assert netplug.process
        spent.append(cpu_of(netplug.process.pid) / 1000)
    yield Figure("crowd", f"start with {endpoints} endpoints, median of {STARTS}", statistics.median(took), "s", most=2)
    yield Figure("crowd", "processor time of these starts, median", statistics.median(spent), "s")
    many.reconnect()
    ping.interrupt()
    sent, received = map(int, re.findall(r"(\d+) packets transmitted, (\d+)", log.read_text())[0])
    yield Figure("crowd", f"of {sent} pings, lost", max(sent - received - 1, 0), "", most=0)


def churn(args: argparse.Namespace) -> Iterator[Figure]:
    with Host("churn") as host:
        netplug = Netplug(host, "--docker-host", "none")
        with calling(netplug, 12) as callers:
            callers.run(2, killed=0)
            before, spent = snapshot(host, netplug), spent_ms(netplug)
            done = callers.run(args.seconds, killed=0.01)
            each = (spent_ms(netplug) - spent) / done.operations
            yield Figure("churn", f"attaches and detaches a second, for {args.seconds:g} s", done.rate, "", least=200)
            yield Figure("churn", "processor time of the daemon for each", each, "ms")
            yield Figure("churn", "callers killed", done.killed, "")
            yield Figure("churn", "requests of others that failed", len(done.failed), "", most=0)
            for what, ms in done.took.items():
                yield Figure("churn", f"{what}, p50", ms, "ms")
            assert_same(before, lambda: snapshot(host, netplug), 60)
            differences = netplug.client.get("diff")["differences"]
            yield Figure("churn", "left behind, or different", len(differences), "", most=0)


def ports(_: argparse.Namespace) -> Iterator[Figure]:
    with Host("ports") as host:
        netplug = Netplug(host, "--docker-host", "none")
        with Api.of(netplug) as api, namespace(host) as asker, namespace(host) as one:
            api.ask("POST", "networks", {"name": "blue", "subnets": [{"subnet": "10.90.0.0/24"}]})
            api.ask("POST", "attach", {"network": "blue", "netns": asker.name, "name": "asker"})
            for what, (first, count) in RANGES.items():
                numbers = range(first, first + count)
                given = [{"proto": "udp", "port": it, "host_address": "0.0.0.0", "host_port": it} for it in numbers]
                body = {"network": "blue", "netns": one.name}
                memory, files = memory_mb(netplug)["rss"], files_of(netplug)
                with answers(netplug, asker, "10.90.0.1", "asker.blue.netplug.internal") as said:
                    yield _timed(
                        "ports", f"{what}, published", lambda b=body | {"ports": given}: api.ask("POST", "attach", b)
                    )  # type: ignore[misc]
                    more, opened = memory_mb(netplug)["rss"] - memory, files_of(netplug) - files
                    yield _timed("ports", f"{what}, removed", lambda b=body: api.ask("POST", "detach", b))  # type: ignore[misc]
                yield Figure("ports", f"{what}, resident memory", more, "MB")
                yield Figure("ports", f"{what}, open files", opened, "")
                yield Figure("ports", f"{what}, longest answer meanwhile", said.longest(), "ms")


def _timed(part: str, what: str, work: Callable[[], Any]) -> Figure:
    begun = time.perf_counter()
    work()
    return Figure(part, what, time.perf_counter() - begun, "s")


def networks(args: argparse.Namespace) -> Iterator[Figure]:
    with Host("networks") as host:
        netplug = Netplug(host, "--docker-host", "none")
        memory = memory_mb(netplug)["rss"]
        names = [f"net{number}" for number in range(args.networks)]

        def create() -> None:
            with Api.of(netplug) as api:
                for number, name in enumerate(names):
                    subnet = {"subnet": f"10.{128 + number // 256}.{number % 256}.0/24"}
                    api.ask("POST", "networks", {"name": name, "subnets": [subnet]})

        def delete() -> None:
            with Api.of(netplug) as api:
                for name in names:
                    api.ask("DELETE", f"networks/{name}")

        number = len(names)
        yield _timed("networks", f"{number} created", create)
        yield Figure("networks", "resident memory of each", (memory_mb(netplug)["rss"] - memory) * 1024 / number, "kB")
        yield _timed("networks", "compared (netplug diff)", lambda: netplug.client.get("diff"))
        netplug.stop()
        yield _timed("networks", "start with them", netplug.start)
        yield _timed("networks", "deleted", delete)


def rtnl(args: argparse.Namespace) -> Iterator[Figure]:
    with Host("rtnl") as host, ThreadPoolExecutor(WAITING + 2) as pool:
        netplug = Netplug(host, "--docker-host", "none")
        with Crowd(netplug, networks=1) as some:
            some.make_room(2 * WAITING)
            some.grow(WAITING)
            with namespace(host) as asker:
                body = {"network": "crowd0", "netns": asker.name, "name": "asker"}
                netplug.client.post("attach", body=body)
                with answers(netplug, asker, "10.100.0.1", "asker.crowd0.netplug.internal") as quiet:
                    time.sleep(2)
                with answers(netplug, asker, "10.100.0.1", "asker.crowd0.netplug.internal") as busy:
                    with rtnl_held():
                        waiting = [pool.submit(_attached, netplug, number) for number in range(WAITING, 2 * WAITING)]
                        waiting.append(pool.submit(netplug.client.get, "diff"))
                        time.sleep(args.held)
                        held = busy.longest("dns"), busy.longest_of_api()
                    for it in waiting:
                        it.result(60)
        both = {"quiet": (quiet.longest("dns"), quiet.longest_of_api()), f"lock held {args.held:g} s": held}
        for words, (dns, api) in both.items():
            yield Figure("rtnl", f"longest answer of the name server, {words}", dns, "ms")
            yield Figure("rtnl", f"longest answer of the API, {words}", api, "ms")


def _attached(netplug: Netplug, number: int) -> None:
    netplug.client.post("attach", body={"network": "crowd0", "netns": f"box{number}"})


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Figure]]] = {
    "crowd": crowd,
    "churn": churn,
    "ports": ports,
    "networks": networks,
    "rtnl": rtnl,
}


def main() -> None:
    """Measure, and print or dump."""
    netplugd.READY_TIMEOUT_S = 300  # to see how long it takes, where it takes long
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="only these")
    parser.add_argument("--endpoints", type=int, default=FULL)
    parser.add_argument("--rounds", type=int, default=60, help="attaches on each host")
    parser.add_argument("--networks", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=60, help="of the churn")
    parser.add_argument("--held", type=float, default=5, help="seconds for which another program has the lock")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    found = []
    for part in args.part or PARTS:
        for figure in PARTS[part](args):
            found.append(figure)
            if not args.json:
                print(f"{part}: {figure.what}: {figure.found:.4g} {figure.unit}", file=sys.stderr, flush=True)
    if args.json:
        json.dump({"load": os.getloadavg()[0], "figures": [asdict(it) for it in found]}, sys.stdout, indent=1)
        return
    table = Table("part", "what", "found", "goal", title=f"load {os.getloadavg()[0]:.1f} of {os.cpu_count()}")
    for it in found:
        table.add_row(it.part, it.what, f"{it.found:.4g} {it.unit}", it.verdict)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
