"""Access control of relays: a client in an internal network is refused.

A relay listens on all addresses of the host, including the gateway of an internal network. Its connections to
containers are the host's own traffic, which no firewall rule blocks. So a relay applies the check of chain ``input``
of table ``inet netplug`` (`drivers.tables`): a client on a link of ours must belong to a network with external access.
On a bridge that the user named, link and address tell the network. A link-local address does not, so its client is
refused.
"""

import socket
import sys
from ipaddress import ip_address

from netplug.drivers.naming import BRIDGES
from netplug.kernel.netlink import nf_tables as nft
from netplug.kernel.netlink.connection import NETLINK_NETFILTER, Netlink, attr, attrs, nest, text

_TABLE = "netplug"
_OPEN = "goto host_open"
_NAME_LENGTH = 16
_IP_PKTINFO, _IP_PKTOPTIONS, _IPV6_2292PKTOPTIONS = 8, 9, 6
_HEADER = 16
"""Bytes of a struct cmsghdr before its data."""


class RelayAccess:
    """Decides by the elements of table ``inet netplug`` of this namespace. Belongs to one event loop."""

    def __init__(self) -> None:
        # A socket of its own, so that a query does not wait for a dump of all elements, which takes long.
        self._netlink: Netlink | None = None

    def refuses(self, source: str, link: int) -> bool:
        """Return whether a client is refused, by its address and the index of its ingress link.

        A client whose network cannot be determined is refused.
        """
        address = ip_address(source.partition("%")[0])
        try:
            name = socket.if_indextoname(link)
            padded = name.encode().ljust(_NAME_LENGTH, b"\0")
            if name == "lo":
                return False
            if name.startswith(BRIDGES):
                found = self._element("host", padded)
                return found is None or nft.verdict_words(found) != _OPEN
            if self._element("bridges", padded) is None:
                return False
            if address.is_link_local:
                return True
            home = self._element(f"home{address.version}", address.packed + padded)
            return home is not None and self._element("internal", padded) is not None
        except OSError:
            return True

    def _element(self, name: str, key: bytes) -> bytes | None:
        """Return the data of the element that has or contains a key, None if there is none."""
        if self._netlink is None:
            self._netlink = Netlink.open(NETLINK_NETFILTER)
        wanted = nest(nft.ELEMENTS, nest(nft.LIST_ELEM, nest(nft.ELEM_KEY, attr(nft.DATA_VALUE, key))))
        found = nft.get(self._netlink, nft.GETSETELEM, nft.INET, text(1, _TABLE), text(2, name), wanted)
        if found is None:
            return None
        return attrs(attrs(found[nft.ELEMENTS])[nft.LIST_ELEM]).get(nft.ELEM_DATA, b"")

    def refuses_connection(self, client: socket.socket, source: str) -> bool:
        """Return whether the client of an accepted connection is refused."""
        try:
            return self.refuses(source, _ingress_link(client))
        except OSError:
            return True

    def close(self) -> None:
        """Close the socket."""
        if self._netlink:
            self._netlink.close()
            self._netlink = None


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
