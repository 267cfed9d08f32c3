"""Large packets: what fits into the source's link must arrive, or the sender must be told what does."""

from collections.abc import Iterator

from netplug.drivers.steps import IPAddress
from netplug.insight.trace import mends, overlay_causes, trail
from netplug.insight.trace.case import Case
from netplug.insight.trace.model import Cause, Hop, Verdict
from netplug.kernel.probes.api import Kind as Probe
from netplug.kernel.probes.api import Report, What

_ANSWERS = frozenset({What.ECHO_REPLY, What.UDP})


def judge(case: Case) -> Iterator[Hop]:
    """Return the hop of a packet as large as the source's link lets out."""
    if case.large is None:
        return
    flow, report = case.large
    there = trail.way_there(case.path.stations, report)
    where, what = case.source.place.name, f"a packet of {flow.size} bytes, unfragmented"
    told = _told(report)
    if arrived(case, report):
        yield Hop("mtu", where, f"{what}, arrives", ms=max((it.ms for it in there.seen if it), default=None))
    elif told:
        yield Hop("mtu", where, f"{what}: told to send {told[0]} by {told[1]}", ms=told[2])
    elif _watched(case) or flow.kind is not Probe.UDP:  # to a datagram there need not be an answer
        yield Hop("mtu", where, what, Verdict.BROKEN, cause=_vanishing(case, there, flow.size))


def arrived(case: Case, report: Report) -> bool:
    """Whether a packet came to the last station, or was answered."""
    seen = _watched(case) and trail.way_there(case.path.stations, report).whole
    return seen or any(it.what in _ANSWERS for it in report.replies)


def _watched(case: Case) -> bool:
    """Whether the last station is the destination's: another host may not watch."""
    return case.stretched is None or case.stretched.far.open


def arrives(case: Case, report: Report) -> bool:
    """Whether a packet came to the last station, or its sender was told what fits."""
    return trail.way_there(case.path.stations, report).whole or _told(report) is not None


def _vanishing(case: Case, it: trail.Trail, size: int) -> Cause:
    if case.stretched and (cause := overlay_causes.too_large(case.stretched, size)):
        return cause
    last, missing = it.last, it.first_missing
    links = []
    for station in case.path.stations:
        link = case.scene.link(station)
        if link and link.mtu < size:
            links.append((link.mtu, station))
    where = f"between {last.link if last else 'the sender'} and {missing.link if missing else 'the receiver'}"
    if links:
        mtu, station = links[0]
        words = f"packets of {size} bytes vanish {where}: {station.link} of {station.place.name} has MTU {mtu}"
        mend = mends.inside(station.place, f"ip link set {station.link} mtu {size}")
        return Cause("mtu", words, mend)
    return Cause("mtu", f"packets of {size} bytes vanish {where}, and small ones pass")


def _told(report: Report) -> tuple[int, IPAddress, float] | None:
    """Return which MTU the sender was told, by whom, and when."""
    for reply in report.replies:
        if reply.what is What.TOO_BIG and reply.mtu:
            return reply.mtu, reply.source, reply.ms
    for seen in report.sightings:
        if seen.what is What.TOO_BIG and seen.mtu:
            return seen.mtu, seen.source, seen.ms
    return None
