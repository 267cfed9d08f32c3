"""Finds ports that a runtime has bound for its container before it calls the plugin.

podman does so since 5.8 (some sockets are bound but not listening), nerdctl since 2.3. Neither passes the sockets to a
plugin. The runtime's sockets are those of the calling process and of its ancestors in the same process group, so the
search ends at the shell or service that started the runtime. A process that was started for this container, such as
podman's conmon, counts as well: it has the container's id among its arguments.
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
from netplug.kernel.host.api import Reservations
from netplug.kernel.host.descriptors import require
from netplug.kernel.host.port_holders import PROC, PROTOCOLS, Bound, holders, processes, sockets_of
from netplug.kernel.host.ports import Ports

_PIDFD_GETFD = 438
_SO_NETNS_COOKIE = 71
_IPPROTO_MPTCP = 262
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_PROTOCOLS = {number: proto for proto, number in PROTOCOLS.items()} | {_IPPROTO_MPTCP: Proto.TCP}
"""By number. Programs in Go listen with Multipath TCP."""
_MIN_ID_LENGTH = 32
"""Characters of a container's id. A shorter string could be an argument of an unrelated process."""


async def reserve(
    ports: Ports, proto: Proto, address: IPAddress, first: int, last: int, theirs: Reservations | None
) -> int:
    """Reserve a free port, or record one that a container's runtime has bound for it; see `HostPorts.reserve`.

    Raises:
        NetplugError: as `HostPorts.reserve`. For a single port, the message names the processes that use it.
    """
    try:
        return ports.reserve(proto, address, first, last)
    except NetplugError as error:
        if error.kind != "unavailable" or first != last:
            raise
        step = HostPort(proto, address, first)
        if theirs is not None and await theirs.cover(step):
            ports.record(proto, address, first)
            return first
        if users := await asyncio.to_thread(holders, step):
            raise NetplugError(error.kind, f"{error.message} by {users}", hint=error.hint) from None
        raise


class PortReservations:
    """Reserves ports of this host; see `api.HostPorts`."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    async def reserve(
        self, proto: Proto, address: IPAddress, first: int, last: int, theirs: Reservations | None = None
    ) -> int:
        """Reserve a free port."""
        return await reserve(self._ports, proto, address, first, last, theirs)

    def reservations(self, pid: int, container: str) -> Reservations:
        """Return the sockets of a runtime."""
        return RuntimeSockets(pid, container)

    def admit(self, descriptors: int, what: str) -> None:
        """Refuse what takes more descriptors than there are."""
        require(descriptors, what)


class RuntimeSockets:
    """The sockets of a runtime, read at the first query. `pid`: the calling process."""

    def __init__(self, pid: int, container: str) -> None:
        self._pid = pid
        self._container = container
        self._found: Mapping[tuple[Proto, int], Sequence[Bound]] | None = None

    async def cover(self, step: HostPort) -> bool:
        """Return whether the runtime has bound all of a step's port; see `Reservations`."""
        if self._found is None:
            self._found = await asyncio.to_thread(self._look)
        return any(bound.covers(step) for bound in self._found.get((step.proto, step.port), ()))

    def _look(self) -> Mapping[tuple[Proto, int], Sequence[Bound]]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
            namespace = _namespace(own)
        pids = dict.fromkeys((*_process_group(self._pid), *_started_for(self._container)))
        found = defaultdict(list)
        for pid in pids:
            for bound in _bound(pid, namespace):
                found[bound.proto, bound.port].append(bound)
        return found


def _process_group(pid: int) -> Iterator[int]:
    """Yield a process and its ancestors in the same process group."""
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
    if len(container) < _MIN_ID_LENGTH:
        return
    for pid in processes():
        with suppress(OSError):
            if container.encode() in (PROC / str(pid) / "cmdline").read_bytes().split(b"\0"):
                yield pid


def _bound(pid: int, namespace: bytes) -> Iterator[Bound]:
    """Yield the sockets of a process that are bound in a network namespace.

    The sockets are duplicated (pidfd_getfd(2)): before Linux 6.8 sock_diag lists only listening ones.
    """
    with suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            for fd, _ in sockets_of(pid):
                with suppress(OSError), _opened(_duplicate(pidfd, fd)) as sock:
                    proto = _PROTOCOLS.get(sock.proto) if sock.family in _FAMILIES else None
                    if proto and _namespace(sock) == namespace and not _connected(sock):
                        yield _binding(sock, proto)
        finally:
            os.close(pidfd)


def _opened(fd: int) -> socket.socket:
    """Return a socket that owns the descriptor. The descriptor is closed if that fails."""
    try:
        return socket.socket(fileno=fd)
    except BaseException:
        os.close(fd)
        raise


def _duplicate(pidfd: int, fd: int) -> int:
    return libc.call("syscall", _PIDFD_GETFD, pidfd, fd, 0)


def _binding(sock: socket.socket, proto: Proto) -> Bound:
    address, port = sock.getsockname()[:2]
    ipv6 = sock.family == socket.AF_INET6
    return Bound(proto, address, port, ipv6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))


def _connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _namespace(sock: socket.socket) -> bytes:
    """Return the cookie of a socket's network namespace; empty before Linux 5.14."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    except OSError:
        return b""
