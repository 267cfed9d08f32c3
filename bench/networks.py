"""Time to create and to remove a network, on a host with one network and on one with many.

A bridge network and a network of mode `none` are created and removed by the API, in turn on both hosts. `none` takes
the API, the record and the journal: there is no link, address or rule. So the difference of the two is the work on the
kernel: bridge, addresses, routes, sysctls, and firewall. bench/attach.py measures endpoints.

The daemon's processor time, of all threads, is that from the request until the daemon rests: it includes comparisons
that follow a change. Then the next measurement begins, so that it does not wait for them.

Run it as root: ``make bench`` or ``.venv/bin/python bench/networks.py [--rounds N] [--networks N] [--endpoints N]
[--json]``. Everything happens in namespaces that it creates and removes.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))

import ballast
from goals import at_most
from harness import Host, Netplug

from netplug.cli.client import Client

NAME, SUBNET = "measured", "10.99.0.0/24"
MODES = ("bridge", "none")
WORK_GOAL_MS, GROWTH_GOAL = 6.0, 0.2
"""For the difference of the modes; for what many networks add to a creation or removal."""
WARM_UP = 2
REST_S, REST_MS, LIMIT_S = 0.2, 2.0, 10.0
"""The daemon rests when it took no more than so many milliseconds in this time; it is not waited for longer."""


@dataclass(frozen=True)
class Daemon:
    """A running one, with its API."""

    client: Client
    pid: int

    def spent_ms(self) -> float:
        """Return the processor time of its threads."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6

    def rested_ms(self) -> float:
        """Return the processor time once it rests."""
        spent, deadline = self.spent_ms(), time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            time.sleep(REST_S)
            before, spent = spent, self.spent_ms()
            if spent - before <= REST_MS:
                break
        return spent

    def timed(self, work: Callable[[], Any]) -> tuple[float, float]:
        """Return the milliseconds that some work of the API took, and the daemon's processor time until it rests."""
        before, begun = self.spent_ms(), time.perf_counter()
        work()
        took = (time.perf_counter() - begun) * 1000
        return took, self.rested_ms() - before

    def create(self, mode: str) -> tuple[float, float]:
        subnets = [{"subnet": SUBNET}] if mode == "bridge" else []
        body = {"name": NAME, "options": {"mode": mode}, "subnets": subnets}
        return self.timed(lambda: self.client.post("networks", body=body))

    def remove(self) -> tuple[float, float]:
        return self.timed(lambda: self.client.delete("networks", NAME))


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    sizes = {1: 1, args.networks: args.endpoints}
    with ExitStack() as stack:
        daemons = {}
        for networks, endpoints in sizes.items():
            host = stack.enter_context(Host(f"bench{networks}"))
            netplug = Netplug(host, "--docker-host", "none")
            ballast.lay(host, netplug, networks, endpoints)
            assert netplug.process
            daemons[networks] = Daemon(netplug.client, netplug.process.pid)
            daemons[networks].rested_ms()
        cases = [(size, mode) for size in sizes for mode in MODES]
        found: dict[tuple[int, str], list[tuple[tuple[float, float], ...]]] = {case: [] for case in cases}
        dice = random.Random(0)  # noqa: S311
        for turn in range(WARM_UP + args.rounds):
            for size, mode in dice.sample(cases, len(cases)):
                took = daemons[size].create(mode), daemons[size].remove()
                if turn >= WARM_UP:
                    found[size, mode].append(took)
    return [row(work, number, size, found) for number, work in enumerate(("create", "remove")) for size in sizes]


def row(
    work: str, number: int, size: int, found: dict[tuple[int, str], list[tuple[tuple[float, float], ...]]]
) -> dict[str, Any]:
    """Return the medians of a kind of work."""
    medians = {
        mode: [statistics.median(took[number][figure] for took in found[size, mode]) for figure in (0, 1)]
        for mode in MODES
    }
    (whole, spent), (rest, _) = medians["bridge"], medians["none"]
    figures = {"ms": whole, "none_ms": rest, "kernel_ms": whole - rest, "processor_ms": spent}
    return {"work": work, "networks": size} | {name: round(figure, 2) for name, figure in figures.items()}


def table(rows: list[dict[str, Any]]) -> None:
    heads = ("networks", "p50 ms", "mode none", "difference: kernel and firewall", "goal", "growth", "goal")
    grid = Table("", *heads, "processor ms")
    for before, it in zip([None, *rows], rows, strict=False):
        growth: tuple[str, str] = ("", "")
        if before and before["work"] == it["work"]:
            grown = it["ms"] / before["ms"] - 1
            growth = (f"{grown:+.0%}", at_most(round(grown, 2), GROWTH_GOAL))
        figures = [f"{it[name]:.1f}" for name in ("ms", "none_ms", "kernel_ms")]
        verdict = at_most(it["kernel_ms"], WORK_GOAL_MS)
        grid.add_row(it["work"], str(it["networks"]), *figures, verdict, *growth, f"{it['processor_ms']:.1f}")
    Console(width=140).print(grid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--networks", type=int, default=500, help="on the second host")
    parser.add_argument("--endpoints", type=int, default=1000, help="on these, with a published port each")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    rows = measure(args)
    if args.json:
        json.dump({"rounds": args.rounds, "rows": rows}, sys.stdout, indent=1)
    else:
        table(rows)


if __name__ == "__main__":
    main()
