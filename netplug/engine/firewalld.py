"""Reports that firewalld drops packets of our networks."""

from collections.abc import Collection

from netplug.drivers.api import HostFacts, Network, meshed
from netplug.drivers.naming import BRIDGES
from netplug.drivers.registry import Drivers
from netplug.engine.conditions import Difference


def blocked(host: HostFacts, networks: Collection[Network], drivers: Drivers) -> tuple[Difference, ...]:
    """Return that firewalld drops what is of our networks, with the command that helps, if it does.

    If firewalld trusts other links or addresses, the underlay may be among them: then no fault is reported for it.
    """
    if host.firewalld is None:
        return ()
    ours = {BRIDGES} | {net.options.bridge for net in networks if net.options.bridge}
    ports = {driver.port(net) for net in networks if meshed(driver := drivers.of(net))}
    links = sorted(ours - host.firewalld.links)
    closed = sorted(ports - host.firewalld.ports) if host.firewalld.trusted <= ours else []
    if not links and not closed:
        return ()
    changes = [f"--zone=trusted --add-interface={name}{'+' if name == BRIDGES else ''}" for name in links]
    changes += [f"--add-port={port}/udp" for port in closed]
    command = " && ".join([*(f"firewall-cmd --permanent {it}" for it in changes), "firewall-cmd --reload"])
    faults = ["does not know the networks' links, and drops packets from them"] if links else []
    faults += ["drops packets from other hosts of overlays"] if closed else []
    return (Difference("host", "firewalld", f"{'; '.join(faults)}: {command}"),)
