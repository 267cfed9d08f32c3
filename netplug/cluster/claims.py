"""Leases of pools that hosts share: a claim in the shared store, and a copy in this host's own store.

The shared store decides which host has an address. The copy holds this host's leases while the shared store is
unreachable, also after a restart. `reconcile` releases claims of this host that have no copy, and repeats claims that
the shared store has lost. So a release that failed need not be load_mark.

Gateways belong to the network, not to a host; they are written with the network's definition.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from weakref import WeakValueDictionary

import structlog

from netplug.ipam.lease import IPAddress, Lease, OwnerKind
from netplug.ipam.pool import GLOBAL, Pool
from netplug.store.api import Compare, Delete, Put, Record, Restored, Store, StoreError, Unreachable
from netplug.store.leases import OPS_PER_TXN, StoredLeases, lease_key, lease_of, leases_prefix, stamped

log = structlog.get_logger(__name__)

PATIENCE_S = 10.0
"""Longest wait of a claim for the recovery of a store with older data. Hosts detect such data within 5 s (a heartbeat),
and have written their records within another 5 s; dockerd waits 15 s for a plugin.
"""
FIRST_ANSWER_S = 30.0
"""Longest wait of a claim, from a failed start on, for the store's first answer to this daemon. After a power failure
hosts and etcd start together, and no engine starts a container again whose network was refused. dockerd has no deadline
for an answer of a plugin.
"""
_OF_NETWORKS = frozenset({OwnerKind.GATEWAY, OwnerKind.AUX})


@dataclass(frozen=True, slots=True)
class Claim:
    """A lease in the shared store. `host`: the id of its host; empty for a gateway. `revision`: of its record."""

    lease: Lease
    host: str
    revision: int


class NotAdmitted(Unreachable):
    """The shared store answers, but this host may not write to it; nothing was changed."""


class CircuitBreaker:
    """Fails requests to the shared store at once while it does not answer, and delays claims during a recovery.

    Claims of a daemon that has just started, and was not answered yet, wait for the first answer, see `begun`.

    Attributes:
        answers: whether the last request was answered.
        why: why it was not, in words.
        lost: set when a request failed, to wake the heartbeat.
        closed: set from `suspend` to `resume`.
    """

    def __init__(self) -> None:
        self.answers = True
        self.why = ""
        self.lost = asyncio.Event()
        self.closed = asyncio.Event()
        self._opened = asyncio.Event()
        self._opened.set()
        self._begun = asyncio.Event()
        self._begun.set()

    def await_first_answer(self) -> None:
        """Have claims wait for the first answer to this daemon."""
        self._begun.clear()
        asyncio.get_running_loop().call_later(FIRST_ANSWER_S, self.begin)

    def begin(self) -> None:
        """Let claims wait no longer: the store has answered, or refused, or the daemon stops."""
        self._begun.set()

    async def begun(self) -> None:
        """Wait for the first answer to this daemon, for some time after its start."""
        if not self._begun.is_set():
            log.info("claim.waits", reason="the store has not answered this daemon yet", at_most_s=FIRST_ANSWER_S)
            await self._begun.wait()

    def suspend(self) -> None:
        """Delay new claims until hosts have written their records to a store with older data."""
        self.closed.set()
        self._opened.clear()

    def resume(self) -> None:
        """Allow new claims again."""
        self.closed.clear()
        self._opened.set()

    async def resumed(self, until: float | None = None) -> None:
        """Wait until new claims are allowed. `until`: a time of the loop; default: `PATIENCE_S` from now.

        Raises:
            Restored: the recovery takes longer.
        """
        try:
            async with asyncio.timeout_at(until or asyncio.get_running_loop().time() + PATIENCE_S):
                await self._opened.wait()
        except TimeoutError:
            words = "the shared store was restored from older data, and some hosts have not yet written their records"
            raise Restored(f"{words}; try again in some seconds") from None

    def check(self) -> None:
        """Fail at once if the last request was not answered, instead of waiting for the deadline.

        Raises:
            Unreachable: the last request was not answered.
        """
        if not self.answers:
            why = f": {self.why}" if self.why else ""
            raise Unreachable(f"the shared store does not answer, so networks of the cluster cannot be changed{why}")

    @contextmanager
    def request(self) -> Iterator[None]:
        """Guard a request: `check` before it, and note if it gets no answer."""
        self.check()
        try:
            yield
        except NotAdmitted:
            raise
        except Unreachable as exc:
            self.answers, self.why = False, str(exc)
            self.lost.set()
            raise


class SharedLeases:
    """`LeaseStore` over a host's own store and the shared one; leases of address space "global" are in both.

    Each change takes several requests. So changes of one address wait for each other; otherwise what an earlier one
    wrote last would be noted as the newest.
    """

    def __init__(self, local: Store, shared: Store, host: str, breaker: "CircuitBreaker | None" = None) -> None:
        self._own = StoredLeases(local)
        self._shared = StoredLeases(shared, host)
        self._store = shared
        self._host = host
        self._mine: dict[str, Lease] = {}
        self._claiming: set[str] = set()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.breaker = breaker or CircuitBreaker()

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Keys of this host's records that cannot be read, and why."""
        return self._own.unreadable

    async def load(self) -> tuple[Sequence[Pool], Sequence[Lease]]:
        """Return the pools and leases of this host, without the shared store."""
        pools, leases = await self._own.load()
        self._mine = {lease_key(lease.pool, lease.address): lease for lease in leases if _is_claim(lease)}
        return pools, leases

    async def claim(self, lease: Lease) -> bool:
        """Store a new lease; False: another host has the address.

        Raises:
            StoreError: the shared store does not answer, or refuses.
        """
        if not _is_claim(lease):
            return await self._own.claim(lease)
        await self.breaker.begun()
        async with self._changing(key := lease_key(lease.pool, lease.address)):
            leftover = key not in self._mine
            if not await self._claim_shared(lease) and not (leftover and await self._update_shared(lease, lost=True)):
                return False
            self._mine[key] = lease
            try:
                await self._own.drop(lease.pool, lease.address)  # a leftover of a cluster that the store has lost
                return await self._own.claim(lease)
            except BaseException:
                del self._mine[key]
                await self._release_claim(lease.pool, lease.address)
                raise

    @asynccontextmanager
    async def _changing(self, key: str) -> AsyncIterator[None]:
        """Wait for earlier changes of an address, and keep `reconcile` from it during the block."""
        async with self._turns.setdefault(key, asyncio.Lock()):
            self._claiming.add(key)
            try:
                yield
            finally:
                self._claiming.discard(key)

    async def _claim_shared(self, lease: Lease) -> bool:
        until = asyncio.get_running_loop().time() + PATIENCE_S
        for last in (False, True):
            await self.breaker.resumed(until)
            try:
                with self.breaker.request():
                    return await self._shared.claim(lease)
            except Restored:
                self.breaker.suspend()
                if last:
                    raise
        raise AssertionError("the last try returns or raises")

    async def _update_shared(self, lease: Lease, *, lost: bool) -> bool:
        """Write the owner of a claim of this host. `lost`: if there is none any more, claim the address anew.

        A claim that a former daemon died too early to note is released by `reconcile`, some time after the start. One
        of a running daemon is gone when its host was forgotten, or the store was restored from older data.
        """
        with self.breaker.request():
            if await self._shared.update(lease):
                return True
        return lost and await self._claim_shared(lease)

    async def update(self, lease: Lease) -> bool:
        """Store the new owner of a lease; False: there is no such lease.

        A lease that only waits for its release is noted here also if the shared store does not answer, or has lost it;
        `reconcile` does the rest.
        """
        if not _is_claim(lease):
            return await self._own.update(lease)
        if lease.owner.kind is not OwnerKind.PENDING:
            await self.breaker.begun()
        async with self._changing(key := lease_key(lease.pool, lease.address)):
            mine = key in self._mine
            waits = mine and lease.owner.kind is OwnerKind.PENDING
            try:
                if not await self._update_shared(lease, lost=mine and not waits) and not waits:
                    self._mine.pop(key, None)  # another host has it
                    await self._own.drop(lease.pool, lease.address)
                    return False
            except StoreError as exc:
                if not waits:
                    raise
                log.warning("claim.kept", address=str(lease.address), reason=str(exc))
            self._mine[key] = lease
            return await self._own.update(lease)

    async def drop(self, pool_id: str, address: IPAddress) -> None:
        """Delete a lease; absent is success. If the shared store does not answer, `reconcile` does it."""
        async with self._changing(key := lease_key(pool_id, address)):
            if self._mine.pop(key, None) is not None:
                await self._release_claim(pool_id, address)
            await self._own.drop(pool_id, address)

    async def _release_claim(self, pool_id: str, address: IPAddress) -> None:
        try:
            with self.breaker.request():
                await self._shared.drop(pool_id, address)
        except StoreError as exc:
            log.warning("claim.kept", address=str(address), reason=str(exc))

    async def save_pool(self, pool: Pool) -> bool:
        """Store a new or changed pool. Overlaps are refused when a network is defined."""
        return await self._own.save_pool(pool)

    async def drop_pool(self, pool_id: str) -> None:
        """Delete a pool and this host's leases in it."""
        for lease in [lease for lease in self._mine.values() if lease.pool == pool_id]:
            async with self._changing(key := lease_key(pool_id, lease.address)):
                if self._mine.pop(key, None) is not None:
                    await self._release_claim(pool_id, lease.address)
        await self._own.drop_pool(pool_id)

    # The shared store

    async def claims(self, pool_id: str) -> list[Claim]:
        """Return the leases of all hosts in a pool. Records that cannot be read are skipped and logged.

        Raises:
            StoreError: the shared store does not answer.
        """
        found = []
        for record in (await self._store.range(leases_prefix(pool_id)))[0]:
            try:
                lease, host = lease_of(record)
            except StoreError as exc:
                log.warning("claim.unreadable", key=record.key, error=str(exc))
                continue
            found.append(Claim(lease, host, record.revision))
        return found

    async def reconcile(
        self, pool_ids: Iterable[str], *, vouched: Collection[str] | None = None
    ) -> list[tuple[Lease, str]]:
        """Make the claims in the shared store agree with this host's leases.

        Return those leases that another host holds, with the id of that host.

        `vouched`: the hosts whose claims are up to date; claims of other hosts are overwritten. None: all hosts.

        Raises:
            StoreError: the shared store does not answer.
        """
        lost: list[tuple[Lease, str]] = []
        for pool_id in pool_ids:
            before = {key for key, lease in self._mine.items() if lease.pool == pool_id}
            claims = {lease_key(pool_id, claim.lease.address): claim for claim in await self.claims(pool_id)}
            for key, claim in claims.items():
                if claim.host == self._host and key not in self._mine and key not in self._claiming:
                    log.info("claim.released", address=str(claim.lease.address))
                    await self._store.txn([Compare(key, claim.revision)], [Delete(key)])
            missing = [key for key in before & self._mine.keys() if key not in claims]
            for key in missing:
                lease = self._mine.get(key)
                if lease is not None:
                    log.warning("claim.renewed", address=str(lease.address))
                    await self._store.txn([Compare(key, 0)], [Put(key, stamped(lease, self._host))])
            for key in before & claims.keys():
                claim, lease = claims[key], self._mine.get(key)
                if lease is None:  # it was released meanwhile
                    continue
                if claim.host == self._host:
                    await self._correct(key, claim)
                    continue
                if vouched is None or claim.host in vouched:
                    lost.append((lease, claim.host))
                    continue
                log.warning("claim.won", address=str(claim.lease.address), other=claim.host)
                put = Put(key, stamped(lease, self._host))
                await self._store.txn([Compare(key, claim.revision)], [put])
        return lost

    async def _correct(self, key: str, claim: Claim) -> None:
        """Write who has an address of this host, if the shared store did not hear of it."""
        lease = self._mine.get(key)
        if lease is not None and lease != claim.lease and key not in self._claiming:
            await self._store.txn([Compare(key, claim.revision)], [Put(key, stamped(lease, self._host))])

    async def claim_for_others(self, claims: Iterable[tuple[Lease, str]]) -> None:
        """Claim addresses on behalf of other hosts, unless they are claimed or leased to this host."""
        wanted = [(lease_key(lease.pool, lease.address), lease, host) for lease, host in claims]
        wanted = [one for one in wanted if one[0] not in self._mine]
        for start in range(0, len(wanted), OPS_PER_TXN):
            some = wanted[start : start + OPS_PER_TXN]
            puts = [(Compare(key, 0), Put(key, stamped(lease, host))) for key, lease, host in some]
            if await self._store.txn([it for it, _ in puts], [it for _, it in puts]) is None:
                for compare, put in puts:  # some are claimed already
                    await self._store.txn([compare], [put])


def gateways(leases: Iterable[Lease]) -> list[Put]:
    """Return the operations that write the leases of a network's gateways."""
    return [Put(lease_key(lease.pool, lease.address), stamped(lease, "")) for lease in leases]


async def drop_all(store: Store, pool_id: str, compares: Sequence[Compare]) -> None:
    """Delete all leases of a pool whose network is deleted, as long as the comparisons hold."""
    records: list[Record] = (await store.range(leases_prefix(pool_id)))[0]
    for start in range(0, len(records), OPS_PER_TXN):
        await store.txn(compares, [Delete(record.key) for record in records[start : start + OPS_PER_TXN]])


def _is_claim(lease: Lease) -> bool:
    return lease.pool.startswith(f"{GLOBAL}/") and lease.owner.kind not in _OF_NETWORKS
