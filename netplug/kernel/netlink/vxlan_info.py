"""Attributes of VXLAN links (linux/if_link.h, IFLA_VXLAN_…)."""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from netplug.drivers.steps import IPAddress
from netplug.kernel.netlink.connection import attrs, number

IFLA_VXLAN_ID, IFLA_VXLAN_LOCAL, IFLA_VXLAN_LEARNING, IFLA_VXLAN_PORT, IFLA_VXLAN_LOCAL6 = 1, 4, 7, 15, 17
IFLA_VXLAN_GROUP, IFLA_VXLAN_LINK, IFLA_VXLAN_TTL, IFLA_VXLAN_GROUP6 = 2, 3, 5, 16


@dataclass(frozen=True, slots=True)
class VxlanInfo:
    """Attributes of a VXLAN link. `flags`: those of its bridge port, 0 or 1 by attribute type.

    `ttl`: 0, the host's. `device`: index of the link by which it sends; 0, routes decide. `remote`: the VTEP of unknown
    MACs.
    """

    vni: int
    port: int
    local: IPAddress | None
    learning: bool
    flags: Mapping[int, int]
    ttl: int = 0
    device: int = 0
    remote: IPAddress | None = None

    @property
    def traits(self) -> tuple[object, ...]:
        """Return what netplug sets and others can change."""
        return self.local, self.learning, self.ttl, self.device, self.remote


def vxlan_info(data: bytes, port: Mapping[int, bytes]) -> VxlanInfo:
    """Return a VXLAN link's, by its IFLA_INFO_DATA. `port`: attributes of its bridge port."""
    found = attrs(data)
    local = found.get(IFLA_VXLAN_LOCAL) or found.get(IFLA_VXLAN_LOCAL6)
    remote = found.get(IFLA_VXLAN_GROUP) or found.get(IFLA_VXLAN_GROUP6)
    return VxlanInfo(
        vni=number(found.get(IFLA_VXLAN_ID)),
        port=int.from_bytes(found.get(IFLA_VXLAN_PORT, b""), "big"),
        local=ip_address(local) if local else None,
        learning=found.get(IFLA_VXLAN_LEARNING) == b"\x01",
        flags={kind: value[0] for kind, value in port.items() if len(value) == 1},
        ttl=found.get(IFLA_VXLAN_TTL, b"\0")[0],
        device=number(found.get(IFLA_VXLAN_LINK)),
        remote=ip_address(remote) if remote and any(remote) else None,
    )
