"""Open files (descriptors) of this process: there are so many, and some are kept for those who ask us for something.

A published port takes a socket for each IP version, a sandbox whose names we answer three, a connection that is relayed
two. What takes some for good is refused before the last are gone; else nobody could connect to us, to end it.
"""

import errno
import os
import resource
import socket
from pathlib import Path

from netplug.errors import NetplugError

_KEPT, _KEPT_OF = 256, 8
"""So many are kept for those who ask, or one of so many where the limit is low."""
_OPEN = Path("/proc/self/fd")
EXHAUSTED = "this process has too many files open"
HINT = "raise LimitNOFILE of netplug.service (ulimit -n)"


def raise_limit() -> int:
    """Take all that we may have, and return how many that is; systemd(1) gives 1 024 at first and more on demand."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def require_unreserved(sock: socket.socket) -> None:
    """Refuse a new socket that takes one of those that are kept.

    The kernel gives the lowest free number, so one that is above has all below it in use.

    Raises:
        OSError: EMFILE.
    """
    if is_reserved(sock):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def is_reserved(sock: socket.socket) -> bool:
    """Whether a new socket takes one of those that are kept."""
    return sock.fileno() >= _usable()


def require(number: int, what: str) -> None:
    """Refuse what would take more descriptors than there are.

    Raises:
        NetplugError: "unavailable", with the number and the setting.
    """
    usable = _usable()
    if (left := usable - len(os.listdir(_OPEN))) < number:  # noqa: PTH208 - a path each would take ten times as long
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        words = f"{what} would take {number} open files, and of {limit} there are {max(left, 0)} left"
        raise NetplugError("unavailable", words, hint=HINT)


def _usable() -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit - min(_KEPT, limit // _KEPT_OF)
