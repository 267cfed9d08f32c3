"""Macvlan mode: containers on the segment of a link of the host, each with its own MAC, without the host's firewall.

The gateway is a router on that segment, not ours, and it decides what a container can reach. The host is not reachable,
since the kernel does not forward between a parent and its macvlans. With ``host_access`` the host gets a macvlan of its
own, with routes to the containers only.
"""

from collections.abc import Sequence
from dataclasses import replace

from . import link_mtu, shared
from .api import Attachment, Endpoint, HostFacts, LinkFacts, Network, Scope
from .errors import DriverError, Kind
from .naming import host_macvlan, mac_of_id, sandbox_side
from .options import AnyOption, NetworkOptions
from .plan import Plan
from .sandbox import attachment
from .steps import Address, Announce, IPInterface, Macvlan, Route, Step
from .subnets import check_range

_KIND = "macvlan"
"""The kernel's kind of its links."""
_PASSTHRU = "passthru"


class MacvlanDriver:
    """Networks on the segment of a link of the host."""

    scope = Scope.LOCAL
    options: tuple[AnyOption, ...] = (
        shared.MTU,
        shared.SLAAC,
        shared.IFNAME,
        shared.PARENT,
        shared.MACVLAN_MODE,
        shared.HOST_ACCESS,
        shared.GW_PRIORITY,
        shared.METRIC,
    )
    default = False
    gateway = False
    linked = True
    addressed = True

    def complete(self, options: NetworkOptions, host: HostFacts) -> NetworkOptions:
        if options.host_access and options.macvlan_mode != "bridge":
            words = f"option host_access=true needs macvlan_mode=bridge, not {options.macvlan_mode}"
            raise DriverError(Kind.INVALID, words)
        parent = options.parent or host.uplink
        link = host.link(parent)
        return replace(options, parent=parent, mtu=options.mtu or (link.mtu if link else host.mtu))

    def segment(self, net: Network) -> str:
        return net.options.parent

    def check(self, net: Network, others: Sequence[Network], host: HostFacts) -> None:
        """Refuse a parent that is unsuitable, in use, or has a smaller MTU."""
        for subnet in net.subnets:
            check_range(subnet.pool, routed=False)
        link_mtu.check(net)
        parent = _parent(net.options, host)
        if net.options.mtu > parent.mtu:
            raise _invalid(
                "mtu", net.options.mtu, f"parent {parent.name!r} has mtu {parent.mtu}", "choose a smaller one"
            )
        _check_sharing(net, others, host)

    def admit(self, net: Network, present: int) -> None:
        if present and net.options.macvlan_mode == _PASSTHRU:
            words = f"network {net.name!r} has a container, and macvlan_mode=passthru allows only one"
            raise DriverError(Kind.EXISTS, words, hint="remove it first")

    def create_network(self, net: Network, host: HostFacts) -> Plan:
        ours = [subnet.host for subnet in net.subnets if subnet.host]
        if not ours:
            return Plan()
        name = host_macvlan(net.id)
        link = Macvlan(name, net.options.parent, net.options.macvlan_mode, mac_of_id(net.id), net.options.mtu, up=True)
        return Plan((link, *(Address(name, _host_prefix(address)) for address in ours)))

    def create_endpoint(self, net: Network, ep: Endpoint, host: HostFacts) -> Plan:
        options, mac = net.options, ep.chosen_mac()
        steps: list[Step] = [
            Macvlan(sandbox_side(ep.id), options.parent, options.macvlan_mode, mac, options.mtu, slaac=options.slaac)
        ]
        families = {subnet.host.version for subnet in net.subnets if subnet.host}
        steps += [
            Route(_host_prefix(address).network, host_macvlan(net.id))
            for address in ep.addresses
            if address.version in families
        ]
        steps += [Announce(options.parent, mac, address.ip) for address in ep.addresses]
        return Plan(tuple(steps))

    def join(self, net: Network, ep: Endpoint) -> Attachment:
        return attachment(net, ep)

    def expose(self, net: Network, ep: Endpoint) -> Plan:
        """Publish nothing: all ports of the container are reachable on the segment."""
        return Plan()

    def base(self, families: Sequence[int], host: HostFacts) -> Plan:
        return Plan()


def _parent(options: NetworkOptions, host: HostFacts) -> LinkFacts:
    if not options.parent:
        raise DriverError(
            Kind.INVALID,
            "mode macvlan: the host has no default route to derive parent from",
            hint="give -o parent=LINK",
        )
    link = host.link(options.parent)
    if link is None:
        names = ", ".join(item.name for item in host.links if item.kind not in {"veth", _KIND} and item.name != "lo")
        raise _invalid("parent", options.parent, "the host has no such link", f"links of the host: {names or 'none'}")
    if link.name == "lo":
        raise _invalid("parent", link.name, "the loopback link has no segment", "choose another")
    if link.kind == _KIND:
        raise _invalid("parent", link.name, f"is a macvlan itself, of {link.parent!r}", f"choose {link.parent!r}")
    if link.master:
        raise _invalid("parent", link.name, f"is a port of {link.master!r}", f"choose {link.master!r}")
    return link


def _check_sharing(net: Network, others: Sequence[Network], host: HostFacts) -> None:
    """Refuse a parent with a passthru macvlan, and passthru on a parent with any macvlan."""
    parent, exclusive = net.options.parent, net.options.macvlan_mode == _PASSTHRU
    for other in others:
        same = (other.options.mode, other.options.parent) == (net.options.mode, parent)
        if same and (exclusive or other.options.macvlan_mode == _PASSTHRU):
            raise DriverError(
                Kind.EXISTS,
                f"option parent={parent}: network {other.name!r} uses it; with passthru a parent has one macvlan only",
                hint="choose another parent or macvlan_mode",
            )
    for link in host.links:
        if link.parent == parent and (exclusive or link.macvlan_mode == _PASSTHRU):
            raise DriverError(
                Kind.EXISTS,
                f"option parent={parent}: macvlan {link.name!r} uses it; with passthru a parent has one macvlan only",
                hint="choose another parent or macvlan_mode",
            )


def _host_prefix(address: IPInterface) -> IPInterface:
    """Return an address with a host prefix (/32 or /128), which adds no route to its subnet."""
    return type(address)((address.ip, address.max_prefixlen))


def _invalid(key: str, value: object, what: str, hint: str) -> DriverError:
    return DriverError(Kind.INVALID, f"option {key}={value}: {what}", hint=hint)
