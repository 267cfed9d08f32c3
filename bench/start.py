"""Time until a command has answered and until the daemon is ready, beside those of Docker and podman, in one run.

Commands run by turns, in a namespace with a daemon that has as many endpoints as `--endpoints` says. `wall` is the time
from a process's start to its end; `cpu` is its user and system time (getrusage(2)), which a busy machine changes less.
The daemon is measured until it says READY=1 to systemd, first without networks, then with the endpoints, which it finds
in the kernel as it left them; `cpu` includes the processes that it ran. Requests that come before wait in the queue of
the socket: `first answer` is that to one sent at once. dockerd, without containers, is measured until it answers a
ping. All times are medians.

Run it as root: ``make bench`` or ``.venv/bin/python bench/start.py [--rounds N] [--endpoints N] [--json]``.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))

from goals import at_most
from harness import Dockerd, Host, Netplug
from harness.dockerd import docker_command
from harness.netplugd import COMMAND, RUN_DIR

from netplug.cli import COMPLETE

COMMAND_GOAL_MS = 150
DAEMON_GOAL_MS = 500
TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")


def commands(host: Host) -> dict[str, list[str]]:
    """Return what is measured: netplug's commands, and peers."""
    ours = {
        f"netplug {words}": [str(COMMAND), *words.split()]
        for words in ("version", "ps", "ps --json", "network ls", "network inspect blue", "--help", "ps --help")
    } | {"netplug, completion of a name": [str(COMMAND), COMPLETE, "networks"]}
    peers = {"python -c pass": [sys.executable, "-c", "pass"], "docker ps": [docker_command(), "ps"]}
    if podman := shutil.which("podman"):
        peers["podman ps"] = [podman, "--root", str(host.dir / "podman"), "--runroot", "/run/podman", "ps"]
    return ours | peers


def worker() -> None:
    """Run what stdin says, line by line, and answer with its wall and CPU time in milliseconds."""
    null = os.open(os.devnull, os.O_RDWR)
    for line in sys.stdin:
        argv = json.loads(line)
        started = time.perf_counter()
        pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1)])
        _, status, used = os.wait4(pid, 0)
        took = (time.perf_counter() - started) * 1000
        if code := os.waitstatus_to_exitcode(status):
            raise SystemExit(f"{' '.join(argv)}: exit {code}")
        print(json.dumps([took, (used.ru_utime + used.ru_stime) * 1000]), flush=True)


def measure_commands(host: Host, rounds: int) -> dict[str, tuple[float, float]]:
    """Return wall and CPU time of each command. A first round, not counted, fills caches."""
    argv = host.inside([sys.executable, str(Path(__file__).resolve()), "--worker"])
    env = host.env | {"NETPLUG_RUN_DIR": RUN_DIR}
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdin
    assert process.stdout
    wanted = commands(host)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in wanted}
    try:
        for turn in range(rounds + 1):
            for name, command in wanted.items():
                print(json.dumps(command), file=process.stdin, flush=True)
                took, used = json.loads(process.stdout.readline())
                if turn:
                    found[name].append((took, used))
    finally:
        process.communicate()
    return {name: medians(times) for name, times in found.items()}


def medians(times: list[tuple[float, float]]) -> tuple[float, float]:
    return statistics.median(wall for wall, _ in times), statistics.median(cpu for _, cpu in times)


def cpu_of(pid: int) -> float:
    """Return the CPU time of a process and of the children that it waited for, in milliseconds (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) * TICK_MS


def started(server: Netplug | Dockerd) -> Iterator[tuple[str, float, float]]:
    """Start a stopped server, and yield wall and CPU time until it is ready, and until it has answered."""
    began = time.perf_counter()
    server.start()
    took = (time.perf_counter() - began) * 1000
    assert server.process
    yield "", took, cpu_of(server.process.pid)
    if isinstance(server, Netplug):
        server.client.get("version")
        yield ", first answer", (time.perf_counter() - began) * 1000, cpu_of(server.process.pid)


def measure_servers(rounds: int, servers: Mapping[str, Netplug | Dockerd]) -> dict[str, tuple[float, float]]:
    """Restart servers by turns, and return wall and CPU time of a start of each."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for _ in range(rounds):
        for name, server in servers.items():
            server.stop()
            for until, wall, cpu in started(server):
                found[name + until].append((wall, cpu))
    return {name: medians(times) for name, times in found.items()}


def fill(host: Host, netplug: Netplug, endpoints: int) -> Callable[[], None]:
    """Attach namespaces to a network; return what removes both."""
    netplug.cli("network", "create", "blue", "--subnet", "10.90.0.0/16")
    names = [f"box{number}" for number in range(endpoints)]
    host.run(["sh", "-c", "; ".join(f"ip netns add {name}" for name in names)])
    for number, name in enumerate(names):
        ports = [{"proto": "tcp", "port": 80, "host_port": 20000 + number}]
        netplug.client.post("attach", body={"network": "blue", "netns": name, "name": name, "ports": ports})

    def remove() -> None:
        for name in names:
            netplug.client.post("detach", body={"network": "blue", "netns": name, "ifname": "eth0"})
        netplug.cli("network", "rm", "blue")
        host.run(["sh", "-c", "; ".join(f"ip netns del {name}" for name in names)])

    return remove


def measure(rounds: int, endpoints: int) -> dict[str, dict[str, tuple[float, float]]]:
    """Return wall and CPU time of commands and servers."""
    with Host("start") as host:
        host.env.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed netplug is compiled
        host.env["PYTHONPYCACHEPREFIX"] = str(host.dir / "compiled")
        dockerd, netplug = Dockerd(host), Netplug(host)
        found = measure_servers(max(rounds // 4, 3), {"netplug serve": netplug, "dockerd": dockerd})
        remove = fill(host, netplug, endpoints)
        found |= measure_servers(max(rounds // 4, 3), {f"netplug serve, {endpoints} endpoints": netplug})
        measured = measure_commands(host, rounds)
        remove()
        netplug.stop()
        dockerd.stop()
    return {"commands": measured, "servers": found}


def table(title: str, rows: dict[str, tuple[float, float]], goal_ms: float) -> None:
    grid = Table(title, "wall ms", "cpu ms", "goal", title=f"load {os.getloadavg()[0]:.1f} of {os.cpu_count()}")
    for name, (wall, cpu) in rows.items():
        goal = at_most(wall, goal_ms, " ms") if name.startswith("netplug") and "answer" not in name else ""
        grid.add_row(name, f"{wall:.0f}", f"{cpu:.0f}", goal)
    Console(width=110).print(grid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="starts of each command; a quarter of each server")
    parser.add_argument("--endpoints", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker()
        return
    found: dict[str, Any] = measure(args.rounds, args.endpoints)
    if args.json:
        json.dump(found, sys.stdout, indent=1)
        return
    table("command", found["commands"], COMMAND_GOAL_MS)
    table("server", found["servers"], DAEMON_GOAL_MS)


if __name__ == "__main__":
    main()
