"""Judges a trace: the hops in their order, up to the first that is broken, and why."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from netplug.insight.trace import answers, asking, checks, drops, mtu, neighbours, overlay_causes, rules, trail
from netplug.insight.trace.case import Case
from netplug.insight.trace.ends import Kind
from netplug.insight.trace.findings import Finding
from netplug.insight.trace.model import Cause, Hop, Station, Verdict
from netplug.insight.trace.trail import Trail
from netplug.kernel.probes.api import What


def judge(case: Case) -> tuple[Hop, ...]:
    """Return all hops; those behind the broken one are "not reached"."""
    it = case.stretched
    return tuple(overlay_causes.located(it, hop) for hop in _judged(case)) if it else _judged(case)


def _judged(case: Case) -> tuple[Hop, ...]:
    found = checks.findings(case)
    there = trail.way_there(case.path.stations, case.report)
    hops: list[Hop] = list(_passed(there))
    if not there.whole and not answers.left(case):
        return (*hops, *_broken(case, there, found, back=False))
    if case.stretched and not case.stretched.far.open:
        refused = any(it.what is What.RST for it in case.report.replies)
        hops.append(overlay_causes.unwatched(case.stretched, answered=refused or answers.answer(case) is not None))
        if refused:
            hops.append(overlay_causes.refused(case.stretched, case.port))
    else:
        hops.append(answers.arrival(case, found))
    if hops[-1].verdict is Verdict.BROKEN:
        return tuple(hops)
    back = tuple(_way_back(case, found))
    lost = any(it.verdict is Verdict.BROKEN for it in back)
    return (*hops, *back, *_doubled(case), *(() if lost else mtu.judge(case)))


def _passed(it: Trail) -> Iterator[Hop]:
    for station, sighting in zip(it.stations[: it.lost_at], it.seen, strict=False):
        nat = f", as {sighting.source} to {sighting.destination}" if sighting and _changed(it, station) else ""
        yield Hop(station.name, station.place.name, station.words + nat, ms=sighting.ms if sighting else None)


def _changed(it: Trail, station: Station) -> bool:
    """Whether addresses are others than at the station before."""
    seen = [(one.name, sighting) for one, sighting in zip(it.stations, it.seen, strict=True) if sighting]
    for (_, before), (name, now) in pairwise(seen):
        if name == station.name:
            return (before.source, before.destination) != (now.source, now.destination)
    return False


def _broken(case: Case, it: Trail, found: Sequence[Finding], *, back: bool) -> Iterator[Hop]:
    missing = it.first_missing
    if missing is None:
        return
    yield Hop(missing.name, missing.place.name, missing.words, Verdict.BROKEN, cause=_why(case, it, found, back=back))
    for station in it.stations[it.lost_at + 1 :]:
        yield Hop(station.name, station.place.name, station.words, Verdict.UNSEEN)


def _why(case: Case, it: Trail, found: Sequence[Finding], *, back: bool) -> Cause:
    """Return why a packet did not come to the first station where it is missing, the surest reason first."""
    missing = [one.name for one in _missing(case, it)]
    names = {*missing, *(f"back-{one}" for one in missing)} if back else {*missing}
    exact = next((one.cause for one in found if one.station in names), None)
    if exact and exact.kind.startswith(("link.", "port.", "route.")):
        return exact
    if rule := rules.dropping(case, back=back):
        return rules.cause(case, rule)
    if exact:
        return exact
    if not back and (cause := _twice(case)):
        return cause
    if case.stretched and (cause := overlay_causes.why(case.stretched, it, back=back)):
        return cause
    if cause := asking.nobody_has(case, it, found, back=back):
        return cause
    if cause := checks.at(list(found), it.first_missing):
        return cause
    if drop := drops.dropping(case, back=back):
        return drops.cause(case, drop)
    return _unexplained(case, it, back=back)


def _unexplained(case: Case, it: Trail, *, back: bool) -> Cause:
    """Return what the sender's kernel says, where neither a rule nor a drop was seen."""
    if case.report.refused and not back:
        return Cause("refused.kernel", f"the kernel of {case.source.place.name} refuses to send: {case.report.refused}")
    sender = it.first_missing
    if sender and sender.incoming is back and (cause := neighbours.silent(case, sender.place, back=back)):
        return cause
    last = f"it was last seen where {it.last.words}" if it.last else f"{case.source.place.name} did not send it"
    return Cause("lost", f"{last}, and no rule or fault on the path explains that", "netplug diff")


def _missing(case: Case, it: Trail) -> Iterator[Station]:
    """Yield the stations at one of which the packet was lost: it may pass a bridge's own link unseen."""
    for station in it.stations[it.lost_at :]:
        yield station
        if not (station.name in {"bridge-in", "bridge-out"} and checks.past_the_bridge(case)):
            return


def _way_back(case: Case, found: Sequence[Finding]) -> Iterator[Hop]:
    """Return one hop if the answer came back, else those up to where it was lost."""
    reply = answers.answer(case)
    if reply is not None:
        yield Hop("back", case.source.place.name, f"{reply.what} comes back from {reply.source}", ms=reply.ms)
        return
    if case.proto == "udp" and not answers.left(case):
        return
    back = trail.way_back(case.path.stations, case.report)
    if back.whole and case.source.kind is not Kind.SANDBOX:
        ms = next((it.ms for it in reversed(back.seen) if it), None)
        yield Hop("back", case.source.place.name, "the answer leaves this host", ms=ms)
        return
    yield from _passed_back(back)
    if back.whole:
        yield Hop("back", case.source.place.name, "the answer", Verdict.BROKEN, cause=_at_home(case))
        return
    yield _lost_back(case, back, found)


def _passed_back(it: Trail) -> Iterator[Hop]:
    for station, sighting in zip(it.stations[: it.lost_at], it.seen, strict=False):
        words = f"the answer passes {station.link} of {station.place.name}"
        yield Hop(f"back-{station.name}", station.place.name, words, ms=sighting.ms if sighting else None)


def _lost_back(case: Case, it: Trail, found: Sequence[Finding]) -> Hop:
    missing = it.first_missing or case.path.stations[0]
    words = f"the answer passes {missing.link} of {missing.place.name}"
    cause = answers.other_way(case) or _why(case, it, found, back=True)
    return Hop(f"back-{missing.name}", missing.place.name, words, Verdict.BROKEN, cause=cause)


def _at_home(case: Case) -> Cause:
    if rule := rules.dropping(case, back=True):
        return rules.cause(case, rule)
    if drop := drops.dropping(case, back=True):
        return drops.cause(case, drop)
    return Cause("back.ignored", f"{case.source.place.name} does not take the answer that came in")


def _doubled(case: Case) -> Iterator[Hop]:
    """Say that another station answers for the next hop: the packet comes to one or the other."""
    if case.route and (cause := _twice(case)):
        what = f"asks who has {case.route.gateway or case.route.destination}"
        yield Hop("neighbour", case.source.place.name, what, Verdict.BROKEN, cause=cause)


def _twice(case: Case) -> Cause | None:
    """Return that the address of the next hop is used twice."""
    route = case.route
    if case.asked is None or route is None:
        return None
    address = route.gateway or route.destination
    own = [it.mac for it in case.host.links for one in it.addresses if one.ip == address]
    macs = sorted({*case.asked.macs, *own}) if case.asked.macs else []
    if len(macs) < 2:
        return None
    keeper = "this host" if own else case.destination.place.name
    words = f"{len(macs)} stations have the address {address}: {' and '.join(macs)}"
    return Cause("address.duplicate", words, f"remove {address} from the one that is not {keeper}")
