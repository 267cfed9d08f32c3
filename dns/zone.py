"""The names of this host's networks, and what each asker may see of them.

Every network has an index: names in wire form to records packed ready to send. A `View` is what somebody sees who is
in certain networks, and looks nowhere else; so a name of another network cannot be told from one that does not exist.
Names: ``web``, ``web.blue`` and ``web.blue.netplug.internal`` for container web in network blue; the same below
``_http._tcp.`` for services; reverse names of addresses; ``host.netplug.internal`` for the host's addresses there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from weakref import WeakSet, WeakValueDictionary

from . import special_use, wire
from .view import MOST_TURNS, Node, RRset, View, rotations
from .wire import IPAddress, IPNetwork, Record

__all__ = ["MOST_TURNS", "Entry", "Index", "Network", "RRset", "Service", "View", "Zones", "rotations"]

_PTR = wire.key(wire.PTR)
MOST_OWNERS = 256
NEGATIVE_S = 5
"""How long somebody may remember that there is no such name; containers come within seconds."""


@dataclass(frozen=True, slots=True)
class Service:
    """A port on which an endpoint is reachable by name: `name` "http", `proto` "tcp"."""

    name: str
    proto: str
    port: int


@dataclass(frozen=True, slots=True)
class Entry:
    """An endpoint as others call it. The first of `names` is the one that addresses lead back to, then `reverse`.

    `healthy` False: its addresses are left out where a healthy endpoint has the same name. `short`: a name too where
    nobody else has it, such as part of an id. `reverse`: whole names that are also among `names`.
    """

    id: str
    names: tuple[str, ...]
    addresses: tuple[IPAddress, ...]
    services: tuple[Service, ...] = ()
    healthy: bool = True
    short: str = ""
    reverse: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Network:
    """A network as its containers see it. `ttl_s`: of its records. `hosts`: the addresses of the host in it.

    `rank`: whose names come first for those who are in several, the lower; of the same rank the first by name.
    """

    id: str
    name: str
    ttl_s: int = 5
    hosts: tuple[IPAddress, ...] = ()
    pools: tuple[IPNetwork, ...] = ()
    rank: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Share:
    """What one source says of a name. `weak`: it counts where no other does."""

    records: tuple[Record, ...]
    healthy: bool = True
    weak: bool = False


class Index:
    """The names of one network. `views`: of those who are in it. `zone`: what names that end in the network's end in.

    `unnamed`: endpoints of which nobody has said yet how they are called. `refused`: names that an endpoint cannot
    have, as they are the zone's own or no domain names.
    """

    def __init__(self, network: Network, domain: bytes, apex: Iterable[Record]) -> None:
        self.network = network
        self.nodes: dict[bytes, Node] = {}
        self.views: WeakSet[View] = WeakSet()
        self.entries: dict[str, Entry] = {}
        self.unnamed: set[str] = set()
        self.refused: dict[str, tuple[str, ...]] = {}
        self._domain = domain
        self._suffixes = _suffixes(network.name, domain)
        self.zone = self._suffixes[1] if len(self._suffixes) > 1 else b""
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
        self.refused.pop(entry_id, None)
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
        shares = _counting(self._shares.get(name, {}))
        if not shares:
            gone = self.nodes.pop(name, None) is not None
        else:
            gone = False
            by_kind: dict[bytes, dict[bytes, None]] = {}
            for share in shares:
                for record in share.records:
                    packed = wire.pack(wire.TO_QUESTION, record, self.network.ttl_s)
                    by_kind.setdefault(wire.key(record.type), {})[packed] = None
            # Of several names of an address the first is what it is called.
            self.nodes[name] = {kind: RRset(tuple(records), turning=kind != _PTR) for kind, records in by_kind.items()}
        for view in self.views:
            view.forget(name, gone=gone)

    def _own(self, apex: tuple[Record, ...]) -> dict[bytes, _Share]:
        """Return what the network itself has: the zone, the host, and the name that the others are below."""
        host = b"\x04host" + self._domain
        said = {self._domain: _Share(apex), host: _Share(tuple(map(wire.address, self.network.hosts)))}
        said |= {wire.reverse(address): _Share((Record(wire.PTR, host),)) for address in self.network.hosts}
        for suffix in self._suffixes[1:]:
            _above(said, suffix, _limit(suffix, self._domain))
            said.setdefault(suffix, _Share(()))
        return said

    def _names_of(self, entry: Entry) -> dict[bytes, _Share]:
        said: dict[bytes, _Share] = {}
        refused: list[str] = []
        records = tuple(map(wire.address, entry.addresses))
        main = b""
        for text in dict.fromkeys((*entry.names, entry.short)) if entry.short else entry.names:
            addresses = _Share(records, entry.healthy, weak=text not in entry.names)
            name = b""
            for suffix in self._suffixes:
                try:
                    longer = _joined(wire.to_wire(text), suffix)
                except ValueError:
                    refused += [text] if not suffix.rstrip(b"\0") else []
                    continue
                if not self._may_be(longer):
                    refused.append(text)
                    continue
                name = longer
                said[name] = addresses
                _above(said, name, suffix)
                for service in entry.services:
                    self._serve(said, service, name, addresses)
            main = main or name
        self._lead_back(said, entry, main)
        self.refused.pop(entry.id, None)
        if refused:
            self.refused[entry.id] = tuple(dict.fromkeys(refused))
        return said

    def _may_be(self, name: bytes) -> bool:
        """Tell whether an endpoint can have a name: below the domain those alone that its network's are below."""
        full = self._suffixes[2] if len(self._suffixes) > 2 else b""
        if wire.below(name, self._domain):
            return bool(full) and wire.below(name, full) and name != full
        return not special_use.is_reserved(name)

    @staticmethod
    def _lead_back(said: dict[bytes, _Share], entry: Entry, main: bytes) -> None:
        """Say what the addresses are called: by one whole name, and by those that the container has of its own."""
        targets = [main] if main else []
        for text in entry.reverse:
            try:
                targets.append(wire.to_wire(text))
            except ValueError:
                continue
        records = tuple(Record(wire.PTR, target) for target in targets if target == main or target in said)
        for address in entry.addresses if records else ():
            said[wire.reverse(address)] = _Share(records)

    @staticmethod
    def _serve(said: dict[bytes, _Share], service: Service, target: bytes, like: _Share) -> None:
        try:
            name = _joined(wire.to_wire(f"_{service.name}._{service.proto}"), target)
        except ValueError:
            return
        before = said[name].records if name in said else ()
        said[name] = replace(like, records=(*before, wire.srv(service.port, target)))
        _above(said, name, target)


class Zones:
    """All networks by id, and the views of them. `domain`: what all full names end in.

    `host`: the name of the host. `pools`: the subnets of all networks, whose reverse names are ours.
    """

    def __init__(self, domain: str = "netplug.internal") -> None:
        self.domain = wire.to_wire(domain)
        if self.domain == wire.ROOT:
            raise ValueError("the domain of all names cannot be the root")
        self.host = b"\x04host" + self.domain
        self._start = wire.soa(self.host, b"\x0ahostmaster" + self.domain, NEGATIVE_S)
        self._apex = (self._start, Record(wire.NS, self.host))
        self._negative: dict[bytes, bytes] = {}
        self.networks: dict[str, Index] = {}
        self.pools: frozenset[IPNetwork] = frozenset()
        self._views: WeakValueDictionary[tuple[frozenset[str], str], View] = WeakValueDictionary()

    def negative(self, owner: bytes) -> bytes:
        """Return the authority section of "there is none" in a zone (RFC 2308 §3)."""
        found = self._negative.get(owner)
        if found is None:
            if len(self._negative) >= MOST_OWNERS:
                self._negative.clear()
            found = self._negative[owner] = wire.pack(owner, self._start, NEGATIVE_S)
        return found

    def set_network(self, network: Network) -> None:
        """Add a network, or describe it anew; its endpoints stay."""
        before = self.networks.get(network.id)
        if before is not None and before.network == network:
            return
        index = self.networks[network.id] = Index(network, self.domain, self._apex)
        if before is not None:
            index.unnamed = before.unnamed
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
            indexes = sorted((self.networks[ident] for ident in known), key=_order)
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
    """Add the names above a name, up to `limit`, so that they are there without records (RFC 8020).

    None without a limit: what is above a name that is nobody's zone is not ours.
    """
    if limit == wire.ROOT:
        return
    at = name[0] + 1
    while at < len(name) - len(limit):
        said.setdefault(name[at:], _Share(()))
        at += name[at] + 1


def _limit(suffix: bytes, domain: bytes) -> bytes:
    """Return the zone up to which the names above a network's are ours."""
    return domain if suffix.endswith(domain) else suffix


def _suffixes(network: str, domain: bytes) -> list[bytes]:
    """Return what may stand behind a name: nothing, the network, the network and the domain."""
    try:
        zone = wire.to_wire(network)
        return [wire.ROOT, zone, _joined(zone, domain)] if zone != wire.ROOT else [wire.ROOT]
    except ValueError:  # too long for a name: its containers have their short names
        return [wire.ROOT]


def _counting(shares: Mapping[str, _Share]) -> list[_Share]:
    """Return of what is said of a name that which counts; what is weak counts alone, and not where two say it."""
    strong = [share for share in shares.values() if not share.weak]
    if not strong:
        return list(shares.values()) if len(shares) == 1 else []
    well = [share for share in strong if share.healthy]
    return well if any(share.records for share in well) else strong


def _order(index: Index) -> tuple[tuple[int, ...], str, str]:
    return index.network.rank, index.network.name, index.network.id
