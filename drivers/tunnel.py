"""Steps of networks that stretch over several hosts: a VXLAN link, where its peers are, and who may send by it.

Part of the vocabulary of `steps`. A link of ours learns nothing (RFC 7348 4.1 would have it): it knows of a remote MAC
what an `Fdb` says, and of a remote address what a `Neighbour` says.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

NO_MAC = "00:00:00:00:00:00"
"""In an `Fdb`: whatever has no entry of its own, broadcast and multicast too (head-end replication)."""


@dataclass(frozen=True, slots=True)
class Vxlan:
    """A VXLAN link, up, a port of bridge `master`, sending from address `local` of the host to UDP port `port`.

    It learns no MAC, and the bridge none by it. The bridge answers ARP and neighbour discovery for those that are
    behind it, from `Neighbour` steps. `flood`: broadcast, unknown unicast and multicast go out by it as well.
    `isolated`: no frames between it and other isolated ports.
    """

    name: str
    mac: str
    mtu: int
    master: str
    vni: int
    local: IPv4Address | IPv6Address
    port: int
    flood: bool = False
    isolated: bool = False

    @property
    def key(self) -> str:
        return f"link/{self.name}"


@dataclass(frozen=True, slots=True)
class Fdb:
    """Frames to `mac` go out by VXLAN link `link` to the host whose VTEP is `vtep`; for `NO_MAC` to each of several.

    The bridge has a static entry as well, which no local port that sends with this MAC can take over.
    """

    link: str
    mac: str
    vtep: IPv4Address | IPv6Address

    @property
    def key(self) -> str:
        return f"fdb/{self.link}/{self.mac}" + (f"/{self.vtep}" if self.mac == NO_MAC else "")


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Whoever asks on bridge `link` for `address` (ARP, neighbour discovery) is told `mac`: a permanent neighbour."""

    link: str
    address: IPv4Address | IPv6Address
    mac: str

    @property
    def key(self) -> str:
        return f"neighbour/{self.link}/{self.address}"


@dataclass(frozen=True, slots=True)
class Shortcuts:
    """What all `Shortcut`s of VXLAN link `vxlan` share; without it there can be none."""

    vxlan: str

    @property
    def key(self) -> str:
        return f"shortcuts/{self.vxlan}"


@dataclass(frozen=True, slots=True)
class Shortcut:
    """Frames between bridge port `link` and VXLAN link `vxlan` pass by the bridge and by what the firewall does there.

    Those that come by the tunnel for `mac`; and those that `mac` sends from one of `addresses` to a `Remote` MAC.
    """

    link: str
    vxlan: str
    mac: str
    addresses: tuple[IPv4Address | IPv6Address, ...]

    @property
    def key(self) -> str:
        return f"shortcut/{self.link}"


@dataclass(frozen=True, slots=True)
class Remote:
    """`mac` is on another host: what a `Shortcut` of VXLAN link `vxlan` hands on. All other frames are the bridge's."""

    vxlan: str
    mac: str

    @property
    def key(self) -> str:
        return f"remote/{self.vxlan}/{self.mac}"


@dataclass(frozen=True, slots=True)
class Tunnels:
    """What all `Tunnel`s over this IP version share; without it there can be none."""

    family: int

    @property
    def key(self) -> str:
        return f"tunnels/{self.family}"


@dataclass(frozen=True, slots=True)
class Tunnel:
    """VXLAN frames of `vni` that come to UDP port `port` are taken from no address but those that have a `Vtep`."""

    family: int
    port: int
    vni: int

    @property
    def key(self) -> str:
        return f"tunnel/{self.family}/{self.port}/{self.vni}"


@dataclass(frozen=True, slots=True)
class Vtep:
    """A host whose VXLAN frames of `vni` are taken."""

    address: IPv4Address | IPv6Address
    port: int
    vni: int

    @property
    def family(self) -> int:
        """The IP version."""
        return self.address.version

    @property
    def key(self) -> str:
        return f"vtep/{self.address}/{self.port}/{self.vni}"
