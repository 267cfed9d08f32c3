"""Who has no way out has none by what this process relays either.

A relay listens at all addresses of the host, that of the gateway of an internal network too, and what it passes on is
the host's own traffic, which no rule stops. So it asks as ``NETPLUG-INPUT`` does: a client by a bridge of ours must be
of a network with a way out, by its address and link. One with a link-local address is not told by that; on a bridge of
the user's, where rules leave such to the user, it is refused here too.
"""

import socket
import sys
from ipaddress import ip_address, ip_network

from netplug.drivers.naming import BRIDGES
from netplug.drivers.steps import Member
from netplug.errors import NetplugError
from netplug.kernel.firewall.ipset import IpSets

_IP_PKTINFO, _IP_PKTOPTIONS, _IPV6_2292PKTOPTIONS = 8, 9, 6
_HEADER = 16
"""Octets of a struct cmsghdr before its content."""


class RelayAccess:
    """Tells it from the sets of this namespace. Belongs to one event loop."""

    def __init__(self) -> None:
        # A socket of its own: a list of all sets, which takes long, is not waited for.
        self._sets = IpSets()

    def refuses(self, source: str, link: int) -> bool:
        """Tell whether a client, by address and index of the link that it came by, has no way out.

        So has one of whom that cannot be told.
        """
        address = ip_address(source.partition("%")[0])
        net = ip_network(address)
        try:
            name = socket.if_indextoname(link)
            if name == "lo":
                return False
            lent = "if" if address.is_link_local else "net"
            ours = name.startswith(BRIDGES) or self._sets.has(Member(f"netplug-{lent}{net.version}", net, name))
            return ours and not self._sets.has(Member(f"netplug-out{net.version}", net, name))
        except (OSError, NetplugError):
            return True

    def refuses_connection(self, client: socket.socket, source: str) -> bool:
        """Tell it of who has connected."""
        try:
            return self.refuses(source, _came_by(client))
        except OSError:
            return True

    def close(self) -> None:
        """Close the socket."""
        self._sets.close()


def link_of(packet_info: bytes) -> int:
    """Return the link's index of a struct in_pktinfo (ip(7)) or in6_pktinfo (ipv6(7))."""
    return int.from_bytes(packet_info[:4] if len(packet_info) == 12 else packet_info[16:20], sys.byteorder)


def _came_by(client: socket.socket) -> int:
    """Return the index of the link by which a connection came; the kernel remembers that of its first packet."""
    if client.family == socket.AF_INET:
        level, ask, say = socket.IPPROTO_IP, _IP_PKTINFO, _IP_PKTOPTIONS
    else:
        level, ask, say = socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, _IPV6_2292PKTOPTIONS
    client.setsockopt(level, ask, 1)
    said = client.getsockopt(level, say, 64)
    client.setsockopt(level, ask, 0)
    size = int.from_bytes(said[:8], sys.byteorder)
    return link_of(said[_HEADER:size])
