"""Sockets that accept packets only from links with a route to their peer.

A DNS reply is accepted by its address, ports and id. A container that can spoof a source address could guess them, but
its packets do not arrive on the link that routes to the upstream. SO_BINDTODEVICE binds to a single link, but a route
may have several links, and may change.

If the peer is an address of the host, DNAT may translate it to a container, whose replies arrive on the container's
link. Such a socket accepts packets from all links. Spoofed packets from the host's addresses are dropped before, see
`ingress`.
"""

import socket
import struct
from collections.abc import Collection
from contextlib import suppress

from netplug.kernel.host import socket_filters
from netplug.kernel.netlink.connection import RTM_GETROUTE, Netlink, NetlinkError, attr, attrs, number, u8
from netplug.kernel.netlink.rtnl import RTA_DST, RTA_MULTIPATH, RTA_OIF, RTMSG

_RTA_IP_PROTO, _RTA_DPORT = 27, 29
"""Rules of policy routing may match them (linux/rtnetlink.h)."""
_RTM_F_FIB_MATCH = 0x2000
"""Return the route from the FIB, with all its next hops, instead of the one chosen for a packet."""
_RTN_LOCAL = 2
_NEXTHOP = struct.Struct("=HBBi")
_LOAD_LINK = (socket_filters.LOAD, 0, 0, 0xFFFFF000 + 8)
"""BPF_LD | BPF_W | BPF_ABS of SKF_AD_OFF + SKF_AD_IFINDEX (linux/filter.h)."""

Peer = tuple[str, int] | tuple[str, int, int, int]


def open_filtered(family: int, kind: int, peer: Peer) -> socket.socket:
    """Return a non-blocking socket that accepts packets from `links_to` its peer; from all, if the peer is this host.

    Raises:
        OSError: there is no route.
    """
    scope = peer[3] if len(peer) == 4 else 0
    found = {scope} if scope else links_to(family, kind, peer)
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if found is not None:
            accept_only_from(sock, found)
    except BaseException:
        sock.close()
        raise
    return sock


def links_to(family: int, kind: int, peer: Peer) -> set[int] | None:
    """Return the indexes of the links that route to an address; None for an address of this host.

    The kernel answers without taking the rtnl mutex.

    Raises:
        OSError: there is no route.
    """
    packed = socket.inet_pton(family, peer[0])
    protocol = socket.IPPROTO_UDP if kind == socket.SOCK_DGRAM else socket.IPPROTO_TCP
    query = attr(RTA_DST, packed) + u8(_RTA_IP_PROTO, protocol) + attr(_RTA_DPORT, struct.pack("!H", peer[1]))
    with Netlink.open() as nl:
        chosen = nl.get(RTM_GETROUTE, RTMSG.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0) + query)
        if RTMSG.unpack_from(chosen)[7] == _RTN_LOCAL:
            return None
        found = {number(attrs(chosen, RTMSG.size).get(RTA_OIF))}
        with suppress(NetlinkError):  # kernels without RTM_F_FIB_MATCH: the chosen next hop only
            head = RTMSG.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH)
            route = attrs(nl.get(RTM_GETROUTE, head + query), RTMSG.size)
            found |= {number(route.get(RTA_OIF))} | _hops(route.get(RTA_MULTIPATH, b""))
    return found - {0}


def _hops(data: bytes) -> set[int]:
    found, at = set(), 0
    while at + _NEXTHOP.size <= len(data):
        size, _flags, _weight, index = _NEXTHOP.unpack_from(data, at)
        found.add(index)
        at += max((size + 3) & ~3, _NEXTHOP.size)
    return found


def accept_only_from(sock: socket.socket, links: Collection[int]) -> None:
    """Make a socket accept packets from these links only. `links`: indexes."""
    code = [_LOAD_LINK]
    code += [(socket_filters.EQUAL, len(links) - place, 0, index) for place, index in enumerate(sorted(links))]
    code += [(socket_filters.RETURN, 0, 0, 0), (socket_filters.RETURN, 0, 0, socket_filters.WHOLE)]
    socket_filters.attach(sock, code)
