"""Memory of the daemon: at rest, with 100 endpoints, and after their removal.

It runs a real daemon in a namespace of its own, and 100 bare namespaces on a bridge network, each with a published
port, a name and an alias, as `netplug attach` creates them. The kernel reports resident memory (proc(5), smaps_rollup):
`private` is what would be free again if the daemon ended; the rest are pages of libraries and of the executable.

Run it as root: ``make bench`` or ``.venv/bin/python bench/memory.py [--endpoints N] [--json]``.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))

from goals import at_most
from harness import Host, Netplug
from harness.crowd import Api, memory_mb

GOAL_MB = 80
GOAL_ENDPOINTS = 100


def measure(endpoints: int) -> dict[str, dict[str, float]]:
    """Return what the daemon takes, by situation."""
    with Host("memory") as host:
        host.env.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed netplug is compiled
        host.env["PYTHONPYCACHEPREFIX"] = str(host.dir / "compiled")
        netplug = Netplug(host)
        netplug.restart()  # compiling took memory
        found = {"at rest": memory_mb(netplug)}
        netplug.cli("network", "create", "blue", "--subnet", "10.90.0.0/16")
        names = [f"box{number}" for number in range(endpoints)]
        host.run(["sh", "-c", "; ".join(f"ip netns add {name}" for name in names)])
        api = Api.of(netplug)
        for number, name in enumerate(names):
            ports = [{"proto": "tcp", "port": 80, "host_port": 20000 + number}]
            body = {"network": "blue", "netns": name, "name": name, "aliases": [f"www{number}"], "ports": ports}
            api.ask("POST", "attach", body)
        found[f"{endpoints} endpoints"] = memory_mb(netplug)
        host.run(["sh", "-c", "; ".join(f"ip netns del {name}" for name in names)])
        deadline = time.monotonic() + 60
        while netplug.json("ps") and time.monotonic() < deadline:
            time.sleep(0.5)
        found["after their removal"] = memory_mb(netplug)
        netplug.cli("network", "rm", "blue")
        netplug.stop()
        return found


def main() -> None:
    """Measure, and print or dump."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoints", type=int, default=GOAL_ENDPOINTS)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    found = measure(options.endpoints)
    if options.json:
        print(json.dumps(found))
        return
    table = Table("daemon", "resident", "private", "goal", title="memory, MB")
    for what, megabytes in found.items():
        goal = GOAL_MB if what == f"{GOAL_ENDPOINTS} endpoints" else None
        resident, private = megabytes["rss"], megabytes["private"]
        table.add_row(what, f"{resident:.1f}", f"{private:.1f}", at_most(resident, goal, " MB"))
    Console().print(table)


if __name__ == "__main__":
    main()
