"""The address of this host to which others tunnel."""

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
    """Finds the VTEP.

    `wanted`: an address, or the name of a link that has one; empty: the one with which the store is reached.
    """

    wanted: str
    access: EtcdAccess

    def find(self, host: HostFacts, known: IPAddress | None = None) -> IPAddress:
        """Return the VTEP; may wait for a name server.

        Args:
            host: what has been read of this host.
            known: the VTEP as it was: of several addresses of a link it stays, and its IP version does as long as there
                is one of it.

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
                "setting vtep is not given, and the store is reached by no address that other hosts could tunnel to",
                hint="give --vtep ADDRESS or --vtep LINK",
            )
        return _first(found, known)

    def has_moved(self, known: IPAddress) -> bool:
        """Tell whether routes alone have made another address the VTEP; costs a fraction of what `find` needs to know.

        May wait for a name server.
        """
        if self.wanted:
            return False
        found = [source for source in self._sources() if not (source.is_loopback or source.is_link_local)]
        return not found or _first(found, known) != known

    def _sources(self) -> list[IPAddress]:
        """Return the addresses from which packets to the store leave; that of its first endpoint comes first."""
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
        words = f"setting vtep is {wanted!r}: this host has no such address, and no link of this name with one"
        raise NetplugError("invalid", words, hint=f"its addresses: {', '.join(map(str, addresses)) or 'none'}")
    return address


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
