"""Ports that a runtime reserved for its container before it told us of it, by sockets of its own.

podman does so since 5.8 (the sockets are bound, some not even listening), nerdctl since 2.3; neither hands them to a
plugin. As a runtime's count the sockets of the process that calls and of its ancestors in the same job (process group),
which ends at the shell or the service that the runtime was started from; and those of a process that was started for
this very container, as podman's conmon is: it has the container's id among its arguments.
"""

import asyncio
import os
import socket
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from netplug.drivers.steps import HostPort, IPAddress, Proto
from netplug.errors import NetplugError
from netplug.kernel import libc
from netplug.kernel.api import Reservations
from netplug.kernel.host.port_holders import PROC, PROTOCOLS, Bound, holders, processes, sockets_of
from netplug.kernel.host.ports import Ports

_PIDFD_GETFD = 438
_SO_NETNS_COOKIE = 71
_IPPROTO_MPTCP = 262
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_PROTOCOLS = {number: proto for proto, number in PROTOCOLS.items()} | {_IPPROTO_MPTCP: Proto.TCP}
"""By number. What programs in Go listen on is Multipath TCP."""
_ID_SIGNS = 32
"""Signs that a container's id has at least; anything shorter may be anybody's argument."""


async def reserve(
    ports: Ports, proto: Proto, address: IPAddress, first: int, last: int, theirs: Reservations | None
) -> int:
    """Reserve a free port, or take note of one that a container's runtime keeps for it; see `Kernel.reserve`.

    Raises:
        NetplugError: as there; of one port it names who has it.
    """
    try:
        return ports.reserve(proto, address, first, last)
    except NetplugError as error:
        if error.kind != "unavailable" or first != last:
            raise
        step = HostPort(proto, address, first)
        if theirs is not None and await theirs.cover(step):
            ports.know(proto, address, first)
            return first
        if who := await asyncio.to_thread(holders, step):
            raise NetplugError(error.kind, f"{error.message} by {who}", hint=error.hint) from None
        raise


class RuntimeSockets:
    """The sockets of a runtime, looked at when they are first asked for. `pid`: of its process that calls."""

    def __init__(self, pid: int, container: str) -> None:
        self._pid = pid
        self._container = container
        self._found: Mapping[tuple[Proto, int], Sequence[Bound]] | None = None

    async def cover(self, step: HostPort) -> bool:
        """Tell whether they keep all of a port for their container; see `Reservations`."""
        if self._found is None:
            self._found = await asyncio.to_thread(self._look)
        return any(bound.covers(step) for bound in self._found.get((step.proto, step.port), ()))

    def _look(self) -> Mapping[tuple[Proto, int], Sequence[Bound]]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
            namespace = _namespace(ours)
        pids = dict.fromkeys((*_job(self._pid), *_started_for(self._container)))
        found = defaultdict(list)
        for pid in pids:
            for bound in _bound(pid, namespace):
                found[bound.proto, bound.port].append(bound)
        return found


def _job(pid: int) -> Iterator[int]:
    """Yield a process and those of its ancestors that are of its process group."""
    group = 0
    while pid > 0 and (found := _parent_and_group(pid)) and group in {0, found[1]}:
        yield pid
        pid, group = found


def _parent_and_group(pid: int) -> tuple[int, int] | None:
    try:
        fields = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return int(fields[1]), int(fields[2])


def _started_for(container: str) -> Iterator[int]:
    """Yield the processes that have a container's id as an argument."""
    if len(container) < _ID_SIGNS:
        return
    for pid in processes():
        with suppress(OSError):
            if container.encode() in (PROC / str(pid) / "cmdline").read_bytes().split(b"\0"):
                yield pid


def _bound(pid: int, namespace: bytes) -> Iterator[Bound]:
    """Yield a process's sockets that are bound in a network namespace.

    Duplicates are asked, since before Linux 6.8 no list has those that do not listen.
    """
    with suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            for fd, _ in sockets_of(pid):
                with suppress(OSError), _opened(_duplicate(pidfd, fd)) as sock:
                    proto = _PROTOCOLS.get(sock.proto) if sock.family in _FAMILIES else None
                    if proto and _namespace(sock) == namespace and not _connected(sock):
                        yield _place(sock, proto)
        finally:
            os.close(pidfd)


def _opened(fd: int) -> socket.socket:
    """Return the socket of a descriptor, which is taken over, also where it is none of a socket that Python knows."""
    try:
        return socket.socket(fileno=fd)
    except BaseException:
        os.close(fd)
        raise


def _duplicate(pidfd: int, fd: int) -> int:
    return libc.call("syscall", _PIDFD_GETFD, pidfd, fd, 0)


def _place(sock: socket.socket, proto: Proto) -> Bound:
    address, port = sock.getsockname()[:2]
    six = sock.family == socket.AF_INET6
    return Bound(proto, address, port, six and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))


def _connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _namespace(sock: socket.socket) -> bytes:
    """Return the mark of a socket's network namespace; before Linux 5.14 there is none."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    except OSError:
        return b""
