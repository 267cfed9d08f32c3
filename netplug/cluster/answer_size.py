"""Cuts an answer that is too long for the shared store, and says so in it."""

import json
from collections.abc import Iterator

from netplug.drivers.codec import Json, JsonObject

NOTE = "cut"
_NOTE_BYTES = 300


def fit(body: JsonObject, most_bytes: int) -> JsonObject:
    """Return an object whose JSON has at most `most_bytes`. What was left out is told in its member "cut".

    The longest lists and texts lose their ends.

    >>> fit({"host": "a", "packets": [1, 2]}, 1000)
    {'host': 'a', 'packets': [1, 2]}
    >>> fit({"host": "a", "packets": [1] * 500}, 600)["cut"]
    'the answer had 1.5 kB, and at most 0.6 kB are given: 409 of 500 in packets are left out'
    """
    whole, room = _size(body), max(most_bytes - _NOTE_BYTES, 0)
    if whole <= most_bytes:
        return body
    head = f"the answer had {_kb(whole)}, and at most {_kb(most_bytes)} are given"
    shown: JsonObject = json.loads(json.dumps(body))
    totals: dict[str, tuple[int, int]] = {}
    while (size := _size(shown)) > room:
        if not (found := max(_cuttable(shown, ""), key=lambda it: it[0], default=None)):
            return {NOTE: f"{head}: nothing in it can be shortened"}
        own, place, key, path, value = found
        keep = min(len(value) * max(own - (size - room), 0) // own, len(value) - 1)
        place[key] = value[:keep]  # type: ignore[index]  # of a list or an object
        _, total = totals.get(path, (0, len(value)))
        totals[path] = total - keep, total
    parts = ", ".join(f"{gone} of {total} in {path}" for path, (gone, total) in totals.items())
    return {**shown, NOTE: f"{head}: {parts} are left out"[: _NOTE_BYTES - 20]}


def _size(value: Json) -> int:
    return len(json.dumps(value))


def _kb(number: int) -> str:
    return f"{number / 1000:.1f} kB"


def _cuttable(
    place: JsonObject | list[Json], path: str
) -> Iterator[tuple[int, JsonObject | list[Json], str | int, str, str | list[Json]]]:
    """Yield each list and text that can be shortened: its size, what has it, its key there, its path, and itself."""
    for key, item in place.items() if isinstance(place, dict) else enumerate(place):
        at = f"{path}.{key}" if path else str(key)
        if isinstance(item, str | list) and len(item) > 1:
            yield _size(item), place, key, at, item
        if isinstance(item, dict | list):
            yield from _cuttable(item, at)
