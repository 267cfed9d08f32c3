"""libnetwork's remote IPAM protocol ("IpamDriver").

Docker asks for a pool and its gateway before it makes the network, and for an address before it makes the endpoint:
such leases are *pending* until the engine assigns them. It gives them back before it deletes the network, and after
it deleted the endpoint; what still belongs to somebody is then left to them.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import structlog
from pydantic import Field

from netplug.drivers.naming import short
from netplug.drivers.steps import IPAddress
from netplug.engine import Engine
from netplug.engine.records import FrontEnd
from netplug.errors import NetplugError
from netplug.frontends.docker.wire import OWN_KEYS, SPACES, Empty, Wire, address, interface
from netplug.ipam.lease import Lease, Owner, OwnerKind
from netplug.ipam.pool import GLOBAL, Pool, parse_network

log = structlog.get_logger(__name__)

_GATEWAY = "com.docker.network.gateway"
_KNOWN_OPTIONS = frozenset({"name"})


Who = Callable[[str], Awaitable[str]]


async def nobody_known(_: str) -> str:
    """Say that it is not known who asks."""
    return ""


class Capabilities(Wire):
    """With the replay dockerd tells us after a crash what it still has, and activates us before anything else."""

    RequiresMACAddress: bool = False
    RequiresRequestReplay: bool = True


class AddressSpaces(Wire):
    LocalDefaultAddressSpace: str = "netplug-local"
    GlobalDefaultAddressSpace: str = "netplug-global"


class RequestPool(Wire):
    """`SubPool` is ``--ip-range``, `Options` are the ``--ipam-opt``."""

    AddressSpace: str = ""
    Pool: str = ""
    SubPool: str = ""
    Options: dict[str, str] | None = None
    V6: bool = False

    def space(self) -> str:
        if self.AddressSpace not in {"", *SPACES}:
            raise NetplugError(
                "invalid",
                f"address space {self.AddressSpace[:80]!r} is unknown",
                hint=f"choose one of {', '.join(SPACES)}",
            )
        return SPACES.get(self.AddressSpace, "local")

    def check(self) -> None:
        """Refuse options that we do not have."""
        for key in self.Options or {}:
            if key not in _KNOWN_OPTIONS and not key.startswith(OWN_KEYS):
                known = ", ".join(sorted(_KNOWN_OPTIONS))
                raise NetplugError("invalid", f"unknown --ipam-opt {key[:80]!r}", hint=f"known options: {known}")


class PoolGiven(Wire):
    PoolID: str
    Pool: str
    Data: dict[str, str] = Field(default_factory=dict)


class PoolRef(Wire):
    PoolID: str


class AddressOptions(Wire):
    """`name`: the container's (29.0+)."""

    kind: str | None = Field(default=None, alias="RequestAddressType")
    name: str | None = Field(default=None, alias="com.docker.network.endpoint.name")
    mac: str | None = Field(default=None, alias="com.docker.network.endpoint.macaddress")


class RequestAddress(PoolRef):
    Address: str = ""
    Options: AddressOptions | None = None

    def owner(self) -> Owner:
        options = self.Options or AddressOptions()
        kind = OwnerKind.GATEWAY if options.kind == _GATEWAY else OwnerKind.PENDING
        return Owner(kind, name=(options.name or "")[:128])

    def mac(self) -> str:
        return (self.Options.mac or "")[:17] if self.Options else ""


class AddressGiven(Wire):
    Address: str
    Data: dict[str, str] = Field(default_factory=dict)


class ReleaseAddress(PoolRef):
    Address: str


class IpamDriver:
    """The methods of the protocol."""

    def __init__(self, engine: Engine, who: Who = nobody_known) -> None:
        """`who`: infers which container asks, where Docker does not tell."""
        self._engine = engine
        self._allocator = engine.allocator
        self._who = who
        self._asking = asyncio.Lock()

    def methods(self) -> dict[str, Callable[..., Awaitable[Wire]]]:
        """Return the methods by their names in the protocol."""
        return {
            "RequestAddress": self.request_address,
            "ReleaseAddress": self.release_address,
            "GetDefaultAddressSpaces": self.spaces,
            "RequestPool": self.request_pool,
            "ReleasePool": self.release_pool,
            "GetCapabilities": self.capabilities,
        }

    async def capabilities(self) -> Capabilities:
        return Capabilities()

    async def spaces(self) -> AddressSpaces:
        return AddressSpaces()

    async def request_pool(self, request: RequestPool) -> PoolGiven:
        """Give a pool; one that we choose avoids what the host has routes to."""
        request.check()
        network = parse_network(request.Pool[:80]) if request.Pool else None
        part = parse_network(request.SubPool[:80], what="ip-range") if request.SubPool else None
        space = request.space()
        name, cluster = (request.Options or {}).get("name", ""), self._engine.networks.cluster
        if name and cluster is not None:
            network, _ = await cluster.subnet(name, network, v6=request.V6)
            space = GLOBAL
        routes = (await self._engine.base_plan.read_host()).routes if network is None else ()
        pool = await self._allocator.request_pool(
            space, network=network, range=part, v6=request.V6, avoid=[route for route, _ in routes]
        )
        return PoolGiven(PoolID=pool.id, Pool=str(pool.network))

    async def release_pool(self, request: PoolRef) -> Empty:
        await self._allocator.release_pool(request.PoolID)
        return Empty()

    async def request_address(self, request: RequestAddress) -> AddressGiven:
        wanted = _address(request.Address) if request.Address else None
        owner, pool = request.owner(), self._allocator.pool(request.PoolID[:256])
        if pool and pool.sticky_s and wanted is None and owner == Owner(OwnerKind.PENDING):
            # One at a time, since who has got an address tells who asks for the next.
            async with self._asking:
                lease = await self._lease(request, wanted, replace(owner, name=await self._who(pool.id)))
        else:
            lease = await self._lease(request, wanted, owner)
        pool = self._allocator.pool(lease.pool)
        if pool is not None and self._unaddressed(pool):
            # Docker insists on an address, which nobody will bear.
            await self._allocator.release_address(pool.id, lease.address, forget=True)
        length = pool.network.prefixlen if pool is not None else lease.address.max_prefixlen
        return AddressGiven(Address=f"{lease.address}/{length}")

    async def _lease(self, request: RequestAddress, wanted: IPAddress | None, owner: Owner) -> Lease:
        pool = request.PoolID[:256]
        held = self._allocator.pool(pool)
        if owner.kind is OwnerKind.GATEWAY and held is not None and held.space == GLOBAL:
            return await self._gateway(held, wanted, owner)
        if owner.kind is OwnerKind.PENDING:
            return await self._engine.conflict_detection.request(pool, wanted, owner, request.mac())
        return await self._allocator.request_address(pool, address=wanted, owner=owner, mac=request.mac())

    async def _gateway(self, pool: Pool, wanted: IPAddress | None, owner: Owner) -> Lease:
        """Give the gateway of a network of the cluster, which is the same on all hosts; it may be here already."""
        cluster = self._engine.networks.cluster
        if wanted is None and cluster is not None:
            wanted = await cluster.gateway(pool.network)
        wanted = wanted or pool.network[1]
        lease = self._allocator.lease(pool.id, wanted)
        if lease is not None and lease.owner.kind is OwnerKind.GATEWAY:
            return lease
        return await self._allocator.request_address(pool.id, address=wanted, owner=owner)

    async def release_address(self, request: ReleaseAddress) -> Empty:
        """Give an address back, unless a network or an endpoint of ours still lives on it."""
        wanted = _address(request.Address)
        lease = self._allocator.lease(request.PoolID, wanted)
        if lease is not None and not await self._lives(lease):
            await self._allocator.release_address(request.PoolID, wanted)
        return Empty()

    def _unaddressed(self, pool: Pool) -> bool:
        """Tell whether a pool is of a network whose endpoints have no addresses."""
        for holder in pool.holders:
            with suppress(NetplugError):  # it is just being made
                return not self._engine.registry.network(holder).network.addressed
        return False

    async def _lives(self, lease: Lease) -> bool:
        """Tell whether an address must stay.

        Docker gives a gateway back before it deletes the network: it goes with the pool. An endpoint of Docker's whose
        address it gives back is dead, whether or not we heard of its end.
        """
        registry, owner = self._engine.registry, lease.owner
        pool = self._allocator.pool(lease.pool)
        holders = pool.holders if pool is not None else ()
        if owner.kind is not OwnerKind.ENDPOINT:
            return owner.id in holders
        for network in holders:
            built = registry.find(network, owner.id)
            if built is not None and built.front_end is not FrontEnd.DOCKER:
                return True
            if built is not None:
                log.warning("endpoint.dead", endpoint=short(owner.id), released=str(lease.address))
                await self._engine.endpoints.delete(network, owner.id)
        return False


def _address(text: str) -> IPAddress:
    """Read an address; with a prefix length too, as some versions of Docker's tools write it."""
    return interface(text, "address").ip if "/" in text else address(text, "address")
