"""The allocator: addresses for endpoints, out of the `Pools` that networks have.

The one thing to know: a request marks the address in memory before it asks the store, and unmarks it if the store
refuses. So two tasks never get the same address, and no task waits for a lock. A release goes the other way round: an
address is free once the store has deleted its lease. All state is in the store, and `load` reads it. The one exception
is what a restarted dockerd still has to replay (see `begin_session`).
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from time import time

from .errors import IpamError, Kind
from .lease import IPAddress, Lease, Owner, OwnerKind
from .ledger import Ledger, unknown_pool
from .pool import IPNetwork, Pool, Space, Usage
from .retention import Retention
from .scan_offset import Start, default_start
from .shared_subnet import refuse_foreign
from .store import LeaseStore

ADDRESS_TRIES = 1024  # addresses of other hosts that one request skips; each costs one transaction
SECOND_TRIES = 16  # addresses of other hosts that are tried again when the pool has no other


class Allocator(Retention):
    """All pools of a host. Call `load` first. `clock`: returns seconds since the epoch.

    `called`: returns how an error names an owner.
    """

    def __init__(
        self,
        store: LeaseStore,
        spaces: Sequence[Space],
        *,
        start: Start = default_start,
        clock: Callable[[], float] = time,
    ) -> None:
        self._store = store
        self._clock = clock
        self.called: Callable[[Owner], str] = str
        self._guessed = False
        self._spaces = {space.name: space for space in spaces}
        self._start = start
        self._clear()

    async def load(self) -> None:
        """Read pools and leases from the store. Leases without a pool, left by a crash, are deleted there."""
        pools, leases = await self._store.load()
        self._clear()
        for pool in pools:
            self._add(pool)
        orphans = []
        for lease in sorted(leases, key=lambda lease: lease.until):
            if lease.pool in self._ledgers:
                self._ledgers[lease.pool].settle(lease)
            else:
                orphans.append(lease)
        for lease in orphans:
            await self._store.drop(lease.pool, lease.address)

    @property
    def unreadable(self) -> Mapping[str, str]:
        """The keys of records that cannot be read, with the reason."""
        return self._store.unreadable

    def begin_session(self) -> None:
        """Expect a restarted dockerd to replay its requests (RequiresRequestReplay).

        From now on a `request_pool` claims one of the pool's existing holds, before it adds a new one. Each lease in a
        pool with holds can be requested once more by its address; that confirms the lease and keeps its owner.
        """
        self._guessed = False
        for ledger in self._ledgers.values():
            ledger.begin_session()

    def guess_session(self) -> None:
        """Begin a session at our own start: dockerd may be in the midst of its replay, and does not begin anew."""
        self.begin_session()
        self._guessed = True

    def end_guess(self) -> None:
        """End a session that was only guessed. All remains, since dockerd may have replayed to our predecessor."""
        if self._guessed:
            for ledger in self._ledgers.values():
                ledger.forgotten()
                ledger.unreplayed = 0
        self._guessed = False

    async def end_session(self, known: Collection[IPNetwork] = ()) -> None:
        """End the replay: what dockerd has not requested again, it no longer knows.

        This ends the holds that were not claimed, and the leases that no endpoint ever used (owner PENDING). `known`:
        subnets that dockerd has. If it replayed nothing for one of them, it has not restarted (it only enabled a
        managed plugin), and all remains.
        """
        for ledger in list(self._ledgers.values()):
            missed = ledger.forgotten()
            if 0 < ledger.pool.holds == ledger.unreplayed and ledger.pool.network in known:
                ledger.unreplayed = 0
                continue
            for lease in missed:
                await self.release_address(lease.pool, lease.address)
            for _ in range(ledger.unreplayed):
                await self.release_pool(ledger.pool.id)

    def unreplayed(self) -> tuple[Pool, ...]:
        """Return the pools without a holder whose holds dockerd has not replayed: it lost them in a crash.

        Meaningful once dockerd has answered a request after `begin_session`.
        """
        return tuple(ledger.pool for ledger in self._ledgers.values() if ledger.unreplayed and not ledger.pool.holders)

    def lease(self, pool_id: str, address: IPAddress) -> Lease | None:
        ledger = self._ledgers.get(pool_id)
        return ledger.get(address) if ledger else None

    def leases(self, pool_id: str) -> Iterator[Lease]:
        """Return a snapshot of a pool's leases, oldest first; an unknown pool has none."""
        ledger = self._ledgers.get(pool_id)
        return iter(ledger.leases() if ledger else ())

    def usage(self, pool_id: str) -> Usage:
        """Return how many addresses of a pool are used, also while the pool is being deleted.

        Raises:
            IpamError: not_found.
        """
        ledger = self._ledgers.get(pool_id)
        if ledger is None:
            raise unknown_pool(pool_id)
        return ledger.usage()

    async def request_address(
        self, pool_id: str, *, address: IPAddress | None = None, owner: Owner, mac: str = ""
    ) -> Lease:
        """Lease `address`, or the next free address of the pool's range if that is None.

        A static address may be outside the range. An address retained for the owner's name is preferred to a free one.

        Raises:
            IpamError: not_found: the pool does not exist; invalid: no endpoint can have this address in the subnet;
                unavailable: the address is leased, or all are.
        """
        ledger = self._live(pool_id)
        if address is None:
            return await self._request_any(ledger, owner, mac)
        ledger.pool.check(address)
        if known := ledger.confirm(address):
            return known
        ledger.check_free(address, self.called)
        if owner.kind is not OwnerKind.GATEWAY:  # networks of one LAN share its router
            refuse_foreign(ledger.pool, address, self.pools())
        retained = ledger.retained_for(owner, self._clock())
        mac = mac or (retained.mac if retained is not None and retained.address == address else "")
        lease = Lease(pool_id, ledger.pool.address(int(address)), owner, mac)
        if await self._claim(ledger, lease):
            return lease
        raise IpamError(
            Kind.UNAVAILABLE,
            f"address {address} of pool {ledger.pool.network} is leased on another host",
            hint="choose another address, or none",
        )

    async def assign(self, pool_id: str, address: IPAddress, owner: Owner, mac: str = "") -> Lease:
        """Change the owner of a lease; also its MAC address, unless `mac` is empty.

        Raises:
            IpamError: not_found: the pool or the lease does not exist.
        """
        ledger = self._live(pool_id)
        old = ledger.get(address)
        new = replace(old, owner=owner, mac=mac or old.mac) if old else None
        if old is None or new is None or not ledger.change(old, new):
            raise ledger.not_leased(address)
        try:
            stored = await self._store.update(new)
        except BaseException:
            if ledger.change(new, old):
                with suppress(Exception):
                    await self._store.update(old)
            raise
        if not stored:
            if ledger.get(address) is new and ledger.begin_release(address):
                ledger.release(address)
            raise ledger.not_leased(address)
        return new

    async def release_address(self, pool_id: str, address: IPAddress, *, mac: str = "", forget: bool = False) -> bool:
        """End a lease; return False if there is none.

        A sticky pool retains address and `mac` for the name of the owner, unless `forget`.
        """
        ledger = self._ledgers.get(pool_id)
        if ledger is None or not ledger.begin_release(address):
            return False
        retained = None if forget else ledger.retention_of(address, mac, self._clock())
        try:
            if retained is None or not await self._store.update(retained):
                retained = None
                await self._store.drop(pool_id, address)
        except BaseException:
            ledger.cancel_release(address)
            raise
        if retained is None:
            ledger.release(address)
        elif older := ledger.release_to(retained):
            await self._drop_retained(ledger, older)
        return True

    async def _request_any(self, ledger: Ledger, owner: Owner, mac: str) -> Lease:
        pool = ledger.pool
        if mine := ledger.retained_for(owner, self._clock()):
            lease = Lease(pool.id, mine.address, owner, mac or mine.mac)
            if await self._claim(ledger, lease):
                return lease
        for _ in range(ADDRESS_TRIES):
            number = ledger.picker.pick()
            if number is None:
                break
            lease = Lease(pool.id, pool.address(number), owner, mac)
            if await self._claim(ledger, lease):
                return lease
            # Each host allocates consecutive addresses, so the next ones are probably the other host's too.
            ledger.picker.begin_at(self._start(pool))
        for number in ledger.elsewhere(SECOND_TRIES):
            lease = Lease(pool.id, pool.address(number), owner, mac)
            if ledger.is_elsewhere(number) and await self._claim(ledger, lease):
                return lease
        while retained := ledger.longest_retained():
            lease = Lease(pool.id, retained.address, owner, mac)
            if await self._claim(ledger, lease):
                return lease
        raise ledger.exhausted()
