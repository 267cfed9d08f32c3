"""The hosts of a cluster as a user sees them, and how one that does not come back is forgotten.

What a dead host had stays its own, since it may come back. To forget it is a user's decision, and holds only as long as
it is dead: each transaction compares that nobody has said since that he lives. If it comes back all the same it tells
of what it has, and finds out which of its addresses others have by now.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from netplug.cluster.networks import Definitions
from netplug.cluster.records import (
    ALIVE,
    CONFIRMED,
    ENDPOINTS,
    HOSTS,
    MEMBERS,
    RECOVERED,
    STOPPED,
    TWINS,
    HostRecord,
    describe,
    parse,
    twin_of,
    twin_words,
    yielding,
)
from netplug.drivers.naming import short
from netplug.drivers.steps import IPAddress
from netplug.errors import NetplugError
from netplug.store.api import Compare, Delete, Record, Store, StoreError
from netplug.store.leases import LEASES, OPS_PER_TXN

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Host:
    """A host. `vtep`: None when its record cannot be read. `endpoints`, `addresses`: how many it has.

    `notes`: what is wrong with it.
    """

    id: str
    name: str
    vtep: IPAddress | None
    alive: bool
    me: bool
    endpoints: int
    addresses: int
    notes: tuple[str, ...] = ()


class Hosts:
    """Lists hosts as the store has them now, and forgets them."""

    def __init__(self, store: Store, networks: Definitions, me: str) -> None:
        self._store = store
        self._networks = networks
        self._me = me

    async def all(self) -> list[Host]:
        """Return the hosts, by name; also those that are known by what they left only.

        Raises:
            StoreError: the store does not answer.
        """
        records = {record.key.removeprefix(HOSTS): record for record in await self._range(HOSTS)}
        alive = {record.key.removeprefix(ALIVE) for record in await self._range(ALIVE)}
        told = [_owner(record) for record in await self._range(ENDPOINTS)]
        leased = [_holder(record) for record in await self._range(LEASES)]
        read = {ident: known for ident, record in records.items() if (known := _read(record))}
        first = yielding(read, alive)
        twins = await self._range(TWINS)
        found = []
        for ident in {*records, *told, *leased} - {""}:
            known = read.get(ident)
            name, vtep = (known.name, known.vtep) if known else ("", None)
            notes = known.notes if known else ("its record cannot be read",) if ident in records else ()
            if known and (other := first.get(ident)):
                notes = (twin_words(known.vtep, describe(other, read[other].name)), *notes)
            copies = [twin_of(twin) for twin in twins if twin.key.startswith(f"{TWINS}{ident}/")]
            notes = (*(f"a copy of it is at {copy}, and is not let in" for copy in copies), *notes)
            counts = told.count(ident), leased.count(ident)
            found.append(Host(ident, name, vtep, ident in alive, ident == self._me, *counts, notes))
        return sorted(found, key=lambda host: (host.name, host.id))

    async def forget(self, ref: str) -> Host:
        """Delete all that a dead host has in the store: endpoints, addresses, what its Docker has, and its record.

        Args:
            ref: its name, its id, or the beginning of that.

        Raises:
            NetplugError: "not_found"; "invalid": several are called so; "forbidden": it lives.
            StoreError: the store does not answer; a next attempt goes on where this one ended.
        """
        host = _find(await self.all(), ref)
        if host.alive or host.me or await self._store.get(STOPPED + host.id):
            raise _lives(host)
        members = await self._range(MEMBERS)
        mine = [record for record in members if record.key.endswith(f"/{host.id}")]
        mine += [record for record in await self._range(ENDPOINTS) if _owner(record) == host.id]
        mine += [record for record in await self._range(LEASES) if _holder(record) == host.id]
        mine += await self._range(f"{CONFIRMED}{host.id}/")
        # The record last: whoever sees that sees nothing of the host any more.
        keys = [*(record.key for record in mine), RECOVERED + host.id, HOSTS + host.id]
        for start in range(0, len(keys), OPS_PER_TXN):
            ops = [Delete(key) for key in keys[start : start + OPS_PER_TXN]]
            if await self._store.txn([Compare(ALIVE + host.id, 0), Compare(STOPPED + host.id, 0)], ops) is None:
                raise _lives(host)
        for record in members:
            await self._networks.end_unwanted(record.key.removeprefix(MEMBERS).partition("/")[0])
        log.info("host.ended", host=short(host.id), name=host.name, records=len(keys))
        return host

    async def _range(self, prefix: str) -> list[Record]:
        return (await self._store.range(prefix))[0]


def _lives(host: Host) -> NetplugError:
    words = f"host {host.name or short(host.id)!r} lives, or did less than 15 s ago"
    return NetplugError("forbidden", words, hint="stop its daemon; 15 s after it has ended it counts as dead")


def _find(hosts: Iterable[Host], ref: str) -> Host:
    """Return the host that is meant: by whole id or name before the beginning of an id."""
    hosts = list(hosts)
    whole = [host for host in hosts if ref in {host.id, host.name}]
    found = whole or [host for host in hosts if ref and host.id.startswith(ref)]
    if not found:
        names = ", ".join(host.name or short(host.id) for host in hosts)
        raise NetplugError("not_found", f"there is no host {ref!r}", hint=f"there are {names}")
    if len(found) > 1:
        ids = ", ".join(short(host.id) for host in found)
        raise NetplugError("invalid", f"several hosts are called {ref!r}", hint=f"give an id: {ids}")
    return found[0]


def _owner(record: Record) -> str:
    """Return the host that told of an endpoint; nothing when the key is nonsense."""
    parts = record.key.removeprefix(ENDPOINTS).split("/")
    return parts[1] if len(parts) == 3 else ""


def _holder(record: Record) -> str:
    """Return the host that has claimed an address; nothing for one that is a network's."""
    holder = record.value.get("host")
    return holder if isinstance(holder, str) else ""


def _read(record: Record) -> HostRecord | None:
    try:
        return parse(HostRecord, record)
    except StoreError:
        return None
