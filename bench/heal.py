"""Repair time of deleted firewall rules: from the command that deletes them until the ruleset is as before.

It runs a real daemon with ten namespaces on a bridge network, each with a published port. It repeats each fault, and
reads the whole ruleset of the host until it is as before. The goal applies to the 99th percentile of 100 repetitions.

Run it as root: ``make bench`` or ``.venv/bin/python bench/heal.py [--times N] [--json]``. Everything happens in
namespaces that it creates and removes.
"""

import argparse
import json
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
    "the rules of iptables": ["iptables", "-F"],
    "the rules of NAT (iptables)": ["iptables", "-t", "nat", "-F"],
    "the table of published ports": ["nft", "delete", "table", "ip", "netplug"],
}
LIMIT_S = 60


def rules(host: Host) -> list[str]:
    """Return the host's ruleset without counters; the order of chains and elements means nothing."""
    return sorted(host.output("nft", "--stateless", "list", "ruleset").splitlines())


def measure(times: int) -> dict[str, list[float]]:
    """Return how many seconds each fault lasted, sorted."""
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
        netplug.stop()
    return found


def main() -> None:
    """Measure, and print or dump."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    found = {
        fault: {name: round(took[int(part * (len(took) - 1))], 3) for name, part in (("p50", 0.5), ("p99", 0.99))}
        for fault, took in measure(options.times).items()
    }
    if options.json:
        print(json.dumps(found))
        return
    title = f"seconds until the ruleset is as before, {options.times} times each"
    table = Table("deleted", "median", "p99", "goal", title=title)
    for fault, took in found.items():
        table.add_row(fault, f"{took['p50']:.3f}", f"{took['p99']:.3f}", at_most(took["p99"], GOAL_S, " s"))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
