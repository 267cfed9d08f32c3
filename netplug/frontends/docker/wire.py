"""The remote driver's JSON, as dockerd writes and reads it: its field names, and a `to_spec` for each request.

pydantic checks types. `to_spec` checks the contents of strings (addresses, ports), with errors in plain words. Optional
fields may be absent or null, because of Go's `omitempty` and nil maps.
"""

from collections.abc import Mapping
from ipaddress import ip_address, ip_interface
from re import compile as regex
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from netplug.drivers.api import Attachment, PortMapping
from netplug.drivers.checked_texts import is_namespace
from netplug.drivers.steps import IPAddress, IPInterface, Proto
from netplug.engine.addressing import EXTERNAL
from netplug.engine.records import EndpointRecord, EndpointSpec, FrontEnd, NetworkSpec, SubnetSpec
from netplug.errors import NetplugError
from netplug.errors.validation import shown
from netplug.frontends.first_error import FirstError
from netplug.ipam.pool import parse_network

SPACES = {"netplug-local": "local", "netplug-global": "global"}
"""Our address spaces by the names that Docker knows them by."""

NO_IPAM = "null"
"""Address space of ``--ipam-driver null``: the network has no addresses."""

OWN_KEYS = "com.docker."
"""Options that begin so are Docker's; we need not know them all."""


def _namespace(text: str) -> str:
    if text and not is_namespace(text):
        raise ValueError(f"{text[:80]!r} is not the path of a namespace")
    return text


Ident = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]
Path = Annotated[str, StringConstraints(max_length=4096), AfterValidator(_namespace)]

_PROTOS = {6: Proto.TCP, 17: Proto.UDP, 132: Proto.SCTP}
_MAC = regex(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")


class Wire(BaseModel):
    """The base of all messages. Unknown fields are ignored: a later Docker may send them."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Empty(Wire):
    """``{}``: success."""


# Requests: networks


class IpamData(Wire):
    """A subnet of a network, as its IPAM driver gave it."""

    AddressSpace: str = ""
    Pool: str = ""
    Gateway: str | None = None
    AuxAddresses: dict[str, str] | None = None

    def to_spec(self) -> SubnetSpec | None:
        """Return the subnet; None if the network has no addresses."""
        if self.AddressSpace == NO_IPAM:
            return None
        pool = parse_network(self.Pool[:80], what="subnet")
        aux = tuple((name[:128], interface(text, "aux-address").ip) for name, text in (self.AuxAddresses or {}).items())
        return SubnetSpec(
            pool,
            interface(self.Gateway, "gateway").ip if self.Gateway else None,
            aux=aux,
            space=SPACES.get(self.AddressSpace, EXTERNAL),
            v6=pool.version == 6,
        )


class NetworkOptions(Wire):
    """Options of a network; ``-o key=value`` lie in `generic`, a flag without a value has the value "".

    Docker's ``enable_ipv4`` and ``enable_ipv6`` follow from the subnets, and are not read.
    """

    generic: dict[str, str] | None = Field(default=None, alias="com.docker.network.generic")
    internal: bool | None = Field(default=None, alias="com.docker.network.internal")

    def raw(self) -> Mapping[str, str]:
        return self.generic or {}


class GwAllocCheck(Wire):
    """Docker 28 asks, before IPAM, whether the network needs gateway addresses."""

    Options: NetworkOptions | None = None

    def raw(self) -> Mapping[str, str]:
        return self.Options.raw() if self.Options else {}


class CreateNetwork(GwAllocCheck):
    NetworkID: Ident
    IPv4Data: list[IpamData] | None = None
    IPv6Data: list[IpamData] | None = None

    def to_spec(self) -> NetworkSpec:
        data = [*(self.IPv4Data or ()), *(self.IPv6Data or ())]
        subnets = tuple(subnet for item in data if (subnet := item.to_spec()) is not None)
        internal = bool(self.Options and self.Options.internal)
        return NetworkSpec(
            self.NetworkID, options=self.raw(), subnets=subnets, internal=internal, front_end=FrontEnd.DOCKER
        )


class NetworkRef(Wire):
    NetworkID: Ident


# Requests: endpoints


class PortBinding(Wire):
    """An item of the port map; `IP` is always empty."""

    Proto: int
    Port: int
    HostIP: str | None = None
    HostPort: int = 0
    HostPortEnd: int = 0

    def to_spec(self) -> PortMapping:
        if self.Proto not in _PROTOS:
            raise _invalid(
                f"port {self.Port} has protocol {self.Proto}, which is none of 6 (tcp), 17 (udp), 132 (sctp)"
            )
        if not 1 <= self.Port <= 65535:
            raise _invalid(f"container port {self.Port} is not from 1 to 65535")
        first, last = self.HostPort, self.HostPortEnd or self.HostPort
        if not 0 <= first <= last <= 65535 or (first == 0 and last > 0):
            raise _invalid(f"host ports {first}-{last} are no range from 1 to 65535")
        host = address(self.HostIP, "host address") if self.HostIP else None
        return PortMapping(_PROTOS[self.Proto], self.Port, host, first, last if last > first else 0)


class SandboxOptions(Wire):
    """A container's ports. All other keys are for Docker's own drivers."""

    portmap: Annotated[list[PortBinding], FirstError()] | None = Field(default=None, alias="com.docker.network.portmap")

    def ports(self) -> tuple[PortMapping, ...] | None:
        """Return the published ports; None if the request has no port map."""
        if self.portmap is None:
            return None
        return tuple(dict.fromkeys(item.to_spec() for item in self.portmap))


class EndpointOptions(SandboxOptions):
    """As `SandboxOptions`, with each ``--driver-opt`` flat beside Docker's own keys."""

    model_config = ConfigDict(extra="allow")

    def raw(self) -> dict[str, str]:
        """Return the driver options."""
        given = (self.model_extra or {}).items()
        return {key: _text(value) for key, value in given if not key.startswith(OWN_KEYS)}


class Asked(Wire):
    """Addresses of an endpoint; "" is none."""

    Address: str = ""
    AddressIPv6: str = ""
    MacAddress: str = ""

    def addresses(self) -> tuple[IPInterface, ...]:
        found = []
        for text, version in ((self.Address, 4), (self.AddressIPv6, 6)):
            if not text:
                continue
            found.append(interface(text, "address"))
            if found[-1].version != version:
                raise _invalid(f"address {text[:80]} is not an IPv{version} address")
        return tuple(found)

    def mac(self) -> str:
        mac = self.MacAddress.lower()
        if mac and not _MAC.fullmatch(mac):
            raise _invalid(f"MAC address {self.MacAddress[:80]!r} is not written as 02:42:ac:11:00:02")
        if mac and (int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00"):
            raise _invalid(f"MAC address {mac} is of a group or of nobody, not of one interface")
        return mac


class EndpointRef(NetworkRef):
    EndpointID: Ident


class CreateEndpoint(EndpointRef):
    Interface: Asked | None = None
    Options: EndpointOptions | None = None

    def to_spec(self) -> EndpointSpec:
        options, wanted = self.Options or EndpointOptions(), self.Interface or Asked()
        return EndpointSpec(
            self.EndpointID,
            self.NetworkID,
            wanted.addresses(),
            wanted.mac(),
            options.ports() or (),
            options=options.raw(),
        )


class Join(EndpointRef):
    SandboxKey: Path
    Options: dict[str, Any] | None = None


class ProgramExternalConnectivity(EndpointRef):
    Options: SandboxOptions | None = None

    def ports(self) -> tuple[PortMapping, ...] | None:
        return self.Options.ports() if self.Options else None


# Answers


class Activated(Wire):
    Implements: tuple[str, ...] = ("NetworkDriver", "IpamDriver")


class NetworkCapabilities(Wire):
    """Scope local: a plugin of the socket kind is refused by swarm in any case, and "global" needs swarm."""

    Scope: str = "local"
    ConnectivityScope: str = "global"
    GwAllocChecker: bool = True


class GatewaysSkipped(Wire):
    SkipIPv4: bool
    SkipIPv6: bool


class ChosenInterface(Wire):
    Address: str | None = None
    AddressIPv6: str | None = None
    MacAddress: str | None = None


class EndpointCreated(Wire):
    """Only values that the request left open: Docker refuses an answer that repeats given ones."""

    Interface: ChosenInterface

    @classmethod
    def of(cls, request: CreateEndpoint, built: EndpointRecord) -> "EndpointCreated":
        asked = request.Interface or Asked()
        by_version = {address.version: str(address) for address in built.endpoint.addresses}
        return cls(
            Interface=ChosenInterface(
                Address=None if asked.Address else by_version.get(4),
                AddressIPv6=None if asked.AddressIPv6 else by_version.get(6),
                MacAddress=None if asked.MacAddress else built.endpoint.mac or None,
            )
        )


class LinkName(Wire):
    SrcName: str
    DstPrefix: str


class StaticRoute(Wire):
    """`RouteType` 0: by way of `NextHop`; 1: on the link."""

    Destination: str
    RouteType: int
    NextHop: str | None = None


class Joined(Wire):
    """The sandbox's side of the endpoint. Without `InterfaceName` it gets no interface.

    Without a gateway Docker adds an interface on docker_gwbridge, unless `DisableGatewayService` is set.
    """

    InterfaceName: LinkName | None = None
    Gateway: str | None = None
    GatewayIPv6: str | None = None
    StaticRoutes: tuple[StaticRoute, ...] | None = None
    DisableGatewayService: bool | None = None

    @classmethod
    def of(cls, attachment: Attachment) -> "Joined":
        gateways = {} if attachment.isolated else {gateway.version: str(gateway) for gateway in attachment.gateways}
        routes = tuple(
            StaticRoute(
                Destination=str(route.destination),
                RouteType=0 if route.gateway else 1,
                NextHop=str(route.gateway) if route.gateway else None,
            )
            for route in attachment.routes
        )
        return cls(
            InterfaceName=LinkName(SrcName=attachment.link, DstPrefix=attachment.prefix) if attachment.link else None,
            Gateway=gateways.get(4),
            GatewayIPv6=gateways.get(6),
            StaticRoutes=routes or None,
            DisableGatewayService=True if attachment.isolated else None,
        )


class OperInfo(Wire):
    """Values for ``curl`` and debuggers: Docker shows none of them (it looks for Go types)."""

    Value: dict[str, str | list[str]]


# Texts


def interface(text: str, what: str) -> IPInterface:
    """Return an address with its prefix length; `what` names it in errors."""
    try:
        found = ip_interface(text)
    except ValueError:
        raise _invalid(f"{what} {text[:80]!r} is not an address like 10.1.0.2/16") from None
    if "%" in text:
        raise _invalid(f"{what} {text[:80]!r} has a zone")
    return found


def address(text: str, what: str) -> IPAddress:
    """Return an address; `what` names it in errors."""
    try:
        found = ip_address(text)
    except ValueError:
        raise _invalid(f"{what} {text[:80]!r} is not an IP address") from None
    if "%" in text:
        raise _invalid(f"{what} {text[:80]!r} has a zone")
    return found


def _invalid(message: str, *, hint: str = "") -> NetplugError:
    return NetplugError("invalid", message, hint=hint)


def _text(value: object) -> str:
    return shown(value) if isinstance(value, bool) else str(value)
