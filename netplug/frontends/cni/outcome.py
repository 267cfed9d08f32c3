"""An endpoint as the result of its ADD, made from its record: the same for all modes."""

from collections.abc import Callable

from netplug.drivers.api import LinkFacts
from netplug.drivers.steps import IPAddress, IPInterface
from netplug.engine.records import EndpointRecord, NetworkRecord
from netplug.frontends.cni.result import Dns, Interface, Ip, Result, RouteOf
from netplug.frontends.cni.wire import Request


def outcome(
    request: Request,
    network: NetworkRecord,
    built: EndpointRecord,
    dns: Dns,
    leased: Result | None,
    link_of: Callable[[str], LinkFacts | None],
) -> Result:
    """Return the result of an ADD.

    `leased`: the result of another IPAM plugin. `link_of`: links of the host, for a bridge that is not ours.
    """
    interfaces = _interfaces(request, network, built, link_of)
    ips = addresses_of(network, built, len(interfaces) - 1 if interfaces else None, leased)
    routes = tuple(RouteOf(route.destination, route.gateway) for route in built.routes)
    if dns == Dns() and leased is not None:
        dns = leased.dns
    return Result(interfaces, ips, routes, dns)


def addresses_of(
    network: NetworkRecord, built: EndpointRecord, interface: int | None, leased: Result | None
) -> tuple[Ip, ...]:
    """Return an endpoint's addresses with their gateways."""
    theirs = {ip.address.ip: ip.gateway for ip in leased.ips} if leased else {}
    return tuple(
        Ip(address, theirs.get(address.ip) or _gateway(network, address), interface)
        for address in built.endpoint.addresses
    )


def _interfaces(
    request: Request,
    network: NetworkRecord,
    built: EndpointRecord,
    link_of: Callable[[str], LinkFacts | None],
) -> tuple[Interface, ...]:
    inside, outside = built.attachment, built.host_link
    if inside.link is None:
        return ()
    inner = Interface(request.ifname, inside.mac, request.netns, inside.mtu)
    if outside is None:
        return (inner,)
    outer = Interface(outside.name, outside.mac, mtu=outside.mtu)
    return (*_bridge(network, link_of), outer, inner)


def _bridge(network: NetworkRecord, link_of: Callable[[str], LinkFacts | None]) -> tuple[Interface, ...]:
    bridge = network.bridge
    if bridge is None:
        return ()
    if bridge.mac:
        return (Interface(bridge.name, bridge.mac, mtu=bridge.mtu),)
    link = link_of(bridge.name)
    return (Interface(bridge.name, link.mac, mtu=link.mtu) if link else Interface(bridge.name),)


def _gateway(network: NetworkRecord, address: IPInterface) -> IPAddress | None:
    for subnet in network.network.subnets:
        if address in subnet.pool and subnet.gateway is not None:
            return subnet.gateway.ip
    return None
