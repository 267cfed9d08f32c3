"""Time for many published ports: publication, removal, and restoration after a restart and after a flush.

There are three layouts of the same number of ports: one sandbox with a single range; one sandbox with ports that are
not consecutive; and sandboxes with a hundred such ports each. For comparison, `docker run` and `docker rm` use the
range on Docker's own bridge, with its default of one proxy process per port.

Run it as root: ``make bench`` or ``.venv/bin/python bench/ports.py [--ports N] [--docker] [--json]``. Everything
happens in namespaces that it creates and removes.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))

from harness import Dockerd, Host, Netplug, netplugd
from harness.wait import wait_until

FIRST = 10_000
RESTARTS = 3
EACH = 100
"""Ports of a sandbox where there are several."""
GOAL_S = 1.0
"""For the restart, of each 5 000 ports."""


def timed(work: Callable[[], Any]) -> float:
    """Return how many seconds the work took."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def layouts(ports: int) -> dict[str, list[list[str]]]:
    """Return the ``--publish`` options of each sandbox, by layout."""
    last = FIRST + ports - 1
    scattered = [f"{port}:80" for port in range(FIRST, last + 1)]
    return {
        "one range": [[f"{FIRST}-{last}:{FIRST}-{last}"]],
        "one sandbox, scattered": [scattered],
        f"sandboxes of {EACH}": [scattered[at : at + EACH] for at in range(0, ports, EACH)],
    }


def measure(sandboxes: list[list[str]]) -> dict[str, float]:
    with Host("bench") as host:
        netplug = Netplug(host, "--docker-host", "none")
        idle = restarted_ms(netplug)
        netplug.cli("network", "create", "blue")
        for number in range(len(sandboxes)):
            host.run(["ip", "netns", "add", f"c{number}"])

        def attach() -> None:
            for number, options in enumerate(sandboxes):
                netplug.cli(
                    "attach", "blue", "--netns", f"c{number}", *(it for port in options for it in ("--publish", port))
                )

        took = {"publish_s": timed(attach)}
        took["restart_s"] = (restarted_ms(netplug) - idle) / 1000
        host.run(["nft", "delete", "table", "inet", "netplug"])
        took["flush_s"] = timed(lambda: wait_until(lambda: not netplug.drift(), 300, "healing"))
        took["detach_s"] = timed(
            lambda: [netplug.cli("detach", "blue", "--netns", f"c{n}") for n in range(len(sandboxes))]
        )
        return {name: round(value, 2) for name, value in took.items()}


def restarted_ms(netplug: Netplug) -> float:
    """Return the median of what some restarts took."""
    took = []
    for _ in range(RESTARTS):
        netplug.restart()
        took.append(started_ms(netplug))
    return statistics.median(took)


def started_ms(netplug: Netplug) -> int:
    """Return what the last start says that it took."""
    line = next(line for line in reversed(netplug.log.read_text().splitlines()) if "daemon.started" in line)
    if line.startswith("{"):
        return int(json.loads(line)["ms"])
    return int(next(word for word in line.split() if word.startswith("ms=")).removeprefix("ms="))


def docker(ports: int) -> dict[str, float]:
    """Measure Docker's own bridge and ours, with the range."""
    found = {}
    with Host("bench") as host:
        dockerd = Dockerd(host)
        Netplug(host)
        for driver in ("pynet", "bridge"):
            dockerd.docker("network", "create", "-d", driver, f"n-{driver}")
            span = f"{FIRST}-{FIRST + ports - 1}"
            run = ("run", "-d", "--init", "--name", driver, "--network", f"n-{driver}", "-p", f"{span}:{span}")
            found[f"{driver}_run_s"] = round(timed(lambda r=run: dockerd.docker(*r, "bb:1", "sleep", "9999")), 2)  # type: ignore[misc]
            found[f"{driver}_rm_s"] = round(timed(lambda d=driver: dockerd.docker("rm", "-f", d)), 2)  # type: ignore[misc]
            dockerd.docker("network", "rm", f"n-{driver}")
    return found


def main() -> None:
    netplugd.READY_TIMEOUT_S = 300  # to see how long it takes, where it takes long
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ports", type=int, default=5000)
    parser.add_argument("--docker", type=int, default=0, metavar="N", help="measure Docker too, with N ports")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    args = parser.parse_args()
    report: dict[str, Any] = {name: measure(sandboxes) for name, sandboxes in layouts(args.ports).items()}
    if args.json:
        json.dump({"ports": args.ports, **report}, sys.stdout, indent=1)
        return
    table = Table(f"{args.ports} ports", "publish", "restart", "repair after a flush", "remove")
    for name, took in report.items():
        table.add_row(name, *(f"{value:.2f} s" for value in took.values()))
    Console(width=120).print(table)
    goal = GOAL_S * max(1, args.ports / 5000)
    held = max(took["restart_s"] for took in report.values()) <= goal
    print(f"goal: restart within {goal:g} s of an idle one: {'holds' if held else 'missed'}")
    if args.docker:
        print(f"docker, {args.docker} ports: {docker(args.docker)}")


if __name__ == "__main__":
    main()
