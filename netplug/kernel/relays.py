"""Connections to [::1] are relayed to containers by this process (steps `Relay`).

The kernel translates 127.0.0.1 to a container's address (route_localnet) but has nothing of the kind for ::1: what
comes back for it by another link than the loopback is not routed. So the socket that reserves the port serves after
all, for what is addressed to ::1 and for nothing else: a socket filter sees to that, and all other traffic is
translated before it could come here. As long as this process is away, [::1] does not answer.
"""

import asyncio
import socket
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from typing import Any, Protocol

from netplug.drivers import ranges
from netplug.drivers.steps import HostPort, Proto, Relay

from .api import MISSING, Outcome, StepError
from .doing import merged
from .ports import Ports

CONNECT_TIMEOUT_S = 10
UDP_IDLE_S = 60.0
"""After that a client's datagrams are a new flow; the kernel forgets its own after 30 to 120 s."""
MOST = 1024
"""Connections, or flows of datagrams, of one port; a further one is refused."""
_BUFFER = 1 << 16


class _Server(Protocol):
    """What serves one port."""

    def close(self) -> None: ...


class Relays:
    """The relayed ports. Belongs to one event loop."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._servers: dict[str, tuple[Relay, _Server]] = {}

    async def ensure(self, step: Relay) -> Outcome:
        """Serve ports that are reserved; one that leads elsewhere is led anew."""
        done: dict[Relay, Outcome] = {}
        try:
            for part in _parts(step):
                done[part] = self._ensure(part)
        except StepError:
            for part in (it for it, outcome in done.items() if outcome is Outcome.CREATED):
                self._remove(part)
            raise
        return merged(done.values())

    def _ensure(self, step: Relay) -> Outcome:
        before = self._servers.get(step.key)
        if before and before[0] == step:
            return Outcome.EQUAL
        sock = self._ports.serve(HostPort(step.proto, step.host, step.port))
        if sock is None:
            raise StepError("not_found", step, f"port {step.port}/{step.proto} of [{step.host}] is not reserved")
        if before:
            before[1].close()
        self._servers[step.key] = step, _Streams(step, sock) if step.proto is Proto.TCP else _Datagrams(step, sock)
        return Outcome.ADJUSTED if before else Outcome.CREATED

    def remove(self, step: Relay) -> None:
        """Serve ports no longer; their connections end."""
        for part in _parts(step):
            self._remove(part)

    def _remove(self, step: Relay) -> None:
        if before := self._servers.pop(step.key, None):
            before[1].close()
        self._ports.reserve_only(HostPort(step.proto, step.host, step.port))

    def drift(self, step: Relay) -> str:
        """Say what is wrong with relays; empty when nothing."""
        for part in _parts(step):
            found = self._servers.get(part.key)
            if found is None:
                return MISSING
            if found[0] != part:
                return "leads elsewhere"
        return ""

    def close(self) -> None:
        """End all connections."""
        for _, server in self._servers.values():
            server.close()
        self._servers.clear()


def _parts(step: Relay) -> Iterator[Relay]:
    return (part for part in ranges.each(step) if isinstance(part, Relay))


class _Streams:
    """A TCP port."""

    def __init__(self, step: Relay, sock: socket.socket) -> None:
        self._target = (str(step.address), step.target)
        self._tasks = _Tasks()
        self._socket = sock
        asyncio.get_running_loop().add_reader(sock.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            client, _ = self._socket.accept()
        except OSError:  # gone again, or too many files: the next one will be told of
            return
        client.setblocking(False)
        if not self._tasks.start(self._relay(client)):
            client.close()

    async def _relay(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        server = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        with client, server, suppress(OSError):
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await loop.sock_connect(server, self._target)
            await asyncio.gather(_pump(client, server), _pump(server, client))

    def close(self) -> None:
        _stop_reading(self._socket)
        self._tasks.cancel()


async def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Hand on what comes, and then that no more comes."""
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, _BUFFER):
        await loop.sock_sendall(sink, data)
    sink.shutdown(socket.SHUT_WR)


class _Datagrams:
    """A UDP port: a socket towards the container for each client."""

    def __init__(self, step: Relay, sock: socket.socket) -> None:
        self._target = (str(step.address), step.target)
        self._tasks = _Tasks()
        self._flows: dict[Any, socket.socket] = {}
        self._socket = sock
        asyncio.get_running_loop().add_reader(sock.fileno(), self._receive)

    def _receive(self) -> None:
        try:
            data, client = self._socket.recvfrom(_BUFFER)
        except OSError:
            return
        flow = self._flows.get(client) or self._open(client)
        if flow is not None:
            with suppress(OSError):  # refused, or no room: so are datagrams
                flow.send(data)

    def _open(self, client: Any) -> socket.socket | None:
        flow = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            flow.connect(self._target)
        except OSError:
            flow.close()
            return None
        if not self._tasks.start(self._answer(client, flow)):
            flow.close()
            return None
        self._flows[client] = flow
        return flow

    async def _answer(self, client: Any, flow: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with flow:
            try:
                while True:
                    async with asyncio.timeout(UDP_IDLE_S):
                        data = await loop.sock_recv(flow, _BUFFER)
                    self._socket.sendto(data, client)
            except OSError:  # nobody listens there any more, or the time is over
                return
            finally:
                self._flows.pop(client, None)

    def close(self) -> None:
        _stop_reading(self._socket)
        self._tasks.cancel()


def _stop_reading(sock: socket.socket) -> None:
    """Let a port be, whose socket may be closed already."""
    if sock.fileno() >= 0:
        asyncio.get_running_loop().remove_reader(sock.fileno())


class _Tasks:
    """So many at once and no more."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> bool:
        """Begin a task, or drop it and return False."""
        if len(self._running) >= MOST:
            work.close()
            return False
        # Outside a TaskGroup: it serves whoever connects, for as long as he likes, until `cancel`.
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return True

    def cancel(self) -> None:
        for task in self._running:
            task.cancel()
