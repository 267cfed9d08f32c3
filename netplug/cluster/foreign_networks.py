"""What a network may have on this host that another host has defined.

A host that was taken over writes what it likes into the store that hosts share. What it defines is a tunnel between
hosts, with a private subnet: no other kind of network, none that draws the traffic of this host to addresses of the
world, and none that is a bridge to a segment of this host. Whoever wants more says so on this host (`cluster_allow`).
A network that is defined on this host has what its command says.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Self

from netplug.cluster.records import Definition
from netplug.drivers.api import HostFacts, Network, Scope
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import IPNetwork
from netplug.errors import NetplugError

PRIVATE: tuple[IPNetwork, ...] = tuple(
    map(
        ip_network,
        (
            *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),  # RFC 1918
            *("100.64.0.0/10", "198.18.0.0/15"),  # RFC 6598, 2544
            *("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"),  # RFC 5737
            *("fc00::/7", "2001:db8::/32"),  # RFC 4193, 3849
        ),
    )
)
"""Subnets that are nobody's in the world."""
_FIRST_PORT = 1024
"""Below it are ports of services of the host (RFC 6335 §6)."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """What networks of other hosts may have beyond that: `ranges`, and `bridges` of this host."""

    ranges: tuple[IPNetwork, ...] = ()
    bridges: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Self:
        """Parse ranges, and names of bridges.

        >>> Allowed.parse(["192.88.99.0/24", "br0"])
        Allowed(ranges=(IPv4Network('192.88.99.0/24'),), bridges=frozenset({'br0'}))
        """
        every = tuple(texts)
        ranges = tuple(ip_network(it) for it in every if "/" in it)
        return cls(ranges, frozenset(it for it in every if "/" not in it))

    def has(self, subnet: IPNetwork) -> bool:
        """Return whether a network may have this subnet."""
        return any(subnet.version == it.version and subnet.subnet_of(it) for it in (*PRIVATE, *self.ranges))  # type: ignore[arg-type]  # of one version


def refuse_foreign(
    definition: Definition, here: Network | None, allowed: Allowed, drivers: Drivers, host: HostFacts
) -> None:
    """Refuse a network that another host has defined, or its update. `here`: the network as it is on this host.

    Raises:
        NetplugError: "forbidden", with what this host would have to allow.
        DriverError: an option is not one.
    """
    name, options = definition.name, drivers.parse(definition.options)
    if drivers.named(options.mode).scope is not Scope.CLUSTER:
        words = f"network {name!r} of another host has mode {options.mode!r}, which is for networks of one host"
        raise NetplugError("forbidden", words)
    present = {subnet.pool for subnet in here.subnets} if here else set()
    for subnet in (it.subnet for it in definition.subnets):
        if subnet not in present and not allowed.has(subnet):
            words = f"network {name!r} of another host has subnet {subnet}, which is not private"
            raise NetplugError("forbidden", words, hint=_hint(str(subnet)))
    own = here.options.bridge if here else ""
    if options.bridge not in {"", own, *allowed.bridges} and host.link(options.bridge):
        words = f"network {name!r} of another host would use bridge {options.bridge!r} of this host"
        raise NetplugError("forbidden", words, hint=_hint(options.bridge))
    if options.vxlan_port < _FIRST_PORT:
        words = f"network {name!r} of another host has UDP port {options.vxlan_port}, which is one of services"
        raise NetplugError("forbidden", words)


def _hint(what: str) -> str:
    return f'allow it on this host: cluster_allow = ["{what}"]'
