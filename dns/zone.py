"""The names of this host's networks, and what each asker may see of them.

Every network has an index: names in wire form to records packed ready to send. A `View` is what somebody sees who is
in certain networks, and looks nowhere else; so a name of another network cannot be told from one that does not exist.
An index changes name by name, while it is being asked. There is no cache of answers to go stale, but for the plain
questions of `View.ready`, from which a changed name is taken out before the change returns.

Names: ``web``, ``web.blue`` and ``web.blue.netplug.internal`` for container web in network blue; the same below
``_http._tcp.`` for services; reverse names of addresses; ``host.netplug.internal`` for the host's addresses there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Protocol, TypeAlias
from weakref import WeakSet, WeakValueDictionary

from . import wire
from .rules import NOBODY
from .wire import IPAddress, IPNetwork, Record

NEGATIVE_S = 5
"""How long somebody may remember that there is no such name; containers come within seconds."""
MOST_TURNS = 8
READY_MOST = 16_384
READY_KINDS = tuple(wire.key(kind) for kind in (wire.A, wire.AAAA, wire.PTR))
READY_HEADS = (b"\x01\x00" + b"\0\1\0\0\0\0\0\0", b"\x01\x20" + b"\0\1\0\0\0\0\0\0")
"""Flags and counts of the questions that may stand in `View.ready`: RD, with or without AD, no EDNS."""


@dataclass(frozen=True, slots=True)
class Service:
    """A port on which an endpoint is reachable by name: `name` "http", `proto` "tcp"."""

    name: str
    proto: str
    port: int


@dataclass(frozen=True, slots=True)
class Entry:
    """An endpoint as others call it. The first of `names` is the one that addresses lead back to.

    `healthy` False: its addresses are left out where a healthy endpoint has the same name.
    """

    id: str
    names: tuple[str, ...]
    addresses: tuple[IPAddress, ...]
    services: tuple[Service, ...] = ()
    healthy: bool = True


@dataclass(frozen=True, slots=True)
class Network:
    """A network as its containers see it. `ttl_s`: of its records. `hosts`: the addresses of the host in it."""

    id: str
    name: str
    ttl_s: int = 5
    hosts: tuple[IPAddress, ...] = ()
    pools: tuple[IPNetwork, ...] = ()


class RRset:
    """Records of one name and type, in wire form with a pointer to the question for their owner.

    `turns`: the records one after the other, now and then beginning with another.
    """

    __slots__ = ("records", "turns")

    def __init__(self, records: Sequence[bytes]) -> None:
        self.records = tuple(records)
        self.turns = cycle(rotations(self.records))


def rotations(records: Sequence[bytes]) -> list[bytes]:
    """Return the records joined, beginning with each of them in turn; of many, with some of them.

    >>> rotations((b"a", b"b", b"c"))
    [b'abc', b'bca', b'cab']
    """
    step = -(-len(records) // MOST_TURNS) or 1
    return [b"".join((*records[turn:], *records[:turn])) for turn in range(0, len(records), step)]


Node: TypeAlias = dict[bytes, RRset]
"""RRsets of a name by type and class as in a question; empty for a name that has others below it only."""


@dataclass(frozen=True, slots=True)
class _Share:
    """What one source says of a name."""

    records: tuple[Record, ...]
    healthy: bool = True


class Index:
    """The names of one network. `views`: of those who are in it."""

    def __init__(self, network: Network, domain: bytes, apex: Iterable[Record]) -> None:
        self.network = network
        self.nodes: dict[bytes, Node] = {}
        self.views: WeakSet[View] = WeakSet()
        self.entries: dict[str, Entry] = {}
        self._domain = domain
        self._shares: dict[bytes, dict[str, _Share]] = {}
        self._names: dict[str, frozenset[bytes]] = {}
        self._put("", self._own(tuple(apex)))

    def add(self, entry: Entry) -> None:
        """Add an endpoint, or take what is now said of it in place of what was."""
        if self.entries.get(entry.id) != entry:
            self.entries[entry.id] = entry
            self._put(entry.id, self._names_of(entry))

    def remove(self, entry_id: str) -> None:
        """Remove an endpoint; absent is success."""
        if self.entries.pop(entry_id, None) is not None:
            self._put(entry_id, {})

    def _put(self, source: str, said: Mapping[bytes, _Share]) -> None:
        before = self._names.pop(source, frozenset())
        for name in before - said.keys():
            shares = self._shares[name]
            del shares[source]
            if not shares:
                del self._shares[name]
        for name, share in said.items():
            self._shares.setdefault(name, {})[source] = share
        if said:
            self._names[source] = frozenset(said)
        for name in before | said.keys():
            self._rebuild(name)

    def _rebuild(self, name: bytes) -> None:
        shares = self._shares.get(name)
        if shares is None:
            self.nodes.pop(name, None)
        else:
            well = [share for share in shares.values() if share.healthy]
            by_kind: dict[bytes, dict[bytes, None]] = {}
            for share in well if any(share.records for share in well) else shares.values():
                for record in share.records:
                    packed = wire.pack(wire.TO_QUESTION, record, self.network.ttl_s)
                    by_kind.setdefault(wire.key(record.type), {})[packed] = None
            self.nodes[name] = {kind: RRset(tuple(records)) for kind, records in by_kind.items()}
        for view in self.views:
            view.forget(name)

    def _own(self, apex: tuple[Record, ...]) -> dict[bytes, _Share]:
        """Return what the network itself has: the zone, the host, and the name that the others are below."""
        host = b"\x04host" + self._domain
        said = {self._domain: _Share(apex), host: _Share(tuple(map(wire.address, self.network.hosts)))}
        said |= {wire.reverse(address): _Share((Record(wire.PTR, host),)) for address in self.network.hosts}
        for suffix in self._suffixes()[1:]:
            _above(said, suffix, _limit(suffix, self._domain))
            said.setdefault(suffix, _Share(()))
        return said

    def _suffixes(self) -> list[bytes]:
        """Return what may stand behind a name: nothing, the network, the network and the domain."""
        suffixes = [wire.ROOT]
        try:
            network = wire.to_wire(self.network.name)
            suffixes += [network, _joined(network, self._domain)]
        except ValueError:  # too long for a name: its containers have their short names
            pass
        return suffixes

    def _names_of(self, entry: Entry) -> dict[bytes, _Share]:
        said: dict[bytes, _Share] = {}
        addresses = _Share(tuple(map(wire.address, entry.addresses)), entry.healthy)
        main = b""
        for text in entry.names:
            name = b""
            for suffix in self._suffixes():
                try:
                    name = _joined(wire.to_wire(text), suffix)
                except ValueError:
                    continue
                said[name] = addresses
                _above(said, name, _limit(suffix, self._domain))
                for service in entry.services:
                    self._serve(said, service, name, entry.healthy)
            main = main or name
        for address in entry.addresses if main else ():
            said[wire.reverse(address)] = _Share((Record(wire.PTR, main),))
        return said

    @staticmethod
    def _serve(said: dict[bytes, _Share], service: Service, target: bytes, healthy: bool) -> None:
        try:
            name = _joined(wire.to_wire(f"_{service.name}._{service.proto}"), target)
        except ValueError:
            return
        before = said[name].records if name in said else ()
        said[name] = _Share((*before, wire.srv(service.port, target)), healthy)
        _above(said, name, target)


class Outside(Protocol):
    """An upstream's answer that is remembered."""

    def at(self, now: float) -> tuple[int, bytes, bytes] | None:
        """Return RCODE, the counts of answers and authorities, and these records, their TTLs as of now (monotonic).

        None: it is no longer good.
        """


class View:
    """What somebody sees who is in certain networks.

    `first`, `others`: the nodes of the networks. `ready`: the answer to a plain question, or those that take turns,
    without the id, by what the question has behind its id. `outside`: answers of upstreams by name, type, class, and
    whether DNSSEC is wanted (a last octet of 0x80). `served`: names below which a rule sends questions to an upstream,
    even if of special use. `rules`: by which upstreams are asked.
    """

    __slots__ = (
        "__weakref__",
        "_merged",
        "domain",
        "first",
        "indexes",
        "negative",
        "others",
        "outside",
        "ready",
        "rules",
        "served",
        "via",
        "zones",
    )

    def __init__(self, zones: "Zones", indexes: Sequence[Index], via: str) -> None:
        self.indexes = tuple(indexes)
        self.via = via
        self.zones = zones
        self.domain = zones.domain
        self.negative = zones.negative
        self.first = indexes[0].nodes
        self.others = tuple(index.nodes for index in indexes[1:])
        self.ready: dict[bytes, bytes | cycle[bytes]] = {}
        self._merged: dict[bytes, Node] = {}
        self.outside: Mapping[bytes, Outside] = {}
        self.served: tuple[bytes, ...] = ()
        self.rules = NOBODY

    def find(self, name: bytes) -> Node | None:
        """Return the node of a lower-cased name, in all networks together; None when there is none."""
        if not self.others:
            return self.first.get(name)
        if name in self._merged:
            return self._merged[name]
        found = [node for nodes in (self.first, *self.others) if (node := nodes.get(name)) is not None]
        if len(found) < 2:
            return found[0] if found else None
        kinds = dict.fromkeys(kind for node in found for kind in node)
        merged = self._merged[name] = {
            kind: RRset(tuple(dict.fromkeys(it for node in found if kind in node for it in node[kind].records)))
            for kind in kinds
        }
        return merged

    def forget(self, name: bytes) -> None:
        """Drop the ready answers to questions for a name."""
        self._merged.pop(name, None)
        if self.ready:
            for head in READY_HEADS:
                for kind in READY_KINDS:
                    self.ready.pop(head + name + kind, None)

    def keep(self, question: bytes, tails: Sequence[bytes]) -> None:
        """Keep ready answers."""
        if len(self.ready) >= READY_MOST:
            self.ready.clear()
        self.ready[question] = cycle(tails) if len(tails) > 1 else tails[0]


class Zones:
    """All networks by id, and the views of them. `domain`: what all full names end in.

    `negative`: the authority sections of "there is none", by whether the name is below the domain. For names elsewhere
    that nobody else shall be asked for, the owner is the root: the zone that all names are in. `pools`: the subnets of
    all networks, whose reverse names are ours.
    """

    def __init__(self, domain: str = "netplug.internal") -> None:
        self.domain = wire.to_wire(domain)
        if self.domain == wire.ROOT:
            raise ValueError("the domain of all names cannot be the root")
        host = b"\x04host" + self.domain
        start = wire.soa(host, b"\x0ahostmaster" + self.domain, NEGATIVE_S)
        self._apex = (start, Record(wire.NS, host))
        self.negative = {
            inside: wire.pack(owner, start, NEGATIVE_S) for inside, owner in ((True, self.domain), (False, wire.ROOT))
        }
        self.networks: dict[str, Index] = {}
        self.pools: frozenset[IPNetwork] = frozenset()
        self._views: WeakValueDictionary[tuple[frozenset[str], str], View] = WeakValueDictionary()

    def set_network(self, network: Network) -> None:
        """Add a network, or describe it anew; its endpoints stay."""
        before = self.networks.get(network.id)
        if before is not None and before.network == network:
            return
        index = self.networks[network.id] = Index(network, self.domain, self._apex)
        if before is not None:
            for entry in before.entries.values():
                index.add(entry)
        self._drop_views(network.id)

    def remove_network(self, network_id: str) -> None:
        """Remove a network with its names; absent is success."""
        if self.networks.pop(network_id, None) is not None:
            self._drop_views(network_id)

    def _drop_views(self, network_id: str) -> None:
        self.pools = frozenset(pool for index in self.networks.values() for pool in index.network.pools)
        for key, view in list(self._views.items()):
            if network_id in key[0]:
                del self._views[key]
                for index in view.indexes:
                    index.views.discard(view)

    def view(self, networks: Iterable[str], via: str = "") -> View | None:
        """Return what those see who are in these networks and ask by way of `via`; None for no network that is known.

        It is kept while somebody has it, and holds until one of the networks is set anew or removed.
        """
        known = frozenset(networks).intersection(self.networks)
        if not known:
            return None
        view = self._views.get((known, via))
        if view is None:
            indexes = [self.networks[ident] for ident in sorted(known, key=lambda ident: (ident != via, ident))]
            view = self._views[known, via] = View(self, indexes, via)
            for index in indexes:
                index.views.add(view)
        return view


def _joined(name: bytes, suffix: bytes) -> bytes:
    joined = name[:-1] + suffix
    if len(joined) > wire.LONGEST_NAME:
        raise ValueError("longer than a name may be")
    return joined


def _above(said: dict[bytes, _Share], name: bytes, limit: bytes) -> None:
    """Add the names above a name, up to `limit`, so that they are there without records (RFC 8020)."""
    at = name[0] + 1
    while at < len(name) - len(limit):
        said.setdefault(name[at:], _Share(()))
        at += name[at] + 1


def _limit(suffix: bytes, domain: bytes) -> bytes:
    """Return the zone up to which the names above one with this suffix are ours."""
    return domain if suffix.endswith(domain) else wire.ROOT
