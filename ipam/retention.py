"""Sticky pools: a released address is kept for the name that had it, and nobody else gets it meanwhile.

The one thing to know: what is kept is no lease. It counts as taken, but whoever asks for exactly this address gets it,
and so does, when nothing else is free, whoever asks for any: what was kept longest goes first. It is stored under the
lease's key with the time at which it ends; that time is compared with the clock where it matters, so that sweeping
(`expire`) only tidies up.

What was promised to somebody is kept in the same way, in every pool, as long as the promise is repeated (`promise`). Of
that memory alone knows until the address is released for the first time.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from .lease import IPAddress, Lease, Owner
from .ledger import Ledger, unknown_pool
from .pool import Pool
from .store import LeaseStore


class Retention:
    """The allocator's part that keeps; see there."""

    _store: LeaseStore
    _ledgers: dict[str, Ledger]
    _clock: Callable[[], float]

    async def stick(self, pool_id: str, seconds: int) -> None:
        """Keep addresses of a pool that are released from now on for so long; with 0 forget those that are kept.

        Raises:
            IpamError: not_found.
        """
        ledger = self._live(pool_id)
        before = ledger.pool.sticky_s
        if before != seconds:
            await self._change(ledger, lambda pool: pool.sticky(seconds), lambda pool: pool.sticky(before))
        for kept in ledger.kept() if not seconds else ():
            await self._forget(ledger, kept)

    def promise(self, pool_id: str, names: Mapping[IPAddress, str]) -> None:
        """Keep addresses for those who will ask for just them again: these ones, by name, and no others any more.

        An address that somebody has now is kept when it is released. An unknown pool keeps nothing.
        """
        if ledger := self._ledgers.get(pool_id):
            ledger.promise({int(address): name for address, name in names.items()}, self._clock())

    def kept(self, pool_id: str) -> Iterator[Lease]:
        """Return what a pool keeps now, kept longest first; nothing for an unknown pool."""
        ledger, now = self._ledgers.get(pool_id), self._clock()
        return iter([kept for kept in ledger.kept() if kept.until > now] if ledger else ())

    def kept_for(self, pool_id: str, owner: Owner, address: IPAddress | None) -> Lease | None:
        """Return what the next request with these arguments takes of what is kept, while other addresses are free."""
        ledger = self._ledgers.get(pool_id)
        if ledger is None:
            return None
        return ledger.kept_for(owner, self._clock()) if address is None else ledger.kept_at(address)

    async def expire(self) -> None:
        """Forget what was kept long enough."""
        now = self._clock()
        for ledger in list(self._ledgers.values()):
            for kept in ledger.kept():
                if kept.until <= now:
                    await self._forget(ledger, kept)

    async def _forget(self, ledger: Ledger, kept: Lease) -> None:
        """Free a kept address, unless it has gone to somebody in the meantime."""
        if not ledger.keeps(kept):
            return
        ledger.begin_claim(kept)
        await self._drop_kept(ledger, kept)

    async def _drop_kept(self, ledger: Ledger, kept: Lease) -> None:
        try:
            await self._store.drop(kept.pool, kept.address)
        except BaseException:
            ledger.abandon(kept)
            raise
        ledger.forget(kept)

    async def _claim(self, ledger: Ledger, lease: Lease) -> bool:
        """Lease an address in the store too, also one that is kept; False: another host has it."""
        kept = ledger.begin_claim(lease)
        try:
            won = (kept is not None and await self._store.update(lease)) or await self._store.claim(lease)
        except BaseException:
            ledger.abandon(lease)
            if kept is not None:
                with suppress(Exception):
                    await (
                        self._store.update(kept) if ledger.keeps(kept) else self._store.drop(kept.pool, kept.address)
                    )
            raise
        if not won:
            ledger.refuse(lease)
            return False
        if ledger.closing or self._ledgers.get(lease.pool) is not ledger:
            # The pool was deleted meanwhile, and its leases may have been counted before this one was there.
            ledger.abandon(lease)
            await self._store.drop(lease.pool, lease.address)
            raise unknown_pool(lease.pool)
        ledger.settle(lease)
        return True

    def _live(self, pool_id: str) -> Ledger:
        raise NotImplementedError

    async def _change(self, ledger: Ledger, change: Callable[[Pool], Pool], undo: Callable[[Pool], Pool]) -> bool:
        raise NotImplementedError
