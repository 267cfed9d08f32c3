"""Judges a trace: the hops in their order, up to the first that is broken, and why."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from netplug.insight.trace import answers, checks, drops, mends, mtu, overlay, rules, trail
from netplug.insight.trace.case import Case
from netplug.insight.trace.checks import Finding
from netplug.insight.trace.ends import Kind
from netplug.insight.trace.model import Cause, Hop, Station, Verdict
from netplug.insight.trace.trail import Trail


def judge(case: Case) -> tuple[Hop, ...]:
    """Return all hops; those behind the broken one are "not reached"."""
    found = checks.findings(case)
    there = trail.way_there(case.path.stations, case.report)
    hops: list[Hop] = list(_passed(there))
    if not there.whole and not answers.left(case):
        return (*hops, *_broken(case, there, found, back=False))
    if case.stretched and not case.stretched.far.open:
        end = overlay.unwatched(case.stretched, answered=answers.answer(case) is not None)
    else:
        end = answers.arrival(case, found)
    hops.append(end)
    if end.verdict is Verdict.BROKEN:
        return tuple(hops)
    return (*hops, *_way_back(case, found), *mtu.judge(case), *_doubled(case))


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
    exact = next((one.cause for one in found if it.first_missing and one.station == it.first_missing.name), None)
    asking = None if back else trail.unanswered(it, case.report)
    if exact and exact.kind.startswith(("link.", "port.")):
        return exact
    if rule := rules.dropping(case, back=back):
        return rules.cause(case, rule)
    if exact:
        return exact
    if case.stretched and (cause := overlay.why(case.stretched, it, back=back)):
        return cause
    if asking:
        return _nobody_has(case, it, asking, found)
    if cause := checks.at(list(found), it.first_missing):
        return cause
    if drop := drops.dropping(case, back=back):
        return drops.cause(case, drop)
    if case.report.refused and not back:
        return Cause("refused.kernel", f"the kernel of {case.source.place.name} refuses to send: {case.report.refused}")
    last = f"it was last seen where {it.last.words}" if it.last else f"{case.source.place.name} did not send it"
    return Cause("lost", f"{last}, and no rule or fault on the path explains that", "netplug diff")


def _nobody_has(case: Case, it: Trail, asking: trail.Asking, found: Sequence[Finding]) -> Cause:
    """Say why nobody answers for an address."""
    rest = it.stations[it.lost_at :]
    names = {one.name for one in rest}
    if known := next((one.cause for one in found if one.station in names), None):
        return known
    if known := next((one.cause for one in found if not one.station), None):
        return known
    if rule := rules.dropping(case, back=True) or rules.dropping(case, back=False):
        return rules.cause(case, rule)
    who = asking.asker.place.name
    if case.destination.kind is Kind.SANDBOX and asking.heard:
        words = f"{case.destination.place.name} hears {who} ask for {asking.wanted}, and does not answer"
        return Cause("neighbour.silent", words, mends.restarting(case.destination.record))
    words = f"nobody answers {who} for the address {asking.wanted} (the question was last seen at {asking.last.link})"
    return Cause("neighbour.none", words)


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
    cause = _other_way(case) or _why(case, it, found, back=True)
    return Hop(f"back-{missing.name}", missing.place.name, words, Verdict.BROKEN, cause=cause)


def _other_way(case: Case) -> Cause | None:
    """Say that the destination answers by another link than the one by which it was asked."""
    way, place, source = case.crossing.way_out, case.destination.place, case.report.source or case.flow.source
    lookup = next((it for it in case.scene.of(place).lookups if it.source == case.destination.address), None)
    if way is None or lookup is None:
        return None
    if lookup.error:
        words = f"{place.name} has no route back to {source}: {lookup.error}"
        return Cause("route.none", words, mends.restarting(case.destination.record))
    if lookup.link and lookup.link != way.link:
        words = f"{place.name} was asked by {way.link} and answers by {lookup.link}: its route to {source} leads there"
        mend = mends.inside(place, f"ip route replace {source} dev {way.link}")
        return Cause("route.other_link", words, mend)
    return None


def _at_home(case: Case) -> Cause:
    if rule := rules.dropping(case, back=True):
        return rules.cause(case, rule)
    if drop := drops.dropping(case, back=True):
        return drops.cause(case, drop)
    return Cause("back.ignored", f"{case.source.place.name} does not take the answer that came in")


def _doubled(case: Case) -> Iterator[Hop]:
    """Say that two stations answer for the next hop: the packet comes to one or the other."""
    if case.asked and len(set(case.asked.macs)) > 1:
        macs = " and ".join(sorted(set(case.asked.macs)))
        address = case.route.gateway or case.flow.destination if case.route else case.flow.destination
        words = f"two stations have the address {address}: {macs}"
        mend = f"remove {address} from the one that is not {case.destination.place.name}"
        where = case.source.place.name
        yield Hop(
            "neighbour", where, f"asks who has {address}", Verdict.BROKEN, cause=Cause("address.duplicate", words, mend)
        )
