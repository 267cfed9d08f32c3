"""File descriptors of this process. Their number is limited, and some are reserved for clients of our sockets.

A published port takes a socket for each IP version, a sandbox with DNS takes three, and a relayed connection two. New
long-lived sockets are refused before all descriptors are in use. Otherwise no client could connect to free some.
"""

import errno
import os
import re
import resource
import socket
from pathlib import Path

import structlog

from netplug.errors import NetplugError

log = structlog.get_logger(__name__)

WANTED = 65536
"""What the daemon takes if it may. The unit for systemd gives more."""
ENOUGH = 4096
"""With less, a host of a few hundred containers runs out."""
_RESERVED, _RESERVED_PART = 256, 8
"""Descriptors reserved for clients. Where the limit is low, it is one in `_RESERVED_PART`."""
_OPEN = Path("/proc/self/fd")
_STATUS = Path("/proc/self/status")
_SLOTS = re.compile(rb"^FDSize:\s*(\d+)", re.MULTILINE)
"""See proc(5)."""
EXHAUSTED = "this process has too many files open"
HINT = "raise LimitNOFILE of netplug.service (ulimit -n)"


def raise_limit() -> int:
    """Raise the limit as far as this process may (getrlimit(2)), say if it stays low, and return it.

    The default soft limit of systemd(1) is 1 024. Only CAP_SYS_RESOURCE allows more than the hard limit.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(hard, WANTED)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    except (ValueError, OSError):
        limit = hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    if limit < ENOUGH:
        reason = "a published port takes up to two, a container with names three"
        log.warning("descriptors.few", limit=limit, enough=ENOUGH, reason=reason, hint=HINT)
    return limit


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
    if usable - _slots() >= number:
        return
    if (free := usable - len(os.listdir(_OPEN))) < number:  # noqa: PTH208 - Path.iterdir() would take ten times as long
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        words = f"{what} needs {number} open files, but {max(free, 0)} of {limit} are free"
        raise NetplugError("unavailable", words, hint=HINT)


def _slots() -> int:
    """Return for how many descriptors the kernel has room in its table of this process: as many are open at most.

    Each request that publishes a port asks. To count the descriptors would take 5 ms with 4 000.
    """
    found = _SLOTS.search(_STATUS.read_bytes())
    return int(found[1]) if found else _usable()


def _usable() -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit - min(_RESERVED, limit // _RESERVED_PART)
