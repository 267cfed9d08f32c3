"""Accepts connections. If no file descriptor is left, they wait.

asyncio's own servers report such a failure once for each connection that might be waiting, 2 048 times a second.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger(__name__)

RETRY_S = 0.2


async def accept(sock: socket.socket, take: Callable[[socket.socket], Awaitable[None]]) -> None:
    """Accept connections until cancelled. Each is non-blocking, and belongs to the function that takes it."""
    loop = asyncio.get_running_loop()
    waiting = False
    while True:
        try:
            connection, _ = await loop.sock_accept(sock)
        except OSError as exc:
            if not waiting:
                log.warning("connections.waiting", error=exc.strerror)
            waiting = True
            await asyncio.sleep(RETRY_S)
            continue
        waiting = False
        await take(connection)
