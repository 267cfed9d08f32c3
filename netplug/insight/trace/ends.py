"""The ends of a path, from the records: who is meant, where it lives, and who has an address."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import ip_interface

from netplug.drivers.api import Endpoint, Network, PortMapping
from netplug.drivers.naming import short
from netplug.drivers.steps import IPAddress
from netplug.engine import Engine
from netplug.engine.records import EndpointRecord, FrontEnd
from netplug.engine.sandboxes import name_of as namespace_name
from netplug.errors import NetplugError
from netplug.insight.overlay.remote_ends import RemoteEnd, RemoteEnds
from netplug.insight.trace.model import HOST_PLACE, Place
from netplug.insight.trace.target import Target

_DNS = 53
_ID = 12
"""Characters from which a text of hexadecimal digits is taken for an id, and not asked for as a name."""


class Kind(StrEnum):
    """Of an end."""

    SANDBOX = "sandbox"
    HOST = "host"
    OUTSIDE = "outside"


@dataclass(frozen=True, slots=True)
class End:
    """One end. `records`: the endpoints of a sandbox, the one that is meant first.

    `address`: to which is sent, or from which, None if the routes choose. `port`: of the socket there, if another than
    the one that is asked (a published one). `via`: the published port that leads here. `far`: it is on another host;
    its records say what the cluster knows.
    """

    kind: Kind
    place: Place
    records: tuple[EndpointRecord, ...] = ()
    address: IPAddress | None = None
    port: int = 0
    via: PortMapping | None = None
    far: RemoteEnd | None = None

    @property
    def record(self) -> EndpointRecord | None:
        return self.records[0] if self.records else None

    def holder(self, address: IPAddress | None) -> EndpointRecord | None:
        """Return the endpoint of the sandbox that has an address."""
        return next((it for it in self.records if any(one.ip == address for one in it.endpoint.addresses)), None)


class Ends:
    """Finds ends in the records of an engine."""

    def __init__(self, engine: Engine, remote: RemoteEnds | None = None) -> None:
        self._engine = engine
        self._remote = remote

    def network(self, record: EndpointRecord) -> Network:
        return self._engine.registry.network(record.endpoint.network).network

    def networks(self, end: End) -> list[Network]:
        """Return the networks of a sandbox."""
        return [self.network(it) for it in end.records]

    def source(self, target: Target) -> End:
        """Return who sends.

        Raises:
            NetplugError: "not_found", nobody is called so; "unavailable", it does not run.
        """
        if target.outside:
            return outside(target.address)
        if target.is_host or (target.address and self.is_own(target.address)):
            return End(Kind.HOST, HOST_PLACE, address=target.address)
        if target.address:
            return self.at(target.address) or outside(target.address)
        return self._sandbox(self._engine.registry.endpoints_called(target.name))

    def called(self, name: str) -> End | None:
        """Return the sandbox that a user calls so, if there is one."""
        try:
            return self._sandbox(self._engine.registry.endpoints_called(name))
        except NetplugError as exc:
            if exc.kind != "not_found":
                raise
            return None

    def knows(self, name: str) -> bool:
        """Whether an endpoint of this host is called so."""
        try:
            return bool(self._engine.registry.endpoints_called(name))
        except NetplugError:
            return False

    def at(self, address: IPAddress) -> End | None:
        """Return the sandbox that has an address by the records."""
        for record in self._engine.registry.endpoints():
            if record.linked and record.sandbox and any(it.ip == address for it in record.endpoint.addresses):
                return replace(self._sandbox([record]), address=address)
        return None

    def elsewhere(self, target: IPAddress | str, source: End | None = None) -> End | None:
        """Return the sandbox on another host that has an address, or that a user calls so."""
        if self._remote is None:
            return None
        if isinstance(target, str):
            found = self._remote.called(target)
        else:
            found = self._remote.at(target, {it.endpoint.network for it in (source.records if source else ())})
        return of_remote(found, target if not isinstance(target, str) else None) if found else None

    def is_own(self, address: IPAddress) -> bool:
        """Whether the host has an address, as last read."""
        return address.is_loopback or any(it.ip == address for it, _ in self._engine.base_plan.host.addresses)

    def behind(self, address: IPAddress, port: int, proto: str) -> End | None:
        """Return the sandbox to which a published port of the host leads."""
        for record in self._engine.registry.endpoints():
            for mapping in record.in_force:
                leads_to = inside_port(mapping, port, proto)
                if not leads_to or not record.sandbox:
                    continue
                if mapping.host_address not in {None, address} and not mapping.host_address.is_unspecified:
                    continue
                inside = [it.ip for it in record.endpoint.addresses if it.version == address.version]
                if inside:
                    return replace(self._sandbox([record]), address=inside[0], port=leads_to, via=mapping)
        return None

    def publishing(self, end: End, port: int, proto: str) -> tuple[PortMapping, int] | None:
        """Return the published port that leads to a port of a sandbox, with the port of the host.

        One that is reached from outside goes before one at a loopback address.
        """
        mappings = [it for record in end.records for it in record.in_force]
        for mapping in sorted(mappings, key=lambda it: bool(it.host_address and it.host_address.is_loopback)):
            if mapping.proto == proto and mapping.port <= port < mapping.port + mapping.count:
                return mapping, mapping.host_port + port - mapping.port
        return None

    def published_as(
        self, port: int, proto: str, end: End | None = None
    ) -> tuple[EndpointRecord, PortMapping, int] | None:
        """Return which endpoint, or which of a sandbox, a port of the host leads to, at whatever address, and where."""
        for record in end.records if end else self._engine.registry.endpoints():
            for mapping in record.in_force:
                if inside := inside_port(mapping, port, proto):
                    return record, mapping, inside
        return None

    def serves_names(self, address: IPAddress | None, port: int) -> bool:
        """Whether packets to an address and port of this host go to netplug's name server, which has another port."""
        return port == _DNS and any(address in it.resolvers for it in self._engine.registry.networks())

    def receiver(self, version: int) -> End | None:
        """Return the container that receives the ports of the host (mode host)."""
        for record in self._engine.registry.endpoints():
            if record.sandbox and self.network(record).options.mode == "host" and not self.network(record).internal:
                inside = [it.ip for it in record.endpoint.addresses if it.version == version]
                return replace(self._sandbox([record]), address=inside[0]) if inside else None
        return None

    def _sandbox(self, found: Sequence[EndpointRecord]) -> End:
        living = [it for it in found if it.sandbox and it.linked]
        if not living:
            raise NetplugError("unavailable", f"{found[0].called} does not run", hint=starting(found[0]))
        first = living[0]
        same = {it.key for it in self._engine.registry.in_sandbox(first.sandbox, first.sandbox_id)} | {first.key}
        if other := next((it for it in living if it.key not in same), None):
            both = " and ".join(f"{self.network(it).name}/{name_of(it)}" for it in (first, other))
            raise NetplugError("invalid", f"two containers are called so: {both}", hint="write NETWORK/NAME, or an id")
        others = self._engine.registry.in_sandbox(first.sandbox, first.sandbox_id)
        records = (first, *(it for it in others if it.key != first.key))
        return End(Kind.SANDBOX, Place(name_of(first), first.sandbox), records)


def outside(address: IPAddress | None = None) -> End:
    """Return an end beyond this host."""
    return End(Kind.OUTSIDE, Place("outside"), address=address)


def inside_port(mapping: PortMapping, port: int, proto: str) -> int:
    """Return the port of the container to which a port of the host leads; 0 if the mapping is another's."""
    if mapping.proto != proto or not mapping.host_port <= port < mapping.host_port + mapping.count:
        return 0
    return mapping.port + port - mapping.host_port


def of_remote(far: RemoteEnd, address: IPAddress | None = None) -> End:
    """Return an end on another host, with a record of what is known of it here."""
    net = far.record.network
    lengths = {it.pool: it.pool.prefixlen for it in net.subnets}
    addresses = tuple(
        ip_interface(f"{it}/{next((n for pool, n in lengths.items() if it in pool), it.max_prefixlen)}")
        for it in far.addresses
    )
    endpoint = Endpoint(far.peer.endpoint, net.id, addresses, far.peer.mac)
    front_end = next((it for it in FrontEnd if it.value == far.front_end), FrontEnd.CLI)
    record = EndpointRecord(endpoint, front_end, name=far.name, container=far.container)
    return End(Kind.SANDBOX, Place(far.name, host=far.host_name), (record,), address, far=far)


def name_of(record: EndpointRecord) -> str:
    """Return how an end is called in the answer."""
    namespace = namespace_name(record.sandbox) if record.front_end is FrontEnd.CLI else ""
    return record.name or namespace or short(record.container or record.endpoint.id)


def is_reference(name: str) -> bool:
    """Whether a text means a record and is no name to be asked for: NETWORK/NAME, or an id.

    >>> is_reference("blue/web"), is_reference("web"), is_reference("0a1b2c3d4e5f")
    (True, False, True)
    """
    return "/" in name or (len(name) >= _ID and all(it in "0123456789abcdef" for it in name))


def starting(record: EndpointRecord) -> str:
    """Return the command that starts a container."""
    name = name_of(record)
    return f"docker start {name}" if record.front_end is FrontEnd.DOCKER else f"start {name} with its runtime"
