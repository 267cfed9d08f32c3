"""Names of networks, and who sees which of them."""

import doctest
import importlib
import tracemalloc
from ipaddress import ip_address, ip_network

import pytest
from dns_packets import ask, both, opt, query, read, view, zones
from hypothesis import given
from hypothesis import strategies as st

from netplug.dns import wire
from netplug.dns.fast_path import answer
from netplug.dns.forward_rules import Rule, Rules
from netplug.dns.question import Question
from netplug.dns.slow_path import respond
from netplug.dns.view import REMOVED_S
from netplug.dns.zone import MAX_ROTATIONS, Entry, Network, Service, Zones

BLUE, RED = "b" * 64, "r" * 64
FORMS = ("", ".blue", ".blue.netplug.internal", ".BLUE.NetPlug.internal.")


@pytest.mark.parametrize("module", ["wire", "view"])
def test_examples_in_docstrings_hold(module: str) -> None:
    assert doctest.testmod(importlib.import_module(f"netplug.dns.{module}")).failed == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["web", "www", "0a1b2c3d4e5f"])
def test_name_alias_and_short_id_in_each_form(name: str, form: str) -> None:
    blue = view(zones(), "blue")
    for kind, address in ((wire.A, "10.1.0.2"), (wire.AAAA, "fd00:1::2")):
        reply = ask(blue, name + form, kind)
        assert (reply.rcode, reply.aa, reply.data, reply.ttls) == (0, True, [address], (7,))


@pytest.mark.parametrize("form", FORMS)
def test_alias_of_several_rotates(form: str) -> None:
    blue = view(zones(), "blue")
    data = query("app" + form)
    replies = [both(blue, data) for _ in range(5)]
    assert len(set(replies)) == 2
    assert replies[1:3] == replies[3:]
    assert ask(blue, "app" + form).data == ["10.1.0.3", "10.1.0.4"]


def test_unhealthy_leave_rotation_while_a_healthy_one_is_there() -> None:
    made = zones()
    blue = made.networks[BLUE]
    sick = Entry("a1", ("app1", "app"), (ip_address("10.1.0.3"),), healthy=False)
    blue.add(sick)
    assert ask(view(made, "blue"), "app").data == ["10.1.0.4"]
    assert ask(view(made, "blue"), "app1").data == ["10.1.0.3"]
    blue.remove("a2")
    assert ask(view(made, "blue"), "app").data == ["10.1.0.3"]


def test_addresses_lead_back_to_names() -> None:
    both_networks = view(zones(), "blue", "red")
    for address, name in (
        ("10.1.0.2", "web.blue.netplug.internal."),
        ("fd00:1::2", "web.blue.netplug.internal."),
        ("10.2.0.2", "db.red.netplug.internal."),
        ("10.1.0.1", "host.netplug.internal."),
    ):
        assert ask(both_networks, ip_address(address).reverse_pointer, wire.PTR).data == [name]


@pytest.mark.parametrize("form", FORMS)
def test_services_are_found_with_their_addresses(form: str) -> None:
    blue = view(zones(), "blue")
    reply = ask(blue, "_http._tcp.app" + form, wire.SRV, edns=b"\0\0\x29\4\xd0\0\0\0\0\0\0")
    assert [line.split()[:3] for line in reply.data] == [["0", "0", "80"]]
    assert {record[2] for record in reply.additional} == {"10.1.0.3", "10.1.0.4"}
    assert ask(blue, "_domain._udp.web" + form, wire.SRV).data[0].startswith("0 0 53 web")
    # What is above a name is there too, with nothing to say.
    assert ask(blue, "_tcp.app" + form).rcode == wire.NOERROR


def test_zone_and_host() -> None:
    blue = view(zones(), "blue")
    assert ask(blue, "netplug.internal", wire.NS).data == ["host.netplug.internal."]
    assert ask(blue, "netplug.internal", wire.SOA).data[0].startswith("host.netplug.internal. hostmaster.netplug")
    assert ask(blue, "host.netplug.internal").data == ["10.1.0.1"]
    assert ask(blue, "host.netplug.internal", wire.AAAA).data == ["fd00:1::1"]
    both_networks = view(zones(), "blue", "red")
    assert ask(both_networks, "host.netplug.internal").data == ["10.1.0.1", "10.2.0.1"]
    assert len(ask(both_networks, "netplug.internal", wire.SOA).answers) == 1
    # Of networks with different TTLs; an RRset has one (RFC 2181 5.2).
    assert ask(both_networks, "host.netplug.internal").ttls == (5, 5)


def test_networks_come_in_the_order_that_docker_has() -> None:
    made = Zones()
    for name, rank in (("abc", (1,)), ("xyz", (0, -3)), ("bcd", (0, -1)), ("aaa", (0, -1))):
        made.set_network(Network(name, name, rank=rank))
        made.networks[name].add(Entry(name, ("db", f"only-{name}"), (ip_address(f"10.0.0.{ord(name[0])}"),)))
    ids = ["abc", "xyz", "bcd", "aaa"]
    order = ["xyz", "aaa", "bcd", "abc"]
    for via in (*ids, ""):
        it = made.view(ids, via)
        assert it is not None
        assert [index.network.name for index in it.indexes] == order
        assert ask(it, "db").data == [f"10.0.0.{ord('x')}"]
        assert ask(it, "only-abc").data == [f"10.0.0.{ord('a')}"]


OURS_ALONE = ["nosuch.blue", "x.y.blue", "nosuch.blue.netplug.internal", "_foo._tcp.web", "_foo._tcp.nosuch.blue"]


@pytest.mark.parametrize("name", OURS_ALONE)
def test_name_of_ours_that_is_not_there_is_asked_of_nobody(name: str) -> None:
    it = view(zones(), "blue")
    reply = ask(it, name)
    assert (reply.rcode, reply.answers, len(reply.authorities)) == (wire.NXDOMAIN, (), 1)
    owner = reply.authorities[0][0]
    assert f"{name}.".endswith(owner)
    assert owner != "."
    # Where Docker's resolver is behind us as well.
    it.forwarded = (wire.ROOT,)
    assert ask(it, name).rcode == wire.NXDOMAIN


def test_name_that_has_gone_is_asked_of_nobody_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    made = zones()
    it = view(made, "blue")
    now = 1000.0
    monkeypatch.setattr("netplug.dns.view.monotonic", lambda: now)
    made.networks[BLUE].add(Entry("x", ("x1", "api.example.com"), (ip_address("10.1.0.9"),)))
    made.networks[BLUE].remove("x")
    it.forwarded = (wire.ROOT,)
    for name in ("x1", "api.example.com"):
        for _ in range(2):
            assert ask(it, name).rcode == wire.NXDOMAIN
    now += REMOVED_S + 1
    for name in ("x1", "api.example.com"):
        assert isinstance(both(it, query(name)), Question)
    made.networks[BLUE].add(Entry("x", ("x1",), (ip_address("10.1.0.9"),)))
    assert ask(it, "x1").data == ["10.1.0.9"]


def test_what_others_have_to_say_is_waited_for_where_they_know_more() -> None:
    made = zones()
    it = view(made, "blue")
    it.forwarded, it.shared = (wire.ROOT,), True
    made.networks[BLUE].unnamed.add("somebody")
    assert isinstance(both(it, query("nosuch.blue")), Question)
    made.networks[BLUE].unnamed.clear()
    assert ask(it, "nosuch.blue").rcode == wire.NXDOMAIN


def test_rule_for_a_networks_name_prevails() -> None:
    it = view(zones(), "blue")
    it.rules = Rules.of([Rule.parse("blue=192.0.2.1")], ())
    it.forwarded = it.rules.zones
    assert isinstance(both(it, query("nosuch.blue")), Question)
    assert ask(it, "web.blue").data == ["10.1.0.2"]


def test_alias_does_not_make_names_above_it_ours() -> None:
    made = zones()
    made.set_network(Network("n", "my.net"))
    made.networks[BLUE].add(Entry("x", ("api.example.com",), (ip_address("10.1.0.9"),)))
    it = view(made, "blue", "my.net")
    assert ask(it, "api.example.com").data == ["10.1.0.9"]
    for name in ("example.com", "com", "www.example.com", "other.net"):
        assert isinstance(both(it, query(name, wire.SOA)), Question)


@pytest.mark.parametrize(
    "alias",
    [
        *("host.netplug.internal", "netplug.internal", "x.netplug.internal", "db.red.netplug.internal"),
        *("blue.netplug.internal", "localhost", "x.localhost", "2.0.1.10.in-addr.arpa"),
    ],
)
def test_alias_cannot_join_a_name_that_is_ours(alias: str) -> None:
    made = zones()
    it = view(made, "blue", "red")
    kinds = (wire.A, wire.AAAA, wire.PTR)
    before = [(ask(it, alias, kind).rcode, ask(it, alias, kind).data) for kind in kinds]
    made.networks[BLUE].add(Entry("x", ("x", alias), (ip_address("10.1.0.66"),)))
    assert [(ask(it, alias, kind).rcode, ask(it, alias, kind).data) for kind in kinds] == before
    assert made.networks[BLUE].refused == {"x": (alias,)}
    assert ask(it, "x").data == ["10.1.0.66"]
    made.networks[BLUE].remove("x")
    assert not made.networks[BLUE].refused


def test_short_id_is_a_name_where_nobody_else_has_it() -> None:
    made = zones()
    blue, it = made.networks[BLUE], view(made, "blue")

    def entry(ident: str, *names: str, short: str = "c0ffee123456") -> Entry:
        return Entry(ident, names, (ip_address(f"10.1.0.{ident}"),), short=short)

    blue.add(entry("11"))
    assert ask(it, "c0ffee123456.blue").data == ["10.1.0.11"]
    blue.add(entry("12", "other"))
    for form in FORMS[1:]:
        assert ask(it, f"c0ffee123456{form}").rcode == wire.NXDOMAIN
    assert ask(it, "other").data == ["10.1.0.12"]
    blue.add(entry("13", "c0ffee123456", short=""))
    assert ask(it, "c0ffee123456").data == ["10.1.0.13"]
    blue.remove("13")
    blue.remove("11")
    assert ask(it, "c0ffee123456").data == ["10.1.0.12"]


def test_address_leads_back_to_a_whole_name_of_the_containers_own_too() -> None:
    made = zones()
    entry = Entry("x", ("mail", "mx.corp.example"), (ip_address("10.1.0.9"),), reverse=("mx.corp.example",))
    made.networks[BLUE].add(entry)
    it = view(made, "blue")
    assert ask(it, "mx.corp.example").data == ["10.1.0.9"]
    for _ in range(3):
        reply = ask(it, "9.0.1.10.in-addr.arpa", wire.PTR)
        assert [record[2] for record in reply.answers] == ["mail.blue.netplug.internal.", "mx.corp.example."]


@pytest.mark.parametrize("kind", [wire.AAAA, 15, 16, 65, 65280, wire.SRV])
@pytest.mark.parametrize("form", FORMS)
def test_another_type_of_a_name_is_never_asked_elsewhere(form: str, kind: int) -> None:
    reply = ask(view(zones(), "blue"), "app1" + form, kind)
    assert (reply.rcode, reply.answers) == (wire.NOERROR, ())
    (soa,) = reply.authorities
    # The SOA is that of the zone that the name is in; a name of one label is one itself.
    zone = "netplug.internal." if "netplug" in form.lower() else f"{form[1:] or 'app1'}."
    assert soa[:2] == (zone, "SOA")


@pytest.mark.parametrize(
    "name", ["nosuch.blue.netplug.internal", "x.web.blue.netplug.internal", "nosuch", "b.netplug.internal"]
)
def test_unknown_in_our_zones_is_no_name(name: str) -> None:
    reply = ask(view(zones(), "blue"), name)
    assert (reply.rcode, reply.answers, len(reply.authorities)) == (wire.NXDOMAIN, (), 1)


def test_network_is_a_name_without_records() -> None:
    reply = ask(view(zones(), "blue"), "blue.netplug.internal")
    assert (reply.rcode, reply.answers, len(reply.authorities)) == (wire.NOERROR, (), 1)


@given(
    st.sampled_from(["db", "db.red.netplug.internal", "red.netplug.internal"]), st.sampled_from([1, 28, 33, 65, 255])
)
def test_name_of_another_network_is_as_one_that_does_not_exist(name: str, kind: int) -> None:
    made, without = zones(), zones()
    without.remove_network(RED)
    data = query(name, kind)
    seen, unknown = both(view(made, "blue"), data), both(view(without, "blue"), data)
    assert seen == unknown
    assert isinstance(seen, bytes)


@pytest.mark.parametrize("name", ["db.red", "2.0.2.10.in-addr.arpa"])
def test_other_forms_of_another_networks_names_neither(name: str) -> None:
    made, without = zones(), zones()
    without.remove_network(RED)
    for kind in (wire.A, wire.PTR):
        assert both(view(made, "blue"), query(name, kind)) == both(view(without, "blue"), query(name, kind))


def test_asker_in_two_networks_sees_both() -> None:
    made = zones()
    made.networks[RED].add(Entry("w2", ("web",), (ip_address("10.2.0.9"),)))
    it = view(made, "blue", "red")
    # One that is in both is that of the first, as with Docker: never two projects' in rotation.
    assert {tuple(ask(it, "web").data) for _ in range(4)} == {("10.1.0.2",)}
    assert ask(it, "web.red").data == ["10.2.0.9"]
    assert ask(it, "db").data == ["10.2.0.2"]
    made.networks[BLUE].remove("w")
    assert ask(it, "web").data == ["10.2.0.9"]
    made.networks[BLUE].add(Entry("w", ("web",), (ip_address("10.1.0.2"),)))
    made.networks[RED].remove("w2")
    assert ask(it, "web").data == ["10.1.0.2"]


def test_in_no_network_that_is_known_there_is_no_view() -> None:
    assert zones().view({"nosuch"}) is None
    assert zones().view(()) is None


def test_changes_are_seen_at_once_also_by_questions_asked_often() -> None:
    made = zones()
    it = view(made, "blue")
    blue = made.networks[BLUE]
    data = query("web.blue.netplug.internal")
    for last in range(10, 20):
        blue.add(Entry("w", ("web",), (ip_address(f"10.1.0.{last}"),)))
        for _ in range(3):
            found = answer(it, data)
            assert found is not None
            assert found.endswith(bytes((10, 1, 0, last)))
    blue.add(Entry("w", ("shop",), (ip_address("10.1.0.20"),)))
    assert ask(it, "web.blue.netplug.internal").rcode == wire.NXDOMAIN
    assert ask(it, "shop").data == ["10.1.0.20"]
    blue.remove("w")
    blue.remove("w")
    assert ask(it, "shop").rcode == wire.NXDOMAIN


def test_nothing_is_left_of_what_was_removed() -> None:
    made = zones()
    blue = made.networks[BLUE]
    before = set(blue.names)
    entry = Entry("x", ("x.y.z", "app"), (ip_address("10.1.0.77"), ip_address("fd00:1::77")))
    blue.add(entry)
    assert ask(view(made, "blue"), "y.z.blue").rcode == wire.NOERROR
    assert before < set(blue.names)
    blue.remove("x")
    assert set(blue.names) == before


def test_renamed_network_keeps_its_endpoints() -> None:
    made = zones()
    made.set_network(Network(BLUE, "green", 7, (ip_address("10.1.0.1"),)))
    it = view(made, "green")
    assert ask(it, "web.green").data == ["10.1.0.2"]
    assert ask(it, "web.blue.netplug.internal").rcode == wire.NXDOMAIN
    assert ask(it, "host.netplug.internal", wire.AAAA).answers == ()


def test_many_under_one_name_are_told_as_far_as_they_fit_and_whole_over_tcp() -> None:
    made = zones()
    everybody = set()
    for number in range(400):
        address = ip_address(f"10.1.{2 + number // 250}.{1 + number % 250}")
        everybody.add(str(address))
        made.networks[BLUE].add(Entry(f"m{number}", ("many",), (address,)))
    it = view(made, "blue")
    node = made.networks[BLUE].find(wire.to_wire("many"))
    assert node is not None
    assert len(node) == 1
    seen = set()
    for edns, size in ((None, 512), (opt(), 1232)):
        for _ in range(20):
            said = both(it, query("many", edns=edns))
            assert isinstance(said, bytes)
            reply = read(said)
            assert (reply.tc, reply.rcode) == (True, 0)
            assert size - 16 < len(said) <= size
            seen |= set(reply.data)
    # All have their turn.
    assert seen == everybody
    whole = respond(it, query("many"), tcp=True)
    assert isinstance(whole, bytes)
    assert whole[6:8] == (400).to_bytes(2)
    assert MAX_ROTATIONS < 400


@pytest.mark.parametrize("edns", [None, opt()])
def test_as_many_as_just_fit_are_whole(edns: bytes | None) -> None:
    made = zones()
    it = view(made, "blue")
    room = (1232 - 11 if edns else 512) - 12 - len(query("many")[12:])
    for number in range(room // 16 + 1):
        made.networks[BLUE].add(Entry(f"m{number}", ("many",), (ip_address(f"10.1.2.{1 + number}"),)))
        said = both(it, query("many", edns=edns))
        assert isinstance(said, bytes)
        reply = read(said)
        assert (reply.tc, len(reply.answers)) == (number >= room // 16, min(number + 1, room // 16))


@pytest.mark.parametrize("name", ["x" * 64, "a..b", ".".join(["x" * 63] * 4), "é" * 40])
def test_names_that_cannot_be_are_passed_over(name: str) -> None:
    made = zones()
    before = set(made.networks[BLUE].names)
    made.networks[BLUE].add(Entry("x", (name,), (ip_address("10.1.0.9"),)))
    made.networks[BLUE].remove("x")
    assert set(made.networks[BLUE].names) == before
    made.set_network(Network("x", name))
    made.networks["x"].add(Entry("x", ("web",), (ip_address("10.3.0.9"),)))
    other = made.view({"x"})
    assert other
    assert ask(other, "web").data == ["10.3.0.9"]


def test_domain_may_be_another_but_not_the_root() -> None:
    made = Zones("corp.example")
    made.set_network(Network("n", "net", 5, (ip_address("10.1.0.1"),)))
    it = made.view({"n"})
    assert it
    assert ask(it, "host.corp.example").data == ["10.1.0.1"]
    assert isinstance(both(it, query("host.netplug.internal")), Question)
    for text in (".", ""):
        with pytest.raises(ValueError, match="root"):
            Zones(text)


def test_reverse_names_of_our_own_public_subnets_are_ours() -> None:
    made = zones()
    asked = query(ip_address("8.8.4.9").reverse_pointer, wire.PTR)
    assert isinstance(both(view(made, "blue"), asked), Question)
    made.set_network(Network("p", "public", pools=(ip_network("8.8.4.0/24"),)))
    assert ask(view(made, "blue"), ip_address("8.8.4.9").reverse_pointer, wire.PTR).rcode == wire.NXDOMAIN


def test_names_of_an_endpoint_share_their_records() -> None:
    """A node for each name took half of what an endpoint costs: it has dozens of names with the same records."""
    known = Zones()
    known.set_network(Network("n", "blue"))
    blue = known.networks["n"]
    http = (Service("http", "tcp", 80),)
    blue.add(Entry("one", ("web", "www"), (ip_address("10.92.1.2"),), http, short="abcdef"))
    blue.add(Entry("two", ("db", "www"), (ip_address("10.92.1.3"),)))
    for start in ("", "_http._tcp.", "_tcp."):
        forms = ("", ".blue", ".blue.netplug.internal") if start != "_tcp." else (".blue", ".blue.netplug.internal")
        alone = [blue.names[wire.to_wire(f"{start}web{form}")] for form in forms]
        assert all(share is alone[0] for share in alone)
    node = blue.find(wire.to_wire("www"))
    assert node is not None
    assert len(node[wire.key(wire.A)].records) == 2
    blue.remove("two")
    assert blue.names[wire.to_wire("www")] is blue.names[wire.to_wire("web")]


def test_names_of_an_endpoint_take_few_bytes() -> None:
    """An endpoint with a name, an alias and a published port has 19 names. They took 9.3 kB; CPython 3.11: 3.2 kB."""
    known = Zones()
    known.set_network(Network("n", "blue"))
    services = (Service("http", "tcp", 80),)
    entries = [
        Entry(f"{number:064}", (f"box{number}", f"www{number}"), (ip_address("10.92.0.0") + number,), services)
        for number in range(1, 601)
    ]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for entry in entries:
            known.networks["n"].add(entry)
        each = (tracemalloc.get_traced_memory()[0] - before) / len(entries)
    finally:
        tracemalloc.stop()
    assert len(known.networks["n"].names) > 19 * len(entries)
    assert each < 4_500


def test_names_that_were_asked_for_are_forgotten_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netplug.dns.zone.MAX_NODES", 8)
    known = Zones()
    known.set_network(Network("n", "blue"))
    blue = known.networks["n"]
    for number in range(30):
        blue.add(Entry(f"m{number}", (f"web{number}",), (ip_address("10.92.1.0") + number,)))
    for _ in range(2):
        for number in range(30):
            node = blue.find(wire.to_wire(f"web{number}"))
            assert node is not None
            assert node[wire.key(wire.A)].records[0].endswith(bytes((10, 92, 1, number)))
            assert len(blue._nodes) <= 8
    assert blue.find(wire.to_wire("web30")) is None
