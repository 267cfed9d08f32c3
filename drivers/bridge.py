"""Bridge mode: a veth on a Linux bridge, the gateway on the bridge, NAT, published ports, isolation."""

from collections.abc import Sequence
from dataclasses import replace

from . import antispoof, firewall, firewalld, link_mtu, published_ports, shaping, shared
from .api import Attachment, Endpoint, HostFacts, Network, Scope
from .errors import DriverError, Kind
from .naming import OPEN_GROUP, OTHER_GROUP, bridge_name, host_side, mac_of_host_side, mac_of_id, sandbox_side
from .options import AnyOption, NetworkOptions
from .plan import Plan
from .sandbox import attachment
from .steps import Address, Announce, Bridge, Hairpin, Step, Sysctl, Veth
from .tables import ANTISPOOF


def link_of(net: Network) -> str:
    """Return the name of the network's bridge."""
    return net.options.bridge or bridge_name(net.id)


def _bridge(net: Network, mac: str, host: HostFacts, *, guarded: bool) -> Bridge:
    mtu = net.options.mtu or host.mtu
    if net.options.bridge:
        return Bridge(net.options.bridge, mac, mtu, adopt=True)
    group = OPEN_GROUP if guarded and not net.internal else OTHER_GROUP
    return Bridge(link_of(net), mac, mtu, group=group)


_PORTS = 1023


OPTIONS = (
    shared.MTU,
    shared.BRIDGE,
    shared.MASQUERADE,
    shared.ICC,
    shared.SPOOFCHK,
    shared.HOST_BINDING_IPV4,
    shared.IFNAME,
    shared.GW_PRIORITY,
    shared.METRIC,
    shared.RATE,
    shared.BURST,
)
"""Of all networks on a Linux bridge."""


class BridgeDriver:
    """Networks on a Linux bridge of this host."""

    scope = Scope.LOCAL
    options: tuple[AnyOption, ...] = (*OPTIONS, shared.SLAAC)
    default = True
    gateway = True
    linked = True
    addressed = True
    own_ports = 0
    """Ports of the bridge that are no endpoints."""

    def complete(self, options: NetworkOptions, host: HostFacts) -> NetworkOptions:
        return replace(options, mtu=options.mtu or host.mtu)

    def segment(self, net: Network) -> str:
        return ""

    def check(self, net: Network, others: Sequence[Network], host: HostFacts) -> None:
        """Refuse a bridge that is no bridge, or one of another network, and subnets that the host already routes."""
        bridge = link_of(net)
        kind = host.kind_of(bridge)
        if kind not in {None, "bridge"}:
            raise DriverError(
                Kind.INVALID,
                f"option bridge={bridge}: the host has a {kind} link of this name",
                hint="choose another",
            )
        if net.options.slaac and net.options.spoofchk:
            words = "option slaac=true: spoofchk lets containers send from no address but those that they are given"
            raise DriverError(Kind.INVALID, words, hint="give -o spoofchk=false as well")
        for other in others:
            if link_of(other) == bridge:
                raise DriverError(Kind.EXISTS, f"bridge {bridge!r} belongs to network {other.name!r}")
        shaping.limit(net.options)
        link_mtu.check(net)
        for subnet in net.subnets:
            firewall.check_pool(subnet.pool, bridge, host)

    def admit(self, net: Network, present: int) -> None:
        """Refuse one endpoint more than a Linux bridge has ports (BR_MAX_PORTS); on a user's own the kernel does."""
        room = _PORTS - self.own_ports
        if present >= room and not net.options.bridge:
            words = f"network {net.name!r} has {present} containers on this host, and a Linux bridge takes {room}"
            raise DriverError(Kind.UNAVAILABLE, words, hint="use a second network")

    def mac(self, net: Network) -> str:
        """Return the MAC of the network's bridge, which is that of its gateways."""
        return mac_of_id(net.id)

    def create_network(self, net: Network, host: HostFacts) -> Plan:
        bridge, mac = link_of(net), self.mac(net)
        # What comes by a port of the bridge itself, a tunnel, is not guarded.
        guarded = net.options.spoofchk and not self.own_ports
        steps: list[Step] = [_bridge(net, mac, host, guarded=guarded)]
        steps += [Address(bridge, subnet.gateway) for subnet in net.subnets if subnet.gateway]
        if 4 in net.families():
            # Lets a packet from 127.0.0.1 to a published port leave through the bridge (ip-sysctl.rst, route_localnet).
            restore = "0" if net.options.bridge else ""
            steps.append(Sysctl(f"net/ipv4/conf/{bridge}/route_localnet", "1", restore))
        gateways = [subnet.gateway for subnet in net.subnets if subnet.gateway]
        plan = Plan(tuple(steps)) + firewall.network(net, bridge, host, guarded=guarded)
        own = antispoof.bridge(mac) if net.options.spoofchk else Plan()
        return firewalld.network(bridge, host) + plan + own + published_ports.resolver(net, gateways, bridge)

    def create_endpoint(self, net: Network, ep: Endpoint, host: HostFacts) -> Plan:
        veth = Veth(
            host_side(ep.id),
            sandbox_side(ep.id),
            mac=mac_of_host_side(ep.id),
            peer_mac=ep.chosen_mac(),
            mtu=net.options.mtu or host.mtu,
            master=link_of(net),
            isolated=not net.options.icc,
            pinned=net.options.spoofchk,
            slaac=net.options.slaac,
        )
        addresses = [address.ip for address in ep.addresses]
        own = (
            antispoof.own(veth.name, veth.peer_mac, addresses) if net.options.spoofchk else antispoof.exempt(veth.name)
        )
        # The address may have had another MAC, which neighbours and the host remember.
        told = Plan(tuple(Announce(veth.master, veth.peer_mac, address) for address in addresses))
        return own + shaping.with_limits(net, ep, veth.name, Plan((veth,))) + told

    def join(self, net: Network, ep: Endpoint) -> Attachment:
        return attachment(net, ep)

    def expose(self, net: Network, ep: Endpoint) -> Plan:
        if net.internal or not ep.ports:
            return Plan()
        steps: list[Step] = []  # there may be ten thousand: to add up plans would take minutes
        addresses = [interface.ip for interface in ep.addresses]
        for mapping in ep.ports:
            published_ports.check_port(net, ep, mapping)
            for host, address in published_ports.host_addresses(mapping, addresses):
                steps += published_ports.publish(mapping, host, address)
        return Plan((Hairpin(host_side(ep.id)), *steps)) if steps else Plan()

    def base(self, families: Sequence[int], host: HostFacts) -> Plan:
        tables = Plan((firewall.table(ANTISPOOF, "antispoof"),))
        return firewalld.base(host) + firewall.routed(families, host) + tables
