"""What is wrong and shows in no comparison of a plan with the kernel: two hosts with one VTEP, a record of no use.

Level-triggered: whoever looks after a subject reports all that is wrong with it, each time that it looks. What it does
not report any more is over. So nothing stays after its cause, and a report may be repeated at will.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import structlog

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not as it should be. `owner`: "network blue", "endpoint 0a1b2c3d4e5f (web)", "host".

    `object`: the key of a plan's step, or a word for what it is about. `what`: what is wrong, in words.
    """

    owner: str
    object: str
    what: str


class Conditions:
    """What is wrong now, by who reported it. `netplug diff` shows it, and the log says when it begins and ends."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[Difference, ...]] = {}

    def report(self, source: str, found: Iterable[Difference]) -> None:
        """Take all that is wrong as `source` sees it, in place of what it reported before."""
        before, now = self._found.get(source, ()), tuple(dict.fromkeys(found))
        if now:
            self._found[source] = now
        else:
            self._found.pop(source, None)
        for it in (it for it in now if it not in before):
            log.warning("condition.found", source=source, owner=it.owner, object=it.object, what=it.what)
        for it in (it for it in before if it not in now):
            log.info("condition.over", source=source, owner=it.owner, object=it.object, what=it.what)

    def all(self) -> list[Difference]:
        """Return all that is wrong now, by source and as reported."""
        return [it for source in sorted(self._found) for it in self._found[source]]
