"""Follows a packet through a report: at which stations it was seen, and where it was lost."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from netplug.insight.trace.model import Station
from netplug.kernel.probes.api import Report, Sighting, What

ARP = frozenset({What.ARP_REQUEST, What.ARP_REPLY})
ERRORS = frozenset({What.TOO_BIG, What.UNREACHABLE, What.TIME_EXCEEDED})


@dataclass(frozen=True, slots=True)
class Trail:
    """`seen`: the sighting at each station, in the order of the packet; None where it was not seen."""

    stations: tuple[Station, ...]
    seen: tuple[Sighting | None, ...]

    @property
    def lost_at(self) -> int:
        """Return the number of the first station that the packet did not come to; that of all if it came through.

        A fast path may pass a station unseen: what is seen later has passed.
        """
        return max((i + 1 for i, it in enumerate(self.seen) if it), default=0)

    @property
    def whole(self) -> bool:
        return self.lost_at == len(self.stations)

    @property
    def last(self) -> Station | None:
        """Return the last station at which it was seen."""
        return self.stations[self.lost_at - 1] if self.lost_at else None

    @property
    def first_missing(self) -> Station | None:
        return None if self.whole else self.stations[self.lost_at]


def way_there(stations: Sequence[Station], report: Report) -> Trail:
    """Follow the packets of the flow."""
    packets = [it for it in report.sightings if not it.back and it.what not in ARP | ERRORS]
    return Trail(tuple(stations), tuple(_at(it, packets, incoming=it.incoming) for it in stations))


def way_back(stations: Sequence[Station], report: Report) -> Trail:
    """Follow the answers: the stations are in the order of the way back, and directions are the other ones."""
    packets = [it for it in report.sightings if it.back and it.what not in ARP | ERRORS]
    order = tuple(reversed(stations))
    return Trail(order, tuple(_at(it, packets, incoming=not it.incoming) for it in order))


@dataclass(frozen=True, slots=True)
class Asking:
    """A request for a MAC that nobody answered.

    `asker`: the station that sent it. `last`: the last one that saw it. `heard`: it came to the end.
    """

    asker: Station
    last: Station
    wanted: str
    heard: bool


def unanswered(trail: Trail, report: Report, *, back: bool = False) -> Asking | None:
    """Return the request for a MAC on which the packet, or its answer, waits at the first station that did not see it.

    What a station receives on the way there, it sends on the way back.
    """
    start = trail.lost_at
    if start >= len(trail.stations):
        return None
    asker = trail.stations[start]
    # Without a sender it is this process that asks, whether an address is used twice (RFC 5227).
    requests = [it for it in report.sightings if it.what is What.ARP_REQUEST and not it.source.is_unspecified]
    first = _at(asker, requests, incoming=False)
    if first is None or asker.incoming is not back:
        return None
    # Others ask on the segment too.
    requests = [it for it in requests if it.source == first.source]
    replies = [it for it in report.sightings if it.what is What.ARP_REPLY and it.source == first.destination]
    if _at(asker, replies, incoming=True):
        return None
    rest = trail.stations[start:]
    heard = [it for it in rest if _at(it, requests, incoming=it.incoming is not back)]
    return Asking(asker, heard[-1], str(first.destination), heard[-1] is rest[-1])


def _at(station: Station, found: Iterable[Sighting], *, incoming: bool) -> Sighting | None:
    return next((it for it in found if it.post == station.name and it.incoming is incoming), None)
