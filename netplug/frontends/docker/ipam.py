"""libnetwork's remote IPAM protocol ("IpamDriver"): requests and answers of `engine.pools`."""

from collections.abc import Awaitable, Callable

from pydantic import Field

from netplug.drivers.steps import IPAddress
from netplug.engine import Engine
from netplug.engine.pools import ContainerOf, container_unknown
from netplug.errors import NetplugError
from netplug.frontends.docker.wire import OWN_KEYS, SPACES, Empty, Wire, address, interface
from netplug.ipam.lease import Owner, OwnerKind
from netplug.ipam.pool import parse_network

_GATEWAY = "com.docker.network.gateway"
_KNOWN_OPTIONS = frozenset({"name"})


class Capabilities(Wire):
    """With replay, dockerd repeats after a crash what it still has, and activates us before anything else."""

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
    """The methods of the protocol, each one use case of the engine."""

    def __init__(self, engine: Engine, container_of: ContainerOf = container_unknown) -> None:
        """`container_of`: infers which container asks, if Docker does not tell."""
        self._pools = engine.pools
        self._container_of = container_of

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
        request.check()
        network = parse_network(request.Pool[:80]) if request.Pool else None
        part = parse_network(request.SubPool[:80], what="ip-range") if request.SubPool else None
        name = (request.Options or {}).get("name", "")
        pool = await self._pools.request(request.space(), network, part, v6=request.V6, cluster_name=name)
        return PoolGiven(PoolID=pool.id, Pool=str(pool.network))

    async def release_pool(self, request: PoolRef) -> Empty:
        await self._pools.release(request.PoolID)
        return Empty()

    async def request_address(self, request: RequestAddress) -> AddressGiven:
        wanted = _address(request.Address) if request.Address else None
        pool_id = request.PoolID[:256]
        if not pool_id:
            words = "Docker has no pool for this network: it was refused, or not answered, when dockerd started"
            raise NetplugError("not_found", words, hint="restart dockerd")
        given = await self._pools.request_address(pool_id, wanted, request.owner(), request.mac(), self._container_of)
        return AddressGiven(Address=str(given))

    async def release_address(self, request: ReleaseAddress) -> Empty:
        await self._pools.release_address(request.PoolID, _address(request.Address))
        return Empty()


def _address(text: str) -> IPAddress:
    """Read an address. Some versions of Docker's tools add a prefix length."""
    return interface(text, "address").ip if "/" in text else address(text, "address")
