"""Subnets of networks and addresses of endpoints: leases that are undone if the request fails."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_interface

from netplug.drivers.api import Network, Subnet
from netplug.drivers.naming import short
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import IPAddress, IPInterface, IPNetwork
from netplug.engine.conflict_detection import ConflictDetection
from netplug.engine.records import (
    EndpointSpec,
    FrontEnd,
    NetworkRecord,
    NetworkSpec,
    SubnetSpec,
)
from netplug.engine.refused_releases import RefusedReleases
from netplug.errors import NetplugError
from netplug.ipam.allocator import Allocator
from netplug.ipam.lease import Lease, Owner, OwnerKind
from netplug.ipam.pool import EXTERNAL, Pool
from netplug.ipam.shared_subnet import common_subnet


@dataclass(frozen=True, slots=True)
class Subnets:
    """The subnets of a network and the pools that they are."""

    subnets: tuple[Subnet, ...]
    pools: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Leased:
    """The addresses of an endpoint and the pool of each. `mac`: the MAC that was kept with them, if any."""

    addresses: tuple[IPInterface, ...]
    pools: tuple[str, ...]
    mac: str = ""


class Addressing:
    """Takes subnets and addresses from IPAM, and gives them back.

    What a block takes is given back if the block fails, as soon as the store takes it. No other owner loses an address
    by that. The caller holds the lock of the network.
    """

    def __init__(
        self, allocator: Allocator, segments: ConflictDetection, drivers: Drivers, refused: RefusedReleases
    ) -> None:
        self._refused = refused
        self._drivers = drivers
        self._allocator = allocator
        self._conflict_detection = segments

    # Networks

    @asynccontextmanager
    async def subnets(
        self,
        net: Network,
        spec: NetworkSpec,
        *,
        others: Collection[Network],
        avoid: Collection[IPNetwork],
        gateway: bool,
        removal: Callable[[str], str],
    ) -> AsyncIterator[Subnets]:
        """Take the subnets of a network. They are given back if the block fails.

        `removal`: returns the command that removes a network, by its id.
        """
        await self._refused.settle(net.id)
        async with AsyncExitStack() as undo:
            subnets: list[Subnet] = []
            pools: list[str] = []
            for wanted in spec.subnets:
                if wanted.pool is not None:
                    # Networks of one LAN may share a subnet: the allocator checks that their ranges are disjoint.
                    rivals = [it for it in others if not (self._on_a_lan(net, it) and wanted.pool in _pools_of(it))]
                    _refuse_overlap(wanted.pool, [*rivals, Network(net.id, net.name, tuple(subnets))], removal)
                pool = await self._pool(net, wanted, avoid, undo)
                subnets.append(await self._reserve(net, pool, wanted, undo, gateway=gateway))
                pools.append(pool.id)
            yield Subnets(tuple(subnets), tuple(pools))
            undo.pop_all()

    def _segment(self, net: Network) -> str:
        driver = self._drivers.get(net.options.mode)
        return driver.segment(net) if driver else ""

    def _on_a_lan(self, one: Network, other: Network) -> bool:
        """Tell whether both networks may be on one segment, where hosts do not route between subnets."""
        return bool(self._segment(one) and self._segment(other))

    async def _pool(self, net: Network, wanted: SubnetSpec, avoid: Collection[IPNetwork], undo: AsyncExitStack) -> Pool:
        held = self._allocator.pool_of(wanted.pool) if wanted.pool is not None else None
        if wanted.pool is not None and wanted.ends and self._segment(net):
            # Pools of one LAN differ in their range.
            part = common_subnet(*wanted.ends)
            held = self._allocator.pool(Pool(wanted.space, wanted.pool, part if part != wanted.pool else None).id)
            wanted = replace(wanted, range=held.range if held else part)
        if held is None or held.space != wanted.space or wanted.range not in {None, held.range}:
            held = await self._allocator.request_pool(
                wanted.space,
                network=wanted.pool,
                range=wanted.range,
                v6=wanted.v6,
                avoid=avoid,
                holder=net.id,
                ends=wanted.ends,
            )
        elif held.holders and held.holders != (net.id,) and held.space != EXTERNAL:
            words = f"subnet {held.network} is another network's"
            hint = "give each network of a LAN an --ip-range of its own, or choose another --subnet"
            raise NetplugError("exists", words, hint=hint)
        else:
            await self._allocator.bind(held.id, net.id)
        self._later(undo, net.id, self._allocator.unbind, held.id, net.id)
        if net.options.sticky:
            await self._allocator.set_sticky(held.id, net.options.sticky)
            self._later(undo, net.id, self._allocator.set_sticky, held.id, 0)
        return held

    async def _reserve(
        self, net: Network, pool: Pool, wanted: SubnetSpec, undo: AsyncExitStack, *, gateway: bool
    ) -> Subnet:
        if not self._drivers.of(net).addressed:
            await self._clear(pool)
            return Subnet(pool.network)
        for name, address in wanted.aux:
            await self._hold(pool, address, Owner(OwnerKind.AUX, net.id, name), undo)
        # First: the host's own address is any free one.
        router = await self._gateway(net, pool, wanted, undo) if gateway or wanted.gateway is not None else None
        host = await self._beside(net, pool, wanted, undo) if net.options.host_access else None
        return Subnet(pool.network, router, host)

    async def _gateway(self, net: Network, pool: Pool, wanted: SubnetSpec, undo: AsyncExitStack) -> IPInterface:
        """Lease the gateway's address, unless another network of the LAN has it."""
        if wanted.gateway is not None and self._routes_for_others(net, pool, wanted.gateway):
            return _within(wanted.gateway, pool)
        return _within(await self._hold(pool, wanted.gateway, Owner(OwnerKind.GATEWAY, net.id, net.name), undo), pool)

    def _routes_for_others(self, net: Network, pool: Pool, gateway: IPAddress) -> bool:
        """Tell whether another network of the LAN, with the same pool, leases the address as its gateway."""
        lease = self._allocator.lease(pool.id, gateway)
        if lease is None or lease.owner.kind is not OwnerKind.GATEWAY:
            return False
        return lease.owner.id in pool.holders and lease.owner.id != net.id

    async def _beside(self, net: Network, pool: Pool, wanted: SubnetSpec, undo: AsyncExitStack) -> IPInterface:
        """Lease an address for the host itself: the auxiliary address "host", or any."""
        given = dict(wanted.aux).get("host")
        if given is None and pool.space == EXTERNAL:
            raise NetplugError(
                "invalid",
                f"option host_access=true: the host needs an address of its own in {pool.network}, which Docker gives",
                hint="add --aux-address host=ADDRESS, or --ipam-driver pynet",
            )
        return _within(given or await self._hold(pool, None, Owner(OwnerKind.AUX, net.id, "host"), undo), pool)

    async def _clear(self, pool: Pool) -> None:
        """Release what Docker leased for a network before it told us the mode, which has no addresses."""
        for lease in list(self._allocator.leases(pool.id)):
            if not lease.owner.id:
                await self._allocator.release_address(pool.id, lease.address, forget=True)

    async def _hold(self, pool: Pool, address: IPAddress | None, owner: Owner, undo: AsyncExitStack) -> IPAddress:
        """Lease an address to a network. If we are Docker's IPAM driver, Docker has leased it already."""
        lease = self._allocator.lease(pool.id, address) if address is not None else None
        if lease is not None and lease.owner.kind is not OwnerKind.ENDPOINT and not lease.owner.id:
            given = await self._allocator.assign(lease.pool, lease.address, owner)
            self._later(undo, owner.id, self._return, given, lease.owner)
            return lease.address
        lease = await self._allocator.request_address(pool.id, address=address, owner=owner)
        self._later(undo, owner.id, self._release, lease)
        return lease.address

    def _later(
        self, undo: AsyncExitStack, network: str, release: Callable[..., Awaitable[object]], *args: object
    ) -> None:
        """Have something given back if a block fails, or as soon afterwards as the store takes it."""
        undo.push_async_callback(self._refused.attempt, network, partial(release, *args))

    def _has(self, lease: Lease) -> bool:
        """Tell whether the owner is still the same; the lease may have ended since."""
        now = self._allocator.lease(lease.pool, lease.address)
        return now is not None and now.owner == lease.owner

    async def _return(self, lease: Lease, owner: Owner) -> None:
        if self._has(lease):
            await self._allocator.assign(lease.pool, lease.address, owner)

    async def _release(self, lease: Lease) -> None:
        if self._has(lease):
            await self._allocator.release_address(lease.pool, lease.address)

    async def release_network(self, record: NetworkRecord, others: Collection[NetworkRecord]) -> None:
        """Release a network's pools, and its leases in pools that Docker or another network still holds."""
        for pool in dict.fromkeys(record.pools):
            await self._refused.attempt(record.network.id, partial(self._release_pool, record, pool, others))

    async def give_back(self, before: NetworkRecord, now: NetworkRecord, others: Collection[NetworkRecord]) -> None:
        """Release the pools that a changed network has no more, and the addresses that it retains no longer."""
        ident = before.network.id
        for pool in now.pools if before.network.options.sticky and not now.network.options.sticky else ():
            await self._refused.attempt(ident, partial(self._allocator.set_sticky, pool, 0))
        rest = [it for it in others if it.network.id != ident]
        for pool in dict.fromkeys(before.pools):
            if pool not in now.pools:
                await self._refused.attempt(ident, partial(self._release_pool, before, pool, rest))

    def external(self, pools: Collection[str]) -> bool:
        """Tell whether another IPAM gives out the addresses of any of these pools."""
        found = (self._allocator.pool(ident) for ident in pools)
        return any(pool is not None and pool.space == EXTERNAL for pool in found)

    async def retain(self, network: str, pools: Collection[str], seconds: int, undo: AsyncExitStack) -> None:
        """Have released addresses of a network's pools retained for so long; 0: as before. `undo` sets it back."""
        await self._refused.settle(network)
        for ident in pools if seconds else ():
            pool = self._allocator.pool(ident)
            if pool is not None and pool.sticky_s != seconds:
                await self._allocator.set_sticky(ident, seconds)
                self._later(undo, network, self._allocator.set_sticky, ident, pool.sticky_s)

    async def _release_pool(self, record: NetworkRecord, pool: str, others: Collection[NetworkRecord]) -> None:
        """Release one pool of a network with its leases there."""
        if self._allocator.pool(pool) is not None:
            self._allocator.reserve(pool, {})
            await self._allocator.set_sticky(pool, 0)
        for lease in self._allocator.leases(pool):
            if lease.owner.id == record.network.id:
                await pass_on(self._allocator, lease, others)
        await self._allocator.unbind(pool, record.network.id)

    # Endpoints

    def reserve(self, record: NetworkRecord, names: Mapping[IPAddress, str]) -> None:
        """Reserve addresses for containers by name, in place of those reserved before."""
        if not self._drivers.of(record.network).addressed:
            return
        for ident, subnet in zip(record.pools, record.network.subnets, strict=True):
            pool = self._allocator.pool(ident)
            if pool is not None and pool.space != EXTERNAL:
                self._allocator.reserve(ident, {it: name for it, name in names.items() if it in subnet.pool})

    def holder(self, record: NetworkRecord, address: IPAddress) -> str:
        """Return the id of the endpoint that has an address of the network; empty if none has."""
        lease = lease_of(self._allocator, record, address)
        return lease.owner.id if lease is not None and lease.owner.kind is OwnerKind.ENDPOINT else ""

    @asynccontextmanager
    async def addresses(
        self, record: NetworkRecord, spec: EndpointSpec, wanted: Collection[IPAddress] = ()
    ) -> AsyncIterator[Leased]:
        """Take an endpoint's addresses. They are given back if the block fails.

        The runtime chose those of `spec`. Without any, one address of each group of subnets is chosen (by default: of
        each family), unless `wanted` has one. A network without links gives none, whatever the runtime says.
        """
        if not self._drivers.of(record.network).addressed:
            yield Leased((), ())
            return
        owner = Owner(OwnerKind.ENDPOINT, spec.id, spec.name)
        await self._refused.settle(record.network.id)
        async with AsyncExitStack() as undo:
            leased: list[Lease] = []
            chosen: list[IPAddress] = [address.ip for address in spec.addresses] or list(wanted)
            for address in chosen:
                index = _index_of(record.network, address)
                dockers = spec.front_end is FrontEnd.DOCKER
                leased.append(await self._lease(record, index, address, owner, undo, dockers=dockers))
            if not spec.addresses:
                open_ = [group for group in _groups(record.network, spec) if not _hit(group, chosen)]
                leased += [await self._any(record, group, owner, undo) for group in open_]
            yield Leased(
                tuple(_with_length(record.network, lease.address) for lease in leased),
                tuple(lease.pool for lease in leased),
                next((lease.mac for lease in leased if lease.mac), ""),
            )
            undo.pop_all()

    async def _lease(
        self,
        record: NetworkRecord,
        index: int,
        address: IPAddress | None,
        owner: Owner,
        undo: AsyncExitStack,
        *,
        dockers: bool = False,
    ) -> Lease:
        pool = record.pools[index]
        lease = self._allocator.lease(pool, address) if address is not None else None
        if lease is not None and lease.owner.kind is OwnerKind.PENDING and dockers:
            # `EndpointLeases.settle` gives it to the endpoint. A lease is kept by name: the MAC that another container
            # left is not for this one.
            return lease if owner.name == lease.owner.name else replace(lease, mac="")
        kept = self._allocator.retained_for(pool, owner, address)
        lease = await self._conflict_detection.request(pool, address, owner, net=record.network)
        self._later(undo, record.network.id, self._give_back, lease, kept)
        return lease

    async def _give_back(self, lease: Lease, kept: Lease | None) -> None:
        """Undo a request. An address that was retained before is retained again, for the same name."""
        if not self._has(lease):
            return
        if kept is None or kept.address != lease.address:
            await self._allocator.release_address(lease.pool, lease.address, forget=True)
            return
        await self._allocator.assign(lease.pool, lease.address, Owner(OwnerKind.PENDING, name=kept.owner.name))
        await self._allocator.release_address(lease.pool, lease.address, mac=kept.mac)

    async def _any(
        self, record: NetworkRecord, group: Collection[IPNetwork], owner: Owner, undo: AsyncExitStack
    ) -> Lease:
        candidates = [i for i, subnet in enumerate(record.network.subnets) if subnet.pool in group]
        # Subnets with an address retained for this name come first.
        candidates.sort(key=lambda i: self._allocator.retained_for(record.pools[i], owner, None) is None)
        for index in candidates[:-1]:
            try:
                return await self._lease(record, index, None, owner, undo)
            except Exception as exc:
                if getattr(exc, "kind", "") != "unavailable":
                    raise
        return await self._lease(record, candidates[-1], None, owner, undo)


def _groups(net: Network, spec: EndpointSpec) -> tuple[tuple[IPNetwork, ...], ...]:
    """Return sets of subnets. An endpoint gets one address of each set."""
    if spec.groups is not None:
        return spec.groups
    pools = [subnet.pool for subnet in net.subnets]
    return tuple(tuple(pool for pool in pools if pool.version == family) for family in net.families())


def _hit(group: Collection[IPNetwork], addresses: Collection[IPAddress]) -> bool:
    return any(address in pool for address in addresses for pool in group)


def lease_of(allocator: Allocator, record: NetworkRecord, address: IPAddress) -> Lease | None:
    """Return the lease of an address of the network, None if it is free."""
    for pool, subnet in zip(record.pools, record.network.subnets, strict=True):
        if address in subnet.pool and (lease := allocator.lease(pool, address)):
            return lease
    return None


def _with_length(net: Network, address: IPAddress) -> IPInterface:
    return ip_interface(f"{address}/{net.subnets[_index_of(net, address)].pool.prefixlen}")


def _pools_of(net: Network) -> set[IPNetwork]:
    return {subnet.pool for subnet in net.subnets}


async def pass_on(allocator: Allocator, lease: Lease, others: Collection[NetworkRecord]) -> None:
    """Release a lease whose owner is gone. A LAN's gateway goes to another one of its networks, if there is one."""
    owner = lease.owner
    heir = _routed_by(lease.address, lease.pool, others) if owner.kind is OwnerKind.GATEWAY else None
    if heir is not None:
        await allocator.assign(lease.pool, lease.address, replace(owner, id=heir.id, name=heir.name))
    else:
        await allocator.release_address(lease.pool, lease.address)


def _routed_by(gateway: IPAddress, pool: str, records: Collection[NetworkRecord]) -> Network | None:
    """Return a network with this pool and gateway, if there is one."""
    nets = (record.network for record in records if pool in record.pools)
    return next((it for it in nets if any(sub.gateway and sub.gateway.ip == gateway for sub in it.subnets)), None)


def _refuse_overlap(pool: IPNetwork, others: Collection[Network], removal: Callable[[str], str]) -> None:
    for other in others:
        for subnet in other.subnets:
            if subnet.pool.version == pool.version and subnet.pool.overlaps(pool):
                command = removal(other.id)
                raise NetplugError(
                    "exists",
                    f"subnet {pool} overlaps {subnet.pool} of network {other.name!r}",
                    hint=f"choose another --subnet, or {command}" if command else "choose another --subnet",
                )


def _within(address: IPAddress, pool: Pool) -> IPInterface:
    return ip_interface(f"{address}/{pool.network.prefixlen}")


def _index_of(net: Network, address: IPAddress) -> int:
    for index, subnet in enumerate(net.subnets):
        if address in subnet.pool:
            return index
    pools = ", ".join(str(subnet.pool) for subnet in net.subnets) or "none"
    raise NetplugError(
        "invalid", f"address {address} is in no subnet of network {net.name or short(net.id)!r} ({pools})"
    )


__all__ = ["EXTERNAL", "Addressing", "Leased", "Subnets", "lease_of"]
