"""Entries of neighbour tables that have a wrong MAC for the next station of a packet, or of its answer.

An entry outlives what it was learned from: a station that is gone, a MAC that was changed, a false answer. The kernel
asks anew after some 40 seconds (ip-sysctl, base_reachable_time), and never where the entry is permanent.
"""

from collections.abc import Iterator

from netplug.drivers.steps import IPAddress
from netplug.insight.trace import mends
from netplug.insight.trace.case import Case
from netplug.insight.trace.model import HOST_PLACE, Cause, Place


def wrong(case: Case) -> Cause | None:
    """Return that a place on the path has a wrong MAC for an address to which it sends."""
    for place, address in _next_hops(case):
        facts, owner = case.scene.of(place), _owner(case, place, address)
        for entry in facts.neighbours if owner else ():
            known = entry.address == address and entry.mac and entry.state != "failed" and facts.link(entry.link)
            if owner and known and entry.mac not in owner[1]:
                words = f"{place.name} has MAC {entry.mac} for {address}, and that of {owner[0]} is "
                mend = mends.inside(place, f"ip neighbour del {address} dev {entry.link}")
                return Cause("neighbour.wrong", words + " or ".join(owner[1]), mend)
    return None


def hops_of(case: Case, place: Place) -> list[IPAddress]:
    """Return the addresses of its segment to which a place sends: there first, then back."""
    return [address for sender, address in _next_hops(case) if sender == place]


def _next_hops(case: Case) -> Iterator[tuple[Place, IPAddress]]:
    """Yield who sends to which address of its segment: there first, then back."""
    destination, sender = case.destination.address, case.report.source or case.flow.source
    if case.crossing.direct or destination is None:
        return
    if case.route:
        yield case.source.place, case.route.gateway or case.route.destination
    yield HOST_PLACE, destination
    for it in case.scene.of(case.destination.place).lookups:
        if it.source == destination:
            yield case.destination.place, it.gateway or it.destination
    if sender:
        yield HOST_PLACE, sender


def _owner(case: Case, asking: Place, address: IPAddress) -> tuple[str, list[str]] | None:
    """Return who has an address on the path, and the MACs of the links that have it."""
    for place in dict.fromkeys((case.destination.place, case.source.place, HOST_PLACE)):
        links = case.scene.of(place).links if place != asking and not place.host else ()
        if macs := [it.mac for it in links if any(one.ip == address for one in it.addresses)]:
            return place.name, macs
    return None
