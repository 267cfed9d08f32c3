"""Userland proxy: connections to [::1], and between IPv4 and IPv6, are relayed to containers (steps `Relay`).

The kernel can translate 127.0.0.1 to a container's address (route_localnet), but not ::1: a reply to ::1 from another
link than the loopback is not routed. So the socket that reserves the port serves packets to ::1. A socket filter drops
all others; DNAT translates them before they reach the socket. While this process is not running, [::1] does not answer.

Clients of an IP version that the container lacks are relayed in the same way, as by Docker's userland proxy. The
container sees the host's address. Clients in internal networks are refused, see `relay_access`.
"""

import asyncio
import errno
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from contextvars import Context
from typing import Any, Protocol, TypeAlias

from netplug.drivers import port_ranges
from netplug.drivers.steps import HostPort, IPAddress, Proto, Relay, text_of
from netplug.kernel.api import MISSING, Done, Outcome, StepError
from netplug.kernel.host import descriptors
from netplug.kernel.host.ports import Ports
from netplug.kernel.host.relay_access import RelayAccess, link_of
from netplug.kernel.progress import merged

CONNECT_TIMEOUT_S = 10
UDP_IDLE_S = 60.0
"""A flow of datagrams ends after this idle time. Connection tracking of the kernel uses 30 to 120 s."""
MOST = 1024
"""Most connections, or flows of datagrams, of one port. Further ones are refused."""
_BUFFER = 1 << 16
_CONTROL = 64
"""Bytes for the ancillary data of a datagram."""
_PAUSE_S = 1.0
_STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_IP_PKTINFO = 8
_PKTINFO = {
    socket.AF_INET: (socket.IPPROTO_IP, _IP_PKTINFO),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO),
}

_ControlMessage: TypeAlias = tuple[int, int, bytes]
"""Ancillary data of a datagram: level, type, data."""


class _Server(Protocol):
    """Serves one port."""

    def close(self) -> None: ...


class Relays:
    """The relayed ports. Belongs to one event loop."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._access = RelayAccess()
        self._servers: dict[str, tuple[Relay, _Server]] = {}

    def ensure(self, step: Relay) -> Done:
        """Relay ports that are reserved; change the target of those that are relayed."""
        if step.count == 1:  # there may be thousands
            current = self._servers.get(step.key)
            outcome = self._ensure(step)
            return Done(outcome, (current[0],) if current and outcome is Outcome.ADJUSTED else ())
        before = {part.key: self._servers[part.key][0] for part in _parts(step) if part.key in self._servers}
        done: dict[Relay, Outcome] = {}
        try:
            for part in _parts(step):
                done[part] = self._ensure(part)
        except StepError as error:
            for part, outcome in done.items():
                if outcome is Outcome.CREATED:
                    self._remove(part)
                else:
                    self._ensure(before[part.key])
            raise StepError(error.kind, step, error.message, hint=error.hint) from error
        return merged(done, before)

    def _ensure(self, step: Relay) -> Outcome:
        before = self._servers.get(step.key)
        if before and before[0] == step:
            return Outcome.EQUAL
        sock = self._ports.serve(HostPort(step.proto, step.host, step.port), all_addresses=step.crosses_versions)
        if sock is None:
            raise StepError("not_found", step, f"port {step.port}/{step.proto} of [{step.host}] is not reserved")
        if before:
            before[1].close()
        kind = _Streams if step.proto is Proto.TCP else _Datagrams
        self._servers[step.key] = step, kind(step, sock, self._access)
        return Outcome.ADJUSTED if before else Outcome.CREATED

    def remove(self, step: Relay) -> None:
        """Stop relaying ports; their connections end."""
        for part in _parts(step):
            self._remove(part)

    def _remove(self, step: Relay) -> None:
        if before := self._servers.pop(step.key, None):
            before[1].close()
        self._ports.reserve_only(HostPort(step.proto, step.host, step.port))

    def drift(self, step: Relay) -> str:
        """Return how the relays differ from a step; empty if they do not."""
        for part in _parts(step):
            found = self._servers.get(part.key)
            if found is None:
                return MISSING
            if found[0] != part:
                return f"is relayed to {found[0].address} port {found[0].target}"
        return ""

    def close(self) -> None:
        """End all connections."""
        for _, server in self._servers.values():
            server.close()
        self._servers.clear()
        self._access.close()


def _parts(step: Relay) -> Iterator[Relay]:
    return (part for part in port_ranges.each(step) if isinstance(part, Relay))


class _Streams:
    """A TCP port."""

    __slots__ = ("_access", "_family", "_port", "_target", "_tasks")

    def __init__(self, step: Relay, sock: socket.socket, access: RelayAccess) -> None:
        self._access = access
        self._family = _family(step.address)
        self._target = (text_of(step.address), step.target)
        self._tasks = _Tasks()
        self._port = _Port(sock, self._accept)

    def _accept(self) -> None:
        try:
            client, (source, *_) = self._port.socket.accept()
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                self._port.pause()
            return
        client.setblocking(False)
        refused = descriptors.is_reserved(client) or self._access.refuses_connection(client, source)
        if refused or not self._tasks.start(self._relay(client)):
            client.close()

    async def _relay(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with client, suppress(OSError), socket.socket(self._family, _STREAM) as server:
            if descriptors.is_reserved(server):
                return
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await loop.sock_connect(server, self._target)
            # Both tasks end before the sockets are closed: the kernel reuses descriptor numbers immediately.
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(_pump(client, server))
                    both.create_task(_pump(server, client))
            except* OSError:
                pass

    def close(self) -> None:
        self._port.close()
        self._tasks.cancel()


async def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Copy data until the end of the stream, then signal the end."""
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, _BUFFER):
        await loop.sock_sendall(sink, data)
    sink.shutdown(socket.SHUT_WR)


class _Datagrams:
    """A UDP port. Each flow, of client and local address, has a socket to the container."""

    __slots__ = ("_access", "_family", "_flows", "_port", "_target", "_tasks")

    def __init__(self, step: Relay, sock: socket.socket, access: RelayAccess) -> None:
        self._access = access
        self._family = _family(step.address)
        self._target = (text_of(step.address), step.target)
        self._tasks = _Tasks()
        self._flows: dict[Any, socket.socket] = {}
        level, kind = _PKTINFO[sock.family]
        sock.setsockopt(level, kind, 1)
        self._port = _Port(sock, self._receive)

    def _receive(self) -> None:
        try:
            data, control, _, client = self._port.socket.recvmsg(_BUFFER, _CONTROL)
        except OSError:
            return
        source = next((_reply_source(*item) for item in control), None)
        flow = self._flows.get((client, source))
        if flow is None and not self._access.refuses(client[0], next((link_of(it) for *_, it in control), 0)):
            flow = self._open(client, source)
        if flow is not None:
            with suppress(OSError):  # the container refuses it, or the buffer is full: datagrams may be lost
                flow.send(data)

    def _open(self, client: Any, source: _ControlMessage | None) -> socket.socket | None:
        try:
            flow = socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError:
            return None
        try:
            flow.connect(self._target)
        except OSError:
            flow.close()
            return None
        if descriptors.is_reserved(flow) or not self._tasks.start(self._reply(client, source, flow)):
            flow.close()
            return None
        self._flows[client, source] = flow
        return flow

    async def _reply(self, client: Any, source: _ControlMessage | None, flow: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with flow:
            try:
                while True:
                    async with asyncio.timeout(UDP_IDLE_S):
                        data = await loop.sock_recv(flow, _BUFFER)
                    with suppress(OSError):  # a buffer is full, or a rule drops it: answers may be lost
                        self._port.socket.sendmsg([data], [source] if source else [], 0, client)
            except OSError:  # the container's port was closed, or the flow was idle
                return
            finally:
                self._flows.pop((client, source), None)

    def close(self) -> None:
        self._port.close()
        self._tasks.cancel()


def _reply_source(level: int, kind: int, info: bytes) -> _ControlMessage:
    """Return the ancillary data that sends a reply from the address of the query (ip(7), ipv6(7): PKTINFO).

    It selects the link only for a link-local address.
    """
    if level == socket.IPPROTO_IP:
        return level, kind, bytes(4) + info[8:12] + bytes(4)
    link = info[16:20] if info[0] == 0xFE and info[1] & 0xC0 == 0x80 else bytes(4)
    return level, kind, info[:16] + link


def _family(address: IPAddress) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


class _Port:
    """Calls `read` when the socket of a reserved port is readable."""

    __slots__ = ("_paused", "_read", "socket")

    def __init__(self, sock: socket.socket, read: Callable[[], None]) -> None:
        self.socket = sock
        self._read = read
        self._paused: asyncio.TimerHandle | None = None
        self._resume()

    def _resume(self) -> None:
        """Read from now on, for nobody: the port stays long after the request that asked for it.

        The event loop keeps the context of whoever adds a reader, here half a kilobyte for each port.
        """
        self._paused = None
        Context().run(asyncio.get_running_loop().add_reader, self.socket.fileno(), self._read)

    def pause(self) -> None:
        """Stop reading for `_PAUSE_S`. Otherwise the event loop would call `read` again at once."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.socket.fileno())
        self._paused = loop.call_later(_PAUSE_S, self._resume)

    def close(self) -> None:
        """Stop reading. The socket stays open: it belongs to the reservation."""
        if self._paused:
            self._paused.cancel()
        asyncio.get_running_loop().remove_reader(self.socket.fileno())


class _Tasks:
    """Running tasks, at most `MOST`."""

    __slots__ = ("_running",)

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> bool:
        """Start a task, or return False if there are too many."""
        if len(self._running) >= MOST:
            work.close()
            return False
        # Outside a TaskGroup: a connection may last until `cancel`.
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return True

    def cancel(self) -> None:
        for task in self._running:
            task.cancel()
