"""Steps of networks across hosts: a VXLAN link, and its forwarding entries.

They complement those of `steps`. Our links do not learn MACs, as RFC 7348 4.1 describes. `Fdb` steps have the remote
MACs, `Neighbour` steps the remote addresses.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from .checked_texts import LinkName, LinkOrNone, Mac
from .steps import LINK

NO_MAC = "00:00:00:00:00:00"
"""In an `Fdb`: all MACs without an entry, and broadcast and multicast (head-end replication)."""


@dataclass(frozen=True, slots=True)
class Vxlan:
    """A VXLAN link, up, a port of bridge `master`. It sends from address `local` of the host to UDP port `port`.

    MAC learning is off on the link and its bridge port. The bridge answers ARP and neighbour discovery for remote
    addresses, from `Neighbour` steps. `flood`: broadcast, unknown unicast and multicast are sent by the link.
    `isolated`: it exchanges no frames with other isolated ports.
    """

    name: LinkName
    mac: Mac
    mtu: int
    master: LinkOrNone
    vni: int
    local: IPv4Address | IPv6Address
    port: int
    flood: bool = False
    isolated: bool = False

    @property
    def key(self) -> str:
        return LINK + self.name


@dataclass(frozen=True, slots=True)
class Fdb:
    """VXLAN link `link` sends frames for `mac` to the host with VTEP `vtep`. `NO_MAC` may have several VTEPs.

    The bridge gets a static, sticky entry too, so that a local port that sends with this MAC does not take it over.
    """

    link: LinkName
    mac: Mac
    vtep: IPv4Address | IPv6Address

    @property
    def key(self) -> str:
        return f"fdb/{self.link}/{self.mac}" + (f"/{self.vtep}" if self.mac == NO_MAC else "")


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A permanent neighbour: bridge `link` answers ARP and neighbour discovery for `address` with `mac`."""

    link: LinkName
    address: IPv4Address | IPv6Address
    mac: Mac

    @property
    def key(self) -> str:
        return f"neighbour/{self.link}/{self.address}"
