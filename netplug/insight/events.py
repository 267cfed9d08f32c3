"""Events over the REST API: a list, and a stream of server-sent events (HTML Living Standard, 9.2)."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any

from fastapi import Header, Query, Response
from fastapi.responses import StreamingResponse

from netplug.engine.happenings import Kind
from netplug.errors import NetplugError
from netplug.insight.event_log import EventLog, Wanted
from netplug.times import point_in_time

MOST, USUAL = 10_000, 1_000
"""Events in one answer."""
BEAT_S = 15.0
"""A stream says at least this often that it lives, so that both ends notice when the other is gone."""

_KINDS = frozenset(word for kind in Kind for word in (str(kind), kind.partition(".")[0]))

Since = Annotated[str, Query(max_length=64)]
Word = Annotated[str, Query(max_length=256)]
Limit = Annotated[int, Query(ge=1, le=MOST)]
LastId = Annotated[str, Header(max_length=32)]


class EventsApi:
    """The methods. Answers are made in a thread: there may be many events. `network`: finds one, as `Registry` does."""

    def __init__(self, kept: EventLog, network: Callable[[str], object]) -> None:
        self._kept = kept
        self._network = network

    @property
    def routes(self) -> Sequence[tuple[str, str, Any, int]]:
        """Return them as `Insight.routes` does."""
        return (("GET", "/events", self.list, 200), ("GET", "/events/stream", self.stream, 200))

    async def list(self, since: Since = "", kind: Word = "", network: Word = "", limit: Limit = USUAL) -> Response:
        """Return ``{"events": […], "more": bool}``: the last `limit` of them, oldest first, and if there are others."""
        events, more = await self._kept.newest(_wanted(since, kind, network), limit)
        if not events:
            await self._refuse_unknown(network)
        body = await asyncio.to_thread(json.dumps, {"events": events, "more": more})
        return Response(body, media_type="application/json")

    async def stream(
        self, since: Since = "", kind: Word = "", network: Word = "", last_event_id: LastId = ""
    ) -> StreamingResponse:
        """Send each event as it happens, first those after `since` or ``Last-Event-ID``, until the client goes away.

        A folded event comes again with its id when its count grows.
        """
        wanted = _wanted(since, kind, network)
        await self._refuse_unknown(network)
        after = int(last_event_id) if last_event_id.isascii() and last_event_id.isdigit() else 0
        if after:
            wanted = Wanted(after / 1e6, kind, network)
        said = self._said(wanted, after, earlier=bool(after or since))
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(said, media_type="text/event-stream", headers=headers)

    async def _refuse_unknown(self, network: str) -> None:
        """Refuse the name of a network that neither is nor was: nobody would notice the typing error."""
        try:
            if network:
                self._network(network)
        except NetplugError as exc:
            if exc.kind == "not_found" and not (await self._kept.newest(Wanted(network=network), 1))[0]:
                words = f"there is no network {network[:80]!r}, nor an event of a former one"
                raise NetplugError("not_found", words, hint=exc.hint) from None

    async def _said(self, wanted: Wanted, after: int, *, earlier: bool) -> AsyncIterator[str]:
        follower = self._kept.follow()  # before the kept ones are read: else those in between would be missed
        try:
            yield ": netplug\n\n"
            told: dict[int, int] = {}
            for event in (await self._kept.newest(wanted, MOST))[0] if earlier else ():
                if event["id"] > after:
                    told[event["id"]] = event["count"]
                    yield _message(event)
            while True:
                try:
                    async with asyncio.timeout(BEAT_S):
                        latest = await follower.get()
                except TimeoutError:
                    yield ": beat\n\n"
                    continue
                if latest is None:
                    return
                if wanted.has(latest) and told.pop(latest["id"], 0) < latest["count"]:
                    yield _message(latest)
        finally:
            self._kept.unfollow(follower)


def _wanted(since: str, kind: str, network: str) -> Wanted:
    if kind and kind not in _KINDS:
        words = sorted({known.partition(".")[0] for known in _KINDS})
        raise NetplugError("invalid", f"there is no kind {kind[:40]!r} of events", hint=f"there are {', '.join(words)}")
    try:
        return Wanted(point_in_time(since) if since else 0.0, kind, network)
    except ValueError as exc:
        raise NetplugError("invalid", f"since: {exc}") from None


def _message(event: dict[str, Any]) -> str:
    return f"id: {event['id']}\ndata: {json.dumps(event)}\n\n"
