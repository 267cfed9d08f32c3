"""What each endpoint receives, sends and asks, and how many DNS queries each network has, as of one look."""

import time
from dataclasses import dataclass
from typing import Self

from pydantic import BaseModel

from netplug.dns.server import Tally
from netplug.drivers.steps import Macvlan, Shape
from netplug.engine import Engine
from netplug.engine.records import EndpointRecord
from netplug.kernel.links.api import LinkCounters, SandboxLink
from netplug.names.server import NameServer

_SERVFAIL = 2
"""RCODE (RFC 1035 4.1.1)."""


@dataclass(frozen=True, slots=True)
class Passed:
    """What has passed in one direction. `dropped`: by the link and its queue, so also what exceeded a `rate`."""

    bytes: int
    packets: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Counted:
    """The traffic of an endpoint of this host since its link was made, as its sandbox sees the directions."""

    record: EndpointRecord
    network: str
    received: Passed
    sent: Passed


async def read(engine: Engine, network: str | None = None) -> list[Counted]:
    """Return the traffic of all endpoints of this host that have a link. `network`: id; only of this one."""
    registry, traffic = engine.registry, engine.kernel.traffic
    names = {record.network.id: record.network.name for record in registry.networks()}
    records = [record for record in registry.endpoints(network) if record.linked]
    blocks = {record.endpoint.id: _block(record) for record in records}
    apart = {record.endpoint.id: place for record in records if (place := _in_sandbox(record))}
    wanted = {record.host_link.name for record in records if record.host_link} | set(filter(None, blocks.values()))
    host = await traffic.of_host(wanted)
    inside = await traffic.of_sandboxes(set(apart.values()))
    found = []
    for record in records:
        ident = record.endpoint.id
        if record.host_link and record.host_link.name in host:
            queue = host.get(blocks[ident], LinkCounters())
            received, sent = _across(host[record.host_link.name], queue)
        elif ident in apart and apart[ident] in inside:
            received, sent = _own(inside[apart[ident]])
        else:
            continue
        found.append(Counted(record, names.get(record.endpoint.network, ""), received, sent))
    return found


def _across(link: LinkCounters, queue: LinkCounters) -> tuple[Passed, Passed]:
    """Return what a sandbox received and sent by the host side of its veth. `queue`: limits what it sends (`Shape`)."""
    received = Passed(link.tx_bytes, link.tx_packets, link.tx_dropped)
    return received, Passed(link.rx_bytes, link.rx_packets, link.rx_dropped + queue.tx_dropped)


def _own(link: LinkCounters) -> tuple[Passed, Passed]:
    received = Passed(link.rx_bytes, link.rx_packets, link.rx_dropped)
    return received, Passed(link.tx_bytes, link.tx_packets, link.tx_dropped)


def _block(record: EndpointRecord) -> str:
    return next((step.ifb for step in record.plan if isinstance(step, Shape)), "")


def _in_sandbox(record: EndpointRecord) -> SandboxLink | None:
    """Return the link that is in the sandbox alone, as a macvlan is."""
    if not record.sandbox or not any(isinstance(step, Macvlan) for step in record.plan):
        return None
    return SandboxLink(record.sandbox, record.sandbox_id, record.ifname, record.endpoint.mac)


class AskedOut(BaseModel):
    """DNS queries of an endpoint, since its link was made or the daemon started. `failed`: as in `QueriesOut`."""

    queries: int
    failed: int


class EndpointTrafficOut(BaseModel):
    """`received`, `sent`: by the sandbox, since its link was made."""

    id: str
    network: str
    name: str
    container: str
    received: Passed
    sent: Passed
    dns: AskedOut

    @classmethod
    def of(cls, found: Counted, asked: Tally) -> Self:
        record = found.record
        return cls(
            id=record.endpoint.id,
            network=found.network,
            name=record.name,
            container=record.container,
            received=found.received,
            sent=found.sent,
            dns=AskedOut(queries=asked.queries, failed=asked.failed),
        )


class QueriesOut(BaseModel):
    """DNS queries from a network since the daemon's start. `failed`: answered by SERVFAIL, or not at all."""

    network: str
    queries: int
    failed: int


class TrafficOut(BaseModel):
    """`at`: monotonic time of the look in seconds, by which a rate is computed from two looks."""

    at: float
    endpoints: list[EndpointTrafficOut]
    dns: list[QueriesOut]


class Traffic:
    """What `netplug top` asks for."""

    def __init__(self, engine: Engine, names: NameServer) -> None:
        self._engine = engine
        self._names = names

    async def answer(self, network: str = "") -> TrafficOut:
        """GET /v1/traffic. `network`: a name or an id; only of this one."""
        chosen = self._engine.registry.network(network).network.id if network else None
        found = await read(self._engine, chosen)
        at = time.monotonic()
        tallies, none = self._names.tallies, Tally()
        endpoints = [EndpointTrafficOut.of(it, tallies.get(it.record.endpoint.id, none)) for it in found]
        endpoints.sort(key=lambda it: (it.network, it.name, it.id))
        return TrafficOut(at=at, endpoints=endpoints, dns=self._queries(chosen))

    def _queries(self, chosen: str | None) -> list[QueriesOut]:
        found = []
        for net in (record.network for record in self._engine.registry.networks()):
            counts = self._names.counts.get(net.id)
            if counts and net.options.dns and chosen in {None, net.id}:
                queries, failed = sum(counts.codes) + counts.dropped, counts.codes[_SERVFAIL] + counts.dropped
                found.append(QueriesOut(network=net.name, queries=queries, failed=failed))
        return sorted(found, key=lambda it: it.network)
