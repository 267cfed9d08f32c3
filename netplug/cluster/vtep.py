"""The address of this host to which others tunnel."""

import socket
from ipaddress import ip_address

from netplug.drivers.api import HostFacts
from netplug.drivers.steps import IPAddress
from netplug.errors import NetplugError
from netplug.store.access import EtcdAccess

_ANY_PORT = 9


def find_vtep(wanted: str, access: EtcdAccess, host: HostFacts) -> IPAddress:
    """Return the VTEP.

    Args:
        wanted: an address, or the name of a link that has one; empty: the one with which the store is reached.
        access: how the store is reached.
        host: what has been read of this host.

    Raises:
        NetplugError: "invalid": this host has no such address.
    """
    addresses = {interface.ip: link for interface, link in host.addresses if not interface.is_link_local}
    if wanted in set(addresses.values()):
        return min((ip for ip, link in addresses.items() if link == wanted), key=lambda ip: ip.version)
    if wanted:
        try:
            address = ip_address(wanted)
        except ValueError:
            address = None
        if address not in addresses:
            words = f"setting vtep is {wanted!r}: this host has no such address, and no link of this name with one"
            raise NetplugError("invalid", words, hint=f"its addresses: {', '.join(map(str, addresses)) or 'none'}")
        return address
    for endpoint in access.endpoints:
        found = _source(endpoint)
        if found in addresses:
            return found
    raise NetplugError(
        "invalid",
        "setting vtep is not given, and the store is reached by no address that other hosts could tunnel to",
        hint="give --vtep ADDRESS or --vtep LINK",
    )


def _source(endpoint: str) -> IPAddress | None:
    """Return the address from which packets to an endpoint leave; nothing is sent."""
    name = endpoint.rpartition(":")[0].strip("[]")
    try:
        found = socket.getaddrinfo(name, _ANY_PORT, type=socket.SOCK_DGRAM)
    except OSError:
        return None
    for family, kind, proto, _, target in found:
        try:
            with socket.socket(family, kind, proto) as probe:
                probe.connect(target)
                return ip_address(probe.getsockname()[0])
        except OSError:
            continue
    return None
