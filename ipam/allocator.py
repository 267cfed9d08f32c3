"""Subnets for networks and addresses for endpoints.

The one thing to know: memory is claimed before the store is asked and given back if the store refuses, so two
tasks never get the same address although neither waits for a lock. Releases go the other way round: an
address is free when the store has dropped it. All state is in the store; `load` reads it, and what a session
of dockerd still has to repeat (see `begin_session`) is the only thing that memory knows alone.

A pool exists while it has holds or holders. A *hold* is one `request_pool`, counted, ended by `release_pool`;
it is what Docker and its built-in drivers know. A *holder* is a network of ours, by id, from `keep` to
`let_go`. Both are needed: Docker releases the pool before it deletes the network, and networks of other front
ends never release.
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
from .shared_subnet import apart, refuse_foreign
from .store import LeaseStore
from .subnet_allocator import SubnetAllocator
from .subnets import Subnets

POOL_TRIES = 64  # subnets that others in the cluster have, passed over in one request
ADDRESS_TRIES = 1024  # addresses likewise; each costs a question to the store
SECOND_TRIES = 16  # addresses once refused that are asked for again when nothing else is left
HALF_OF_ALL = 1  # a VPN writes its default route as 0.0.0.0/1 and 128.0.0.0/1, to win without deleting yours


class Allocator(Retention):
    """All pools of a host. Call `load` before anything else. `clock`: seconds since the epoch.

    `called`: the words for an owner in errors.
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
        self._spaces = {space.name: space for space in spaces}
        self._start = start
        self._clear()

    async def load(self) -> None:
        """Read pools and leases from the store; leases without a pool, left by a crash, are dropped there."""
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
        """Keys of the records that the store has and cannot read, and why."""
        return self._store.unreadable

    def begin_session(self) -> None:
        """Expect dockerd, which was restarted, to repeat its requests (RequiresRequestReplay).

        From now on each hold that a pool has is taken again by a `request_pool`, before new ones are added;
        and each lease in a pool with holds can be requested once more by its address, which confirms it and
        keeps its owner.
        """
        for ledger in self._ledgers.values():
            ledger.begin_session()

    async def end_session(self) -> None:
        """Take dockerd's replay as complete: what it did not ask for again, it has forgotten.

        Holds that were not taken again end, and so do leases that were requested and never came to an endpoint.
        """
        for ledger in list(self._ledgers.values()):
            for lease in ledger.forgotten():
                await self.release_address(lease.pool, lease.address)
            for _ in range(ledger.unreplayed):
                await self.release_pool(ledger.pool.id)

    def unreplayed(self) -> tuple[Pool, ...]:
        """Return the pools with no holder and holds not taken again: a crashed dockerd forgot them.

        Meaningful some time after `begin_session`, when dockerd has answered a first question.
        """
        return tuple(ledger.pool for ledger in self._ledgers.values() if ledger.unreplayed and not ledger.pool.holders)

    def pools(self) -> tuple[Pool, ...]:
        return tuple(ledger.pool for ledger in self._ledgers.values())

    def pool(self, pool_id: str) -> Pool | None:
        ledger = self._ledgers.get(pool_id)
        return ledger.pool if ledger else None

    def pool_of(self, network: IPNetwork) -> Pool | None:
        """Return the pool whose subnet is `network`; of several, one that no network is bound to yet."""
        return min((it for it in self.pools() if it.network == network), key=lambda it: len(it.holders), default=None)

    def _fits(self, pool: Pool) -> bool:
        """Whether a pool gives out other addresses than all those that overlap it; see `shared_subnet`."""
        return all(apart(pool, it) for it in self.pools() if it.network.overlaps(pool.network))

    def lease(self, pool_id: str, address: IPAddress) -> Lease | None:
        ledger = self._ledgers.get(pool_id)
        return ledger.get(address) if ledger else None

    def leases(self, pool_id: str) -> Iterator[Lease]:
        """Return the leases of a pool as they are now, oldest first; none for an unknown pool."""
        ledger = self._ledgers.get(pool_id)
        return iter(ledger.leases() if ledger else ())

    def usage(self, pool_id: str) -> Usage:
        """Return the numbers of a pool, also of one that is just going.

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
        """Hold the pool of `network`, or of the space's next free subnet when that is None.

        Args:
            space: name of the address space.
            network: the subnet. The same request gives the same pool.
            range: the part of `network` that addresses are picked from.
            v6: family of the subnet to choose; with an IPv4 `network` it is an error.
            avoid: subnets that are not to be chosen, such as the host's routes. Default routes do not count.
            holder: the id of the network that `keep`s it from the first moment, in place of a hold.
            ends: first and last address to pick, both in `network`; for a pool that there is not yet.

        Raises:
            IpamError: invalid: the space is unknown, or `network`, `range` and `v6` do not fit together;
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
        """End one hold; the last one takes the pool and its leases with it, unless a network keeps it.

        False: there is no such hold.
        """
        ledger = self._ledgers.get(pool_id)
        if ledger is None or ledger.closing or not ledger.pool.holds:
            return False
        await self._change(ledger, Pool.less, Pool.more)
        ledger.unreplayed = min(ledger.unreplayed, ledger.pool.holds)
        return True

    async def keep(self, pool_id: str, holder: str) -> None:
        """Bind a pool to the network with id `holder`; again makes no difference.

        Raises:
            IpamError: not_found.
        """
        ledger = self._live(pool_id)
        if holder not in ledger.pool.holders:
            await self._change(ledger, *taking(holder))

    async def let_go(self, pool_id: str, holder: str) -> bool:
        """Undo `keep`; the pool goes when nobody else has it. False: it was not kept by `holder`."""
        ledger = self._ledgers.get(pool_id)
        if ledger is None or ledger.closing or holder not in ledger.pool.holders:
            return False
        await self._change(ledger, lambda pool: pool.let_go(holder), lambda pool: pool.kept(holder))
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
            raise IpamError(Kind.UNAVAILABLE, f"subnet {network} is just being let go", hint="try again")
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
        """Change a pool here and in the store, or delete it when nobody has it any more; False: refused.

        Others may change the pool while the store is asked: hence `undo`, and not the old value.
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
        """Make the store agree with memory again; if it cannot, the next `load` sees one hold too many."""
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
        """Lease `address`, or the next free one of the pool's range when that is None.

        A static address may lie outside the range. What is kept for the owner's name comes before all that is free.

        Raises:
            IpamError: not_found: there is no such pool; invalid: the address cannot be had in this subnet;
                unavailable: it is leased, or all are.
        """
        ledger = self._live(pool_id)
        if address is None:
            return await self._request_any(ledger, owner, mac)
        ledger.pool.check(address)
        if known := ledger.confirm(address):
            return known
        ledger.check_free(address, self.called)
        if owner.kind is not OwnerKind.GATEWAY:  # the router of the LAN is everybody's
            refuse_foreign(ledger.pool, address, self.pools())
        kept = ledger.kept_for(owner, self._clock())
        mac = mac or (kept.mac if kept is not None and kept.address == address else "")
        lease = Lease(pool_id, ledger.pool.address(int(address)), owner, mac)
        if await self._claim(ledger, lease):
            return lease
        raise IpamError(
            Kind.UNAVAILABLE,
            f"address {address} of pool {ledger.pool.network} is leased on another host",
            hint="choose another address, or none",
        )

    async def assign(self, pool_id: str, address: IPAddress, owner: Owner, mac: str = "") -> Lease:
        """Change the owner of a lease, and its MAC unless that is empty.

        Raises:
            IpamError: not_found: there is no such pool or lease.
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
        """End a lease; False: there is none. In a sticky pool it is kept, with `mac`, unless it is to be forgotten."""
        ledger = self._ledgers.get(pool_id)
        if ledger is None or not ledger.begin_release(address):
            return False
        kept = None if forget else ledger.keepsake(address, mac, self._clock())
        try:
            if kept is None or not await self._store.update(kept):
                kept = None
                await self._store.drop(pool_id, address)
        except BaseException:
            ledger.keep(address)
            raise
        if kept is None:
            ledger.release(address)
        elif older := ledger.release_to(kept):
            await self._drop_kept(ledger, older)
        return True

    async def _request_any(self, ledger: Ledger, owner: Owner, mac: str) -> Lease:
        pool = ledger.pool
        if mine := ledger.kept_for(owner, self._clock()):
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
            # Another host's addresses lie in runs, as ours do: one refusal, and away from here.
            ledger.picker.begin_at(self._start(pool))
        for number in ledger.elsewhere(SECOND_TRIES):
            lease = Lease(pool.id, pool.address(number), owner, mac)
            if ledger.is_elsewhere(number) and await self._claim(ledger, lease):
                return lease
        while kept := ledger.longest_kept():
            lease = Lease(pool.id, kept.address, owner, mac)
            if await self._claim(ledger, lease):
                return lease
        raise ledger.exhausted()

    def _clear(self) -> None:
        self._ledgers: dict[str, Ledger] = {}
        self._subnets = {4: Subnets(4), 6: Subnets(6)}
        self._parts: Counter[IPNetwork] = Counter()
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
            return  # another part of the subnet is in use
        del self._parts[pool.network]
        self._subnets[pool.network.version].remove(pool.network)
        if pool.space in self._cutters:
            self._cutters[pool.space].release(pool.network)
