"""Compares published ports with wanted ones. Pure."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from netplug.drivers import port_ranges
from netplug.drivers.api import Network, PortMapping


def on_hosts(net: Network, ports: Sequence[PortMapping]) -> tuple[PortMapping, ...]:
    """Return mappings with the network's default host address if they name none."""
    default = net.options.host_binding_ipv4
    return tuple(replace(it, host_address=default) if default and it.host_address is None else it for it in ports)


def fits(have: PortMapping, want: PortMapping) -> bool:
    """Tell whether one published port is as wanted; both are of a single port. Any free host port may be wanted."""
    return (
        (have.proto, have.port) == (want.proto, want.port)
        and (not want.host_port or want.host_port <= have.host_port <= max(want.host_port, want.host_port_end))
        and (have.host_address == want.host_address or (want.host_address is None and everywhere(have)))
    )


def overlap(have: PortMapping, want: PortMapping) -> bool:
    """Tell whether a published port has a host port that is wanted."""
    return (
        have.proto == want.proto
        and want.host_port < have.host_port + have.count
        and have.host_port <= max(want.host_port + want.count - 1, want.host_port_end)
        and (everywhere(have) or everywhere(want) or have.host_address == want.host_address)
    )


def everywhere(mapping: PortMapping) -> bool:
    """Tell whether a mapping is of all addresses of the host, of an IP version at least."""
    return mapping.host_address is None or mapping.host_address.is_unspecified


def assigned(wanted: Sequence[PortMapping], have: Sequence[PortMapping]) -> dict[PortMapping, list[PortMapping]]:
    """Return by wanted single port what is published for it: one host port, maybe of each IP version.

    A port that is wanted as it is goes before one that may be any.
    """
    left: defaultdict[tuple[str, int], list[PortMapping]] = defaultdict(list)
    for single in _singles(have):
        left[single.proto, single.port].append(single)
    found: dict[PortMapping, list[PortMapping]] = {}
    for want in sorted(_singles(wanted), key=lambda it: not port_ranges.definite(it)):
        fitting = [it for it in left[want.proto, want.port] if fits(it, want)]
        found[want] = [it for it in fitting if it.host_port == fitting[0].host_port]
        if fitting:
            left[want.proto, want.port] = [it for it in left[want.proto, want.port] if it not in found[want]]
    return found


def missing(wanted: Sequence[PortMapping], have: Sequence[PortMapping]) -> tuple[PortMapping, ...]:
    """Return wanted ports that are not published."""
    if not wanted or equal(wanted, have):
        return ()
    return port_ranges.joined(tuple(want for want, found in assigned(wanted, have).items() if not found))


def still(have: Sequence[PortMapping], wanted: Sequence[PortMapping]) -> tuple[PortMapping, ...]:
    """Return published ports that are still wanted."""
    if not have or equal(wanted, have):
        return tuple(have)
    left = tuple(it for found in assigned(wanted, have).values() for it in found)
    return tuple(have) if len(left) == sum(it.count for it in have) else port_ranges.joined(left)


def ends(ports: Sequence[PortMapping]) -> list[PortMapping]:
    """Return mappings as they are compared: a definite port is the same if it was chosen from a range."""
    return [replace(it, host_port_end=0) if port_ranges.definite(it) else it for it in ports]


def equal(one: Sequence[PortMapping], other: Sequence[PortMapping]) -> bool:
    """Tell whether mappings are the same, in the same order. Cheap, also with ten thousand ports."""
    return ends(one) == ends(other)


def _singles(ports: Sequence[PortMapping]) -> Iterator[PortMapping]:
    return (single for mapping in ports for single in port_ranges.singles(mapping))
