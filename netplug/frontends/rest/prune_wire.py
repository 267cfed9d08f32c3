"""Bodies of pruning: filters as of ``docker network prune --filter KEY=VALUE``, and what came of it."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from netplug.engine.pruning import Label, NetworkFilter, Pruned
from netplug.errors import NetplugError
from netplug.frontends.rest.fields import MOST
from netplug.times import point_in_time

_KEYS = ("label", "label!", "mode", "until")

Texts = Annotated[tuple[str, ...], Field(max_length=MOST)]


class PruneIn(BaseModel):
    """`filters`: values by key. `label` ``K`` or ``K=V``: all must be there; `label!`: none; `mode`: one of them.

    `until`: created before this time, or longer ago than this.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    filters: dict[str, Texts] = {}
    dry_run: bool = False

    def to_filter(self) -> NetworkFilter:
        """Return the engine's filter.

        Raises:
            NetplugError: a key is unknown, or a value wrong.
        """
        for key in self.filters:
            if key not in _KEYS:
                raise NetplugError("invalid", f"filter {key[:80]!r} must be one of {', '.join(_KEYS)}")
        until = self.filters.get("until", ())
        if len(until) > 1:
            raise NetplugError("invalid", f"filter until is given {len(until)} times, and has one value")
        return NetworkFilter(
            _labels("label", self.filters.get("label", ())),
            _labels("label!", self.filters.get("label!", ())),
            frozenset(self.filters.get("mode", ())),
            _before(until[0]) if until else 0.0,
        )


class RemovedOut(BaseModel):
    id: str
    name: str


class KeptOut(BaseModel):
    """A network that stays, and why."""

    id: str
    name: str
    reason: str


class PruneOut(BaseModel):
    """`removed`: with `dry_run`, what would be removed."""

    removed: list[RemovedOut]
    kept: list[KeptOut]

    @classmethod
    def of(cls, found: Pruned) -> Self:
        return cls(
            removed=[RemovedOut(id=it.network.id, name=it.network.name) for it in found.removed],
            kept=[KeptOut(id=it.id, name=it.name, reason=it.reason) for it in found.kept],
        )


def _before(text: str) -> float:
    try:
        return point_in_time(text)
    except ValueError:
        words = f"filter until={text[:80]!r} is neither a duration nor a time"
        raise NetplugError("invalid", words, hint="write 24h, 1h30m, 2024-01-31T12:00:00Z or a Unix time") from None


def _labels(key: str, texts: tuple[str, ...]) -> tuple[Label, ...]:
    found = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not name:
            raise NetplugError("invalid", f"filter {key}={text[:80]!r} names no label")
        found.append(Label(name, value if equals else None))
    return tuple(found)
