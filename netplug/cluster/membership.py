"""Membership of this host: its record, whose epoch counts the starts of its daemon, and its heartbeat.

The heartbeat keeps an etcd lease alive. Nothing that a container needs depends on the lease: when it expires, other
hosts only learn that they get no changes from this host any more.

The record under the lease names the place where the daemon runs, and only one daemon can hold it. A second daemon with
the same id (from a copied disk) is not admitted. It announces itself under a lease of its own, and the first daemon
answers; from the answer the second one knows that it is a copy. Without an answer, the record is that of a daemon that
has just ended, and expires.
"""

import asyncio
import hashlib
from contextlib import suppress

import structlog

from netplug import __version__
from netplug.cluster.claims import CircuitBreaker, NotAdmitted
from netplug.cluster.identity import AdmissionGate, Identity
from netplug.cluster.records import ALIVE, HOSTS, SCHEMA, STOPPED, TWINS, HostRecord, as_put, parse
from netplug.cluster.shared_schema import SchemaRefused, agree, refusal
from netplug.cluster.view import View
from netplug.drivers.naming import short
from netplug.drivers.steps import IPAddress
from netplug.engine.conditions import Conditions, Difference
from netplug.engine.happenings import Happenings, Kind
from netplug.errors import NetplugError
from netplug.store.api import Compare, Put, StoreError, Unreachable
from netplug.store.schema import VERSION

log = structlog.get_logger(__name__)

TTL_S = 15.0
HEARTBEAT_S = TTL_S / 3
"""So two heartbeats may be lost."""
_RETRY_S = 0.5
DUPLICATE_HINT = (
    "if this is the copy, stop netplug, delete netplug.db in its state directory and start it again; "
    "if not, stop the other one and use netplug host rebind"
)


class Membership:
    """Admits this host to the cluster, and maintains its record and its lease.

    Attributes:
        epoch: number of this start of the daemon; 0 until the store has answered.
        vtep, notes: see `HostRecord`; call `wake` after a change.
    """

    def __init__(
        self,
        gate: AdmissionGate,
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
        self.happenings = Happenings()
        self._gate = gate
        # Also in a store with older data: only a registered host can recover it.
        self._store = gate.store.unguarded
        self._view = view
        self._breaker = breaker
        self._identity = identity
        self._conditions = conditions
        self._name = name
        self._place = hashlib.sha256(identity.machine.place.encode()).hexdigest()[:16]
        self._announcement_key = f"{TWINS}{self.me}/{self._place}"
        self._written: HostRecord | None = None
        self._lease: int | None = None
        self._announcement_lease: int | None = None
        self._answered: list[str] = []
        self._heartbeat_lock = asyncio.Lock()
        """Serializes heartbeats: two that find the lease expired would each take the other for a second daemon."""

    @property
    def lease(self) -> int | None:
        """The lease that shows that this host is alive; None while it has none."""
        return self._lease

    @property
    def admitted(self) -> bool:
        """Whether this host may write to the store."""
        return not self._gate.refusal

    # Admission

    async def register(self) -> None:
        """Begin a new epoch.

        Raises:
            NotAdmitted: another daemon has this id, or the id belongs to another machine.
            StoreError: the store does not answer, or refuses.
        """
        async with self._heartbeat_lock:
            await self._register()

    async def _register(self) -> None:
        await self._keep_lease()
        self.epoch = await self._write(begin=True)
        if not self.admitted:
            self._gate.refusal = ""
            self._view.touch_all()
        log.info("host.registered", host=short(self.me), epoch=self.epoch, vtep=str(self.vtep))

    async def _keep_lease(self) -> None:
        if self._identity.why:
            raise NotAdmitted(self._identity.why)
        await agree(self._store)
        if self._lease is not None and await self._store.keep_alive(self._lease):
            return
        if self._lease is not None:
            log.warning("host.lease_lost", host=short(self.me))
            self._lease = None
            self._view.touch_all()
        key = ALIVE + self.me
        while True:
            stored = await self._store.get(key)
            if stored is not None and stored.value.get("place", self._place) != self._place:
                await self._refuse_duplicate(stored.value.get("refuses"))
            lease = await self._store.lease(TTL_S)
            put = Put(key, {"place": self._place, "refuses": []}, lease)
            if await self._store.txn([Compare(key, stored.revision if stored else 0)], [put]) is not None:
                break
            await self._store.revoke(lease)  # the former life's record has just expired, or there is another daemon
        self._lease, self._answered = lease, []

    async def _refuse_duplicate(self, refuses: object) -> None:
        """Refuse to run beside another daemon of this id; permanently if that daemon has answered.

        Raises:
            NotAdmitted: always.
        """
        known = self._view.hosts().get(self.me)
        who = f"{known.name} at {known.vtep}" if known else "another machine"
        if isinstance(refuses, list) and self._place in refuses:
            await self._identity.refuse(f"this is a copy of a host that is alive: {who}")
            raise NotAdmitted(self._identity.why)
        raise NotAdmitted(f"another daemon runs as this host, or did some seconds ago: {who}")

    async def admit_command(self) -> None:
        """Admit a command that works without a daemon, if the daemon of this host would be admitted."""
        why = self._identity.why
        refused = ""
        if not why:
            with suppress(Unreachable):  # each request of the command fails with the reason
                refused = await refusal(self._store)
                stored = await self._store.get(ALIVE + self.me)
                if stored is not None and stored.value.get("place", self._place) != self._place:
                    why = "a daemon runs as this host on another machine"
        self._gate.refusal = _not_admitted(why, DUPLICATE_HINT) if why else refused and _not_admitted(refused)

    async def _report_refusal(self, why: str) -> None:
        """Report why this host is not admitted, and announce this daemon to the one that is."""
        self._gate.refusal = _not_admitted(why, DUPLICATE_HINT)
        self._breaker.begin()
        self._conditions.report("identity", [Difference("host", "identity", f"{why}; {DUPLICATE_HINT}")])
        if self._announcement_lease is None or not await self._store.keep_alive(self._announcement_lease):
            self._announcement_lease = await self._store.lease(TTL_S)
            announcement = Put(
                self._announcement_key, {"name": self._name, "vtep": str(self.vtep)}, self._announcement_lease
            )
            await self._store.txn([], [announcement])

    async def _handle_copies(self) -> None:
        """Report copies of this host and answer them; withdraw an own announcement."""
        copies = self._view.copies(self.me)
        found = [
            Difference("host", "identity", f"a copy of this host runs at {copy}, and is not admitted")
            for place, copy in sorted(copies.items())
            if place != self._place
        ]
        self._conditions.report("identity", found)
        if self._announcement_lease is not None:
            await self._store.revoke(self._announcement_lease)
            self._announcement_lease = None
        answering = sorted(copies.keys() - {self._place})
        if answering != self._answered and self._lease is not None:
            answer = Put(ALIVE + self.me, {"place": self._place, "refuses": [*answering]}, self._lease)
            await self._store.txn([], [answer])
            self._answered = answering

    async def rebind(self) -> None:
        """Use this host's id on this machine, as the user requested.

        Raises:
            NetplugError: "forbidden": a daemon runs as this host on another machine.
            StoreError: the store does not answer.
        """
        stored = await self._store.get(ALIVE + self.me)
        if stored is not None and stored.value.get("place", self._place) != self._place:
            words = "this host is alive on another machine, or was less than 15 s ago"
            raise NetplugError("forbidden", words, hint="stop the daemon there first")
        await self._identity.rebind()
        self.wake()

    # The record

    async def _write(self, *, begin: bool) -> int:
        """Write this host's record and return its epoch. `begin`: start a new epoch."""
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
            since = next((it.since for it in (before, self._written) if it and it.vtep == self.vtep), revision)
            record = HostRecord(
                self._name,
                self.vtep,
                epoch,
                since,
                self.notes,
                follows=True,
                answers=True,
                release=__version__,
                schema=VERSION,
            )
            compare = Compare(key, stored.revision if stored else 0)
            if await self._store.txn([compare], [as_put(key, record)]) is not None:
                self._written = record
                return epoch

    def wake(self) -> None:
        """Run the next heartbeat now."""
        self._breaker.lost.set()

    # Heartbeat

    async def run(self) -> None:
        """Keep lease and record until cancelled; reconcile everything after the store was unreachable."""
        absent = not self._breaker.answers
        while True:
            try:
                await self.heartbeat()
                if absent or not self._breaker.answers:
                    log.info("cluster.reached")
                    self.happenings.tell(Kind.STORE_RETURNED, "store", "the shared store answers again")
                    self._view.touch_all()
                absent, self._breaker.answers = False, True
            except Unreachable as exc:
                if not absent:
                    log.warning("cluster.unreachable", reason=str(exc))
                    self.happenings.tell(Kind.STORE_LOST, "store", "the shared store does not answer", cause=str(exc))
                absent, self._breaker.answers, self._breaker.why = True, False, str(exc)
            except StoreError:
                self._breaker.begin()  # it answers, and refuses
                raise
            soon = absent or not (self.admitted or self._identity.why)
            with suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_S if soon else HEARTBEAT_S):
                    await (asyncio.Event() if absent else self._breaker.lost).wait()

    async def heartbeat(self) -> None:
        """Register if needed, update the record, renew the lease, and handle copies of this host.

        Raises:
            StoreError: the store does not answer, or refuses.
        """
        self._breaker.lost.clear()
        async with self._heartbeat_lock:
            try:
                if not self.epoch or not self.admitted:
                    await self._register()
                elif self._written and (self._written.vtep, self._written.notes) != (self.vtep, self.notes):
                    await self._write(begin=False)
                await self._keep_lease()
                await self._handle_copies()
                self._conditions.report("schema", ())
            except SchemaRefused as exc:
                self._gate.refusal = _not_admitted(str(exc))
                self._breaker.begin()
                self._conditions.report("schema", [Difference("store", SCHEMA, str(exc))])
            except NotAdmitted as exc:
                await self._report_refusal(str(exc))

    async def ensure(self) -> None:
        """Register if this host has no record: at the first start, or after the record was deleted; restore its own.

        Raises:
            StoreError: the store does not answer, or refuses.
        """
        if self.epoch and self.me not in self._view.hosts():
            log.warning("host.forgotten", host=short(self.me))
        seen = self._view.hosts().get(self.me)
        if not self.epoch or seen is None:
            await self.register()
        elif self._written and (seen.vtep, seen.name) != (self._written.vtep, self._written.name):
            # Another host wrote it, to get what is sent to this one. If it is only older, this writes the same again.
            log.warning("host.record_changed", host=short(self.me), name=seen.name, vtep=str(seen.vtep))
            await self._write(begin=False)

    async def leave(self) -> None:
        """Revoke the leases, and write that the daemon was stopped; the data plane stays.

        The daemon may be about to restart. So the host counts as alive for `TTL_S` more, as after a crash.
        """
        if self._lease is not None:
            await self._store.txn([], [Put(STOPPED + self.me, {}, await self._store.lease(TTL_S))])
        for lease in (self._lease, self._announcement_lease):
            if lease is not None:
                await self._store.revoke(lease)
        self._lease = self._announcement_lease = None


def _not_admitted(why: str, hint: str = "") -> str:
    return f"this host is not admitted to the cluster: {why}" + (f" ({hint})" if hint else "")
