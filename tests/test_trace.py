"""Traces, where no kernel is needed: how ends are written, what is asked for a name, and how sightings are judged."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface
from typing import Any

import pytest

from netplug.docker.strangers import Stranger
from netplug.drivers.steps import IPAddress
from netplug.errors import NetplugError
from netplug.insight.trace import drops, mends, neighbours, trail
from netplug.insight.trace.case import Case
from netplug.insight.trace.ends import End, Kind
from netplug.insight.trace.model import Cause, Place, Scene, Station
from netplug.insight.trace.path import Crossing, path
from netplug.insight.trace.resolving import candidates
from netplug.insight.trace.strangers import Strangers
from netplug.insight.trace.target import parse
from netplug.kernel.probes.api import (
    Drop,
    Facts,
    Flow,
    LinkState,
    NeighbourState,
    Report,
    RouteFound,
    Rule,
    Sighting,
    What,
)

SRC, DST = ip_address("10.0.0.2"), ip_address("10.0.0.3")
HERE, THERE, HOST = Place("asker", "/run/a"), Place("web", "/run/w"), Place("this host")
STATIONS = (
    Station("source", HERE, "eth0", incoming=False, words="eth0 of asker sends"),
    Station("port-in", HOST, "nph1", incoming=True, words="nph1 receives"),
    Station("port-out", HOST, "nph2", incoming=False, words="nph2 sends"),
    Station("destination", THERE, "eth0", incoming=True, words="eth0 of web receives"),
)


@pytest.mark.parametrize(
    ("text", "name", "address", "port", "proto"),
    [
        ("web", "web", None, 0, "icmp"),
        ("web:80", "web", None, 80, "tcp"),
        ("blue/web:53/UDP", "blue/web", None, 53, "udp"),
        ("10.0.0.3:80", "10.0.0.3", DST, 80, "tcp"),
        ("fd00::1", "fd00::1", ip_address("fd00::1"), 0, "icmp"),
        ("[fd00::1]", "fd00::1", ip_address("fd00::1"), 0, "icmp"),
        ("[fd00::1]:80", "fd00::1", ip_address("fd00::1"), 80, "tcp"),
        ("outside", "outside", None, 0, "icmp"),
        ("outside:443", "outside", None, 443, "tcp"),
        ("outside=10.0.0.3:80/udp", "outside", DST, 80, "udp"),
        ("outside=fd00::1", "outside", ip_address("fd00::1"), 0, "icmp"),
        ("outside=[fd00::1]:80", "outside", ip_address("fd00::1"), 80, "tcp"),
        ("host:22", "host", None, 22, "tcp"),
    ],
)
def test_ends_are_read(text: str, name: str, address: Any, port: int, proto: str) -> None:
    found = parse(text, "DST", port=True)
    assert (found.name, found.address, found.port, found.proto) == (name, address, port, proto)


@pytest.mark.parametrize(
    ("text", "port", "words"),
    [
        ("web:0", True, "0 is no port"),
        ("web:70000", True, "70000 is no port"),
        ("web:80/sctp", True, "protocol 'sctp' cannot be traced"),
        ("web:80", False, "SRC 'web:80' has a port"),
        ("outside=here", True, "'here' is no address"),
        ("host=10.0.0.3", True, "host takes no address"),
        ("", True, "names nothing"),
        (":80", True, "names nothing"),
        ("web:", True, "no port is behind the colon"),
        ("fd00::zz", True, "it is no address"),
        ("http://web:80/", True, "is a URL"),
        ("10.0.0.3/24", True, "is a subnet"),
        ("fe80::1", True, "fe80::1 is valid on one link only"),
        ("[fe80::1]:80", True, "fe80::1 is valid on one link only"),
        ("0.0.0.0:80", True, "0.0.0.0 stands for all addresses"),
        ("a\nb", True, "no blanks and control characters"),
        (" ", True, "no blanks and control characters"),
    ],
)
def test_what_is_no_end_is_refused(text: str, port: bool, words: str) -> None:
    with pytest.raises(NetplugError, match=words):
        parse(text, "DST" if port else "SRC", port=port)


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("web", (), ["web.blue.test", "web"]),
        ("web.blue", (), ["web.blue", "web.blue.blue.test"]),
        ("web.blue", ("ndots:2",), ["web.blue.blue.test", "web.blue"]),
        ("web", ("ndots:0",), ["web", "web.blue.test"]),
        ("web.", (), ["web"]),
    ],
)
def test_names_are_asked_as_the_c_library_does(name: str, options: tuple[str, ...], wanted: list[str]) -> None:
    assert list(candidates(name, Facts(search=("blue.test.",), resolv_options=options))) == wanted


def seen(post: str, *, incoming: bool, what: What = What.SYN, back: bool = False, about: Any = DST) -> Sighting:
    return Sighting(post, what, incoming, back, 1.0, SRC, about)


def test_a_packet_is_lost_behind_the_last_station_that_saw_it() -> None:
    sightings = (seen("source", incoming=False), seen("port-in", incoming=True))
    found = trail.way_there(STATIONS, Report(sightings=sightings))
    assert (found.lost_at, found.whole) == (2, False)
    assert found.last == STATIONS[1]
    assert found.first_missing == STATIONS[2]


def test_a_station_that_is_passed_unseen_lost_nothing() -> None:
    sightings = (seen("source", incoming=False), seen("destination", incoming=True))
    assert trail.way_there(STATIONS, Report(sightings=sightings)).whole


def test_another_direction_and_the_answer_are_no_sightings_of_the_packet() -> None:
    sightings = (
        seen("source", incoming=True),
        seen("source", incoming=False, back=True),
        seen("source", incoming=False, what=What.ARP_REQUEST),
    )
    assert trail.way_there(STATIONS, Report(sightings=sightings)).lost_at == 0


def test_the_way_back_has_the_other_order_and_directions() -> None:
    answers = (
        seen("destination", incoming=False, what=What.SYN_ACK, back=True),
        seen("port-out", incoming=True, what=What.SYN_ACK, back=True),
    )
    found = trail.way_back(STATIONS, Report(sightings=answers))
    assert found.first_missing == STATIONS[1]


def test_a_request_for_a_mac_that_nobody_answers_is_followed() -> None:
    asked = [seen(it.name, incoming=it.incoming, what=What.ARP_REQUEST) for it in STATIONS[:3]]
    report = Report(sightings=tuple(asked))
    found = trail.unanswered(trail.way_there(STATIONS, report), report)
    assert found is not None
    assert (found.asker, found.last, found.heard) == (STATIONS[0], STATIONS[2], False)
    answered = Sighting("source", What.ARP_REPLY, True, True, 2.0, DST, SRC)
    report = Report(sightings=(*asked, answered))
    assert trail.unanswered(trail.way_there(STATIONS, report), report) is None


def test_a_request_for_a_mac_on_the_way_back_has_the_other_direction() -> None:
    stations = (Station("uplink-in", HOST, "eth0", incoming=True, words=""), *STATIONS[2:])
    answers = [seen(it.name, incoming=not it.incoming, what=What.SYN_ACK, back=True) for it in stations[1:]]
    asked = seen("uplink-in", incoming=False, what=What.ARP_REQUEST, about=SRC)
    report = Report(sightings=(*answers, asked))
    found = trail.unanswered(trail.way_back(stations, report), report, back=True)
    assert found is not None
    assert (found.asker, found.last, found.wanted) == (stations[0], stations[0], str(SRC))
    assert trail.unanswered(trail.way_back(stations, report), report) is None
    probe = Sighting("uplink-in", What.ARP_REQUEST, False, False, 1.0, ip_address("0.0.0.0"), SRC)
    report = Report(sightings=(*answers, probe))
    assert trail.unanswered(trail.way_back(stations, report), report, back=True) is None
    heard = seen("uplink-in", incoming=True, what=What.ARP_REQUEST, about=SRC)
    report = Report(sightings=(*answers, heard))
    assert trail.unanswered(trail.way_back(stations, report), report, back=True) is None


def traced(report: Report) -> Case:
    ends: Any = None  # nobody is looked up
    crossing = Crossing(End(Kind.SANDBOX, HERE), End(Kind.SANDBOX, THERE, address=DST))
    return Case(ends, crossing, path(crossing), Scene(), Flow(DST), report, "tcp", 80)


@pytest.mark.parametrize(
    ("drop", "says"),
    [
        (
            Drop("ip_inaddrerrors", "ip_error", netns="/run/w"),
            "on web: it is for an address that is not the receiver's, and the receiver does not forward (ip_error)",
        ),
        (
            Drop("not_specified", "ip_error", netns="/run/w", link="eth0"),
            "on web by eth0: no route leads to its address, or the receiver does not forward (ip_error)",
        ),
        (
            Drop("no_tx_target", "br_flood", netns=""),
            "on this host: no port of the bridge, and no VTEP, leads to its MAC (br_flood)",
        ),
        (
            Drop("vxlan_vni_not_found", "vxlan_rcv"),
            "the kernel drops it: no VXLAN link of the receiver has its VNI (vxlan_rcv)",
        ),
        (Drop("new_reason", "f"), "the kernel drops it: new_reason (f)"),
        (Drop("new_reason", "f", netns=""), "on this host: the kernel drops it: new_reason (f)"),
    ],
)
def test_reasons_of_the_kernel_are_told_in_words(drop: Drop, says: str) -> None:
    case = traced(Report(drops=(Drop("not_specified", "kfree_skb"), drop)))
    assert drops.dropping(case, back=False) == drop
    assert drops.cause(case, drop).words == says
    assert drops.dropping(traced(Report(drops=(Drop("not_specified", "kfree_skb"),))), back=False) is None


@pytest.mark.parametrize(
    ("rule", "place", "wanted"),
    [
        (
            Rule("", "nft", "inet", "fw", "forward", "drop", "drop", 7),
            HOST,
            "nft delete rule inet fw forward handle 7",
        ),
        (
            Rule("", "nft", "inet", "fw", "forward", "drop", "policy drop"),
            HOST,
            "nft 'chain inet fw forward { policy accept ; }'",
        ),
        (
            Rule("", "iptables-nft", "ip", "filter", "DOCKER-USER", "drop", "-A DOCKER-USER -d 10.0.0.3/32 -j DROP"),
            HOST,
            "iptables -D DOCKER-USER -d 10.0.0.3/32 -j DROP",
        ),
        (
            Rule("", "iptables-legacy", "ip6", "raw", "PREROUTING", "drop", "-A PREROUTING -j DROP"),
            HOST,
            "ip6tables-legacy -t raw -D PREROUTING -j DROP",
        ),
        (
            Rule("", "iptables-nft", "ip", "filter", "FORWARD", "drop", "policy drop"),
            HOST,
            "iptables -P FORWARD ACCEPT",
        ),
        (
            Rule("/run/w", "nft", "inet", "fw", "input", "drop", "drop", 2),
            THERE,
            "nsenter --net=/run/w nft delete rule inet fw input handle 2",
        ),
    ],
)
def test_rules_are_taken_away_by_a_command(rule: Rule, place: Place, wanted: str) -> None:
    assert mends.without_rule(rule, place) == wanted


def test_wrong_entry_of_a_neighbour_table_is_found_there_and_back() -> None:
    one, other, wrong = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:98"
    case = traced(Report(source=SRC))

    def facts(mac: str, address: IPAddress, entry: NeighbourState) -> Facts:
        link = LinkState("eth0", 2, True, True, 1500, mac, addresses=(ip_interface(f"{address}/24"),))
        back = RouteFound(SRC, DST, "eth0")
        return Facts(links=(link,), neighbours=(entry,), lookups=(back,) if address == DST else ())

    def cause(here: str, there: str, state: str = "stale") -> Cause | None:
        scene = {
            HERE.key: facts(one, SRC, NeighbourState(DST, "eth0", here, state)),
            THERE.key: facts(other, DST, NeighbourState(SRC, "eth0", there, state)),
        }
        return neighbours.wrong(replace(case, scene=Scene(scene), route=RouteFound(DST, None, "eth0")))

    assert cause(other, one) is None
    assert cause(wrong, wrong, "failed") is None
    found = cause(wrong, one)
    assert found is not None
    assert found.words == f"{HERE.name} has MAC {wrong} for {DST}, and that of {THERE.name} is {other}"
    assert found.mend == f"nsenter --net={HERE.netns} ip neighbour del {DST} dev eth0"
    found = cause(other, wrong)
    assert found is not None
    assert found.words == f"{THERE.name} has MAC {wrong} for {SRC}, and that of {HERE.name} is {one}"


@pytest.mark.parametrize(("endpoints", "waits"), [(("0a1b",), True), (("ffff",), False), ((), False)])
async def test_name_that_docker_tells_late_is_waited_for(endpoints: tuple[str, ...], waits: bool) -> None:
    asked: list[str] = []

    class Known:
        left = 3

        def knows(self, name: str) -> bool:
            self.left -= name == "web"
            return name == "0a1b" or self.left < 0

    async def ask(name: str) -> Stranger:
        asked.append(name)
        return Stranger(name, "running", "blue", ("blue",), endpoints=endpoints)

    known: Any = Known()
    await Strangers(known, ask).named(parse("web", "SRC", port=False))
    assert asked == ["web"]
    assert (known.left < 0) is waits
    await Strangers(known, ask).named(parse("10.0.0.1", "SRC", port=False))
    assert asked == ["web"]
