"""Pools: subnets for networks, out of address spaces.

A pool exists while it has holds or holders. A *hold* is one `request_pool` without a `release_pool`, as Docker and its
built-in drivers count them. A *holder* is the id of a network that is bound to the pool by `bind`, until `unbind`. Both
are needed: Docker releases the pool before it deletes the network, and networks of other front ends never release it.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from .errors import IpamError, Kind
from .lease import IPAddress
from .ledger import Ledger, unknown_pool
from .pool import IPNetwork, Pool, Space, check_request, pool_id, taking
from .scan_offset import Start
from .shared_subnet import disjoint
from .store import LeaseStore
from .subnet_allocator import SubnetAllocator
from .subnets import Subnets

POOL_TRIES = 64  # subnets of other hosts that one request skips
HALF_OF_ALL = 1  # prefix length: a VPN overrides the default route by 0.0.0.0/1 and 128.0.0.0/1


class Pools:
    """The part of the allocator that gives subnets to networks."""

    _store: LeaseStore
    _spaces: dict[str, Space]
    _start: Start

    def use_spaces(self, spaces: Sequence[Space]) -> None:
        """Choose subnets for new networks from other ranges. Pools that exist stay as they are."""
        self._spaces = {space.name: space for space in spaces}
        self._cut_anew()

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
