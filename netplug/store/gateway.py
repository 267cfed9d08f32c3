"""etcd v3 over its JSON gateway: endpoints, TLS, tokens, deadlines; no knowledge of records.

Why not gRPC: the gateway needs no compiled dependency but aiohttp, which is here anyway, and costs 0.1 ms a call.
Bodies are those of etcd's `rpc.proto` in JSON: bytes in base64, 64-bit numbers as strings, zero values absent.

Each request asks the server to refuse when it has no leader (`hasleader`, etcd's WithRequireLeader): a member that
is cut off from the others would else serve a silent watch. A hung server answers nothing and closes nothing (its
kernel does), hence a time limit on each attempt.
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

import aiohttp
import structlog

from .access import EtcdAccess
from .api import StoreError, Unreachable
from .etcd_errors import CLOSED, Answer, Trouble, error_of, fault, is_stale, read_answer, reason_of, trouble_of

log = structlog.get_logger(__name__)

DEADLINE_S = 6.0  # of a call with all its attempts: longer than an election (1 s by default) after a hung server
ATTEMPT_S = 2.0  # an answer takes 1 ms, under load 100 ms; an election up to 2 s
_BACKOFF_S = (0.05, 0.1, 0.2, 0.4)  # between rounds over all endpoints
_LARGE_BYTES = 256 * 1024
_HEADERS = {"Grpc-Metadata-hasleader": "true", "Content-Type": "application/json"}
_SOCKET_OPTIONS = (
    # A peer that has gone without a word (power, cable) is noticed within 11 s, also by a silent watch.
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 10_000),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    # Who has given up, or was killed, does not leave a request behind that the kernel sends once the cable is back.
    (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)),
)


class Gateway:
    """Connections to the endpoints of one etcd. Made by `open`."""

    def __init__(self, access: EtcdAccess, tls: ssl.SSLContext | bool, deadline_s: float, attempt_s: float) -> None:
        self.access = access
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
        """Prepare connections; none is made yet.

        Raises:
            StoreError: a TLS file cannot be read, or does not fit.
        """
        context = await asyncio.to_thread(_tls, access) if access.ca else False
        return cls(access, context, deadline_s, attempt_s)

    def _new_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(ssl=self._tls_context, limit=0, socket_factory=_socket)
        return aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=None), headers=_HEADERS, auto_decompress=False
        )

    async def reconnect(self) -> None:
        """Give up all connections, as after a change of this host's address: what waits on one goes on by a new one."""
        self.check_open()
        before, self._session = self._session, self._new_session()
        for stream in self._streams:
            stream.close()
        await before.close()

    async def call(
        self, path: str, body: Answer, lost: Callable[[], Answer] | None = None, *, deadline_s: float | None = None
    ) -> Answer:
        """Post a request until an endpoint answers, and return the answer.

        Args:
            path: such as "/v3/kv/range".
            body: the request, which may be done twice.
            lost: called after each attempt that may have been done or yet be done, and returns the request for the
                next one; None: it makes no difference.
            deadline_s: of all attempts; None: as at `open`.

        Raises:
            Refused: the answer is an error.
            Unreachable: no endpoint has answered in time; the text names each with its reason.
            StoreError: closed.
        """
        self.check_open()
        with self._counted():
            loop = asyncio.get_running_loop()
            deadline = loop.time() + (self._deadline_s if deadline_s is None else deadline_s)
            troubles: dict[str, Trouble] = {}
            data = json.dumps(body).encode()
            for attempt in itertools.count(1):
                url = self.url
                try:
                    return await self.once(url, path, data, deadline - loop.time())
                except Trouble as trouble:
                    if url not in troubles or loop.time() < deadline:  # the last attempt may have had no time
                        troubles[url] = trouble
                    if trouble.sent and lost is not None:
                        data = json.dumps(lost()).encode()
                    self.failed(url)
                rounds, rest = divmod(attempt, len(self._urls))
                pause_s = 0.0 if rest else _BACKOFF_S[min(rounds, len(_BACKOFF_S)) - 1]
                mendable = not all(url in troubles and troubles[url].lasting for url in self._urls)
                if not mendable or loop.time() + pause_s >= deadline:
                    break
                await asyncio.sleep(pause_s)
            doubt = lost is not None and any(trouble.sent for trouble in troubles.values())
            raise Unreachable(self._unreachable(troubles, doubt=doubt))

    async def once(self, url: str, path: str, data: bytes, limit_s: float | None = None) -> Answer:
        """Post a request to one endpoint.

        Raises:
            Trouble: it has not served the request.
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
        raise fault(code, text, self.access)

    async def stream(self, url: str, path: str, body: Answer) -> aiohttp.ClientResponse:
        """Post a request whose answer goes on, and return it with its headers read; the caller closes it.

        Raises:
            Trouble: as `once`.
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
            raise fault(code, text, self.access)

    @property
    def url(self) -> str:
        """The endpoint that is asked now."""
        return self._urls[self._at]

    def failed(self, url: str) -> None:
        """Ask the next endpoint from now on; several calls that have failed at one count once."""
        if url == self.url:
            self._at = (self._at + 1) % len(self._urls)

    def forget_token(self, token: str | None = None) -> None:
        """Log in anew at the next request; with a `token`, only if that is the one in use."""
        if token in {None, self._token}:
            self._token = None

    def check_open(self) -> None:
        """Raise a StoreError when closed."""
        if self.closed:
            raise StoreError("the store is closed")

    @contextlib.asynccontextmanager
    async def until_closed(self) -> AsyncIterator[None]:
        """Interrupt what is inside by a TimeoutError at `close`, which waits for it."""
        async with asyncio.timeout(None) as scope:
            self._waiting.add(scope)
            try:
                with self._counted():
                    yield
            finally:
                self._waiting.discard(scope)

    async def close(self) -> None:
        """End the streams, let the calls that are under way end, and close the connections."""
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
            raise Trouble(f"no answer in {limit_s:.3g} s") from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise trouble_of(exc) from exc

    async def _authenticated(self, url: str) -> str:
        """Return the token, empty when none is needed; it is valid at each endpoint."""
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
            log.warning("store.without_authentication", store=str(self.access))
            return ""
        if text:
            raise fault(code, text, self.access)
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

    def _unreachable(self, troubles: dict[str, Trouble], *, doubt: bool) -> str:
        reasons = "; ".join(f"{url}: {trouble}" for url, trouble in troubles.items())
        mend = "check that etcd runs there and has a quorum, and the addresses in --store"
        if any(str(trouble) == CLOSED for trouble in troubles.values()):  # all that a wrong protocol gets from etcd
            mend += "; without TLS there leave out --etcd-ca" if self.access.ca else "; with TLS there give --etcd-ca"
        mend = "" if any(trouble.lasting for trouble in troubles.values()) else f" ({mend})"
        unknown = "; whether the change was made is not known" if doubt else ""
        return f"etcd store {self.access} cannot be reached: {reasons}{mend}{unknown}"


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": token} if token else {}


def _body(data: bytes) -> bytes | io.BytesIO:
    """A large body is sent in parts, between which the loop does other things."""
    return data if len(data) < _LARGE_BYTES else io.BytesIO(data)


def _socket(info: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = info
    sock = socket.socket(family, kind, protocol)
    for level, option, value in _SOCKET_OPTIONS:
        sock.setsockopt(level, option, value)
    return sock


def _tls(access: EtcdAccess) -> ssl.SSLContext:
    """Read the TLS files."""
    try:
        context = ssl.create_default_context(cafile=access.ca)
    except OSError as exc:
        raise StoreError(f"etcd ca file {access.ca} cannot be read: {_file_reason(exc)}") from exc
    if access.cert:
        try:
            # With a password given, OpenSSL does not ask for one on the terminal.
            context.load_cert_chain(access.cert, access.key, password="")
        except OSError as exc:
            raise StoreError(
                f"etcd certificate {access.cert} with key {access.key} cannot be read: {_file_reason(exc)}"
            ) from exc
    return context


def _file_reason(exc: OSError) -> str:
    if isinstance(exc, ssl.SSLError):
        name = (exc.reason or "").lower().replace("_", " ")
        return f"not a PEM file that fits ({name or 'no certificate or key in it'})"
    return reason_of(exc)
