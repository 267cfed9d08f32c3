"""What an asker sees of the networks that it is in, and how records are given out.

An index changes name by name, while it is being asked. There is no cache of answers to go stale, but for the plain
questions of `View.ready`, from which a changed name is taken out before the change returns.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from time import monotonic
from typing import TYPE_CHECKING, Protocol, TypeAlias

from . import special_use, wire
from .forward_rules import NOBODY

if TYPE_CHECKING:
    from .zone import Index, Zones

MOST_TURNS = 8
READY_MOST = 16_384
READY_OF_NAME = 32
"""Questions for one name that may be ready: by type, with and without AD, EDNS and DNSSEC, by the size that is said."""
READY_FLAGS = (b"\x01\x00" + b"\0\1\0\0\0\0", b"\x01\x20" + b"\0\1\0\0\0\0")
"""Flags and counts but the last of the questions that may stand in `View.ready`: RD, with or without AD."""
READY_HEADS = frozenset(flags + b"\0\0" for flags in READY_FLAGS)
"""The same of those without EDNS."""
COOKIE = b"\0\x0c\0\x0a\0\x08"
"""Length of an OPT's options where a client's cookie is the only one, and code and length of that."""
GONE_S = 60.0
"""For how long a name that was ours is not asked elsewhere: its container starts anew, or others still ask for it."""
MOST_GONE = 4096


class RRset:
    """Records of one name and type, in wire form with a pointer to the question for their owner.

    `rotations`: the records one after the other, each beginning with another; with `turning` False as they are.
    `turns`: these without end.
    """

    __slots__ = ("_next", "records", "rotations", "turns")

    def __init__(self, records: Sequence[bytes], *, turning: bool = True) -> None:
        self.records = tuple(records)
        self.rotations = rotations(self.records) if turning else [b"".join(self.records)]
        self.turns = cycle(self.rotations)
        self._next = 0

    def fitting(self, room: int) -> tuple[int, bytes]:
        """Return how many records fit, and these; the next time those behind them (RFC 2181 §9)."""
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
    """Return the records joined, beginning with each of them in turn; of many, with some of them.

    >>> rotations((b"a", b"b", b"c"))
    [b'abc', b'bca', b'cab']
    """
    step = -(-len(records) // MOST_TURNS) or 1
    return [b"".join((*records[turn:], *records[:turn])) for turn in range(0, len(records), step)]


Node: TypeAlias = dict[bytes, RRset]
"""RRsets of a name by type and class as in a question; empty for a name that has others below it only."""


class Outside(Protocol):
    """An upstream's answer that is remembered."""

    def at(self, now: float) -> tuple[int, bytes, bytes] | None:
        """Return RCODE, the counts of answers and authorities, and these records, their TTLs as of now (monotonic).

        None: it is no longer good.
        """


class View:
    """What somebody sees who is in certain networks.

    `first`, `others`: the nodes of the networks, in the order of which the first that has a name answers for it.
    `zones_here`: what names that end in their networks' names end in; `ours`: what all names end in that may be
    answered here. `gone`: names that were there, by when they went.
    `ready`: the answer to a question, or those that take turns, without the id, by what the question has behind its id;
    `ready_edns`: the same of those with EDNS, by what they have up to their options.
    `denial`: the authority section of "there is none" below the domain; `above`: names there that were asked for names
    below them. `outside`: answers of upstreams by name, type, class, and whether DNSSEC is wanted (a last octet of
    0x80). `served`: names below which a rule sends questions to an upstream, even if of special use. `rules`: by which
    upstreams are asked. `shared` True: who is asked there knows names of these networks as well, and of others.
    """

    __slots__ = (
        *("__weakref__", "_keys", "_merged", "above", "denial", "domain", "first", "gone", "indexes", "others", "ours"),
        *("outside", "ready", "ready_edns", "rules", "served", "shared", "via", "zones", "zones_here"),
    )

    def __init__(self, zones: "Zones", indexes: "Sequence[Index]", via: str) -> None:
        self.indexes = tuple(indexes)
        self.via = via
        self.zones = zones
        self.domain = zones.domain
        self.above: set[bytes] = set()
        self.denial = zones.negative(zones.domain)
        self.first = indexes[0].nodes
        self.others = tuple(index.nodes for index in indexes[1:])
        self.zones_here = tuple(index.zone for index in indexes if index.zone)
        self.ours = (self.domain, *self.zones_here, *special_use.SUFFIXES)
        self.gone: dict[bytes, float] = {}
        self.ready: dict[bytes, bytes | cycle[bytes]] = {}
        self.ready_edns: dict[bytes, bytes | cycle[bytes]] = {}
        self._keys: dict[bytes, list[bytes]] = {}
        self._merged: dict[bytes, Node] = {}
        self.outside: Mapping[bytes, Outside] = {}
        self.served: tuple[bytes, ...] = ()
        self.rules = NOBODY
        self.shared = False

    def find(self, name: bytes) -> Node | None:
        """Return the node of a lower-cased name in the first network that has records of it; None when there is none.

        So does Docker's resolver: a name of the own project is not that of another one in a network of both. What the
        host has is in all of them.
        """
        if not self.others:
            return self.first.get(name)
        if name == self.zones.host:
            return self._of_host()
        found: Node | None = None
        for nodes in (self.first, *self.others):
            node = nodes.get(name)
            if node:
                return node
            found = node if found is None else found
        return found

    def _of_host(self) -> Node:
        """Return the host's addresses in all networks; an RRset has one TTL (RFC 2181 §5.2)."""
        if not self._merged:
            ttl_s = min(index.network.ttl_s for index in self.indexes)
            found: dict[bytes, dict[bytes, None]] = {}
            for nodes in (self.first, *self.others):
                for kind, rrset in nodes[self.zones.host].items():
                    found.setdefault(kind, {}).update(dict.fromkeys(rrset.lasting(ttl_s)))
            self._merged[self.zones.host] = {kind: RRset(tuple(records)) for kind, records in found.items()}
        return self._merged[self.zones.host]

    def zone_of(self, name: bytes) -> bytes:
        """Return the zone of ours that a lower-cased name is in which has no node; empty for names of others.

        A name that ends in that of a network is one of its containers', unless a rule says whom to ask for such. So is
        that of a service of a name that we have, and a name that has just gone.
        """
        if wire.below(name, self.domain):
            return self.domain
        for index in self.indexes:
            zone = index.zone
            if zone and wire.below(name, zone):
                if any(wire.below(name, served) for served in self.rules.zones) or (self.shared and index.unnamed):
                    break
                return zone
        target = name
        while target[1:2] == b"_":
            target = wire.parent(target)
        if target != name and self.find(target):
            return target
        if name in self.gone:
            if monotonic() < self.gone[name] + GONE_S:
                return name
            del self.gone[name]
        return b""

    def forget(self, name: bytes, *, gone: bool = False) -> None:
        """Drop the ready answers to questions for a name, which is `gone`, or there again."""
        self._merged.pop(name, None)
        self.above.discard(name)
        if not gone:
            self.gone.pop(name, None)
        elif not wire.below(name, self.domain) and not special_use.is_reserved(name):
            while len(self.gone) >= MOST_GONE:
                del self.gone[next(iter(self.gone))]
            self.gone[name] = monotonic()
        for key in self._keys.pop(name, ()):
            self.ready.pop(key, None)
            self.ready_edns.pop(key, None)

    def keep(self, name: bytes, question: bytes, tails: Sequence[bytes], *, edns: bool) -> None:
        """Keep the ready answers to a question for a name; `question`: as in `ready`, or in `ready_edns`."""
        keys = self._keys.setdefault(name, [])
        if len(keys) >= READY_OF_NAME:
            return
        if len(self.ready) + len(self.ready_edns) >= READY_MOST:
            self.ready.clear()
            self.ready_edns.clear()
            self._keys = {name: (keys := [])}
        ready = cycle(tails) if len(tails) > 1 else tails[0]
        (self.ready_edns if edns else self.ready)[question] = ready
        keys.append(question)

    def negative(self, name: bytes, zone: bytes) -> bytes:
        """Return the authority section of "there is none", for a zone that a name is in."""
        return self.zones.negative(wire.TO_QUESTION if zone == name else zone)
