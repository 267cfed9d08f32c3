"""Faults that no comparison of a plan with the kernel shows: two hosts with one VTEP, an unreadable record.

Level-triggered: each source reports all its faults each time that it looks. A fault that it does not report any more is
over. So no fault outlives its cause, and a report can be repeated.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from netplug.engine.happenings import Happenings, Kind

log = structlog.get_logger(__name__)

QUARANTINE = "quarantine"
"""The source of records that cannot be used."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A fault. `owner`: "network blue", "endpoint 0a1b2c3d4e5f (web)", "host".

    `object`: the key of a plan's step, or a word for the subject. `what`: the fault, in words.
    """

    owner: str
    object: str
    what: str


_KINDS = {QUARANTINE: (Kind.QUARANTINE_BEGUN, Kind.QUARANTINE_OVER)}


class Conditions:
    """All present faults, by source. `netplug diff` shows them. Log and events have the begin and end of each, once."""

    def __init__(self, happenings: Happenings | None = None) -> None:
        self._happenings = happenings or Happenings()
        self._found: dict[str, dict[Difference, None]] = {}
        self._sources: set[str] = set()

    def report(self, source: str, found: Iterable[Difference]) -> None:
        """Take all faults that `source` sees, in place of what it reported before."""
        # Keys of dictionaries, not tuples: a mad member of the cluster causes thousands, and one more with each record.
        before, now = self._found.get(source, {}), dict.fromkeys(found)
        if now:
            self._found[source] = now
            self._sources.add(_word(source))
        else:
            self._found.pop(source, None)
        begun, over = _KINDS.get(source, (Kind.FAULT_FOUND, Kind.FAULT_OVER))
        for it in (it for it in now if it not in before):
            log.warning("condition.found", source=source, owner=it.owner, object=it.object, what=it.what)
            self._happenings.tell(begun, f"{it.owner}: {it.object}", it.what, cause=source)
        for it in (it for it in before if it not in now):
            log.info("condition.over", source=source, owner=it.owner, object=it.object, what=it.what)
            self._happenings.tell(over, f"{it.owner}: {it.object}", it.what, cause=source)

    def counts(self) -> dict[str, int]:
        """Return the numbers of present faults, by source that ever had one. Tasks are one source."""
        found = dict.fromkeys(sorted(self._sources), 0)
        for source, faults in self._found.items():
            found[_word(source)] += len(faults)
        return found

    def all(self, *, without: str = "") -> list[Difference]:
        """Return all present faults, by source and in the reported order. `without`: a source to leave out."""
        return [it for source in sorted(self._found.keys() - {without}) for it in self._found[source]]


def _word(source: str) -> str:
    """Return the word for a source of which there are several: "task" for each task."""
    return source.partition(" ")[0]
