"""Serves an ASGI app over TCP, to whoever connects: few connections, and none that is slow for long.

A Unix socket of the daemon has readers of its own; a port has strangers. They may hold a connection while they ask or
read, no longer, and what they write wrongly is no line of the log.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from netplug.errors import NetplugError
from netplug.frontends.serving import serving_all

CONNECTIONS = 96
"""At a time: a browser opens six."""
PATIENCE_S = 10.0
"""How long a connection may lack a whole request, or not read an answer."""

_HINTS = {
    errno.EADDRINUSE: "ss -ltnp 'sport = :{port}' shows who does",
    errno.EADDRNOTAVAIL: "ip address shows those of this host",
}

_quiet = logging.getLogger("netplug.tcp.protocol")
_quiet.setLevel(logging.CRITICAL)


class PatientProtocol(H11Protocol):
    """HTTP/1.1 with a limit on connections and a deadline for each request and each reader."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _quiet
        self._check: asyncio.TimerHandle | None = None
        self._seen: object = self  # the request that was over, or not read, at the last look; itself: none

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
        else:
            self._again()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._check:
            self._check.cancel()
        super().connection_lost(exc)

    def _again(self) -> None:
        self._check = self.loop.call_later(PATIENCE_S / 2, self._look)

    def _look(self) -> None:
        """Close a connection that was in the same state at the last look."""
        cycle: RequestResponseCycle | None = self.cycle
        waiting = cycle is None or cycle.response_complete or self.flow.write_paused
        if waiting and self._seen is cycle:
            if self.transport.get_write_buffer_size():
                self.transport.abort()
            else:
                self.transport.close()
            return
        self._seen = cycle if waiting else self
        self._again()


@asynccontextmanager
async def serving_tcp(app: ASGIApp, address: IPv4Address | IPv6Address, port: int) -> AsyncIterator[None]:
    """Serve an app at an address of this network namespace during the block.

    Raises:
        NetplugError: the port is in use, or the address is not of this host.
    """
    with _listening(address, port) as sock:
        async with serving_all((app, sock), protocol=PatientProtocol):
            yield


def _listening(address: IPv4Address | IPv6Address, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((str(address), port))
        sock.listen()
    except OSError as exc:
        sock.close()
        where = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
        reason = (exc.strerror or str(exc)).lower()
        hint = _HINTS.get(exc.errno or 0, "").format(port=port)
        raise NetplugError("unavailable", f"cannot listen on {where}: {reason}", hint=hint) from exc
    return sock
