"""A host as a member: its record, with an epoch that counts its lives, and a lease that says that it lives.

Nothing that a container needs hangs on the lease. When it ends, others only learn that nobody tells them of changes
here any more.
"""

import asyncio
import secrets
from contextlib import suppress

import structlog

from netplug.claims import Reach
from netplug.drivers.naming import short
from netplug.drivers.steps import IPAddress
from netplug.store.api import Compare, Put, Store, StoreError, Unreachable

from .records import ALIVE, HOSTS, HostRecord, as_put, parse
from .view import View

log = structlog.get_logger(__name__)

OWN_ID = "meta/host"
TTL_S = 15.0
BEAT_S = TTL_S / 3
"""Two beats may be lost."""
_RETRY_S = 0.5


class Membership:
    """Registers this host, keeps its record as it ought to be, and its lease.

    `epoch`: of this life, 0 until the store has answered. `vtep`, `notes`: see `HostRecord`; who changes them calls
    `look`.
    """

    def __init__(self, store: Store, view: View, reach: Reach, me: str, name: str, vtep: IPAddress) -> None:
        self.epoch = 0
        self.me = me
        self._store = store
        self._view = view
        self._reach = reach
        self.vtep = vtep
        self.notes: tuple[str, ...] = ()
        self._name = name
        self._written: HostRecord | None = None
        self._lease: int | None = None

    @property
    def lease(self) -> int | None:
        """The lease that says that this host lives; None while it has none."""
        return self._lease

    async def register(self) -> None:
        """Begin a new epoch.

        Raises:
            StoreError: the store does not answer, or refuses.
        """
        self.epoch = await self._write(begin=True)
        log.info("host.registered", host=short(self.me), epoch=self.epoch, vtep=str(self.vtep))

    async def _write(self, *, begin: bool) -> int:
        """Write this host's record, and return its epoch, which is a new one where that is to `begin`."""
        key = HOSTS + self.me
        while True:
            records, revision = await self._store.range(key)
            stored = next((record for record in records if record.key == key), None)
            before = None
            if stored is not None:
                try:
                    before = parse(HostRecord, stored)
                except StoreError as exc:
                    log.warning("record.poisoned", key=key, error=str(exc))
            epoch = max(before.epoch if before else 0, self.epoch) + 1 if begin else self.epoch
            since = before.since if before and before.vtep == self.vtep else revision
            record = HostRecord(self._name, self.vtep, epoch, since, self.notes)
            compare = Compare(key, stored.revision if stored else 0)
            if await self._store.txn([compare], [as_put(key, record)]) is not None:
                self._written = record
                return epoch

    def look(self) -> None:
        """Have the record brought in line at once."""
        self._reach.lost.set()

    async def run(self) -> None:
        """Keep the lease, and the record, until cancelled; look at everything anew after a time without the store."""
        absent = not self._reach.answers
        while True:
            try:
                if not self.epoch:
                    await self.register()
                elif self._written and (self._written.vtep, self._written.notes) != (self.vtep, self.notes):
                    await self._write(begin=False)
                await self._beat()
                if absent or not self._reach.answers:
                    log.info("cluster.reached")
                    self._view.touch_all()
                absent, self._reach.answers = False, True
                self._reach.lost.clear()
            except Unreachable as exc:
                if not absent:
                    log.warning("cluster.unreachable", reason=str(exc))
                absent, self._reach.answers = True, False
            with suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_S if absent else BEAT_S):
                    await (asyncio.Event() if absent else self._reach.lost).wait()

    async def _beat(self) -> None:
        if self._lease is None or not await self._store.keep_alive(self._lease):
            if self._lease is not None:
                log.warning("host.lease_lost", host=short(self.me))
                self._view.touch_all()
            self._lease = await self._store.lease(TTL_S)
            await self._store.txn([], [Put(ALIVE + self.me, {"epoch": self.epoch}, self._lease)])
        self._check()

    async def ensure(self) -> None:
        """Register if nobody knows of this host, as at first, or when somebody or something has deleted its record.

        Raises:
            StoreError: the store does not answer, or refuses.
        """
        if self.epoch and self.me not in self._view.hosts():
            log.warning("host.forgotten", host=short(self.me))
        if not self.epoch or self.me not in self._view.hosts():
            await self.register()

    def _check(self) -> None:
        """Say whose record contradicts this host's."""
        hosts = self._view.hosts()
        mine = hosts.get(self.me)
        if mine is not None and mine.epoch > self.epoch:
            log.error("host.twin", host=short(self.me), epoch=mine.epoch, name=mine.name, vtep=str(mine.vtep))

    async def leave(self) -> None:
        """Say that nobody is here any more; what the containers need stays."""
        if self._lease is not None:
            await self._store.revoke(self._lease)
            self._lease = None


async def own_id(store: Store) -> str:
    """Return the id of this host; made up at the first start, and kept."""
    if record := await store.get(OWN_ID):
        return str(record.value["id"])
    ident = secrets.token_hex(16)
    await store.txn((), [Put(OWN_ID, {"id": ident})], durable=True)
    return ident
