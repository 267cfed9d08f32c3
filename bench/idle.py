"""Processor time of a daemon that has nothing to do, with a thousand endpoints.

It runs a real daemon with namespaces on bridge networks, each with a published port, waits until all is settled, and
reads the processor time of the daemon from proc(5) (``/proc/PID/stat``, utime and stime) over a minute and more. That
has the comparisons at intervals in it. The time is the processor's own, so a busy machine hardly changes it.

Run it as root: ``.venv/bin/python bench/idle.py [--endpoints N] [--networks N] [--seconds S] [--json]``.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))

from ballast import lay
from goals import at_most
from harness import Host, Netplug

GOAL = 0.005
"""Of one processor."""
SETTLE_S = 40.0
"""The first comparison at intervals is over by then."""
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Return the seconds of processor time that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def measure(networks: int, endpoints: int, seconds: float) -> float:
    """Return the share of a processor that the daemon takes while nothing happens."""
    with Host("idle") as host:
        netplug = Netplug(host, "--docker-host", "none")
        assert netplug.process
        lay(host, netplug, networks, endpoints)
        time.sleep(SETTLE_S)
        before, started = cpu_s(netplug.process.pid), time.monotonic()
        time.sleep(seconds)
        share = (cpu_s(netplug.process.pid) - before) / (time.monotonic() - started)
        netplug.stop()
        return share


def main() -> None:
    """Measure, and print or dump."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoints", type=int, default=1000)
    parser.add_argument("--networks", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a line")
    options = parser.parse_args()
    share = measure(options.networks, options.endpoints, options.seconds)
    if options.json:
        print(json.dumps({"endpoints": options.endpoints, "share": round(share, 5)}))
        return
    goal = at_most(100 * share, 100 * GOAL, " %")
    print(f"{options.endpoints} endpoints: {100 * share:.2f} % of a processor ({goal})")


if __name__ == "__main__":
    main()
