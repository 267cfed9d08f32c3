"""A watch of etcd that outlives servers: it goes on at another endpoint from the revision that it has reached.

It reads when it is asked and holds no task, so that a slow reader is held back by TCP and costs no memory here.
Silence is ambiguous (nothing changes, or a hung server), so after some of it the watched endpoint has to answer a
linearizable read. An answer of an older revision than ours means that etcd has lost its data.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable

import aiohttp
import structlog

from .api import Compacted, Compare, Event
from .etcd_errors import DENIED, Trouble, error_of, fault, is_stale
from .etcd_records import Message, Records, b64, number, revision_of
from .gateway import Gateway

log = structlog.get_logger(__name__)

PROGRESS_S = 3.0  # of silence, then the endpoint is asked: one small read per host in that time
_BACKOFF_S = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
_PATH = "/v3/watch"
_RANGE = "/v3/kv/range"


class EtcdWatch:
    """Iterator over the events of a prefix after a revision; see `Store.watch`. It may be cancelled and asked again."""

    def __init__(
        self,
        gateway: Gateway,
        records: Records,
        prefix: str,
        revision: int,
        progress_s: float,
        anchor: Callable[[], Compare | None] | None = None,
    ) -> None:
        self._gateway = gateway
        self._records = records
        self._start, self._end = records.span(prefix)
        self._after = revision
        self._progress_s = progress_s
        self._events: deque[Event] = deque()
        self._response: aiohttp.ClientResponse | None = None
        self._url = ""
        self._rest = b""
        self._failures = 0
        self._logged_in_anew = False
        self._doubtful = False
        self._anchor = anchor

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        try:
            while not self._events:
                if self._gateway.closed:
                    raise StopAsyncIteration
                async with self._gateway.until_closed():
                    await self._step()
        except TimeoutError:
            self._drop()
            if not self._gateway.closed:
                raise
            raise StopAsyncIteration from None
        return self._events.popleft()

    def __del__(self) -> None:
        self._drop()

    async def _step(self) -> None:
        """Read what there is, or connect anew."""
        try:
            if self._response is None:
                await self._connect()
            for message in await self._messages():
                self._take(message)  # without a pause: a cancellation must not lose what has been read
            if self._doubtful:
                await self._check_progress()
                self._doubtful = False
        except Trouble as trouble:
            self._drop()
            self._gateway.failed(self._url)
            if self._failures == 0:
                log.warning("store.watch_lost", endpoint=self._url, reason=str(trouble), revision=self._after)
            self._failures += 1
            await asyncio.sleep(_BACKOFF_S[min(self._failures, len(_BACKOFF_S)) - 1])
        except BaseException as exc:
            if not isinstance(exc, asyncio.CancelledError):
                self._drop()
            raise

    async def _connect(self) -> None:
        self._url = self._gateway.url
        self._rest = b""
        request = {
            "key": b64(self._start),
            "range_end": b64(self._end),
            "start_revision": str(self._after + 1),
            "progress_notify": True,
        }
        self._response = await self._gateway.stream(self._url, _PATH, {"create_request": request})

    async def _messages(self) -> list[Message]:
        """Return the next messages: whole lines of JSON."""
        assert self._response is not None  # noqa: S101 - connected
        while True:
            try:
                async with asyncio.timeout(self._progress_s) as scope:
                    chunk = await self._response.content.readany()
                break
            except TimeoutError:
                if not scope.expired():
                    raise
                await self._check_progress()
            except (aiohttp.ClientError, OSError) as exc:
                raise Trouble("closed the watch") from exc
        if not chunk:
            raise Trouble("ended the watch")
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        try:
            return [json.loads(line) for line in lines if line]
        except ValueError as exc:
            raise Trouble("sends something else than json") from exc

    def _take(self, message: Message) -> None:
        code, text = error_of(message)
        if text:
            self._failed(code, text)
            return
        result = message.get("result", {})
        if result.get("canceled"):
            self._cancelled(result)
            return
        if result.get("created"):
            if self._failures:
                log.info("store.watch_resumed", endpoint=self._url, revision=self._after)
            self._failures = 0
            self._logged_in_anew = False
            # A member that lags behind, or one without its data; and one that came back may have older ones.
            self._doubtful = revision_of(result) < self._after or self._anchor is not None
            return
        events = [self._event(event) for event in result.get("events", ())]
        self._events.extend(event for event in events if event is not None)
        # A message has all events of its revisions. One without events tells how far nothing has happened.
        last = max((number(event["kv"], "mod_revision") for event in result.get("events", ())), default=0)
        self._after = max(self._after, last or revision_of(result))

    def _event(self, event: Message) -> Event | None:
        kv = event["kv"]
        if event.get("type") == "DELETE":
            try:
                return Event(self._records.name(kv), None, number(kv, "mod_revision"))
            except ValueError:
                return None
        record = self._records.readable(kv)
        return Event(record.key, record, record.revision) if record else None

    def _cancelled(self, result: Message) -> None:
        if compacted := number(result, "compact_revision"):
            raise Compacted(f"the changes after revision {self._after} are forgotten up to {compacted}")
        reason = str(result.get("cancel_reason") or "the server has ended the watch")
        # For a watch an outdated token is a lack of permission too.
        self._failed(DENIED if "permission denied" in reason else 0, reason)

    def _failed(self, code: int, text: str) -> None:
        """Log in anew, once, where that may help, else raise.

        Raises:
            Trouble: another endpoint may serve.
            Refused: none will.
        """
        again = (code == DENIED or is_stale(code, text)) and self._gateway.access.user and not self._logged_in_anew
        if not again:
            raise fault(code, text, self._gateway.access) if code else Trouble(text)
        self._logged_in_anew = True
        self._gateway.forget_token()
        self._drop()

    async def _check_progress(self) -> None:
        """Let the watched endpoint answer a read that needs a quorum.

        Raises:
            Trouble: it does not.
            Compacted: etcd has lost its data, or has older ones.
        """
        anchor = self._anchor() if self._anchor else None
        key = self._records.key(anchor.key) if anchor else b64(self._start)
        request = {"key": key, "limit": "1", "keys_only": True}
        answer = await self._gateway.once(self._url, _RANGE, json.dumps(request).encode())
        if (now := revision_of(answer)) < self._after:
            raise Compacted(f"the store is at revision {now}, {self._after} was seen: it has lost its data")
        kvs = answer.get("kvs", ())
        if anchor and not anchor.holds(number(kvs[0], "mod_revision") if kvs else 0):
            raise Compacted(f"the store lacks what was written at revision {anchor.revision}: its data are older")

    def _drop(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
