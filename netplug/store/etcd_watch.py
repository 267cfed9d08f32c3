"""A watch that survives the failure of an endpoint: it resumes at another one, from the last revision it has seen.

It has no task of its own and reads only when the caller asks, so TCP slows the server down for a slow caller, and
events do not pile up in memory. A silent stream is ambiguous: either nothing changes, or the server hangs. So after
some silence the watch sends a linearizable read to the same endpoint. If its revision is older than the watch's, etcd
has lost its data.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable

import structlog

from netplug.lean_aiohttp import aiohttp

from .api import Compacted, Compare, Event
from .etcd_errors import DENIED, AttemptError, error_for, error_of, is_stale
from .etcd_records import Message, Records, b64, number, revision_of
from .gateway import Gateway

log = structlog.get_logger(__name__)

PROGRESS_S = 3.0  # of silence before the endpoint is checked: at most one small read per host in that time
_BACKOFF_S = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
_PATH = "/v3/watch"
_RANGE = "/v3/kv/range"


class EtcdWatch:
    """Iterator of `EtcdStore.watch`. After a cancellation it can be used again."""

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
        self._logged_in_again = False
        self._unverified = False
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
        """Read the next messages; connect first if necessary."""
        try:
            if self._response is None:
                await self._connect()
            for message in await self._messages():
                self._take(message)  # without an await: a cancellation must not lose messages
            if self._unverified:
                await self._check_progress()
                self._unverified = False
        except AttemptError as error:
            self._drop()
            self._gateway.failed(self._url)
            if self._failures == 0:
                log.warning("store.watch_lost", endpoint=self._url, reason=str(error), revision=self._after)
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
        """Return the next complete messages: one line of JSON each."""
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
                raise AttemptError("closed the watch") from exc
        if not chunk:
            raise AttemptError("ended the watch")
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        try:
            return [json.loads(line) for line in lines if line]
        except ValueError as exc:
            raise AttemptError("sends something that is not json") from exc

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
            self._logged_in_again = False
            # This member may lag behind, may have lost its data, or may have been restored from a backup.
            self._unverified = revision_of(result) < self._after or self._anchor is not None
            return
        events = [self._event(event) for event in result.get("events", ())]
        self._events.extend(event for event in events if event is not None)
        # A message has all events of its revisions. One without events (progress notify) has the current revision.
        last = max((number(event["kv"], "mod_revision") for event in result.get("events", ())), default=0)
        self._after = max(self._after, last or revision_of(result))

    def _event(self, event: Message) -> Event | None:
        kv = event["kv"]
        if event.get("type") == "DELETE":
            try:
                key = self._records.name(kv)
            except ValueError:
                return None
            self._records.unreadable.pop(key, None)
            return Event(key, None, number(kv, "mod_revision"))
        record = self._records.readable(kv)
        return Event(record.key, record, record.revision) if record else None

    def _cancelled(self, result: Message) -> None:
        if compacted := number(result, "compact_revision"):
            raise Compacted(f"the changes after revision {self._after} are compacted up to {compacted}")
        reason = str(result.get("cancel_reason") or "the server cancelled the watch")
        # An expired token makes etcd cancel a watch with "permission denied".
        self._failed(DENIED if "permission denied" in reason else 0, reason)

    def _failed(self, code: int, text: str) -> None:
        """Log in again, once, if that may help; else raise.

        Raises:
            AttemptError: another endpoint may succeed.
            Refused: no endpoint will.
        """
        log_in = (code == DENIED or is_stale(code, text)) and self._gateway.access.user and not self._logged_in_again
        if not log_in:
            raise error_for(code, text, self._gateway.access) if code else AttemptError(text)
        self._logged_in_again = True
        self._gateway.forget_token()
        self._drop()

    async def _check_progress(self) -> None:
        """Check the watched endpoint with a linearizable read.

        Raises:
            AttemptError: it does not answer.
            Compacted: etcd has lost its data, or was restored from a backup.
        """
        anchor = self._anchor() if self._anchor else None
        key = self._records.key(anchor.key) if anchor else b64(self._start)
        request = {"key": key, "limit": "1", "keys_only": True}
        answer = await self._gateway.once(self._url, _RANGE, json.dumps(request).encode())
        if (now := revision_of(answer)) < self._after:
            raise Compacted(f"etcd has lost its data: it is at revision {now}, and was at {self._after}")
        kvs = answer.get("kvs", ())
        if anchor and not anchor.holds(number(kvs[0], "mod_revision") if kvs else 0):
            raise Compacted(
                f"etcd has lost data (a backup was restored?): it lacks the write of revision {anchor.revision}"
            )

    def _drop(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
