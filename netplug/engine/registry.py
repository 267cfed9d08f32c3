"""All records of this host, in memory and in the store, and the locks that order their changes.

Only this process writes its own host's records, so memory is as true as the store and reading never waits.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import replace
from typing import TypeAlias

from netplug.drivers.api import Network
from netplug.drivers.codec import Json, decode, encode
from netplug.drivers.naming import short
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import Hairpin, Veth
from netplug.engine.quarantine import Quarantine, Unusable, unusable
from netplug.engine.records import CREATED, ENDPOINTS, NETWORKS, EndpointRecord, FrontEnd, NetworkRecord
from netplug.engine.sandboxes import name_of
from netplug.errors import NetplugError
from netplug.ipam.lease import Owner, OwnerKind
from netplug.store.api import Delete, Put, Store
from netplug.store.api import Record as Stored
from netplug.tasks.locks import Locks

Record: TypeAlias = NetworkRecord | EndpointRecord
Watcher = Callable[[Record | None, Record | None], None]
"""Gets the former and the new record at each change; None: there is none. It must not fail, nor wait."""


class Registry:
    """Networks and endpoints, by id.

    Memory and store never differ after a change. Reading needs no lock and never waits. One lock for each network.

    `starting`: networks that are being created, and changed ones as they are about to be. `absent`: by name, why a
    network of the cluster is not on this host. `watchers`: called at each change; a deleted network is one change, with
    its endpoints. `loading`: whether what they are told of is being read from the store. `unanswered`: ids of records
    that were there at the start, until their caller was heard of; see `LostAnswers`.
    """

    def __init__(self, store: Store, quarantine: Quarantine, drivers: Drivers) -> None:
        self.starting: dict[str, Network] = {}
        self.absent: dict[str, str] = {}
        self.watchers: list[Watcher] = []
        self.loading = False
        self.unanswered: set[str] = set()
        self._store = store
        self.quarantine = quarantine
        self._drivers = drivers
        self._networks: dict[str, NetworkRecord] = {}
        self._endpoints: defaultdict[str, dict[str, EndpointRecord]] = defaultdict(dict)
        self._sandboxes: dict[str, tuple[EndpointRecord, ...]] = {}
        self._created: Mapping[str, Mapping[str, Json]] = {}
        self._locks = Locks()

    async def load(self) -> None:
        """Read all records. Those that cannot be used are quarantined."""
        self.loading = True
        try:
            await self._load()
        finally:
            self.loading = False

    async def _load(self) -> None:
        self._created = {it.key.removeprefix(CREATED): it.value for it in (await self._store.range(CREATED))[0]}
        for prefix, read in ((NETWORKS, self._read_network), (ENDPOINTS, self._read_endpoint)):
            found: dict[str, Unusable] = {}
            for stored in (await self._store.range(prefix))[0]:
                try:
                    self.remember(read(stored))
                except ValueError as exc:
                    found |= unusable(stored.key, stored.value, exc)
            self.quarantine.replace(prefix, found)
        self.unanswered = {*self._networks, *(ident for found in self._endpoints.values() for ident in found)}
        # An earlier version may have deleted the networks.
        if gone := self._created.keys() - self._networks.keys() - self.quarantine.networks():
            await self._store.txn((), [Delete(CREATED + ident) for ident in gone])

    def _read_network(self, stored: Stored) -> NetworkRecord:
        record = decode(NetworkRecord, stored.value)
        _refuse_key(stored.key, record.key)
        _refuse_pools(record.pools, record.network.subnets, "subnets")
        if why := self._drivers.missing(record.network.options.mode):
            raise ValueError(why)
        created = self._created.get(record.network.id, {}).get("at")
        return replace(record, created=created if isinstance(created, float) else 0.0)

    def _read_endpoint(self, stored: Stored) -> EndpointRecord:
        record = decode(EndpointRecord, stored.value)
        _refuse_key(stored.key, record.key)
        if record.pools:  # addresses that others give out have none
            _refuse_pools(record.pools, record.endpoint.addresses, "addresses")
        if record.endpoint.network in self.quarantine.networks():
            raise ValueError("its network cannot be used")
        return self._completed(record, stored)

    def _completed(self, record: EndpointRecord, stored: Stored) -> EndpointRecord:
        """Return a record with the fields that older versions did not write.

        Those versions read link, routes and resolvers from the plan whenever they needed them. The plan still has them,
        so they are read here, once, and nowhere else. The driver is needed for it; what needs none is in
        `netplug.store.schema`.
        """
        if record.front_end.shares:
            record = replace(record, hairpin=_has_hairpin(record), pinned=record.pinned or _is_pinned(record))
        network = self._networks.get(record.endpoint.network)
        if "attachment" in stored.value or network is None:
            return record
        record = record.summarized()
        attachment = self._drivers.of(network.network).join(network.network, record.endpoint)
        if record.front_end.shares:  # its runtime chose the routes
            attachment = replace(attachment, gateways=(), routes=record.routes, isolated=False)
        return replace(record, attachment=attachment)

    def lock(self, network_id: str) -> AbstractAsyncContextManager[None]:
        """Hold the lock of a network. The network need not exist."""
        return self._locks.hold(network_id)

    # Reading

    def networks(self) -> list[NetworkRecord]:
        """Return all networks, by name."""
        return sorted(self._networks.values(), key=lambda record: (record.network.name, record.network.id))

    def all_networks(self) -> list[Network]:
        """Return all networks, also those that are being created."""
        return [*(record.network for record in self._networks.values()), *self.starting.values()]

    @contextmanager
    def becoming(self, net: Network) -> Iterator[None]:
        """Count a network as it is about to be within the block: see `starting`."""
        self.starting[net.id] = net
        try:
            yield
        finally:
            del self.starting[net.id]

    def endpoints(self, network_id: str | None = None) -> list[EndpointRecord]:
        """Return the endpoints of one network or of all."""
        chosen: Sequence[str] = list(self._endpoints) if network_id is None else [network_id]
        return [record for ident in chosen for record in self._endpoints.get(ident, {}).values()]

    def in_sandbox(self, path: str, netns_id: str = "") -> list[EndpointRecord]:
        """Return the endpoints in a sandbox, by interface name. The time does not depend on other sandboxes.

        Endpoints of a former namespace at this path are left out.
        """
        found = self._sandboxes.get(path, ())
        here = found if not netns_id else [record for record in found if record.sandbox_id in {"", netns_id}]
        return sorted(here, key=lambda record: record.ifname)

    def called(self, owner: Owner) -> str:
        """Return the words for who has an address, by the name that is known by now."""
        if owner.kind is OwnerKind.ENDPOINT:
            for record in (found[owner.id] for found in self._endpoints.values() if owner.id in found):
                if record.container:
                    return f"container {record.name or short(record.container)!r}"
        if owner.kind is OwnerKind.PENDING:  # it starts or stops
            return f"docker for container {owner.name!r}" if owner.name else "docker"
        return str(owner)

    def network(self, ref: str) -> NetworkRecord:
        """Return the network with this id, name, or beginning of an id.

        Raises:
            NetplugError: "not_found"; "invalid": several match; "unavailable": it is quarantined, or not on this host.
        """
        if record := self._networks.get(ref):
            return record
        found = [record for record in self._networks.values() if record.network.name == ref]
        found = found or [record for ident, record in self._networks.items() if ref and ident.startswith(ref)]
        if not found:
            self.quarantine.refuse(ref)
        if not found and (why := self.absent.get(ref)):
            raise NetplugError("unavailable", f"network {ref!r} of the cluster cannot be built on this host: {why}")
        if not found:
            raise NetplugError("not_found", f"there is no network {ref[:80]!r}", hint="see netplug network ls")
        if len(found) > 1:
            ids = ", ".join(short(record.network.id) for record in found)
            raise NetplugError("invalid", f"{len(found)} networks are called {ref[:80]!r} ({ids})", hint="use the id")
        return found[0]

    def find_network(self, network_id: str) -> NetworkRecord | None:
        """Return the network with this very id, or None."""
        return self._networks.get(network_id)

    def find(self, network_id: str, endpoint_id: str) -> EndpointRecord | None:
        """Return an endpoint, or None."""
        return self._endpoints.get(network_id, {}).get(endpoint_id)

    def refuse_elsewhere(self, network_id: str, endpoint_id: str) -> None:
        """Refuse an endpoint whose id another network has: links are named by it.

        Raises:
            NetplugError: "exists".
        """
        for ident, found in self._endpoints.items():
            if ident != network_id and endpoint_id in found:
                name = self.network(ident).network.name
                raise NetplugError("exists", f"endpoint {endpoint_id[:12]!r} exists already, in network {name!r}")

    def endpoints_called(self, ref: str) -> list[EndpointRecord]:
        """Return the endpoints that a user means.

        `ref`: id, or beginning of an id, of an endpoint or container; name of a container, or of a namespace without a
        runtime; any of these behind ``NETWORK/``. A container has an endpoint in each of its networks.

        Raises:
            NetplugError: "not_found".
        """
        network, slash, name = ref.rpartition("/")
        chosen = self.endpoints(self.network(network).network.id if slash else None)
        exact = [it for it in chosen if name and name in {it.endpoint.id, it.container, it.name, _namespace(it)}]
        found = exact or [
            it for it in chosen if name and (it.endpoint.id.startswith(name) or it.container.startswith(name))
        ]
        if not found:
            where = f" in network {network[:80]!r}" if slash else ""
            raise NetplugError("not_found", f"there is no endpoint {name[:80]!r}{where}", hint="see netplug ps")
        return found

    def endpoint(self, network_id: str, endpoint_id: str) -> EndpointRecord:
        """Return an endpoint.

        Raises:
            NetplugError: "not_found": the network or the endpoint; the message says which.
        """
        record = self.network(network_id)
        if found := self.find(record.network.id, endpoint_id):
            return found
        raise NetplugError("not_found", f"there is no endpoint {endpoint_id[:12]!r} in network {record.network.name!r}")

    # Writing

    async def save(self, record: Record) -> None:
        """Write a record to the store, then to memory."""
        before, ops = self._known(record), [put(record)]
        if isinstance(record, NetworkRecord) and isinstance(before, NetworkRecord) and record.created != before.created:
            ops.append(Put(CREATED + record.network.id, {"at": record.created}))
        await self._store.txn((), ops)
        self.remember(record)

    def remember(self, record: Record) -> None:
        """Take a record into memory that the store already has."""
        before = self._known(record)
        if isinstance(record, NetworkRecord):
            self._networks[record.network.id] = record
        else:
            self._leave_sandbox(record)
            self._endpoints[record.endpoint.network][record.endpoint.id] = record
            if record.sandbox:
                self._sandboxes[record.sandbox] = (*self._sandboxes.get(record.sandbox, ()), record)
        self._tell(before, record)

    def forget(self, record: Record) -> None:
        """Drop a record from memory that the store no longer has; absent is success."""
        before = self._known(record)
        if isinstance(record, NetworkRecord):
            self._networks.pop(record.network.id, None)
            gone = self._endpoints.pop(record.network.id, {})
            self.unanswered -= {record.network.id, *gone}
        else:
            self._leave_sandbox(record)
            self._endpoints[record.endpoint.network].pop(record.endpoint.id, None)
            self.unanswered.discard(record.endpoint.id)
        self._tell(before, None)

    def _known(self, record: Record) -> Record | None:
        if isinstance(record, NetworkRecord):
            return self._networks.get(record.network.id)
        return self.find(record.endpoint.network, record.endpoint.id)

    def _tell(self, before: Record | None, after: Record | None) -> None:
        if before is not after:
            for watcher in self.watchers:
                watcher(before, after)

    def _leave_sandbox(self, record: EndpointRecord) -> None:
        """Remove an endpoint from the index of its former sandbox."""
        before = self._endpoints[record.endpoint.network].get(record.endpoint.id)
        if before is None or not before.sandbox:
            return
        if left := tuple(it for it in self._sandboxes.get(before.sandbox, ()) if it.key != record.key):
            self._sandboxes[before.sandbox] = left
        else:
            self._sandboxes.pop(before.sandbox, None)


def put(record: Record) -> Put:
    """Return the store operation that writes a record."""
    data = encode(record)
    assert isinstance(data, dict)  # noqa: S101 - a dataclass encodes to an object
    return Put(record.key, data)


def _namespace(record: EndpointRecord) -> str:
    """Return the name of a namespace that no runtime made, if it has one."""
    return name_of(record.sandbox) if record.front_end is FrontEnd.CLI else ""


def _refuse_key(key: str, own: str) -> None:
    """Refuse a record at another key than its own: a change of it would write a second one."""
    if key != own:
        raise ValueError(f"it is the record of {own[:200]!r}")


def _refuse_pools(pools: Sequence[str], them: Sequence[object], what: str) -> None:
    """Refuse a record that does not say which pool each of its subnets or addresses is of."""
    if len(pools) != len(them):
        raise ValueError(f"it has {len(them)} {what} of {len(pools)} pools")


def _has_hairpin(record: EndpointRecord) -> bool:
    return any(isinstance(step, Hairpin) for step in record.plan)


def _is_pinned(record: EndpointRecord) -> bool:
    return any(isinstance(step, Veth) and step.tunable and step.pinned for step in record.plan)
