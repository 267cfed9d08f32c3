"""What the store says, kept here: one snapshot, then its changes; a new snapshot when those were forgotten.

Readers get no events. They see the records as they are now, and are told which networks to look at anew, so that an
event that is merged with the next one, or lost, makes no difference.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping

import structlog

from netplug.cluster.records import (
    ALIVE,
    ENDPOINTS,
    HOSTS,
    IDENTITY,
    NETWORKS,
    RECOVERED,
    ROOT,
    TWINS,
    Definition,
    EndpointAdvert,
    HostRecord,
    describe,
    parse,
    parts_of,
    twin_of,
    yielding,
)
from netplug.drivers.api import Peer
from netplug.store.api import Compacted, Event, Record, StoreError, Unreachable
from netplug.store.restore_guard import RestoreGuard

log = structlog.get_logger(__name__)

_RETRY_S = (0.1, 0.5, 1.0, 2.0)


class View:
    """The cluster's records.

    `touched`: networks whose endpoints changed, `renamed`: which ones, by host and id; `redefined`: whether networks
    did, or who is in the cluster. `published`: the first and the last revision at which a host told of an endpoint, by
    network and host, for whoever reads it to take away.

    Attributes:
        changed: set when one of the two became so.
        synced: set from the first snapshot on.
        poisoned: why records cannot be read, by key.
        identity: the cluster's id; empty when the store has lost it, and with it all else.
        recovered: of which cluster's id each host has said that it told all that it has.
    """

    def __init__(self, store: RestoreGuard) -> None:
        self.touched: set[str] = set()
        self.renamed: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
        self.published: defaultdict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
        self.poisoned: dict[str, str] = {}
        self.redefined = False
        self.identity = ""
        self.recovered: dict[str, str] = {}
        self.changed = asyncio.Event()
        self.synced = asyncio.Event()
        self._store = store
        self._hosts: dict[str, HostRecord] = {}
        self._networks: dict[str, Definition] = {}
        self._endpoints: defaultdict[str, dict[tuple[str, str], EndpointAdvert]] = defaultdict(dict)
        self._alive: set[str] = set()
        self._twins: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self._yielding: dict[str, str] = {}
        self._revisions: dict[str, int] = {}
        self._generation = 0
        """Of the store's data, when it was last read as a whole."""
        self._peers: defaultdict[str, dict[tuple[str, str], Peer]] = defaultdict(dict)

    # Reading

    def hosts(self) -> Mapping[str, HostRecord]:
        """Return all hosts, by id."""
        return self._hosts

    def networks(self) -> Mapping[str, Definition]:
        """Return all networks, by id."""
        return self._networks

    def open_revision(self, network: str) -> int:
        """Return the revision of a network's definition; 0: there is none, or it is being deleted."""
        definition = self._networks.get(network)
        return self._revisions.get(NETWORKS + network, 0) if definition and not definition.deleting else 0

    def alive(self, host: str) -> bool:
        """Whether a host's daemon runs and reaches the store, as of some seconds ago."""
        return host in self._alive

    def yielding(self) -> Mapping[str, str]:
        """Return the hosts whose VTEP another one has with more right, with that one."""
        return self._yielding

    def twins(self, host: str) -> Mapping[str, str]:
        """Return who has the identity of a host and is not let in, in words, by where they are."""
        return self._twins.get(host, {})

    def all_alive(self) -> set[str]:
        """Return the hosts that live."""
        return set(self._alive)

    def all_endpoints(self) -> Iterator[tuple[str, str, str, EndpointAdvert]]:
        """Yield network, host, id and content of all endpoints."""
        for network, found in self._endpoints.items():
            for (host, ident), told in found.items():
                yield network, host, ident, told

    def elsewhere(self, network: str, me: str) -> list[tuple[str, str, EndpointAdvert]]:
        """Return the endpoints of a network on hosts other than `me`: name of the host, id, and content."""
        found = self._endpoints.get(network, {})
        return [(name_of(self, host), ident, told) for (host, ident), told in found.items() if host != me]

    def endpoints(self, network: str, host: str) -> dict[str, EndpointAdvert]:
        """Return the endpoints of a network on one host, by id."""
        return {ident: told for (where, ident), told in self._endpoints.get(network, {}).items() if where == host}

    def endpoint(self, network: str, host: str, ident: str) -> EndpointAdvert | None:
        """Return an endpoint, as its host tells of it; None when it does not, or nobody knows the host."""
        return self._endpoints.get(network, {}).get((host, ident)) if host in self._hosts else None

    def peers(self, network: str, me: str) -> dict[tuple[str, str], Peer]:
        """Return a network's endpoints on hosts other than `me`, by host and id, in the order of their publication.

        Those of a host that nobody knows are left out: VTEPs come from the hosts' own records alone. So are those of a
        host that has its VTEP in common with this one, or with another that has more right to it.
        """
        # In the order of their revisions, since each that is written goes to the end.
        found = {}
        peers, mine = self._peers[network], self._hosts.get(me)
        for key, told in self._endpoints.get(network, {}).items():
            host, ident = key
            if host != me and host not in self._yielding and (known := self._hosts.get(host)):
                if mine and mine.vtep == known.vtep:
                    continue
                peer = peers.get(key)  # the same object, so that what is as before is seen at a glance
                if peer is None or peer.vtep != known.vtep:
                    peer = peers[key] = Peer(ident, told.mac, told.addresses, known.vtep)
                found[key] = peer
        return found

    def all_networks(self) -> set[str]:
        """Return the ids of networks that are defined or have endpoints."""
        return {*self._networks, *self._endpoints}

    def touch_all(self) -> None:
        """Have everything looked at anew."""
        self.redefined = True
        for network in self.all_networks():
            self.touch(network)
        self.changed.set()

    def put_back(self, network: str, told: Mapping[str, tuple[int, int]]) -> None:
        """Have what was `published`, and could not be brought about, looked at with what has come since."""
        for host, (first, last) in told.items():
            self.published[network][host] = first, max(last, self.published[network].get(host, (0, 0))[1])

    def touch(self, network: str) -> None:
        """Have all endpoints of a network looked at anew."""
        self.touched.add(network)
        self.renamed[network] |= self._endpoints.get(network, {}).keys()
        self.changed.set()

    # Following

    async def follow(self) -> None:
        """Keep up with the store until cancelled."""
        failures = 0
        while True:
            try:
                seen, generation = self._store.seen, self._store.generation
                records, revision = await self._store.range(ROOT)
                failures = 0
                if generation != self._store.generation:  # taken anew meanwhile: these may be the old data
                    continue
                if self._store.is_older(records, seen):  # all stays as it is, until who mends that has done so
                    await asyncio.sleep(_RETRY_S[0])
                    continue
                self._replace(records, generation)
                log.info("cluster.synced", hosts=len(self._hosts), networks=len(self._networks), revision=revision)
                async for event in self._store.watch(ROOT, revision):
                    self._take(event)
                break  # the store is closed
            except Compacted as exc:
                log.info("cluster.read_anew", reason=str(exc))
            except StoreError as exc:
                level = log.debug if failures else log.warning
                level("cluster.unreachable" if isinstance(exc, Unreachable) else "cluster.refused", reason=str(exc))
                await asyncio.sleep(_RETRY_S[min(failures, len(_RETRY_S) - 1)])
                failures += 1

    def _replace(self, records: list[Record], generation: int) -> None:
        """Take a snapshot; what is as before is left alone.

        A store with other data may have written others at the same revisions.
        """
        anew, self._generation = generation != self._generation, generation
        there = {record.key for record in records}
        for key in self._revisions.keys() - there:
            self._take(Event(key, None, 0))
        for record in sorted(records, key=lambda record: record.revision):
            if anew or self._revisions.get(record.key) != record.revision:
                self._take(Event(record.key, record, record.revision))
        self.synced.set()
        self.touch_all()

    def _take(self, event: Event) -> None:
        key, record = event.key, event.record
        if record is None:
            self._revisions.pop(key, None)
        else:
            self._revisions[key] = record.revision
            self._store.see(key, record.revision)
        try:
            self._enter(key, record)
            if self.poisoned.pop(key, None):
                self.changed.set()
        except StoreError as exc:
            log.warning("record.poisoned", key=key, error=str(exc))
            self.poisoned[key] = str(exc)
            self.changed.set()
            self._enter(key, None)

    def _enter(self, key: str, record: Record | None) -> None:
        if parts := parts_of(key):
            self._enter_endpoint(*parts, record)
        elif key.startswith(NETWORKS):
            self._set(self._networks, key.removeprefix(NETWORKS), record and parse(Definition, record))
            self.redefined = True
            self.changed.set()
        elif key.startswith(HOSTS):
            ident, before = key.removeprefix(HOSTS), self._hosts.get(key.removeprefix(HOSTS))
            self._set(self._hosts, ident, record and parse(HostRecord, record))
            if (before and before.vtep) != (self._hosts[ident].vtep if ident in self._hosts else None):
                self._touch_of(ident)
            self._rank()
            self.redefined |= record is None
            self.changed.set()
        elif key == IDENTITY or key.startswith(RECOVERED):
            self._enter_identity(key, str(record.value.get("id", "")) if record else "")
        elif key.startswith(ALIVE):
            (self._alive.add if record else self._alive.discard)(key.removeprefix(ALIVE))
            self._rank()
        elif key.startswith(TWINS):
            host, _, place = key.removeprefix(TWINS).partition("/")
            self._twins[host].pop(place, None)
            if record is not None:
                self._twins[host][place] = twin_of(record)
            self.changed.set()
        elif key.startswith(ENDPOINTS) and record:
            raise StoreError("ids in the key are ill-formed")

    def _enter_identity(self, key: str, said: str) -> None:
        if key != IDENTITY:
            self.recovered[key.removeprefix(RECOVERED)] = said
            return
        self.identity = said
        self.redefined = True
        self.changed.set()

    def _enter_endpoint(self, network: str, host: str, endpoint: str, record: Record | None) -> None:
        there = self._endpoints[network]
        there.pop((host, endpoint), None)
        self._peers[network].pop((host, endpoint), None)
        if record is not None:
            there[host, endpoint] = parse(EndpointAdvert, record)
            first, _ = self.published[network].get(host, (record.revision, 0))
            self.published[network][host] = first, record.revision
        if not there:
            del self._endpoints[network], self._peers[network]
        self.touched.add(network)
        self.renamed[network].add((host, endpoint))
        self.changed.set()

    def _rank(self) -> None:
        """Find out anew who yields to whom."""
        before, self._yielding = self._yielding, yielding(self._hosts, self._alive)
        for pair in before.items() ^ self._yielding.items():
            for host in pair:
                self._touch_of(host)
            self.changed.set()

    def _touch_of(self, host: str) -> None:
        """Have the networks looked at in which a host has endpoints."""
        for network, found in self._endpoints.items():
            if any(where == host for where, _ in found):
                self.touch(network)

    @staticmethod
    def _set(where: "dict[str, Definition] | dict[str, HostRecord]", ident: str, value: object) -> None:
        if value is None:
            where.pop(ident, None)
        else:
            where[ident] = value  # type: ignore[assignment]  # of the kind that is kept there


def name_of(view: View, host: str) -> str:
    """Return what a host is called; its id when nobody knows that."""
    known = view.hosts().get(host)
    return describe(host, known.name if known else "") if host else "all hosts"
