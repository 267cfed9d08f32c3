"""Attachment time of a container, compared with the same kernel work by `ip` and with Docker's own bridge.

Three measurements in one run, each interleaved with its peer:

1. CreateEndpoint + Join over the plugin socket, compared with the same kernel work by two ``ip -batch`` calls; on three
   hosts at once with 1, 100 and 1 000 existing endpoints, so that the growth is measured under the same load;
2. Leave + DeleteEndpoint on the same hosts, compared with ``ip link del``;
3. ``docker run --rm … true`` on a pynet network, compared with Docker's own user-defined bridge, in pairs.

Run it as root: ``make bench`` or ``.venv/bin/python bench/attach.py [--rounds N] [--runs N] [--json]``. Everything
happens in namespaces that it creates and removes.
"""

import argparse
import http.client
import json
import secrets
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))

from goals import at_most
from harness import Dockerd, Host, Netplug

SOCKET = "/run/docker/plugins/pynet.sock"
SIZES = (1, 100, 1000)
RATIO_GOAL, GROWTH_GOAL, DOCKER_GOAL = 2.0, 0.2, 1.0
"""Ratio of create and join to `ip -batch`; growth over `SIZES`; ratio of `docker run` to Docker's own bridge."""
PAUSE_S = 0.06
"""The kernel continues to delete links after an answer, which would slow the next measurement down."""


class Plugin:
    """The plugin's socket, used like dockerd does: one connection, kept alive."""

    def __init__(self, path: Path) -> None:
        self._connection = http.client.HTTPConnection("plugin", timeout=60)
        self._connection.sock = socket.socket(socket.AF_UNIX)
        self._connection.sock.connect(str(path))

    def call(self, method: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = json.dumps(body).encode() if body is not None else b""
        self._connection.request("POST", f"/{method}", data, {"Accept": "application/vnd.docker.plugins.v1.2+json"})
        response = self._connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        if response.status != 200:
            raise SystemExit(f"{method}: {answer}")
        return answer


class Network:
    """A bridge network whose addresses the caller chooses, as Docker's own IPAM would."""

    def __init__(self, plugin: Plugin, third: int) -> None:
        self.plugin, self.id, self._prefix, self._next = plugin, secrets.token_hex(32), f"10.{third}", 1
        pool = {"AddressSpace": "LocalDefault", "Pool": f"{self._prefix}.0.0/16", "Gateway": f"{self._prefix}.0.1/16"}
        options = {"com.docker.network.generic": {}, "com.docker.network.enable_ipv6": False}
        plugin.call(
            "NetworkDriver.CreateNetwork",
            {"NetworkID": self.id, "Options": options, "IPv4Data": [pool], "IPv6Data": []},
        )

    def attach(self) -> tuple[float, str]:
        """Return the milliseconds that it took, and the endpoint's id."""
        self._next += 1
        ident = secrets.token_hex(32)
        return timed(lambda: self._attach(ident))[0], ident

    def _attach(self, ident: str) -> None:
        address = f"{self._prefix}.{self._next >> 8}.{self._next & 255}/16"
        endpoint = {"NetworkID": self.id, "EndpointID": ident}
        interface = {"Address": address, "AddressIPv6": "", "MacAddress": ""}
        options = {"com.docker.network.endpoint.exposedports": [], "com.docker.network.portmap": []}
        self.plugin.call("NetworkDriver.CreateEndpoint", {**endpoint, "Interface": interface, "Options": options})
        self.plugin.call(
            "NetworkDriver.Join", {**endpoint, "SandboxKey": f"/var/run/docker/netns/{ident[:12]}", "Options": options}
        )

    def detach(self, ident: str) -> float:
        """Return the milliseconds that it took."""
        return timed(lambda: self._detach(ident))[0]

    def _detach(self, ident: str) -> None:
        endpoint = {"NetworkID": self.id, "EndpointID": ident}
        self.plugin.call("NetworkDriver.Leave", endpoint)
        self.plugin.call("NetworkDriver.DeleteEndpoint", endpoint)

    def close(self) -> None:
        """Delete it."""
        self.plugin.call("NetworkDriver.DeleteNetwork", {"NetworkID": self.id})


class ByHand:
    """The same kernel work by two `ip -batch` calls: one in the host, one in the sandbox.

    It is done and timed by a worker that lives in the host's namespaces, so that nothing but the work is measured.
    """

    def __init__(self, host: Host) -> None:
        command = host.inside([sys.executable, str(Path(__file__).resolve()), "--by-hand"])
        self._worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _ask(self, *words: str) -> list[str]:
        assert self._worker.stdin
        assert self._worker.stdout
        print(*words, file=self._worker.stdin, flush=True)
        return self._worker.stdout.readline().split()

    def attach(self) -> tuple[float, str]:
        took, name = self._ask("attach")
        return float(took), name

    def detach(self, name: str) -> float:
        return float(self._ask("detach", name)[0])

    def close(self) -> None:
        self._worker.communicate()


def by_hand() -> None:
    """Run the commands on stdin, and answer with the milliseconds that each took."""
    _ip("link add bench0 type bridge", "addr add 10.99.0.1/16 dev bench0", "link set bench0 up", "netns add bench")
    for number, line in enumerate(sys.stdin, 2):
        match line.split():
            case ["attach"]:
                print(timed(lambda number=number: _attach_by_hand(number))[0], f"bh{number}", flush=True)  # type: ignore[misc]
            case ["detach", name]:
                print(timed(lambda name=name: _ip(f"link del {name}"))[0], flush=True)  # type: ignore[misc]


def _attach_by_hand(number: int) -> None:
    name = f"bh{number}"
    _ip(f"link add {name} mtu 1500 type veth peer name {name}p netns bench", f"link set {name} master bench0 up")
    address = f"10.99.{number >> 8}.{number & 255}/16"
    _ip(f"addr add {address} dev {name}p", f"link set {name}p up", netns="bench")


def _ip(*lines: str, netns: str = "") -> None:
    where = ["-n", netns] if netns else []
    subprocess.run(["ip", *where, "-batch", "-"], input="\n".join(lines), text=True, check=True)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return how many milliseconds the work took, and its result."""
    started = time.perf_counter()
    result = work()
    return (time.perf_counter() - started) * 1000, result


def plugin_calls(rounds: int) -> list[dict[str, Any]]:
    """Measure the plugin's calls on hosts with 1, 100 and 1 000 endpoints, and the peer, in turn."""
    with ExitStack() as stack:
        networks = {}
        for size in SIZES:
            host = stack.enter_context(Host(f"bench{size}"))
            Netplug(host, "--docker-host", "none")
            plugin = Plugin(host.path(SOCKET))
            plugin.call("Plugin.Activate")
            networks[size] = Network(plugin, 101)
            for _ in range(size):
                networks[size].attach()
        peers: dict[int, Network | ByHand] = {**networks, 0: ByHand(stack.enter_context(Host("byhand")))}
        made: dict[int, list[float]] = {size: [] for size in peers}
        gone: dict[int, list[float]] = {size: [] for size in peers}
        for turn in range(rounds):
            for size in sorted(peers, reverse=bool(turn % 2)):
                took, ident = peers[size].attach()
                made[size].append(took)
                gone[size].append(peers[size].detach(ident))
                time.sleep(PAUSE_S)
        peers[0].close()
    return [
        {
            "endpoints": size,
            "create_join_ms": _quantiles(made[size]),
            "ip_batch_ms": _quantiles(made[0]),
            "ratio": round(statistics.median(made[size]) / statistics.median(made[0]), 2),
            "leave_delete_ms": _quantiles(gone[size]),
            "ip_delete_ms": _quantiles(gone[0]),
        }
        for size in SIZES
    ]


def _quantiles(samples: list[float]) -> dict[str, float]:
    ordered = sorted(samples)
    return {"p50": round(statistics.median(ordered), 2), "p99": round(ordered[int(len(ordered) * 0.99)], 2)}


def docker_runs(runs: int) -> dict[str, Any]:
    """Measure `docker run --rm` in pairs that swap their order each time."""
    with Host("bench") as host:
        dockerd = Dockerd(host)
        Netplug(host)
        return _docker_runs(dockerd, runs)


def _docker_runs(dockerd: Dockerd, runs: int) -> dict[str, Any]:
    samples: dict[str, list[float]] = {"pynet": [], "bridge": []}
    for driver in samples:
        dockerd.docker("network", "create", "-d", driver, f"n-{driver}")
    for turn in range(runs + 1):
        for driver in sorted(samples, reverse=bool(turn % 2)):
            took, _ = timed(lambda d=driver: dockerd.docker("run", "--rm", "--network", f"n-{d}", "bb:1", "true"))  # type: ignore[misc]
            if turn:  # the first of each warms up
                samples[driver].append(took)
    for driver in samples:
        dockerd.docker("network", "rm", f"n-{driver}")
    ratios = [ours / theirs for ours, theirs in zip(samples["pynet"], samples["bridge"], strict=True)]
    medians = {driver: round(statistics.median(values), 1) for driver, values in samples.items()}
    return {"runs": runs, "pynet_ms": medians["pynet"], "bridge_ms": medians["bridge"], "ratio": _median(ratios)}


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 3)


def table(report: dict[str, Any]) -> None:
    calls = Table(
        *("endpoints", "create+join p50", "p99", "ip -batch p50", "ratio", "goal"),
        *("leave+delete p50", "p99", "ip del p50"),
    )
    for row in report["calls"]:
        made, by_hand, gone = row["create_join_ms"], row["ip_batch_ms"], row["leave_delete_ms"]
        cells = row["endpoints"], made["p50"], made["p99"], by_hand["p50"], row["ratio"]
        more = at_most(row["ratio"], RATIO_GOAL), gone["p50"], gone["p99"], row["ip_delete_ms"]["p50"]
        calls.add_row(*map(str, (*cells, *more)))
    console = Console(width=120)
    console.print(calls)
    growth = f"{report['growth']:+.0%} ({at_most(report['growth'], GROWTH_GOAL)})"
    console.print(f"growth of create+join from {SIZES[0]} to {SIZES[-1]} endpoints: {growth}")
    docker = report["docker_run"]
    console.print(
        f"docker run --rm … true: pynet {docker['pynet_ms']} ms, bridge {docker['bridge_ms']} ms, "
        f"median of {docker['runs']} paired ratios {docker['ratio']} ({at_most(docker['ratio'], DOCKER_GOAL)})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="attachments at each size")
    parser.add_argument("--runs", type=int, default=20, help="pairs of docker run")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--by-hand", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.by_hand:
        by_hand()
        return
    docker = docker_runs(args.runs)
    calls = plugin_calls(args.rounds)
    report: dict[str, Any] = {"calls": calls, "docker_run": docker}
    first, last = (calls[i]["create_join_ms"]["p50"] for i in (0, -1))
    report["growth"] = round(last / first - 1, 3)
    if args.json:
        json.dump(report, sys.stdout, indent=1)
    else:
        table(report)


if __name__ == "__main__":
    main()
