"""Cost of changing what lives: a network with 1 000 endpoints, and a host with 100 overlay networks and 1 000 peers.

The engine runs on the real kernel in a namespace. It measures:

1. the processor time of a comparison of records with plans that changes nothing (`Convergence.all`), and of one that
   computes all plans anew;
2. the time of a change of each option until the kernel has it at all endpoints (`NetworkUpdates.update`); every tenth
   endpoint has a published port;
3. the time from another tunnel address of the host until all tunnels, tables and FDB entries follow.

Run it as root: ``make bench`` or ``.venv/bin/python bench/converge.py [--endpoints N] [--json]``. Everything happens in
a namespace that it creates and removes.
"""

import argparse
import asyncio
import json
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import structlog
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))

from goals import at_most
from harness import Host

from netplug.daemon.drivers import load_drivers
from netplug.drivers.api import Peer, PortMapping
from netplug.drivers.steps import Proto
from netplug.engine import Engine
from netplug.engine.network_updates import NetworkChange
from netplug.engine.records import EndpointSpec, FrontEnd, NetworkSpec, SubnetSpec
from netplug.ipam.allocator import Allocator
from netplug.ipam.spaces import default_spaces, ula
from netplug.kernel.linux import LinuxKernel
from netplug.reconcile import Reconciler
from netplug.store.leases import StoredLeases
from netplug.store.sqlite import SqliteStore

TIMES = 5
OPTIONS = {
    "ttl": ("6", "7"),
    "masquerade": ("false", "true"),
    "dns": ("off", "on"),
    "mtu": ("1400", "1450"),
    "icc": ("false", "true"),
    "spoofchk": ("false", "true"),
    "host_binding_ipv4": ("127.0.0.1", "127.0.0.2"),
    "rate": ("100mbit", "200mbit"),
}
"""By name: two values, which are set in turn. Options whose change is one of the network alone come first."""
NETWORKS, PEERS = 100, 10
OLD, NEW = "192.0.2.1", "192.0.2.9"
LIMIT_S = 600
GOALS = {"unchanged": 5.0, "readdressed": 2000.0} | dict.fromkeys(OPTIONS, 1000.0)


async def opened(path: str) -> tuple[Engine, Reconciler, SqliteStore]:
    store = await SqliteStore.open(path)
    kernel = await LinuxKernel.open()
    engine = Engine(kernel, store, Allocator(StoredLeases(store), default_spaces(ula(b"bench"))), load_drivers())
    return engine, Reconciler(engine), store


async def many_endpoints(path: str, count: int) -> dict[str, float]:
    """Return milliseconds by what is measured, with one bridge network."""
    engine, reconciler, store = await opened(path)
    await reconciler.start()
    subnet = SubnetSpec(ip_network("10.210.0.0/16"), space="external", gateway=ip_address("10.210.0.1"))
    ident = "a1" * 32
    spec = NetworkSpec(ident, "blue", {"mtu": "1450"}, (subnet,), front_end=FrontEnd.DOCKER)
    await engine.networks.create(spec)
    for number in range(count):
        address = ip_interface(f"10.210.{1 + number // 250}.{1 + number % 250}/16")
        name = sha256(str(number).encode()).hexdigest()
        await engine.endpoints.create(EndpointSpec(name, ident, (address,)))
        if number % 10 == 0:
            await engine.publishing.publish(ident, name, (PortMapping(Proto.TCP, 80, None, 20_000 + number),))
    found: dict[str, float] = {}
    await engine.convergence.all()
    found["unchanged"] = await cpu_of(engine.convergence.all)

    async def anew() -> None:
        engine.planner.forget(ident)
        await engine.convergence.all()

    found["computed anew"] = await cpu_of(anew)
    for name, values in OPTIONS.items():
        took = []
        for turn in range(TIMES * 2):
            started = time.perf_counter()
            await engine.network_updates.update(ident, NetworkChange({name: values[turn % 2]}))
            took.append((time.perf_counter() - started) * 1000)
        found[name] = statistics.median(took)
    assert not await reconciler.diff()
    await engine.networks.delete(ident, by=FrontEnd.DOCKER)
    await engine.kernel.close()
    await store.close()
    return found


async def cpu_of(work: Callable[[], Awaitable[Any]]) -> float:
    """Return the median of the processor time in milliseconds."""
    took = []
    for _ in range(TIMES):
        started = time.process_time()
        await work()
        took.append((time.process_time() - started) * 1000)
    return statistics.median(took)


async def readdressed(path: str) -> dict[str, float]:
    """Return the milliseconds that a host takes to follow its tunnel address."""
    engine, reconciler, store = await opened(path)
    engine.base_plan.vtep = ip_address(OLD)
    await reconciler.start()
    for number in range(NETWORKS):
        options = {"mode": "overlay", "vni": str(7000 + number)}
        subnet = SubnetSpec(ip_network(f"10.220.{number}.0/24"))
        record = await engine.networks.create(NetworkSpec("", f"o{number}", options, (subnet,)))
        peers = [
            Peer(f"{number}-{it}", f"02:00:0a:dc:{number:02x}:{it:02x}", (ip_address(f"10.220.{number}.{it}"),), vtep)
            for it, vtep in ((it, ip_address(f"192.0.2.{it}")) for it in range(10, 10 + PEERS))
        ]
        assert not await engine.peers.apply(record.network.id, peers)
    took = []
    for turn in range(TIMES):
        vtep = (NEW, OLD)[turn % 2]
        started = time.perf_counter()
        engine.base_plan.vtep = ip_address(vtep)
        await engine.base_plan.read_host()
        await engine.convergence.all()
        took.append((time.perf_counter() - started) * 1000)
        assert not await reconciler.diff()
    await engine.kernel.close()
    await store.close()
    return {"readdressed": statistics.median(took)}


def make_uplink() -> None:
    """Give the namespace an uplink with both tunnel addresses, and a default route."""
    for line in (
        "link add up0 type veth peer name up1",
        "link set up1 up",
        f"address add {OLD}/24 dev up0",
        f"address add {NEW}/24 dev up0",
        "link set up0 up",
        "route add default via 192.0.2.254",
    ):
        subprocess.run(["ip", *line.split()], check=True)


async def inside(count: int) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with TemporaryDirectory() as place:
        found = await many_endpoints(f"{place}/one", count)
        found |= await readdressed(f"{place}/two")
    print(json.dumps(found))


def main() -> None:
    """Measure, and print or dump."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoints", type=int, default=1000)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        make_uplink()
        asyncio.run(inside(options.endpoints))
        return
    with Host("converge") as host:
        argv = [sys.executable, __file__, "--inside", "--endpoints", str(options.endpoints)]
        found: dict[str, float] = json.loads(host.run(argv, timeout_s=LIMIT_S).stdout.splitlines()[-1])
    if options.json:
        print(json.dumps(found))
        return
    table = Table("what", "ms", "goal", title=f"{options.endpoints} endpoints; {NETWORKS} networks, {PEERS} peers each")
    words = {"unchanged": "comparison, nothing changed (CPU)", "computed anew": "all plans computed anew (CPU)"}
    words["readdressed"] = "another tunnel address"
    for name, took in found.items():
        goal = at_most(took, GOALS.get(name), " ms")
        table.add_row(words.get(name, f"option {name}"), f"{took:.2f}", goal)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
