"""Firewall of networks with routes: the constant tables of nf_tables, and their elements for a network.

The rules are in ``tables/networks.nft``, with comments. A network is told by its link: the chain that its packets go to
is an element of a verdict map.
"""

from collections.abc import Iterable, Iterator, Sequence

from . import routing, tables
from .api import HostFacts, Network
from .errors import DriverError, Kind
from .naming import BRIDGES
from .plan import Plan
from .steps import Element, Gate, IPAddress, IPInterface, IPNetwork, Passage, Proto, Step, Table
from .subnets import check_range
from .tables import HOST_MODE, NETWORKS

RESOLVER_PORT = 25353
"""Port of the name server at each gateway address. It is below the ephemeral ports, and unassigned by IANA."""
_MAPS = ("from", "to", "between", "host")
"""Maps of links to chains."""


def table(name: str, file: str) -> Table:
    """Return the step for a table, "inet netplug", whose text is in a file of `tables`."""
    family, _, short = name.partition(" ")
    return Table(family, short, tables.text(file))


def base(families: Sequence[int], host: HostFacts) -> Plan:
    """Return what all routed networks share: the table, the store, and the way through iptables."""
    gates = [Gate(family, flavour) for family, flavour in host.gates if family in families]
    return Plan((table(NETWORKS, "networks"), *_store(families, host), *gates))


def routed(families: Sequence[int], host: HostFacts) -> Plan:
    """Return the plan of all routed networks: `base`, and IP forwarding."""
    plan = base(families, host)
    for family in families:
        plan += routing.forwarding(family, host)
    return plan


def _store(families: Sequence[int], host: HostFacts) -> Iterator[Element]:
    """Yield the ports of the shared store: of this host, which it may have on all addresses, and of others."""
    own = {address.ip for address, _ in host.addresses}
    for port in sorted({port for ip, port in host.store if ip.is_loopback or ip in own}):
        yield Element(NETWORKS, "store_here", str(port))
    for ip, port in sorted(host.store, key=str):
        if ip.version in families and not ip.is_loopback:
            yield Element(NETWORKS, f"store{ip.version}", f"{ip} . {port}")


def network(net: Network, bridge: str, host: HostFacts, *, guarded: bool) -> Plan:
    """Return the elements of a network on a bridge.

    Args:
        net: The network.
        bridge: Its name.
        host: Facts of the host.
        guarded: Whether all that comes by the bridge passes anti-spoofing.
    """
    subnets = [subnet.pool for subnet in net.subnets]
    if bridge.startswith(BRIDGES):
        steps = [*_own_link(net, bridge), *([Element(NETWORKS, "guarded", bridge)] if guarded else [])]
    else:
        steps = [*_given_bridge(net, bridge), *_passages(subnets, bridge, host)]
    if net.options.icc:
        steps.append(Element(NETWORKS, "icc", f"{bridge} . {bridge}"))
    return Plan((*steps, *_homes(subnets, bridge), *_masquerade(net, bridge)))


def own_link(net: Network, addresses: Sequence[IPNetwork], gateways: Sequence[IPInterface], link: str) -> Plan:
    """Return the elements of a container with a link of its own: for its addresses, and those of the host there."""
    homes = [*addresses, *(it.network for it in gateways)]
    return Plan((*_own_link(net, link), *_homes(homes, link), *_masquerade(net, link)))


def _own_link(net: Network, link: str) -> list[Step]:
    if net.internal:
        chains = {
            "from": "goto from_internal",
            "to": "goto to_internal",
            "between": "drop",
            "host": "goto host_internal",
        }
    else:
        chains = {name: f"goto {name}_open" for name in _MAPS}
    return [Element(NETWORKS, name, link, chain) for name, chain in chains.items()]


def _given_bridge(net: Network, bridge: str) -> list[Step]:
    """Return the elements of a bridge that the user named: what comes and goes there may be of others."""
    steps: list[Step] = [Element(NETWORKS, name, bridge, f"jump {name}_bridge") for name in _MAPS]
    names = ("bridges", "internal") if net.internal else ("bridges",)
    return [*steps, *(Element(NETWORKS, name, bridge) for name in names)]


def _passages(subnets: Iterable[IPNetwork], bridge: str, host: HostFacts) -> list[Step]:
    return [
        Passage(family, flavour, bridge, pool)
        for family, flavour in host.gates
        for pool in subnets
        if pool.version == family
    ]


def _homes(subnets: Iterable[IPNetwork], link: str) -> list[Step]:
    return [Element(NETWORKS, f"home{it.version}", f"{_words(it)} . {link}") for it in subnets]


def _masquerade(net: Network, link: str) -> list[Step]:
    return [Element(NETWORKS, "masqueraded", link)] if net.options.masquerade and not net.internal else []


def _words(subnet: IPNetwork) -> str:
    """Return a subnet as nft prints it: a single address without its prefix length."""
    return str(subnet.network_address if subnet.prefixlen == subnet.max_prefixlen else subnet)


def catch_all(address: IPAddress) -> Plan:
    """Return the elements that translate to `address` what no socket of the host accepts."""
    name = f"target{address.version}"
    return Plan(tuple(Element(HOST_MODE, name, proto, str(address)) for proto in (Proto.TCP, Proto.UDP)))


def check_pool(pool: IPNetwork, bridge: str, host: HostFacts) -> None:
    """Refuse a subnet that cannot be routed, or that overlaps the host's addresses or routes on other links."""
    hint = "choose another --subnet"
    check_range(pool, routed=True)
    for address, link in host.addresses:
        if link != bridge and address in pool:
            raise DriverError(
                Kind.INVALID, f"subnet {pool} contains the host's own address {address.ip} on link {link!r}", hint=hint
            )
    for route, link in host.routes:
        if link != bridge and route.version == pool.version and route.subnet_of(pool):  # type: ignore[arg-type]
            raise DriverError(
                Kind.INVALID, f"subnet {pool} overlaps the host's route {route} on link {link!r}", hint=hint
            )
