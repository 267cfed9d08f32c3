"""HTTP/1.1 that answers who has just connected, also while the server stops.

A client that has connected has written its request, or is about to. uvicorn closes a connection on which it has not
read one yet, which the client takes for a failure of its request.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import RequestResponseCycle

from netplug.frontends.connections import peer_of
from netplug.frontends.patient import PatientProtocol

PATIENCE_S = 1.0
"""How long the server waits at its stop for the request of a connection. Clients send it at once."""


class AnsweringProtocol(PatientProtocol):
    """The protocol of Unix sockets. A scope names the process that has connected as its client: `("", pid)`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._last: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Note which process has connected."""
        super().connection_made(transport)
        if self.client is None:
            self.client = "", peer_of(transport.get_extra_info("socket"))

    def shutdown(self) -> None:
        """Close the connection after the answer to its request; without a request, after a moment."""
        if not self._asked():
            self._last = self.loop.call_later(PATIENCE_S, self._give_up)
        else:
            super().shutdown()

    def _asked(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None

    def _give_up(self) -> None:
        if not self._asked() and not self.transport.is_closing():
            super().shutdown()

    def on_response_complete(self) -> None:
        """Close the connection if the server stops meanwhile."""
        super().on_response_complete()
        if self._last and not self.transport.is_closing():
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self._last:
            self._last.cancel()
        super().connection_lost(exc)
