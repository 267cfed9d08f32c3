"""Listening and bound sockets of this thread's namespace."""

import socket
from collections.abc import Iterator
from ipaddress import ip_address

from netplug.kernel.netlink import sock_diag
from netplug.kernel.probes.api import Listener

_KINDS = (("tcp", socket.IPPROTO_TCP, sock_diag.LISTENING), ("udp", socket.IPPROTO_UDP, sock_diag.UNCONNECTED))


def listeners() -> Iterator[tuple[int, Listener]]:
    """Yield all, each after its inode and without its process."""
    for proto, number, states in _KINDS:
        for it in sock_diag.sockets(number, states):
            address = ip_address(it.address)
            dual = address.version == 6 and address.is_unspecified and not it.v6only
            yield it.inode, Listener(proto, address, it.port, dual=dual, queue=it.queue)
