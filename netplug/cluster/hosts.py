"""The hosts of a cluster as a user sees them, and the removal of a dead host.

Endpoints and addresses of a dead host stay, since it may come back. Only a user can remove it (`netplug host forget`),
and only while it is dead: each transaction compares that the host has not come back. A removed host that comes back
writes its records again, and finds which of its addresses owner hosts have by now.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from netplug.cluster.catalogue import Catalogue
from netplug.cluster.following import all_behind, in_words
from netplug.cluster.networks import Definitions
from netplug.cluster.records import (
    ALIVE,
    CONFIRMED,
    ENDPOINTS,
    FOLLOWED,
    HOSTS,
    MEMBERS,
    RECOVERED,
    STOPPED,
    TWINS,
    HostRecord,
    describe,
    describe_copy,
    duplicate_vtep,
    duplicate_vteps,
    parse,
)
from netplug.drivers.naming import short
from netplug.drivers.steps import IPAddress
from netplug.errors import NetplugError
from netplug.store.api import Compare, Delete, Record, Store, StoreError
from netplug.store.leases import LEASES, OPS_PER_TXN

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Host:
    """A host.

    Attributes:
        vtep: None if its record cannot be read.
        endpoints, addresses: the numbers of its endpoints and leases.
        notes: its faults.
        behind: the networks, by name, that it has not as they are defined, and why.
        version, schema_version: of its daemon; empty and 1 for releases that do not say it.
    """

    id: str
    name: str
    vtep: IPAddress | None
    alive: bool
    me: bool
    endpoints: int
    addresses: int
    notes: tuple[str, ...] = ()
    behind: Mapping[str, str] = field(default_factory=dict)
    version: str = ""
    schema_version: int = 1


class Hosts:
    """Lists the hosts in the store, and removes dead ones. `seen`: see `View.hosts`; it knows since when."""

    def __init__(
        self, store: Store, networks: Definitions, catalogue: Catalogue, me: str, seen: Mapping[str, HostRecord]
    ) -> None:
        self._store = store
        self._seen = seen
        self._catalogue = catalogue
        self._networks = networks
        self._me = me

    async def all(self) -> list[Host]:
        """Return the hosts, sorted by name, with those of which only endpoints or leases are left.

        Raises:
            StoreError: the store does not answer.
        """
        records = {record.key.removeprefix(HOSTS): record for record in await self._range(HOSTS)}
        alive = {record.key.removeprefix(ALIVE) for record in await self._range(ALIVE)}
        advertised = [_owner(record) for record in await self._range(ENDPOINTS)]
        leased = [_holder(record) for record in await self._range(LEASES)]
        read = {ident: known for ident, record in records.items() if (known := _read(record))}
        seen = {ident: it for ident, it in self._seen.items() if ident in read and it.vtep == read[ident].vtep}
        first = duplicate_vteps(read | seen, alive)
        twins = await self._range(TWINS)
        followed = {record.key.removeprefix(FOLLOWED): record for record in await self._range(FOLLOWED)}
        definitions = await self._catalogue.all()
        found = []
        for ident in {*records, *advertised, *leased} - {""}:
            known = read.get(ident)
            name, vtep = (known.name, known.vtep) if known else ("", None)
            notes = known.notes if known else ("its record cannot be read",) if ident in records else ()
            if known and (owner := first.get(ident)):
                notes = (duplicate_vtep(known.vtep, describe(owner, read[owner].name)), *notes)
            copies = [describe_copy(twin) for twin in twins if twin.key.startswith(f"{TWINS}{ident}/")]
            notes = (*(f"a copy of this host runs at {copy}, and is not admitted" for copy in copies), *notes)
            behind = all_behind(definitions, known, followed.get(ident), alive=ident in alive) if known else {}
            notes = (*notes, *in_words(behind))
            counts = advertised.count(ident), leased.count(ident)
            said = (known.release, known.schema) if known else ("", 1)
            found.append(Host(ident, name, vtep, ident in alive, ident == self._me, *counts, notes, behind, *said))
        return sorted(found, key=lambda host: (host.name, host.id))

    async def forget(self, ref: str) -> Host:
        """Delete all records of a dead host: endpoints, leases, the networks of its Docker, and the host record.

        Args:
            ref: its name, its id, or a prefix of the id.

        Raises:
            NetplugError: "not_found"; "invalid": several hosts match; "forbidden": the host is alive.
            StoreError: the store does not answer; another attempt continues the deletion.
        """
        host = _find(await self.all(), ref)
        if host.alive or host.me or await self._store.get(STOPPED + host.id):
            raise _alive_error(host)
        for record in await self._range(MEMBERS):
            if record.key.endswith(f"/{host.id}"):  # so that a crash leaves no network that nobody has
                await self._catalogue.begin_release(record.key.removeprefix(MEMBERS).partition("/")[0])
        count = 0
        while records := await self._records_of(host.id):
            for start in range(0, len(records), OPS_PER_TXN):
                if not await self._deleted(host, records[start : start + OPS_PER_TXN]):
                    break  # some are another host's by now, or gone
                count += len(records[start : start + OPS_PER_TXN])
        # The host record last: without it, nothing of the host is left.
        last = (FOLLOWED + host.id, RECOVERED + host.id, HOSTS + host.id)
        if await self._store.txn(_dead(host), [Delete(key) for key in last]) is None:
            raise _alive_error(host)
        await self._networks.resume_releases()
        log.info("host.ended", host=short(host.id), name=host.name, records=count + len(last))
        return host

    async def _records_of(self, host: str) -> list[Record]:
        """Return what a host has told, without its own record. An address is another host's as soon as it is free."""
        found = [record for record in await self._range(MEMBERS) if record.key.endswith(f"/{host}")]
        found += [record for record in await self._range(ENDPOINTS) if _owner(record) == host]
        found += [record for record in await self._range(LEASES) if _holder(record) == host]
        return found + await self._range(f"{CONFIRMED}{host}/")

    async def _deleted(self, host: Host, records: Sequence[Record]) -> bool:
        """Delete records of a dead host unless one has changed since it was read; tell whether it was done.

        Raises:
            NetplugError: "forbidden": the host has come back.
        """
        unchanged = [Compare(record.key, record.revision) for record in records]
        ops = [Delete(record.key) for record in records]
        if await self._store.txn([*_dead(host), *unchanged], ops) is not None:
            return True
        if any([await self._store.get(it.key) for it in _dead(host)]):
            raise _alive_error(host)
        return False

    async def _range(self, prefix: str) -> list[Record]:
        return (await self._store.range(prefix))[0]


def _dead(host: Host) -> list[Compare]:
    """Return the comparisons that hold while a host is dead."""
    return [Compare(ALIVE + host.id, 0), Compare(STOPPED + host.id, 0)]


def _alive_error(host: Host) -> NetplugError:
    words = f"host {host.name or short(host.id)!r} is alive, or was less than 15 s ago"
    return NetplugError("forbidden", words, hint="stop its daemon; the host counts as dead 15 s later")


def _find(hosts: Iterable[Host], ref: str) -> Host:
    """Return the host of a reference; a complete id or name takes precedence over a prefix."""
    hosts = list(hosts)
    exact = [host for host in hosts if ref in {host.id, host.name}]
    found = exact or [host for host in hosts if ref and host.id.startswith(ref)]
    if not found:
        names = ", ".join(host.name or short(host.id) for host in hosts)
        raise NetplugError("not_found", f"there is no host {ref!r}", hint=f"there are {names}")
    if len(found) > 1:
        ids = ", ".join(short(host.id) for host in found)
        raise NetplugError("invalid", f"several hosts match {ref!r}", hint=f"give an id: {ids}")
    return found[0]


def _owner(record: Record) -> str:
    """Return the host of an endpoint record; empty if the key is ill-formed."""
    parts = record.key.removeprefix(ENDPOINTS).split("/")
    return parts[1] if len(parts) == 3 else ""


def _holder(record: Record) -> str:
    """Return the host that holds a lease; empty for addresses of the network itself."""
    holder = record.value.get("host")
    return holder if isinstance(holder, str) else ""


def _read(record: Record) -> HostRecord | None:
    try:
        return parse(HostRecord, record)
    except StoreError:
        return None
