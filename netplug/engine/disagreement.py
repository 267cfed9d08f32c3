"""Compares networks and endpoints with what is asked for. What is not given may have any value."""

from collections import defaultdict
from collections.abc import Collection, Iterator

from netplug.drivers import port_ranges, shared
from netplug.drivers.api import PortMapping
from netplug.drivers.naming import short
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import IPAddress
from netplug.engine.port_reservation import in_order
from netplug.engine.records import EndpointRecord, EndpointSpec, NetworkRecord, NetworkSpec, SubnetSpec
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


def differences_of_endpoint(
    built: EndpointRecord, wanted: EndpointSpec, addresses: Collection[IPAddress], mode: str, drivers: Drivers
) -> list[str]:
    """Return in words how an endpoint differs from what is asked for. It may have more addresses, names and ports.

    Raises:
        DriverError: an option is wrong.
    """
    endpoint = built.endpoint
    asked: list[tuple[str, object, object]] = []
    if wanted.name:
        asked.append(("name", wanted.name, built.name))
    if not set(wanted.aliases) <= set(built.aliases):
        asked.append(("alias", wanted.aliases, built.aliases))
    held = tuple(it.ip for it in endpoint.addresses)
    # Docker gives addresses, a MAC and ports in every mode: one without addresses ignores them.
    addressed = drivers.named(mode).addressed
    if addressed and not set(addresses) <= set(held):
        asked.append(("address", tuple(addresses), held))
    if addressed and wanted.mac:
        asked.append(("MAC", wanted.mac, built.attachment.mac or endpoint.mac))
    options = drivers.parse_endpoint(wanted.options, mode)
    keys = drivers.keys_of(wanted.options, mode)
    asked += [(key, options.value(key), endpoint.options.value(key)) for key in keys]
    words = [f"{key} is {_shown(found)}, not {_shown(want)}" for key, want, found in asked if want != found]
    ports = wanted.ports if addressed else ()
    return words + [f"port {port} is not published" for port in _unpublished(built, ports)]


def _unpublished(built: EndpointRecord, wanted: Collection[PortMapping]) -> tuple[PortMapping, ...]:
    """Return the wanted ports that an endpoint does not publish, whichever host port it got for them."""
    present: defaultdict[tuple[str, int], list[PortMapping]] = defaultdict(list)
    for mapping in (*built.endpoint.ports, *built.published):
        for port in port_ranges.singles(mapping):
            present[port.proto, port.port].append(port)
    asked = (port for mapping in in_order(tuple(wanted)) for port in port_ranges.singles(mapping))
    lost = [it for it in asked if not any(_answers(port, it) for port in present[it.proto, it.port])]
    return port_ranges.joined(lost)


def _answers(port: PortMapping, wanted: PortMapping) -> bool:
    """Whether a port is one as wanted."""
    last = max(wanted.host_port, wanted.host_port_end)
    free = not wanted.host_port or wanted.host_port <= port.host_port <= last
    return free and wanted.host_address in {None, port.host_address}


def _differences(
    record: NetworkRecord, wanted: NetworkSpec, allocator: Allocator, drivers: Drivers
) -> Iterator[tuple[str, object, object]]:
    """Yield each difference: the key, the wanted value, the present value."""
    net, options = record.network, drivers.parse(wanted.options)
    # What a user has changed since differs from the runtime's configuration by right.
    created = drivers.parse({shared.MODE.key: net.options.mode} | dict(record.as_created.options))
    for key in drivers.keys_of(wanted.options, options.mode):
        asked, found = options.value(key), net.options.value(key)
        if asked != found and not (record.origin and asked == created.value(key)):
            yield key, asked, found
    if wanted.internal and not (net.internal or record.as_created.internal):
        yield "internal", True, net.internal
    for subnet in wanted.subnets:
        if subnet.pool is not None:
            yield from _subnet_differences(record, subnet, allocator)


def _users(record: NetworkRecord, wanted: NetworkSpec, registry: Registry) -> tuple[str, str]:
    """Return why the network cannot simply be made anew, and a hint."""
    name, of = record.network.name, record.front_end
    if of is not wanted.front_end:
        hint = f"choose another name, say what it is like, or remove it: {of.removal(name)}"
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
