"""How fast hosts of a cluster learn of each other, and how often their claims of addresses conflict.

It uses real kernels and a real etcd, in namespaces that it creates and removes. Run it as root:

    .venv/bin/python bench/cluster.py

1. From the publication of an endpoint by another host to its last entry in this host's kernel (by netlink
   notification).
2. From the start of a host's daemon until 1 000 endpoints of other hosts are in its kernel.
3. A burst of 10 000 endpoint creations and deletions, until the kernel has exactly the final state.
4. Four hosts that claim 2 000 addresses of one subnet at once: transactions per claim.

This program plays the other host: it writes to the store what a daemon writes there.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))

from goals import at_most
from harness.cluster import CLIENT_PORT, Cluster, Member
from harness.host import Host

from netplug.cluster.claims import SharedLeases
from netplug.cluster.records import HOSTS, EndpointAdvert, HostRecord, as_put, endpoint_key
from netplug.ipam.allocator import Allocator
from netplug.ipam.lease import Lease, Owner, OwnerKind
from netplug.ipam.scan_offset import HashedStart
from netplug.ipam.spaces import default_spaces, ula
from netplug.kernel.sandbox.netns import run_in
from netplug.store.access import EtcdAccess
from netplug.store.api import Compare, Delete, Put
from netplug.store.etcd import EtcdStore
from netplug.store.leases import lease_key, stamped
from netplug.store.sqlite import SqliteStore

WHAT = (
    "published → in the kernel, p50",
    "published → in the kernel, p99",
    "cold start with 1 000 endpoints",
    "burst of 10 000 events",
    "transactions per claim",
)
ME = "bench"
POOL = "global/10.77.0.0/16"
RTMGRP_NEIGH = 4
NOTICES = 3
"""Of each endpoint: the VXLAN link's entry, the bridge's, and the neighbour."""
BUFFER_BYTES = 1 << 26
TXN_OPS = 100
LIMIT_S = 60.0
_T = TypeVar("_T")


def inside(host: Host, work: Callable[[], _T]) -> _T:
    """Run something in the network namespace of a host."""
    fd = os.open(host.netns, os.O_RDONLY)
    try:
        return run_in(fd, work)
    finally:
        os.close(fd)


def notices(host: Host) -> socket.socket:
    """Return a socket that gets what a host's kernel tells of its neighbours and forwarding tables."""

    def listen() -> socket.socket:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        sock.setsockopt(socket.SOL_SOCKET, 33, BUFFER_BYTES)  # SO_RCVBUFFORCE
        sock.bind((0, RTMGRP_NEIGH))
        sock.settimeout(LIMIT_S)
        return sock

    return inside(host, listen)


def mac_of(number: int) -> str:
    return f"02:6e:00:00:{number >> 8:02x}:{number & 255:02x}"


def told(number: int) -> EndpointAdvert:
    return EndpointAdvert(mac_of(number), (ip_address("10.77.0.0") + 16 + number,))


class Writer:
    """What another host's daemon would write, from the router."""

    def __init__(self, router: Host, network: str) -> None:
        self._router = router
        self._network = network

    def run(self, work: Callable[[EtcdStore], Awaitable[_T]]) -> _T:
        async def connected() -> _T:
            store = await EtcdStore.open(EtcdAccess((f"127.0.0.1:{CLIENT_PORT}",)))
            try:
                return await work(store)
            finally:
                await store.close()

        return inside(self._router, lambda: asyncio.run(connected()))

    def claim(self, number: int) -> Put:
        """Without it, other hosts ignore the endpoint's record."""
        (address,) = told(number).addresses
        lease = Lease(POOL, address, Owner(OwnerKind.ENDPOINT, f"{number:064x}"))
        return Put(lease_key(POOL, address), stamped(lease, ME))

    def put(self, number: int) -> Put:
        return as_put(endpoint_key(self._network, ME, f"{number:064x}"), told(number))

    def delete(self, number: int) -> Delete:
        return Delete(endpoint_key(self._network, ME, f"{number:064x}"))

    def do(self, ops: Sequence[Put | Delete]) -> None:
        """Do all, in transactions as large as may be; operations on one key stay in order."""

        async def work(store: EtcdStore) -> None:
            for start in range(0, len(ops), TXN_OPS):
                await store.txn([], ops[start : start + TXN_OPS])

        self.run(work)


def propagation(member: Member, writer: Writer, rounds: int) -> list[float]:
    """Return milliseconds from before the put until the last entry, of one endpoint after another."""
    times: list[float] = []
    with notices(member.host) as sock:

        async def work(store: EtcdStore) -> None:
            for number in range(rounds):
                mac = bytes.fromhex(mac_of(number).replace(":", ""))
                put = writer.put(number)
                started = time.perf_counter()
                await store.txn([], [put])
                await asyncio.to_thread(_await, sock, mac)
                times.append((time.perf_counter() - started) * 1000)

        writer.run(work)
    writer.do([writer.delete(number) for number in range(rounds)])
    _until(lambda: not macs(member.host), "all are gone")
    return times


def _await(sock: socket.socket, mac: bytes) -> None:
    seen = 0
    while seen < NOTICES:
        seen += sock.recv(1 << 16).count(mac)


def macs(host: Host) -> set[str]:
    """Return the MACs that a host's kernel sends to other hosts."""
    lines = (line.split() for line in host.output("bridge", "fdb", "show").splitlines())
    return {words[0] for words in lines if "dst" in words and words[0].startswith("02:6e:00:00")}


def _until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"not in {LIMIT_S:g} s: {what}")
        time.sleep(0.02)


def cold_start(cluster: Cluster, writer: Writer, count: int) -> float:
    """Return seconds from the start of a new host's daemon until it reaches all endpoints of others."""
    writer.do([writer.put(number) for number in range(count)])
    _until(lambda: len(macs(cluster.members[0].host)) == count, "the first host reaches all")
    host, wire = cluster.prepare()
    started = time.perf_counter()
    cluster.join(host, wire)
    with notices(host):
        _until(lambda: len(macs(host)) == count, "the new host reaches all")
    return time.perf_counter() - started


def burst(cluster: Cluster, writer: Writer, count: int, events: int) -> float:
    """Delete and put endpoints so many times, and return seconds until the kernels have those of the end."""
    ops: list[Put | Delete] = []
    for turn in range(events // count):
        # Those with odd numbers are there in the end.
        ops += [writer.put(n) if turn % 2 == (n % 2) else writer.delete(n) for n in range(count)]
    last = events // count - 1
    wanted = {mac_of(n) for n in range(count) if last % 2 == (n % 2)}
    started = time.perf_counter()
    writer.do(ops)
    for member in cluster.members:
        _until(lambda member=member: macs(member.host) == wanted, f"{len(wanted)} on {member.host.name}")  # type: ignore[misc]
    return time.perf_counter() - started


class Counting:
    """A store that counts transactions."""

    def __init__(self, store: EtcdStore) -> None:
        self._store = store
        self.range, self.get = store.range, store.get
        self.count = 0

    async def txn(
        self, compares: Sequence[Compare], ops: Sequence[Put | Delete], *, durable: bool = False
    ) -> int | None:
        self.count += 1
        return await self._store.txn(compares, ops, durable=durable)


def claims(cluster: Cluster, total: int) -> tuple[float, float]:
    """Let four hosts claim at once; return transactions per claim, and claims per second."""
    names = ("alpha", "beta", "gamma", "delta")

    async def host(name: str) -> tuple[list[Any], int]:
        store = await EtcdStore.open(EtcdAccess((f"127.0.0.1:{CLIENT_PORT}",)))
        local, counting = await SqliteStore.open(":memory:"), Counting(store)
        leases = SharedLeases(local, counting, name)  # type: ignore[arg-type]  # what it uses is there
        allocator = Allocator(leases, default_spaces(ula(b"bench")), start=HashedStart(name))
        pool = await allocator.request_pool("global", network=ip_network("10.78.0.0/20"))
        owners = (Owner(OwnerKind.ENDPOINT, f"{name}-{n}") for n in range(total // len(names)))
        found = []

        async def work() -> None:
            found.extend([(await allocator.request_address(pool.id, owner=owner)).address for owner in owners])

        await asyncio.gather(*(work() for _ in range(8)))
        await store.close()
        await local.close()
        return found, counting.count

    async def all_hosts() -> list[tuple[list[Any], int]]:
        return await asyncio.gather(*map(host, names))

    started = time.perf_counter()
    results = inside(cluster.router, lambda: asyncio.run(all_hosts()))
    took = time.perf_counter() - started
    addresses = [address for found, _ in results for address in found]
    if len(set(addresses)) != total:
        raise SystemExit(f"{len(addresses)} claims gave {len(set(addresses))} addresses")
    return sum(count for _, count in results) / total, total / took


def measure(rounds: int, count: int, events: int, total: int) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        cluster = Cluster(stack)
        member = cluster.add()
        network = member.cli("network", "create", "blue", "--cluster", "--subnet", "10.77.0.0/16")
        writer = Writer(cluster.router, network)
        vtep = ip_address(member.wire.right)
        writer.do([as_put(HOSTS + ME, HostRecord(ME, vtep, 1))])
        writer.do([writer.claim(number) for number in range(max(rounds, count))])
        times = propagation(member, writer, rounds)
        started = cold_start(cluster, writer, count)
        swept = burst(cluster, writer, count, events)
        per_claim, rate = claims(cluster, total)
        drift = [line for it in cluster.members for line in it.netplug.drift().splitlines()]
    if drift:
        raise SystemExit("\n".join(drift))
    p50, p99 = statistics.median(times), statistics.quantiles(times, n=100)[98]
    values = (
        (f"{p50:.1f} ms", at_most(p50, 3, " ms")),
        (f"{p99:.1f} ms", at_most(p99, 15, " ms")),
        (f"{started:.2f} s", at_most(started, 2, " s")),
        (f"{swept:.1f} s, no loss", "no loss: holds"),  # else `burst` would not have ended
        (f"{per_claim:.3f} ({rate:.0f} claims per second)", at_most(per_claim, 1.1)),
    )
    return [{"what": what, "found": it, "goal": goal} for what, (it, goal) in zip(WHAT, values, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=500, help="endpoints published one after another")
    parser.add_argument("--endpoints", type=int, default=1000, help="endpoints of the cold start and the burst")
    parser.add_argument("--events", type=int, default=10_000, help="events of the burst")
    parser.add_argument("--claims", type=int, default=2000, help="claims of four hosts together")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    rows = measure(args.rounds, args.endpoints, args.events, args.claims)
    if args.json:
        json.dump(rows, sys.stdout, indent=1)
        return
    grid = Table("measurement", "result", "goal")
    for row in rows:
        grid.add_row(row["what"], row["found"], row["goal"])
    Console(width=100).print(grid)


if __name__ == "__main__":
    main()
