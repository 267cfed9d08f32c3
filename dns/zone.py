"""The names in this host's networks, and who can resolve them.

Every network has an index: it maps names in wire format to packed records. A `View` uses the indexes of a client's
networks only. So names in other networks get the same answer as names that do not exist.
Names: ``web``, ``web.blue`` and ``web.blue.netplug.internal`` for container web in network blue; the same with
``_http._tcp.`` in front for services; reverse names of addresses; ``host.netplug.internal`` for the host's addresses.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from weakref import WeakSet, WeakValueDictionary

from . import special_use, wire
from .share import Service, Share, add_parents, add_service, joined, offers, several, used
from .view import MAX_ROTATIONS, Node, RRset, View, rotations
from .wire import IPAddress, IPNetwork, Record

__all__ = ["MAX_ROTATIONS", "Entry", "Index", "Network", "RRset", "Service", "View", "Zones", "rotations"]

_PTR = wire.key(wire.PTR)
MAX_OWNERS = 256
MAX_NODES = 4096
"""Nodes that an index keeps once they were asked for."""
NEGATIVE_S = 5
"""The TTL of negative answers. It is short, as a container may get the name within seconds."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The names of an endpoint.

    Attributes:
        id: of the endpoint.
        names: its names. PTR records have the first one, then those in `reverse`.
        addresses: its addresses.
        services: its services.
        healthy: False: its addresses are left out if a healthy endpoint has the same name.
        short: one more name, if no other endpoint has it; such as the start of the id.
        reverse: fully qualified names, also contained in `names`.
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
    """A network.

    Attributes:
        id, name: of the network.
        ttl_s: the TTL of its records.
        hosts: the host's addresses in it.
        pools: its subnets.
        rank: for clients in several networks, names in the network with the lowest rank come first; if the ranks are
            equal, those in the first network by name.
    """

    id: str
    name: str
    ttl_s: int = 5
    hosts: tuple[IPAddress, ...] = ()
    pools: tuple[IPNetwork, ...] = ()
    rank: tuple[int, ...] = ()


class Index:
    """The names of one network.

    Attributes:
        network: the network.
        names: who has each name: the share of one endpoint, or those of several.
        views: the views that use this index.
        entries: the endpoints with names, by id.
        unnamed: ids of endpoints whose names are not known yet.
        refused: by endpoint, names that it cannot have: they are reserved, or not valid domain names.
        zone: the network's zone without the domain, such as ``blue``.
    """

    def __init__(self, network: Network, domain: bytes, apex: Iterable[Record]) -> None:
        self.network = network
        self.names: dict[bytes, Share | tuple[Share, ...]] = {}
        self.views: WeakSet[View] = WeakSet()
        self.entries: dict[str, Entry] = {}
        self.unnamed: set[str] = set()
        self.refused: dict[str, tuple[str, ...]] = {}
        self._domain = domain
        self._suffixes = _suffixes(network.name, domain)
        self.zone = self._suffixes[1] if len(self._suffixes) > 1 else b""
        self._unused: dict[bytes, tuple[Share, ...]] = {}  # a short id that several endpoints have
        self._nodes: dict[bytes, Node] = {}
        self._names_by_source: dict[str, tuple[bytes, ...]] = {}
        self._put("", self._own(tuple(apex)))

    def add(self, entry: Entry) -> None:
        """Add or replace the names of an endpoint."""
        if self.entries.get(entry.id) != entry:
            self.entries[entry.id] = entry
            self._put(entry.id, self._names_of(entry))

    def remove(self, entry_id: str) -> None:
        """Remove an endpoint. Removing a missing one succeeds."""
        self.refused.pop(entry_id, None)
        if self.entries.pop(entry_id, None) is not None:
            self._put(entry_id, {})

    def find(self, name: bytes) -> Node | None:
        """Return the node of a lower-case name; None if there is none.

        A node is made when it is asked for. Most names are never asked for, and a node takes half a kilobyte.
        Where records are rotated, it also has the turn: forgotten nodes begin with the first record again.
        """
        node = self._nodes.get(name)
        if node is None and (found := self.names.get(name)) is not None:
            if len(self._nodes) >= MAX_NODES:
                self._nodes.clear()
            node = self._nodes[name] = self._node(name, used(several(found)))
        return node

    def _put(self, source: str, new: Mapping[bytes, Share]) -> None:
        before = self._names_by_source.pop(source, ())
        if new:
            self._names_by_source[source] = tuple(new)
        for name in before:
            if name not in new:
                self._set(name, tuple(share for share in self._shares(name) if share.source != source))
        for name, share in new.items():
            self._contribute(name, share)

    def _contribute(self, name: bytes, new: Share) -> None:
        """Add a share; one of the same endpoint is replaced, and stays where it is in the order."""
        before = self._shares(name)
        if any(share.source == new.source for share in before):
            self._set(name, tuple(new if share.source == new.source else share for share in before))
        else:
            self._set(name, (*before, new))

    def _shares(self, name: bytes) -> tuple[Share, ...]:
        """Return all shares of a name, also if it is not used."""
        return several(self.names.get(name) or self._unused.get(name, ()))

    def _set(self, name: bytes, shares: tuple[Share, ...]) -> None:
        """Set the shares of a name, and have it looked up anew."""
        self._unused.pop(name, None)
        self._nodes.pop(name, None)
        removed = False
        if used(shares):
            self.names[name] = shares if len(shares) > 1 else shares[0]
        else:
            removed = self.names.pop(name, None) is not None
            if shares:
                self._unused[name] = shares
        for view in self.views:
            view.forget(name, removed=removed)

    def _node(self, name: bytes, shares: Iterable[Share]) -> Node:
        by_kind: dict[bytes, dict[bytes, None]] = {}
        for share in shares:
            for record in share.at(name):
                packed = wire.pack(wire.TO_QUESTION, record, self.network.ttl_s)
                by_kind.setdefault(wire.key(record.type), {})[packed] = None
        # PTR records are not rotated: the first name of an address is its main one.
        return {kind: RRset(tuple(records), turning=kind != _PTR) for kind, records in by_kind.items()}

    def _own(self, apex: tuple[Record, ...]) -> dict[bytes, Share]:
        """Return the network's own names: the domain, the host, and its zone."""
        host = b"\x04host" + self._domain
        shares = {self._domain: Share("", apex), host: Share("", tuple(map(wire.address, self.network.hosts)))}
        shares |= {wire.reverse(address): Share("", (Record(wire.PTR, host),)) for address in self.network.hosts}
        nothing = Share("")
        for suffix in self._suffixes[1:]:
            add_parents(shares, suffix, _limit(suffix, self._domain), nothing)
            shares.setdefault(suffix, nothing)
        return shares

    def _names_of(self, entry: Entry) -> dict[bytes, Share]:
        shares: dict[bytes, Share] = {}
        refused: list[str] = []
        records = tuple(map(wire.address, entry.addresses))
        strong = Share(entry.id, records, healthy=entry.healthy)
        nothing, weak = Share(entry.id), replace(strong, weak=True)
        offered = {share.weak: list(offers(entry.services, share)) for share in (strong, weak)}
        main = b""
        for text in dict.fromkeys((*entry.names, entry.short)) if entry.short else entry.names:
            addresses = strong if text in entry.names else weak
            name = b""
            for suffix in self._suffixes:
                try:
                    longer = joined(wire.to_wire(text), suffix)
                except ValueError:
                    refused += [text] if not suffix.rstrip(b"\0") else []
                    continue
                if not self._allowed(longer):
                    refused.append(text)
                    continue
                name = longer
                shares[name] = addresses
                add_parents(shares, name, suffix, nothing)
                for prefix, offer in offered[addresses.weak]:
                    add_service(shares, prefix, name, offer, nothing)
            main = main or name
        self._add_reverse(shares, entry, main)
        self.refused.pop(entry.id, None)
        if refused:
            self.refused[entry.id] = tuple(dict.fromkeys(refused))
        return shares

    def _allowed(self, name: bytes) -> bool:
        """Return whether an endpoint can have a name; in the domain, only names in its network's zone are allowed."""
        full = self._suffixes[2] if len(self._suffixes) > 2 else b""
        if wire.below(name, self._domain):
            return bool(full) and wire.below(name, full) and name != full
        return not special_use.is_reserved(name)

    @staticmethod
    def _add_reverse(shares: dict[bytes, Share], entry: Entry, main: bytes) -> None:
        """Add PTR records for the addresses: to one fully qualified name, and to those in `entry.reverse`."""
        targets = [main] if main else []
        for text in entry.reverse:
            try:
                targets.append(wire.to_wire(text))
            except ValueError:
                continue
        records = tuple(Record(wire.PTR, target) for target in targets if target == main or target in shares)
        for address in entry.addresses if records else ():
            shares[wire.reverse(address)] = Share(entry.id, records)


class Zones:
    """All networks by id, and the views of them. `domain`: the suffix of all fully qualified names.

    `host`: the host's name. `pools`: the subnets of all networks, whose reverse zones are local.
    """

    def __init__(self, domain: str = "netplug.internal") -> None:
        self.domain = wire.to_wire(domain)
        if self.domain == wire.ROOT:
            raise ValueError("the domain cannot be the root")
        self.host = b"\x04host" + self.domain
        self._start = wire.soa(self.host, b"\x0ahostmaster" + self.domain, NEGATIVE_S)
        self._apex = (self._start, Record(wire.NS, self.host))
        self._negative: dict[bytes, bytes] = {}
        self.networks: dict[str, Index] = {}
        self.pools: frozenset[IPNetwork] = frozenset()
        self._views: WeakValueDictionary[tuple[frozenset[str], str], View] = WeakValueDictionary()

    def negative(self, owner: bytes) -> bytes:
        """Return the authority section of a negative answer in zone `owner` (RFC 2308 §3)."""
        found = self._negative.get(owner)
        if found is None:
            if len(self._negative) >= MAX_OWNERS:
                self._negative.clear()
            found = self._negative[owner] = wire.pack(owner, self._start, NEGATIVE_S)
        return found

    def set_network(self, network: Network) -> None:
        """Add a network, or change its attributes; its endpoints stay."""
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
        """Remove a network with its names. Removing a missing one succeeds."""
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
        """Return the view of clients in these networks that ask by way of `via`; None if no network is known.

        Equal calls share a view. It is valid until one of the networks is changed or removed.
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


def _limit(suffix: bytes, domain: bytes) -> bytes:
    """Return the highest local parent of a network's zone."""
    return domain if suffix.endswith(domain) else suffix


def _suffixes(network: str, domain: bytes) -> list[bytes]:
    """Return the suffixes of an endpoint's name: none, the network, and the network with the domain."""
    try:
        zone = wire.to_wire(network)
        return [wire.ROOT, zone, joined(zone, domain)] if zone != wire.ROOT else [wire.ROOT]
    except ValueError:  # the network's name is too long for a domain name: endpoints have short names only
        return [wire.ROOT]


def _order(index: Index) -> tuple[tuple[int, ...], str, str]:
    return index.network.rank, index.network.name, index.network.id
