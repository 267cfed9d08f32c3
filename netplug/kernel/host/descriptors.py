"""File descriptors of this process. Their number is limited, and some are reserved for clients of our sockets.

A published port takes a socket for each IP version, a sandbox with DNS takes three, and a relayed connection two. New
long-lived sockets are refused before all descriptors are in use. Otherwise no client could connect to free some.
"""

import errno
import os
import resource
import socket
from pathlib import Path

from netplug.errors import NetplugError

_RESERVED, _RESERVED_PART = 256, 8
"""Descriptors reserved for clients. Where the limit is low, it is one in `_RESERVED_PART`."""
_OPEN = Path("/proc/self/fd")
EXHAUSTED = "this process has too many files open"
HINT = "raise LimitNOFILE of netplug.service (ulimit -n)"


def raise_limit() -> int:
    """Raise the soft limit to the hard limit, and return it. The default soft limit of systemd(1) is 1 024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def require_unreserved(sock: socket.socket) -> None:
    """Refuse a new socket if its descriptor is a reserved one.

    The kernel assigns the lowest free number, so a reserved number means that all lower ones are in use.

    Raises:
        OSError: EMFILE.
    """
    if is_reserved(sock):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def is_reserved(sock: socket.socket) -> bool:
    """Return whether a new socket has a reserved descriptor."""
    return sock.fileno() >= _usable()


def require(number: int, what: str) -> None:
    """Refuse `what` if it needs more descriptors than are free and not reserved.

    Raises:
        NetplugError: "unavailable"; the message has the numbers and the setting.
    """
    usable = _usable()
    if (free := usable - len(os.listdir(_OPEN))) < number:  # noqa: PTH208 - Path.iterdir() would take ten times as long
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        words = f"{what} needs {number} open files, but {max(free, 0)} of {limit} are free"
        raise NetplugError("unavailable", words, hint=HINT)


def _usable() -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit - min(_RESERVED, limit // _RESERVED_PART)
