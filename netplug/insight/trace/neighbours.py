"""Entries of neighbour tables for the next station of a packet, or of its answer: with a wrong MAC, or with none.

An entry outlives what it was learned from: a station that is gone, a MAC that was changed, a false answer. The kernel
asks anew after some 40 seconds (ip-sysctl, base_reachable_time), and never where the entry is permanent. While it asks
in vain, packets wait in the entry (arp(7)).
"""

from collections.abc import Iterator

from netplug.drivers.steps import IPAddress
from netplug.insight.trace import mends
from netplug.insight.trace.case import Case
from netplug.insight.trace.model import HOST_PLACE, Cause, Place

_IN_VAIN = frozenset({"incomplete", "failed"})
"""States of an entry that has no MAC (linux/neighbour.h, NUD_*)."""


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


def silent(case: Case, place: Place, *, back: bool) -> Cause | None:
    """Return that nobody answers for the address to which a place sends, as the entry of its neighbour table says.

    The request itself may be older than the packet: the kernel repeats it each second, three times (arp(7)).
    """
    cause, wanted = none(case, place, back=back), _hop(case, place, back=back)
    states = {it.state for it in case.scene.of(place).neighbours if it.address == wanted}
    return cause if states and states <= _IN_VAIN else None


def none(case: Case, place: Place, *, back: bool) -> Cause | None:
    """Say that nobody answers for the address to which a place sends, if it sends to one of its segment."""
    wanted = _hop(case, place, back=back)
    return Cause("neighbour.none", f"nobody answers {place.name} for the address {wanted}") if wanted else None


def _hop(case: Case, place: Place, *, back: bool) -> IPAddress | None:
    hops = [address for sender, address in _next_hops(case) if sender == place]
    return hops[-1 if back else 0] if hops else None


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
