"""Macvlan mode: containers on the segment of a link of the host, each with a MAC of its own, past the host's firewall.

The gateway is a router on that segment, not ours. What a container reaches is decided out there; the host itself is the
exception, since the kernel hands nothing from a parent to its macvlans or back. With ``host_access`` the host gets a
macvlan of its own and reaches the containers by routes to them alone, whatever else it has on that segment.
"""

from collections.abc import Sequence
from dataclasses import replace

from . import shared
from .api import Attachment, Endpoint, HostFacts, LinkFacts, Network, Scope
from .errors import DriverError, Kind
from .naming import host_macvlan, mac_of_id, sandbox_side
from .options import AnyOption, NetworkOptions
from .plan import Plan
from .sandbox import attachment
from .steps import Address, Announce, IPInterface, Macvlan, Route, Step

_KIND = "macvlan"
"""Of its links, as the kernel calls them."""
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
    )
    default = False
    gateway = False
    linked = True
    addressed = True

    def complete(self, options: NetworkOptions, host: HostFacts) -> NetworkOptions:
        if options.host_access and options.macvlan_mode != "bridge":
            words = f"option host_access=true: not in macvlan_mode={options.macvlan_mode}, only in bridge"
            raise DriverError(Kind.INVALID, words)
        parent = options.parent or host.uplink
        link = host.link(parent)
        return replace(options, parent=parent, mtu=options.mtu or (link.mtu if link else host.mtu))

    def segment(self, net: Network) -> str:
        return net.options.parent

    def check(self, net: Network, others: Sequence[Network], host: HostFacts) -> None:
        """Refuse a parent that cannot carry the network."""
        parent = _parent(net.options, host)
        if net.options.mtu > parent.mtu:
            raise _invalid("mtu", net.options.mtu, f"link {parent.name!r} carries {parent.mtu}", "choose a smaller one")
        _check_sharing(net, others, host)

    def admit(self, net: Network, present: int) -> None:
        if present and net.options.macvlan_mode == _PASSTHRU:
            words = f"network {net.name!r} has a container, and macvlan_mode=passthru gives its parent to one alone"
            raise DriverError(Kind.EXISTS, words, hint="remove that one first")

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
        """Publish nothing: the container is on the segment with all its ports."""
        return Plan()

    def base(self, families: Sequence[int], host: HostFacts) -> Plan:
        return Plan()


def _parent(options: NetworkOptions, host: HostFacts) -> LinkFacts:
    if not options.parent:
        raise DriverError(
            Kind.INVALID, "mode macvlan: the host has no default route to tell the uplink", hint="give -o parent=LINK"
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
    """Refuse a parent that another has for itself, or that is wanted whole and has others on it."""
    parent, whole = net.options.parent, net.options.macvlan_mode == _PASSTHRU
    for other in others:
        same = (other.options.mode, other.options.parent) == (net.options.mode, parent)
        if same and (whole or other.options.macvlan_mode == _PASSTHRU):
            raise DriverError(
                Kind.EXISTS,
                f"option parent={parent}: network {other.name!r} is on it, and passthru takes a parent alone",
                hint="choose another parent or macvlan_mode",
            )
    for link in host.links:
        if link.parent == parent and (whole or link.macvlan_mode == _PASSTHRU):
            raise DriverError(
                Kind.EXISTS,
                f"option parent={parent}: macvlan {link.name!r} is on it, and passthru takes a parent alone",
                hint="choose another parent or macvlan_mode",
            )


def _host_prefix(address: IPInterface) -> IPInterface:
    """Return an address with a prefix of its own: no route to the rest of its subnet comes with it."""
    return type(address)((address.ip, address.max_prefixlen))


def _invalid(key: str, value: object, what: str, hint: str) -> DriverError:
    return DriverError(Kind.INVALID, f"option {key}={value}: {what}", hint=hint)
