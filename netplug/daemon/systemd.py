"""What systemd and its services tell each other: notifications, inherited sockets, the watchdog.

The daemon is a service of `Type=notify`. Its sockets may be those of a socket unit, which listen before the daemon runs
and while it restarts: who connects meanwhile waits in their queue.
"""

import asyncio
import os
import socket
from collections.abc import Mapping, MutableMapping
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

UNIT = "netplug.socket"
FIRST = 3
"""Descriptor of the first inherited socket, SD_LISTEN_FDS_START of sd_listen_fds(3)."""
KEPT = "port-"
"""Begin of the names of those that `descriptor_store` takes."""


def notify_address(environ: Mapping[str, str]) -> str:
    """Return where systemd expects notifications; empty if it expects none."""
    address = environ.get("NOTIFY_SOCKET", "")
    return f"\0{address[1:]}" if address.startswith("@") else address


def notify(state: str) -> bool:
    """Notify systemd (sd_notify(3)), if the service expects it. Return False if its queue has no room now."""
    address = notify_address(os.environ)
    if not address:
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)  # a systemd that hangs must not stop us
        try:
            sock.sendto(state.encode(), address)
        except BlockingIOError:
            return False
        except OSError as exc:
            log.debug("systemd.not_told", state=state, error=str(exc))
    return True


async def notify_surely(state: str) -> None:
    """Notify systemd, and wait until its queue has room. It may be full of the sockets that systemd shall keep."""
    address = notify_address(os.environ)
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(address)
            await asyncio.get_running_loop().sock_sendall(sock, state.encode())
        except OSError as exc:
            log.debug("systemd.not_told", state=state, error=str(exc))


def watchdog_s(environ: MutableMapping[str, str] = os.environ) -> float:
    """Return after how many seconds without a sign of life systemd kills this process; 0: never (WatchdogSec=)."""
    for_us = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    given = environ.get("WATCHDOG_USEC", "")
    return int(given) / 1e6 if for_us and given.isdigit() else 0.0


def inherited_sockets(environ: MutableMapping[str, str] = os.environ, first: int = FIRST) -> dict[Path, socket.socket]:
    """Return the listening unix sockets that systemd passed to this process, by path (sd_listen_fds(3)).

    Later calls return none, and children inherit none. What is no such socket is closed, and said in the log.
    """
    told = {name: environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")}
    if told["LISTEN_PID"] != str(os.getpid()) or not told["LISTEN_FDS"].isdigit():
        return {}
    names = told["LISTEN_FDNAMES"].split(":")
    found: dict[Path, socket.socket] = {}
    for index in range(int(told["LISTEN_FDS"])):
        name = names[index] if index < len(names) else "unknown"
        if name.startswith(KEPT):
            continue
        try:
            sock = socket.socket(fileno=first + index)
        except OSError as exc:
            log.warning("socket.refused", descriptor=first + index, name=name, reason=str(exc))
            continue
        if reason := _unusable(sock):
            log.warning("socket.refused", descriptor=first + index, name=name, reason=reason)
            sock.close()
            continue
        sock.set_inheritable(False)
        sock.setblocking(False)
        found[Path(sock.getsockname())] = sock
    return found


def _unusable(sock: socket.socket) -> str:
    """Return why a socket is none of ours; empty if it may be."""
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        return "it is not a unix stream socket (ListenStream=/path)"
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "it does not listen (Accept=no is needed)"
    name = sock.getsockname()
    return "" if isinstance(name, str) and name.startswith("/") else "it has no path"
