"""Whether the host's routes and rules lead where the records say: to a network's bridge, and back to the source."""

from collections.abc import Iterator

from netplug.drivers.steps import IPAddress
from netplug.insight.trace.case import Case
from netplug.insight.trace.ends import Kind
from netplug.insight.trace.findings import Finding
from netplug.insight.trace.model import Cause
from netplug.insight.trace.path import Wiring, host_link
from netplug.kernel.probes.api import RouteFound, RouteState

REFUSALS = {
    "invalid argument": "a route or rule of type blackhole",
    "permission denied": "a route or rule of type prohibit",
    "no route to host": "a route or rule of type unreachable",
}


def forwards(case: Case) -> tuple[tuple[IPAddress, IPAddress, str], ...]:
    """Return the routes to look up on the host: there and back, each as destination, sender, and receiving link."""
    source, destination = _addresses(case)
    crossing = case.crossing
    if crossing.direct or crossing.bridged or crossing.destination.far or source is None or destination is None:
        return ()
    found = []
    if crossing.source.kind is not Kind.HOST and (by := host_link(crossing.way_in) or crossing.uplink):
        found.append((destination, source, by))
    if crossing.destination.kind is not Kind.HOST and (by := host_link(crossing.way_out) or crossing.uplink):
        found.append((source, destination, by))
    return tuple(found)


def findings(case: Case) -> Iterator[Finding]:
    """Yield where the host sends a packet, or its answer, elsewhere."""
    source, destination = _addresses(case)
    if case.crossing.direct or case.crossing.bridged or case.crossing.destination.far:
        return
    there = next((it for it in case.host.forwards if (it.destination, it.source) == (destination, source)), None)
    back = next((it for it in case.host.forwards if (it.destination, it.source) == (source, destination)), None)
    if case.crossing.source.kind is Kind.HOST:
        there = case.route
    for found, way, station in (
        (there, case.crossing.way_out, "-out"),
        (back, case.crossing.way_in, "-in"),
    ):
        if found and (cause := _cause(case, found, way)):
            name = sending_station(case, station)
            yield Finding(f"back-{name}" if station == "-in" else name, cause)


def sending_station(case: Case, end: str) -> str:
    """Return the station by which the host sends: there ("-out") the first of them, back ("-in") the last."""
    names = ("bridge-out", "uplink-out", "port-out") if end == "-out" else ("bridge-in", "uplink-in")
    return next((it.name for it in case.path.stations if not it.place.netns and it.name in names), "")


def _cause(case: Case, found: RouteFound, way: Wiring | None) -> Cause | None:
    wanted = host_link(way)
    if found.error:
        if found.error not in REFUSALS and not wanted:
            words = f"this host has no route to {found.destination}: {found.error}"
            return Cause("route.none", words, "ip route show")
        why = REFUSALS.get(found.error, found.error)
        words = f"this host does not send to {found.destination}: {why}"
        return Cause("route.refused", words, "ip rule show; ip route show table all")
    if not wanted or not found.link or found.link in {wanted, way.port if way else ""}:
        return None
    route = _covering(case, found)
    by = f"its route {route.destination}" if route else "a rule (ip rule) or another table"
    words = f"this host sends to {found.destination} by {found.link}, not by {wanted}: {by} leads there"
    if route is None:
        return Cause("route.hijacked", words, "ip rule show; ip route show table all")
    via = f"via {route.gateway} " if route.gateway else ""
    flag = "-6 " if case.version == 6 else ""
    return Cause("route.hijacked", words, f"ip {flag}route del {route.destination} {via}dev {route.link}")


def _covering(case: Case, found: RouteFound) -> RouteState | None:
    """Return the route of the main table that was taken, if it is one of that."""
    fitting = [it for it in case.host.routes if found.destination in it.destination and it.link == found.link]
    return max(fitting, key=lambda it: it.destination.prefixlen, default=None)


def _addresses(case: Case) -> tuple[IPAddress | None, IPAddress | None]:
    """Return the source's address, and the destination's behind NAT."""
    source = case.report.source or case.flow.source or (case.route.preferred if case.route else None)
    return source, case.destination.address
