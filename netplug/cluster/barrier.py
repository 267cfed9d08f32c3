"""A join returns when the other hosts can reach the endpoint: each host confirms what it has applied.

A host confirms to another one the revision up to which it has applied that host's endpoints, in its kernel and its DNS.
Each host watches only the confirmations to itself, so an endpoint costs one small record per host. They are bound to
the leases of the hosts that confirm. Nothing depends on them: the wait is short, and a host that did not confirm in
time is not waited for again until it does.
"""

import asyncio
from collections.abc import Mapping

import structlog

from netplug.cluster.membership import Membership
from netplug.cluster.records import CONFIRMED
from netplug.cluster.view import View, name_of
from netplug.drivers.naming import short
from netplug.store.api import Compacted, Put, Record, SharedStore, StoreError

log = structlog.get_logger(__name__)

PATIENCE_S = 0.5
"""A hundred times the usual duration. A host that hangs delays the start of one container by it, once."""
_RETRY_S = 1.0
_OPS_PER_TXN = 100


class Barrier:
    """Waits for confirmations of other hosts (`passed`), and confirms what was applied here (`applied`)."""

    def __init__(self, store: SharedStore, view: View, membership: Membership) -> None:
        self._store = store
        self._view = view
        self._membership = membership
        self._me = membership.me
        self._confirmed: dict[str, int] = {}
        self._late: dict[str, int] = {}
        self._updated = asyncio.Event()
        self._pending: dict[str, int] = {}
        self._wanted = asyncio.Event()

    async def passed(self, revision: int) -> None:
        """Wait until all hosts have applied this host's records of a revision, and this host all records before it.

        The wait takes `PATIENCE_S` at most; hosts that are not alive do not count.
        """
        awaited = {host for host in self._view.hosts() if host != self._me and self._may_confirm(host)}
        if not awaited:
            return
        awaited.add(self._me)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while awaited := {host for host in awaited if self._is_missing(host, revision)}:
                    await self._updated.wait()
        except TimeoutError:
            self._late |= {host: self._epoch(host) for host in awaited - {self._me}}
            log.warning("endpoint.unconfirmed", by=[name_of(self._view, host) for host in sorted(awaited)])

    def _may_confirm(self, host: str) -> bool:
        return self._view.alive(host) and self._late.get(host) != self._epoch(host)

    def _is_missing(self, host: str, revision: int) -> bool:
        lives = host == self._me or self._view.alive(host)
        return lives and self._confirmed.get(host, 0) < revision

    def _epoch(self, host: str) -> int:
        """Return the epoch of a host: after a restart, its daemon may be faster."""
        known = self._view.hosts().get(host)
        return known.epoch if known else 0

    def applied(self, revisions: Mapping[str, int]) -> None:
        """Confirm that endpoints were applied here: by host, the revision up to which."""
        for host, revision in revisions.items():
            if host == self._me:
                self._on_confirmed(host, revision)
            elif self._view.alive(host):  # hosts that are not alive do not wait
                self._pending[host] = revision
                self._wanted.set()

    def _on_confirmed(self, host: str, revision: int) -> None:
        self._confirmed[host] = revision
        self._late.pop(host, None)
        self._updated.set()
        self._updated = asyncio.Event()

    # Background work

    async def run(self) -> None:
        """Write and read confirmations until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._confirm())

    async def _confirm(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            pending, self._pending = self._pending, {}
            if (lease := self._membership.lease) is None:
                continue
            puts = [Put(f"{CONFIRMED}{host}/{self._me}", {"revision": it}, lease) for host, it in pending.items()]
            try:
                for start in range(0, len(puts), _OPS_PER_TXN):
                    await self._store.txn([], puts[start : start + _OPS_PER_TXN])
            except StoreError as exc:  # the wait is short, and the next confirmation includes this one
                log.debug("endpoints.unconfirmed", reason=str(exc))

    async def _follow(self) -> None:
        prefix = f"{CONFIRMED}{self._me}/"
        while True:
            try:
                records, revision = await self._store.range(prefix)
                self._confirmed.clear()
                for record in records:
                    self._take(prefix, record)
                async for event in self._store.watch(prefix, revision):
                    if event.record is not None:
                        self._take(prefix, event.record)
                break  # the store is closed
            except Compacted as exc:
                log.debug("confirmations.read_anew", reason=str(exc))
            except StoreError as exc:
                log.debug("confirmations.unreachable", reason=str(exc))
                await asyncio.sleep(_RETRY_S)

    def _take(self, prefix: str, record: Record) -> None:
        host, revision = record.key.removeprefix(prefix), record.value.get("revision")
        if isinstance(revision, int):
            self._on_confirmed(host, revision)
        else:
            log.warning("record.poisoned", key=record.key, host=short(host))
