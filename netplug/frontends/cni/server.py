"""The socket of the CNI executables: a connection for each call, with the whole request, then the whole reply.

Not HTTP: it would add half of the time that the executable takes to start.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog

from netplug.frontends import netavark
from netplug.frontends.accept import accept
from netplug.frontends.cni.service import CniService, refusal
from netplug.frontends.cni.wire import Call, CniError, Code, Reply
from netplug.tasks.uncancellable import uncancellable

log = structlog.get_logger(__name__)

_CREDENTIALS = struct.Struct("3i")
MOST_BYTES = 4 << 20
REQUEST_S = 30.0
"""Time to send a request: executables send it at once."""
LAST_REQUEST_S = 1.0
"""The same while the server stops."""


@asynccontextmanager
async def serving_cni(service: CniService, sock: socket.socket) -> AsyncIterator[None]:
    """Answer calls on a listening socket during the block. Then finish those that have begun, and close it."""
    server = _Server(service, sock)
    accepting = asyncio.ensure_future(accept(sock, server.take))
    try:
        yield
    finally:
        accepting.cancel()
        await uncancellable(server.finish(accepting))


class _Server:
    """Uses bare sockets: asyncio's streams take longer, and leave connections open that come while they end."""

    def __init__(self, service: CniService, sock: socket.socket) -> None:
        self._service = service
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._reading: set[asyncio.Task[None]] = set()
        self._working: set[asyncio.Task[None]] = set()
        self._all_read = asyncio.Event()

    async def take(self, connection: socket.socket) -> None:
        """Begin to answer a connection."""
        task = self._loop.create_task(self._serve(connection), name="netplug-cni")
        self._reading.add(task)
        task.add_done_callback(self._forget)

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

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._has_read(task)
        self._working.discard(task)

    def _has_read(self, task: asyncio.Task[None]) -> None:
        self._reading.discard(task)
        if not self._reading:
            self._all_read.set()

    async def _serve(self, connection: socket.socket) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - it was made one
        with connection:
            try:
                data = await self._read(connection)
                self._has_read(task)
                self._working.add(task)
                if data:
                    await self._loop.sock_sendall(connection, (await self._reply(data, connection)).render())
            except (TimeoutError, OSError) as exc:
                log.debug("cni.gone", error=str(exc))

    async def _reply(self, data: bytes, connection: socket.socket) -> Reply:
        call = Call.parse(data, _peer(connection))
        if len(data) <= MOST_BYTES:
            return await self._service.answer(call)
        error = CniError(Code.DECODE, f"the configuration is longer than {MOST_BYTES} bytes")
        return netavark.refusal(error) if call.netavark else refusal(error, "")

    async def _read(self, connection: socket.socket) -> bytes:
        """Return a request. A request that is too long is not read to its end.

        Raises:
            TimeoutError: it has no end.
        """
        parts: list[bytes] = []
        size = 0
        async with asyncio.timeout(REQUEST_S):
            while part := await self._loop.sock_recv(connection, 65536):
                size += len(part)
                parts.append(part)
                if size > MOST_BYTES:
                    break
        return b"".join(parts)


def _peer(connection: socket.socket) -> int:
    """Return the process at the other end (unix(7), SO_PEERCRED)."""
    pid, _, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(pid)
