"""Tells of differences between kernel and records: what was healed, and what stays."""

from collections.abc import Iterable, Mapping

from netplug.engine.conditions import Difference
from netplug.engine.happenings import Happenings, Kind


class Drifts:
    """Differences, as comparisons find them. `left`: those that the last repair left, by owner and object."""

    def __init__(self, happenings: Happenings) -> None:
        self.left: Mapping[tuple[str, str], Difference] = {}
        self._happenings = happenings

    def healed(self, found: Iterable[Difference]) -> None:
        """Tell what was repaired."""
        for it in found:
            self._tell(Kind.DRIFT_HEALED, it)

    def remain(self, found: Iterable[Difference]) -> None:
        """Take all differences that a repair left, in place of those of the last one; tell what is new or over."""
        before, self.left = self.left, {(it.owner, it.object): it for it in found}
        for key in self.left.keys() - before.keys():
            self._tell(Kind.DRIFT_FOUND, self.left[key])
        for key in before.keys() - self.left.keys():
            self._tell(Kind.DRIFT_OVER, before[key])

    def _tell(self, kind: Kind, it: Difference) -> None:
        self._happenings.tell(kind, f"{it.owner}: {it.object}", it.what)
