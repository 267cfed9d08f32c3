"""The bodies of the REST API. Their field names are a contract: `netplug … --json` prints them.

Answers have the parts of records that a user wants to see. Requests are checked as far as possible without knowing the
host. Unknown fields are refused by name.
"""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from netplug.cluster.hosts import Host
from netplug.cluster.records import EndpointAdvert
from netplug.drivers.api import Network, PortMapping, Scope
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import Proto
from netplug.engine.conditions import Difference
from netplug.engine.exposure import added, published
from netplug.engine.records import AttachSpec, EndpointRecord, NetworkRecord, NetworkSpec, Origin, SubnetSpec
from netplug.frontends.first_error import FirstError
from netplug.frontends.rest.fields import MOST, Cidr, HostPort, Ifname, Ip, Labels, Mac, Name, Netns, Port, Ref
from netplug.names.dns_records import Resolving


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SubnetIn(_In):
    subnet: Cidr
    gateway: Ip | None = None
    range: Cidr | None = None

    @model_validator(mode="after")
    def _inside(self) -> Self:
        if self.gateway is not None and self.gateway not in self.subnet:
            raise ValueError(f"gateway {self.gateway} is not in subnet {self.subnet}")
        if self.range is not None and not (
            self.range.network_address in self.subnet and self.range.broadcast_address in self.subnet
        ):
            raise ValueError(f"range {self.range} is not in subnet {self.subnet}")
        return self

    def to_spec(self) -> SubnetSpec:
        return SubnetSpec(self.subnet, self.gateway, self.range, v6=self.subnet.version == 6)


class NetworkIn(_In):
    """`ipv6`: both IP versions; a subnet is chosen for one without. `options`: as of ``-o key=value``.

    `cluster`: on all hosts; the mode is then overlay, unless another is given that can be that. `labels`: as of
    ``--label key=value``.
    """

    name: Name
    subnets: Annotated[tuple[SubnetIn, ...], Field(max_length=MOST)] = ()
    internal: bool = False
    ipv6: bool = False
    cluster: bool = False
    options: dict[str, str] = {}
    labels: Labels = {}

    def to_spec(self, drivers: Drivers) -> NetworkSpec:
        given = tuple(subnet.to_spec() for subnet in self.subnets)
        options = {"mode": drivers.default(Scope.CLUSTER), **self.options} if self.cluster else self.options
        driver = drivers.get(options.get("mode") or drivers.default())
        wanted = {4, 6} if self.ipv6 else set() if given or not (driver and driver.addressed) else {4}
        missing = sorted(wanted - {subnet.subnet.version for subnet in self.subnets})
        chosen = tuple(SubnetSpec(v6=family == 6) for family in missing)
        return NetworkSpec(
            name=self.name, options=options, subnets=given + chosen, internal=self.internal, labels=self.labels
        )


class PortIn(_In):
    """`host_port` 0: any free one; `host_port_end` above it: the first free one of the range."""

    port: Port
    proto: Literal["tcp", "udp", "sctp"] = "tcp"
    host_address: Ip | None = None
    host_port: HostPort = 0
    host_port_end: HostPort = 0

    def to_spec(self) -> PortMapping:
        return PortMapping(Proto(self.proto), self.port, self.host_address, self.host_port, self.host_port_end)


class DetachIn(_In):
    network: Ref
    netns: Netns
    ifname: Ifname = "eth0"


class AttachIn(DetachIn):
    name: Name | Literal[""] = ""
    aliases: Annotated[tuple[Name, ...], Field(max_length=MOST)] = ()
    addresses: Annotated[tuple[Ip, ...], Field(max_length=MOST)] = ()
    mac: Mac | Literal[""] = ""
    ports: Annotated[tuple[PortIn, ...], Field(max_length=65535), FirstError()] = ()
    options: dict[str, str] = {}

    def to_spec(self) -> AttachSpec:
        ports = tuple(port.to_spec() for port in self.ports)
        return AttachSpec(
            self.network,
            self.netns,
            self.ifname,
            self.name,
            self.aliases,
            self.addresses,
            self.mac,
            ports,
            self.options,
        )


class SubnetOut(BaseModel):
    subnet: str
    gateway: str | None


class NetworkOut(BaseModel):
    """`created`: ISO 8601, UTC; none if an older version made the network."""

    id: str
    name: str
    mode: str
    subnets: list[SubnetOut]
    internal: bool
    front_end: str
    options: dict[str, str]
    mtu: int
    endpoint_count: int
    labels: dict[str, str]
    created: str | None

    @classmethod
    def of(cls, record: NetworkRecord, endpoint_count: int) -> Self:
        net = record.network
        subnets = [
            SubnetOut(subnet=str(subnet.pool), gateway=str(subnet.gateway.ip) if subnet.gateway else None)
            for subnet in net.subnets
        ]
        return cls(
            id=net.id,
            name=net.name,
            mode=net.options.mode,
            subnets=subnets,
            internal=net.internal,
            front_end=record.front_end,
            options=dict(record.options),
            mtu=net.options.mtu,
            endpoint_count=endpoint_count,
            labels=dict(record.labels),
            created=_time(record.created) if record.created else None,
        )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


class EndpointOut(BaseModel):
    """`interface`: its name in the sandbox, if we gave it. `ports`: such as ``0.0.0.0:8080->80/tcp``.

    `added_ports`: those of `ports` that ``netplug publish`` added. `sandbox`, `interface` and ports of an endpoint on
    another host are empty.
    """

    id: str
    network: str
    network_id: str
    name: str
    aliases: list[str]
    container: str
    addresses: list[str]
    mac: str
    host: str
    front_end: str
    sandbox: str
    interface: str
    ports: list[str]
    added_ports: list[str]

    @classmethod
    def of(cls, record: EndpointRecord, network: str, host: str, ports: list[str]) -> Self:
        ep = record.endpoint
        return cls(
            id=ep.id,
            network=network,
            network_id=ep.network,
            name=record.name,
            aliases=list(record.aliases),
            container=record.container,
            addresses=[str(address) for address in ep.addresses],
            mac=ep.mac,
            host=host,
            front_end=record.front_end,
            sandbox=record.sandbox,
            interface=record.ifname,
            ports=ports,
            added_ports=added(record),
        )

    @classmethod
    def of_other(cls, network: Network, host: str, ident: str, told: EndpointAdvert) -> Self:
        lengths = {subnet.pool: subnet.pool.prefixlen for subnet in network.subnets}
        return cls(
            id=ident,
            network=network.name,
            network_id=network.id,
            name=told.name,
            aliases=list(told.names[1:]),
            container=told.container,
            addresses=[
                f"{it}/{next((n for pool, n in lengths.items() if it in pool), it.max_prefixlen)}"
                for it in told.addresses
            ],
            mac=told.mac,
            host=host,
            front_end=told.front_end,
            sandbox="",
            interface="",
            ports=[],
            added_ports=[],
        )


class OriginOut(BaseModel):
    options: dict[str, str]
    internal: bool

    @classmethod
    def of(cls, origin: Origin) -> Self:
        return cls(options=dict(origin.options), internal=origin.internal)


class NetworkDetail(NetworkOut):
    """`as_created`: before updates. `note`: why endpoints are missing; empty if none are."""

    as_created: OriginOut
    endpoints: list[EndpointOut] = []
    note: str = ""


class RouteOut(BaseModel):
    destination: str
    gateway: str | None


class DnsOut(BaseModel):
    """For resolv.conf(5); empty if the sandbox cannot reach the name server."""

    nameservers: list[str]
    search: list[str]


class AttachOut(BaseModel):
    endpoint: str
    network: str
    sandbox: str
    interface: str
    mac: str
    mtu: int
    addresses: list[str]
    gateways: list[str]
    routes: list[RouteOut]
    ports: list[str]
    dns: DnsOut

    @classmethod
    def of(cls, record: EndpointRecord, network: str, names: Resolving) -> Self:
        ep, attachment = record.endpoint, record.attachment
        linked = attachment.link is not None
        return cls(
            endpoint=ep.id,
            network=network,
            sandbox=record.sandbox,
            interface=record.ifname if linked else "",
            mac=attachment.mac,
            mtu=attachment.mtu,
            addresses=[str(address) for address in ep.addresses] if linked else [],
            gateways=[str(gateway) for gateway in attachment.gateways],
            routes=[
                RouteOut(destination=str(route.destination), gateway=str(route.gateway) if route.gateway else None)
                for route in attachment.routes
            ],
            ports=[text for _, text in published(record)],
            dns=DnsOut(nameservers=list(names.servers), search=list(names.search)),
        )


class DifferenceOut(BaseModel):
    owner: str
    object: str
    what: str

    @classmethod
    def of(cls, found: Difference) -> Self:
        return cls(owner=found.owner, object=found.object, what=found.what)


class HostOut(BaseModel):
    """A host of the cluster. `vtep`: None if its record is unreadable. `me`: it is the host that answers.

    `notes`: its faults. `behind`: the networks, by name, that it has not as they are defined, and why. `version`: of
    its daemon, empty if that is 0.1.0 or older. `schema_version`: of what it writes.
    """

    id: str
    name: str
    vtep: str | None
    alive: bool
    me: bool
    endpoints: int
    addresses: int
    notes: list[str]
    behind: dict[str, str]
    version: str
    schema_version: int

    @classmethod
    def of(cls, host: Host) -> Self:
        return cls(**{**asdict(host), "vtep": str(host.vtep) if host.vtep else None, "notes": list(host.notes)})


class Hosts(BaseModel):
    hosts: list[HostOut]


class Networks(BaseModel):
    networks: list[NetworkOut]
    note: str = ""


class Endpoints(BaseModel):
    endpoints: list[EndpointOut]
    note: str = ""


class Differences(BaseModel):
    """`networks`, `endpoints`: how many of this host's were compared."""

    differences: list[DifferenceOut]
    networks: int
    endpoints: int


class Version(BaseModel):
    version: str
    host: str
    pid: int
