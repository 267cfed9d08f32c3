"""Builds on a new host what the final records of another one say, and compares both kernels. For tests."""

from collections.abc import Collection
from typing import TypeGuard

from engine_host import Host

from netplug.drivers.steps import Flows, Route, SourceRoute, Step
from netplug.engine.records import (
    AttachSpec,
    EndpointRecord,
    EndpointSpec,
    FrontEnd,
    NetworkRecord,
    NetworkSpec,
    SubnetSpec,
)
from netplug.ipam.pool import EXTERNAL
from netplug.kernel.fake.kernel import FakeKernel
from netplug.kernel.fake.world import Foreign, comparable

DOCKER = FrontEnd.DOCKER


async def compare_with_a_fresh_build(host: Host) -> None:
    fresh = await Host.boot(FakeKernel(Foreign(links=dict(host.kernel.foreign.links), facts=host.kernel.foreign.facts)))
    try:
        for record in host.networks():
            await fresh.engine.networks.create(_spec(host, record))
        # Of networks with one priority, that which came first provides the default route.
        for endpoint in sorted(host.endpoints(), key=_lacks):
            await _build(fresh, endpoint)
        await fresh.reconciler.repair()
        await fresh.check()
        # With CNI, a network that did not provide the default route does not take over; see `WayOut`.
        but = {it.sandbox for it in host.endpoints() if it.front_end is FrontEnd.CNI and _lacks(it)}
        mine, theirs = picture(host, but), picture(fresh, but)
        differ = {key: (mine.get(key), theirs.get(key)) for key in mine | theirs if mine.get(key) != theirs.get(key)}
        assert not differ, differ
    finally:
        await fresh.close()


def picture(host: Host, but: Collection[str] = ()) -> dict[str, object]:
    """Return the objects of the kernel, by key. `but`: sandboxes without their ways out.

    Of networks with one priority, that which came first provides a default route: only the priority is compared.
    """
    state = [it for it in host.kernel._world.state.values() if not isinstance(it, Flows)]
    state = [it for it in state if not ((_is_way(it) or isinstance(it, SourceRoute)) and it.netns in but)]
    ways = {f"way {it.netns} {it.destination.version}": _priority(host, it) for it in state if _is_way(it)}
    return ways | {it.key: comparable(it) for it in state if not _is_way(it)}


def _is_way(step: Step) -> TypeGuard[Route]:
    return isinstance(step, Route) and bool(step.netns) and not step.destination.prefixlen


def _priority(host: Host, way: Route) -> int:
    (found,) = [it for it in host.endpoints() if (it.sandbox, it.ifname) == (way.netns, way.link)]
    return host.engine.endpoints.way_out.priority(found)


def _spec(host: Host, record: NetworkRecord) -> NetworkSpec:
    docker = record.front_end is DOCKER
    subnets = tuple(
        SubnetSpec(it.pool, it.gateway.ip if it.gateway else None, space=EXTERNAL if docker else "local")
        for it in record.network.subnets
    )
    net = record.network
    return NetworkSpec(net.id, net.name, record.options, subnets, internal=net.internal, front_end=record.front_end)


def _lacks(record: EndpointRecord) -> int:
    """Return how many default routes an endpoint leaves to other networks of its sandbox."""
    seen = record.attachment
    offered = {it.version for it in seen.gateways} | {it.destination.version for it in seen.routes}
    return len(offered - {it.destination.version for it in record.routes if not it.destination.prefixlen})


async def _build(fresh: Host, record: EndpointRecord) -> None:
    endpoint, engine = record.endpoint, fresh.engine
    if record.front_end is DOCKER:
        await engine.endpoints.create(
            EndpointSpec(endpoint.id, endpoint.network, endpoint.addresses, endpoint.mac, endpoint.ports)
        )
        if record.sandbox:
            fresh.kernel.inhabitants.add(record.sandbox)
            await engine.endpoints.join(endpoint.network, endpoint.id, record.sandbox)
        if record.published:
            await engine.publishing.publish(endpoint.network, endpoint.id)
        if not record.linked:
            await engine.endpoints.leave(endpoint.network, endpoint.id)
    else:
        await engine.endpoints.attach(
            AttachSpec(
                endpoint.network,
                record.sandbox,
                record.ifname,
                addresses=tuple(it.ip for it in endpoint.addresses),
                mac=endpoint.mac,
                ports=record.published,
                id=endpoint.id,
                front_end=record.front_end,
                routes=record.given_routes,
            )
        )
    if record.opened:
        await engine.added_ports.add(endpoint.id, record.added)
