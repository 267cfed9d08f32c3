"""Serves an ASGI app over TCP, to whoever connects: few connections, and none that is slow for long.

A Unix socket of the daemon has readers of its own; a port has strangers. They may hold a connection while they ask or
read, no longer, and what they write wrongly is no line of the log.
"""

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import structlog
from starlette.types import ASGIApp

from netplug.errors import NetplugError
from netplug.frontends.patient import PatientProtocol
from netplug.frontends.serving import serving_all

log = structlog.get_logger(__name__)

CONNECTIONS = 96
"""At a time: a browser opens six. A further one takes the place of one that asks for nothing."""
PATIENCE_S = 10.0
"""How long a connection may lack a whole request, or not read an answer."""

BACKLOG = 1024
"""Who connects while many do: with the usual 128 the kernel drops them, and they ask again a second later."""

_HINTS = {
    errno.EADDRINUSE: "ss -ltnp 'sport = :{port}' shows who does",
    errno.EADDRNOTAVAIL: "ip address shows those of this host",
}


class TcpProtocol(PatientProtocol):
    """HTTP/1.1 for strangers: a connection asks, reads and asks again soon, or is closed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.timeout_keep_alive = PATIENCE_S  # type: ignore[assignment]

    @property
    def request_s(self) -> float:
        return PATIENCE_S

    @property
    def read_s(self) -> float:
        return PATIENCE_S

    def _asks(self) -> bool:
        """Return whether a request is due: on a new connection too."""
        return not self.served or super()._asks()

    def _too_slow(self) -> None:
        if self.served or self.conn.trailing_data[0]:
            super()._too_slow()
        else:
            self.transport.close()

    def _note(self, event: str, **words: object) -> None:
        log.debug(event, **words, peer=self.peer)


@asynccontextmanager
async def serving_tcp(app: ASGIApp, address: IPv4Address | IPv6Address, port: int) -> AsyncIterator[None]:
    """Serve an app at an address of this network namespace during the block.

    Raises:
        NetplugError: the port is in use, or the address is not of this host.
    """
    with _listening(address, port) as sock:
        async with serving_all((app, sock), protocol=TcpProtocol, most=CONNECTIONS):
            yield


def _listening(address: IPv4Address | IPv6Address, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((str(address), port))
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        where = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
        reason = (exc.strerror or str(exc)).lower()
        hint = _HINTS.get(exc.errno or 0, "").format(port=port)
        raise NetplugError("unavailable", f"cannot listen on {where}: {reason}", hint=hint) from exc
    return sock
