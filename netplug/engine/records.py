"""Records of networks and endpoints, and the specifications by which front ends ask for them.

Docker never repeats a request to a plugin. So a record holds all that is needed to answer later requests, to rebuild
the kernel's state after a crash, and to take it down again: also the plan, as it was applied.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from netplug.drivers import summary
from netplug.drivers.api import Attachment, Endpoint, Network, PortMapping, StaticRoute
from netplug.drivers.checked_texts import LinkOrNone, NamespaceOrNone
from netplug.drivers.codec import APART, OMIT_DEFAULT
from netplug.drivers.naming import short
from netplug.drivers.plan import Plan
from netplug.drivers.steps import IPAddress, IPInterface, IPNetwork

NETWORKS = "networks/"
ENDPOINTS = "endpoints/"
CREATED = "created/"
"""By network: when it was created. Every network has one, so a field would keep earlier versions from reading it."""


class FrontEnd(StrEnum):
    """The front end that made a network or endpoint. It decides which others may delete it."""

    DOCKER = "docker"
    CLI = "cli"
    CNI = "cni"
    NETAVARK = "netavark"

    @property
    def shares(self) -> bool:
        """Whether its runtimes and plugins change sandboxes too: they tune links there, and bind published ports."""
        return self in {FrontEnd.CNI, FrontEnd.NETAVARK}

    def removal(self, network: str) -> str:
        """Return the command that removes a network of its, by name, or the two that a user may need.

        Docker may never have heard of it. It is not asked here: it holds locks while it waits for our answer.
        """
        ours = f"netplug network rm {network}"
        return f"docker network rm {network}, or if not found {ours}" if self is FrontEnd.DOCKER else ours


@dataclass(frozen=True, slots=True)
class Caller:
    """The runtime that asks for an endpoint. `pid`: of its process that calls; `runtime`: see `kernel.runtimes`."""

    pid: int = 0
    runtime: str = ""


@dataclass(frozen=True, slots=True)
class SubnetSpec:
    """A subnet as asked for.

    `pool` None: one is chosen. `space`: IPAM address space; "external" if another IPAM (Docker's own) gives out the
    addresses. `gateway` None: the first address, if the mode has a gateway. `aux`: addresses that are never given out,
    by name. `ends`: first and last address to give out, if that range is no subnet.
    """

    pool: IPNetwork | None = None
    gateway: IPAddress | None = None
    range: IPNetwork | None = None
    aux: tuple[tuple[str, IPAddress], ...] = ()
    space: str = "local"
    v6: bool = False
    ends: tuple[IPAddress, IPAddress] | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """How a network was created. `options`: as in `NetworkSpec`."""

    options: Mapping[str, str]
    internal: bool = False


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """A network as asked for. `options`: the raw ``-o key=value``. An empty `id` or `name` is generated.

    `cluster`: the name in the cluster of a network that is on several hosts. Each host may have its own id for it.
    `created`, `origin`, `version`: of a network of the cluster, as it is defined; see `NetworkRecord`. `claimed`: the
    Docker that we listen to asks for it.
    """

    id: str = ""
    name: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    subnets: tuple[SubnetSpec, ...] = ()
    internal: bool = False
    front_end: FrontEnd = FrontEnd.CLI
    cluster: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    created: float = 0.0
    origin: Origin | None = None
    version: int = 0
    claimed: bool = False


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """An endpoint as asked for.

    Addresses have the prefix length of their subnet. `name`: the container's, if known. `netns`: path of the sandbox in
    which the link is made at once, as `ifname`; empty if a runtime moves the link there. `netns_id`: its identity
    (`Kernel.sandbox`). `options`: as the user wrote them. `groups`: sets of subnets; one address of each set, in place
    of one of each family. `routes`: those of the sandbox, in place of default routes by the gateways. `pinned`: the MAC
    is checked, even if later plugins may tune the link. `elsewhere`: path and identity of a sandbox in which another
    plugin makes the link. `hairpin`: the bridge port may send packets back to where they came from. `ipam`: see
    `EndpointRecord`.
    """

    id: str
    network: str
    addresses: tuple[IPInterface, ...] = ()
    mac: str = ""
    ports: tuple[PortMapping, ...] = ()
    name: str = ""
    aliases: tuple[str, ...] = ()
    front_end: FrontEnd = FrontEnd.DOCKER
    netns: str = ""
    ifname: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    container: str = ""
    groups: tuple[tuple[IPNetwork, ...], ...] | None = None
    routes: tuple[StaticRoute, ...] | None = None
    pinned: bool = False
    netns_id: str = ""
    caller: Caller = Caller()
    elsewhere: tuple[str, str] = ("", "")
    hairpin: bool = False
    ipam: str = ""


@dataclass(frozen=True, slots=True)
class AttachSpec:
    """A network namespace to attach: `netns` is a path, or a name below /run/netns.

    `id`: of the endpoint; empty: made from the namespace and `ifname`. `leased`: addresses that another IPAM chose.
    `groups`, `routes`, `pinned`, `hairpin`: as in `EndpointSpec`.
    """

    network: str
    netns: str
    ifname: str = "eth0"
    name: str = ""
    aliases: tuple[str, ...] = ()
    addresses: tuple[IPAddress, ...] = ()
    mac: str = ""
    ports: tuple[PortMapping, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    id: str = ""
    container: str = ""
    front_end: FrontEnd = FrontEnd.CLI
    leased: tuple[IPInterface, ...] = ()
    groups: tuple[tuple[IPNetwork, ...], ...] | None = None
    routes: tuple[StaticRoute, ...] | None = None
    pinned: bool = False
    caller: Caller = Caller()
    hairpin: bool = False
    ipam: str = ""

    def endpoint(self, ident: str, network: str, netns: str, netns_id: str) -> EndpointSpec:
        """Return the endpoint as asked for. `network` is an id, `netns` a path."""
        return EndpointSpec(
            ident,
            network,
            self.leased,
            mac=self.mac,
            ports=self.ports,
            name=self.name,
            aliases=self.aliases,
            front_end=self.front_end,
            netns=netns,
            ifname=self.ifname,
            options=self.options,
            container=self.container,
            groups=self.groups,
            routes=self.routes,
            pinned=self.pinned,
            netns_id=netns_id,
            caller=self.caller,
            hairpin=self.hairpin,
            ipam=self.ipam,
        )


@dataclass(frozen=True, slots=True)
class Description:
    """An endpoint's container, as its runtime describes it. `details`: whether more than the first two are known.

    `serves`, `healthy`, `domainname`, `resolves`: see `EndpointRecord`.
    """

    container: str
    name: str
    aliases: tuple[str, ...] = ()
    hostname: str = ""
    serves: tuple[str, ...] = ()
    healthy: bool = True
    details: bool = False
    domainname: str = ""
    resolves: float = 0.0


@dataclass(frozen=True, slots=True)
class NetworkRecord:
    """A network as built.

    `pools`: IPAM pool of each subnet. `used`: keys of steps whose objects are not ours to remove. `claimed`: the Docker
    that we listen to has this network; several Dockers may share a plugin folder. `cluster`: as in `NetworkSpec`.
    `bridge`: the link that endpoints are ports of, if any. `resolvers`: addresses of the name server for all endpoints.
    `labels`: the user's notes, without a meaning to netplug. `created`: Unix time; 0: unknown, by an older version.
    `origin`: as it was created; None: it was not changed since. `version`: of a network of the cluster, the number of
    updates of its definition that it has followed.
    """

    network: Network
    front_end: FrontEnd
    pools: tuple[str, ...] = ()
    plan: Plan = field(default_factory=Plan)
    used: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    claimed: bool = False
    cluster: str = ""
    bridge: summary.Link | None = field(default=None, metadata=OMIT_DEFAULT)
    resolvers: tuple[IPAddress, ...] = field(default=(), metadata=OMIT_DEFAULT)
    labels: Mapping[str, str] = field(default_factory=dict, metadata=OMIT_DEFAULT)
    created: float = field(default=0.0, metadata=APART)
    origin: Origin | None = field(default=None, metadata=OMIT_DEFAULT)
    version: int = field(default=0, metadata=OMIT_DEFAULT)

    @property
    def as_created(self) -> Origin:
        """Return how the network was created."""
        return self.origin or Origin(self.options, self.network.internal)

    def summarized(self) -> "NetworkRecord":
        """Return the record with `bridge` and `resolvers` as its plan makes them."""
        found = summary.bridge(self.plan, self.used)
        return replace(self, bridge=found, resolvers=summary.resolvers(self.plan))

    @property
    def key(self) -> str:
        return NETWORKS + self.network.id

    @property
    def described(self) -> str:
        """The network as the owner of an object, in `netplug diff` and in the log."""
        return f"network {self.network.name}"

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of all of its records."""
        return NETWORKS + self.network.id, CREATED + self.network.id


@dataclass(frozen=True, slots=True)
class EndpointRecord:
    """An endpoint as built.

    `endpoint.ports`: the mappings as asked for. `published`: those in force, with definite host ports. `plan`: its
    links. `exposed`: the plan of its published ports. `sandbox`: path of the namespace, empty until Join. `sandbox_id`:
    its identity, since another namespace may come to be at that path; empty: not known yet. `linked` False: Leave
    removed the links, and Join builds them anew. `serves`: ports on which the container listens as its runtime says
    ("80/tcp"), published or not. `healthy` False: its runtime reports it as unhealthy. `domainname`: of the container,
    behind its hostname. `resolves`: its start (Unix time), if it uses the resolvers that the host had then for external
    names; 0: it has others, or it is not known. `runtime`: see `Caller`. `ipam`: how the dhcp plugin is asked for its
    addresses again, as the front end wrote it. `attachment`: the endpoint as its sandbox sees it. `host_link`: the host
    side of its link, if any. `routes`: those that we made in its sandbox; Docker makes them itself. `resolvers`:
    addresses of the name server for this endpoint alone. `hairpin`, `pinned`: as in `EndpointSpec`.

    `added`: mappings that a user added to the living endpoint, with definite host ports; `opened`: those of them that
    are in force. `withheld`: the runtime's ports shall be published, and not all are in force.
    """

    endpoint: Endpoint
    front_end: FrontEnd
    pools: tuple[str, ...] = ()
    name: str = ""
    aliases: tuple[str, ...] = ()
    container: str = ""
    sandbox: NamespaceOrNone = ""
    ifname: LinkOrNone = ""
    linked: bool = True
    plan: Plan = field(default_factory=Plan)
    exposed: Plan = field(default_factory=Plan)
    published: tuple[PortMapping, ...] = ()
    hostname: str = ""
    serves: tuple[str, ...] = ()
    healthy: bool = True
    sandbox_id: str = ""
    domainname: str = ""
    resolves: float = 0.0
    runtime: str = ""
    ipam: str = ""
    attachment: Attachment = field(default=Attachment(), metadata=OMIT_DEFAULT)
    host_link: summary.Link | None = field(default=None, metadata=OMIT_DEFAULT)
    routes: tuple[StaticRoute, ...] = field(default=(), metadata=OMIT_DEFAULT)
    resolvers: tuple[IPAddress, ...] = field(default=(), metadata=OMIT_DEFAULT)
    hairpin: bool = field(default=False, metadata=APART)  # the plan says it
    pinned: bool = field(default=False, metadata=OMIT_DEFAULT)
    added: tuple[PortMapping, ...] = field(default=(), metadata=OMIT_DEFAULT)
    opened: tuple[PortMapping, ...] = field(default=(), metadata=OMIT_DEFAULT)
    withheld: bool = field(default=False, metadata=OMIT_DEFAULT)

    @property
    def asked(self) -> tuple[PortMapping, ...]:
        """The runtime's mappings that shall be in force. Docker says when, by a request of its own."""
        return self.endpoint.ports if self.ifname or self.published or self.withheld else ()

    @property
    def in_force(self) -> tuple[PortMapping, ...]:
        """All published ports: the runtime's, and those that a user added."""
        return self.published + self.opened

    @property
    def given_routes(self) -> tuple[StaticRoute, ...] | None:
        """The routes of the sandbox as its runtime chose them; None: default routes by the network's gateways."""
        chosen = self.front_end.shares and not (self.attachment.gateways or self.attachment.isolated)
        return self.attachment.routes if chosen else None

    @property
    def ways(self) -> set[int]:
        """The IP versions of which it provides its sandbox's default route."""
        return {route.destination.version for route in self.routes if not route.destination.prefixlen}

    def summarized(self) -> "EndpointRecord":
        """Return the record with `host_link`, `routes` and `resolvers` as its plan makes them."""
        link, routes = summary.host_link(self.plan), summary.routes(self.plan)
        return replace(self, host_link=link, routes=routes, resolvers=summary.resolvers(self.plan))

    @property
    def present(self) -> Plan:
        """The steps that shall be in the kernel now."""
        return (self.plan if self.linked else Plan()) + self.exposed

    @property
    def key(self) -> str:
        return f"{ENDPOINTS}{self.endpoint.network}/{self.endpoint.id}"

    @property
    def described(self) -> str:
        """The endpoint as the owner of an object, in `netplug diff` and in the log."""
        return f"endpoint {short(self.endpoint.id)}" + (f" ({self.name})" if self.name else "")

    @property
    def called(self) -> str:
        """The endpoint in an error, by the name that users know."""
        return f"container {self.name!r}" if self.name else f"endpoint {short(self.endpoint.id)}"


@dataclass(frozen=True, slots=True)
class DockerView:
    """The objects that Docker has.

    `endpoints`: ids, of running containers. `networks`: ids, of all networks. `subnets`: of networks whose IPAM driver
    we are. `addresses`: of containers, gateways and auxiliaries. `holds`: these subnets, each with its network's id.
    """

    endpoints: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()
    subnets: frozenset[IPNetwork] = frozenset()
    addresses: frozenset[IPAddress] = frozenset()
    holds: frozenset[tuple[IPNetwork, str]] = frozenset()

    def lacks(self, later: "DockerView") -> bool:
        """Tell whether anything of this view is missing in a later one."""
        return self | later != later

    def __or__(self, other: "DockerView") -> "DockerView":
        return DockerView(
            self.endpoints | other.endpoints,
            self.networks | other.networks,
            self.subnets | other.subnets,
            self.addresses | other.addresses,
            self.holds | other.holds,
        )
