"""Chooses and reserves host ports, and decides which of a container's endpoints publishes which port."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from ipaddress import IPv6Address
from types import MappingProxyType
from typing import TypeAlias

from netplug.drivers import port_ranges, published_ports
from netplug.drivers.api import Endpoint, PortMapping
from netplug.drivers.steps import HostPort, IPAddress, Proto
from netplug.engine.port_matching import equal
from netplug.engine.records import EndpointRecord
from netplug.engine.registry import Registry
from netplug.errors import NetplugError
from netplug.kernel.api import HostKernel
from netplug.kernel.host.api import Reservations

_AT_ONCE = 64
_TRIES = 16
"""Tries to find a port that is free for both IP versions."""
_MOST_LOST = 64
"""Taken ports of a container that are looked up: each look-up reads all processes."""


class Sharing:
    """Decides which endpoint of a container publishes which port, if its runtime asks each of them for all ports.

    CNI and netavark give all port mappings of a container to each of its networks. The first endpoint that can publish
    a port does; the next ones publish the rest, such as the other IP version. No port is published twice.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._claims: dict[str, tuple[EndpointRecord, tuple[PortMapping, ...]]] = {}

    def siblings(self, built: EndpointRecord) -> list[EndpointRecord]:
        """Return the other endpoints of the container, if they share its ports."""
        if not built.front_end.shares or not built.container:
            return []
        return [
            other
            for other in self._registry.endpoints()
            if (other.front_end, other.container) == (built.front_end, built.container) and other.key != built.key
        ]

    @contextmanager
    def claimed(self, built: EndpointRecord, wanted: Sequence[PortMapping]) -> Iterator[tuple[PortMapping, ...]]:
        """Yield the ports that an endpoint shall publish. During the block no other endpoint gets them."""
        if not built.front_end.shares:
            yield tuple(wanted)
            return
        left = self._left(built, wanted)
        self._claims[built.key] = built, left
        try:
            yield left
        finally:
            del self._claims[built.key]

    def lacking(self, wanted: Callable[[EndpointRecord], Sequence[PortMapping]]) -> list[EndpointRecord]:
        """Return the endpoints that could publish wanted ports that no endpoint of their container publishes."""
        members: defaultdict[tuple[str, str], list[EndpointRecord]] = defaultdict(list)
        for record in self._registry.endpoints():
            if record.front_end.shares and record.container and record.endpoint.ports:
                members[record.front_end, record.container].append(record)
        return [
            record
            for group in members.values()
            for record in group
            if record.linked and self._lacks(record, group, in_order(wanted(record)))
        ]

    def _lacks(self, record: EndpointRecord, group: Sequence[EndpointRecord], wanted: tuple[PortMapping, ...]) -> bool:
        versions = _versions(record)
        if any(equal(one.published, wanted) and versions <= _versions(one) for one in group):
            return False  # cheap, also with ten thousand ports
        left = (it for it in self._left(record, wanted) if port_ranges.definite(it))
        return any(addresses(record.endpoint, it, relayed=False) for it in left)

    def _left(self, built: EndpointRecord, wanted: Sequence[PortMapping]) -> tuple[PortMapping, ...]:
        done = [(one, one.published) for one in (built, *self.siblings(built))]
        done += [claim for claim in self._claims.values() if claim[0].container == built.container]
        taken = {key for one, ports in done for mapping in ports for key, _ in _parts(one.endpoint, mapping)}
        if not taken:
            return tuple(wanted)
        left = []
        for single in (single for mapping in wanted for single in port_ranges.singles(mapping)):
            parts = list(_parts(built.endpoint, single))
            missing = [part for key, part in parts if key not in taken]
            left += [single] if len(missing) == len(parts) else missing
        return tuple(left)


def _versions(record: EndpointRecord) -> set[int]:
    return {address.version for address in record.endpoint.addresses}


def _parts(ep: Endpoint, mapping: PortMapping) -> Iterator[tuple[tuple[Proto, int, int, int], PortMapping]]:
    """Yield each host address and port of a mapping, with the key by which two are the same."""
    for single in port_ranges.singles(mapping):
        for host in addresses(ep, single, relayed=False):
            key = single.proto, single.host_port, single.port, host.version
            yield key, replace(single, host_address=host)


class Inherited:
    """The ports of a deleted endpoint, which the container's runtime may still hold by sockets."""

    def __init__(self, gone: EndpointRecord) -> None:
        self._ports = set(port_ranges.keys(step for step in gone.exposed if isinstance(step, HostPort)))

    async def cover(self, step: HostPort) -> bool:
        """Tell whether the endpoint held the port; see `Reservations`."""
        return step.key in self._ports


def in_order(ports: Sequence[PortMapping]) -> tuple[PortMapping, ...]:
    """Return ports sorted, and consecutive ones joined: Docker lists them in another order each time.

    An IPv4-mapped address (``::ffff:127.0.0.1``) is an IPv4 address, as for Docker and podman.
    """
    mapped = (replace(it, host_address=_unmapped(it.host_address)) for it in ports)
    return tuple(sorted(port_ranges.joined(tuple(mapped)), key=str))


def _unmapped(address: IPAddress | None) -> IPAddress | None:
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


class Chosen:
    """Remembers the host ports chosen for each sandbox: it keeps them when its gateway network changes.

    Docker then unpublishes the ports, and publishes them on another network of the container.
    """

    def __init__(self) -> None:
        self._of: dict[str, dict[_Wanted, int]] = {}

    def remember(self, gone: EndpointRecord) -> None:
        """Remember the ports chosen for an endpoint that stops publishing."""
        found = _chosen(gone)
        if gone.sandbox and found:
            self._of[gone.sandbox] = self._of.pop(gone.sandbox, {}) | found
            for stale in list(self._of)[:-_SANDBOXES]:
                del self._of[stale]

    def before(self, record: EndpointRecord, ports: Sequence[PortMapping]) -> dict[PortMapping, int]:
        """Return the host ports that an endpoint, or another one of its sandbox, has or had for these mappings."""
        open_ = [it for it in ports if not port_ranges.definite(it)]
        if not open_:
            return {}
        known = (self._of.get(record.sandbox, {}) if record.sandbox else {}) | _chosen(record)
        return {it: known[key] for it in open_ for key in reversed(_keys(it)) if key in known}


_Wanted: TypeAlias = tuple[Proto, int, IPAddress | None]
_SANDBOXES = 1024
"""Sandboxes whose ports are remembered; paths of sandboxes are never used again."""


def _wanted(mapping: PortMapping) -> _Wanted:
    return mapping.proto, mapping.port, mapping.host_address


def _chosen(record: EndpointRecord) -> "dict[_Wanted, int]":
    """Return the host ports of an endpoint that were chosen."""
    open_ = {_wanted(it) for it in record.endpoint.ports if not port_ranges.definite(it)}
    if not open_:
        return {}
    fixed = {(it.proto, it.port, it.host_port) for it in _singles(record.endpoint.ports)}
    left = (it for it in _singles(record.published) if (it.proto, it.port, it.host_port) not in fixed)
    return {key: it.host_port for it in left for key in _keys(it) if key in open_}


def _singles(ports: Sequence[PortMapping]) -> Iterator[PortMapping]:
    return (single for mapping in ports for single in port_ranges.singles(mapping))


def _keys(mapping: PortMapping) -> tuple[_Wanted, _Wanted]:
    """Return as what a mapping may have been asked for: its address may be the network's default."""
    return _wanted(mapping), (mapping.proto, mapping.port, None)


@asynccontextmanager
async def reserved(
    kernel: HostKernel,
    ep: Endpoint,
    ports: Sequence[PortMapping],
    theirs: Reservations | None = None,
    before: Mapping[PortMapping, int] = MappingProxyType({}),
    lost: dict[PortMapping, NetplugError] | None = None,
) -> AsyncIterator[tuple[PortMapping, ...]]:
    """Reserve a host port for each mapping and yield the mappings with definite ports.

    `theirs`: see `HostPorts.reserve`. `before`: ports to try first. `lost`: gets the mappings that cannot be reserved,
    with the reason; without it one of them fails the call. If the block fails, all reservations end. Else the caller
    ends them by removing the `HostPort` steps.

    Raises:
        NetplugError: "unavailable", naming the port that is taken.
    """
    held: list[HostPort] = []
    try:
        one_by_one = [single for mapping in ports for single in port_ranges.singles(mapping)]
        done = [(single, addresses(ep, single, relayed=theirs is None)) for single in one_by_one]
        definite = []
        for number, (single, hosts) in enumerate(done):
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)  # thousands take a second; other requests go on meanwhile
            tries = [replace(single, host_port=it, host_port_end=it) for it in (before.get(single),) if it]
            if not hosts:
                continue
            if lost is not None and len(lost) >= _MOST_LOST:
                words = f"it was not tried: {_MOST_LOST} other ports of the container are taken"
                lost[single] = NetplugError("unavailable", words)
                continue
            try:
                definite.append(await _first(kernel, [*tries, single], hosts, held, theirs))
            except NetplugError as exc:
                if lost is None:
                    raise
                lost[single] = exc
        yield in_order(definite)
    except BaseException:
        await kernel.remove(held)
        raise


async def _first(
    kernel: HostKernel,
    tries: Sequence[PortMapping],
    hosts: Sequence[IPAddress],
    held: list[HostPort],
    theirs: Reservations | None,
) -> PortMapping:
    """Reserve the first mapping that can be reserved."""
    for mapping in tries[:-1]:
        try:
            return await _reserve(kernel, mapping, hosts, held, theirs)
        except NetplugError:
            continue
    return await _reserve(kernel, tries[-1], hosts, held, theirs)


async def _reserve(
    kernel: HostKernel,
    mapping: PortMapping,
    hosts: Sequence[IPAddress],
    held: list[HostPort],
    theirs: Reservations | None,
) -> PortMapping:
    last = max(mapping.host_port, mapping.host_port_end)
    first = mapping.host_port
    for _ in range(_TRIES):
        port = await kernel.ports.reserve(mapping.proto, hosts[0], first, last, theirs)
        mine = [HostPort(mapping.proto, hosts[0], port)]
        try:
            for host in hosts[1:]:
                await kernel.ports.reserve(mapping.proto, host, port, port, theirs)
                mine.append(HostPort(mapping.proto, host, port))
        except NetplugError as exc:
            if mapping.host_address is not None or not _lacks(exc):
                await kernel.remove(mine)
                if port == last:
                    raise
                first = port + 1 if last else 0
                continue
            mapping = replace(mapping, host_address=hosts[0])  # the only IP version
        held += mine
        return replace(mapping, host_port=port, host_port_end=port)
    raise NetplugError("unavailable", f"no port is free for both IPv4 and IPv6 for {mapping}")


def _lacks(error: NetplugError) -> bool:
    """Tell whether the kernel has no IPv6."""
    return error.kind == "unavailable" and "the kernel has no IPv" in error.message


def addresses(ep: Endpoint, mapping: PortMapping, *, relayed: bool) -> list[IPAddress]:
    """Return the host addresses to reserve on; see `published_ports.host_addresses`."""
    return [
        host
        for host, _ in published_ports.host_addresses(
            mapping, (address.ip for address in ep.addresses), relayed=relayed
        )
    ]
