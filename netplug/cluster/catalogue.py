"""The definitions of networks in the shared store, and their users."""

from collections import Counter
from collections.abc import Iterable

import structlog

from netplug.cluster.allocation import gateways_of
from netplug.cluster.claims import drop_all
from netplug.cluster.records import ENDPOINTS, MEMBERS, NETWORKS, Definition, as_put, parse, version_of
from netplug.cluster.view import View, name_of
from netplug.drivers.naming import short
from netplug.engine.records import FrontEnd, NetworkRecord
from netplug.errors import NetplugError
from netplug.ipam.pool import GLOBAL, pool_id
from netplug.store.api import Compare, Delete, Put, Record, Store, StoreError
from netplug.store.leases import OPS_PER_TXN

log = structlog.get_logger(__name__)

TOMBSTONES = "cluster/tombstones"
"""In this host's own store: ids of deleted networks, so that a restored backup does not bring them back."""
_MAX_TOMBSTONES = 500
RELEASED = "cluster/released/"
"""In this host's own store: networks that its Docker removes, until the shared store knows."""


class Catalogue:
    """Reads and writes definitions. `own`: this host's own store; `me`: this host's id.

    `identity`: the cluster's id; empty until this host knows it.
    """

    def __init__(self, store: Store, own: Store, view: View, me: str) -> None:
        self.identity = ""
        self._store = store
        self._own = own
        self._view = view
        self._me = me

    async def all(self) -> dict[str, Definition]:
        """Return the networks, by id. Records that cannot be read are skipped and logged."""
        found = {}
        for record in (await self._store.range(NETWORKS))[0]:
            try:
                found[record.key.removeprefix(NETWORKS)] = parse(Definition, record)
            except StoreError as exc:
                log.warning("record.poisoned", key=record.key, error=str(exc))
        return found

    async def refuse_used(self, ident: str, name: str) -> None:
        """Refuse a network that has endpoints, or that the Docker of a host has.

        Raises:
            NetplugError: "forbidden"; the message names the hosts.
        """
        endpoints = Counter(await self._hosts_in(f"{ENDPOINTS}{ident}/"))
        if endpoints:
            where = ", ".join(f"{count} on {name_of(self._view, host)}" for host, count in sorted(endpoints.items()))
            raise NetplugError("forbidden", f"network {name!r} has endpoints: {where}", hint="detach first")
        if hosts := await self._hosts_in(f"{MEMBERS}{ident}/"):
            where = ", ".join(name_of(self._view, host) for host in sorted(hosts))
            hint = f"there: {FrontEnd.DOCKER.removal(name)}"
            raise NetplugError("forbidden", f"docker has network {name!r} on {where}", hint=hint)

    def user(self, ident: str, docker: str) -> Put:
        """Return the operation that makes this host's Docker a user of a network. `docker`: its id in Docker."""
        return Put(f"{MEMBERS}{ident}/{self._me}", {"network": docker})

    async def add_user(self, ident: str, name: str, docker: str) -> None:
        """Make this host's Docker a user of a network.

        Raises:
            NetplugError: "unavailable": it is being deleted, or was.
        """
        stored = await self._store.get(NETWORKS + ident)
        while stored is not None and not stored.value.get("deleting"):
            compare = Compare(stored.key, stored.revision)
            if await self._store.txn([compare], [self.user(ident, docker)]) is not None:
                return
            stored = await self._store.get(stored.key)
        raise joining_refused(name, stored, self._view)

    async def _hosts_in(self, prefix: str) -> list[str]:
        """Return the hosts in the keys below a prefix."""
        return [record.key.removeprefix(prefix).partition("/")[0] for record in (await self._store.range(prefix))[0]]

    async def remove(self, ident: str, definition: Definition, revision: int | None = None) -> None:
        """Delete a network's leases and its definition; this last, so that a crash leaves no orphaned leases.

        `revision`: of the definition; None: its present one. If it has another one meanwhile, another host goes on with
        it. If it is gone, the leases may be those of a later network with the subnet.
        """
        if revision is None:
            stored = await self._store.get(NETWORKS + ident)
            if stored is None:
                return await self.add_tombstone(ident)
            revision = stored.revision
        unchanged = [Compare(NETWORKS + ident, revision)]
        for it in definition.subnets:
            await drop_all(self._store, pool_id(GLOBAL, it.subnet, it.range), unchanged)
        await self._store.txn(unchanged, [Delete(NETWORKS + ident)])
        return await self.add_tombstone(ident)

    async def restore(self, ident: str, definition: Definition, record: NetworkRecord | None) -> None:
        """Write a definition that the store has lost. `record`: the network on this host, if it is built here."""
        put, key = as_put(NETWORKS + ident, definition), NETWORKS + ident
        if record is not None and record.front_end is FrontEnd.DOCKER:
            await self._store.txn([], [self.user(ident, record.network.id)])
        stored = await self._store.get(key)
        if stored is not None and version_of(stored) > definition.version:
            return  # it was updated since
        if stored is None or stored.value != put.value:
            compare = Compare(key, stored.revision if stored else 0)
            if await self._store.txn([compare], [put, *gateways_of(ident, definition)]) is not None:
                log.warning("network.restored", network=short(ident), name=definition.name)

    async def sweep(self, built: Iterable[str]) -> None:
        """Delete networks that a backup brought back although they have a tombstone, except those `built` here."""
        dead = await self.tombstones() - set(built)
        for ident, definition in (await self.all()).items():
            if ident in dead:
                log.warning("network.ended_again", network=short(ident), name=definition.name)
                records, _ = await self._store.range(f"{ENDPOINTS}{ident}/")
                records += (await self._store.range(f"{MEMBERS}{ident}/"))[0]
                for start in range(0, len(records), OPS_PER_TXN):
                    await self._store.txn([], [Delete(it.key) for it in records[start : start + OPS_PER_TXN]])
                await self.remove(ident, definition)

    async def tombstones(self) -> set[str]:
        """Return the ids of networks that this host knows to be deleted."""
        record = await self._own.get(TOMBSTONES)
        return set(map(str, record.value["ids"])) if record else set()  # type: ignore[arg-type]  # a list of texts

    async def add_tombstone(self, ident: str) -> None:
        """Store that a network was deleted."""
        record = await self._own.get(TOMBSTONES)
        ids: list[str] = list(record.value["ids"]) if record else []  # type: ignore[arg-type]
        if ident not in ids:
            await self._keep([*ids, ident][-_MAX_TOMBSTONES:])

    async def remove_tombstone(self, ident: str) -> None:
        """Remove a network's tombstone: another host still has the network."""
        record = await self._own.get(TOMBSTONES)
        ids: list[str] = list(record.value["ids"]) if record else []  # type: ignore[arg-type]
        if ident in ids:
            await self._keep([it for it in ids if it != ident])

    async def begin_release(self, ident: str) -> None:
        """Store that this host's Docker removes a network."""
        await self._own.txn([], [Put(RELEASED + ident, {})])

    async def end_release(self, ident: str) -> None:
        """Store that the shared store knows of it, or that Docker keeps the network."""
        await self._own.txn([], [Delete(RELEASED + ident)])

    async def released(self) -> list[str]:
        """Return the networks whose removal by this host's Docker was interrupted."""
        return [record.key.removeprefix(RELEASED) for record in (await self._own.range(RELEASED))[0]]

    async def _keep(self, ids: list[str]) -> None:
        await self._own.txn([], [Put(TOMBSTONES, {"ids": [*ids]})])


def joining_refused(name: str, stored: Record | None, view: View) -> NetplugError:
    """Return why no endpoint can join a network whose definition is `stored` now."""
    if stored is None:
        return NetplugError("unavailable", f"network {name!r} was deleted from the shared store")
    where = name_of(view, str(stored.value.get("deleter", "")))
    return NetplugError("unavailable", f"network {name!r} is being deleted by host {where}")
