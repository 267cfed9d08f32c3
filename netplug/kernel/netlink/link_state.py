"""How a link of ours is to be, and how it was when the kernel last told of it."""

from dataclasses import dataclass
from typing import Self

from netplug.drivers.steps import Bridge, Step
from netplug.drivers.tunnel import Vxlan
from netplug.kernel.netlink import port_flags, rtnl
from netplug.kernel.netlink.connection import attrs, number
from netplug.kernel.netlink.rtnl import Link
from netplug.kernel.netlink.vxlan_info import vxlan_info

Traits = tuple[object, ...]
"""What links of a kind have, and others must not change. Of a bridge: its group, whether it runs the spanning tree
protocol, whether it learns MACs from link-local frames. Of a tunnel: see `VxlanInfo.traits`."""


@dataclass(frozen=True, slots=True)
class LinkState:
    """A link. `mtu` in bytes; `mac` as text. `port`: flags of a port that are to be set, see `port_flags.bits`."""

    mtu: int
    mac: str
    port: int = 0
    traits: Traits = ()

    @classmethod
    def wanted(cls, step: Step) -> Self:
        """Return how the link of a step is to be."""
        mtu, mac = getattr(step, "mtu", 0), getattr(step, "mac", "").lower()
        return cls(mtu, mac, port_flags.wanted(step), _wanted_traits(step))

    @classmethod
    def of(cls, link: Link) -> Self:
        """Return the state of a link that the kernel lists."""
        if link.kind == "bridge":
            return cls(link.mtu, link.mac, traits=(link.group, link.stp, link.learns_from_reserved))
        return cls(link.mtu, link.mac, traits=link.vxlan.traits if link.vxlan else ())

    def left(self, before: Self, wanted: Self) -> bool:
        """Tell whether it is not any more as it is wanted. What we make gets there in steps, and changes with it."""
        return (
            (before.mtu == wanted.mtu != self.mtu)
            or (before.mac == wanted.mac != self.mac)
            or any(b == w != n for b, w, n in zip(before.traits, wanted.traits, self.traits, strict=False))
        )


def _wanted_traits(step: Step) -> Traits:
    if isinstance(step, Bridge):
        return () if step.adopt else (step.group, False, False)
    return (step.local, False, 0, 0, None) if isinstance(step, Vxlan) else ()


def told_traits(found: dict[int, bytes]) -> Traits:
    """Return the traits of a link by the attributes of a message about it."""
    info = attrs(found.get(rtnl.IFLA_LINKINFO, b""))
    match info.get(rtnl.IFLA_INFO_KIND):
        case b"bridge\0":
            bridge = rtnl.bridge_fields(info)
            return (number(found.get(rtnl.IFLA_GROUP)), bridge["stp"], bridge["learns_from_reserved"])
        case b"vxlan\0":
            return vxlan_info(info.get(rtnl.IFLA_INFO_DATA, b""), {}).traits
    return ()
