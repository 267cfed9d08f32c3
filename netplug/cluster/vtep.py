"""The VTEP: the address of this host to which other hosts send their tunnels."""

import socket
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from netplug.drivers.api import HostFacts
from netplug.drivers.steps import IPAddress
from netplug.errors import NetplugError
from netplug.store.access import EtcdAccess

_ANY_PORT = 9


@dataclass(frozen=True, slots=True)
class Finder:
    """Determines the VTEP.

    `wanted`: an address, or a link that has one; empty: the source address of packets to the store.
    """

    wanted: str
    access: EtcdAccess

    def find(self, host: HostFacts, known: IPAddress | None = None) -> IPAddress:
        """Return the VTEP; may wait for a name server.

        Args:
            host: links and addresses of this host.
            known: the last VTEP. It is preferred among the addresses of a link; if it is gone, its IP version is.

        Raises:
            NetplugError: "invalid": this host has no such address.
        """
        addresses = {interface.ip: link for interface, link in host.addresses if not interface.is_link_local}
        if self.wanted in set(addresses.values()):
            return _best((ip for ip, link in addresses.items() if link == self.wanted), known)
        if self.wanted:
            return _address(self.wanted, addresses)
        found = [source for source in self._sources() if source in addresses]
        if not found:
            raise NetplugError(
                "invalid",
                "setting vtep is empty, and this host reaches the store by no address that can be a VTEP",
                hint="give --vtep ADDRESS or --vtep LINK",
            )
        return _first(found, known)

    def has_moved(self, known: IPAddress) -> bool:
        """Tell whether routes alone have changed the VTEP; much cheaper than `find`.

        May wait for a name server.
        """
        if self.wanted:
            return False
        found = [source for source in self._sources() if not (source.is_loopback or source.is_link_local)]
        return not found or _first(found, known) != known

    def _sources(self) -> list[IPAddress]:
        """Return the source addresses of packets to the store, in the order of its endpoints."""
        return [source for endpoint in self.access.endpoints if (source := _source(endpoint))]


def _first(found: Sequence[IPAddress], known: IPAddress | None) -> IPAddress:
    return next((it for it in found if known and it.version == known.version), found[0])


def _best(candidates: Iterable[IPAddress], known: IPAddress | None) -> IPAddress:
    def rank(ip: IPAddress) -> tuple[bool, bool, int]:
        return ip != known, known is not None and ip.version != known.version, ip.version

    return min(candidates, key=rank)


def _address(wanted: str, addresses: Collection[IPAddress]) -> IPAddress:
    try:
        address = ip_address(wanted)
    except ValueError:
        address = None
    if address is None or address not in addresses:
        words = f"setting vtep is {wanted!r}: this host has no such address, and no link of this name with an address"
        raise NetplugError("invalid", words, hint=f"its addresses: {', '.join(map(str, addresses)) or 'none'}")
    return address


def _source(endpoint: str) -> IPAddress | None:
    """Return the source address of packets to an endpoint; nothing is sent."""
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
