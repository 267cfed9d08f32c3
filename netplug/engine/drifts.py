"""Tells of differences between kernel and records: what was healed, and what stays."""

from collections.abc import Iterable, Mapping

import structlog

from netplug.engine.conditions import Difference
from netplug.engine.contests import Contests
from netplug.engine.happenings import Happenings, Kind

log = structlog.get_logger(__name__)


class Drifts:
    """Differences, as comparisons find them.

    `left`: those that the last repair left, by owner and object. `contests`: those that come again and again, of which
    that alone is told.
    """

    def __init__(self, happenings: Happenings, contests: Contests) -> None:
        self.left: Mapping[tuple[str, str], Difference] = {}
        self.contests = contests
        self._happenings = happenings

    def healed(self, found: Iterable[Difference], **details: str) -> None:
        """Tell what was repaired. `details`: for the log."""
        for it in self.contests.repaired(found):
            log.warning("drift.repaired", owner=it.owner, object=it.object, what=it.what, **details)
            self._tell(Kind.DRIFT_HEALED, it)

    def remain(self, found: Iterable[Difference]) -> None:
        """Take all differences that a repair left, in place of those of the last one; tell what is new or over."""
        found = list(found)
        self.contests.report({it.object for it in found})
        single = (it for it in found if not self.contests.concerns(it.object))
        before, self.left = self.left, {(it.owner, it.object): it for it in single}
        for key in self.left.keys() - before.keys():
            self._tell(Kind.DRIFT_FOUND, self.left[key])
        for key in before.keys() - self.left.keys():
            self._tell(Kind.DRIFT_OVER, before[key])

    def _tell(self, kind: Kind, it: Difference) -> None:
        self._happenings.tell(kind, f"{it.owner}: {it.object}", it.what)
