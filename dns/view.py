"""Views: what the clients in certain networks can resolve, and in which order records are returned.

An index changes one name at a time, while it is in use. The only cached local answers are those in `View.ready`; a
change of a name removes its answers there before it returns.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, repeat
from time import monotonic
from typing import TYPE_CHECKING, Protocol, TypeAlias

from . import special_use, wire
from .forward_rules import NO_FORWARDING

if TYPE_CHECKING:
    from .zone import Index, Zones

MAX_ROTATIONS = 8
MAX_READY = 16_384
MAX_READY_PER_NAME = 32
"""Ready queries per name: they differ by type, AD, EDNS, DO, and UDP payload size."""
READY_FLAGS = (b"\x01\x00" + b"\0\1\0\0\0\0", b"\x01\x20" + b"\0\1\0\0\0\0")
"""The header of a ready query, from the flags (RD, with or without AD) to NSCOUNT."""
READY_HEADS = frozenset(flags + b"\0\0" for flags in READY_FLAGS)
"""The same with ARCOUNT 0: queries without EDNS."""
COOKIE = b"\0\x0c\0\x0a\0\x08"
"""RDLENGTH, OPTION-CODE and OPTION-LENGTH of an OPT record whose only option is a client cookie."""
REMOVED_S = 60.0
"""How long a removed name is not forwarded: its container may restart, and clients may still ask for it."""
MAX_REMOVED = 4096


class RRset:
    """The records of one name and type, in wire format, with a compression pointer to the question as owner name.

    `rotations`: the records in each rotated order, concatenated (round robin); with `turning` False in one order only.
    `turns`: repeats `rotations` for ever.
    """

    __slots__ = ("_next", "records", "rotations", "turns")

    def __init__(self, records: Sequence[bytes], *, turning: bool = True) -> None:
        self.records = tuple(records)
        self.rotations: Sequence[bytes]
        self.turns: Iterator[bytes]
        if len(self.records) == 1:  # as nearly always: a third of the memory
            self.rotations, self.turns = self.records, repeat(self.records[0])
        else:
            self.rotations = rotations(self.records) if turning else [b"".join(self.records)]
            self.turns = cycle(self.rotations)
        self._next = 0

    def fitting(self, room: int) -> tuple[int, bytes]:
        """Return the number of records that fit, and the records; the next call starts after them (RFC 2181 §9)."""
        at, number, found = self._next, 0, b""
        for record in (*self.records[at:], *self.records[:at]):
            if len(found) + len(record) > room:
                break
            found += record
            number += 1
        self._next = (at + number) % len(self.records)
        return number, found

    def lasting(self, ttl_s: int) -> tuple[bytes, ...]:
        """Return the records with another TTL."""
        at = len(wire.TO_QUESTION) + 4
        return tuple(record[:at] + ttl_s.to_bytes(4) + record[at + 4 :] for record in self.records)


def rotations(records: Sequence[bytes]) -> list[bytes]:
    """Return the concatenated records, rotated to start with each of them; if there are many, with some of them.

    >>> rotations((b"a", b"b", b"c"))
    [b'abc', b'bca', b'cab']
    """
    step = -(-len(records) // MAX_ROTATIONS) or 1
    return [b"".join((*records[turn:], *records[:turn])) for turn in range(0, len(records), step)]


Node: TypeAlias = dict[bytes, RRset]
"""The RRsets of a name, by type and class as in a question. Empty for an empty non-terminal (RFC 8020)."""


class CachedAnswer(Protocol):
    """A cached answer of an upstream."""

    def at(self, now: float) -> tuple[int, bytes, bytes] | None:
        """Return RCODE, ANCOUNT with NSCOUNT, and the records with their remaining TTLs; None if expired.

        `now`: monotonic.
        """


class View:
    """What the clients in certain networks can resolve.

    Attributes:
        first, rest: the names of the networks, in order; the first network with a name answers for it.
        network_zones: the zones of the networks, without the domain.
        local_suffixes: suffixes of all names that may have a local answer.
        removed: removed names, with the time of removal.
        ready: precomputed answers without their id, by the query without its id; one, or several in rotation.
        ready_edns: the same for queries with EDNS, whose key ends before the EDNS options.
        authority: the authority section of a negative answer in the domain.
        known_parents: names in the domain below which clients asked for names that do not exist.
        upstream_cache: the cached answers of upstreams, by name, type, class, and DO (a last octet of 0x80).
        forwarded: zones with a forwarding rule, even if special-use.
        rules: the forwarding rules.
        shared: the upstream also knows names of these networks, and may know more (Docker's resolver).
    """

    __slots__ = (
        *("__weakref__", "_keys", "_merged", "authority", "domain", "first", "forwarded", "indexes", "known_parents"),
        *("local_suffixes", "network_zones", "ready", "ready_edns", "removed", "rest", "rules", "shared"),
        *("upstream_cache", "via", "zones"),
    )

    def __init__(self, zones: "Zones", indexes: "Sequence[Index]", via: str) -> None:
        self.indexes = tuple(indexes)
        self.via = via
        self.zones = zones
        self.domain = zones.domain
        self.known_parents: set[bytes] = set()
        self.authority = zones.negative(zones.domain)
        self.first: Mapping[bytes, object] = indexes[0].names if indexes else {}
        self.rest: tuple[Mapping[bytes, object], ...] = tuple(index.names for index in indexes[1:])
        self.network_zones = tuple(index.zone for index in indexes if index.zone)
        self.local_suffixes = (self.domain, *self.network_zones, *special_use.SUFFIXES)
        self.removed: dict[bytes, float] = {}
        self.ready: dict[bytes, bytes | cycle[bytes]] = {}
        self.ready_edns: dict[bytes, bytes | cycle[bytes]] = {}
        self._keys: dict[bytes, list[bytes]] = {}
        self._merged: dict[bytes, Node] = {}
        self.upstream_cache: Mapping[bytes, CachedAnswer] = {}
        self.forwarded: tuple[bytes, ...] = ()
        self.rules = NO_FORWARDING
        self.shared = False

    def find(self, name: bytes) -> Node | None:
        """Return the node of a lower-case name in the first network that has records for it; None if there is none.

        Docker's resolver does the same: with a shared network, a name of the own project comes first. The host's name
        has its addresses in all networks.
        """
        if not self.rest:
            return self.indexes[0].find(name) if self.indexes else None
        if name == self.zones.host:
            return self._of_host()
        found: Node | None = None
        for index in self.indexes:
            node = index.find(name)
            if node:
                return node
            found = node if found is None else found
        return found

    def _of_host(self) -> Node:
        """Return the host's addresses in all networks. All get the same TTL, as in one RRset (RFC 2181 §5.2)."""
        if not self._merged:
            ttl_s = min(index.network.ttl_s for index in self.indexes)
            found: dict[bytes, dict[bytes, None]] = {}
            for index in self.indexes:
                for kind, rrset in (index.find(self.zones.host) or {}).items():
                    found.setdefault(kind, {}).update(dict.fromkeys(rrset.lasting(ttl_s)))
            self._merged[self.zones.host] = {kind: RRset(tuple(records)) for kind, records in found.items()}
        return self._merged[self.zones.host]

    def zone_of(self, name: bytes) -> bytes:
        """Return the local zone of a lower-case name without a node; empty for an external name.

        Local are: names in the domain; names that end in a network's name, unless there is a forwarding rule for them;
        service names (RFC 2782) of a local name; and names that were removed a moment ago.
        """
        if wire.below(name, self.domain):
            return self.domain
        for index in self.indexes:
            zone = index.zone
            if zone and wire.below(name, zone):
                if any(wire.below(name, zone) for zone in self.rules.zones) or (self.shared and index.unnamed):
                    break
                return zone
        target = name
        while target[1:2] == b"_":
            target = wire.parent(target)
        if target != name and self.find(target):
            return target
        if name in self.removed:
            if monotonic() < self.removed[name] + REMOVED_S:
                return name
            del self.removed[name]
        return b""

    def forget(self, name: bytes, *, removed: bool = False) -> None:
        """Remove the precomputed answers for a name that has changed. `removed`: it was removed."""
        self._merged.pop(name, None)
        self.known_parents.discard(name)
        if not removed:
            self.removed.pop(name, None)
        elif not wire.below(name, self.domain) and not special_use.is_reserved(name):
            while len(self.removed) >= MAX_REMOVED:
                del self.removed[next(iter(self.removed))]
            self.removed[name] = monotonic()
        for key in self._keys.pop(name, ()):
            self.ready.pop(key, None)
            self.ready_edns.pop(key, None)

    def keep(self, name: bytes, question: bytes, tails: Sequence[bytes], *, edns: bool) -> None:
        """Store the precomputed answers to a query for a name. `question`: the key in `ready` or `ready_edns`."""
        keys = self._keys.setdefault(name, [])
        if len(keys) >= MAX_READY_PER_NAME:
            return
        if len(self.ready) + len(self.ready_edns) >= MAX_READY:
            self.ready.clear()
            self.ready_edns.clear()
            self._keys = {name: (keys := [])}
        ready = cycle(tails) if len(tails) > 1 else tails[0]
        (self.ready_edns if edns else self.ready)[question] = ready
        keys.append(question)

    def negative(self, name: bytes, zone: bytes) -> bytes:
        """Return the authority section of a negative answer for a name in a zone."""
        return self.zones.negative(wire.TO_QUESTION if zone == name else zone)
