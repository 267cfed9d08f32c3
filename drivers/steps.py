"""The steps of plans: desired kernel objects.

A step describes the desired state of an object, not how to create it. The executor creates missing objects, adjusts
ours that differ, and leaves foreign objects alone. A step identifies its object by `key`. Link names are in the host's
namespace unless a step has a `netns`, the path of a sandbox. `netns_id` identifies the namespace, since another one may
appear at the same path later; empty: any.

The firewall is text in nft's language (`Table`), whose sets and maps have elements for networks, endpoints and ports.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Protocol, TypeAlias

from .checked_texts import (
    ElementText,
    Family,
    Flavour,
    Identifier,
    LinkName,
    LinkOrNone,
    Mac,
    Namespace,
    SysctlName,
    SysctlValue,
    TableName,
    TableText,
)
from .codec import OMIT_DEFAULT

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPInterface: TypeAlias = IPv4Interface | IPv6Interface
IPNetwork: TypeAlias = IPv4Network | IPv6Network
LINK = "link/"
"""Beginning of the keys of links, before the name."""
EVERYTHING: Mapping[int, IPNetwork] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}
"""The destination of default routes, by IP version."""


class Step(Protocol):
    """What kernel object is wanted: a frozen dataclass, of this module or of another package (`step_types`)."""

    @property
    def key(self) -> str:
        """Identifies the object. Two steps with equal keys describe the same object."""


def span(first: int, count: int) -> str:
    """Return consecutive ports as text.

    >>> span(80, 1), span(8000, 10)
    ('80', '8000-8009')
    """
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


@lru_cache(maxsize=1024)
def text_of(address: IPAddress) -> str:
    """Return an address as text. Cached, since thousands of ports may share one."""
    return str(address)


class Proto(StrEnum):
    """Transport protocols whose ports can be published."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


@dataclass(frozen=True, slots=True)
class Bridge:
    """A Linux bridge, up. Its MAC is explicit, since otherwise a new port may change it and flush all neighbours.

    `adopt`: the user gave the name. An existing bridge of that name is used unchanged and never deleted. `group`: of
    links (ip-link(8)).
    """

    name: LinkName
    mac: Mac
    mtu: int
    adopt: bool = False
    group: int = field(default=0, metadata=OMIT_DEFAULT)

    @property
    def key(self) -> str:
        return LINK + self.name


@dataclass(frozen=True, slots=True)
class Veth:
    """A veth pair: the host side `name` is up and a port of bridge `master`, if any; the sandbox side is `peer`.

    The peer is created in the host's namespace and left down (a runtime moves it), or in `netns` and up. `isolated`:
    the port exchanges no frames with other isolated ports (bridge(8), ``isolated on``). `tunable`: other plugins may
    change MAC, MTU and state of the sandbox side. `pinned`: MAC learning is off on the port, and `peer_mac` is a
    static, sticky FDB entry. `slaac`: the sandbox side accepts router advertisements (RFC 4862). Only for a `netns`;
    otherwise the runtime decides. `moved`: the sandbox to which a runtime may have moved the sandbox side. Only a
    change of the MTU needs it, so it is not stored (`sandbox.reaching`).

    A sandbox side that was moved or is `tunable` takes a new MTU if it had that of the host side. Otherwise somebody
    chose its MTU.
    """

    name: LinkName
    peer: LinkName
    mac: Mac
    peer_mac: Mac
    mtu: int
    master: LinkOrNone
    isolated: bool = False
    netns: Namespace | None = None
    tunable: bool = False
    netns_id: str = ""
    pinned: bool = False
    slaac: bool = field(default=False, metadata=OMIT_DEFAULT)
    moved: Namespace | None = field(default=None, metadata=OMIT_DEFAULT)

    @property
    def key(self) -> str:
        return LINK + self.name


@dataclass(frozen=True, slots=True)
class Hairpin:
    """Bridge port `link` may send a frame out of the port it came in by (bridge(8), ``hairpin on``).

    Only endpoints with published ports need it, with ``bridge-nf-call-iptables``: a container's packet to its own
    published port then stays in the bridge. It is off otherwise, since a container would receive its own multicast.
    """

    link: LinkName

    @property
    def key(self) -> str:
        return f"hairpin/{self.link}"


@dataclass(frozen=True, slots=True)
class Address:
    """An address with its prefix length on a link."""

    link: LinkName
    address: IPInterface
    netns: Namespace | None = None
    netns_id: str = ""

    @property
    def key(self) -> str:
        return f"address/{self.netns or ''}/{self.link}/{self.address}"


@dataclass(frozen=True, slots=True)
class Route:
    """A route by `link` in the main table. Without a gateway, the destination is on-link.

    `tunable`: another plugin may move it to another table, as the CNI plugins sbr and vrf do. `metric` 0: the kernel's.
    """

    destination: IPNetwork
    link: LinkName
    gateway: IPAddress | None = None
    netns: Namespace | None = None
    netns_id: str = ""
    tunable: bool = field(default=False, metadata=OMIT_DEFAULT)
    metric: int = field(default=0, metadata=OMIT_DEFAULT)

    @property
    def leads_out(self) -> bool:
        """Whether it is the default route of a sandbox."""
        return bool(self.netns) and not self.destination.prefixlen

    @property
    def key(self) -> str:
        return f"route/{self.netns or ''}/{self.destination}/{self.link}"


@dataclass(frozen=True, slots=True)
class SourceRoute:
    """A default route by `link` for what a sandbox sends from one of its addresses.

    It has a routing table of its own (ip-rule(8)); the main table precedes it, but for its default route. So what comes
    in by a link is answered by it, whichever link provides the default route.
    """

    source: IPAddress
    link: LinkName
    gateway: IPAddress
    netns: Namespace
    netns_id: str = ""

    @property
    def key(self) -> str:
        return f"source-route/{self.netns}/{self.source}/{self.link}"


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A sysctl; `name` is its path below /proc/sys.

    `restore`: the value to write at revert, if this step changed it. Empty: it is not restored, since other software
    may rely on it, or it is deleted with its link.
    """

    name: SysctlName
    value: SysctlValue
    restore: SysctlValue = ""

    @property
    def key(self) -> str:
        return f"sysctl/{self.name}"


@dataclass(frozen=True, slots=True)
class Table:
    """A constant table of nf_tables: sets, maps, chains and rules, without the elements of its named sets and maps.

    `family`: "inet", "bridge", "netdev", "ip" or "ip6". `text`: what stands between the braces, in nft's language
    (`tables.text`). The table is ours as a whole, with all that is in it.
    """

    family: Family
    name: Identifier
    text: TableText

    @property
    def key(self) -> str:
        return f"table/{self.family} {self.name}"


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a set or map in a table of ours, as nft(8) prints it.

    `table`: "inet netplug". `item`: its key, "10.0.0.1 . tcp . 8080", without quotes; an interval as a prefix. `data`:
    of a map, "172.18.0.2 . 80" or "goto from_open"; empty in a set. `count`: so many elements; the last fields of item
    and data are consecutive numbers (ports).

    A link by its name stands for the index that it has when the element is added, where the set has indexes.
    """

    table: TableName
    set: Identifier
    item: ElementText
    data: ElementText = field(default="", metadata=OMIT_DEFAULT)
    count: int = field(default=1, metadata=OMIT_DEFAULT)

    @property
    def key(self) -> str:
        item = self.item
        if self.count > 1:
            others, separator, port = item.rpartition(" . ")
            item = f"{others}{separator}{span(int(port), self.count)}"
        return f"element/{self.table}/{self.set}/{item}"


@dataclass(frozen=True, slots=True)
class Hook:
    """A base chain of a netdev table of ours: the frames that come in by `link` go to chain `chain` of the table first.

    It is gone with its link; since Linux 6.16 it waits for another one of that name.
    """

    table: TableName
    link: LinkName
    chain: Identifier

    @property
    def key(self) -> str:
        return f"hook/{self.table}/{self.link}"


@dataclass(frozen=True, slots=True)
class Gate:
    """iptables lets pass what nf_tables has: chains ``NETPLUG-FORWARD`` and ``NETPLUG-INPUT``, after DOCKER-USER.

    They accept what comes by our links, or leaves by them, and keep Docker's isolation of its own bridges. `family`:
    the IP version. `flavour`: the rules that it is among: "nft" or "legacy".
    """

    family: int
    flavour: Flavour

    @property
    def key(self) -> str:
        return f"gate/{self.family}/{self.flavour}"


@dataclass(frozen=True, slots=True)
class Passage:
    """The `Gate` lets pass what comes from `subnet` by bridge `link`, or leaves for it there.

    The user named the bridge, and there may be other hosts on it. What is theirs is not let pass.
    """

    family: int
    flavour: Flavour
    link: LinkName
    subnet: IPNetwork

    @property
    def key(self) -> str:
        return f"passage/{self.family}/{self.flavour}/{self.link}/{self.subnet}"


@dataclass(frozen=True, slots=True)
class FormerRules:
    """Rules and sets of iptables that former releases made. No plan wants them: they are found, and removed.

    `members`: who may send frames of overlays, as items of `tables/vxlan_acl.nft`, until the cluster tells of them.
    """

    members: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return "former-rules"


@dataclass(frozen=True, slots=True)
class HostPort:
    """A port of the host, reserved by a bound socket. An unspecified `address` (0.0.0.0, ::) means all of its family.

    `shared`: the runtime binds it too, as podman does. The port is then recorded as in use, without a socket of ours.
    `count`: number of consecutive ports.
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
    """The daemon relays connections from port `port`, reserved on `host`, to `address` port `target`.

    If both have one IP version, only connections to [::1] are relayed. Otherwise all are, since the kernel does not
    translate between IPv4 and IPv6. `count`: number of consecutive ports.
    """

    proto: Proto
    host: IPAddress
    port: int
    address: IPAddress
    target: int
    count: int = field(default=1, metadata=OMIT_DEFAULT)

    @property
    def crosses_versions(self) -> bool:
        """Whether host and container address have different IP versions, so that all connections are relayed."""
        return self.host.version != self.address.version

    @property
    def key(self) -> str:
        return f"relay/{self.proto}/{text_of(self.host)}/{span(self.port, self.count)}"


@dataclass(frozen=True, slots=True)
class Resolver:
    """The name server of `network` listens on `address` port `port` (UDP, TCP), for queries from `link` only.

    The port is not 53, which another resolver may bind on all addresses. `Element` steps translate port 53 to it.
    """

    network: str
    link: LinkName
    address: IPAddress
    port: int

    @property
    def key(self) -> str:
        return f"resolver/{self.link}/{self.address}"


@dataclass(frozen=True, slots=True)
class Flows:
    """Deletes connection tracking entries of host port `port` that do not point to `address`; at revert, all of them.

    `host`: the host address on which the port is published, None for all. Entries of other host addresses are kept.
    `count`: number of consecutive ports. Port 0 means all ports of the host that no socket uses (mode host): unreplied
    entries of the host are deleted, and at revert all entries to or from `address`.

    Otherwise a UDP flow that began before the port was published bypasses DNAT while its entry lives. The executor
    applies this step after the rules, when adding as well as when removing them.
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

    `name` identifies it. It is also its name in the host's namespace, where it is created, and left down unless `up`.
    With a `netns` it is created there, as `ifname` and up. `moved`: the sandbox to which a runtime may have moved it.
    `tunable`, `slaac`: as in `Veth`. `former`: the MTU that it had, 0: it does not change. A link that was moved or is
    `tunable` takes a new MTU only if it has this one. It is not stored (`sandbox.reaching`).
    """

    name: LinkName
    parent: LinkName
    mode: Identifier
    mac: Mac
    mtu: int
    up: bool = False
    ifname: LinkOrNone = ""
    netns: Namespace | None = None
    moved: Namespace | None = None
    tunable: bool = False
    netns_id: str = ""
    slaac: bool = field(default=False, metadata=OMIT_DEFAULT)
    former: int = field(default=0, metadata=OMIT_DEFAULT)

    @property
    def key(self) -> str:
        return LINK + self.name


@dataclass(frozen=True, slots=True)
class Announce:
    """Announces on the segment of `link` that `address` has MAC `mac` (RFC 5227 3, RFC 4861 7.2.6).

    An event, not an object: it is sent when applied, never removed, and never missing.
    """

    link: LinkName
    mac: Mac
    address: IPAddress

    @property
    def key(self) -> str:
        return f"announce/{self.link}/{self.address}"


@dataclass(frozen=True, slots=True)
class Ifb:
    """An intermediate functional block, up: a link whose queue shapes the ingress traffic of another link."""

    name: LinkName
    mac: Mac

    @property
    def key(self) -> str:
        return LINK + self.name


@dataclass(frozen=True, slots=True)
class Shape:
    """Rate limits of `link`, the host side of a veth: `rate` in bit/s, `burst` in bytes; 0: no limit.

    The first value is for traffic to the sandbox, queued on `link` (tc-tbf(8)). The second is for traffic from the
    sandbox, queued on `ifb`.
    """

    link: LinkName
    ifb: LinkOrNone
    rate: tuple[int, int]
    burst: tuple[int, int]

    @property
    def key(self) -> str:
        return f"shape/{self.link}"


@dataclass(frozen=True, slots=True)
class Loopback:
    """The loopback link of sandbox `netns`, up. A revert leaves it up, since other software may rely on it."""

    netns: Namespace
    netns_id: str = ""

    @property
    def key(self) -> str:
        return f"loopback/{self.netns}"
