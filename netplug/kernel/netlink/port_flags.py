"""Flags of bridge ports in what the kernel tells of them: which are set, and which others have changed (bridge(8))."""

import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from netplug.drivers.steps import Step, Veth
from netplug.drivers.tunnel import Vxlan
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.rtnl import CARRIES, IFF_UP, Link

FLOODS = (rtnl.IFLA_BRPORT_UNICAST_FLOOD, rtnl.IFLA_BRPORT_MCAST_FLOOD, rtnl.IFLA_BRPORT_BCAST_FLOOD)
HAIRPIN = 1 << rtnl.IFLA_BRPORT_MODE
_STATE = rtnl.IFLA_BRPORT_STATE
_WATCHED = (
    rtnl.IFLA_BRPORT_MODE,
    rtnl.IFLA_BRPORT_ISOLATED,
    rtnl.IFLA_BRPORT_LEARNING,
    *(kind for kind in rtnl.PASSING if kind != _STATE),
)
_SET = tuple((struct.pack("=HHB", 5, kind, 1), 1 << kind) for kind in _WATCHED)
"""Attributes of flags that are set. They are searched, not parsed: a port has forty, and that would take three times
as long."""
_FORWARDS = struct.pack("=HHB", 5, _STATE, 3)


def bits(flags: Collection[int]) -> int:
    """Return flags (IFLA_BRPORT_…) as one number.

    >>> bits((1, 3))
    10
    """
    return sum(1 << kind for kind in flags)


def wanted(step: Step) -> int:
    """Return which flags of its port a step wants to be set, of those that are watched. Hairpin mode is another's."""
    if isinstance(step, Veth):
        learns = () if step.pinned else (rtnl.IFLA_BRPORT_LEARNING,)
        return bits((*FLOODS, *learns, *((rtnl.IFLA_BRPORT_ISOLATED,) if step.isolated else ())))
    return bits([kind for kind, value in of_tunnel(step).items() if value]) if isinstance(step, Vxlan) else 0


def of_tunnel(step: Vxlan) -> dict[int, int]:
    """Return the flags of a tunnel's port. ARP and neighbour discovery are always suppressed."""
    return {
        rtnl.IFLA_BRPORT_LEARNING: 0,
        **dict.fromkeys(FLOODS, int(step.flood)),
        rtnl.IFLA_BRPORT_NEIGH_SUPPRESS: 1,
        rtnl.IFLA_BRPORT_ISOLATED: int(step.isolated),
    }


@dataclass(frozen=True, slots=True)
class PortFlags:
    """A bridge port as the kernel told of it.

    `flags`: those that are set, see `bits`. `forwards`: it is in state forwarding, or has no carrier. `up`: it is.
    `own_mac`: it has the MAC that we gave it.
    """

    flags: int
    forwards: bool
    up: bool
    own_mac: bool = True

    @classmethod
    def of(cls, port: Link) -> Self:
        """Return those of a port, as the kernel lists it."""
        passing = {kind for kind, value in rtnl.PASSING.items() if (value == b"\x01") != (kind in port.blocks)}
        others = {
            rtnl.IFLA_BRPORT_MODE: port.hairpin,
            rtnl.IFLA_BRPORT_ISOLATED: port.isolated,
            rtnl.IFLA_BRPORT_LEARNING: port.learning,
        }
        flags = bits([*(passing - {_STATE}), *(kind for kind, value in others.items() if value)])
        return cls(flags, _STATE not in port.blocks or port.flags & CARRIES != CARRIES, port.up)

    @classmethod
    def told(cls, info: bytes, of_link: int, *, own_mac: bool) -> Self:
        """Return those of a message. `info`: its IFLA_PROTINFO; `of_link`: IFF_… of the link."""
        flags = sum(bit for attribute, bit in _SET if attribute in info)
        return cls(flags, _FORWARDS in info or of_link & CARRIES != CARRIES, bool(of_link & IFF_UP), own_mac)

    def left(self, before: Self, wanted: int) -> bool:
        """Tell whether it is not any more as it is wanted. What we change becomes as we want it."""
        strayed = (self.flags ^ before.flags) & (self.flags ^ wanted)
        lost = (
            before.forwards and not self.forwards,
            before.up and not self.up,
            before.own_mac and not self.own_mac,
        )
        return bool(strayed) or any(lost)
