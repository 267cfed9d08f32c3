"""What there is in a namespace, as insight sees it; a part of `api`. Read by `looking`."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import TypeAlias

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPNetwork: TypeAlias = IPv4Network | IPv6Network
"""As in `drivers.steps`, whose import would take a tenth of the time that the process has for its start."""

HOST = ""
"""As `netns`: the namespace of the host. Others are given by path, or by their name below /run/netns."""


@dataclass(frozen=True, slots=True)
class Look:
    """What to read in a namespace. `routes`: destinations to look up, each from a source or from none.

    `forwarding`: FDB entries. `listeners`: sockets, and whether the processes are frozen. `sysctls`: names below
    /proc/sys, with slashes. `resolv_conf`: the resolver's settings, and the addresses of `name` in /etc/hosts. `pid`:
    of the process whose files these are; 0: any of those in the namespace.
    `forwards`: routes of packets to forward: destination, sender, and the link that receives them.
    """

    netns: str = HOST
    routes: tuple[tuple[IPAddress, IPAddress | None], ...] = ()
    sysctls: tuple[str, ...] = ()
    links: bool = True
    neighbours: bool = True
    forwarding: bool = False
    listeners: bool = False
    resolv_conf: bool = False
    pid: int = 0
    forwards: tuple[tuple[IPAddress, IPAddress, str], ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class LinkState:
    """A link. `peer`: index of the other end, which is in namespace `peer_here` or another one.

    `state`: "up", "down", "no carrier" or "dormant". `hairpin`: of a port of a bridge; None for others.
    `vni`, `vxlan_port`, `vtep`: of a VXLAN link. `arp`: it asks for MACs, and answers.
    """

    name: str
    index: int
    up: bool
    carrier: bool
    mtu: int
    mac: str
    kind: str = ""
    state: str = ""
    master: str = ""
    peer: int = 0
    peer_here: bool = False
    altnames: tuple[str, ...] = ()
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    hairpin: bool | None = None
    vni: int = 0
    vxlan_port: int = 0
    vtep: IPAddress | None = None
    arp: bool = True


@dataclass(frozen=True, slots=True)
class RouteFound:
    """The answer of the kernel to a lookup. `error`: why there is no way ("network is unreachable"), else empty.

    `type`: "unicast", "local", "broadcast"… `preferred`: the source address that the route prefers.
    """

    destination: IPAddress
    source: IPAddress | None = None
    link: str = ""
    gateway: IPAddress | None = None
    preferred: IPAddress | None = None
    mtu: int = 0
    type: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class RouteState:
    """A route of the main table."""

    destination: IPNetwork
    link: str
    gateway: IPAddress | None = None
    metric: int = 0


@dataclass(frozen=True, slots=True)
class NeighbourState:
    """An entry of the neighbour table. `state`: "reachable", "stale", "failed", "permanent"…"""

    address: IPAddress
    link: str
    mac: str
    state: str


@dataclass(frozen=True, slots=True)
class ForwardingState:
    """An FDB entry. `link`: a VXLAN link, for entries with `vtep`; else a port of a bridge.

    `bridge`: the entry is of the bridge above the link.
    """

    mac: str
    link: str
    vtep: IPAddress | None = None
    bridge: bool = False
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening (TCP) or bound (UDP) socket. `frozen`: its process is stopped, or its cgroup is frozen.

    `pid`: 0 if the process is not found. `dual`: an IPv6 socket that takes IPv4 too. `queue`: connections that wait to
    be accepted (TCP), or bytes that wait to be read (UDP).
    """

    proto: str
    address: IPAddress
    port: int
    process: str = ""
    pid: int = 0
    frozen: bool = False
    dual: bool = False
    queue: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """What there is in a namespace. `lacks`: what could not be read, and why.

    `frozen`: all its processes are stopped or in a frozen cgroup. `processes`: how many there are.
    `resolv_conf`: one was read. `hosts`: the addresses of the name that was asked for, in /etc/hosts.
    """

    netns: str = HOST
    links: tuple[LinkState, ...] = ()
    routes: tuple[RouteState, ...] = ()
    lookups: tuple[RouteFound, ...] = ()
    neighbours: tuple[NeighbourState, ...] = ()
    listeners: tuple[Listener, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()
    nameservers: tuple[IPAddress, ...] = ()
    search: tuple[str, ...] = ()
    resolv_options: tuple[str, ...] = ()
    processes: int = 0
    frozen: bool = False
    lacks: tuple[str, ...] = ()
    forwarding: tuple[ForwardingState, ...] = ()
    forwards: tuple[RouteFound, ...] = ()
    resolv_conf: bool = False
    hosts: tuple[IPAddress, ...] = ()

    def link(self, name: str) -> LinkState | None:
        """Return the link with a name, if there is one."""
        return next((it for it in self.links if it.name == name), None)

    def sysctl(self, name: str) -> str:
        """Return the value of a sysctl that was asked for; empty if there is none."""
        return dict(self.sysctls).get(name, "")
