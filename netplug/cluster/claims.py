"""Leases of pools that hosts share: a claim in the shared store, and a copy here.

The copy is what this host knows of itself while the shared store cannot be reached, also after a restart. The shared
store decides who has an address; what it has of this host and the copy has not is let go of again (`settle`), and what
it has lost is claimed anew. So nothing need be remembered of a release that could not be told.

Gateways belong to a network as a whole, not to a host: whoever defines the network writes them.
"""

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from netplug.ipam.lease import IPAddress, Lease, OwnerKind
from netplug.ipam.pool import GLOBAL, Pool
from netplug.store.api import Compare, Delete, Put, Record, Restored, Store, StoreError, Unreachable
from netplug.store.leases import OPS_PER_TXN, StoredLeases, lease_key, lease_of, leases_prefix, stamped

log = structlog.get_logger(__name__)

PATIENCE_S = 10.0
"""For which a claim waits until a store with older data is mended: hosts find that out within 5 s (a beat of their
membership) and tell it all in another; dockerd waits 15 s for a plugin."""
_OF_NETWORKS = frozenset({OwnerKind.GATEWAY, OwnerKind.AUX})


@dataclass(frozen=True, slots=True)
class Claim:
    """A lease in the shared store. `host`: the id of who has it; empty for a gateway. `revision`: of its record."""

    lease: Lease
    host: str
    revision: int


class NotAdmitted(Unreachable):
    """The store answers, and this host may not write to it; nothing was done."""


class CircuitBreaker:
    """Whether the shared store answers, as known by whoever asked last."""

    def __init__(self) -> None:
        self.answers = True
        self.lost = asyncio.Event()
        self.closed = asyncio.Event()
        self._opened = asyncio.Event()
        self._opened.set()

    def close(self) -> None:
        """Let nobody have anything new until hosts have told a store with older data what they have."""
        self.closed.set()
        self._opened.clear()

    def open(self) -> None:
        """Go on."""
        self.closed.clear()
        self._opened.set()

    async def opened(self, until: float | None = None) -> None:
        """Wait a moment until something new may be had. `until`: a time of the loop, else `PATIENCE_S` from now.

        Raises:
            Restored: not in that time.
        """
        try:
            async with asyncio.timeout_at(until or asyncio.get_running_loop().time() + PATIENCE_S):
                await self._opened.wait()
        except TimeoutError:
            words = "the store that hosts share has older data than before, and some hosts have not told what they have"
            raise Restored(f"{words}; try again in a moment") from None

    def check(self) -> None:
        """Refuse at once what would wait in vain.

        Raises:
            Unreachable: the store did not answer somebody else.
        """
        if not self.answers:
            raise Unreachable("the store that hosts share does not answer; what they share cannot be changed")

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Ask, if that is worth it, and tell all others when there was no answer."""
        self.check()
        try:
            yield
        except NotAdmitted:
            raise
        except Unreachable:
            self.answers = False
            self.lost.set()
            raise


class SharedLeases:
    """`LeaseStore` over a host's own store and one that it shares; pools of space "global" are in both.

    `reach`: says whether it is worth asking the shared store; where not, its deadline need not be waited for.
    """

    def __init__(self, local: Store, shared: Store, host: str, breaker: "CircuitBreaker | None" = None) -> None:
        self._own = StoredLeases(local)
        self._shared = StoredLeases(shared, host)
        self._store = shared
        self._host = host
        self._mine: dict[str, Lease] = {}
        self._claiming: set[str] = set()
        self.breaker = breaker or CircuitBreaker()

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Keys of this host's records that cannot be read, and why."""
        return self._own.unreadable

    async def load(self) -> tuple[Sequence[Pool], Sequence[Lease]]:
        """Return what this host has; nobody else is asked."""
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
        key = lease_key(lease.pool, lease.address)
        self._claiming.add(key)
        try:
            if not await self._claim_shared(lease):
                return False
            self._mine[key] = lease
            try:
                await self._own.drop(lease.pool, lease.address)  # of a life that another store knew
                return await self._own.claim(lease)
            except BaseException:
                del self._mine[key]
                await self._forget(lease.pool, lease.address)
                raise
        finally:
            self._claiming.discard(key)

    async def _claim_shared(self, lease: Lease) -> bool:
        until = asyncio.get_running_loop().time() + PATIENCE_S
        for last in (False, True):
            await self.breaker.opened(until)
            try:
                with self.breaker.asking():
                    return await self._shared.claim(lease)
            except Restored:
                self.breaker.close()
                if last:
                    raise
        raise AssertionError("the last try returns or raises")

    async def update(self, lease: Lease) -> bool:
        """Store the new owner of a lease; False: there is no such lease."""
        if not _is_claim(lease):
            return await self._own.update(lease)
        with self.breaker.asking():
            if not await self._shared.update(lease):
                return False
        self._mine[lease_key(lease.pool, lease.address)] = lease
        return await self._own.update(lease)

    async def drop(self, pool_id: str, address: IPAddress) -> None:
        """Delete a lease; absent is success. While the shared store does not answer others see it a while longer."""
        if self._mine.pop(lease_key(pool_id, address), None) is not None:
            await self._forget(pool_id, address)
        await self._own.drop(pool_id, address)

    async def _forget(self, pool_id: str, address: IPAddress) -> None:
        try:
            with self.breaker.asking():
                await self._shared.drop(pool_id, address)
        except StoreError as exc:
            log.warning("claim.kept", address=str(address), reason=str(exc))

    async def save_pool(self, pool: Pool) -> bool:
        """Store a pool, new or changed; what overlaps is found where a network is defined."""
        return await self._own.save_pool(pool)

    async def drop_pool(self, pool_id: str) -> None:
        """Delete a pool with all leases that this host has of it."""
        for lease in [lease for lease in self._mine.values() if lease.pool == pool_id]:
            del self._mine[lease_key(lease.pool, lease.address)]
            await self._forget(pool_id, lease.address)
        await self._own.drop_pool(pool_id)

    # What is in the shared store

    async def claims(self, pool_id: str) -> list[Claim]:
        """Return the leases that all hosts have of a pool; what cannot be read is left out, and logged.

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

    async def settle(
        self, pool_ids: Iterable[str], *, vouched: Collection[str] | None = None
    ) -> list[tuple[Lease, str]]:
        """Make the shared store agree with what this host has, and return what another host has of that, with its id.

        `vouched`: the hosts whose claims count; of others what the store says is out of date. None: all.

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
            for key in before & self._mine.keys() & claims.keys():
                claim = claims[key]
                if claim.host == self._host:
                    continue
                if vouched is None or claim.host in vouched:
                    lost.append((self._mine[key], claim.host))
                    continue
                log.warning("claim.won", address=str(claim.lease.address), other=claim.host)
                put = Put(key, stamped(self._mine[key], self._host))
                await self._store.txn([Compare(key, claim.revision)], [put])
        return lost

    async def protect(self, claims: Iterable[tuple[Lease, str]]) -> None:
        """Claim for others, by id of the host, what nobody has claimed and this host did not get itself."""
        wanted = [(lease_key(lease.pool, lease.address), lease, host) for lease, host in claims]
        wanted = [one for one in wanted if one[0] not in self._mine]
        for start in range(0, len(wanted), OPS_PER_TXN):
            some = wanted[start : start + OPS_PER_TXN]
            puts = [(Compare(key, 0), Put(key, stamped(lease, host))) for key, lease, host in some]
            if await self._store.txn([it for it, _ in puts], [it for _, it in puts]) is None:
                for compare, put in puts:  # some are there
                    await self._store.txn([compare], [put])


def gateways(leases: Iterable[Lease]) -> list[Put]:
    """Return the operations that write the leases of a network as a whole."""
    return [Put(lease_key(lease.pool, lease.address), stamped(lease, "")) for lease in leases]


async def drop_all(store: Store, pool_id: str) -> None:
    """Delete all leases of a pool that nobody has any more."""
    records: list[Record] = (await store.range(leases_prefix(pool_id)))[0]
    for start in range(0, len(records), OPS_PER_TXN):
        await store.txn([], [Delete(record.key) for record in records[start : start + OPS_PER_TXN]])


def _is_claim(lease: Lease) -> bool:
    return lease.pool.startswith(f"{GLOBAL}/") and lease.owner.kind not in _OF_NETWORKS
