"""Reads the graph from this host's records and its view of the others.

A container is known by what its runtime calls it, or by its network namespace, so one with several endpoints is one
container. Everything is sorted: the same records give the same graph.
"""

import asyncio
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from pathlib import Path

from fastapi import Response

from netplug.cluster.cluster import Cluster
from netplug.drivers.steps import IPNetwork
from netplug.engine import Engine
from netplug.engine.records import EndpointRecord, NetworkRecord
from netplug.insight.graph import Container, Endpoint, Graph, Host, Network, Subnet
from netplug.names.short_ids import short_id
from netplug.store.api import StoreError, Unreachable

AT_ONCE = 64
"""Endpoints that are read at once, in a millisecond; then others have their turn."""


class Graphs:
    """Draws the graph. `host`: the name of this host."""

    def __init__(self, engine: Engine, cluster: Cluster | None, host: str) -> None:
        self._engine = engine
        self._cluster = cluster
        self._host = host

    async def answer(self) -> Response:
        """Answer with the graph; it is not checked a second time, which takes five times as long as all else."""
        graph = await self.graph()
        await asyncio.sleep(0)
        return Response(graph.model_dump_json(), media_type="application/json")

    async def graph(self) -> Graph:
        """Return all that this host knows of itself and the others."""
        networks = sorted(self._engine.registry.networks(), key=lambda it: (it.network.name, it.network.id))
        hosts, note = await self._hosts()
        containers: dict[str, Container] = {}
        endpoints: list[Endpoint] = []
        shown = []
        for record in networks:
            found, why = await self._endpoints(record)
            note = note or why
            for container, endpoint in found:
                containers.setdefault(container.key, container)
                endpoints.append(endpoint)
            places = {self._host} | {container.host for container, _ in found}
            shown.append(self._network(record, sorted(places), [endpoint for _, endpoint in found]))
        return Graph(
            hosts=hosts,
            networks=shown,
            containers=sorted(containers.values(), key=lambda it: (it.host, it.name, it.key)),
            endpoints=endpoints,
            note=note,
        )

    async def _hosts(self) -> tuple[list[Host], str]:
        alone = [Host(name=self._host, me=True)]
        if self._cluster is None:
            return alone, ""
        try:
            found = await self._cluster.hosts()
        except (StoreError, Unreachable) as exc:
            return alone, f"other hosts are not shown: {exc}"
        hosts = [
            Host(
                name=host.name or host.id[:12],
                me=host.me,
                alive=host.alive,
                address=str(host.vtep or ""),
                notes=[*host.notes, *(f"network {name}: {why}" for name, why in sorted(host.behind.items()))],
            )
            for host in found
        ]
        return hosts if any(host.me for host in hosts) else alone + hosts, ""

    async def _endpoints(self, record: NetworkRecord) -> tuple[list[tuple[Container, Endpoint]], str]:
        """Return a network's endpoints with their containers; and why those of other hosts are missing, if so."""
        own = []
        for place, one in enumerate(self._engine.registry.endpoints(record.network.id)):
            own.append(self._of_mine(one))
            if place % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
        others, why = list[tuple[Container, Endpoint]](), ""
        if self._cluster is not None:
            try:
                found = self._cluster.remote_endpoints(record)
            except Unreachable as exc:
                found, why = [], f"endpoints of other hosts are not shown: {exc}"
            for host, ident, advert in found:
                key = f"{host}/{advert.container or ident}"
                name = advert.name or short_id(advert.container) or ident[:12]
                container = Container(key=key, name=name, id=advert.container, host=host, front_end=advert.front_end)
                endpoint = Endpoint(
                    id=ident,
                    network=record.network.id,
                    container=key,
                    addresses=[str(address) for address in advert.addresses],
                    mac=advert.mac,
                    ports=[f"{number}/{proto}" for proto, number in advert.ports],
                    healthy=advert.healthy,
                )
                others.append((container, endpoint))
        return sorted((*own, *others), key=lambda it: (it[0].host, it[0].name, it[1].id)), why

    def _of_mine(self, record: EndpointRecord) -> tuple[Container, Endpoint]:
        ep = record.endpoint
        key = f"{self._host}/{record.container or record.sandbox_id or record.sandbox or ep.id}"
        container = Container(
            key=key,
            name=record.name or short_id(record.container) or Path(record.sandbox).name or ep.id[:12],
            id=record.container,
            host=self._host,
            front_end=record.front_end,
        )
        endpoint = Endpoint(
            id=ep.id,
            network=ep.network,
            container=key,
            addresses=[str(address.ip) for address in ep.addresses],
            mac=ep.mac,
            ports=self._engine.exposure.shown(record),
            healthy=record.healthy,
        )
        return container, endpoint

    def _network(self, record: NetworkRecord, hosts: list[str], endpoints: Sequence[Endpoint]) -> Network:
        net = record.network
        subnets = []
        for place, subnet in enumerate(net.subnets):
            size, used = self._fill(record.pools[place] if place < len(record.pools) else "", subnet.pool)
            if record.cluster or not used:  # else this host alone gives out the addresses
                used = max(used, _counted(endpoints, subnet.pool) + bool(subnet.gateway))
            gateway = str(subnet.gateway.ip) if subnet.gateway else ""
            subnets.append(Subnet(subnet=str(subnet.pool), gateway=gateway, size=size, used=used))
        return Network(
            id=net.id,
            name=net.name,
            mode=net.options.mode,
            internal=net.internal,
            shared=bool(record.cluster),
            mtu=net.options.mtu,
            subnets=subnets,
            hosts=hosts,
        )

    def _fill(self, pool: str, subnet: IPNetwork) -> tuple[int, int]:
        """Return size and leases of a pool; of one that is not ours, its size alone."""
        allocator = self._engine.allocator
        if allocator.pool(pool) is None:
            return max(subnet.num_addresses - 2, 1), 0
        usage = allocator.usage(pool)
        return usage.size, usage.leased


def _counted(endpoints: Iterable[Endpoint], subnet: IPNetwork) -> int:
    return sum(ip_address(address) in subnet for one in endpoints for address in one.addresses)
