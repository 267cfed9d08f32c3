"""Speed between containers on two hosts, compared with a tunnel created by `ip` and with Docker's swarm overlay.

Three pairs of hosts, each on a cable of its own, exist at the same time and are measured alternately, so that they
share the load of the machine. The figures are medians over the rounds:

1. TCP throughput of one stream, container to container;
2. latency of a one-byte request with its reply, client and server each bound to a CPU of their own (otherwise the
   scheduler's placement would decide the result).

``ours``: an overlay network of two engines. ``by hand``: veth, bridge, and a vxlan link with static entries, MTU 1450,
no firewall. ``swarm``: two dockerds in one swarm, with an attachable overlay network.

Run it as root: ``make bench`` or ``.venv/bin/python bench/overlay.py [--rounds N] [--seconds S] [--exchanges N]
[--no-swarm] [--json]``. Everything happens in namespaces that it creates and removes.
"""

import argparse
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))

from goals import at_least, at_most
from harness import Dockerd, Host, Namespace, Node, connect, pair
from harness.netns import open_socket

PORT = 5201
CHUNK = 1 << 20
WARM_UP = 200
"""Exchanges before those that count."""


@dataclass(frozen=True)
class Way:
    """From a client's network namespace to a server's, at an address of it."""

    client: Path
    server: Path
    address: str

    @contextmanager
    def connected(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        """A TCP connection: the client's and the server's end."""
        with open_socket(self.server, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.address, PORT))
            listener.listen(1)
            with open_socket(self.client, socket.SOCK_STREAM) as near:
                near.settimeout(10)
                near.connect((self.address, PORT))
                near.settimeout(None)
                far, _ = listener.accept()
                with far:
                    for end in (near, far):
                        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    yield near, far


def throughput(way: Way, seconds: float) -> float:
    """Return Gbit/s as the receiver counts them, the first fifth left out."""
    with way.connected() as (near, far):
        sender = _fork(lambda: _flood(near, far, seconds * 1.2))
        buffer = bytearray(CHUNK)
        near.close()
        begun = time.perf_counter() + seconds * 0.2
        received = 0
        while size := far.recv_into(buffer):
            if time.perf_counter() >= begun:
                received += size
        took = time.perf_counter() - begun
        _join(sender)
    return received * 8 / took / 1e9


def _flood(near: socket.socket, far: socket.socket, seconds: float) -> None:
    far.close()
    chunk, end = bytes(CHUNK), time.perf_counter() + seconds
    while time.perf_counter() < end:
        near.sendall(chunk)
    near.shutdown(socket.SHUT_WR)


def latency(way: Way, exchanges: int) -> float:
    """Return the median of a request's and its answer's microseconds."""
    cpus = sorted(os.sched_getaffinity(0))
    with way.connected() as (near, far):
        server = _fork(lambda: _echo(far, cpus[-1]))
        os.sched_setaffinity(0, {cpus[0]})
        try:
            samples = []
            for _ in range(WARM_UP + exchanges):
                started = time.perf_counter()
                near.send(b"?")
                near.recv(1)
                samples.append(time.perf_counter() - started)
        finally:
            os.sched_setaffinity(0, cpus)
        near.shutdown(socket.SHUT_WR)
        _join(server)
    return statistics.median(samples[WARM_UP:]) * 1e6


def _echo(far: socket.socket, cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})
    while byte := far.recv(1):
        far.send(byte)


def _fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def _join(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit(f"a process of the measurement ended with status {status}")


@contextmanager
def hosts(name: str) -> Iterator[tuple[Host, Host, str, str]]:
    """Two hosts on a cable, and their addresses."""
    with Host(name) as left, Host(name) as right:
        wire = connect(left, right)
        yield left, right, wire.left, wire.right


@contextmanager
def ours() -> Iterator[Way]:
    """An overlay network of two engines, in both families."""
    with hosts("ours") as (left, right, near, far):
        nodes = Node(left, near), Node(right, far)
        with pair(nodes) as (_, one, two):
            yield Way(one.netns, two.netns, two.addresses[0])
        for node in nodes:
            node.close()


@contextmanager
def by_hand() -> Iterator[Way]:
    """The same by `ip`, less what makes a network of it: no gateway, firewall, published ports."""
    with hosts("hand") as (left, right, near, far):
        places = []
        for host, local, remote, own, other in ((left, near, far, 2, 3), (right, far, near, 3, 2)):
            place = Namespace(host, "c")
            places.append(place)
            host.run(["sh", "-ec", _tunnel(local, remote, own, other)])
        yield Way(places[0].netns, places[1].netns, "10.94.1.3")


def _tunnel(local: str, remote: str, own: int, other: int) -> str:
    mac = "02:00:00:00:00:0{}".format
    return f"""
        ip link add br0 address 02:00:00:00:00:01 mtu 1450 type bridge
        ip link set br0 up
        ip link add vx0 mtu 1450 type vxlan id 42 dstport 4789 local {local} nolearning
        ip link set vx0 master br0 up
        bridge link set dev vx0 learning off neigh_suppress on flood off mcast_flood off bcast_flood off
        ip link add c0 mtu 1450 type veth peer name eth0 mtu 1450 address {mac(own)} netns c
        ip link set c0 master br0 up
        ip -n c addr add 10.94.1.{own}/24 dev eth0
        ip -n c link set eth0 up
        bridge fdb replace {mac(other)} dev vx0 self dst {remote}
        bridge fdb replace {mac(other)} dev vx0 master static
        ip neigh replace 10.94.1.{other} lladdr {mac(other)} dev br0 nud permanent
    """


@contextmanager
def swarm() -> Iterator[Way]:
    """Two dockerds in a swarm, with an attachable overlay network."""
    with hosts("swarm") as (left, right, near, far):
        first, second = Dockerd(left), Dockerd(right)
        first.docker("swarm", "init", "--advertise-addr", near)
        token = first.docker("swarm", "join-token", "-q", "worker")
        second.docker("swarm", "join", "--advertise-addr", far, "--token", token, f"{near}:2377")
        first.docker("network", "create", "-d", "overlay", "--attachable", "blue")
        one, two = (engine.run("--network", "blue") for engine in (first, second))
        yield Way(one.netns, two.netns, two.ip("blue"))
        for container in (one, two):
            container.remove()


GOALS = {"by hand": (0.97, 1.05), "swarm": (1.1, 0.95)}
"""Ratios of netplug's overlay to each: least throughput, greatest latency."""
WAYS: dict[str, Callable[[], Any]] = {"by hand": by_hand, "ours": ours, "swarm": swarm}


def measure(names: list[str], rounds: int, seconds: float, exchanges: int) -> dict[str, Any]:
    """Measure in turn, in another order each round."""
    with ExitStack() as stack:
        ways = {name: stack.enter_context(WAYS[name]()) for name in names}
        gbits: dict[str, list[float]] = {name: [] for name in names}
        micros: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(rounds + 1):
            order = names[turn % len(names) :] + names[: turn % len(names)]
            for name in order:
                rate, delay = throughput(ways[name], seconds), latency(ways[name], exchanges)
                if turn:  # the first round warms up
                    gbits[name].append(rate)
                    micros[name].append(delay)
    rows = {
        name: {
            "gbit_per_s": round(statistics.median(gbits[name]), 2),
            "rr_us": round(statistics.median(micros[name]), 1),
        }
        for name in names
    }
    for name in names:
        rows[name]["throughput_of_ours"] = _ratio(gbits["ours"], gbits[name])
        rows[name]["latency_of_ours"] = _ratio(micros["ours"], micros[name])
    return {"rounds": rounds, "seconds": seconds, "exchanges": exchanges, "ways": rows}


def _ratio(mine: list[float], others: list[float]) -> float:
    """Return the median of the ratios within a round, since rounds differ more than ways."""
    return round(statistics.median(a / b for a, b in zip(mine, others, strict=True)), 3)


def table(report: dict[str, Any]) -> None:
    grid = Table("overlay", "Gbit/s", "request/reply µs", "netplug's ratio: throughput", "goal", "latency", "goal")
    for name, row in report["ways"].items():
        fast, late = row["throughput_of_ours"], row["latency_of_ours"]
        least, most = GOALS.get(name, (None, None))
        verdicts = at_least(fast, least), at_most(late, most)
        grid.add_row(name, str(row["gbit_per_s"]), str(row["rr_us"]), str(fast), verdicts[0], str(late), verdicts[1])
    Console(width=120).print(grid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each overlay")
    parser.add_argument("--seconds", type=float, default=2, help="length of a throughput measurement")
    parser.add_argument("--exchanges", type=int, default=6000, help="exchanges of a latency measurement")
    parser.add_argument("--no-swarm", action="store_true", help="without Docker's swarm overlay")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    names = [name for name in WAYS if name != "swarm" or not args.no_swarm]
    report = measure(names, args.rounds, args.seconds, args.exchanges)
    if args.json:
        json.dump(report, sys.stdout, indent=1)
    else:
        table(report)


if __name__ == "__main__":
    main()
