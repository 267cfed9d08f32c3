"""Self-healing under running containers: from what others do until traffic passes again, and all objects are as before.

A cluster of two hosts has networks made by `attach`, by CNI and on both hosts, half of them before the daemon's last
restart (`integration/harness/healing.py`). Each injection is a command of another program. Traffic is datagrams of new
flows, all at once: between containers, to the outside by NAT, by published ports from another host, from loopback and
from the container itself, over the tunnel, in both IP versions, with some of 1 300 octets; and between networks, where
none may pass. The goal applies to the 99th percentile. The injections take turns, so that each finds a host at rest.

Then another program commits every few milliseconds what is no harm, and the daemon's processor time is measured. It is
also measured while another program changes a link of netplug's back all the time.

Run it as root: ``make bench`` or ``.venv/bin/python bench/heal.py [--times N] [--only WORDS ...] [--json]``. Everything
happens in namespaces that it creates and removes. `--times 100` takes some 40 minutes on a quiet machine.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))

from goals import at_most
from harness import Netplug
from harness.healing import Scene, guarded_scene, healing_scene
from harness.injections import GUARDED, INJECTIONS, Injection
from idle import cpu_s

GOAL_S = 1.0
STORM_S = 10
STORM = "add table ip storm\n", "delete table ip storm\n"
PAUSE_S = 0.01
SHARE_GOAL = 0.05
INSISTS_S = 60
LIMIT_S = 60


@dataclass
class Found:
    """Seconds of each injection, and what roads it broke. `networks`: until all objects were back, by network.

    `lost`: what did not heal.
    """

    traffic_s: list[float] = field(default_factory=list)
    objects_s: list[float] = field(default_factory=list)
    networks: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    broken: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Return the figures, by name."""
        traffic, objects = sorted(self.traffic_s), sorted(self.objects_s)
        return {
            "n": len(traffic),
            "p50": at(traffic, 0.5),
            "p99": at(traffic, 0.99),
            "max": at(traffic, 1),
            "objects p50": at(objects, 0.5),
            "objects p99": at(objects, 0.99),
            "objects max": at(objects, 1),
            "networks p99": {name: at(sorted(values), 0.99) for name, values in self.networks.items()},
            "broke": [name for name, _ in self.broken.most_common()],
            "lost": self.lost,
        }


def at(values: list[float], part: float) -> float:
    """Return a percentile of sorted values, in seconds."""
    return round(values[int(part * (len(values) - 1))], 3) if values else float("nan")


def kind_of(road: str) -> str:
    """Return what carries traffic along a road, without the network's name."""
    return road.partition(": ")[2] or "between networks"


def heal(scene: Scene, injections: Mapping[str, Injection], times: int) -> dict[str, Found]:
    """Do all injections in turns, and return what was found of each. What fails is noted, and the rest goes on."""
    found = {name: Found() for name in injections}
    for turn in range(times):
        began, failed = time.monotonic(), 0
        for name, it in found.items():
            try:
                healed = scene.inject(injections[name], turn, LIMIT_S)
            except AssertionError as error:
                failed += 1
                it.lost.append(f"turn {turn + 1}: {error}")
                print(f"{name}, turn {turn + 1}: {error}", file=sys.stderr)
                recover(scene, injections[name])
                continue
            it.traffic_s.append(healed.traffic_s)
            it.objects_s.append(healed.objects_s)
            it.networks[healed.network].append(healed.objects_s)
            it.broken.update({kind_of(road) for road in healed.broken})
        print(
            f"turn {turn + 1} of {times}: {time.monotonic() - began:.0f} s, {failed} not healed, "
            f"load {os.getloadavg()[0]:.1f}",
            file=sys.stderr,
            flush=True,
        )
    return found


def recover(scene: Scene, it: Injection) -> None:
    """Take back what had to be so for an injection that was not healed, and have all repaired."""
    for step in (lambda: it.after and scene.shell.run(it.after), lambda: scene.member.cli("repair")):
        try:
            step()
        except AssertionError as error:
            print(f"and then: {error}", file=sys.stderr)


def storm(netplug: Netplug) -> tuple[float, float]:
    """Let another program commit all the time; return commits a second, and the daemon's share of a processor."""
    assert netplug.process
    command = netplug.host.inside(["nft", "-i"])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as other:
        assert other.stdin
        before, started, commits = cpu_s(netplug.process.pid), time.perf_counter(), 0
        while (took := time.perf_counter() - started) < STORM_S:
            for line in STORM:
                other.stdin.write(line.encode())
                other.stdin.flush()
                commits += 1
                time.sleep(PAUSE_S)
        spent = cpu_s(netplug.process.pid) - before
    return commits / took, spent / took


def insist(scene: Scene) -> float:
    """Let another program change a link back all the time, and return the daemon's share of a processor."""
    netplug, bridge = scene.member.netplug, scene.bridged[0].bridge
    assert netplug.process
    script = f"while sleep 0.02; do ip link set {bridge} mtu 1400; done"
    other = netplug.host.popen(["sh", "-c", script], log="insists.log")
    before = cpu_s(netplug.process.pid)
    time.sleep(INSISTS_S)
    spent = cpu_s(netplug.process.pid) - before
    other.kill()
    return spent / INSISTS_S


def measure(options: argparse.Namespace) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return the figures of the injections, and those of programs that insist."""

    def chosen(injections: Mapping[str, Injection]) -> dict[str, Injection]:
        words = options.only
        return {name: it for name, it in injections.items() if not words or any(word in name for word in words)}

    found: dict[str, dict[str, Any]] = {}
    rest: dict[str, Any] = {"load": os.getloadavg()}
    for firewall, injections in GUARDED.items():
        if wanted := chosen(injections):
            with guarded_scene(firewall) as scene:
                # To bring about and end what another firewall has takes up to a comparison of all, each time.
                ready = {name: scene.prepare(it, LIMIT_S) for name, it in wanted.items()}
                found |= {name: it.row() for name, it in heal(scene, ready, options.times).items()}
    if (wanted := chosen(INJECTIONS)) or not options.no_storm:
        with healing_scene() as scene:
            found |= {name: it.row() for name, it in heal(scene, wanted, options.times).items()}
            if not options.no_storm:
                commits, share = storm(scene.member.netplug)
                rest["others commit"] = {"commits/s": round(commits, 1), "share": round(share, 4)}
                rest["another insists"] = {"seconds": INSISTS_S, "share": round(insist(scene), 4)}
    return found, rest | {"load after": os.getloadavg()}


def main() -> None:
    """Measure, and print or dump."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--only", default=[], action="append", help="injections with these words in their names")
    parser.add_argument("--no-storm", action="store_true", help="without the programs that change things all the time")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    found, rest = measure(options)
    if options.json:
        print(json.dumps({"injections": found} | rest))
        return
    table = Table("injection", "n", "p50", "p99", "max", "objects p50", "p99", "goal of p99", "what it stopped")
    for name, row in found.items():
        figures = [f"{row[it]:.3f}" for it in ("p50", "p99", "max", "objects p50", "objects p99")]
        goal = at_most(row["p99"], GOAL_S, " s") if not row["lost"] else f"{len(row['lost'])} NOT HEALED"
        table.add_row(name, str(row["n"]), *figures, goal, ", ".join(row["broke"]) or "nothing")
    console = Console(width=180)
    console.print(table)
    for what, it in rest.items():
        if isinstance(it, dict):
            goal = at_most(it["share"], SHARE_GOAL)
            console.print(f"{what}: {100 * it['share']:.1f} % of a processor ({goal})")


if __name__ == "__main__":
    main()
