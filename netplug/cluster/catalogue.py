"""What the store says of networks: their definitions, and who uses them."""

from collections import Counter
from collections.abc import Iterable

import structlog

from netplug.cluster.allocation import gateways_of
from netplug.cluster.claims import drop_all
from netplug.cluster.records import ENDPOINTS, MEMBERS, NETWORKS, Definition, as_put
from netplug.cluster.records import parse as parse_record
from netplug.cluster.view import View, name_of
from netplug.drivers.naming import short
from netplug.engine.records import FrontEnd, NetworkRecord
from netplug.errors import NetplugError
from netplug.ipam.pool import GLOBAL, pool_id
from netplug.store.api import Compare, Delete, Put, Record, Store, StoreError
from netplug.store.leases import OPS_PER_TXN

log = structlog.get_logger(__name__)

GRAVES = "cluster/graves"
"""In this host's own store: networks of whose end it knows, lest a backup bring them back."""
_MOST_GRAVES = 500


class Catalogue:
    """Reads and writes definitions. `own`: this host's own store; `me`: its id."""

    def __init__(self, store: Store, own: Store, view: View, me: str) -> None:
        self._store = store
        self._own = own
        self._view = view
        self._me = me

    async def all(self) -> dict[str, Definition]:
        """Return the networks, by id; what cannot be read is left out, and logged."""
        found = {}
        for record in (await self._store.range(NETWORKS))[0]:
            try:
                found[record.key.removeprefix(NETWORKS)] = parse_record(Definition, record)
            except StoreError as exc:
                log.warning("record.poisoned", key=record.key, error=str(exc))
        return found

    async def refuse_used(self, ident: str, name: str) -> None:
        """Refuse a network that has endpoints, or that a Docker has.

        Raises:
            NetplugError: "forbidden", with the hosts.
        """
        endpoints = Counter(await self._hosts_in(f"{ENDPOINTS}{ident}/"))
        if endpoints:
            where = ", ".join(f"{count} on {name_of(self._view, host)}" for host, count in sorted(endpoints.items()))
            raise NetplugError("forbidden", f"network {name!r} has endpoints: {where}", hint="detach first")
        if hosts := await self._hosts_in(f"{MEMBERS}{ident}/"):
            where = ", ".join(name_of(self._view, host) for host in sorted(hosts))
            hint = f"docker network rm {name}"
            raise NetplugError("forbidden", f"docker has network {name!r} on {where}", hint=hint)

    async def _hosts_in(self, prefix: str) -> list[str]:
        """Return the hosts that the records of a prefix are of."""
        return [record.key.removeprefix(prefix).partition("/")[0] for record in (await self._store.range(prefix))[0]]

    async def remove(self, ident: str, definition: Definition) -> None:
        """Delete what the store has of a network; the definition last, so that a crash leaves no leases alone."""
        for it in definition.subnets:
            await drop_all(self._store, pool_id(GLOBAL, it.subnet, it.range))
        await self._store.txn([], [Delete(NETWORKS + ident)])
        await self.bury(ident)

    async def put_back(self, ident: str, definition: Definition, record: NetworkRecord | None) -> None:
        """Define a network as it was known; `record`: of the one that is built here."""
        put, key = as_put(NETWORKS + ident, definition), NETWORKS + ident
        if record is not None and record.front_end is FrontEnd.DOCKER:
            await self._store.txn([], [Put(f"{MEMBERS}{ident}/{self._me}", {"network": record.network.id})])
        stored = await self._store.get(key)
        if stored is None or stored.value != put.value:
            compare = Compare(key, stored.revision if stored else 0)
            if await self._store.txn([compare], [put, *gateways_of(ident, definition)]) is not None:
                log.warning("network.restored", network=short(ident), name=definition.name)

    async def sweep(self, built: Iterable[str]) -> None:
        """Delete what a backup brought back of networks that ended, less those that are `built` here."""
        dead = await self.graves() - set(built)
        for ident, definition in (await self.all()).items():
            if ident in dead:
                log.warning("network.ended_again", network=short(ident), name=definition.name)
                records, _ = await self._store.range(f"{ENDPOINTS}{ident}/")
                records += (await self._store.range(f"{MEMBERS}{ident}/"))[0]
                for start in range(0, len(records), OPS_PER_TXN):
                    await self._store.txn([], [Delete(it.key) for it in records[start : start + OPS_PER_TXN]])
                await self.remove(ident, definition)

    async def graves(self) -> set[str]:
        """Return the networks of whose end this host knows."""
        record = await self._own.get(GRAVES)
        return set(map(str, record.value["ids"])) if record else set()  # type: ignore[arg-type]  # a list of texts

    async def bury(self, ident: str) -> None:
        """Remember that a network has ended."""
        record = await self._own.get(GRAVES)
        ids: list[str] = list(record.value["ids"]) if record else []  # type: ignore[arg-type]
        if ident not in ids:
            await self._keep([*ids, ident][-_MOST_GRAVES:])

    async def exhume(self, ident: str) -> None:
        """Forget that: somebody else has it still."""
        record = await self._own.get(GRAVES)
        ids: list[str] = list(record.value["ids"]) if record else []  # type: ignore[arg-type]
        if ident in ids:
            await self._keep([it for it in ids if it != ident])

    async def _keep(self, ids: list[str]) -> None:
        await self._own.txn([], [Put(GRAVES, {"ids": [*ids]})])


def gone(name: str, stored: Record | None, view: View) -> NetplugError:
    """Return why nobody can join a network any more, whose definition is `stored` now."""
    if stored is None:
        return NetplugError("unavailable", f"network {name!r} was deleted from the store that hosts share")
    where = name_of(view, str(stored.value.get("deleter", "")))
    return NetplugError("unavailable", f"network {name!r} is just being deleted on host {where}")
