"""Sticky pools: they retain a released address for the name of its last owner.

The one thing to know: a retained address is not a lease. The allocator does not choose it while other addresses are
free; when none is, it gives away the one retained longest. A request for exactly this address gets it. It is stored
under the lease's key with its expiry time. Requests compare that time with the clock, so `expire` only cleans up.

A reserved address (`reserve`) is retained in the same way, in every pool, as long as the reservation is repeated.
Reservations are in memory only, until the address is released for the first time.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from .lease import IPAddress, Lease, Owner
from .ledger import Ledger, unknown_pool
from .pools import Pools


class Retention(Pools):
    """The part of the allocator that retains addresses."""

    _clock: Callable[[], float]

    async def set_sticky(self, pool_id: str, seconds: int) -> None:
        """Retain addresses of a pool for so long after their release; 0 also frees those that are retained now.

        Raises:
            IpamError: not_found.
        """
        ledger = self._live(pool_id)
        before = ledger.pool.sticky_s
        if before != seconds:
            await self._change(ledger, lambda pool: pool.sticky(seconds), lambda pool: pool.sticky(before))
        for retained in ledger.retained() if not seconds else ():
            await self._forget(ledger, retained)

    def reserve(self, pool_id: str, names: Mapping[IPAddress, str]) -> None:
        """Reserve addresses for the names that will request exactly these; this replaces all earlier reservations.

        An address that is leased now is retained once it is released. An unknown pool is ignored.
        """
        if ledger := self._ledgers.get(pool_id):
            ledger.reserve({int(address): name for address, name in names.items()}, self._clock())

    def retained(self, pool_id: str) -> Iterator[Lease]:
        """Return the retained addresses of a pool, longest retained first; an unknown pool has none."""
        ledger, now = self._ledgers.get(pool_id), self._clock()
        return iter([retained for retained in ledger.retained() if retained.until > now] if ledger else ())

    def retained_for(self, pool_id: str, owner: Owner, address: IPAddress | None) -> Lease | None:
        """Return the retained address that a request with these arguments would get, if any."""
        ledger = self._ledgers.get(pool_id)
        if ledger is None:
            return None
        return ledger.retained_for(owner, self._clock()) if address is None else ledger.retained_at(address)

    async def expire(self) -> None:
        """Free the retained addresses whose time is over."""
        now = self._clock()
        for ledger in list(self._ledgers.values()):
            for retained in ledger.retained():
                if retained.until <= now:
                    await self._forget(ledger, retained)

    async def _forget(self, ledger: Ledger, retained: Lease) -> None:
        """Free a retained address, unless somebody has leased it meanwhile."""
        if not ledger.retains(retained):
            return
        ledger.begin_claim(retained)
        await self._drop_retained(ledger, retained)

    async def _drop_retained(self, ledger: Ledger, retained: Lease) -> None:
        try:
            await self._store.drop(retained.pool, retained.address)
        except BaseException:
            ledger.abandon(retained)
            raise
        ledger.forget(retained)

    async def _claim(self, ledger: Ledger, lease: Lease) -> bool:
        """Write a lease to the store, also of a retained address. False: another host has the address."""
        retained = ledger.begin_claim(lease)
        try:
            won = (retained is not None and await self._store.update(lease)) or await self._store.claim(lease)
        except BaseException:
            ledger.abandon(lease)
            if retained is not None:
                with suppress(Exception):
                    if ledger.retains(retained):
                        await self._store.update(retained)
                    else:
                        await self._store.drop(retained.pool, retained.address)
            raise
        if not won:
            ledger.refuse(lease)
            return False
        if ledger.closing or self._ledgers.get(lease.pool) is not ledger:
            # The pool was deleted meanwhile; its leases may have been listed before this one was written.
            ledger.abandon(lease)
            await self._store.drop(lease.pool, lease.address)
            raise unknown_pool(lease.pool)
        ledger.settle(lease)
        return True
