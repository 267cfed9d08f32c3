"""Faults that can be read off the places of a path: each is a check, which names the station that it breaks."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeAlias

from netplug.insight.trace import host_routes, mends, neighbours, rules
from netplug.insight.trace.case import Case
from netplug.insight.trace.ends import Kind, name_of
from netplug.insight.trace.findings import Finding
from netplug.insight.trace.model import Cause, Place, Station
from netplug.insight.trace.path import expected_bridge
from netplug.kernel.probes.api import LinkState

Check: TypeAlias = Callable[[Case], Iterator[Finding]]


def findings(case: Case) -> list[Finding]:
    """Return all faults, in the order in which they are more likely the cause.

    What was wrong either before or after the packet was sent is told: somebody may break all the time what is healed.
    """
    cases = [case, replace(case, scene=case.later)] if case.later else [case]
    return [it for check in CHECKS for one in cases for it in check(one)]


def at(found: list[Finding], station: Station | None) -> Cause | None:
    """Return the fault that explains why the packet did not come to a station."""
    names = {station.name} if station else set()
    exact = [it for it in found if it.station in names]
    general = [it for it in found if not it.station]
    return next((it.cause for it in (*exact, *general)), None)


def _links(case: Case) -> Iterator[Finding]:
    for station in (it for it in case.path.stations if it.link):
        link = case.scene.link(station)
        if link is None:
            words = f"link {station.link} is missing on {station.place.name}"
            yield Finding(station.name, Cause("link.missing", words, "netplug repair"))
        elif not link.up:
            yield Finding(station.name, _down(station.place, link))
        elif not link.carrier:
            yield Finding(station.name, _other_end(case, station, link))


def _arp(case: Case) -> Iterator[Finding]:
    """A link that neither asks for MACs nor answers (IFF_NOARP)."""
    for station in case.path.stations:
        link = case.scene.link(station)
        if link and not link.arp and link.kind in {"veth", "bridge", "macvlan"}:
            words = f"{link.name} on {station.place.name} has ARP off, so it neither asks for MACs nor answers"
            yield Finding(
                "", Cause("link.noarp", words, mends.inside(station.place, f"ip link set {link.name} arp on"))
            )


def _down(place: Place, link: LinkState) -> Cause:
    mend = mends.inside(place, f"ip link set {link.name} up")
    return Cause("link.down", f"{link.name} on {place.name} is down", mend)


def _other_end(case: Case, station: Station, link: LinkState) -> Cause:
    """Say why a link has no carrier: the other end of a veth is down, where that is known."""
    for other in case.path.stations:
        found = case.scene.link(other)
        if found and other.place != station.place and not found.up and found.peer == link.index:
            return _down(other.place, found)
    words = f"{link.name} on {station.place.name} has no carrier: its other end is down, or the cable is cut"
    return Cause("link.no_carrier", words, "bring up the other end, or connect the cable")


def _spoofing(case: Case) -> Iterator[Finding]:
    """A sandbox has another MAC or address than its record: what it sends is dropped, requests for MACs too."""
    for way, back in ((case.crossing.way_in, False), (case.crossing.way_out, True)):
        if way is None or way.record is None or way.shared or not case.ends.network(way.record).options.spoofchk:
            continue
        if cause := rules.spoofed(case, back=back):
            yield Finding("", cause)


def _ports(case: Case) -> Iterator[Finding]:
    for way, station in ((case.crossing.way_in, "port-in"), (case.crossing.way_out, "port-out")):
        if way is None or not way.port or way.record is None:
            continue
        port = case.host.link(way.port)
        wanted = expected_bridge(way.record, way.port)
        if port and wanted and port.master != wanted:
            words = f"{way.port}, the host side of {name_of(way.record)}, is no port of bridge {wanted}"
            words += f", but of {port.master}" if port.master else ""
            yield Finding(station, Cause("port.not_enslaved", words, f"ip link set {way.port} master {wanted}"))
        if port and station == "port-out" and _comes_back(case) and port.hairpin is False:
            words = f"{way.port} has hairpin off, and bridge-nf-call-iptables=1 keeps the packet on its bridge"
            yield Finding(station, Cause("hairpin", words, f"bridge link set dev {way.port} hairpin on"))


def past_the_bridge(case: Case) -> bool:
    """Whether the bridge's own link may not see the packet, though the host redirects it.

    Bridge netfilter keeps a packet on its bridge if the new destination is there and its MAC is known
    (br_nf_pre_routing_finish_bridge).
    """
    one, other = case.crossing.way_in, case.crossing.way_out
    name = "iptables" if case.version == 4 else "ip6tables"
    same = bool(one and other and one.bridge and one.bridge == other.bridge)
    return same and case.host.sysctl(f"net/bridge/bridge-nf-call-{name}") == "1"


def _comes_back(case: Case) -> bool:
    """Whether the bridge sends the packet out by the port where it came in: to an own published port."""
    one, other = case.crossing.way_in, case.crossing.way_out
    return past_the_bridge(case) and bool(one and other and one.port == other.port)


def _icc(case: Case) -> Iterator[Finding]:
    record = case.crossing.way_out.record if case.crossing.way_out else None
    if record and case.crossing.bridged and not case.ends.network(record).options.icc:
        yield Finding("", rules.icc(case.ends.network(record).name))


def _forwarding(case: Case) -> Iterator[Finding]:
    crosses = case.crossing.way_in is not None or case.source.kind is Kind.OUTSIDE
    if case.crossing.bridged or not crosses or case.destination.kind is Kind.HOST or case.crossing.direct:
        return
    if case.crossing.way_in and case.crossing.way_in.shared:
        return
    station = next((it.name for it in case.path.stations if not it.incoming and not it.place.netns), "")
    received = [it.link for it in case.path.stations if it.incoming and not it.place.netns]
    names = ["net/ipv4/ip_forward", *(f"net/ipv4/conf/{link}/forwarding" for link in received[-1:])]
    for name in names if case.version == 4 else ["net/ipv6/conf/all/forwarding"]:
        if case.host.sysctl(name) == "0":
            yield Finding(station, _not_forwarded(case, name))
            return
    # The answer comes in where the packet went out.
    ours = {it.name: it.link for it in case.path.stations if not it.place.netns}
    sent = ours.get("uplink-out") or ours.get("bridge-out")
    if case.version == 4 and sent and case.host.sysctl(name := f"net/ipv4/conf/{sent}/forwarding") == "0":
        yield Finding(f"back-{host_routes.sending_station(case, '-in')}", _not_forwarded(case, name))


def _not_forwarded(case: Case, name: str) -> Cause:
    dotted = name.replace(".", "\0").replace("/", ".").replace("\0", "/")
    words = f"this host does not forward IPv{case.version} ({dotted}=0)"
    return Cause("forwarding", words, f"sysctl -w {dotted}=1")


def _neighbours(case: Case) -> Iterator[Finding]:
    if cause := neighbours.wrong(case):
        yield Finding("", cause)


def _conntrack(case: Case) -> Iterator[Finding]:
    for place in case.path.places:
        facts = case.scene.of(place)
        count, most = (facts.sysctl(f"net/netfilter/nf_conntrack_{it}") for it in ("count", "max"))
        if count.isdigit() and most.isdigit() and 0 < int(most) <= int(count):
            words = f"the connection tracking table of {place.name} is full ({count} of {most})"
            mend = mends.inside(place, f"sysctl -w net.netfilter.nf_conntrack_max={2 * int(most)}")
            yield Finding("", Cause("conntrack.full", words, mend))


def _addresses(case: Case) -> Iterator[Finding]:
    """The destination's own address is missing in its sandbox, or is on another link."""
    way, address = case.crossing.way_out, case.destination.address
    if way is None or address is None:
        return
    links = case.scene.of(case.destination.place).links
    if links and not any(one.ip == address for it in links for one in it.addresses):
        words = f"{case.destination.place.name} does not have address {address}"
        interface = next(
            (it for it in (way.record.endpoint.addresses if way.record else ()) if it.ip == address), address
        )
        mend = mends.inside(case.destination.place, f"ip address add {interface} dev {way.link}")
        yield Finding("destination", Cause("address.missing", words, mend))


def _rp_filter(case: Case) -> Iterator[Finding]:
    """A strict reverse path filter (RFC 3704 2.2) where the route back leaves by another link."""
    way, place = case.crossing.way_out, case.destination.place
    facts = case.scene.of(place)
    back = next((it for it in facts.lookups if it.source == case.destination.address), None)
    if way is None or back is None or not back.link or back.link == way.link or case.version != 4:
        return
    values = [facts.sysctl(f"net/ipv4/conf/{name}/rp_filter") for name in ("all", way.link)]
    if max(values) == "1":
        words = f"{place.name} drops what comes in by {way.link}: its route back leaves by {back.link} (rp_filter=1)"
        mend = mends.inside(place, f"sysctl -w net.ipv4.conf.{way.link.replace('.', '/')}.rp_filter=2")
        yield Finding("destination", Cause("rp_filter", words, mend))


CHECKS: tuple[Check, ...] = (
    _links,
    _ports,
    _spoofing,
    _rp_filter,
    _icc,
    _addresses,
    _forwarding,
    host_routes.findings,
    _arp,
    _neighbours,
    _conntrack,
)
