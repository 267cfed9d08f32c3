"""The connections of a listening socket: no more than it can bear, and room for who connects next.

When there are too many, one that waits for a request is closed: first those that never had an answer, then of the peer
with most of them, the oldest. So whoever connects is served, whatever others hold open, and dockerd keeps its
connections, which rest for hours, as long as there is room.
"""

import errno
import resource
import socket
import struct
from collections import Counter
from collections.abc import Hashable
from typing import Protocol

MOST = 512
"""At a time, on a socket."""
_PART = 8
"""With few file descriptors: one in so many of them."""
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE})

_CREDENTIALS = struct.Struct("3i")


class Connection(Protocol):
    """One of them. `peer`: who connected. `waits`: for a request, or the rest of one. `served`: had an answer."""

    @property
    def peer(self) -> Hashable: ...

    @property
    def waits(self) -> bool: ...

    @property
    def served(self) -> bool: ...

    def drop(self) -> None:
        """Close it at once."""


class Connections:
    """Those of one socket, in the order of their last requests. `most`: how many; by default what files allow."""

    def __init__(self, most: int = 0) -> None:
        self._most = most
        self._all: dict[Connection, None] = {}
        self._held: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return len(self._all)

    def admit(self, connection: Connection) -> bool:
        """Add a connection, and close another if there are too many. False: none can be closed."""
        if len(self._all) >= (self._most or affordable()) and not self.make_room():
            return False
        self._all[connection] = None
        self._held[connection.peer] += 1
        return True

    def touch(self, connection: Connection) -> None:
        """Note that a connection was just used."""
        if connection in self._all:
            del self._all[connection]
            self._all[connection] = None

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        if connection not in self._all:
            return
        del self._all[connection]
        self._held[connection.peer] -= 1
        if not self._held[connection.peer]:
            del self._held[connection.peer]

    def make_room(self) -> bool:
        """Close one that waits for a request. False: there is none."""
        if (victim := self._of_the_greediest() or self._any()) is None:
            return False
        self.remove(victim)
        victim.drop()
        return True

    def _of_the_greediest(self) -> Connection | None:
        """Return the oldest that never had an answer, of the peer that holds most: in a flood one of the first."""
        most = max(self._held.values(), default=0)
        return next((it for it in self._all if it.waits and not it.served and self._held[it.peer] == most), None)

    def _any(self) -> Connection | None:
        waiting = (it for it in self._all if it.waits)
        return min(waiting, key=lambda it: (it.served, -self._held[it.peer]), default=None)  # of equals the oldest


def affordable() -> int:
    """Return how many connections a socket may have: fewer where this process may open few files."""
    return min(MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _PART)


def peer_of(sock: socket.socket) -> int:
    """Return the process at the other end of a Unix socket (unix(7), SO_PEERCRED)."""
    pid, _, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(pid)
