"""What hosts tell each other by the store, and under which keys.

Nothing is believed: a record of another host is read here, as far as its form goes, and what it says of peers is
checked against the network by the driver. One that cannot be read is left out, and does not keep the others out.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import TypeVar

import structlog

from netplug.drivers.codec import decode, encode
from netplug.drivers.naming import short
from netplug.drivers.steps import IPAddress, IPNetwork
from netplug.engine.records import FrontEnd, NetworkRecord, NetworkSpec, SubnetSpec
from netplug.ipam.pool import GLOBAL
from netplug.store.api import Put, Record, StoreError

log = structlog.get_logger(__name__)

ROOT = "cluster/"
IDENTITY = ROOT + "id"
GUARD = ROOT + "guard"
"""Written by whoever defines a network, so that two never look at the same state and both find a name free."""
HOSTS = ROOT + "hosts/"
ALIVE = ROOT + "alive/"
STOPPED = ROOT + "stopped/"
"""Hosts whose daemons have just ended in good order."""
TWINS = ROOT + "twins/"
"""Daemons that have the identity of a host and are not let in: below its id, by where they are."""
NETWORKS = ROOT + "networks/"
ENDPOINTS = ROOT + "endpoints/"
CONFIRMED = "confirmed/"
"""By whom up to which revision: below the host whose endpoints they are. Nobody else wants to know (not in `ROOT`)."""
MEMBERS = ROOT + "members/"
"""Hosts whose Docker has a network: when it is Docker's alone, it goes with the last of them."""

RECOVERED = ROOT + "recovered/"
"""By host: the id of the cluster whose store has been told all that the host has."""

_ID = re.compile(r"[0-9a-zA-Z_.-]{1,128}")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class HostRecord:
    """A host. `epoch` counts its daemon's starts; `vtep`: where the others tunnel to.

    `since`: the revision of the store at which it came to that VTEP; 0: nobody noted. `notes`: what is wrong with it,
    as it says itself.
    """

    name: str
    vtep: IPAddress
    epoch: int
    since: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Range:
    """A subnet of a network. `range`: what addresses are chosen out of, all of it without."""

    subnet: IPNetwork
    gateway: IPAddress
    range: IPNetwork | None = None


@dataclass(frozen=True, slots=True)
class Definition:
    """A network, the same on all hosts.

    `options`: raw, with VNI and mtu. `deleting`: nobody may join it any more, since host `deleter` is about to
    delete it. `docker`: made by Docker and nobody else.
    """

    name: str
    options: Mapping[str, str]
    subnets: tuple[Range, ...]
    internal: bool = False
    deleting: bool = False
    deleter: str = ""
    docker: bool = False

    @classmethod
    def of(cls, record: NetworkRecord) -> "Definition":
        """Return what defines a network that was built."""
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
        )

    def to_spec(self, ident: str, docker: str = "") -> NetworkSpec:
        """Return the network as the engine is asked for it; `docker`: the id that this host's Docker has for it."""
        subnets = tuple(
            SubnetSpec(it.subnet, it.gateway, it.range, space=GLOBAL, v6=it.subnet.version == 6) for it in self.subnets
        )
        front_end = FrontEnd.DOCKER if docker else FrontEnd.CLI
        return NetworkSpec(docker or ident, self.name, self.options, subnets, self.internal, front_end, ident)


@dataclass(frozen=True, slots=True)
class EndpointAdvert:
    """An endpoint, as its host tells of it. `names`: the first is what it is called; `ports`: protocol and number.

    `healthy` False: others are called so rather than it. `front_end`, `container`: for lists.
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
    """Return what a record says.

    Raises:
        StoreError: it cannot be read; the text names its key.
    """
    known = {one.name for one in fields(cls)}  # type: ignore[arg-type]  # a dataclass
    try:
        # What a later version adds must not make its hosts unreachable for this one.
        return decode(cls, {key: value for key, value in record.value.items() if key in known})
    except (ValueError, TypeError) as exc:
        raise StoreError(f"record {record.key!r} is not a {cls.__name__}: {exc}") from exc


def yielding(hosts: Mapping[str, HostRecord], alive: Collection[str]) -> dict[str, str]:
    """Return the hosts whose VTEP another one has with more right, with that one: frames would come to either.

    Who lives comes before who does not, then who came to it first.
    """
    by_vtep: defaultdict[IPAddress, list[str]] = defaultdict(list)
    for ident, host in hosts.items():
        by_vtep[host.vtep].append(ident)
    found: dict[str, str] = {}
    for idents in by_vtep.values():
        first = min(idents, key=lambda ident: (ident not in alive, hosts[ident].since, ident))
        found |= {ident: first for ident in idents if ident != first}
    return found


def twin_of(record: Record) -> str:
    """Say where one is that is not let in, by the word that it left."""
    return f"{record.value.get('name')} ({record.value.get('vtep')})"


def twin_words(vtep: IPAddress, first: str) -> str:
    """Say what is wrong with a host that yields to another."""
    return f"VTEP {vtep} is that of host {first} too, which comes before: its endpoints are not reached"


def as_put(key: str, value: HostRecord | Definition | EndpointAdvert) -> Put:
    """Return the operation that writes a record."""
    data = encode(value)
    assert isinstance(data, dict)  # noqa: S101 - a dataclass encodes to an object
    return Put(key, data)


def endpoint_key(network: str, host: str, endpoint: str) -> str:
    """Return the key of an endpoint. Ids are unique on a host alone: those of bare namespaces are made there."""
    return f"{ENDPOINTS}{network}/{host}/{endpoint}"


def parts_of(key: str) -> tuple[str, str, str] | None:
    """Return network, host and endpoint of an endpoint's key; None for another key, or one with strange ids."""
    parts = key.removeprefix(ENDPOINTS).split("/")
    if not key.startswith(ENDPOINTS) or len(parts) != 3 or not all(map(_ID.fullmatch, parts)):
        return None
    return parts[0], parts[1], parts[2]


def describe(ident: str, name: str) -> str:
    """Return how a host is called in a message."""
    return name or short(ident)
