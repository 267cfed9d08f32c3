"""etcd's v3 API over its JSON gateway: endpoints, TLS, tokens, deadlines. This module knows nothing of records.

Why not gRPC: the gateway needs no compiled dependency but aiohttp, which netplug uses anyway. It costs 0.1 ms per call.
Bodies are the messages of etcd's `rpc.proto` in JSON: bytes in base64, 64-bit numbers as strings, zeros left out.

Each request has `hasleader` set (etcd's WithRequireLeader), so a member without a leader refuses it. Otherwise a member
that is partitioned from the others would serve a watch without events. A hung server neither answers nor closes
connections, while its kernel still accepts new ones; hence the time limit for each attempt.
"""

import asyncio
import contextlib
import io
import itertools
import json
import socket
import ssl
import struct
import weakref
from collections.abc import AsyncIterator, Callable, Iterator

import structlog

from netplug.lean_aiohttp import aiohttp
from netplug.tasks.latency import Latencies

from .access import EtcdAccess
from .api import StoreError, Unreachable
from .etcd_errors import (
    CLOSED,
    Answer,
    AttemptError,
    attempt_error,
    error_for,
    error_of,
    is_stale,
    read_answer,
    reason_of,
)

log = structlog.get_logger(__name__)

DEADLINE_S = 6.0  # for a call with all attempts: longer than one attempt at a hung server and an election
ATTEMPT_S = 2.0  # an answer takes 1 ms, under load 100 ms; a leader election up to 2 s
_BACKOFF_S = (0.05, 0.1, 0.2, 0.4)  # after each round over all endpoints
_LARGE_BYTES = 256 * 1024
_HEADERS = {"Grpc-Metadata-hasleader": "true", "Content-Type": "application/json"}
_SOCKET_OPTIONS = (
    # Detects within 11 s that the server lost power or its cable, also for a silent watch.
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 10_000),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    # Closes with a reset: the kernel must not retransmit a request after its caller gave up or was killed.
    (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)),
)


class Gateway:
    """Connections to the endpoints of one etcd. Created by `open`."""

    def __init__(self, access: EtcdAccess, tls: ssl.SSLContext | bool, deadline_s: float, attempt_s: float) -> None:
        self.access = access
        self.times = Latencies()
        self.attempt_s = attempt_s
        self._tls_context = tls
        self._session = self._new_session()
        self._deadline_s = deadline_s
        self._urls = access.urls
        self._at = 0
        self._token: str | None = None
        self._authenticating = asyncio.Lock()
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._waiting: set[asyncio.Timeout] = set()
        self._streams: weakref.WeakSet[aiohttp.ClientResponse] = weakref.WeakSet()
        self.closed = False

    @classmethod
    async def open(
        cls, access: EtcdAccess, *, deadline_s: float = DEADLINE_S, attempt_s: float = ATTEMPT_S
    ) -> "Gateway":
        """Prepare the connections; the first call opens one.

        Raises:
            StoreError: a TLS file cannot be read, or certificate and key do not match.
        """
        context = await asyncio.to_thread(_tls, access) if access.ca else False
        return cls(access, context, deadline_s, attempt_s)

    def _new_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(ssl=self._tls_context, limit=0, socket_factory=_socket)
        return aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=None), headers=_HEADERS, auto_decompress=False
        )

    async def reconnect(self) -> None:
        """Replace all connections, as after a change of this host's address. Pending calls retry on a new one."""
        self.check_open()
        before, self._session = self._session, self._new_session()
        for stream in self._streams:
            stream.close()
        await before.close()

    async def call(
        self, path: str, body: Answer, lost: Callable[[], Answer] | None = None, *, deadline_s: float | None = None
    ) -> Answer:
        """Send a request to one endpoint after another until one answers, and return the answer.

        Args:
            path: such as "/v3/kv/range".
            body: the request. It may be executed twice.
            lost: called after each attempt that may be executed, now or later; returns the body for the next attempt.
                None: the request is idempotent.
            deadline_s: for all attempts; None: as given to `open`.

        Raises:
            Refused: the answer is an error.
            Unreachable: no endpoint answered in time; the text names each endpoint with its reason.
            StoreError: the store is closed.
        """
        self.check_open()
        with self._counted(), self.times.timed(path.removeprefix("/v3/").removeprefix("kv/")):
            loop = asyncio.get_running_loop()
            deadline = loop.time() + (self._deadline_s if deadline_s is None else deadline_s)
            errors: dict[str, AttemptError] = {}
            data = json.dumps(body).encode()
            for attempt in itertools.count(1):
                url = self.url
                try:
                    return await self.once(url, path, data, deadline - loop.time())
                except AttemptError as error:
                    if url not in errors or loop.time() < deadline:  # the last attempt may have had too little time
                        errors[url] = error
                    if error.sent and lost is not None:
                        data = json.dumps(lost()).encode()
                    self.failed(url)
                rounds, rest = divmod(attempt, len(self._urls))
                pause_s = 0.0 if rest else _BACKOFF_S[min(rounds, len(_BACKOFF_S)) - 1]
                permanent = all(url in errors and errors[url].permanent for url in self._urls)
                if permanent or loop.time() + pause_s >= deadline:
                    break
                await asyncio.sleep(pause_s)
            unknown = lost is not None and any(error.sent for error in errors.values())
            raise Unreachable(self._unreachable(errors, outcome_unknown=unknown))

    async def once(self, url: str, path: str, data: bytes, limit_s: float | None = None) -> Answer:
        """Send a request to one endpoint.

        Raises:
            AttemptError: the attempt failed; another endpoint may succeed.
            Refused: the answer is an error.
        """
        limit_s = self.attempt_s if limit_s is None else min(limit_s, self.attempt_s)
        code, text = 0, ""
        async with self._attempt(limit_s):
            for may_log_in in (True, False):
                token = await self._authenticated(url)
                async with self._session.post(url + path, data=_body(data), headers=_bearer(token)) as response:
                    answer = read_answer(response.status, await response.read())
                code, text = error_of(answer)
                if not text:
                    return answer
                if not (may_log_in and self.access.user and is_stale(code, text)):
                    break
                self.forget_token(token)
        raise error_for(code, text, self.access)

    async def stream(self, url: str, path: str, body: Answer) -> aiohttp.ClientResponse:
        """Send a request with a streamed answer, and return the response once its headers are read.

        The caller closes the response.

        Raises:
            AttemptError, Refused: as for `once`.
        """
        async with self._attempt(self.attempt_s):
            token = await self._authenticated(url)
            response = await self._session.post(url + path, json=body, headers=_bearer(token))
            if response.status == 200:
                self._streams.add(response)
                return response
            try:
                code, text = error_of(read_answer(response.status, await response.read()))
            finally:
                response.close()
            raise error_for(code, text, self.access)

    @property
    def url(self) -> str:
        """The current endpoint."""
        return self._urls[self._at]

    def failed(self, url: str) -> None:
        """Switch from endpoint `url` to the next one. Concurrent calls that failed at the same one switch once."""
        if url == self.url:
            self._at = (self._at + 1) % len(self._urls)

    def forget_token(self, token: str | None = None) -> None:
        """Make the next request log in again; with `token`, only if that is still the current one."""
        if token in {None, self._token}:
            self._token = None

    def check_open(self) -> None:
        """Raise a StoreError if the store is closed."""
        if self.closed:
            raise StoreError("the store is closed")

    @contextlib.asynccontextmanager
    async def until_closed(self) -> AsyncIterator[None]:
        """Interrupt the block with a TimeoutError when `close` is called; `close` waits for its end."""
        async with asyncio.timeout(None) as scope:
            self._waiting.add(scope)
            try:
                with self._counted():
                    yield
            finally:
                self._waiting.discard(scope)

    async def close(self) -> None:
        """End the watches, wait for pending calls, and close the connections."""
        if self.closed:
            return
        self.closed = True
        for scope in self._waiting:
            scope.reschedule(asyncio.get_running_loop().time())
        await self._idle.wait()
        for stream in self._streams:
            stream.close()
        await self._session.close()

    @contextlib.asynccontextmanager
    async def _attempt(self, limit_s: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(limit_s):
                yield
        except TimeoutError as exc:
            raise AttemptError(f"no answer in {limit_s:.3g} s") from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise attempt_error(exc) from exc

    async def _authenticated(self, url: str) -> str:
        """Return the token, which all endpoints accept; empty without authentication."""
        if not self.access.user:
            return ""
        async with self._authenticating:
            if self._token is None:
                self._token = await self._authenticate(url)
            return self._token

    async def _authenticate(self, url: str) -> str:
        body = {"name": self.access.user, "password": self.access.password}
        async with self._session.post(f"{url}/v3/auth/authenticate", json=body) as response:
            answer = read_answer(response.status, await response.read())
        code, text = error_of(answer)
        if "authentication is not enabled" in text:
            log.warning("store.authentication_disabled", store=str(self.access))
            return ""
        if text:
            raise error_for(code, text, self.access)
        return str(answer["token"])

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    def _unreachable(self, errors: dict[str, AttemptError], *, outcome_unknown: bool) -> str:
        reasons = "; ".join(f"{url}: {error}" for url, error in errors.items())
        hint = "check that etcd runs there and has a quorum, and the addresses in --store"
        if any(str(error) == CLOSED for error in errors.values()):  # TLS sent to plain HTTP, or the reverse
            hint += "; if it has no TLS, remove --etcd-ca" if self.access.ca else "; if it has TLS, set --etcd-ca"
        hint = "" if any(error.permanent for error in errors.values()) else f" ({hint})"
        unknown = "; whether the change was made is not known" if outcome_unknown else ""
        return f"etcd store {self.access} cannot be reached: {reasons}{hint}{unknown}"


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": token} if token else {}


def _body(data: bytes) -> bytes | io.BytesIO:
    """Return a large body as a stream, which is sent in parts, so it does not block the loop."""
    return data if len(data) < _LARGE_BYTES else io.BytesIO(data)


def _socket(info: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = info
    sock = socket.socket(family, kind, protocol)
    for level, option, value in _SOCKET_OPTIONS:
        sock.setsockopt(level, option, value)
    return sock


def _tls(access: EtcdAccess) -> ssl.SSLContext:
    """Load the TLS files."""
    try:
        context = ssl.create_default_context(cafile=access.ca)
    except OSError as exc:
        raise StoreError(f"etcd ca file {access.ca} cannot be read: {_file_reason(exc)}") from exc
    if access.cert:
        try:
            # An empty password keeps OpenSSL from asking for one on the terminal.
            context.load_cert_chain(access.cert, access.key, password="")
        except OSError as exc:
            raise StoreError(
                f"etcd certificate {access.cert} with key {access.key} cannot be read: {_file_reason(exc)}"
            ) from exc
    return context


def _file_reason(exc: OSError) -> str:
    if isinstance(exc, ssl.SSLError):
        name = (exc.reason or "").lower().replace("_", " ")
        return f"not a PEM file that can be used ({name or 'it has no certificate or key'})"
    return reason_of(exc)
