"""Connections to [::1], and between IPv4 and IPv6, are relayed to containers by this process (steps `Relay`).

The kernel translates 127.0.0.1 to a container's address (route_localnet) but has nothing of the kind for ::1: what
comes back for it by another link than the loopback is not routed. So the socket that reserves the port serves after
all, for what is addressed to ::1 and for nothing else: a socket filter sees to that, and all other traffic is
translated before it could come here. As long as this process is away, [::1] does not answer.

So it is for clients of the IP version that a container lacks, as Docker's userland proxy does for IPv6: the container
sees the host. Who has no way out is refused, see `relay_access`.
"""

import asyncio
import errno
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
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
"""After that a client's datagrams are a new flow; the kernel forgets its own after 30 to 120 s."""
MOST = 1024
"""Connections, or flows of datagrams, of one port; a further one is refused."""
_BUFFER = 1 << 16
_SAID = 64
"""Bytes for what the kernel says of a datagram."""
_PAUSE_S = 1.0
_STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_IP_PKTINFO = 8
_ASK_WHERE = {
    socket.AF_INET: (socket.IPPROTO_IP, _IP_PKTINFO),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO),
}

_Said: TypeAlias = tuple[int, int, bytes]
"""Ancillary data of a datagram: level, type, content."""


class _Server(Protocol):
    """What serves one port."""

    def close(self) -> None: ...


class Relays:
    """The relayed ports. Belongs to one event loop."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._access = RelayAccess()
        self._servers: dict[str, tuple[Relay, _Server]] = {}

    def ensure(self, step: Relay) -> Done:
        """Serve ports that are reserved; one that leads elsewhere is led anew."""
        if step.count == 1:  # there may be thousands
            there = self._servers.get(step.key)
            outcome = self._ensure(step)
            return Done(outcome, (there[0],) if there and outcome is Outcome.ADJUSTED else ())
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
        sock = self._ports.serve(HostPort(step.proto, step.host, step.port), whole=step.whole)
        if sock is None:
            raise StepError("not_found", step, f"port {step.port}/{step.proto} of [{step.host}] is not reserved")
        if before:
            before[1].close()
        kind = _Streams if step.proto is Proto.TCP else _Datagrams
        self._servers[step.key] = step, kind(step, sock, self._access)
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
        self._access.close()


def _parts(step: Relay) -> Iterator[Relay]:
    return (part for part in port_ranges.each(step) if isinstance(part, Relay))


class _Streams:
    """A TCP port."""

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
            # Neither socket is closed before both have let go of it: its number may be another's at once.
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
    """Hand on what comes, and then that no more comes."""
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, _BUFFER):
        await loop.sock_sendall(sink, data)
    sink.shutdown(socket.SHUT_WR)


class _Datagrams:
    """A UDP port: a socket towards the container for each client and each address that it speaks to."""

    def __init__(self, step: Relay, sock: socket.socket, access: RelayAccess) -> None:
        self._access = access
        self._family = _family(step.address)
        self._target = (text_of(step.address), step.target)
        self._tasks = _Tasks()
        self._flows: dict[Any, socket.socket] = {}
        level, kind = _ASK_WHERE[sock.family]
        sock.setsockopt(level, kind, 1)
        self._port = _Port(sock, self._receive)

    def _receive(self) -> None:
        try:
            data, said, _, client = self._port.socket.recvmsg(_BUFFER, _SAID)
        except OSError:
            return
        here = next((_answer_from(*item) for item in said), None)
        flow = self._flows.get((client, here))
        if flow is None and not self._access.refuses(client[0], next((link_of(it) for *_, it in said), 0)):
            flow = self._open(client, here)
        if flow is not None:
            with suppress(OSError):  # refused, or no room: so are datagrams
                flow.send(data)

    def _open(self, client: Any, here: _Said | None) -> socket.socket | None:
        try:
            flow = socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError:
            return None
        try:
            flow.connect(self._target)
        except OSError:
            flow.close()
            return None
        if descriptors.is_reserved(flow) or not self._tasks.start(self._answer(client, here, flow)):
            flow.close()
            return None
        self._flows[client, here] = flow
        return flow

    async def _answer(self, client: Any, here: _Said | None, flow: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with flow:
            try:
                while True:
                    async with asyncio.timeout(UDP_IDLE_S):
                        data = await loop.sock_recv(flow, _BUFFER)
                    self._port.socket.sendmsg([data], [here] if here else [], 0, client)
            except OSError:  # nobody listens there any more, or the time is over
                return
            finally:
                self._flows.pop((client, here), None)

    def close(self) -> None:
        self._port.close()
        self._tasks.cancel()


def _answer_from(level: int, kind: int, where: bytes) -> _Said:
    """Return what has an answer come from the address that was asked (ip(7), ipv6(7): PKTINFO).

    By way of the link only where the address is of that alone.
    """
    if level == socket.IPPROTO_IP:
        return level, kind, bytes(4) + where[8:12] + bytes(4)
    link = where[16:20] if where[0] == 0xFE and where[1] & 0xC0 == 0x80 else bytes(4)
    return level, kind, where[:16] + link


def _family(address: IPAddress) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


class _Port:
    """A reserved port that is read from."""

    def __init__(self, sock: socket.socket, read: Callable[[], None]) -> None:
        self.socket = sock
        self._read = read
        self._pausing: asyncio.TimerHandle | None = None
        self._resume()

    def _resume(self) -> None:
        self._pausing = None
        asyncio.get_running_loop().add_reader(self.socket.fileno(), self._read)

    def pause(self) -> None:
        """Read no more for a moment: what waits would be told of over and over."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.socket.fileno())
        self._pausing = loop.call_later(_PAUSE_S, self._resume)

    def close(self) -> None:
        """Read no more; the socket is the reservation's."""
        if self._pausing:
            self._pausing.cancel()
        asyncio.get_running_loop().remove_reader(self.socket.fileno())


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
