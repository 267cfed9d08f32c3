"""Run inside a host: the engine with a VTEP, told by JSON lines on stdin what to do. See `overlay.py`.

It is the daemon less its front ends and its cluster: what the cluster would tell of other hosts, the test tells.
"""

import asyncio
import json
import sys
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any

from netplug.daemon.drivers import load_drivers
from netplug.drivers.api import Meshed, Peer, PortMapping, Proto
from netplug.drivers.codec import decode, encode
from netplug.engine import Engine
from netplug.engine.records import AttachSpec, FrontEnd, NetworkSpec, SubnetSpec
from netplug.ipam.allocator import Allocator
from netplug.ipam.spaces import default_spaces, ula
from netplug.kernel.linux import LinuxKernel
from netplug.reconcile import Reconciler
from netplug.store.leases import StoredLeases
from netplug.store.sqlite import SqliteStore


class Node:
    """Answers one request after another."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reconciler = Reconciler(engine)

    async def start(self) -> None:
        await self._reconciler.start()

    async def network(self, name: str, subnets: list[str], **options: str) -> None:
        internal = options.pop("internal", "") == "true"
        asked = tuple(SubnetSpec(ip_network(subnet)) for subnet in subnets)
        raw = {"mode": "overlay", **options}
        await self._engine.networks.create(NetworkSpec(name=name, options=raw, subnets=asked, internal=internal))

    async def keep_away(self, store: list[list[Any]]) -> None:
        """Keep stations away from a store at these addresses and ports."""
        await self._engine.base_plan.keep_away([(ip_address(address), port) for address, port in store])
        await self._engine.base_plan.read_host()

    async def remove(self, name: str) -> None:
        await self._engine.networks.delete(name, by=FrontEnd.CLI)

    async def attach(
        self, network: str, netns: str, addresses: list[str], mac: str = "", ports: Mapping[str, int] | None = None
    ) -> Any:
        """Plug a namespace in, and return what other hosts must know of it. `ports`: "tcp/80" → port of the host."""
        mappings = []
        for inside, outside in (ports or {}).items():
            proto, _, port = inside.partition("/")
            mappings.append(PortMapping(Proto(proto), int(port), host_port=outside))
        asked = tuple(map(ip_address, addresses))
        spec = AttachSpec(network, netns, addresses=asked, mac=mac, ports=tuple(mappings))
        built = await self._engine.endpoints.attach(spec)
        net = self._engine.registry.network(network).network
        driver = self._engine.drivers[net.options.mode]
        # A network of this host alone has nothing to tell the others.
        return (
            encode(driver.publish(net, built.endpoint, self._engine.base_plan.host))
            if isinstance(driver, Meshed)
            else {}
        )

    async def detach(self, network: str, netns: str) -> None:
        await self._engine.endpoints.detach(network, netns, "eth0")

    async def peers(self, network: str, peers: list[dict[str, Any]]) -> Any:
        """Tell of all peers; return those that were refused."""
        told = [decode(Peer, peer) for peer in peers]
        return [peer.endpoint for peer in await self._engine.peers.apply(network, told)]

    async def diff(self) -> Any:
        return [str(difference) for difference in await self._reconciler.diff()]

    async def repair(self) -> None:
        await self._reconciler.repair()

    async def links(self, network: str) -> Any:
        """Return the names of the network's links on this host."""
        return [
            step.key.removeprefix("link/")
            for step in self._engine.registry.network(network).plan
            if step.key.startswith("link/")
        ]


async def serve(vtep: str, state: str) -> None:
    store = await SqliteStore.open(state)
    async with await LinuxKernel.open() as kernel:
        allocator = Allocator(StoredLeases(store), default_spaces(ula(b"tests")))
        engine = Engine(kernel, store, allocator, load_drivers())
        engine.base_plan.vtep = ip_address(vtep)
        node = Node(engine)
        await node.start()
        print(json.dumps({"result": "ready"}), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            request = json.loads(line)
            try:
                answer = {"result": await getattr(node, request.pop("do"))(**request)}
            except Exception as exc:  # noqa: BLE001 - the test asks for it
                answer = {"error": str(exc)}
            print(json.dumps(answer), flush=True)
    await store.close()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
