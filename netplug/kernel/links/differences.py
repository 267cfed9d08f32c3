"""Differences between a link and its step, and how each is repaired: by a link message, a sysctl, or an FDB entry."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import or_

from netplug.drivers import link_mtu
from netplug.drivers.steps import Bridge, IPInterface, Macvlan, Veth
from netplug.drivers.tunnel import Vxlan
from netplug.kernel.api import Outcome, StepError
from netplug.kernel.links import addresses, neighbours, router_advertisements
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import RTM_NEWLINK, Netlink, attr, nest, text, u32
from netplug.kernel.netlink.rtnl import IFF_UP, IFINFO, Link, LinkAddress


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference between a link and its step, and what repairs it.

    `what`: for messages. `mend`: link attributes, or flags of the bridge port if `port`. `flags`, `clear`: IFF_… to set
    and to clear. `settings`: sysctls, see `router_advertisements`; `in_sandbox`: those of links in sandboxes.
    `add_static`, `remove_static`: a MAC, for the bridge's static FDB entries. `link_local`: an address to add.
    """

    what: str
    mend: bytes = b""
    flags: int = 0
    clear: int = 0
    port: bool = False
    settings: router_advertisements.Settings | None = None
    in_sandbox: bool = False
    add_static: str = ""
    remove_static: str = ""
    link_local: IPInterface | None = None

    @property
    def mendable(self) -> bool:
        """Whether it can be repaired without creating the link anew."""
        repairs = (self.mend, self.flags | self.clear, self.settings, self.in_sandbox, self.add_static)
        return any((*repairs, self.remove_static, self.link_local))


def adjust(
    nl: Netlink, found: Link, differences: list[Difference], step: Veth | Bridge | Vxlan | None = None
) -> Outcome:
    """Repair the differences of a link. Given a `step`, raise `StepError` if one cannot be repaired."""
    if not differences:
        return Outcome.EQUAL
    for item in differences:
        if not item.mendable and step:
            raise StepError("exists", step, f"link {found.name!r} {item.what}", hint="remove it first")
    flags = reduce(or_, (item.flags for item in differences))
    change = flags | reduce(or_, (item.clear for item in differences))
    head = IFINFO.pack(0, 0, found.index, flags, change)
    if mend := b"".join(item.mend for item in differences if not item.port):
        nl.request(RTM_NEWLINK, head + mend)
    elif change:
        nl.request(RTM_NEWLINK, head)
    if port := b"".join(item.mend for item in differences if item.port):
        nl.request(RTM_NEWLINK, head + port_info(port))
    for item in differences:
        _write_settings(nl, found, item)
    return Outcome.ADJUSTED


def _write_settings(nl: Netlink, found: Link, item: Difference) -> None:
    """Repair what needs a sysctl or an FDB entry instead of a link message."""
    if item.settings:
        router_advertisements.write_ipv6(nl, found.name, item.settings)
    if item.in_sandbox:
        router_advertisements.write_in_sandbox(nl, found.name)
    if item.add_static:
        neighbours.add_static(nl, found.index, item.add_static)
    if item.remove_static:
        neighbours.remove_static(nl, found.index, item.remove_static)
    if item.link_local:
        addresses.add_link_local(nl, found.index, item.link_local)


def common_differences(found: Link, mac: str, mtu: int, *, up: bool) -> list[Difference]:
    """Compare MAC, MTU and state."""
    differences = []
    if found.mac != mac.lower():
        differences.append(Difference(f"MAC is {found.mac}, not {mac}", attr(rtnl.IFLA_ADDRESS, rtnl.packed_mac(mac))))
    if found.mtu != mtu:
        differences.append(Difference(f"mtu is {found.mtu}, not {mtu}", u32(rtnl.IFLA_MTU, mtu)))
    if up and not found.up:
        differences.append(Difference("is down", flags=IFF_UP))
    return differences


def link_local_differences(found: Link, there: Iterable[LinkAddress]) -> list[Difference]:
    """Tell whether a link that has IPv6 lacks its link-local address. `there`: the addresses of the link.

    The kernel adds one a while after the link can send, and not again when others delete it. Without one it asks for no
    neighbour, so it forwards nothing to containers (net/ipv6/ndisc.c, ndisc_send_ns).
    """
    has_ipv6 = found.mtu >= link_mtu.SMALLEST[6] and found.settings.get("ipv6/disable_ipv6") == "0"
    if not has_ipv6 or any(it.address.ip.is_link_local and it.address.version == 6 for it in there):
        return []
    wanted = addresses.link_local_of(found.mac)
    return [Difference(f"has no link-local address {wanted.ip}", link_local=wanted)]


def sandbox_differences(step: Veth | Macvlan, found: Link, side: str = "") -> list[Difference]:
    """Return what a link in a sandbox lacks once it has IPv6 again. `side`: how messages begin."""
    if not step.netns or step.slaac or not gets_ipv6(found, step.mtu):
        return []
    return [Difference(f"{side}has no IPv6", in_sandbox=True)]


def gets_ipv6(found: Link, mtu: int) -> bool:
    """Tell whether a link gets IPv6 by a new MTU, with the settings of a new link.

    The kernel takes IPv6 off a link with an MTU below 1280 (addrconf.c: addrconf_notify), and forgets its settings.
    """
    return found.mtu < link_mtu.SMALLEST[6] <= mtu


def settings_differences(found: Link, settings: router_advertisements.Settings, mtu: int = 0) -> list[Difference]:
    """Compare the settings of a link that is to have an MTU (0: the present one).

    A setting that the kernel does not have is no difference.
    """
    wrong = [
        f"{name} is {current}, not {value}"
        for family, values in settings.items()
        for name, value in values.items()
        if (current := found.settings.get(f"{family}/{name}", value)) != value
    ]
    if gets_ipv6(found, mtu):
        wrong.append("has no IPv6")
    return (
        [Difference(", ".join(wrong), router_advertisements.ipv4_attributes(settings), settings=settings)]
        if wrong
        else []
    )


def port_info(flags: bytes) -> bytes:
    """Return the attribute that sets flags of a bridge port."""
    kind = text(rtnl.IFLA_INFO_SLAVE_KIND, "bridge")
    return nest(rtnl.IFLA_LINKINFO, kind, nest(rtnl.IFLA_INFO_SLAVE_DATA, flags))
