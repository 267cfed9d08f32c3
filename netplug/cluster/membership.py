"""A host as a member: its record, with an epoch that counts its lives, and a lease that says that it lives.

Nothing that a container needs hangs on the lease. When it ends, others only learn that nobody tells them of changes
here any more.

The record under the lease says where the daemon runs, and only one can have it. A second one of the same id, of a
copied disk, is not let in: it leaves word under a lease of its own, the first one answers that it lives, and from then
on the second one knows what it is. A record that nobody answers for is that of a life that has just ended.
"""

import asyncio
import hashlib
from contextlib import suppress

import structlog

from netplug.cluster.claims import CircuitBreaker, NotAdmitted
from netplug.cluster.identity import Gate, Identity
from netplug.cluster.records import ALIVE, HOSTS, STOPPED, TWINS, HostRecord, as_put, parse
from netplug.cluster.view import View
from netplug.drivers.naming import short
from netplug.drivers.steps import IPAddress
from netplug.engine.conditions import Conditions, Difference
from netplug.errors import NetplugError
from netplug.store.api import Compare, Put, StoreError, Unreachable

log = structlog.get_logger(__name__)

TTL_S = 15.0
BEAT_S = TTL_S / 3
"""Two beats may be lost."""
_RETRY_S = 0.5
WAY_OUT = (
    "if this is the copy, stop netplug, delete netplug.db in its state directory and start it again; "
    "if not, stop the other one and use netplug host rebind"
)


class Membership:
    """Has this host let in, keeps its record as it ought to be, and its lease.

    `epoch`: of this life, 0 until the store has answered. `vtep`, `notes`: see `HostRecord`; who changes them calls
    `look`.
    """

    def __init__(
        self,
        gate: Gate,
        view: View,
        breaker: CircuitBreaker,
        identity: Identity,
        conditions: Conditions,
        *,
        name: str,
        vtep: IPAddress,
    ) -> None:
        self.epoch = 0
        self.me = identity.id
        self.vtep = vtep
        self.notes: tuple[str, ...] = ()
        self._gate = gate
        # Also in a store with older data: without its record a host mends nothing there.
        self._store = gate.store.unguarded
        self._view = view
        self._breaker = breaker
        self._identity = identity
        self._conditions = conditions
        self._name = name
        self._place = hashlib.sha256(identity.machine.place.encode()).hexdigest()[:16]
        self._twin = f"{TWINS}{self.me}/{self._place}"
        self._written: HostRecord | None = None
        self._lease: int | None = None
        self._twin_lease: int | None = None
        self._refusing: list[str] = []
        self._living = asyncio.Lock()
        """One at a time: two that find the lease gone would each take the other for a second daemon."""

    @property
    def lease(self) -> int | None:
        """The lease that says that this host lives; None while it has none."""
        return self._lease

    @property
    def admitted(self) -> bool:
        """Whether this host may write to the store."""
        return not self._gate.shut

    # Being let in

    async def register(self) -> None:
        """Begin a new epoch.

        Raises:
            NotAdmitted: there is another one of this id, or this is none of its machine.
            StoreError: the store does not answer, or refuses.
        """
        async with self._living:
            await self._register()

    async def _register(self) -> None:
        await self._keep_lease()
        self.epoch = await self._write(begin=True)
        if not self.admitted:
            self._gate.shut = ""
            self._view.touch_all()
        log.info("host.registered", host=short(self.me), epoch=self.epoch, vtep=str(self.vtep))

    async def _keep_lease(self) -> None:
        if self._identity.why:
            raise NotAdmitted(self._identity.why)
        if self._lease is not None and await self._store.keep_alive(self._lease):
            return
        if self._lease is not None:
            log.warning("host.lease_lost", host=short(self.me))
            self._lease = None
            self._view.touch_all()
        key = ALIVE + self.me
        stored = await self._store.get(key)
        if stored is not None and stored.value.get("place", self._place) != self._place:
            await self._found_alive(stored.value.get("refuses"))
        lease = await self._store.lease(TTL_S)
        put = Put(key, {"place": self._place, "refuses": []}, lease)
        if await self._store.txn([Compare(key, stored.revision if stored else 0)], [put]) is None:
            await self._store.revoke(lease)
            raise NotAdmitted("another daemon has begun to live as this host just now")
        self._lease, self._refusing = lease, []

    async def _found_alive(self, refuses: object) -> None:
        """Refuse to live beside another one; if that one answered, for good.

        Raises:
            NotAdmitted: always.
        """
        known = self._view.hosts().get(self.me)
        who = f"{known.name} at {known.vtep}" if known else "another one"
        if isinstance(refuses, list) and self._place in refuses:
            await self._identity.refuse(f"this is a copy of a host that lives: {who}")
            raise NotAdmitted(self._identity.why)
        raise NotAdmitted(f"a daemon lives as this host elsewhere, or did some seconds ago: {who}")

    async def visit(self) -> None:
        """Have a process let in that does not live here, if the daemon of this host would be."""
        why = self._identity.why
        if not why:
            with suppress(Unreachable):  # which says itself why
                stored = await self._store.get(ALIVE + self.me)
                if stored is not None and stored.value.get("place", self._place) != self._place:
                    why = "a daemon lives as this host elsewhere"
        self._gate.shut = why and _shut(why)

    async def _refused(self, why: str) -> None:
        """Stay out, and leave word of it."""
        self._gate.shut = _shut(why)
        self._conditions.report("identity", [Difference("host", "identity", f"{why}; {WAY_OUT}")])
        if self._twin_lease is None or not await self._store.keep_alive(self._twin_lease):
            self._twin_lease = await self._store.lease(TTL_S)
            word = Put(self._twin, {"name": self._name, "vtep": str(self.vtep)}, self._twin_lease)
            await self._store.txn([], [word])

    async def _let_in(self) -> None:
        """Take back the word that was left."""
        twins = self._view.twins(self.me)
        found = [
            Difference("host", "identity", f"a copy of this host is at {twin}, and is not let in")
            for place, twin in sorted(twins.items())
            if place != self._place
        ]
        self._conditions.report("identity", found)
        if self._twin_lease is not None:
            await self._store.revoke(self._twin_lease)
            self._twin_lease = None
        refusing = sorted(twins.keys() - {self._place})
        if refusing != self._refusing and self._lease is not None:
            answer = Put(ALIVE + self.me, {"place": self._place, "refuses": [*refusing]}, self._lease)
            await self._store.txn([], [answer])
            self._refusing = refusing

    async def rebind(self) -> None:
        """Be this host here, as a user wants it.

        Raises:
            NetplugError: "forbidden": it lives elsewhere.
            StoreError: the store does not answer.
        """
        stored = await self._store.get(ALIVE + self.me)
        if stored is not None and stored.value.get("place", self._place) != self._place:
            words = "this host lives on another machine, or did less than 15 s ago"
            raise NetplugError("forbidden", words, hint="stop the daemon there first")
        await self._identity.rebind()
        self.look()

    # The record

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
        """Have all this looked at at once."""
        self._breaker.lost.set()

    # Living

    async def run(self) -> None:
        """Keep the lease, and the record, until cancelled; look at everything anew after a time without the store."""
        absent = not self._breaker.answers
        while True:
            try:
                await self.beat()
                if absent or not self._breaker.answers:
                    log.info("cluster.reached")
                    self._view.touch_all()
                absent, self._breaker.answers = False, True
            except Unreachable as exc:
                if not absent:
                    log.warning("cluster.unreachable", reason=str(exc))
                absent, self._breaker.answers = True, False
            soon = absent or not (self.admitted or self._identity.why)
            with suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_S if soon else BEAT_S):
                    await (asyncio.Event() if absent else self._breaker.lost).wait()

    async def beat(self) -> None:
        """Bring all this about once.

        Raises:
            StoreError: the store does not answer, or refuses.
        """
        self._breaker.lost.clear()
        async with self._living:
            try:
                if not self.epoch or not self.admitted:
                    await self._register()
                elif self._written and (self._written.vtep, self._written.notes) != (self.vtep, self.notes):
                    await self._write(begin=False)
                await self._keep_lease()
                await self._let_in()
            except NotAdmitted as exc:
                await self._refused(str(exc))

    async def ensure(self) -> None:
        """Register if nobody knows of this host, as at first, or when somebody or something has deleted its record.

        Raises:
            StoreError: the store does not answer, or refuses.
        """
        if self.epoch and self.me not in self._view.hosts():
            log.warning("host.forgotten", host=short(self.me))
        if not self.epoch or self.me not in self._view.hosts():
            await self.register()

    async def leave(self) -> None:
        """Say that nobody is here any more; what the containers need stays.

        Whoever stops may be about to start again, so that is told for as long as a lease outlives who is killed.
        """
        if self._lease is not None:
            await self._store.txn([], [Put(STOPPED + self.me, {}, await self._store.lease(TTL_S))])
        for lease in (self._lease, self._twin_lease):
            if lease is not None:
                await self._store.revoke(lease)
        self._lease = self._twin_lease = None


def _shut(why: str) -> str:
    return f"this host is not let into the cluster: {why} ({WAY_OUT})"
