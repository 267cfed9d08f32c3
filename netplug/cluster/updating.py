"""Use case of a network of the cluster that lives: it is updated once, in one transaction, and all hosts follow.

The transaction compares the definition's revision. So of two hosts that update a network at once, the second does it
on the new state. A subnet is removed in two: first no endpoint can join it any more (`Definition.closing`), and only if
no host has an address there, the update removes it.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import structlog

from netplug.cluster.allocation import gateways_of
from netplug.cluster.catalogue import joining_refused
from netplug.cluster.claims import SharedLeases
from netplug.cluster.definition_changes import changed, is_same, next_version, to_follow, with_subnets
from netplug.cluster.following import Following
from netplug.cluster.identity import AdmissionGate
from netplug.cluster.mirroring import Mirroring
from netplug.cluster.records import GUARD, MEMBERS, NETWORKS, Definition, Range, ident_of, parse, rewritten
from netplug.cluster.view import View, name_of
from netplug.drivers.naming import short
from netplug.engine import Engine
from netplug.engine.network_updates import NetworkChange, Updated
from netplug.engine.records import NetworkRecord
from netplug.errors import NetplugError, Reportable
from netplug.ipam.pool import GLOBAL, pool_id
from netplug.store.api import Compare, Delete, Put, Record, StoreError
from netplug.store.leases import lease_key
from netplug.tasks.uncancellable import uncancellable

log = structlog.get_logger(__name__)

_ATTEMPTS = 100
"""Largest number of attempts of an update, while other hosts change the same network."""
_PAUSE_S = 0.02
"""While another host removes a subnet of the network."""
_SETTLING = 25
"""Looks, with pauses, at addresses that joins may be giving back."""


class Updating:
    """Updates networks of the cluster; see `NetworkUpdates`."""

    def __init__(
        self,
        engine: Engine,
        store: AdmissionGate,
        view: View,
        mirroring: Mirroring,
        following: Following,
        leases: SharedLeases,
        me: str,
    ) -> None:
        self._engine = engine
        self._store = store
        self._view = view
        self._mirroring = mirroring
        self._following = following
        self._leases = leases
        self._me = me

    async def update(self, record: NetworkRecord, change: NetworkChange, *, dry_run: bool) -> Updated:
        """Update a network on all hosts, and say which have not followed yet; see `NetworkUpdates.update`.

        Raises:
            NetplugError, DriverError, IpamError: and nothing was changed.
            StoreError: the store does not answer.
        """
        await self._mirroring.ready()
        with self._leases.breaker.request():
            updated, definition = await self._update(record, change, dry_run=dry_run)
        if dry_run:
            return updated
        behind = await self._following.behind(ident_of(record), definition)
        notes = tuple(f"{host} not yet: {why}" for host, why in behind.items())
        return replace(updated, notes=(*updated.notes, *notes))

    @uncancellable
    async def _update(
        self, record: NetworkRecord, change: NetworkChange, *, dry_run: bool
    ) -> tuple[Updated, Definition]:
        ident, drivers = ident_of(record), self._engine.drivers
        async with self._mirroring.lock:
            for _ in range(_ATTEMPTS):
                guard = await self._store.get(GUARD) if change.add else None
                stored = await self._store.get(NETWORKS + ident)
                if stored is None or stored.value.get("deleting"):
                    raise joining_refused(record.network.name, stored, self._view)
                before = parse(Definition, stored)
                if before.closing and before.closer != self._me and self._view.alive(before.closer):
                    await asyncio.sleep(_PAUSE_S)
                    continue
                after = await self._changed(ident, before, change)
                here = self._mirroring.here(ident, before.name)
                step = to_follow(after, here, drivers)
                preview = await self._engine.network_updates.update_here(here.network.id, step, dry_run=True)
                after = next_version(before, after, preview.record)
                if dry_run:
                    return preview, before
                if is_same(before, after):
                    return await self._mirroring.follow(ident, before), before
                if revision := await self._commit(ident, stored, after, guard):
                    log.info("network.redefined", network=short(ident), name=after.name, version=after.version)
                    return await self._follow(ident, before, after, revision), after
        words = f"network {record.network.name!r} is being changed by other hosts"
        raise NetplugError("unavailable", words, hint="try again")

    async def _changed(self, ident: str, before: Definition, change: NetworkChange) -> Definition:
        """Return the definition after a change, which was checked against the cluster."""
        for subnet in change.remove:
            if subnet not in {it.subnet for it in before.subnets}:
                there = ", ".join(str(it.subnet) for it in before.subnets)
                raise NetplugError(
                    "not_found", f"network {before.name!r} has no subnet {subnet}", hint=f"it has {there}"
                )
        if change.add or change.remove:
            await self._refuse_docker(ident, before)
        after = changed(before, change, self._engine.drivers)
        await self._refuse_leased(before, _gone(before, after))
        catalogue = self._mirroring.catalogue
        if change.add:
            others, taken = await catalogue.all(), await self._mirroring.not_free()
            after = with_subnets(after, ident, change, others, taken, catalogue.identity)
        return after

    async def _refuse_docker(self, ident: str, definition: Definition) -> None:
        members, _ = await self._store.range(f"{MEMBERS}{ident}/")
        if definition.docker or members:
            hosts = sorted(name_of(self._view, it.key.rpartition("/")[2]) for it in members)
            where = f" on {', '.join(hosts)}" if hosts else ""
            words = f"docker{where} has network {definition.name!r}, and takes no other subnets while it lives"
            raise NetplugError("forbidden", words, hint="create another network")

    async def _refuse_leased(self, definition: Definition, gone: Sequence[Range]) -> None:
        for it in gone:
            claims = await self._leases.claims(_pool(it))
            hosts = Counter(name_of(self._view, claim.host) for claim in claims if claim.host)
            if hosts:
                where = ", ".join(f"{count} on {host}" for host, count in sorted(hosts.items()))
                words = f"subnet {it.subnet} of network {definition.name!r} has addresses: {where}"
                raise NetplugError("forbidden", words, hint="detach them first; netplug ipam ls shows them")
        older = [host.name for ident, host in self._view.hosts().items() if not host.follows and ident != self._me]
        if gone and older:
            words = f"subnet {gone[0].subnet}: {', '.join(sorted(older))} would go on to give out addresses of it"
            raise NetplugError("unavailable", words, hint="update netplug there, or forget the host")

    async def _refuse_joined(self, definition: Definition, gone: Sequence[Range]) -> None:
        """Refuse if somebody has joined before the subnets were closed.

        Who claimed an address before, and finds them closed, gives it back at once: that is waited for.
        """
        for _ in range(_SETTLING):
            with suppress(NetplugError):
                return await self._refuse_leased(definition, gone)
            await asyncio.sleep(_PAUSE_S)
        return await self._refuse_leased(definition, gone)

    async def _commit(self, ident: str, stored: Record, after: Definition, guard: Record | None) -> int | None:
        """Write the next version of a definition. Return its revision; None if another host was first."""
        before = parse(Definition, stored)
        gone, more = _gone(before, after), _gone(after, before)
        ops: list[Put | Delete] = [rewritten(stored, after)]
        ops += gateways_of(ident, replace(after, subnets=more))
        ops += [Delete(lease_key(_pool(it), it.gateway)) for it in gone]
        compares = [Compare(GUARD, guard.revision if guard else 0)] if more else []
        ops += [Put(GUARD, {"last": ident})] if more else []
        async with self._closed(stored, before, gone) as revision:
            if revision is None:
                return None
            return await self._store.txn([Compare(stored.key, revision), *compares], ops)

    @asynccontextmanager
    async def _closed(self, stored: Record, definition: Definition, gone: Sequence[Range]) -> AsyncIterator[int | None]:
        """Refuse joins of subnets during the block, and afterwards if the block changes the definition.

        Yield the definition's revision during the block; None if another host has changed it.
        """
        if not gone:
            yield stored.revision
            return
        closed = replace(definition, closing=tuple(it.subnet for it in gone), closer=self._me)
        revision = await self._store.txn([Compare(stored.key, stored.revision)], [rewritten(stored, closed)])
        try:
            if revision is not None:
                await self._refuse_joined(definition, gone)
            yield revision
        finally:
            if revision is not None:
                opened = rewritten(stored, replace(definition, closing=(), closer=""))
                with suppress(StoreError):  # then `Mirroring` does it
                    await uncancellable(self._store.txn([Compare(stored.key, revision)], [opened]))

    async def _follow(self, ident: str, before: Definition, after: Definition, revision: int) -> Updated:
        """Bring about the new version on this host. If the kernel refuses, the update is taken back.

        With other subnets it stays: hosts may have addresses of them by now. This host then tries again.
        """
        try:
            return await self._mirroring.follow(ident, after)
        except Exception as exc:
            if before.subnets != after.subnets and isinstance(exc, Reportable):
                here = self._mirroring.here(ident, before.name)
                return Updated(here, notes=(f"this host not yet: {exc.message}",))
            back = replace(before, version=after.version + 1, closing=(), closer="")
            stored = await self._store.get(NETWORKS + ident)
            if stored is not None and stored.revision == revision:
                await self._store.txn([Compare(stored.key, revision)], [rewritten(stored, back)])
                self._mirroring.soon(ident)
            raise


def _gone(before: Definition, after: Definition) -> tuple[Range, ...]:
    """Return the subnets that only the first definition has."""
    return tuple(it for it in before.subnets if it not in after.subnets)


def _pool(part: Range) -> str:
    return pool_id(GLOBAL, part.subnet, part.range)
