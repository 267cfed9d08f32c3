"""Wraps the routes of an HTTP front end: one form for all errors, a limit on bodies, request ids.

A request runs to its end even if its connection is closed: half a `CreateEndpoint` is worse than one that nobody waits
for. It is plain ASGI, since Starlette's `BaseHTTPMiddleware` takes longer than a whole request here.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from netplug.engine.requests import Requests
from netplug.errors import Reportable
from netplug.errors.validation import wrong
from netplug.log import LOG
from netplug.store.api import StoreError
from netplug.tasks.request import Request as Asked
from netplug.tasks.request import current
from netplug.tasks.uncancellable import uncancellable

log = structlog.get_logger(__name__)

MAX_BODY = 8 << 20
"""Bytes. Docker's largest request, of a container that publishes all ports that there are, is a little smaller."""


LARGE = 128 << 10
"""Bytes from which on a body is large."""
LARGE_AT_A_TIME = 4
"""Else many clients with large bodies, all but whole, would take all memory."""
FEW, MANY = 20_000, 1_000_000
"""JSON values of a body; the many in one that lists ports. 8 MB of `[]` are three million: to say what is wrong with
each took gigabytes, and many seconds in which nobody else was answered."""
_VERSIONS = frozenset({"1.0", "1.1"})


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that failed, in one line.

    `kind`: as of `NetplugError`, or "empty" (no body), "unknown" (no such path or method), "too_large" (the body),
    "malformed" (no request of HTTP), "slow" (its end does not come).
    """

    kind: str
    text: str


Render = Callable[[Failure], Response]
"""Writes a failure as the front end's protocol wants it."""


def guard(app: FastAPI, render: Render, requests: Requests, asker: str, *, many: Collection[str] = frozenset()) -> None:
    """Render all failures of an app by `render`, bind request ids, and refuse bodies that are too large.

    `requests`: counts them, as `asker`'s. `many`: paths of requests that may list ports.
    """

    def failed(failure: Failure) -> Response:
        current().fail(failure.kind, failure.text)
        return render(failure)

    async def ill_formed(_: Request, exc: Exception) -> Response:
        errors: Sequence[Mapping[str, Any]] = exc.errors() if isinstance(exc, RequestValidationError) else ()
        failure = _ill_formed(errors[0])
        log.info("request.refused", kind=failure.kind, error=failure.text)
        return failed(failure)

    async def refused(request: Request, exc: Exception) -> Response:
        if isinstance(exc, HTTPException) and exc.detail == _TOO_MANY:
            most = MANY if request.scope["path"] in many else FEW
            return failed(Failure("too_large", f"the body has more than {most} values"))
        return failed(_refused(request, exc.status_code if isinstance(exc, HTTPException) else 0))

    app.state.render = _written(render)
    app.add_exception_handler(RequestValidationError, ill_formed)
    app.add_exception_handler(HTTPException, refused)
    app.add_middleware(_Guard, render=failed, requests=requests, asker=asker, many=many)


def _written(render: Render) -> Callable[[Failure], tuple[bytes, str]]:
    """Return what renders a failure for a connection whose request does not reach the app."""

    def written(failure: Failure) -> tuple[bytes, str]:
        response = render(failure)
        return bytes(response.body), response.headers["content-type"]

    return written


class _Guard:
    def __init__(self, app: ASGIApp, render: Render, requests: Requests, asker: str, many: Collection[str]) -> None:
        self._app = app
        self._render = render
        self._requests = requests
        self._asker = asker
        self._many = many
        self._large = asyncio.Semaphore(LARGE_AT_A_TIME)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._requests.answering(self._asker, _verb(scope["method"], scope["path"])) as asked:
            asked.caller = _caller(scope)
            await uncancellable(self._answer(asked, scope, receive, send))

    async def _answer(self, asked: Asked, scope: Scope, receive: Receive, send: Send) -> None:
        if failure := _unreadable(scope):
            response = self._render(failure)
            self._count(asked, scope)
            response.headers["connection"] = "close"  # else the server would read it all
            await response(scope, receive, send)
            return
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            if not started:
                started = True
                self._count(asked, scope)
            await send(message)

        try:
            async with AsyncExitStack() as held:
                await self._app(
                    scope, _limited(receive, held, self._large, MANY if scope["path"] in self._many else FEW), noting
                )
        except Exception as exc:  # noqa: BLE001 - a front end answers here
            failure = failure_of(exc, asked.id)
            if not started:
                response = self._render(failure)
                self._count(asked, scope)
                await response(scope, receive, send)

    def _count(self, asked: Asked, scope: Scope) -> None:
        asked.label = _label(scope)
        self._requests.answered(asked)


def failure_of(exc: Exception, request_id: str) -> Failure:
    """Return the failure in words for the caller, and log what the caller cannot repair."""
    if isinstance(exc, Reportable) and exc.kind != "internal":
        text = _line(str(exc))
        log.info("request.refused", kind=exc.kind, error=text)
        return Failure(exc.kind, text)
    if isinstance(exc, StoreError):
        text = _line(f"store: {exc}")
        log.warning("request.failed", error=text)
        return Failure("unavailable", text)
    log.error("request.failed", error=str(exc), exc_info=exc)
    what = _line(str(exc)) if isinstance(exc, Reportable) else "internal error"
    return Failure("internal", f"{what} (id {request_id}: see {LOG})")


_TOO_MANY = "too many values"
_TOO_LARGE = Failure("too_large", f"the request is larger than {MAX_BODY} bytes")


def _caller(scope: Scope) -> int:
    """Return the process id of the client of a Unix socket, as `AnsweringProtocol` notes it; 0: unknown."""
    host, number = scope.get("client") or ("?", 0)
    return 0 if host else int(number)


def _verb(method: str, path: str) -> str:
    """Return what is asked for: a path alone is called by POST, as Docker does."""
    return path[1:] if method == "POST" and not path.startswith("/v1/") else f"{method} {path}"


def _label(scope: Scope) -> str:
    """Return the verb without ids; one word for all that there is not."""
    path = getattr(scope.get("route"), "path", "")
    return _verb(scope["method"], path) if path else "unknown"


def _unreadable(scope: Scope) -> Failure | None:
    """Return why a request is not read."""
    names = {name for name, _ in scope["headers"]}
    if {b"content-length", b"transfer-encoding"} <= names:
        return Failure("malformed", "the request has both Content-Length and Transfer-Encoding: where does it end?")
    if scope["http_version"] not in _VERSIONS:
        return Failure("malformed", f"HTTP/{scope['http_version']} is not spoken here, HTTP/1.1 is")
    return _TOO_LARGE if _length(scope) > MAX_BODY else None


def _length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() and len(value) < 20 else MAX_BODY + 1
    return 0


def _limited(receive: Receive, held: AsyncExitStack, large: asyncio.Semaphore, most: int) -> Receive:
    """Limit a body that comes in chunks, without a length, and the JSON values in it.

    Large ones wait for each other until `held` ends.
    """
    size, values, nested, waited = 0, 0, 0, False

    async def counting() -> Message:
        nonlocal size, values, nested, waited
        message = await receive()
        body = message.get("body", b"")
        size += len(body)
        values += body.count(b",")
        nested += body.count(b"[") + body.count(b"{")
        if values > most or nested > MANY:
            raise HTTPException(413, _TOO_MANY)
        if size > MAX_BODY:
            raise HTTPException(413)
        if size > LARGE and not waited:
            waited = True
            await held.enter_async_context(large)
        return message

    return counting


def _refused(request: Request, status: int) -> Failure:
    method = request.scope["path"].removeprefix("/")[:80]
    if status == 404:
        return Failure("unknown", f"there is no method {method!r}")
    if status == 405:
        return Failure("unknown", f"method {method!r} is not called by {request.method[:10]}")
    if status == 413:
        return _TOO_LARGE
    return Failure("invalid", "the body is not JSON")


def _ill_formed(error: Mapping[str, Any]) -> Failure:
    """Return pydantic's first error in plain words."""
    path = [str(part) for part in error["loc"][1:]]
    if error["type"] == "json_invalid":
        return Failure("invalid", f"the body is not JSON (at character {path[0] if path else 0})")
    if not path and error["type"] == "missing":
        return Failure("empty", "the body is empty")
    where = f"field {'.'.join(path)[:80]!r}" if path else "the body"
    return Failure("invalid", _line(f"{where} {wrong(error)}"))


def _line(text: str) -> str:
    return " ".join(text.split())


__all__ = ["Failure", "Render", "failure_of", "guard"]
