"""Keeps events over restarts, and hands them to whoever follows them.

A use case only appends to a list here. A thread writes the list some tenths of a second later.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from netplug.engine.happenings import Happening
from netplug.insight.event_files import EventFiles
from netplug.insight.event_folding import FOLD_S, Event, Folding, complete, to_json

log = structlog.get_logger(__name__)

WRITE_S = 0.2
"""How long events wait for others, to be written together."""
MOST_WAITING = 10_000
"""Events in memory, if the disk is full or slow: more are dropped."""
BACKLOG = 1_000
"""Events that a follower may lag behind."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events. `kind`: a kind, or the word before its dot. `network`: id, beginning of an id, or name."""

    since: float = 0.0
    kind: str = ""
    network: str = ""

    def has(self, event: dict[str, Any]) -> bool:
        """Tell whether an event, as `complete` returns it, is one of them."""
        return (
            event["time"] >= self.since
            and (not self.kind or event["kind"] == self.kind or event["kind"].startswith(f"{self.kind}."))
            and (not self.network or event["network_name"] == self.network or event["network"].startswith(self.network))
        )


Follower = asyncio.Queue[dict[str, Any] | None]
"""Gets events, and None at the end: the daemon stops, or the follower is too slow."""


class EventLog:
    """Belongs to one event loop. `take` is a watcher of `Happenings`."""

    def __init__(self, files: EventFiles) -> None:
        self._files = files
        self._folding = Folding()
        self._waiting: list[Event] = []
        self._timer: asyncio.TimerHandle | None = None
        self._writing = asyncio.Lock()
        self._work: asyncio.Future[None] | None = None
        self._failing = False
        self._followers: set[Follower] = set()

    def take(self, happening: Happening) -> None:
        """Keep a happening."""
        event, due = self._folding.take(happening)
        if due and len(self._waiting) < MOST_WAITING:
            self._waiting += due
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WRITE_S if due else FOLD_S, self._write_soon)
        if self._followers:
            said = complete(to_json(event))
            for follower in list(self._followers):
                self._hand(follower, said)

    def _hand(self, follower: Follower, said: dict[str, Any]) -> None:
        if follower.qsize() < BACKLOG:
            follower.put_nowait(said)
        elif follower in self._followers:
            self._followers.discard(follower)
            follower.put_nowait(None)

    @property
    def followers(self) -> int:
        """How many follow."""
        return len(self._followers)

    def follow(self) -> Follower:
        """Return a new follower; `unfollow` it."""
        follower: Follower = asyncio.Queue()
        self._followers.add(follower)
        return follower

    def unfollow(self, follower: Follower) -> None:
        """Hand no more events to a follower."""
        self._followers.discard(follower)

    def end_following(self) -> None:
        """End all followers: their connections would keep the daemon from stopping."""
        for follower in self._followers:
            follower.put_nowait(None)
        self._followers.clear()

    async def newest(self, wanted: Wanted, limit: int) -> tuple[list[dict[str, Any]], bool]:
        """Return the last events of those wanted, in order, and whether there are older ones.

        Raises:
            OSError: they cannot be read.
        """
        await self._flush()
        return await asyncio.to_thread(self._read, wanted, limit)

    async def close(self) -> None:
        """Write all that waits."""
        if self._timer:
            self._timer.cancel()
        self.end_following()
        await self._flush()

    def _write_soon(self) -> None:
        self._timer = None
        self._work = asyncio.ensure_future(self._flush())

    async def _flush(self) -> None:
        """Write what waits. What cannot be written is dropped, and the log says so once."""
        async with self._writing:
            events, self._waiting = [*self._waiting, *self._folding.grown()], []
            if events:
                await asyncio.to_thread(self._write, events)

    def _write(self, events: Sequence[Event]) -> None:
        try:
            self._files.append([to_json(event) for event in events])
        except OSError as exc:
            if not self._failing:
                log.warning("events.unwritten", error=str(exc))
            self._failing = True
        else:
            self._failing = False

    def _read(self, wanted: Wanted, limit: int) -> tuple[list[dict[str, Any]], bool]:
        found: dict[int, dict[str, Any]] = {}
        for kept in self._files.newest_first():
            if kept["time"] < wanted.since - 2 * FOLD_S:
                break
            event = complete(kept)
            if not wanted.has(event) or event["id"] in found:  # an earlier count of a folded event
                continue
            if len(found) >= limit:
                return _in_order(found), True
            found[event["id"]] = event
        return _in_order(found), False


def _in_order(found: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(found.values(), key=lambda event: (event["time"], event["id"]))
