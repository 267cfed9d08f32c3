"""The allocator: subnets for networks, and addresses for endpoints.

The one thing to know: a request marks the address in memory before it asks the store, and unmarks it if the store
refuses. So two tasks never get the same address, and no task waits for a lock. A release goes the other way round: an
address is free once the store has deleted its lease. All state is in the store, and `load` reads it. The one exception
is what a restarted dockerd still has to replay (see `begin_session`).

A pool exists while it has holds or holders. A *hold* is one `request_pool` without a `release_pool`, as Docker and its
built-in drivers count them. A *holder* is the id of a network that is bound to the pool by `bind`, until `unbind`. Both
are needed: Docker releases the pool before it deletes the network, and networks of other front ends never release it.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from time import time

from .errors import IpamError, Kind
from .lease import IPAddress, Lease, Owner, OwnerKind
from .ledger import Ledger, unknown_pool
from .pool import IPNetwork, Pool, Space, Usage, check_request, pool_id, taking
from .retention import Retention
from .scan_offset import Start, default_start
from .shared_subnet import disjoint, refuse_foreign
from .store import LeaseStore
from .subnet_allocator import SubnetAllocator
from .subnets import Subnets

POOL_TRIES = 64  # subnets of other hosts that one request skips
ADDRESS_TRIES = 1024  # addresses of other hosts that one request skips; each costs one transaction
SECOND_TRIES = 16  # addresses of other hosts that are tried again when the pool has no other
HALF_OF_ALL = 1  # prefix length: a VPN overrides the default route by 0.0.0.0/1 and 128.0.0.0/1


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

    def use_spaces(self, spaces: Sequence[Space]) -> None:
        """Choose subnets for new networks from other ranges. Pools that exist stay as they are."""
        self._spaces = {space.name: space for space in spaces}
        self._cut_anew()

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

    @property
    def spaces(self) -> tuple[Space, ...]:
        """The address spaces."""
        return tuple(self._spaces.values())

    def pools(self) -> tuple[Pool, ...]:
        return tuple(ledger.pool for ledger in self._ledgers.values())

    def pool(self, pool_id: str) -> Pool | None:
        ledger = self._ledgers.get(pool_id)
        return ledger.pool if ledger else None

    def pool_of(self, network: IPNetwork) -> Pool | None:
        """Return the pool whose subnet is `network`. Of several, prefer one that no network is bound to."""
        return min((it for it in self.pools() if it.network == network), key=lambda it: len(it.holders), default=None)

    def _fits(self, pool: Pool) -> bool:
        """Return whether the pool's range is disjoint from those of all pools that overlap it (`shared_subnet`)."""
        return all(disjoint(pool, it) for it in self.pools() if it.network.overlaps(pool.network))

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

    async def request_pool(
        self,
        space: str,
        *,
        network: IPNetwork | None = None,
        range: IPNetwork | None = None,  # noqa: A002 - as in --ip-range
        v6: bool = False,
        avoid: Collection[IPNetwork] = (),
        holder: str = "",
        ends: tuple[IPAddress, IPAddress] | None = None,
    ) -> Pool:
        """Return the pool of subnet `network`, or of the space's next free subnet if that is None.

        This adds a hold to the pool, or binds it to a network if `holder` is given.

        Args:
            space: name of the address space.
            network: the subnet. The same request gets the same pool.
            range: the part of `network` from which addresses are allocated.
            v6: choose an IPv6 subnet; an error together with an IPv4 `network`.
            avoid: subnets not to choose, such as the host's routes. Default routes are ignored.
            holder: the id of the network to bind the pool to, as `bind` does, instead of adding a hold.
            ends: first and last address to allocate, both in `network`; only for a new pool.

        Raises:
            IpamError: invalid: the space is unknown, or `network`, `range` and `v6` contradict each other;
                exists: `network` overlaps another pool; unavailable: the space has no free subnet.
        """
        known = self._spaces.get(space)
        if known is None:
            raise IpamError(
                Kind.INVALID,
                f"address space {space!r} is unknown",
                hint=f"choose one of {', '.join(sorted(self._spaces))}",
            )
        check_request(network, range, v6=v6)
        if network is not None:
            return await self._request_network(space, network, None if range == network else range, holder, ends)
        return await self._cut(known, 6 if v6 else 4, avoid, holder)

    async def release_pool(self, pool_id: str) -> bool:
        """End one hold. Without holds and holders, the pool and its leases are deleted.

        Returns False if the pool has no hold.
        """
        ledger = self._ledgers.get(pool_id)
        if ledger is None or ledger.closing or not ledger.pool.holds:
            return False
        await self._change(ledger, Pool.less, Pool.more)
        ledger.unreplayed = min(ledger.unreplayed, ledger.pool.holds)
        return True

    async def bind(self, pool_id: str, holder: str) -> None:
        """Bind a pool to the network with id `holder`. Repeating it has no effect.

        Raises:
            IpamError: not_found.
        """
        ledger = self._live(pool_id)
        if holder not in ledger.pool.holders:
            await self._change(ledger, *taking(holder))

    async def unbind(self, pool_id: str, holder: str) -> bool:
        """Unbind a pool from network `holder`. Without holds and holders, the pool is deleted.

        Returns False if the pool is not bound to `holder`.
        """
        ledger = self._ledgers.get(pool_id)
        if ledger is None or ledger.closing or holder not in ledger.pool.holders:
            return False
        await self._change(ledger, lambda pool: pool.unbound_from(holder), lambda pool: pool.bound_to(holder))
        return True

    async def _request_network(
        self,
        space: str,
        network: IPNetwork,
        part: IPNetwork | None,
        holder: str,
        ends: tuple[IPAddress, IPAddress] | None,
    ) -> Pool:
        ledger = self._ledgers.get(pool_id(space, network, part))
        if ledger is None:
            pool = Pool(space, network, part, ends=ends)
            if (other := self._subnets[network.version].overlap(network)) and not self._fits(pool):
                same = "give each network of a LAN an --ip-range of its own, or " if other == network else ""
                words = (
                    f"subnet {network} is taken" if other == network else f"subnet {network} overlaps subnet {other}"
                )
                raise IpamError(Kind.EXISTS, words, hint=f"{same}choose another --subnet")
            ledger = self._add(pool)
        elif ledger.closing:
            raise IpamError(Kind.UNAVAILABLE, f"subnet {network} is being released", hint="try again")
        if holder and holder in ledger.pool.holders:
            return ledger.pool
        if ledger.unreplayed and not holder:
            ledger.unreplayed -= 1
            return ledger.pool
        if not await self._change(ledger, *taking(holder)):
            raise IpamError(
                Kind.EXISTS,
                f"subnet {network} overlaps a pool of another host",
                hint="choose another --subnet",
            )
        return ledger.pool

    async def _cut(self, space: Space, version: int, avoid: Collection[IPNetwork], holder: str) -> Pool:
        routes = Subnets(version, (route for route in avoid if route.prefixlen > HALF_OF_ALL))
        pools = self._subnets[version]

        def blocker(network: IPNetwork) -> IPNetwork | None:
            return pools.overlap(network) or routes.overlap(network)

        for _ in range(POOL_TRIES):
            network = self._cutters[space.name].cut(version, blocker)
            if network is None:
                break
            ledger = self._add(Pool(space.name, network))
            if await self._change(ledger, *taking(holder)):
                return ledger.pool
            routes.add(network)
        raise space.exhausted(version)

    async def _change(self, ledger: Ledger, change: Callable[[Pool], Pool], undo: Callable[[Pool], Pool]) -> bool:
        """Change a pool in memory and in the store; delete it if it is no longer wanted. False: the store refuses.

        Other tasks may change the pool meanwhile, so a failure is reverted by `undo` and not by the old value.
        """
        ledger.pool = change(ledger.pool)
        try:
            if not ledger.pool.wanted:
                ledger.closing = True
                await self._store.drop_pool(ledger.pool.id)
                self._remove(ledger)
                return True
            saved = await self._store.save_pool(ledger.pool)
        except BaseException:
            ledger.closing = False
            ledger.pool = undo(ledger.pool)
            await self._repair(ledger)
            raise
        if not saved:
            ledger.pool = undo(ledger.pool)
            if not ledger.pool.wanted:
                self._remove(ledger)
        return saved

    async def _repair(self, ledger: Ledger) -> None:
        """Write the pool as in memory to the store again. If that fails, the next `load` finds one hold too many."""
        if ledger.pool.wanted:
            with suppress(Exception):
                await self._store.save_pool(ledger.pool)
            return
        ledger.closing = True
        try:
            with suppress(Exception):
                await self._store.drop_pool(ledger.pool.id)
        finally:
            self._remove(ledger)

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

    def _clear(self) -> None:
        self._ledgers: dict[str, Ledger] = {}
        self._subnets = {4: Subnets(4), 6: Subnets(6)}
        self._parts: Counter[IPNetwork] = Counter()
        self._cut_anew()

    def _cut_anew(self) -> None:
        """Begin each space with its first subnet; those in use are skipped."""
        self._cutters = {name: SubnetAllocator(space.bases) for name, space in self._spaces.items()}

    def _live(self, pool_id: str) -> Ledger:
        ledger = self._ledgers.get(pool_id)
        if ledger is None or ledger.closing:
            raise unknown_pool(pool_id)
        return ledger

    def _add(self, pool: Pool) -> Ledger:
        ledger = self._ledgers[pool.id] = Ledger(pool, self._start(pool))
        self._parts[pool.network] += 1
        if self._parts[pool.network] > 1:
            return ledger
        self._subnets[pool.network.version].add(pool.network)
        if pool.space in self._cutters:
            self._cutters[pool.space].take(pool.network)
        return ledger

    def _remove(self, ledger: Ledger) -> None:
        pool = ledger.pool
        del self._ledgers[pool.id]
        self._parts[pool.network] -= 1
        if self._parts[pool.network]:
            return  # another range of the subnet is in use
        del self._parts[pool.network]
        self._subnets[pool.network.version].remove(pool.network)
        if pool.space in self._cutters:
            self._cutters[pool.space].release(pool.network)
