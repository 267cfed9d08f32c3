"""The app of `--http`: the page, the metrics, and some of the REST API; all of it to read, nothing to change.

It is plain ASGI: no request but GET, and no path but those listed here, reaches the REST API. Each answer says what a
browser may do with it (Content-Security-Policy), and that no other site may.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from typing import TypeAlias

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from netplug.insight.http_access import Access, headers_of

Metrics: TypeAlias = Callable[[str], Awaitable[tuple[bytes, str]]]
"""Returns what Prometheus reads, and its media type. It is given the media types that Prometheus accepts."""

READABLE = frozenset(
    {
        "/v1/version",
        "/v1/graph",
        "/v1/hosts",
        "/v1/networks",
        "/v1/endpoints",
        "/v1/ipam",
        "/v1/dns",
        "/v1/dns/stats",
        "/v1/events",
        "/v1/traffic",
    }
)
"""Paths of the REST API that may be read."""
TRACES = frozenset({"/v1/trace"})
COMPARISONS = frozenset({"/v1/diff", "/v1/doctor"})
"""They read the whole kernel."""
STREAMS = frozenset({"/v1/events/stream"})
"""They last as long as their reader."""
LIMITS = {READABLE: 8, TRACES: 2, COMPARISONS: 2, STREAMS: 32}
"""Requests at a time. Others are told to come back, so that the daemon's own work goes on."""

_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}
_OWN = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]


class PageApp:
    """The app. `api`: the REST API; `metrics`: None if there are none."""

    def __init__(self, api: ASGIApp, access: Access, metrics: Metrics | None = None) -> None:
        self._api = api
        self._access = access
        self._metrics = metrics
        self._files: Mapping[str, tuple[str, bytes]] = {}
        self._running = dict.fromkeys(LIMITS, 0)
        self._ending = asyncio.Event()

    def end(self) -> None:
        """End the streams, which would last as long as their readers."""
        self._ending.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] != "GET":
            await answer(send, 405, "only GET is answered here", {"allow": "GET"})
        elif cookie := self._access.admitted(scope):
            await answer(send, 303, "", {"location": "/", "set-cookie": cookie})
        elif refusal := self._access.refusal(scope):
            more = {"www-authenticate": "Bearer"} if refusal.status == 401 else {}
            await answer(send, refusal.status, refusal.text, more)
        else:
            await self._route(scope, receive, send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if listed := next((paths for paths in LIMITS if path in paths), None):
            await self._ask(listed, scope, receive, send)
        elif path == "/metrics" and self._metrics is not None:
            text, kind = await self._metrics(headers_of(scope).get("accept", ""))
            await answer(send, 200, text, {"content-type": kind})
        elif found := (await self._static()).get(path):
            await answer(send, 200, found[1], {"content-type": found[0]})
        else:
            await answer(send, 404, "there is no such page")

    async def _ask(self, kind: frozenset[str], scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request to the REST API, without its body."""
        if self._running[kind] >= LIMITS[kind]:
            await answer(send, 503, "too many requests at a time", {"retry-after": "1"})
            return
        self._running[kind] += 1
        try:
            await self._api(scope, self._until_end(receive), _with_headers(send))
        finally:
            self._running[kind] -= 1

    def _until_end(self, receive: Receive) -> Receive:
        asked = False

        async def receiving() -> Message:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": b"", "more_body": False}
            ending = asyncio.ensure_future(self._ending.wait())
            gone = asyncio.ensure_future(_disconnect(receive))
            try:
                await asyncio.wait((ending, gone), return_when=asyncio.FIRST_COMPLETED)
            finally:
                ending.cancel()
                gone.cancel()
            return {"type": "http.disconnect"}

        return receiving

    async def _static(self) -> Mapping[str, tuple[str, bytes]]:
        if not self._files:
            self._files = await asyncio.to_thread(static_files)
        return self._files


def static_files() -> dict[str, tuple[str, bytes]]:
    """Return the files of the page: path → type and content. It blocks."""
    found = {}
    for file in resources.files("netplug.insight").joinpath("page").iterdir():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind:
            path = "/" if file.name == "index.html" else f"/page/{file.name}"
            found[path] = (f"{kind}; charset=utf-8", file.read_bytes())
    return found


async def answer(send: Send, status: int, content: str | bytes, headers: Mapping[str, str] | None = None) -> None:
    """Answer a request, by default with text."""
    body = content if isinstance(content, bytes) else f"{content}\n".encode() if content else b""
    given = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(body)), **(headers or {})}
    pairs = [(name.encode(), value.encode()) for name, value in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": [*_OWN, *pairs]})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            ours = {name for name, _ in _OWN}
            kept = [pair for pair in message.get("headers", ()) if pair[0].lower() not in ours]
            message = {**message, "headers": [*kept, *_OWN]}
        await send(message)

    return sending


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
