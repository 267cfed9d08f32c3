"""Published ports: which addresses of the host lead where, and what that takes. And port 53 of the gateways.

Maps of the table ``inet netplug`` translate to a container what comes to an address of the host. A port on all
addresses is in a map without them.
"""

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address

from .api import Endpoint, Network, PortMapping
from .errors import DriverError, Kind
from .firewall import RESOLVER_PORT
from .plan import Plan
from .steps import Element, Flows, HostPort, IPAddress, IPInterface, Proto, Relay, Resolver, Step, text_of
from .tables import NETWORKS

UNSPECIFIED: Mapping[int, IPAddress] = {4: ip_address("0.0.0.0"), 6: ip_address("::")}
"""The unspecified address of each IP version. As a host address it means all addresses."""
_LOOPBACK6 = ip_address("::1")


def host_addresses(
    mapping: PortMapping, addresses: Iterable[IPAddress], *, relayed: bool = True
) -> list[tuple[IPAddress, IPAddress]]:
    """Return the host addresses of a published port, each with the container address that it maps to.

    Without a host address in the mapping, they are 0.0.0.0 and ::. The container may lack one IP version. Its clients
    are relayed by this process, as are those of ::1, if it has bound the ports (`relayed`). SCTP is not relayed.
    """
    inside: dict[int, IPAddress] = {}
    for address in addresses:
        inside.setdefault(address.version, address)
    relayed = relayed and mapping.proto is not Proto.SCTP
    hosts = list(UNSPECIFIED.values()) if mapping.host_address is None else [mapping.host_address]
    found = [
        (host, inside.get(host.version) or (next(iter(inside.values()), None) if relayed else None)) for host in hosts
    ]
    return [(host, address) for host, address in found if address and (relayed or host != _LOOPBACK6)]


def check_port(net: Network, ep: Endpoint, mapping: PortMapping) -> None:
    """Refuse a mapping whose host address cannot map to the endpoint; see `host_addresses`."""
    host = mapping.host_address
    if host is None:
        return
    words = f"port {mapping} cannot be published"
    if host.is_multicast or (host.version == 6 and host.is_link_local):
        raise DriverError(Kind.INVALID, f"{words}: {host} is a multicast or link-local address")
    if not host_addresses(mapping, (address.ip for address in ep.addresses)):
        words += f": network {net.name!r} has no IPv{host.version}, and SCTP is not relayed"
        raise DriverError(Kind.INVALID, words, hint=f"publish it on an IPv{10 - host.version} address, or on all")


def publish(mapping: PortMapping, host: IPAddress, address: IPAddress) -> Plan:
    """Return the steps that publish ports of a container on a host address."""
    proto, port, count = mapping.proto, mapping.host_port, mapping.count
    reserved = HostPort(proto, host, port, count=count)
    relay = Relay(proto, host, port, address, mapping.port, count)
    if relay.crosses_versions or host == _LOOPBACK6:
        return Plan((reserved, relay))
    steps: list[Step] = [reserved, _led(proto, host, port, address, mapping.port, count)]
    if proto is Proto.UDP:
        steps.append(Flows(proto, port, address, mapping.host_address, count))
    if host == UNSPECIFIED[6] and proto is not Proto.SCTP:
        steps.append(relay)
    return Plan(tuple(steps))


def resolver(net: Network, gateways: Sequence[IPInterface], link: str) -> Plan:
    """Return the steps by which the name server answers on port 53 of the host's addresses on `link`."""
    steps: list[Step] = []
    for address in (gateway.ip for gateway in gateways if net.options.dns):
        steps.append(Resolver(net.id, link, address, RESOLVER_PORT))
        steps += [_led(proto, address, 53, address, RESOLVER_PORT) for proto in (Proto.UDP, Proto.TCP)]
    return Plan(tuple(steps))


def _led(proto: Proto, host: IPAddress, port: int, address: IPAddress, target: int, count: int = 1) -> Element:
    """Return the element by which a host's ports lead to those of an address of the same IP version."""
    everywhere = host == UNSPECIFIED[host.version]
    name = f"published{host.version}{'_any' if everywhere else ''}"
    item = f"{proto} . {port}" if everywhere else f"{text_of(host)} . {proto} . {port}"
    return Element(NETWORKS, name, item, f"{text_of(address)} . {target}", count)
