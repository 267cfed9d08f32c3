"""A copy of the shared records in memory: a snapshot and the changes after it; a new snapshot after a compaction.

Readers get no events. They read the current records, and learn which networks to reconcile. So it does not matter if an
event is lost or merged with the next one.
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
    STOPPED,
    TWINS,
    Definition,
    EndpointAdvert,
    HostRecord,
    describe,
    describe_copy,
    duplicate_vteps,
    parse,
    parts_of,
)
from netplug.cluster.vtep_claims import VtepClaims
from netplug.drivers.api import Peer
from netplug.store.api import Compacted, Event, Record, StoreError, Unreachable
from netplug.store.restore_guard import RestoreGuard

log = structlog.get_logger(__name__)

_RETRY_S = (0.1, 0.5, 1.0, 2.0)


class View:
    """The cluster's records.

    Attributes:
        touched: networks whose endpoints are to be reconciled.
        renamed: of these, the endpoints whose records changed, by host and id.
        redefined: whether definitions or membership changed.
        published: by network and host, the first and last revision at which the host advertised endpoints that have not
            been applied here; `Peering` removes entries.
        changed: set with each change of `touched` or `redefined`.
        synced: set from the first snapshot on.
        unreadable: why records cannot be read, by key.
        identity: the cluster's id; empty after the store has lost its data.
        stopped: the hosts whose daemons were stopped less than `TTL_S` seconds ago.
        recovered: by host, the id of the cluster to whose store it has written all its records.
    """

    def __init__(self, store: RestoreGuard) -> None:
        self.touched: set[str] = set()
        self.renamed: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
        self.published: defaultdict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
        self.unreadable: dict[str, str] = {}
        self.redefined = False
        self.identity = ""
        self.recovered: dict[str, str] = {}
        self.changed = asyncio.Event()
        self.synced = asyncio.Event()
        self._store = store
        self._hosts: dict[str, HostRecord] = {}
        self._networks: dict[str, Definition] = {}
        self._endpoints: defaultdict[str, dict[tuple[str, str], EndpointAdvert]] = defaultdict(dict)
        self.stopped: set[str] = set()
        self._alive: set[str] = set()
        self._claims = VtepClaims()
        self._copies: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self._duplicate_vteps: dict[str, str] = {}
        self._revisions: dict[str, int] = {}
        self._generation = 0
        """Generation of the store at the last snapshot."""
        self._peers: defaultdict[str, dict[tuple[str, str], Peer]] = defaultdict(dict)

    # Reading

    def hosts(self) -> Mapping[str, HostRecord]:
        """Return all hosts, by id."""
        return self._hosts

    def networks(self) -> Mapping[str, Definition]:
        """Return all networks, by id."""
        return self._networks

    def open_revision(self, network: str) -> int:
        """Return the revision of a network's definition; 0 if it is not defined, or is being deleted."""
        definition = self._networks.get(network)
        return self._revisions.get(NETWORKS + network, 0) if definition and not definition.deleting else 0

    def alive(self, host: str) -> bool:
        """Whether a host's daemon runs and reached the store in the last `TTL_S` seconds."""
        return host in self._alive

    def duplicate_vteps(self) -> Mapping[str, str]:
        """Return the hosts whose VTEP belongs to another host, with that host."""
        return self._duplicate_vteps

    def copies(self, host: str) -> Mapping[str, str]:
        """Return the copies of a host, which are not admitted: name and VTEP by place."""
        return self._copies.get(host, {})

    def all_alive(self) -> set[str]:
        """Return the ids of the hosts that are alive."""
        return set(self._alive)

    def all_endpoints(self) -> Iterator[tuple[str, str, str, EndpointAdvert]]:
        """Yield network, host, id and content of all endpoints."""
        for network, found in self._endpoints.items():
            for (host, ident), advert in found.items():
                yield network, host, ident, advert

    def remote_endpoints(self, network: str, me: str) -> list[tuple[str, str, EndpointAdvert]]:
        """Return the endpoints of a network on hosts other than `me`: name of the host, id, and content."""
        found = self._endpoints.get(network, {})
        return [(name_of(self, host), ident, advert) for (host, ident), advert in found.items() if host != me]

    def endpoints(self, network: str, host: str) -> dict[str, EndpointAdvert]:
        """Return the endpoints of a network on one host, by id."""
        return {ident: advert for (where, ident), advert in self._endpoints.get(network, {}).items() if where == host}

    def endpoint(self, network: str, host: str, ident: str) -> EndpointAdvert | None:
        """Return the advert of an endpoint; None if there is none, or its host has no record."""
        return self._endpoints.get(network, {}).get((host, ident)) if host in self._hosts else None

    def peers(self, network: str, me: str) -> dict[tuple[str, str], Peer]:
        """Return a network's endpoints on hosts other than `me`, by host and id, in the order of their publication.

        Hosts without a record are skipped, since only a host's own record names its VTEP. So are hosts whose VTEP is
        that of this host, or belongs to another host.
        """
        # The dictionary is in the order of revisions: each endpoint that is written goes to the end.
        found = {}
        peers, mine = self._peers[network], self._hosts.get(me)
        for key, advert in self._endpoints.get(network, {}).items():
            host, ident = key
            if host != me and host not in self._duplicate_vteps and (known := self._hosts.get(host)):
                if mine and mine.vtep == known.vtep:
                    continue
                peer = peers.get(key)  # the same object, so that readers detect unchanged peers by identity
                if peer is None or peer.vtep != known.vtep:
                    peer = peers[key] = Peer(ident, advert.mac, advert.addresses, known.vtep)
                found[key] = peer
        return found

    def all_networks(self) -> set[str]:
        """Return the ids of networks that are defined or have endpoints."""
        return {*self._networks, *self._endpoints}

    def touch_all(self) -> None:
        """Have everything reconciled."""
        self.redefined = True
        for network in self.all_networks():
            self.touch(network)
        self.changed.set()

    def requeue(self, network: str, revisions: Mapping[str, tuple[int, int]]) -> None:
        """Return entries to `published` that could not be applied; newer ones are merged."""
        for host, (first, last) in revisions.items():
            self.published[network][host] = first, max(last, self.published[network].get(host, (0, 0))[1])

    def touch(self, network: str) -> None:
        """Have all endpoints of a network reconciled."""
        self.touched.add(network)
        self.renamed[network] |= self._endpoints.get(network, {}).keys()
        self.changed.set()

    # Following

    async def follow(self) -> None:
        """Follow the changes of the store until cancelled."""
        failures = 0
        while True:
            try:
                seen, generation = self._store.seen, self._store.generation
                records, revision = await self._store.range(ROOT)
                failures = 0
                if (
                    generation != self._store.generation
                ):  # the store's new data were accepted meanwhile: these may be the old ones
                    continue
                if self._store.is_older(records, seen):  # nothing changes before the recovery has ended
                    await asyncio.sleep(_RETRY_S[0])
                    continue
                self._replace(records, generation)
                log.info("cluster.synced", hosts=len(self._hosts), networks=len(self._networks), revision=revision)
                async for event in self._store.watch(ROOT, revision):
                    self._on_event(event)
                break  # the store is closed
            except Compacted as exc:
                log.info("cluster.read_anew", reason=str(exc))
            except StoreError as exc:
                level = log.debug if failures else log.warning
                level("cluster.unreachable" if isinstance(exc, Unreachable) else "cluster.refused", reason=str(exc))
                await asyncio.sleep(_RETRY_S[min(failures, len(_RETRY_S) - 1)])
                failures += 1

    def _replace(self, records: list[Record], generation: int) -> None:
        """Apply a snapshot. Records whose revision is unchanged are skipped.

        They are not skipped in a new generation, whose data may have other values at the same revisions.
        """
        other_data, self._generation = generation != self._generation, generation
        there = {record.key for record in records}
        for key in self._revisions.keys() - there:
            self._on_event(Event(key, None, 0))
        for record in sorted(records, key=lambda record: record.revision):
            if other_data or self._revisions.get(record.key) != record.revision:
                self._on_event(Event(record.key, record, record.revision))
        self.synced.set()
        self.touch_all()

    def _on_event(self, event: Event) -> None:
        key, record = event.key, event.record
        if record is None:
            self._revisions.pop(key, None)
        else:
            self._revisions[key] = record.revision
            self._store.see(key, record.revision)
        try:
            self._apply(key, record)
            if self.unreadable.pop(key, None):
                self.changed.set()
        except StoreError as exc:
            log.warning("record.poisoned", key=key, error=str(exc))
            self.unreadable[key] = str(exc)
            self.changed.set()
            self._apply(key, None)

    def _apply(self, key: str, record: Record | None) -> None:
        if parts := parts_of(key):
            self._apply_endpoint(*parts, record)
        elif key.startswith(NETWORKS):
            self._set(self._networks, key.removeprefix(NETWORKS), record and parse(Definition, record))
            self.redefined = True
            self.changed.set()
        elif key.startswith(HOSTS):
            ident, before = key.removeprefix(HOSTS), self._hosts.get(key.removeprefix(HOSTS))
            self._set(self._hosts, ident, record and self._host(ident, record))
            now = self._hosts.get(ident)
            if (before and before.vtep) != (now and now.vtep):
                self._touch_networks_of(ident)
            self._find_duplicate_vteps()
            # A host whose record goes, or changes, looks whether it was its own doing.
            self.redefined |= now is None or (before is not None and (before.vtep, before.name) != (now.vtep, now.name))
            self.changed.set()
        elif key == IDENTITY or key.startswith(RECOVERED):
            self._apply_identity(key, str(record.value.get("id", "")) if record else "")
        elif key.startswith((ALIVE, STOPPED)):
            self._apply_presence(key, there=record is not None)
        elif key.startswith(TWINS):
            host, _, place = key.removeprefix(TWINS).partition("/")
            self._copies[host].pop(place, None)
            if record is not None:
                self._copies[host][place] = describe_copy(record)
            self.changed.set()
        elif key.startswith(ENDPOINTS) and record:
            raise StoreError("ids in the key are ill-formed")

    def _host(self, ident: str, record: Record) -> HostRecord:
        # Those of the first snapshot may have been there for long.
        return self._claims.bounded(ident, parse(HostRecord, record), record.revision if self.synced.is_set() else 0)

    def _apply_presence(self, key: str, *, there: bool) -> None:
        prefix, known = (ALIVE, self._alive) if key.startswith(ALIVE) else (STOPPED, self.stopped)
        ident = key.removeprefix(prefix)
        if (ident in known) != there:
            self.changed.set()
        (known.add if there else known.discard)(ident)
        self._find_duplicate_vteps()

    def _apply_identity(self, key: str, said: str) -> None:
        if key != IDENTITY:
            self.recovered[key.removeprefix(RECOVERED)] = said
            return
        self.identity = said
        self.redefined = True
        self.changed.set()

    def _apply_endpoint(self, network: str, host: str, endpoint: str, record: Record | None) -> None:
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

    def _find_duplicate_vteps(self) -> None:
        """Determine again which hosts have the VTEP of another host."""
        before, self._duplicate_vteps = self._duplicate_vteps, duplicate_vteps(self._hosts, self._alive)
        for pair in before.items() ^ self._duplicate_vteps.items():
            for host in pair:
                self._touch_networks_of(host)
            self.changed.set()

    def _touch_networks_of(self, host: str) -> None:
        """Have the networks reconciled in which a host has endpoints."""
        for network, found in self._endpoints.items():
            if any(where == host for where, _ in found):
                self.touch(network)

    @staticmethod
    def _set(where: "dict[str, Definition] | dict[str, HostRecord]", ident: str, value: object) -> None:
        if value is None:
            where.pop(ident, None)
        else:
            where[ident] = value  # type: ignore[assignment]  # of the type of the dictionary


def name_of(view: View, host: str) -> str:
    """Return the name of a host; its short id if it has no record."""
    known = view.hosts().get(host)
    return describe(host, known.name if known else "") if host else "all hosts"
