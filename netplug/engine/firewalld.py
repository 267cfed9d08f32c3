"""Reports what firewalld drops of our networks and is the administrator's to decide.

Its zone of our links is a step of plans (`netplug.drivers.firewalld`), and so is compared and repaired like any other.
"""

from collections.abc import Collection, Iterator

from netplug.drivers import firewalld
from netplug.drivers.api import Firewalld, HostFacts, Network, meshed
from netplug.drivers.naming import BRIDGES
from netplug.drivers.registry import Drivers
from netplug.engine.conditions import Difference


def blocked(host: HostFacts, networks: Collection[Network], drivers: Drivers) -> tuple[Difference, ...]:
    """Return what firewalld drops, with the command that helps."""
    found = host.firewalld
    if found is None:
        return ()
    bridges = {net.options.bridge for net in networks if net.options.bridge}
    ports = {driver.port(net) for net in networks if meshed(driver := drivers.of(net))}
    faults = [*_shared(host, found, bridges), *_elsewhere(found, bridges), *_closed(host, found, ports)]
    return tuple(Difference("host", "firewalld", fault) for fault in faults)


def _closed(host: HostFacts, found: Firewalld, ports: Collection[int]) -> Iterator[str]:
    """Yield that ports of tunnels are closed. Whoever opens them decides who may reach the host: the administrator.

    Other hosts may have addresses from which firewalld takes all. Then nothing is said.
    """
    underlay = next((link for address, link in host.addresses if address.ip == host.vtep), "")
    closed = sorted(set(ports) - found.ports)
    if not closed or found.trusts(underlay) or "" in found.trusted:
        return
    zone = f" --zone={found.zone(underlay)}" if found.zone(underlay) else ""
    changes = " && ".join(f"firewall-cmd --permanent{zone} --add-port={port}/udp" for port in closed)
    yield f"drops packets from other hosts of overlays: {changes} && firewall-cmd --reload"


def _shared(host: HostFacts, found: Firewalld, bridges: Collection[str]) -> Iterator[str]:
    """Yield that the administrator has to choose the zone of a bridge that has ports of others."""
    for bridge in sorted(bridges):
        if firewalld.is_shared(bridge, host) and not found.zone(bridge):
            words = f"has no zone for bridge {bridge}, and drops packets from it; it has ports of others, so choose one"
            yield f"{words}: {firewalld.command(bridge)}"


def _elsewhere(found: Firewalld, bridges: Collection[str]) -> Iterator[str]:
    """Yield which links of ours are in a zone that does not accept all: somebody has put them there."""
    for link, zone in found.zones:
        if (link in bridges or link.startswith(BRIDGES)) and link not in found.trusted:
            yield f"has link {link} in zone {zone!r}, and drops packets from it that this zone does not accept"
