"""An endpoint as the result of its ADD: read from the plan that built it, so that all modes are told alike."""

from collections.abc import Callable

from netplug.drivers.api import LinkFacts
from netplug.drivers.steps import Bridge, IPAddress, IPInterface, Macvlan, Route, Veth
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

    `leased`: what somebody else's IPAM said. `link_of`: links of the host, for a bridge that is not ours.
    """
    interfaces = _interfaces(request, network, built, link_of)
    ips = addresses_of(network, built, len(interfaces) - 1 if interfaces else None, leased)
    routes = tuple(
        RouteOf(step.destination, step.gateway) for step in built.plan if isinstance(step, Route) and step.netns
    )
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
    for step in built.plan:
        match step:
            case Veth():
                inner = Interface(request.ifname, step.peer_mac, request.netns, step.mtu)
                outer = Interface(step.name, step.mac, mtu=step.mtu)
                return (*_bridge(step.master, network, link_of), outer, inner)
            case Macvlan():
                return (Interface(request.ifname, step.mac, request.netns, step.mtu),)
    return ()


def _bridge(name: str, network: NetworkRecord, link_of: Callable[[str], LinkFacts | None]) -> tuple[Interface, ...]:
    step = next((step for step in network.plan if isinstance(step, Bridge) and step.name == name), None)
    if step is None:
        return ()
    if step.key not in network.used:
        return (Interface(name, step.mac, mtu=step.mtu),)
    link = link_of(name)
    return (Interface(name, link.mac, mtu=link.mtu) if link else Interface(name),)


def _gateway(network: NetworkRecord, address: IPInterface) -> IPAddress | None:
    for subnet in network.network.subnets:
        if address in subnet.pool and subnet.gateway is not None:
            return subnet.gateway.ip
    return None
