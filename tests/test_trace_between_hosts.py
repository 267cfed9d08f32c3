"""How a packet between two hosts is judged: what was seen here and there, and what is said of the rest."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from netplug.cluster.questions import Reason, Unanswered
from netplug.drivers.api import Network, Peer, Subnet
from netplug.engine.records import FrontEnd, NetworkRecord
from netplug.insight.overlay.far_watch import FarWatch
from netplug.insight.overlay.messages import Fault, Seat, Tunnel, Watching
from netplug.insight.overlay.remote_ends import RemoteEnd
from netplug.insight.overlay.underlay import Underlay
from netplug.insight.trace import overlay, overlay_causes
from netplug.insight.trace.ends import of_remote
from netplug.insight.trace.model import HOST_PLACE, Cause, Hop, Verdict
from netplug.insight.trace.overlay import Stretched
from netplug.insight.trace.trail import Trail
from netplug.kernel.probes.api import Drop, Report, RouteFound, Rule, Sighting, What

ONE, TWO = ip_address("192.0.2.1"), ip_address("192.0.2.2")
WEB, DB = ip_address("10.1.0.2"), ip_address("10.1.0.3")
SEATS = (
    Seat("far-uplink", "eth0", incoming=True),
    Seat("far-tunnel", "npv1", incoming=True),
    Seat("far-port", "nph1", incoming=False),
    Seat("far-end", "eth0", incoming=True, sandbox=True),
)


def stretched(**changes: Any) -> Stretched:
    """All is well, unless said otherwise; `near`, `there`, `watching`: changes of those."""
    net = Network("n1", "blue", (Subnet(ip_network("10.1.0.0/24"), ip_interface("10.1.0.1/24")),))
    peer = Peer("e" * 64, "02:00:00:00:00:03", (DB,), TWO)
    end = RemoteEnd("db", "h2", "two", "c1", NetworkRecord(net, FrontEnd.CLI), peer, front_end="docker")
    near = Tunnel("npv0", 77, 4789, ONE, TWO, "eth0")
    there = Tunnel("npv1", 77, 4789, TWO, ONE, "eth0")
    near, there = replace(near, **changes.pop("near", {})), replace(there, **changes.pop("there", {}))
    watching = Watching("w1", called="db", netns="/run/netns/db", seats=SEATS, tunnel=there)
    far = FarWatch("two", replace(watching, **changes.pop("watching", {})), changes.pop("silence", None))
    return Stretched(end, near, far, **changes)


def missing(it: Stretched, name: str, *, back: bool = False) -> Cause | None:
    """Return the cause that is named if a packet does not come to a station."""
    stretches = (overlay.near_stretch(it, HOST_PLACE), *overlay.far_stretches(it))
    stations = [station for stretch in stretches for station in stretch.stations]
    stations = stations[::-1] if back else stations
    number = [one.name for one in stations].index(name)
    seen = [Sighting(one.name, What.SYN, True, back, 1.0, WEB, DB) for one in stations[:number]]
    return overlay_causes.why(it, Trail(tuple(stations), (*seen, *[None] * (len(stations) - number))), back=back)


def kind(cause: Cause | None) -> str:
    return cause.kind if cause else ""


def test_stations_are_in_the_order_of_the_packet() -> None:
    it = stretched()
    stretches = (overlay.near_stretch(it, HOST_PLACE), *overlay.far_stretches(it))
    stations = [station for stretch in stretches for station in stretch.stations]
    assert [(one.name, one.place.key, one.incoming) for one in stations] == [
        ("tunnel-out", "", False),
        ("uplink-out", "", False),
        ("far-uplink", "two:", True),
        ("far-tunnel", "two:", True),
        ("far-port", "two:", False),
        ("destination", "two:/run/netns/db", True),
    ]
    assert overlay.far_stretches(stretched(watching={"watch": ""})) == ()


def test_reports_of_both_hosts_become_one() -> None:
    near = Report(1, sightings=(Sighting("uplink-out", What.SYN, False, False, 0.4, WEB, DB),))
    far = Report(
        sightings=(
            Sighting("far-uplink", What.SYN, True, False, 91.0, WEB, DB),
            Sighting("far-end", What.SYN, True, False, 91.2, WEB, DB),
        ),
        rules=(Rule("", "nft", "ip", "filter", "INPUT", "drop"), Rule("/run/netns/db", "nft", "ip", "f", "c", "drop")),
        drops=(Drop("ip_rpfilter", "f", netns=""),),
        lacks=("no tracing",),
    )
    both = overlay.merged(near, far, "two")
    assert [(it.post, round(it.ms, 3)) for it in both.sightings] == [
        ("uplink-out", 0.4),
        ("far-uplink", 0.4),
        ("destination", 0.6),
    ]
    assert [it.netns for it in both.rules] == ["two:", "two:/run/netns/db"]
    assert [it.netns for it in both.drops] == ["two:"]
    assert both.lacks == ("host two: no tracing",)
    assert overlay.merged(near, Report(), "two") == near


@pytest.mark.parametrize(
    ("changes", "station", "back", "wanted"),
    [
        ({"near": {"faults": (Fault("fdb", "fdb/npv0/02", "missing"),)}}, "tunnel-out", False, "tunnel.fdb"),
        ({"near": {"faults": (Fault("fdb", "fdb/npv0/02", "missing"),)}}, "uplink-out", False, "tunnel.fdb"),
        ({"near": {"faults": (Fault("unknown", "endpoint 1", "refused"),)}}, "tunnel-out", False, "peer.unknown"),
        ({"near": {"route": RouteFound(TWO, error="unreachable")}}, "uplink-out", False, "underlay.no_route"),
        ({"underlay": Underlay(False, said="no route to host")}, "uplink-out", False, "underlay.unreachable"),
        ({"strayed": ip_address("192.0.2.9")}, "uplink-out", False, "tunnel.wrong_vtep"),
        ({}, "far-uplink", False, "underlay.unreachable"),
        ({"underlay": Underlay(True)}, "far-uplink", False, "underlay.blocked"),
        ({"there": {"vtep": ip_address("192.0.2.9")}}, "far-uplink", False, "vtep.changed"),
        ({"there": {"faults": (Fault("filter", "element", "missing"),)}}, "far-tunnel", False, "far.filter"),
        ({"there": {"faults": (Fault("unknown", "endpoint 1", "refused"),)}}, "far-tunnel", False, "far.filter"),
        ({}, "far-tunnel", False, ""),
        ({"there": {"faults": (Fault("link", "link/nph1", "missing"),)}}, "far-port", False, "tunnel.link"),
        ({"there": {"faults": (Fault("fdb", "fdb/npv1/02", "missing"),)}}, "far-uplink", True, "tunnel.fdb"),
        ({"there": {"faults": (Fault("neighbour", "n", "missing"),)}}, "destination", True, "tunnel.neighbour"),
        ({"there": {"route": RouteFound(ONE, error="unreachable")}}, "far-uplink", True, "underlay.no_route"),
        ({"strayed_back": ip_address("192.0.2.9")}, "far-uplink", True, "tunnel.wrong_vtep"),
        ({"anycast": ip_address("10.1.0.1")}, "far-tunnel", True, "anycast"),
        ({"underlay": Underlay(True)}, "uplink-out", True, "underlay.blocked"),
        ({"near": {"faults": (Fault("filter", "element", "missing"),)}}, "tunnel-out", True, "tunnel.filter"),
    ],
)
def test_cause_fits_the_station_that_is_missing(changes: Any, station: str, back: bool, wanted: str) -> None:
    assert kind(missing(stretched(**changes), station, back=back)) == wanted


def test_packets_to_a_wrong_vtep_did_not_leave_for_the_other_host() -> None:
    right = Sighting("uplink-out", What.SYN, False, False, 1, WEB, DB, vtep_destination=TWO)
    wrong = replace(right, vtep_destination=ip_address("192.0.2.9"))
    back = Sighting("far-uplink", What.SYN_ACK, False, True, 1, DB, WEB, vtep_destination=ip_address("192.0.2.8"))
    it, report = overlay.without_strays(stretched(), Report(sightings=(wrong, back)))
    assert (str(it.strayed), str(it.strayed_back), report.sightings) == ("192.0.2.9", "192.0.2.8", ())
    it, report = overlay.without_strays(stretched(), Report(sightings=(right, replace(back, vtep_destination=ONE))))
    assert (it.strayed, it.strayed_back, len(report.sightings)) == (None, None, 2)


def test_host_that_does_not_watch_is_a_note_if_it_answers_and_the_break_if_not() -> None:
    silent = Unanswered(Reason.SILENT, "two", "unavailable", "host two did not answer within 4 s", hint="look there")
    it = stretched(watching={"watch": ""}, silence=silent)
    hop = overlay_causes.unwatched(it, answered=True)
    assert (hop.verdict, kind(hop.cause)) == (Verdict.NOTED, "far.silent")
    hop = overlay_causes.unwatched(replace(it, underlay=Underlay(True)), answered=False)
    assert (hop.verdict, kind(hop.cause)) == (Verdict.BROKEN, "far.silent")
    assert "the host lives" in (hop.cause.words if hop.cause else "")
    hop = overlay_causes.unwatched(replace(it, underlay=Underlay(False)), answered=False)
    assert kind(hop.cause) == "host.unreachable"
    gone = stretched(watching={"watch": "", "absent": "network blue has no such endpoint there"})
    assert kind(overlay_causes.unwatched(gone, answered=False).cause) == "endpoint.gone"


def test_mends_say_on_which_host() -> None:
    it = stretched()
    hop = Hop("listener", "db", "port", Verdict.BROKEN, cause=Cause("listener.none", "nobody", "start it"))
    assert overlay_causes.located(it, hop).cause == Cause("listener.none", "nobody", "on host two: start it")
    assert overlay_causes.located(it, overlay_causes.located(it, hop)) == overlay_causes.located(it, hop)
    here = replace(hop, where="this host")
    assert overlay_causes.located(it, here) == here
    own = replace(hop, where="host two", cause=Cause("tunnel.wrong_vtep", "w", "netplug repair"))
    assert overlay_causes.located(it, own) == own


def test_large_packets_are_told_with_the_size_that_passes() -> None:
    assert overlay_causes.too_large(stretched(), 1450) is None
    assert overlay_causes.too_large(stretched(underlay=Underlay(True, largest=1500)), 1450) is None
    cause = overlay_causes.too_large(stretched(underlay=Underlay(True, largest=1400)), 1450)
    assert cause
    assert "carries about 1400, and nobody says so" in cause.words
    assert cause.mend.endswith("netplug network update blue -o mtu=1350")
    told = overlay_causes.too_large(stretched(underlay=Underlay(True, largest=1400, told="192.0.2.254")), 1450)
    assert told
    assert "as 192.0.2.254 says" in told.words


def test_end_on_another_host_has_a_record_of_what_is_known() -> None:
    end = of_remote(stretched().end, DB)
    assert end.record
    assert (end.place.key, end.address) == ("two:", DB)
    assert (end.record.front_end, end.record.endpoint.addresses) == (FrontEnd.DOCKER, (ip_interface("10.1.0.3/24"),))
    assert end.holder(DB) is end.record
