"""Time of the CNI plugin for ADD and DEL, compared with the reference plugins, alternately in one run.

The peers are those of Debian's containernetworking-plugins with its default iptables. Times are wall time from the
start of a plugin's process to its end; the plugins of a list run one after the other, as in a runtime. Before the next
measurement, it waits for links that a DEL deletes in the background.

Run it as root: ``make bench`` or ``.venv/bin/python bench/cni.py [--rounds N] [--json]``. Everything happens in
namespaces that it creates and removes.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))

from goals import at_most
from harness import BIN_DIR, FOREIGN_DIR, Host, Netplug, Runtime

from netplug.ipam.allocator import Allocator
from netplug.ipam.lease import Owner, OwnerKind
from netplug.ipam.spaces import default_spaces, ula
from netplug.store.leases import StoredLeases
from netplug.store.sqlite import SqliteStore

MANY = 16_000
PORT = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
GOALS = {
    "gateway, masquerade": (0.45, 0.4),
    "gateway, no masquerade": (1.0, 1.0),
    "published port and firewall": (0.15, 0.15),
    f"{MANY} addresses in use": (0.1, None),
}


class Measured(Runtime):
    """A runtime whose plugins are run, and timed, by a worker inside the host."""

    worker: subprocess.Popen[str]
    took = 0.0

    def run(self, command: str, plugin: dict[str, Any], it: Any, previous: dict[str, Any]) -> dict[str, Any]:
        config = {"cniVersion": self.version, "name": self.name} | plugin
        env = {"CNI_COMMAND": command, "CNI_PATH": ":".join(self.path), "PATH": os.environ["PATH"]} | self.env
        env |= {"CNI_CONTAINERID": it.container, "CNI_NETNS": it.netns, "CNI_IFNAME": it.ifname}
        if "capabilities" in plugin:
            config |= {"runtimeConfig": PORT}
        if previous:
            config |= {"prevResult": previous}
        assert self.worker.stdin
        assert self.worker.stdout
        work = [self._find(plugin["type"]), env, json.dumps(config)]
        print(json.dumps(work), file=self.worker.stdin, flush=True)
        took, code, out = json.loads(self.worker.stdout.readline())
        if code:
            raise SystemExit(f"{command} {plugin['type']}: {out}")
        self.took += took
        answer: dict[str, Any] = json.loads(out) if out.strip() else {}
        return answer


def worker() -> None:
    """Run what stdin says, line by line, and answer with milliseconds, exit code and output."""
    for line in sys.stdin:
        program, env, given = json.loads(line)
        print(json.dumps(_spawn(program, env, given.encode())), flush=True)


def _spawn(program: str, env: Mapping[str, str], given: bytes) -> tuple[float, int, str]:
    stdin, stdout = os.memfd_create("in"), os.memfd_create("out")
    try:
        os.write(stdin, given)
        os.lseek(stdin, 0, 0)
        files = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stdout, 1)]
        started = time.perf_counter()
        pid = os.posix_spawn(program, [program], env, file_actions=files)
        _, status = os.waitpid(pid, 0)
        took = (time.perf_counter() - started) * 1000
        os.lseek(stdout, 0, 0)
        return took, os.waitstatus_to_exitcode(status), os.read(stdout, 1 << 20).decode()
    finally:
        os.close(stdin)
        os.close(stdout)


def scenarios(data_dir: str) -> dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Return the plugin lists of each comparison: netplug's, the reference's."""

    def theirs(number: int, *, masq: bool) -> dict[str, Any]:
        ipam = {
            "type": "host-local",
            "ranges": [[{"subnet": f"10.{number}.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": data_dir,
        }
        return {"type": "bridge", "bridge": f"ref{number}", "isGateway": True, "ipMasq": masq, "ipam": ipam}

    def ours(number: int, *, masq: bool) -> dict[str, Any]:
        ipam = {
            "type": "netplug-ipam",
            "ranges": [[{"subnet": f"10.{number}.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        return {"type": "pynet", "isGateway": True, "ipMasq": masq, "ipam": ipam}

    ports = {"capabilities": {"portMappings": True}}
    names = list(GOALS)
    return {
        names[0]: ([ours(110, masq=True)], [theirs(120, masq=True)]),
        names[1]: ([ours(111, masq=False)], [theirs(121, masq=False)]),
        names[2]: (
            [ours(112, masq=True) | ports],
            [theirs(122, masq=True), {"type": "portmap"} | ports, {"type": "firewall"}],
        ),
        names[3]: ([ours(113, masq=True)], [theirs(123, masq=True)]),
    }


async def fill(state: Path, network: str) -> None:
    """Lease addresses of our network; the daemon is down meanwhile."""
    store = await SqliteStore.open(state / "netplug.db")
    try:
        allocator = Allocator(StoredLeases(store), default_spaces(ula(b"bench")))
        await allocator.load()
        pool = allocator.pool_of(ip_network(network))
        assert pool
        for _ in range(MANY):
            await allocator.request_address(pool.id, owner=Owner(OwnerKind.PENDING))
    finally:
        await store.close()


def fill_theirs(host: Host, folder: str, network: str) -> None:
    """Lease addresses of a host-local network: a file each."""
    place = host.path(folder)
    place.mkdir(parents=True)
    net = ip_network(network)
    for number in range(2, MANY + 2):
        (place / str(net[number])).write_text(f"other{number}\r\neth0")
    (place / "last_reserved_ip.0").write_text(str(net[MANY + 1]))


def measure(rounds: int) -> list[dict[str, Any]]:
    with Host("cnibench") as host:
        host.run(["ip", "netns", "add", "box"])
        netplug = Netplug(host, "--docker-host", "none")
        for name in ("pynet", "netplug-ipam"):
            netplug.cli("cni", "install", "--bin-dir", BIN_DIR, "--name", name)
        data_dir = "/run/host-local"
        command = host.inside([sys.executable, str(Path(__file__).resolve()), "--worker"])
        Measured.worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            pairs = {
                name: [Measured(host, *plugins, path=(BIN_DIR, FOREIGN_DIR), version="0.4.0") for plugins in pair]
                for name, pair in scenarios(data_dir).items()
            }
            full = list(GOALS)[3]
            for runtime in (runtime for pair in pairs.values() for runtime in pair):
                runtime.delete(runtime.add("/run/netns/box"))
                settle(host)
            netplug.stop()
            asyncio.run(fill(netplug.state_dir, "10.113.0.0/16"))
            netplug.start()
            host.run(["rm", "-rf", f"{data_dir}/{pairs[full][1].name}"])
            fill_theirs(host, f"{data_dir}/{pairs[full][1].name}", "10.123.0.0/16")
            return [row(name, pair, rounds) for name, pair in pairs.items()]
        finally:
            Measured.worker.communicate()


def row(name: str, pair: list[Measured], rounds: int) -> dict[str, Any]:
    times: dict[str, list[list[float]]] = {"ADD": [[], []], "DEL": [[], []]}
    for turn in range(rounds + 1):
        for which in (0, 1) if turn % 2 else (1, 0):
            runtime = pair[which]
            runtime.took = 0
            it = runtime.add("/run/netns/box")
            added, runtime.took = runtime.took, 0
            runtime.delete(it)
            settle(runtime.host)
            if turn:
                times["ADD"][which].append(added)
                times["DEL"][which].append(runtime.took)
    found: dict[str, Any] = {"work": name}
    for (command, (ours, theirs)), goal in zip(times.items(), GOALS[name], strict=True):
        mine, other = statistics.median(ours), statistics.median(theirs)
        found[command] = {"ours_ms": round(mine, 1), "reference_ms": round(other, 1), "ratio": round(mine / other, 2)}
        found[command]["goal"] = goal
    return found


def settle(host: Host) -> None:
    """Wait until the kernel has deleted the link, so that the next one is not measured with it."""
    links = host.path("/proc").parent
    while (links / "sys/class/net").exists() and "nph" in "".join(os.listdir(links / "sys/class/net")):  # noqa: PTH208
        time.sleep(0.002)
    time.sleep(0.02)


def table(rows: list[dict[str, Any]]) -> None:
    grid = Table("work", "", "netplug ms", "reference ms", "ratio", "goal")
    for found in rows:
        for command in ("ADD", "DEL"):
            one = found[command]
            cells = (one["ours_ms"], one["reference_ms"], one["ratio"], at_most(one["ratio"], one["goal"]))
            grid.add_row(found["work"], command, *map(str, cells))
    Console(width=110).print(grid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="ADD and DEL of each, alternately")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker()
        return
    rows = measure(args.rounds)
    if args.json:
        json.dump(rows, sys.stdout, indent=1)
    else:
        table(rows)


if __name__ == "__main__":
    main()
