"""Whether the kernel's network was changed, told by the kernel itself: cheap enough to ask after each request.

Each change of a link, an address, a route, a rule or of nf_tables is multicast by netlink before the call that made it
returns (netlink(7)), so a change that was undone is noticed too.
"""

import select
import socket
import time
from collections.abc import Callable
from pathlib import Path

from .netns import in_netns

_NETFILTER = 12
_NFTABLES = 7  # NFNLGRP_NFTABLES
_ROUTE_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400 | 0x80  # RTMGRP_LINK, IPv4 and IPv6: addresses, routes, IPv4 rules
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_BUFFER = 8 << 20
_SO_RCVBUFFORCE = 33


class Changes:
    """Listens in a network namespace from its construction on. Close it at the end."""

    def __init__(self, netns: Path) -> None:
        self._sockets = in_netns(netns, _listening)

    def any(self) -> bool:
        """Tell whether there were changes since the last call."""
        found = False
        for sock in self._sockets:
            while True:
                try:
                    found = bool(sock.recv(1 << 16)) or found
                except BlockingIOError:
                    break
                except OSError:  # ENOBUFS: more than the buffer holds
                    found = True
        return found

    def settle(self, quiet_s: float = 0.1, timeout_s: float = 10) -> None:
        """Wait until nothing has changed for a moment: what was deleted goes in the background."""
        deadline = time.monotonic() + timeout_s
        while select.select(self._sockets, (), (), quiet_s)[0] and time.monotonic() < deadline:
            self.any()

    def untouched(self, ask: Callable[[], object]) -> bool:
        """Ask for something, and tell whether that changed nothing.

        What something else has begun before may go on meanwhile, so where there was a change it is asked for again.
        """
        for _ in range(3):
            self.settle()
            self.any()
            ask()
            if not self.any():
                return True
        return False

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


def _listening() -> tuple[socket.socket, ...]:
    route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    nft = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETFILTER)
    for sock in (route, nft):
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    route.bind((0, _ROUTE_GROUPS))
    nft.bind((0, 0))
    nft.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NFTABLES)
    return route, nft
