"""What is remembered of networks and endpoints, and what callers say when they ask for one.

Nothing is ever replayed to a Docker plugin, so a record holds all that is needed to answer later calls, to rebuild the
kernel's state after a crash, and to take it down again: the plan itself, not just what it was made from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from netplug.drivers import summary
from netplug.drivers.api import Attachment, Endpoint, Network, PortMapping, StaticRoute
from netplug.drivers.codec import QUIET
from netplug.drivers.plan import Plan
from netplug.drivers.steps import IPAddress, IPInterface, IPNetwork

NETWORKS = "networks/"
ENDPOINTS = "endpoints/"


class FrontEnd(StrEnum):
    """Who asked for a network or endpoint, and so who may delete it."""

    DOCKER = "docker"
    CLI = "cli"
    CNI = "cni"
    NETAVARK = "netavark"

    @property
    def shares(self) -> bool:
        """Whether others than we have a hand in its sandboxes: tune links there, bind published ports."""
        return self in {FrontEnd.CNI, FrontEnd.NETAVARK}


@dataclass(frozen=True, slots=True)
class Caller:
    """The runtime that asks for an endpoint. `pid`: of its process that calls; `runtime`: see `kernel.runtimes`."""

    pid: int = 0
    runtime: str = ""


@dataclass(frozen=True, slots=True)
class SubnetSpec:
    """A subnet as asked for.

    `pool` None: one is chosen. `space`: IPAM address space; "external" when somebody else (Docker's own IPAM) gives out
    its addresses. `gateway` None: the first address is taken, where the mode has a gateway at all. `aux`: addresses
    that are never given out, by name. `ends`: first and last address to choose, where that part is no subnet itself.
    """

    pool: IPNetwork | None = None
    gateway: IPAddress | None = None
    range: IPNetwork | None = None
    aux: tuple[tuple[str, IPAddress], ...] = ()
    space: str = "local"
    v6: bool = False
    ends: tuple[IPAddress, IPAddress] | None = None


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """A network as asked for; `options` are the raw ``-o key=value``. An empty `id` or `name` is made up.

    `cluster`: what the cluster calls one that is on several hosts, each of which may have an id of its own for it.
    """

    id: str = ""
    name: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    subnets: tuple[SubnetSpec, ...] = ()
    internal: bool = False
    front_end: FrontEnd = FrontEnd.CLI
    cluster: str = ""


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """An endpoint as asked for.

    Addresses keep the prefix length of their subnet. `name`: the container's, when known. `netns`: path of the sandbox
    in which the link is to be made at once as `ifname`; empty when a runtime moves it there. `netns_id`: its identity
    (`Kernel.sandbox`). `options`: as the user wrote them. `groups`: sets of subnets of each of which one address is
    wanted, in place of one a family. `routes`: those of the sandbox, in place of a way out by the gateways. `pinned`:
    it keeps its MAC, whoever may tune its link. `elsewhere`: path and identity of a sandbox in which somebody else
    makes the link. `hairpin`: what its port sends may come back by it, where others lead it so. `ipam`: see
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
    """A bare namespace to plug in: `netns` is a path or the name of one below /run/netns.

    `id`: of the endpoint; empty: made from the namespace and `ifname`. `leased`: addresses that somebody else's IPAM
    chose. `groups`, `routes`, `pinned`, `hairpin`: as in `EndpointSpec`.
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
        """Return the endpoint asked for; `network` is an id, `netns` a path."""
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
    """What a runtime says of an endpoint's container; `details`: whether it said more than the first two.

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

    `pools`: IPAM pool of each subnet. `used`: keys of steps that are not ours to remove. `claimed`: the Docker that we
    listen to has named it as its own; several may share a plugin folder. `cluster`: as in `NetworkSpec`. `bridge`: the
    link that endpoints are ports of, where there is one. `resolvers`: where the name server answers for all of them.
    """

    network: Network
    front_end: FrontEnd
    pools: tuple[str, ...] = ()
    plan: Plan = field(default_factory=Plan)
    used: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    claimed: bool = False
    cluster: str = ""
    bridge: summary.Link | None = field(default=None, metadata=QUIET)
    resolvers: tuple[IPAddress, ...] = field(default=(), metadata=QUIET)

    def summarized(self) -> "NetworkRecord":
        """Return the record with what its plan makes."""
        found = summary.bridge(self.plan, self.used)
        return replace(self, bridge=found, resolvers=summary.resolvers(self.plan))

    @property
    def key(self) -> str:
        return NETWORKS + self.network.id


@dataclass(frozen=True, slots=True)
class EndpointRecord:
    """An endpoint as built.

    `endpoint.ports` are the mappings as asked for, `published` the ones in force, with their definite host ports.
    `plan` are its links, `exposed` what publishing took. `sandbox`: path of the namespace, empty until Join;
    `sandbox_id`: which one, as it may be followed by another at that path, empty as long as it is not known.
    `linked` False: the links were taken down by Leave; a Join builds them anew. `serves`: ports on which the container
    is said to listen ("80/tcp"), published or not. `healthy` False: its runtime says that it is not well. `domainname`:
    what stands behind its hostname, where it sees itself as such. `resolves`: when it started (Unix time) with the
    host's resolvers of that moment for names of others; 0, it has others, or nobody said so. `runtime`: who asked
    for it, see `Caller`. `ipam`: how a plugin that leases its addresses is asked again, as its front end wrote it.
    `attachment`: how its sandbox sees it. `host_link`: the host side of its link, if it has one. `routes`: those in its
    sandbox that we made; with a runtime that makes them there are none. `resolvers`: where the name server answers for
    it alone.
    """

    endpoint: Endpoint
    front_end: FrontEnd
    pools: tuple[str, ...] = ()
    name: str = ""
    aliases: tuple[str, ...] = ()
    container: str = ""
    sandbox: str = ""
    ifname: str = ""
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
    attachment: Attachment = field(default=Attachment(), metadata=QUIET)
    host_link: summary.Link | None = field(default=None, metadata=QUIET)
    routes: tuple[StaticRoute, ...] = field(default=(), metadata=QUIET)
    resolvers: tuple[IPAddress, ...] = field(default=(), metadata=QUIET)

    def summarized(self) -> "EndpointRecord":
        """Return the record with what its plan makes."""
        link, routes = summary.host_link(self.plan), summary.routes(self.plan)
        return replace(self, host_link=link, routes=routes, resolvers=summary.resolvers(self.plan))

    @property
    def present(self) -> Plan:
        """What of it shall be in the kernel now."""
        return (self.plan if self.linked else Plan()) + self.exposed

    @property
    def key(self) -> str:
        return f"{ENDPOINTS}{self.endpoint.network}/{self.endpoint.id}"


@dataclass(frozen=True, slots=True)
class DockerView:
    """What Docker says that there is.

    `endpoints`: ids, of running containers. `networks`: ids, of all networks. `subnets`: of those networks whose IPAM
    driver we are. `addresses`: of containers, gateways and auxiliaries.
    """

    endpoints: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()
    subnets: frozenset[IPNetwork] = frozenset()
    addresses: frozenset[IPAddress] = frozenset()

    def __or__(self, other: "DockerView") -> "DockerView":
        return DockerView(
            self.endpoints | other.endpoints,
            self.networks | other.networks,
            self.subnets | other.subnets,
            self.addresses | other.addresses,
        )
