"""Tells of changes of networks and endpoints, as their records change."""

from collections.abc import Iterable

from netplug.drivers.api import PortMapping
from netplug.drivers.naming import short
from netplug.engine.happenings import Happenings, Kind
from netplug.engine.records import EndpointRecord, NetworkRecord
from netplug.engine.registry import Record, Registry


class RecordHappenings:
    """Watches a registry. What it loads at the start is no happening."""

    def __init__(self, registry: Registry, happenings: Happenings) -> None:
        self._registry = registry
        self._happenings = happenings
        registry.watchers.append(self._changed)

    def _changed(self, before: Record | None, after: Record | None) -> None:
        if self._registry.loading:
            return
        if isinstance(after or before, NetworkRecord):
            assert not isinstance(before, EndpointRecord)  # noqa: S101 - both are of one type
            assert not isinstance(after, EndpointRecord)  # noqa: S101
            self._network(before, after)
        else:
            assert not isinstance(before, NetworkRecord)  # noqa: S101
            assert not isinstance(after, NetworkRecord)  # noqa: S101
            self._endpoint(before, after)

    def _network(self, before: NetworkRecord | None, after: NetworkRecord | None) -> None:
        record = after or before
        if record is None:
            return
        kind, what = Kind.NETWORK_REMOVED, ""
        if before is None:
            kind, what = Kind.NETWORK_CREATED, _network_words(record)
        elif after is not None:
            kind, what = Kind.NETWORK_UPDATED, _network_changes(before, after) or _plan_changes(before, after)
            if not what:
                return
        net = record.network
        self._happenings.tell(kind, f"network {net.name}", what, network=net.id, network_name=net.name)

    def _endpoint(self, before: EndpointRecord | None, after: EndpointRecord | None) -> None:
        record = after or before
        if record is None:
            return
        if before is None:
            self._tell(Kind.ENDPOINT_CREATED, record, _addresses(record))
        gone = [port for port in before.in_force if after is None or port not in after.in_force] if before else []
        new = [port for port in after.in_force if before is None or port not in before.in_force] if after else []
        if gone:
            self._tell(Kind.PORTS_UNPUBLISHED, record, _ports(gone))
        if new:
            self._tell(Kind.PORTS_PUBLISHED, record, _ports(new))
        if after is None:
            self._tell(Kind.ENDPOINT_REMOVED, record, _addresses(record))
        elif before is not None and (changes := _endpoint_changes(before, after)):
            self._tell(Kind.ENDPOINT_UPDATED, record, changes)

    def _tell(self, kind: Kind, record: EndpointRecord, what: str) -> None:
        network = self._registry.find_network(record.endpoint.network)
        name = network.network.name if network else ""
        self._happenings.tell(
            kind,
            f"endpoint {record.name or short(record.endpoint.id)}",
            what,
            network=record.endpoint.network,
            network_name=name,
            endpoint=record.endpoint.id,
            name=record.name,
            container=record.container,
        )


def _network_words(record: NetworkRecord) -> str:
    return " ".join((record.network.options.mode, *(str(subnet.pool) for subnet in record.network.subnets)))


def _network_changes(before: NetworkRecord, after: NetworkRecord) -> str:
    """Return what a user asked for; empty if the plan alone changed."""
    found = []
    if before.network.name != after.network.name:
        found.append(f"was called {before.network.name}")
    old, new = dict(before.options), dict(after.options)
    found += [_change(key, old.get(key), new.get(key)) for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if before.network.internal != after.network.internal:
        found.append(f"internal {str(after.network.internal).lower()}")
    if before.labels != after.labels:
        found.append("labels")
    if before.front_end is not after.front_end:
        found.append(f"belongs to {after.front_end}")
    return ", ".join(found)


def _plan_changes(before: NetworkRecord, after: NetworkRecord) -> str:
    """Return how many objects in the kernel follow the host, another version or another option."""
    count = len({step.key for step in {*before.plan} ^ {*after.plan}})
    return f"{count} object{'s' if count > 1 else ''} in the kernel changed" if count else ""


def _endpoint_changes(before: EndpointRecord, after: EndpointRecord) -> str:
    found = []
    if after.name != before.name:
        found.append(f"is called {after.name}")
    if after.endpoint.addresses != before.endpoint.addresses:
        found.append(f"has {_addresses(after)}")
    if after.aliases != before.aliases:
        found.append(f"aliases {' '.join(after.aliases) or 'none'}")
    if after.healthy != before.healthy:
        found.append("healthy" if after.healthy else "not healthy")
    if after.linked != before.linked:
        found.append("is linked" if after.linked else "left its sandbox")
    return ", ".join(found)


def _change(key: str, old: str | None, new: str | None) -> str:
    if new is None:
        return f"{key} is the default again"
    return f"{key} {new}" if old is None else f"{key} {old} -> {new}"


def _addresses(record: EndpointRecord) -> str:
    return " ".join(str(address.ip) for address in record.endpoint.addresses)


def _ports(ports: Iterable[PortMapping]) -> str:
    return " ".join(map(str, ports))
