"""Serves ASGI apps on bound sockets, by uvicorn. The daemon keeps its signal handlers.

A socket that outlives the daemon loses no request: its connections serve one request each, so that none is sent on one
that is just being closed, and a stop answers all connections that it has accepted. The others wait in the queue.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from starlette.types import ASGIApp

from netplug.frontends.accept import accept
from netplug.frontends.connections import Connections
from netplug.frontends.lean_uvicorn import uvicorn
from netplug.tasks.uncancellable import uncancellable

KEEP_ALIVE_S = 7 * 86_400
"""dockerd keeps connections for ever, and Go repeats a POST only if it could write nothing of it."""
GRACE_S = 8
"""What requests may still take when the daemon stops; less than the 10 s after which much that stops things kills."""
CANCEL_S = 2.0
"""What cancelled ones may take to undo what they did."""
_ONE_REQUEST = [(b"connection", b"close")]


def serving(app: ASGIApp, sock: socket.socket) -> AbstractAsyncContextManager[None]:
    """Serve one app; see `serving_all`."""
    return serving_all((app, sock))


@asynccontextmanager
async def serving_all(
    *apps: tuple[ASGIApp, socket.socket],
    protocol: type[asyncio.Protocol] | None = None,
    one_request: bool = False,
    most: int = 0,
) -> AsyncIterator[None]:
    """Serve each app on its listening socket during the block. Then finish requests that have begun, and close.

    `protocol`: of HTTP; by default one that answers who has just connected before it closes. `one_request`: each
    connection serves one request. `most`: connections of a socket at a time.

    The files of the sockets are the caller's. This is uvicorn without its signal handlers, without its ten ticks a
    second, which serve the Date header and the counting of requests only, and without its way to accept.
    """
    servers = [(_server(app, protocol), sock) for app, sock in apps]
    accepting = []
    try:
        for server, sock in servers:
            await server.startup(sockets=[])
            server.server_state.default_headers = _ONE_REQUEST if one_request else []
            sock.setblocking(False)
            connections = Connections(most)
            take = _taking(server, connections)
            accepting.append(asyncio.ensure_future(accept(sock, take, connections.make_room)))
        yield
    finally:
        for task in accepting:
            task.cancel()
        await uncancellable(_stop([(server, sock) for server, sock in servers if server.started], accepting))


def _taking(server: uvicorn.Server, connections: Connections) -> Callable[[socket.socket], Awaitable[None]]:
    """Return what serves a connection."""
    from netplug.frontends.patient import plain  # noqa: PLC0415 - after the lean import of uvicorn

    config, loop = server.config, asyncio.get_running_loop()
    render = getattr(getattr(config.app, "state", None), "render", plain)

    def protocol() -> asyncio.Protocol:
        state = {"server_state": server.server_state, "app_state": server.lifespan.state}
        return config.http_protocol_class(config=config, connections=connections, render=render, **state)  # type: ignore[call-arg]

    async def take(connection: socket.socket) -> None:
        await loop.connect_accepted_socket(protocol, connection)

    return take


def _server(app: ASGIApp, protocol: type[asyncio.Protocol] | None) -> uvicorn.Server:
    from netplug.frontends.last_answers import AnsweringProtocol  # noqa: PLC0415 - after the lean import of uvicorn

    config = uvicorn.Config(
        app,
        access_log=False,
        date_header=False,
        http=protocol or AnsweringProtocol,  # httptools saves 0.07 ms of 0.4 ms a request: not worth a dependency
        lifespan="off",
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        ws="none",
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    return server


async def _stop(
    servers: Sequence[tuple[uvicorn.Server, socket.socket]], accepting: Sequence[asyncio.Future[None]]
) -> None:
    await asyncio.gather(*accepting, return_exceptions=True)
    await asyncio.gather(*(server.shutdown(sockets=[sock]) for server, sock in servers))
    if tasks := [task for server, _ in servers for task in server.server_state.tasks]:
        await asyncio.wait(tasks, timeout=CANCEL_S)
