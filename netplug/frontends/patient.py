"""HTTP/1.1 with deadlines, a limit on connections, and a cause for each refusal, on uvicorn's protocol.

uvicorn waits for the rest of a request, and for the reader of an answer, for ever; it logs what is no HTTP without
saying why. Here a request that has begun must come, and an answer must be read, within a deadline. A connection that
rests between requests has none on Unix sockets: dockerd's rest for hours, and Go repeats a POST only if it could write
nothing of it.
"""

import asyncio
import logging
import sys
from collections.abc import Callable, Hashable
from typing import Any

import h11
import structlog
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol, RequestResponseCycle

from netplug.frontends.connections import Connections, peer_of
from netplug.frontends.http import Failure

log = structlog.get_logger(__name__)

REQUEST_S = 30.0
"""What a request may take, from its first byte to its last. Clients on this host send it at once."""
READ_S = 30.0
"""How long a client may read nothing of an answer that has no room in the socket's buffers: it may be a pager."""

Render = Callable[[Failure], tuple[bytes, str]]
"""Returns a failure as a body, and its media type."""

_quiet = logging.getLogger("netplug.http")
_quiet.setLevel(logging.ERROR)


class PatientProtocol(H11Protocol):
    """uvicorn's protocol for a Unix socket, whose clients are this host's.

    `connections`: those of its socket. `render`: writes what is refused before it reaches the app.
    """

    def __init__(self, *args: Any, connections: Connections, render: Render, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _quiet
        self.peer: Hashable = None
        self._room = connections
        self._render = render
        self._asking = _Deadline(self.loop, self._too_slow)
        self._unread = _Deadline(self.loop, self._not_read)

    @property
    def request_s(self) -> float:
        """See `REQUEST_S`."""
        return REQUEST_S

    @property
    def read_s(self) -> float:
        """See `READ_S`."""
        return READ_S

    @property
    def waits(self) -> bool:
        """Whether it has no whole request that is being answered."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body

    @property
    def served(self) -> bool:
        """Whether it has had an answer, or gets one."""
        return self.cycle is not None

    def drop(self) -> None:
        """Close it at once."""
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.peer = self.client[0] if self.client else peer_of(transport.get_extra_info("socket"))
        if self._room.admit(self):
            self._watch_request()
        else:
            self._refuse(503, Failure("unavailable", "too many requests at a time"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._room.remove(self)
        self._asking.stop()
        self._unread.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._room.touch(self)
        super().data_received(data)
        self._watch_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_request()
        self._watch_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._unread.stop()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Say why what has come is no request. uvicorn calls it where it catches the error."""
        exc = sys.exc_info()[1]
        status = exc.error_status_hint if isinstance(exc, h11.RemoteProtocolError) else 400
        reason = str(exc or msg).partition(": bytearray")[0]  # without what has come
        words = f"this is no HTTP/1.1 request: {reason[:1].lower()}{reason[1:]}"
        self._refuse(status, Failure("malformed", " ".join(words.split())))

    def _should_upgrade(self) -> bool:
        """Never switch to another protocol (RFC 9110 §7.8). uvicorn asks once for each request.

        A request with two lengths is the last of its connection (RFC 9112 §6.1): where it ends is doubtful.
        """
        names = {name for name, _ in self.headers}
        if {b"content-length", b"transfer-encoding"} <= names and CLOSE_HEADER not in self.headers:
            self.headers.append(CLOSE_HEADER)
        return False

    def _asks(self) -> bool:
        """Return whether a request has begun and its end has not come."""
        state = self.conn.their_state
        return state is h11.SEND_BODY or (state is h11.IDLE and bool(self.conn.trailing_data[0]))

    def _watch_request(self) -> None:
        if self.transport.is_closing() or not self._asks():
            self._asking.stop()
        else:
            self._asking.start(self.request_s)

    def _too_slow(self) -> None:
        self._refuse(408, Failure("slow", f"the request has not come to its end in {self.request_s:g} s"))

    def _watch_reader(self) -> None:
        if self.transport.get_write_buffer_size():
            self._unread.start(self.read_s)

    def _not_read(self) -> None:
        if self.transport.get_write_buffer_size():
            self._note("connection.dropped", reason=f"an answer was not read in {self.read_s:g} s")
            self.transport.abort()

    def _note(self, event: str, **words: object) -> None:
        log.info(event, **words, peer=self.peer)

    def _refuse(self, status: int, failure: Failure) -> None:
        """Answer instead of the app, unless it has begun to, and close the connection."""
        self._note("request.refused", kind=failure.kind, error=failure.text)
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body, kind = self._render(failure)
            pairs = {"content-type": kind, "content-length": str(len(body)), "connection": "close"}
            response = h11.Response(
                status_code=status, headers=list(pairs.items()), reason=STATUS_PHRASES.get(status, b"")
            )
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()
        self._watch_reader()  # a transport closes when all is written


def plain(failure: Failure) -> tuple[bytes, str]:
    """Render a failure as text."""
    return f"{failure.text}\n".encode(), "text/plain; charset=utf-8"


class _Deadline:
    """A timer that runs, or not. `end`: called when it has run for a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, end: Callable[[], None]) -> None:
        self._loop = loop
        self._end = end
        self._timer: asyncio.TimerHandle | None = None

    def start(self, seconds: float) -> None:
        """Run, if it does not already."""
        self._timer = self._timer or self._loop.call_later(seconds, self._over)

    def stop(self) -> None:
        """Do not end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _over(self) -> None:
        self._timer = None
        self._end()


__all__ = ["PatientProtocol", "Render", "plain"]
