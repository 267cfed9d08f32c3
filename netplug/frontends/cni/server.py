"""The socket of the CNI executables: a connection for each call, with the whole request, then the whole reply.

Not HTTP: it would add half of the time that the executable takes to start.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial

import structlog

from netplug.frontends import netavark
from netplug.frontends.accept import accept
from netplug.frontends.cni.service import CniService, refusal
from netplug.frontends.cni.wire import Call, CniError, Code, Reply
from netplug.frontends.connections import Connections, peer_of
from netplug.tasks.uncancellable import uncancellable

log = structlog.get_logger(__name__)

MOST_BYTES = 4 << 20
REQUEST_S = 30.0
"""Time to send a request: executables send it at once."""
REPLY_S = 30.0
"""Time to read a reply: executables do nothing else."""
LARGE = 128 << 10
"""Bytes from which on a request is large."""
LARGE_AT_A_TIME = 4
"""Else many callers with large requests, all but whole, would take all memory."""
MOST_VALUES = 330_000
"""JSON values of a request: as many as all ports of a host need, five each."""
LAST_REQUEST_S = 1.0
"""The same while the server stops."""


@asynccontextmanager
async def serving_cni(service: CniService, sock: socket.socket) -> AsyncIterator[None]:
    """Answer calls on a listening socket during the block. Then finish those that have begun, and close it."""
    server = _Server(service, sock)
    accepting = asyncio.ensure_future(accept(sock, server.take, server.make_room))
    try:
        yield
    finally:
        accepting.cancel()
        await uncancellable(server.finish(accepting))


class _Caller:
    """A connection that sends its request. `task`: reads it."""

    served = False

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.peer = peer_of(connection)
        self.waits = True
        self.task: asyncio.Task[None]

    def drop(self) -> None:
        """Close it."""
        self.task.cancel()


class _Server:
    """Uses bare sockets: asyncio's streams take longer, and leave connections open that come while they end."""

    def __init__(self, service: CniService, sock: socket.socket) -> None:
        self._service = service
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._reading: set[asyncio.Task[None]] = set()
        self._working: set[asyncio.Task[None]] = set()
        self._all_read = asyncio.Event()
        self._callers = Connections()
        self._large = asyncio.Semaphore(LARGE_AT_A_TIME)
        self.make_room = self._callers.make_room

    async def take(self, connection: socket.socket) -> None:
        """Begin to answer a connection. If there are too many, one that sends nothing is closed, or this one."""
        caller = _Caller(connection)
        if not self._callers.admit(caller):
            connection.close()
            return
        task = caller.task = self._loop.create_task(self._serve(connection, caller), name="netplug-cni")
        self._reading.add(task)
        task.add_done_callback(partial(self._forget, caller))

    async def finish(self, accepting: asyncio.Future[None]) -> None:
        """Answer those that have connected, even if the runtime is gone; without a whole request, close them."""
        await asyncio.wait([accepting])
        self._sock.close()
        if self._reading:
            self._all_read.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_REQUEST_S):
                    await self._all_read.wait()
        for task in self._reading:
            task.cancel()
        if tasks := self._reading | self._working:
            await asyncio.wait(tasks)

    def _forget(self, caller: _Caller, task: asyncio.Task[None]) -> None:
        caller.connection.close()  # one that was dropped before its task began
        self._callers.remove(caller)
        self._has_read(task)
        self._working.discard(task)

    def _has_read(self, task: asyncio.Task[None]) -> None:
        self._reading.discard(task)
        if not self._reading:
            self._all_read.set()

    async def _serve(self, connection: socket.socket, caller: _Caller) -> None:
        with connection:
            try:
                async with AsyncExitStack() as held:
                    data = await self._read(connection, held)
                    caller.waits = False
                    self._has_read(caller.task)
                    self._working.add(caller.task)
                    reply = await self._reply(data, connection) if data else None
                if reply:
                    async with asyncio.timeout(REPLY_S):
                        await self._loop.sock_sendall(connection, reply.render())
            except (TimeoutError, OSError) as exc:
                log.debug("cni.gone", error=str(exc))

    async def _reply(self, data: bytes, connection: socket.socket) -> Reply:
        call = Call.parse(data, peer_of(connection))
        if len(data) > MOST_BYTES:
            error = CniError(Code.DECODE, f"the configuration is longer than {MOST_BYTES} bytes")
        elif data.count(b",") > MOST_VALUES:
            error = CniError(Code.DECODE, f"the configuration has more than {MOST_VALUES} values")
        else:
            return await self._service.answer(call)
        return netavark.refusal(error) if call.netavark else refusal(error, "")

    async def _read(self, connection: socket.socket, held: AsyncExitStack) -> bytes:
        """Return a request. One that is too long is not read to its end; large ones wait until `held` of others ends.

        Raises:
            TimeoutError: it has no end.
        """
        parts: list[bytes] = []
        size = 0
        async with asyncio.timeout(REQUEST_S):
            while part := await self._loop.sock_recv(connection, 65536):
                if size <= LARGE < size + len(part):
                    await held.enter_async_context(self._large)
                size += len(part)
                parts.append(part)
                if size > MOST_BYTES:
                    break
        return b"".join(parts)
