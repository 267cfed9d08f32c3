"""One daemon per network namespace: two would undo each other's work, whatever their folders are.

The lock is a file that only root can open, in one folder for all daemons, named after the namespace. Daemons of
different mount namespaces do not see each other's files. So an abstract socket, which belongs to the network namespace,
is a second lock. Any local user can bind it; it counts only if its owner could run a daemon.
"""

import os
import socket
import struct
from contextlib import ExitStack
from pathlib import Path

import structlog

from netplug.daemon.lock import Held, command_of, lock_file
from netplug.errors import NetplugError

log = structlog.get_logger(__name__)

NAMESPACE = "\0netplug"
"""The abstract socket (unix(7))."""
LOCKS = Path("/run/netplug/namespaces")
"""Folder of the lock files, independent of the settings, since a second daemon may have others."""
_HINT = "there can be one daemon per network namespace; stop it first"
_TIMEOUT_S = 0.5
_BACKLOG = 4096
"""Connections are never accepted; each probe remains in the queue."""
_NET_ADMIN = 1 << 12
_OWN = Path("/proc/self/ns/net")


def claim_namespace(name: str = NAMESPACE, locks: Path = LOCKS) -> ExitStack:
    """Hold this network namespace until the result is closed.

    Raises:
        Held: another daemon holds it; the message names its process.
    """
    with ExitStack() as held:
        status = _OWN.stat()
        what = "this network namespace"
        try:
            path = locks / f"{name.strip(chr(0))}-{status.st_dev}-{status.st_ino}"
            held.enter_context(lock_file(path, what, hint=_HINT))
        except Held:
            raise
        except NetplugError as exc:  # for example a read-only file system; the socket still protects
            log.warning("namespace.unlocked", reason=exc.message)
        if (sock := _bound(name)) is not None:
            held.enter_context(sock)
        elif holder := _daemon(name):
            raise Held(f"{what} is in use by {holder}", hint=_HINT)
        else:
            log.warning("namespace.socket_taken", socket=f"@{name[1:]}", reason="its owner cannot run a daemon")
        return held.pop_all()
    raise AssertionError("an ExitStack that suppresses nothing")


def _bound(name: str) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.bind(name)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        return None
    return sock


def _daemon(name: str) -> str:
    """Return the owner of the socket; empty if that process could not run a daemon."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_TIMEOUT_S)
        try:
            probe.connect(name)
            raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:  # a daemon's socket would listen
            return ""
    pid, uid, _ = struct.unpack("3i", raw)
    if uid not in {0, os.geteuid()} or not _may_administer(pid):
        return ""
    return f"process {pid} ({command_of(pid)})" if pid else "a process of another pid namespace"


def _may_administer(pid: int) -> bool:
    """Tell whether a process may change networks, as far as known; root in a container often may not."""
    if os.geteuid() != 0 or not pid:
        return True
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    granted = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "0")
    return bool(int(granted, 16) & _NET_ADMIN)
