"""Requests for a MAC that nobody answers, on which a packet or its answer waits."""

from collections.abc import Sequence

from netplug.insight.trace import mends, rules, trail
from netplug.insight.trace.case import Case
from netplug.insight.trace.ends import Kind
from netplug.insight.trace.findings import Finding
from netplug.insight.trace.model import Cause
from netplug.insight.trace.trail import Trail


def nobody_has(case: Case, it: Trail, found: Sequence[Finding], *, back: bool) -> Cause | None:
    """Say why nobody answers for an address, if that is what the packet waits for."""
    asking = trail.unanswered(it, case.report, back=back)
    if asking is None:
        return None
    # Nobody asks for an address of his own, but this process does, for the source.
    links = case.scene.of(asking.asker.place).links
    if back and any(str(one.ip) == asking.wanted for link in links for one in link.addresses):
        return None
    names = {f"back-{one.name}" if back else one.name for one in it.stations[it.lost_at :]}
    if known := next((one.cause for one in found if one.station in names), None):
        return known
    if known := next((one.cause for one in found if not one.station), None):
        return known
    if rule := rules.dropping(case, back=True) or rules.dropping(case, back=False):
        return rules.cause(case, rule)
    who, end = asking.asker.place.name, case.source if back else case.destination
    if end.kind is Kind.SANDBOX and asking.heard:
        words = f"{end.place.name} hears {who} ask for {asking.wanted}, and does not answer"
        return Cause("neighbour.silent", words, mends.restarting(end.record))
    words = f"nobody answers {who} for the address {asking.wanted} (the question was last seen at {asking.last.link})"
    wrong = back and end.kind is Kind.OUTSIDE and asking.wanted == str(case.flow.source)
    return Cause("neighbour.none", words, "give an address as SRC that somebody has" if wrong else "")
