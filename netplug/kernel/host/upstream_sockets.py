"""Sockets that hear by those links alone that lead to their peer.

An answer is believed for its address, ports and id. A container that gets frames with a foreign source address past
all filters could guess at these; it cannot make them arrive by the link that leads to the upstream. SO_BINDTODEVICE
would do that too, but holds fast to one link, where routes have several or change.

An address of the host's own may be translated to a container's (DNAT), whose answers come by its link. A socket hears
those by any link: who sends from the host's addresses is stopped before, see `ingress`.
"""

import socket
import struct
from collections.abc import Collection
from contextlib import suppress

from netplug.kernel.host import socket_filters
from netplug.kernel.netlink.connection import RTM_GETROUTE, Netlink, NetlinkError, attr, attrs, number, u8
from netplug.kernel.netlink.rtnl import RTA_DST, RTA_MULTIPATH, RTA_OIF, RTMSG

_RTA_IP_PROTO, _RTA_DPORT = 27, 29
"""Rules of policy routing may speak of them (linux/rtnetlink.h)."""
_RTM_F_FIB_MATCH = 0x2000
"""The route as it was made, with all its next hops, in place of the one that a packet would take."""
_RTN_LOCAL = 2
_NEXTHOP = struct.Struct("=HBBi")
_LOAD_LINK = (socket_filters.LOAD, 0, 0, 0xFFFFF000 + 8)
"""BPF_LD | BPF_W | BPF_ABS of SKF_AD_OFF + SKF_AD_IFINDEX (linux/filter.h)."""

Peer = tuple[str, int] | tuple[str, int, int, int]


def open_filtered(family: int, kind: int, peer: Peer) -> socket.socket:
    """Return a socket that does not block, and hears by the links that lead to an address; by all to the host's own.

    Raises:
        OSError: no link leads there.
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
    """Return the indexes of the links by which packets go to an address; None for the host's own.

    The kernel answers without its rtnl mutex.

    Raises:
        OSError: none.
    """
    packed = socket.inet_pton(family, peer[0])
    protocol = socket.IPPROTO_UDP if kind == socket.SOCK_DGRAM else socket.IPPROTO_TCP
    about = attr(RTA_DST, packed) + u8(_RTA_IP_PROTO, protocol) + attr(_RTA_DPORT, struct.pack("!H", peer[1]))
    with Netlink.open() as nl:
        taken = nl.get(RTM_GETROUTE, RTMSG.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0) + about)
        if RTMSG.unpack_from(taken)[7] == _RTN_LOCAL:
            return None
        found = {number(attrs(taken, RTMSG.size).get(RTA_OIF))}
        with suppress(NetlinkError):  # a kernel that does not tell has one way
            made = nl.get(RTM_GETROUTE, RTMSG.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH) + about)
            said = attrs(made, RTMSG.size)
            found |= {number(said.get(RTA_OIF))} | _hops(said.get(RTA_MULTIPATH, b""))
    return found - {0}


def _hops(data: bytes) -> set[int]:
    found, at = set(), 0
    while at + _NEXTHOP.size <= len(data):
        size, _flags, _weight, index = _NEXTHOP.unpack_from(data, at)
        found.add(index)
        at += max((size + 3) & ~3, _NEXTHOP.size)
    return found


def accept_only_from(sock: socket.socket, links: Collection[int]) -> None:
    """Have a socket hear what arrives by these links, by index, and nothing else."""
    code = [_LOAD_LINK]
    code += [(socket_filters.EQUAL, len(links) - place, 0, index) for place, index in enumerate(sorted(links))]
    code += [(socket_filters.RETURN, 0, 0, 0), (socket_filters.RETURN, 0, 0, socket_filters.WHOLE)]
    socket_filters.attach(sock, code)
