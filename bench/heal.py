"""Repair time of deleted firewall rules: from the command that deletes them until the ruleset is as before.

It runs a real daemon with ten namespaces on a bridge network, each with a published port. It repeats each fault, and
reads the whole ruleset of the host until it is as before. The goal applies to the 99th percentile of 100 repetitions.
Then another program commits every few milliseconds what is no harm, and the daemon's processor time is measured.

Run it as root: ``make bench`` or ``.venv/bin/python bench/heal.py [--times N] [--json]``. Everything happens in
namespaces that it creates and removes.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))

from goals import at_most
from harness import Host, Netplug, namespace
from harness.wait import wait_until

ENDPOINTS = 10
GOAL_S = 1.0
FAULTS = {
    "all rules": ["nft", "flush", "ruleset"],
    "the table of networks": ["nft", "delete", "table", "inet", "netplug"],
    "anti-spoofing": ["nft", "flush", "table", "bridge", "netplug"],
    "the gate (iptables)": ["iptables", "-F"],
}
GATE = "the gate (iptables)"
LIMIT_S = 60
STORM_S = 10
STORM = "add table ip storm\n", "delete table ip storm\n"
PAUSE_S = 0.01
SHARE_GOAL = 0.05
TICKS = os.sysconf("SC_CLK_TCK")


def rules(host: Host) -> list[str]:
    """Return the host's ruleset without counters; the order of chains and elements means nothing."""
    return sorted(host.output("nft", "--stateless", "list", "ruleset").splitlines())


def cpu_s(pid: int) -> float:
    """Return the seconds of processor time that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def storm(host: Host, netplug: Netplug) -> tuple[float, float]:
    """Let another program commit all the time; return commits a second, and the daemon's share of a processor."""
    assert netplug.process
    with subprocess.Popen(host.inside(["nft", "-i"]), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as other:
        assert other.stdin
        before, started, commits = cpu_s(netplug.process.pid), time.perf_counter(), 0
        while (took := time.perf_counter() - started) < STORM_S:
            for command in STORM:
                other.stdin.write(command.encode())
                other.stdin.flush()
                commits += 1
                time.sleep(PAUSE_S)
        spent = cpu_s(netplug.process.pid) - before
    return commits / took, spent / took


def measure(times: int) -> tuple[dict[str, list[float]], tuple[float, float]]:
    """Return how many seconds each fault lasted, sorted, and what a storm of commits costs."""
    found: dict[str, list[float]] = {}
    with ExitStack() as stack:
        host = stack.enter_context(Host("heal"))
        netplug = Netplug(host, "--docker-host", "none")
        netplug.cli("network", "create", "blue")
        for number in range(ENDPOINTS):
            place = stack.enter_context(namespace(host))
            netplug.cli("attach", "blue", "--netns", place.name, "--publish", f"{8000 + number}:80")
        wait_until(lambda: not netplug.drift(), LIMIT_S, "no drift")
        before = rules(host)
        for fault, command in FAULTS.items():
            if fault == GATE:
                host.run(["iptables", "-P", "FORWARD", "DROP"])
                wait_until(lambda: "NETPLUG-FORWARD" in host.output("iptables", "-S"), LIMIT_S, "the gate")
                wait_until(lambda: not netplug.drift(), LIMIT_S, "no drift")
                before = rules(host)
            took = []
            for _ in range(times):
                host.run(command)
                started = time.perf_counter()
                while rules(host) != before:
                    if time.perf_counter() - started > LIMIT_S:
                        raise SystemExit(f"{fault} did not come back: {netplug.drift()}")
                took.append(time.perf_counter() - started)
            found[fault] = sorted(took)
            print(f"{fault}: done {times} times", file=sys.stderr)
        commits = storm(host, netplug)
        netplug.stop()
    return found, commits


def main() -> None:
    """Measure, and print or dump."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    measured, (commits, share) = measure(options.times)
    found = {
        fault: {name: round(took[int(part * (len(took) - 1))], 3) for name, part in (("p50", 0.5), ("p99", 0.99))}
        for fault, took in measured.items()
    }
    if options.json:
        print(json.dumps(found | {"storm": {"commits/s": round(commits, 1), "share": round(share, 4)}}))
        return
    title = f"seconds until the ruleset is as before, {options.times} times each"
    table = Table("deleted", "median", "p99", "goal", title=title)
    for fault, took in found.items():
        table.add_row(fault, f"{took['p50']:.3f}", f"{took['p99']:.3f}", at_most(took["p99"], GOAL_S, " s"))
    console = Console(width=120)
    console.print(table)
    goal = at_most(share, SHARE_GOAL)
    console.print(f"{commits:.0f} commits of others a second cost {100 * share:.1f} % of a processor ({goal})")


if __name__ == "__main__":
    main()
