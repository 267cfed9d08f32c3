"""The vocabulary of plans: what kernel objects are wanted.

A step says how an object shall *be*, never how to make it. Whoever executes a plan creates what is missing, adjusts
what is ours and differs, and leaves alone what belongs to others. A step names its object by `key`; two steps with one
key speak of the same object. Link names are those of the host's namespace unless a step has a `netns`, the path of a
sandbox. Another namespace may come to be at that path: `netns_id` says which is meant, empty: whichever is there.

Rules are written exactly as ``iptables-save`` prints them, so that comparing is comparing strings.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Protocol, TypeAlias

from .codec import OMIT_DEFAULT

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPInterface: TypeAlias = IPv4Interface | IPv6Interface
IPNetwork: TypeAlias = IPv4Network | IPv6Network


class Step(Protocol):
    """What kernel object is wanted: a frozen dataclass, of this module or of another package (`step_types`)."""

    @property
    def key(self) -> str:
        """Which object is meant; two steps with one key speak of the same."""


def span(first: int, count: int) -> str:
    """Return ports in succession as text.

    >>> span(80, 1), span(8000, 10)
    ('80', '8000-8009')
    """
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


@lru_cache(maxsize=1024)
def text_of(address: IPAddress) -> str:
    """Return an address as text; kept, since thousands of ports may have one."""
    return str(address)


class Proto(StrEnum):
    """Transport protocols whose ports can be published."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


@dataclass(frozen=True, slots=True)
class Bridge:
    """A Linux bridge, up. Its MAC is explicit: else each new port may rewrite it and flush all neighbours.

    `adopt`: the user named it; a bridge of that name that is not ours is used as it is and never deleted.
    """

    name: str
    mac: str
    mtu: int
    adopt: bool = False

    @property
    def key(self) -> str:
        return f"link/{self.name}"


@dataclass(frozen=True, slots=True)
class Veth:
    """A veth pair: the host side `name` is up and a port of bridge `master`, if any; the sandbox side is `peer`.

    The peer is made in the host's namespace and left down (a runtime moves it), or directly in `netns` and up.
    `isolated`: the port exchanges no frames with other isolated ports (bridge(8), ``isolated on``). `tunable`: others
    may change MAC, MTU and state of the sandbox side once it is made. `pinned`: the bridge learns nobody by the port;
    it is told that `peer_mac` is there, and no other port takes that over. `slaac`: the sandbox side believes routers
    (RFC 4862); one that is not made in its sandbox is the runtime's affair.
    """

    name: str
    peer: str
    mac: str
    peer_mac: str
    mtu: int
    master: str
    isolated: bool = False
    netns: str | None = None
    tunable: bool = False
    netns_id: str = ""
    pinned: bool = False
    slaac: bool = field(default=False, metadata=OMIT_DEFAULT)

    @property
    def key(self) -> str:
        return f"link/{self.name}"


@dataclass(frozen=True, slots=True)
class Hairpin:
    """Bridge port `link` may send a frame back to where it came from (bridge(8), ``hairpin on``).

    Needed only by endpoints with published ports, under ``bridge-nf-call-iptables``: there a DNATed packet from the
    container to itself stays in the bridge. Off for all others, since their own multicast would come back to them.
    """

    link: str

    @property
    def key(self) -> str:
        return f"hairpin/{self.link}"


@dataclass(frozen=True, slots=True)
class Address:
    """An address with its prefix length on a link."""

    link: str
    address: IPInterface
    netns: str | None = None
    netns_id: str = ""

    @property
    def key(self) -> str:
        return f"address/{self.netns or ''}/{self.link}/{self.address}"


@dataclass(frozen=True, slots=True)
class Route:
    """A route through `link` in the main table; without a gateway the destination is on the link.

    `tunable`: others may have moved it to another table, as the CNI plugins sbr and vrf do.
    """

    destination: IPNetwork
    link: str
    gateway: IPAddress | None = None
    netns: str | None = None
    netns_id: str = ""
    tunable: bool = field(default=False, metadata=OMIT_DEFAULT)

    @property
    def key(self) -> str:
        return f"route/{self.netns or ''}/{self.destination}/{self.link}"


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A setting below /proc/sys, `name` with slashes.

    `restore`: what to write at revert, if it was us who changed it. Empty: it stays, since others may have come to rely
    on it, or goes with its link.
    """

    name: str
    value: str
    restore: str = ""

    @property
    def key(self) -> str:
        return f"sysctl/{self.name}"


@dataclass(frozen=True, slots=True)
class IpSet:
    """A set of ours, `type` as ipset(8) names it, `family` 4 or 6."""

    name: str
    type: str
    family: int

    @property
    def key(self) -> str:
        return f"set/{self.name}"


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an `IpSet`: `net`, and `link` when the set is a hash:net,iface."""

    set: str
    net: IPNetwork
    link: str | None = None

    @property
    def key(self) -> str:
        return f"member/{self.set}/{self.net}/{self.link or ''}"


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of ours with its whole content, or an `open` one to which `Rule` steps add."""

    family: int
    table: str
    name: str
    rules: tuple[str, ...] = ()
    open: bool = False

    @property
    def key(self) -> str:
        return f"chain/{self.family}/{self.table}/{self.name}"


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule in an open chain of ours; order among such rules does not matter."""

    family: int
    table: str
    chain: str
    rule: str

    @property
    def key(self) -> str:
        return f"rule/{self.family}/{self.table}/{self.chain}/{self.rule}"


@dataclass(frozen=True, slots=True)
class Jump:
    """A rule in a built-in chain that leads to a chain of ours.

    It is put before all other rules, but after those that jump to `after`. Where others come in front of it later, that
    matters only if it has an `after`: to insist on the first place without need is to contend with whoever else does.
    A `last` one is put, and stays, after all others.
    """

    family: int
    table: str
    chain: str
    rule: str
    after: str | None = None
    last: bool = False

    @property
    def target(self) -> str:
        """The chain that it leads to."""
        return self.rule.rsplit(" ", 1)[-1]

    @property
    def key(self) -> str:
        return f"jump/{self.family}/{self.table}/{self.chain}/{self.rule}"


@dataclass(frozen=True, slots=True)
class Guards:
    """What all `Guard`s of a host share; without it there can be none."""

    @property
    def key(self) -> str:
        return "guards"


@dataclass(frozen=True, slots=True)
class Guard:
    """By bridge port `link` comes nothing that claims another MAC than `mac` or another address than these.

    In the Ethernet header, in ARP, in IPv4, in IPv6 and in neighbour discovery. The link-local addresses that follow
    from the MAC are its own as well; without a `mac` any will do. It stands before the link does.
    """

    link: str
    mac: str
    addresses: tuple[IPAddress, ...] = ()

    @property
    def key(self) -> str:
        return f"guard/{self.link}"


@dataclass(frozen=True, slots=True)
class Forwards:
    """What all `Forward`s of an IP version share; without it there can be none."""

    family: int

    @property
    def key(self) -> str:
        return f"forwards/{self.family}"


@dataclass(frozen=True, slots=True)
class Forward:
    """Connections to port `port` of host address `host`, None for all of them, lead to `address` port `target`.

    `count`: so many ports in succession, each to the one that is as far from `target`; see `port_ranges`.
    """

    proto: Proto
    host: IPAddress | None
    port: int
    address: IPAddress
    target: int
    count: int = field(default=1, metadata=OMIT_DEFAULT)

    @property
    def family(self) -> int:
        """The IP version."""
        return self.address.version

    @property
    def key(self) -> str:
        return f"forward/{self.family}/{self.proto}/{self.host or ''}/{span(self.port, self.count)}"


@dataclass(frozen=True, slots=True)
class HostPort:
    """A port of the host, reserved by a bound socket. `address` unspecified (0.0.0.0, ::) means all of its family.

    `shared`: its runtime may bind it too, as podman does; once found free it is remembered as taken, and not held.
    `count`: so many ports in succession.
    """

    proto: Proto
    address: IPAddress
    port: int
    shared: bool = False
    count: int = field(default=1, metadata=OMIT_DEFAULT)

    @property
    def key(self) -> str:
        return f"hostport/{self.proto}/{text_of(self.address)}/{span(self.port, self.count)}"


@dataclass(frozen=True, slots=True)
class Relay:
    """Connections to port `port`, reserved on `host`, are relayed to `address` port `target` by the daemon.

    Of one IP version only those to [::1]; of two all, since the kernel translates no address of one to the other.
    `count`: as of a `Forward`.
    """

    proto: Proto
    host: IPAddress
    port: int
    address: IPAddress
    target: int
    count: int = field(default=1, metadata=OMIT_DEFAULT)

    @property
    def crosses_versions(self) -> bool:
        """Whether all that comes to `host` is relayed."""
        return self.host.version != self.address.version

    @property
    def key(self) -> str:
        return f"relay/{self.proto}/{text_of(self.host)}/{span(self.port, self.count)}"


@dataclass(frozen=True, slots=True)
class Resolver:
    """The name server of `network` listens at `address` port `port` (UDP, TCP) for what comes by `link` alone.

    Not at port 53: who binds that of all addresses would be in the way, or we in his. `Forward`s lead there.
    """

    network: str
    link: str
    address: IPAddress
    port: int

    @property
    def key(self) -> str:
        return f"resolver/{self.link}/{self.address}"


@dataclass(frozen=True, slots=True)
class Flows:
    """Tracked connections to host port `port` lead to `address` and nowhere else; at revert, to nowhere.

    `host`: the host address that the port is published on, None for all; flows to another are not touched. `count`: so
    many ports in succession. Port 0 means all that nobody else has: flows to the host that nobody answered lead nowhere
    else, so that they may come to lead there, and at revert what leads to `address` or comes from it does not any more.

    Without it a UDP flow that began before the port was published bypasses the DNAT for as long as it lives. An
    executor sees to it after the rules have changed, in both directions.
    """

    proto: Proto
    port: int
    address: IPAddress
    host: IPAddress | None = None
    count: int = field(default=1, metadata=OMIT_DEFAULT)

    @property
    def key(self) -> str:
        return f"flows/{self.proto}/{self.host or ''}/{span(self.port, self.count)}/{self.address}"


@dataclass(frozen=True, slots=True)
class Macvlan:
    """A macvlan on link `parent` of the host: a link with a MAC of its own on the parent's segment.

    `name` is what it is known by, and its name in the host's namespace, where it is made and left down unless `up`.
    With a `netns` it is made there, as `ifname`, and up. `moved`: the sandbox into which a runtime has moved it since;
    it is there, or still on the host. `tunable`, `slaac`: as of a `Veth`.
    """

    name: str
    parent: str
    mode: str
    mac: str
    mtu: int
    up: bool = False
    ifname: str = ""
    netns: str | None = None
    moved: str | None = None
    tunable: bool = False
    netns_id: str = ""
    slaac: bool = field(default=False, metadata=OMIT_DEFAULT)

    @property
    def key(self) -> str:
        return f"link/{self.name}"


@dataclass(frozen=True, slots=True)
class Announce:
    """The stations on the segment of `link` learn that `address` is at `mac` (RFC 5227 3, RFC 4861 7.2.6).

    An event, not an object: bringing it about sends, there is nothing to remove, and it is never missing.
    """

    link: str
    mac: str
    address: IPAddress

    @property
    def key(self) -> str:
        return f"announce/{self.link}/{self.address}"


@dataclass(frozen=True, slots=True)
class Ifb:
    """An intermediate functional block, up: a link through which what comes in passes as if it went out."""

    name: str
    mac: str

    @property
    def key(self) -> str:
        return f"link/{self.name}"


@dataclass(frozen=True, slots=True)
class Shape:
    """Through `link`, the host side of a veth, pass `rate` bits a second, after `burst` bytes at once; 0: no limit.

    First what the sandbox receives, which waits there (tc-tbf(8)); then what it sends, which waits on `ifb`.
    """

    link: str
    ifb: str
    rate: tuple[int, int]
    burst: tuple[int, int]

    @property
    def key(self) -> str:
        return f"shape/{self.link}"


@dataclass(frozen=True, slots=True)
class Loopback:
    """The loopback link of sandbox `netns`, up; a revert leaves it so, since others may have come to rely on it."""

    netns: str
    netns_id: str = ""

    @property
    def key(self) -> str:
        return f"loopback/{self.netns}"
