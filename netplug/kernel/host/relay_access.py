"""Access control of relays: a client in an internal network is refused.

A relay listens on all addresses of the host, including the gateway of an internal network. Its connections to
containers are the host's own traffic, which no firewall rule blocks. So a relay applies the check of ``NETPLUG-INPUT``:
a client on a bridge of ours must belong, by address and link, to a network with external access. A link-local address
does not identify the network. Such a client is refused, also on a user's bridge, where the firewall rules accept it.
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
"""Bytes of a struct cmsghdr before its data."""


class RelayAccess:
    """Decides by the firewall's sets in this namespace. Belongs to one event loop."""

    def __init__(self) -> None:
        # A socket of its own, so that a query does not wait for a dump of all sets, which takes long.
        self._sets = IpSets()

    def refuses(self, source: str, link: int) -> bool:
        """Return whether a client is refused, by its address and the index of its ingress link.

        A client whose network cannot be determined is refused.
        """
        address = ip_address(source.partition("%")[0])
        net = ip_network(address)
        try:
            name = socket.if_indextoname(link)
            if name == "lo":
                return False
            kind = "if" if address.is_link_local else "net"
            ours = name.startswith(BRIDGES) or self._sets.has(Member(f"netplug-{kind}{net.version}", net, name))
            return ours and not self._sets.has(Member(f"netplug-out{net.version}", net, name))
        except (OSError, NetplugError):
            return True

    def refuses_connection(self, client: socket.socket, source: str) -> bool:
        """Return whether the client of an accepted connection is refused."""
        try:
            return self.refuses(source, _ingress_link(client))
        except OSError:
            return True

    def close(self) -> None:
        """Close the socket."""
        self._sets.close()


def link_of(packet_info: bytes) -> int:
    """Return the index of the link in a struct in_pktinfo (ip(7)) or in6_pktinfo (ipv6(7))."""
    return int.from_bytes(packet_info[:4] if len(packet_info) == 12 else packet_info[16:20], sys.byteorder)


def _ingress_link(client: socket.socket) -> int:
    """Return the index of the link on which a connection's first packet arrived; the kernel stores it."""
    if client.family == socket.AF_INET:
        level, enable, query = socket.IPPROTO_IP, _IP_PKTINFO, _IP_PKTOPTIONS
    else:
        level, enable, query = socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, _IPV6_2292PKTOPTIONS
    client.setsockopt(level, enable, 1)
    control = client.getsockopt(level, query, 64)
    client.setsockopt(level, enable, 0)
    size = int.from_bytes(control[:8], sys.byteorder)
    return link_of(control[_HEADER:size])
