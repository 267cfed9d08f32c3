"""What a trace is made of: places, the stretches of a path with their stations, hops with verdicts, and a cause."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from netplug.kernel.probes.api import HOST, Facts, LinkState


class Verdict(StrEnum):
    """Of a hop. `UNSEEN`: the packet did not come so far. `NOTED`: odd, but no obstacle."""

    OK = "ok"
    BROKEN = "broken"
    NOTED = "noted"
    UNSEEN = "not reached"


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a hop is broken. `kind`: a stable word such as "listener.none"; `mend`: a command, if one mends it."""

    kind: str
    words: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Hop:
    """One line of the answer. `ms`: since the packet was sent; None if it has no time."""

    name: str
    where: str
    what: str
    verdict: Verdict = Verdict.OK
    ms: float | None = None
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A network namespace: a sandbox, or a host's. `host`: the name of another host, empty for this one."""

    name: str
    netns: str = HOST
    host: str = ""

    @property
    def key(self) -> str:
        """Return how the place is called in a report and a scene: its namespace, on another host behind its name."""
        return f"{self.host}:{self.netns}" if self.host else self.netns


HOST_PLACE = Place("this host")


@dataclass(frozen=True, slots=True)
class Station:
    """A link at which the packet has to be seen. `incoming`: on the way there, the link receives it."""

    name: str
    place: Place
    link: str
    incoming: bool
    words: str


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of the path in one place, in the order of the packet."""

    name: str
    place: Place
    stations: tuple[Station, ...] = ()


@dataclass(frozen=True, slots=True)
class Path:
    """All stretches."""

    stretches: tuple[Stretch, ...] = ()

    @property
    def stations(self) -> tuple[Station, ...]:
        return tuple(it for stretch in self.stretches for it in stretch.stations)

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(dict.fromkeys(stretch.place for stretch in self.stretches))


@dataclass(frozen=True, slots=True)
class Scene:
    """What there is in the places of a path, by `Place.key`."""

    facts: Mapping[str, Facts] = field(default_factory=dict)

    def of(self, place: Place) -> Facts:
        return self.facts.get(place.key, Facts(place.netns))

    def link(self, station: Station) -> LinkState | None:
        """Return the link at which the packet has to be seen, if it is there."""
        return self.of(station.place).link(station.link)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer. `flow`: what was sent, in words. `notes`: what is odd besides, and what could not be observed."""

    source: str
    destination: str
    flow: str
    hops: tuple[Hop, ...]
    notes: tuple[str, ...] = ()
    took_ms: float = 0.0

    @property
    def broken(self) -> Hop | None:
        """Return the first broken hop, if there is one."""
        return next((hop for hop in self.hops if hop.verdict is Verdict.BROKEN), None)

    @property
    def reached(self) -> bool:
        return self.broken is None
