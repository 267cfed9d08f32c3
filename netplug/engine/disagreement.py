"""Compares a network with what a runtime asks for. Options that the runtime does not give may have any value."""

from collections.abc import Iterator

from netplug.drivers.naming import short
from netplug.drivers.registry import Drivers
from netplug.engine.records import FrontEnd, NetworkRecord, NetworkSpec, SubnetSpec
from netplug.engine.registry import Registry
from netplug.errors import NetplugError
from netplug.ipam.allocator import Allocator

_NAMED = 3
"""Of the containers in a network so many are named."""


class NetworkDiffersError(NetplugError):
    """A network exists and differs from the request. The message names all differences, and the containers in it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__("invalid", message, hint=hint)


def refuse_disagreement(
    record: NetworkRecord, wanted: NetworkSpec, registry: Registry, allocator: Allocator, drivers: Drivers
) -> None:
    """Refuse a specification that wants a network otherwise than it is.

    Raises:
        NetworkDiffersError: with all differences, who is in the network, and what to do.
    """
    if differences := list(_differences(record, wanted, allocator, drivers)):
        said = "; ".join(f"{key} is {_shown(found)}, not {_shown(asked)}" for key, asked, found in differences)
        users, hint = _users(record, wanted, registry)
        raise NetworkDiffersError(f"network {record.network.name!r} exists and differs: {said}{users}", hint)


def _differences(
    record: NetworkRecord, wanted: NetworkSpec, allocator: Allocator, drivers: Drivers
) -> Iterator[tuple[str, object, object]]:
    """Yield each difference: the key, the wanted value, the present value."""
    net, options = record.network, drivers.parse(wanted.options)
    for key in drivers.keys_of(wanted.options, options.mode):
        asked, found = options.value(key), net.options.value(key)
        if asked != found:
            yield key, asked, found
    if wanted.internal and not net.internal:
        yield "internal", True, net.internal
    for subnet in wanted.subnets:
        if subnet.pool is not None:
            yield from _subnet_differences(record, subnet, allocator)


def _users(record: NetworkRecord, wanted: NetworkSpec, registry: Registry) -> tuple[str, str]:
    """Return why the network cannot simply be made anew, and a hint."""
    name, of = record.network.name, record.front_end
    if of is not wanted.front_end:
        tool = "docker" if of is FrontEnd.DOCKER else "netplug"
        hint = f"choose another name, say what it is like, or remove it: {tool} network rm {name}"
        return f"; it was made by {of}", hint
    endpoints = registry.endpoints(record.network.id)
    inside = sorted(f"container {it.name or short(it.container or it.endpoint.id)}" for it in endpoints)
    if len(inside) > _NAMED:
        inside[_NAMED:] = [f"{len(inside) - _NAMED} more"]
    who = f"; in it: {', '.join(inside)}" if inside else ""
    return who, "choose another name, or remove first what is in the network"


def _subnet_differences(
    record: NetworkRecord, wanted: SubnetSpec, allocator: Allocator
) -> Iterator[tuple[str, object, object]]:
    net = record.network
    for subnet, pool_id in zip(net.subnets, record.pools, strict=True):
        if subnet.pool != wanted.pool:
            continue
        gateway = subnet.gateway.ip if subnet.gateway else None
        if wanted.gateway is not None and gateway is not None and gateway != wanted.gateway:
            yield f"gateway of {subnet.pool}", wanted.gateway, gateway
        pool = allocator.pool(pool_id)
        if record.front_end.shares and pool is not None and pool.ends != wanted.ends:
            yield f"range of {subnet.pool}", _ends(wanted), _ends(pool)
        return
    yield "subnet", wanted.pool, tuple(subnet.pool for subnet in net.subnets)


def _ends(of: object) -> str:
    ends = getattr(of, "ends", None)
    return f"{ends[0]}-{ends[1]}" if ends else "all"


def _shown(value: object) -> str:
    """Return a value as a user writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return str(value) if value not in {None, ""} else "none"
