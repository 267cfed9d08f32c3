"""Accepts connections. If no file descriptor is left, they wait.

asyncio's own servers report such a failure once for each connection that might be waiting, 2 048 times a second.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import structlog

from netplug.tasks.uncancellable import uncancellable

log = structlog.get_logger(__name__)

RETRY_S = 0.2


async def accept(
    sock: socket.socket, take: Callable[[socket.socket], Awaitable[None]], make_room: Callable[[], object] = bool
) -> None:
    """Accept connections until cancelled. Each is non-blocking, and belongs to the function that takes it.

    None is lost by a cancellation, as `loop.sock_accept` may lose one: it is taken, or it stays in the queue of the
    socket, where the next daemon finds it. `make_room`: closes one that waits, if no file descriptor is left.
    """
    waiting = False
    while True:
        try:
            connection, _ = sock.accept()
        except BlockingIOError:
            await _readable(sock)
            continue
        except OSError as exc:
            if not waiting:
                log.warning("connections.waiting", error=exc.strerror)
            waiting = True
            make_room()
            await asyncio.sleep(RETRY_S)
            continue
        waiting = False
        connection.setblocking(False)
        await uncancellable(take(connection))


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sock, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock)
