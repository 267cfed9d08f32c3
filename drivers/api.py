"""The driver protocol and the frozen dataclasses that it speaks in.

A driver computes what to build and never builds. There are no verbs for deleting: whoever applied a plan stored it and
reverts it, so that a version which no longer knows how an old network was made can still take it down.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TypeGuard, runtime_checkable

from .checked_texts import LinkName, LinkPrefix, MacOrNone
from .codec import OMIT_DEFAULT
from .naming import mac_of_address, mac_of_id
from .options import AnyOption, EndpointOptions, NetworkOptions
from .plan import Plan
from .steps import IPAddress, IPInterface, IPNetwork, Proto, span


class Scope(StrEnum):
    """Whether a network of this driver lives on one host or on all hosts of a cluster."""

    LOCAL = "local"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class Subnet:
    """An address range of a network.

    `gateway`: our address in it, with the pool's prefix length; None where the mode has no gateway. In a mode whose
    networks have none of ours it is somebody else's router. `host`: the address of the host itself beside the
    containers, where it has one.
    """

    pool: IPNetwork
    gateway: IPInterface | None = None
    host: IPInterface | None = None


@dataclass(frozen=True, slots=True)
class Network:
    """What containers join.

    `id` is whole and comes from Docker, podman or the CNI config; `name` is how users call it.
    """

    id: str
    name: str
    subnets: tuple[Subnet, ...] = ()
    options: NetworkOptions = field(default_factory=NetworkOptions)
    internal: bool = False

    def families(self) -> tuple[int, ...]:
        """Return the IP versions that the network has subnets of."""
        return tuple(sorted({subnet.pool.version for subnet in self.subnets}))


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A published port.

    `host_address` None: every address of the host. `host_port` 0: any free port; a `host_port_end` above
    `host_port`: the first free port of the range, both ends included. Drivers are only given mappings with definite
    host ports. `count`: so many ports in succession, each definite host port to the container's that is as far from
    `port`.
    """

    proto: Proto
    port: int
    host_address: IPAddress | None = None
    host_port: int = 0
    host_port_end: int = 0
    count: int = field(default=1, metadata=OMIT_DEFAULT)

    def __str__(self) -> str:
        address = (
            f"[{self.host_address}]" if self.host_address and self.host_address.version == 6 else self.host_address
        )
        ports = span(self.host_port, max(self.count, self.host_port_end - self.host_port + 1))
        return f"{address or '0.0.0.0'}:{ports}->{span(self.port, self.count)}/{self.proto}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One sandbox's connection to one network.

    `mac` may be empty: the driver then chooses one (`Attachment.mac`). Addresses have the pool's prefix length.
    """

    id: str
    network: str
    addresses: tuple[IPInterface, ...] = ()
    mac: MacOrNone = ""
    ports: tuple[PortMapping, ...] = ()
    options: EndpointOptions = field(default_factory=EndpointOptions)

    def chosen_mac(self) -> str:
        """Return the MAC as asked for, else one that follows from the first address, else from the id."""
        if self.mac:
            return self.mac
        return mac_of_address(self.addresses[0]) if self.addresses else mac_of_id("sandbox/" + self.id)


@dataclass(frozen=True, slots=True)
class StaticRoute:
    """A route of the sandbox; without a gateway the destination is on the link."""

    destination: IPNetwork
    gateway: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a sandbox needs to know of its endpoint.

    `link`: present name of the sandbox side, None for no interface at all. `prefix`: the runtime names it so, with an
    index. `isolated`: there is no way out, nor shall the runtime add one of its own. `metric`: of the default route.
    """

    link: LinkName | None = None
    prefix: LinkPrefix = "eth"
    mac: MacOrNone = ""
    mtu: int = 0
    gateways: tuple[IPAddress, ...] = ()
    routes: tuple[StaticRoute, ...] = ()
    isolated: bool = False
    metric: int = field(default=0, metadata=OMIT_DEFAULT)


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """A link of the host. `kind`: "bridge", "veth", … or empty for a physical one; `mtu` in bytes.

    `master`: the bridge or bond that it is a port of. `parent`, `macvlan_mode`: of a macvlan. `vni`,
    `port`: of a vxlan, the UDP port.
    """

    name: str
    kind: str = ""
    mtu: int = 1500
    up: bool = True
    master: str = ""
    parent: str = ""
    macvlan_mode: str = ""
    vni: int = 0
    port: int = 0
    mac: str = ""


@dataclass(frozen=True, slots=True)
class Firewalld:
    """What firewalld's rules are about; it drops what comes by other links.

    `zones`: links with their zones; ``+`` at the end of a name stands for any rest. `ports`: numbers. `trusted`: those
    of the links by which it takes all; an empty name for addresses from which it does.
    """

    zones: tuple[tuple[str, str], ...] = ()
    ports: frozenset[int] = frozenset()
    trusted: frozenset[str] = frozenset()

    def zone(self, link: str) -> str:
        """Return the zone of a link, or of all whose names begin so (``+``); empty if it has none."""
        return dict(self.zones).get(self._name(link), "")

    def trusts(self, link: str) -> bool:
        """Return whether it takes all that comes by a link."""
        return bool(link) and self._name(link) in self.trusted

    def _name(self, link: str) -> str:
        names = [name for name, _ in self.zones]
        return link if link in names else next((it for it in names if it[-1] == "+" and link.startswith(it[:-1])), "")


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What drivers may know of the host, read by the kernel layer.

    `mtu`: of the default route's link, in bytes. `routes`: destinations in the main table, defaults left out, with
    their links. `addresses`: with their links, loopback left out. `chains`: names of the filter table's chains that are
    not ours, by IP version. `vtep`: the address of this host to which others tunnel; None outside of a cluster.
    `bridge_netfilter`: frames that a bridge forwards may come to the IP firewall too (module br_netfilter is loaded).
    `forwarding`: IP versions that the host forwards without us. `advertised`: links, not ours, whose router
    advertisements the host takes, with their ``accept_ra`` without us. `store`: address and TCP port of the store that
    hosts share, which is none of the containers' business. `firewalld`: None where there is none that drops anything.
    `tables`: names of the tables of nf_tables that others made with nft, by IP version; one for both is there twice.
    `gates`: IP version and flavour ("nft", "legacy") of each iptables that has rules of others, or a policy DROP, for
    forwarded packets or those to the host. `redirects`: the host takes ICMP redirects of IPv4. `forward_others`: the
    host may forward between links that are not ours, even if netplug turned that on.
    """

    mtu: int = 1500
    uplink: str = ""
    links: tuple[LinkFacts, ...] = ()
    routes: tuple[tuple[IPNetwork, str], ...] = ()
    addresses: tuple[tuple[IPInterface, str], ...] = ()
    chains: tuple[tuple[int, str], ...] = ()
    vtep: IPAddress | None = None
    bridge_netfilter: bool = False
    forwarding: tuple[int, ...] = (4, 6)
    advertised: tuple[tuple[str, int], ...] = ()
    store: tuple[tuple[IPAddress, int], ...] = ()
    firewalld: Firewalld | None = None
    tables: tuple[tuple[int, str], ...] = ()
    gates: tuple[tuple[int, str], ...] = ()
    redirects: bool = True
    forward_others: bool = False

    def link(self, name: str) -> LinkFacts | None:
        """Return the link of this name, None when there is none."""
        return next((link for link in self.links if link.name == name), None)

    def kind_of(self, name: str) -> str | None:
        """Return the kind of the link of this name, None when there is none."""
        link = self.link(name)
        return link.kind if link else None


@dataclass(frozen=True, slots=True)
class Peer:
    """An endpoint on another host, as that host tells of it. `vtep`: that host's."""

    endpoint: str
    mac: str
    addresses: tuple[IPAddress, ...]
    vtep: IPAddress


class Driver(Protocol):
    """Computes what to build; never builds. Every method is pure and raises only `DriverError`.

    `options`: what its networks take besides `shared.COMMON`. `default`: networks of this scope that name no mode are
    this driver's. `gateway`: networks of this driver have an address of ours in each subnet. `linked`: its endpoints
    have a link; `addressed`: they have addresses.
    """

    scope: Scope
    options: tuple[AnyOption, ...]
    default: bool
    gateway: bool
    linked: bool
    addressed: bool

    def complete(self, options: NetworkOptions, host: HostFacts) -> NetworkOptions:
        """Return the options with what the user left open filled in for as long as the network lives.

        Refuse here what no host could make work, before anything is asked for.
        """

    def segment(self, net: Network) -> str:
        """Return the link on whose segment strangers may have addresses of the network; empty: nobody can.

        There they are asked before an address is given to an endpoint (RFC 5227).
        """

    def check(self, net: Network, others: Sequence[Network], host: HostFacts) -> None:
        """Refuse what cannot work before anything is changed, naming the option."""

    def admit(self, net: Network, present: int) -> None:
        """Refuse one more endpoint beside those `present`, if the network has no room for it."""

    def create_network(self, net: Network, host: HostFacts) -> Plan:
        """Return what the network needs on this host beyond the plan of `base`."""

    def create_endpoint(self, net: Network, ep: Endpoint, host: HostFacts) -> Plan:
        """Return the endpoint's links, with the sandbox side still in the host's namespace."""

    def join(self, net: Network, ep: Endpoint) -> Attachment:
        """Describe the endpoint to its sandbox."""

    def expose(self, net: Network, ep: Endpoint) -> Plan:
        """Return what publishing the endpoint's ports takes."""

    def base(self, families: Sequence[int], host: HostFacts) -> Plan:
        """Return what all networks with these IP versions share on a host; gone with the last of them."""


@runtime_checkable
class Meshed(Protocol):
    """What a driver can do besides whose networks stretch over hosts."""

    def publish(self, net: Network, ep: Endpoint, host: HostFacts) -> Peer:
        """Return what the other hosts must know of an endpoint of this one."""

    def check_peer(self, net: Network, peer: Peer, host: HostFacts) -> None:
        """Refuse what another host may not say: a record must not reach beyond its network."""

    def port(self, net: Network) -> int:
        """Return the UDP port of this host by which other hosts reach the network's endpoints."""

    def room(self, host: HostFacts) -> int:
        """Return the largest mtu, in bytes, that a network of this driver can have as the host is now."""

    def peers(self, net: Network, peers: Sequence[Peer]) -> Plan:
        """Return all that reaching these peers takes, in addition to the network's plan.

        They are all there are, each of them checked, and in the order in which they were published: where two have the
        same MAC or address, the later has it. A step follows from nothing but the peers that have its MAC, its address
        or its VTEP.
        """


def meshed(driver: Driver) -> TypeGuard[Meshed]:
    """Whether networks of this driver stretch over hosts."""
    return driver.scope is Scope.CLUSTER
