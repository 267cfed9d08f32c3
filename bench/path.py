"""Cost of the packet path through a host: netplug's bridge network, and Docker's own user-defined bridge.

Both networks belong to one dockerd on one host, with two containers each. There are four ways: from container to
container, from container to another host through NAT, from another host to a published port, and from the host to a
published port (at the host's address). These units are counted:

- `answered`: UDP packets of 64 octets, each of which is answered by another, on one flow;
- `unanswered`: such packets that nobody answers (syslog, NetFlow), so that connection tracking calls each NEW;
- `flows`: a packet from a source port of its own, and its answer (DNS): NAT is computed for each;
- `trips`: one octet there and back on a TCP connection;
- `stream`: gigabits on a TCP connection.

The figures are units per second of processor time. One thread of a small C program (`path.c`) has both ends: the kernel
carries a packet by bridge, firewall and veth to the receiver's socket before the sender's system call returns. So its
processor time is the cost of the whole path, and neither wake-ups nor other processes are measured. It includes what
sender and receiver cost themselves, which is the same for all networks. `plain` shows how much that is, with the work
that no network can avoid: a bridge and veth pairs created by `ip`, without firewall, NAT and connection tracking.

`bridge, alone` is Docker's on a host where netplug does not run: what others pay for netplug is the ratio to it.

A second host has many more networks, endpoints and published ports of netplug (`--networks`, `--endpoints`). On demand,
a third one has many networks of Docker's (`--docker-networks`). All are measured in turn in short slices, in a random
order each round, since the speed of the processor differs more than they do. Ratios are medians of the ratios within a
round, with the half-width of their 95 % confidence interval.

Run it as root: ``make bench`` or ``.venv/bin/python bench/path.py [--rounds N] [--slice MS] [--way WAY]… [--kind KIND]…
[--networks N] [--endpoints N] [--docker-networks N] [--json]``. Everything happens in namespaces that it creates and
removes.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))

from goals import at_least
from path_hosts import WAYS, Line, Lines, engines, plain

SOURCE = Path(__file__).with_name("path.c")
UNITS = {"answered": 1e3, "unanswered": 1e3, "flows": 1e3, "trips": 1e3, "stream": 1e9 / 8}
"""By kind: thousands, or gigabits."""
ALONE = "bridge, alone"
MANY = "pynet, many"
"""netplug's network on the host with many others."""
WARM_UP = 1
"""Rounds before those that count."""
TO_REACH = {"answered": 1.0, "unanswered": 1.0, "trips": 1.0}
"""Ratio of pynet to Docker's bridge, by kind; with NAT, the flows that are answered have another."""
TO_REACH_NAT = {"answered": 1.05, "trips": 1.05}
TO_REACH_SCALE = 0.97
"""Ratio of the host with many networks to that with one, for the kinds of `TO_REACH`."""


class Load:
    """The program on a line."""

    def __init__(self, program: Path, line: Line) -> None:
        cpu = max(os.sched_getaffinity(0))
        words = (program, line.client, line.server, line.address, line.port, line.port, cpu)
        argv = [str(word) for word in words]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._line() != "ready":
            raise SystemExit(f"no path from {line.client} to {line.address} port {line.port}")

    def _line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def rate(self, kind: str, milliseconds: int) -> tuple[float, float]:
        """Return units per second of processor time, and the share of packets that were lost."""
        assert self._process.stdin
        print(kind, milliseconds, file=self._process.stdin, flush=True)
        done, spent, _, lost = (int(word) for word in self._line().split())
        return done / UNITS[kind] / spent * 1e9, lost / max(1, done + lost)

    def close(self) -> None:
        self._process.communicate()


Samples = dict[str, dict[str, dict[str, list[float]]]]
"""Rates of the rounds, by way, kind, and network."""


def measure(networks: dict[str, Lines], program: Path, args: argparse.Namespace) -> tuple[Samples, float]:
    """Measure in turn, in another order each round; return the rates, and the greatest share of lost packets."""
    names = list(networks)
    loads = {(name, way): Load(program, networks[name][way]) for name in names for way in args.way}
    found: Samples = {way: {kind: {name: [] for name in names} for kind in args.kind} for way in args.way}
    worst = 0.0
    dice = random.Random(0)  # noqa: S311
    for turn in range(WARM_UP + args.rounds):
        for way in args.way:
            for kind in args.kind:
                for name in dice.sample(names, len(names)):
                    rate, lost = loads[name, way].rate(kind, args.slice)
                    worst = max(worst, lost)
                    if turn >= WARM_UP:
                        found[way][kind][name].append(rate)
    for load in loads.values():
        load.close()
    return found, worst


def ratio(mine: list[float], others: list[float]) -> dict[str, float]:
    """Return the median of the ratios within a round, and the half-width of its 95 % confidence interval."""
    ordered = sorted(a / b for a, b in zip(mine, others, strict=True))
    reach = 0.98 * len(ordered) ** 0.5
    middle = (len(ordered) - 1) / 2
    low, high = (ordered[round(min(max(middle + it, 0), len(ordered) - 1))] for it in (-reach, reach))
    return {"ratio": round(statistics.median(ordered), 3), "spread": round((high - low) / 2, 3)}


def reported(samples: Samples, pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    rows = []
    for way, kinds in samples.items():
        for kind, rates in kinds.items():
            row: dict[str, Any] = {"way": way, "kind": kind}
            row["rates"] = {name: round(statistics.median(found), 1) for name, found in rates.items()}
            row["ratios"] = {f"{one} / {other}": ratio(rates[one], rates[other]) for one, other in pairs}
            rows.append(row)
    return rows


def goal(way: str, kind: str, pair: str) -> float | None:
    """Return the least ratio, if one is stated."""
    if pair == "pynet / bridge":
        return (TO_REACH_NAT if way != WAYS[0] else {}).get(kind, TO_REACH.get(kind))
    return TO_REACH_SCALE if pair == f"{MANY} / pynet" and kind in TO_REACH else None


def table(report: dict[str, Any]) -> None:
    rows = report["rows"]
    grid = Table("way", "kind", *rows[0]["rates"], *(head for pair in rows[0]["ratios"] for head in (pair, "goal")))
    for row in rows:
        cells = [f"{rate:g}" for rate in row["rates"].values()]
        for pair, it in row["ratios"].items():
            verdict = at_least(round(it["ratio"], 2), goal(row["way"], row["kind"], pair))
            cells += [f"{it['ratio']:.3f} ± {it['spread']:.3f}", verdict]
        grid.add_row(row["way"], row["kind"], *cells, end_section=row["kind"] == rows[-1]["kind"])
    console = Console(width=150)
    console.print("thousands (stream: gigabits) per second of processor time")
    console.print(grid)
    console.print(f"greatest share of lost packets in a slice: {report['lost']:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--slice", type=int, default=5, help="processor milliseconds of a measurement")
    parser.add_argument("--way", action="append", choices=WAYS, help="only this way; may be repeated")
    parser.add_argument("--kind", action="append", choices=UNITS, help="only this kind; may be repeated")
    parser.add_argument("--networks", type=int, default=500, help="of netplug, on the second host; 0: no such host")
    parser.add_argument("--endpoints", type=int, default=1000, help="on these, with a published port each")
    parser.add_argument("--docker-networks", type=int, default=0, help="of Docker's, on a third host; 0: no such host")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    args.way, args.kind = args.way or list(WAYS), args.kind or list(UNITS)
    pairs = [("pynet", "bridge"), ("pynet", ALONE)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        program = folder / "path"
        subprocess.run(["cc", "-std=gnu11", "-O2", "-o", str(program), str(SOURCE)], check=True)
        networks: dict[str, Lines] = {}
        networks["pynet"], networks["bridge"] = stack.enter_context(engines("bench", ("pynet", "bridge")))
        (networks["plain"],) = stack.enter_context(plain())
        (networks[ALONE],) = stack.enter_context(engines("alone", ("bridge",)))
        if args.networks:
            many = engines("many", ("pynet",), networks=args.networks, endpoints=args.endpoints)
            (networks[MANY],) = stack.enter_context(many)
            pairs.append((MANY, "pynet"))
        if args.docker_networks:
            others = engines("others", ("bridge",), docker_networks=args.docker_networks)
            (networks["bridge, many"],) = stack.enter_context(others)
            pairs.append(("bridge, many", "bridge"))
        samples, lost = measure(networks, program, args)
    report = {"rounds": args.rounds, "slice_ms": args.slice, "lost": round(lost, 4), "rows": reported(samples, pairs)}
    if args.json:
        json.dump(report, sys.stdout, indent=1)
    else:
        table(report)


if __name__ == "__main__":
    main()
