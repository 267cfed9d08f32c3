"""Mode routed: each container has a veth to the host and no bridge; the host routes to its address alone.

The gateway's address is on each host side. For the other addresses of the subnet the host answers ARP there (proxy ARP,
RFC 1027), so that containers reach each other by it.
"""

from collections.abc import Sequence
from ipaddress import ip_interface

from netplug.drivers import firewall, option_values, published_ports, shared
from netplug.drivers.api import Attachment, Endpoint, HostFacts, Network
from netplug.drivers.naming import mac_of_host_side, point_to_point, sandbox_side
from netplug.drivers.none import NoneDriver
from netplug.drivers.options import Option
from netplug.drivers.plan import Plan
from netplug.drivers.sandbox import attachment, gateways
from netplug.drivers.steps import Address, Element, IPInterface, Route, Sysctl, Veth
from netplug.drivers.tables import NETWORKS

PROXY_ARP = Option("proxy_arp", option_values.boolean, "true", "containers of the network reach each other")


class RoutedDriver(NoneDriver):
    """Networks of containers that the host routes to, one by one. What is not said here is as in `NoneDriver`."""

    options = (shared.MTU, shared.IFNAME, shared.MASQUERADE, PROXY_ARP)
    gateway = linked = addressed = True

    def check(self, net: Network, others: Sequence[Network], host: HostFacts) -> None:
        for subnet in net.subnets:
            firewall.check_pool(subnet.pool, "", host)

    def create_endpoint(self, net: Network, ep: Endpoint, host: HostFacts) -> Plan:
        link, mtu = point_to_point(ep.id), net.options.mtu
        own = [_single(gateway) for gateway in gateways(net, ep)]
        veth = Veth(link, sandbox_side(ep.id), mac_of_host_side(ep.id), ep.chosen_mac(), mtu, master="")
        plan = Plan((veth, *(Address(link, gateway) for gateway in own)))
        addresses = [_single(address).network for address in ep.addresses]
        plan += Plan(tuple(Route(it, link) for it in addresses)) + firewall.own_link(net, addresses, own, link)
        if PROXY_ARP.of(net.options):
            plan += Plan((Sysctl(f"net/ipv4/conf/{link}/proxy_arp", "1"),))
            beside = ((f"beside{it.pool.version}", f"{it.pool} . {link}") for it in net.subnets)
            plan += Plan(tuple(Element(NETWORKS, name, item) for name, item in beside))
        return plan + published_ports.resolver(net, own, link)

    def join(self, net: Network, ep: Endpoint) -> Attachment:
        return attachment(net, ep)

    def base(self, families: Sequence[int], host: HostFacts) -> Plan:
        return firewall.routed(families, host)


def _single(address: IPInterface) -> IPInterface:
    return ip_interface(f"{address.ip}/{address.max_prefixlen}")
