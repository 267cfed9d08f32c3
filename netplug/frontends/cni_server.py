"""The CNI executables' socket: one connection a call, the request up to its end, the reply up to its end.

Not HTTP, since each millisecond of it would be half of what the executable takes to start.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from netplug.engine.whole import to_its_end
from netplug.frontends.cni import CniService
from netplug.frontends.cni_wire import Call, Code, Reply

log = structlog.get_logger(__name__)

MOST_BYTES = 4 << 20
REQUEST_S = 30.0
"""A request is written at once; who does not must not stay for ever."""


@asynccontextmanager
async def serving_cni(service: CniService, sock: socket.socket) -> AsyncIterator[None]:
    """Answer calls on a listening socket for the time of the block; then finish what was begun and close it."""
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio calls this in one
        running.add(task)
        try:
            await _serve(service, reader, writer)
        finally:
            running.discard(task)

    server = await asyncio.start_unix_server(serve, sock=sock)
    try:
        yield
    finally:
        server.close()
        await to_its_end(_finish(running))


async def _finish(running: set[asyncio.Task[None]]) -> None:
    if running:
        await asyncio.wait(set(running))


async def _serve(service: CniService, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        data = await _read(reader)
        if data:
            # What a runtime asked for is done even if it does not wait for the answer: its DEL will come.
            reply = await to_its_end(service.answer(Call.parse(data)))
            writer.write(reply.render())
            await writer.drain()
    except TimeoutError:
        writer.write(
            Reply(1, f'{{"code":{Code.TRY_AGAIN.value},"msg":"the request did not come to its end"}}\n').render()
        )
    except ConnectionError as exc:
        log.debug("cni.gone", error=str(exc))
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    size = 0
    async with asyncio.timeout(REQUEST_S):
        while part := await reader.read(65536):
            size += len(part)
            if size > MOST_BYTES:
                return b""
            parts.append(part)
    return b"".join(parts)
