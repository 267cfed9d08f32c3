"""Host mode: a container that receives the host's ports.

No plugin API can put a container into the host's namespace. So it gets a point-to-point link to the host. Every TCP and
UDP port of the host's addresses without a socket of the host is translated to it, and the client's address is kept. The
firewall looks for a socket for each new connection, after all published ports (``tables/host_mode.nft``). So the host's
services have precedence, also those started later.

The name of the host side has the prefix of bridges (`naming.BRIDGES`). So the rules of bridge networks apply to it as
well: isolation, masquerade, and the reverse path filter.
"""

from collections.abc import Sequence
from dataclasses import replace

from . import firewall, firewalld, link_mtu, published_ports, shaping, shared
from .api import Attachment, Endpoint, HostFacts, Network, Scope
from .errors import DriverError, Kind
from .naming import mac_of_host_side, point_to_point, sandbox_side
from .options import AnyOption, NetworkOptions
from .plan import Plan
from .sandbox import attachment, gateways
from .steps import Address, Flows, IPInterface, Proto, Route, Step, Sysctl, Veth
from .tables import HOST_MODE


class HostDriver:
    """Networks with one container, which receives the host's ports."""

    scope = Scope.LOCAL
    options: tuple[AnyOption, ...] = (
        shared.MTU,
        shared.MASQUERADE,
        shared.IFNAME,
        shared.GW_PRIORITY,
        shared.METRIC,
        shared.RATE,
        shared.BURST,
    )
    default = False
    gateway = True
    linked = True
    addressed = True

    def complete(self, options: NetworkOptions, host: HostFacts) -> NetworkOptions:
        return replace(options, mtu=options.mtu or host.mtu)

    def segment(self, net: Network) -> str:
        return ""

    def check(self, net: Network, others: Sequence[Network], host: HostFacts) -> None:
        """Refuse a second network, since the host has one set of ports, and subnets that the host already routes."""
        for other in others:
            if other.options.mode == net.options.mode:
                words = (
                    f"network {other.name!r} already has mode host, and only one container can receive the host's ports"
                )
                raise DriverError(
                    Kind.EXISTS, words, hint=f"remove {other.name!r}, or publish ports on a bridge network"
                )
        shaping.limit(net.options)
        link_mtu.check(net)
        for subnet in net.subnets:
            firewall.check_pool(subnet.pool, "", host)

    def admit(self, net: Network, present: int) -> None:
        if present:
            words = f"network {net.name!r} has a container, and only one can receive the host's ports"
            raise DriverError(Kind.EXISTS, words, hint="remove it first, or publish ports on a bridge network")

    def create_network(self, net: Network, host: HostFacts) -> Plan:
        return Plan()

    def create_endpoint(self, net: Network, ep: Endpoint, host: HostFacts) -> Plan:
        link = point_to_point(ep.id)
        veth = Veth(
            link,
            sandbox_side(ep.id),
            mac=mac_of_host_side(ep.id),
            peer_mac=ep.chosen_mac(),
            mtu=net.options.mtu,
            master="",
        )
        own = [_host_prefix(gateway) for gateway in gateways(net, ep)]
        steps: list[Step] = [Address(link, gateway) for gateway in own]
        steps += [Route(_host_prefix(address).network, link) for address in ep.addresses]
        if any(address.version == 4 for address in ep.addresses):
            steps.append(Sysctl(f"net/ipv4/conf/{link}/route_localnet", "1"))
        plan = shaping.with_limits(net, ep, link, Plan((veth,))) + Plan(tuple(steps))
        plan += firewall.own_link(net, [_host_prefix(address).network for address in ep.addresses], own, link)
        return plan + published_ports.resolver(net, own, link) + (Plan() if net.internal else _catch_all(ep))

    def join(self, net: Network, ep: Endpoint) -> Attachment:
        return attachment(net, ep)

    def expose(self, net: Network, ep: Endpoint) -> Plan:
        """Publish nothing: the container receives all free ports."""
        return Plan()

    def base(self, families: Sequence[int], host: HostFacts) -> Plan:
        tables = Plan((firewall.table(HOST_MODE, "host_mode"),))
        return firewalld.base(host) + firewall.routed(families, host) + tables


def _catch_all(ep: Endpoint) -> Plan:
    """Return what translates unused ports to the container."""
    plan = Plan()
    for address in ep.addresses:
        plan += firewall.catch_all(address.ip) + Plan((Flows(Proto.UDP, 0, address.ip),))
    return plan


def _host_prefix(address: IPInterface) -> IPInterface:
    return type(address)((address.ip, address.max_prefixlen))
