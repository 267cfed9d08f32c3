"""The records that hosts share, and their keys.

Records of other hosts are not trusted: their form is checked here, and the driver checks peers against the network. A
record that cannot be read is skipped; it does not affect the others.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TypeVar

import structlog

from netplug.drivers.codec import OMIT_DEFAULT, decode, encode
from netplug.drivers.naming import short
from netplug.drivers.steps import IPAddress, IPNetwork
from netplug.engine.records import FrontEnd, NetworkRecord, NetworkSpec, Origin, SubnetSpec
from netplug.ipam.pool import GLOBAL
from netplug.store.api import Put, Record, StoreError

log = structlog.get_logger(__name__)

ROOT = "cluster/"
IDENTITY = ROOT + "id"
SCHEMA = ROOT + "schema"
"""The newest schema of these records; see `shared_schema`."""
GUARD = ROOT + "guard"
"""Changed by each transaction that defines a network, so that two hosts cannot both find the same name free."""
HOSTS = ROOT + "hosts/"
ALIVE = ROOT + "alive/"
STOPPED = ROOT + "stopped/"
"""Hosts whose daemons were stopped just now, under a lease."""
TWINS = ROOT + "twins/"
"""Daemons that have the id of another host and are not admitted: below that id, by their place."""
NETWORKS = ROOT + "networks/"
ENDPOINTS = ROOT + "endpoints/"
CONFIRMED = "confirmed/"
"""Revisions of endpoints that hosts have applied: below the host of the endpoints, which alone watches them. Not in
`ROOT`, which all hosts watch.
"""
FOLLOWED = "followed/"
"""Which updates of networks hosts have followed. Not in `ROOT`: only who waits for them, or lists hosts, reads it."""
MEMBERS = ROOT + "members/"
"""Hosts whose Docker has a network. A network that Docker created is deleted with the last of them."""

RECOVERED = ROOT + "recovered/"
"""By host: the id of the cluster to whose store the host has written all its records."""

_ID = re.compile(r"[0-9a-zA-Z_.-]{1,128}")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class HostRecord:
    """A host.

    Attributes:
        vtep: the address to which other hosts send their tunnels.
        epoch: the number of starts of its daemon.
        since: the store's revision since which it has this VTEP; 0 if unknown.
        notes: faults that it reports of itself.
        follows: its daemon follows updates of networks; older ones do not.
        answers: its daemon answers questions of other hosts (`questions`); older ones do not.
        release, schema: of its daemon; older ones do not say it.
    """

    name: str
    vtep: IPAddress
    epoch: int
    since: int = 0
    notes: tuple[str, ...] = ()
    follows: bool = False
    answers: bool = False
    release: str = ""
    schema: int = 1


@dataclass(frozen=True, slots=True)
class Range:
    """A subnet of a network. `range`: the part from which addresses are allocated; None for the whole subnet."""

    subnet: IPNetwork
    gateway: IPAddress
    range: IPNetwork | None = None

    def to_spec(self) -> SubnetSpec:
        """Return the engine's specification of the subnet."""
        return SubnetSpec(self.subnet, self.gateway, self.range, space=GLOBAL, v6=self.subnet.version == 6)


@dataclass(frozen=True, slots=True)
class Definition:
    """A network, the same on all hosts.

    Attributes:
        options: as given, completed with VNI and MTU.
        deleting: no endpoint may join, since host `deleter` is deleting the network.
        docker: created by Docker.
        labels, created, origin: see `NetworkRecord`.
        version: the number of updates.
        closing: subnets that no endpoint may join, since host `closer` is about to remove them.
    """

    name: str
    options: Mapping[str, str]
    subnets: tuple[Range, ...]
    internal: bool = False
    deleting: bool = False
    deleter: str = ""
    docker: bool = False
    labels: Mapping[str, str] = field(default_factory=dict, metadata=OMIT_DEFAULT)
    created: float = field(default=0.0, metadata=OMIT_DEFAULT)
    origin: Origin | None = field(default=None, metadata=OMIT_DEFAULT)
    version: int = field(default=0, metadata=OMIT_DEFAULT)
    closing: tuple[IPNetwork, ...] = field(default=(), metadata=OMIT_DEFAULT)
    closer: str = field(default="", metadata=OMIT_DEFAULT)

    @classmethod
    def of(cls, record: NetworkRecord) -> "Definition":
        """Return the definition of a network that was built."""
        net = record.network
        ranges = [
            ident.removeprefix(f"{GLOBAL}/{s.pool}").strip("/")
            for ident, s in zip(record.pools, net.subnets, strict=True)
        ]
        return cls(
            net.name,
            dict(record.options),
            tuple(
                decode(Range, {"subnet": str(s.pool), "gateway": str(s.gateway.ip), "range": part or None})
                for s, part in zip(net.subnets, ranges, strict=True)
                if s.gateway
            ),
            net.internal,
            docker=record.front_end is FrontEnd.DOCKER,
            labels=dict(record.labels),
            created=record.created,
            origin=record.origin,
            version=record.version,
        )

    def to_spec(self, ident: str, docker: str = "") -> NetworkSpec:
        """Return the engine's specification of the network. `docker`: its id in this host's Docker, if it has one."""
        return NetworkSpec(
            docker or ident,
            self.name,
            self.options,
            tuple(it.to_spec() for it in self.subnets),
            self.internal,
            FrontEnd.DOCKER if docker else FrontEnd.CLI,
            cluster=ident,
            labels=self.labels,
            created=self.created,
            origin=self.origin,
            version=self.version,
        )

    def refuses(self, addresses: Iterable[IPAddress]) -> str:
        """Return why no endpoint may have one of these addresses; empty if it may."""
        for address in addresses:
            found = next((it.subnet for it in self.subnets if address in it.subnet), None)
            if found is None:
                return f"network {self.name!r} has no subnet of {address} any more"
            if found in self.closing:
                return f"subnet {found} of network {self.name!r} is being removed"
        return ""


@dataclass(frozen=True, slots=True)
class EndpointAdvert:
    """An endpoint, as its host advertises it.

    Attributes:
        names: DNS names; the first is the endpoint's name.
        ports: published ports: protocol and number.
        healthy: if false, DNS prefers other endpoints of the same name.
        front_end, container: shown in lists.
    """

    mac: str
    addresses: tuple[IPAddress, ...]
    names: tuple[str, ...] = ()
    ports: tuple[tuple[str, int], ...] = ()
    healthy: bool = True
    front_end: str = ""
    container: str = ""

    @property
    def name(self) -> str:
        return self.names[0] if self.names else ""


def parse(cls: type[_T], record: Record) -> _T:
    """Decode a record. Unknown fields are ignored.

    Raises:
        StoreError: the record cannot be read; the text names its key.
    """
    known = {one.name for one in fields(cls)}  # type: ignore[arg-type]  # a dataclass
    try:
        # Hosts of later versions, which write more fields, must stay reachable.
        return decode(cls, {key: value for key, value in record.value.items() if key in known})
    except (ValueError, TypeError) as exc:
        raise StoreError(f"record {record.key!r} is not a {cls.__name__}: {exc}") from exc


def duplicate_vteps(hosts: Mapping[str, HostRecord], alive: Collection[str]) -> dict[str, str]:
    """Return the hosts whose VTEP belongs to another host, with that host. Frames could arrive at either.

    A VTEP belongs to the host that is alive, and among several to the one that had it first.
    """
    by_vtep: defaultdict[IPAddress, list[str]] = defaultdict(list)
    for ident, host in hosts.items():
        by_vtep[host.vtep].append(ident)
    found: dict[str, str] = {}
    for idents in by_vtep.values():
        first = min(idents, key=lambda ident: (ident not in alive, hosts[ident].since, ident))
        found |= {ident: first for ident in idents if ident != first}
    return found


def describe_copy(record: Record) -> str:
    """Return name and VTEP of a copy that announced itself."""
    return f"{record.value.get('name')} ({record.value.get('vtep')})"


def duplicate_vtep(vtep: IPAddress, first: str) -> str:
    """Return the fault of a host whose VTEP belongs to another host."""
    return f"VTEP {vtep} belongs to host {first}, which had it first: endpoints of this host are not reached"


def as_put(key: str, value: HostRecord | Definition | EndpointAdvert) -> Put:
    """Return the operation that writes a record."""
    data = encode(value)
    assert isinstance(data, dict)  # noqa: S101 - a dataclass encodes to an object
    return Put(key, data)


def version_of(stored: Record) -> int:
    """Return the version of a definition; 0 if it cannot be read."""
    version = stored.value.get("version", 0)
    return version if isinstance(version, int) else 0


def rewritten(stored: Record, definition: Definition) -> Put:
    """Return the operation that changes a definition. Fields that a later version wrote stay."""
    known = {one.name for one in fields(Definition)}
    later = {key: value for key, value in stored.value.items() if key not in known}
    return Put(stored.key, later | as_put(stored.key, definition).value)


def endpoint_key(network: str, host: str, endpoint: str) -> str:
    """Return the key of an endpoint. It contains the host, since endpoint ids are unique on one host only."""
    return f"{ENDPOINTS}{network}/{host}/{endpoint}"


def parts_of(key: str) -> tuple[str, str, str] | None:
    """Return network, host and endpoint of an endpoint's key; None for other keys, and for ill-formed ids."""
    parts = key.removeprefix(ENDPOINTS).split("/")
    if not key.startswith(ENDPOINTS) or len(parts) != 3 or not all(map(_ID.fullmatch, parts)):
        return None
    return parts[0], parts[1], parts[2]


def ident_of(record: NetworkRecord) -> str:
    """Return a network's id in the cluster."""
    return record.cluster or record.network.id


def describe(ident: str, name: str) -> str:
    """Return the name of a host in messages."""
    return name or short(ident)
