"""Folds equal events in a row: a heal every second is one event with a count.

In a row: nothing else happened to the same object in between. A folded event keeps its id, so whoever shows it shows
the new count in place of the old.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from netplug.engine.happenings import Happening

FOLD_S = 60.0
"""Equal events within this time of one another are folded. A growing count is written once in this time."""
MOST_OBJECTS = 1_000
"""Objects whose last event is remembered."""
_Object: TypeAlias = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Event:
    """A happening, or several equal ones. `id`: grows with time. `first`: Unix time; `happening` is the last one."""

    id: int
    first: float
    count: int
    happening: Happening


@dataclass(slots=True)
class _Last:
    """The last event of an object. `written`: when it was; `dirty`: its count has grown since."""

    event: Event
    written: float
    dirty: bool = False


class Folding:
    """Makes events of happenings."""

    def __init__(self) -> None:
        self._last: OrderedDict[_Object, _Last] = OrderedDict()
        self._id = 0

    def take(self, it: Happening) -> tuple[Event, list[Event]]:
        """Return the event of a happening, and the events to write now."""
        place = it.object, it.network, it.endpoint, it.host
        last = self._last.get(place)
        due = []
        if last is not None and _same(last.event.happening, it) and it.time - last.event.happening.time <= FOLD_S:
            last.event = replace(last.event, count=last.event.count + 1, happening=it)
            last.dirty = it.time - last.written < FOLD_S
            if not last.dirty:
                last.written = it.time
                due.append(last.event)
            return last.event, due
        if last is not None and last.dirty:
            due.append(last.event)
        self._id = max(self._id + 1, int(it.time * 1e6))
        event = Event(self._id, it.time, 1, it)
        self._last[place] = _Last(event, it.time)
        self._last.move_to_end(place)
        if len(self._last) > MOST_OBJECTS:
            _, old = self._last.popitem(last=False)
            due += [old.event] if old.dirty else []
        return event, [*due, event]

    def grown(self) -> Iterator[Event]:
        """Yield the events whose count has grown since they were written."""
        for last in self._last.values():
            if last.dirty:
                last.dirty, last.written = False, last.event.happening.time
                yield last.event


def _same(one: Happening, other: Happening) -> bool:
    return one.kind is other.kind and replace(one, time=other.time, request=other.request) == other


def to_json(event: Event) -> dict[str, Any]:
    """Return an event as it is kept and shown. Field names are stable; `complete` adds those that are left out."""
    it = event.happening
    found: dict[str, Any] = {"id": event.id, "time": round(it.time, 6), "kind": str(it.kind)}
    if event.count > 1:
        found |= {"count": event.count, "first": round(event.first, 6)}
    texts = {name: getattr(it, name) for name in TEXTS}
    return found | {name: str(text) for name, text in texts.items() if text}


TEXTS = (
    "object",
    "what",
    "cause",
    "by",
    "request",
    "network",
    "network_name",
    "endpoint",
    "name",
    "container",
    "host",
    "host_name",
)


def complete(found: dict[str, Any]) -> dict[str, Any]:
    """Return an event as it was kept, with all fields."""
    head = {"id": found["id"], "time": found["time"], "first": found.get("first", found["time"])}
    head |= {"count": found.get("count", 1), "kind": found["kind"]}
    return head | {name: found.get(name, "") for name in TEXTS}
