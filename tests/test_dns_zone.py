"""Names of networks, and who sees which of them."""

import doctest
import importlib
from ipaddress import ip_address, ip_network

import pytest
from dns_packets import ask, both, query, view, zones
from hypothesis import given
from hypothesis import strategies as st

from netplug.dns import wire
from netplug.dns.answer import answer
from netplug.dns.careful import respond
from netplug.dns.question import Question
from netplug.dns.zone import MOST_TURNS, Entry, Network, Zones

BLUE, RED = "b" * 64, "r" * 64
FORMS = ("", ".blue", ".blue.netplug.internal", ".BLUE.NetPlug.internal.")


@pytest.mark.parametrize("module", ["wire", "zone"])
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
    assert len(ask(both_networks, "netplug.internal", wire.SOA).answers) <= 2


@pytest.mark.parametrize("kind", [wire.AAAA, 15, 16, 65, 65280, wire.SRV])
@pytest.mark.parametrize("form", FORMS)
def test_another_type_of_a_name_is_never_asked_elsewhere(form: str, kind: int) -> None:
    reply = ask(view(zones(), "blue"), "app1" + form, kind)
    assert (reply.rcode, reply.answers) == (wire.NOERROR, ())
    (soa,) = reply.authorities
    assert soa[:2] == ("netplug.internal." if "netplug" in form.lower() else ".", "SOA")


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
    assert ask(it, "web").data == ["10.1.0.2", "10.2.0.9"]
    assert ask(it, "web.red").data == ["10.2.0.9"]
    assert ask(it, "db").data == ["10.2.0.2"]
    assert len({both(it, query("web")) for _ in range(4)}) == 2
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
    before = set(blue.nodes)
    entry = Entry("x", ("x.y.z", "app"), (ip_address("10.1.0.77"), ip_address("fd00:1::77")))
    blue.add(entry)
    assert ask(view(made, "blue"), "y.z.blue").rcode == wire.NOERROR
    assert before < set(blue.nodes)
    blue.remove("x")
    assert set(blue.nodes) == before


def test_renamed_network_keeps_its_endpoints() -> None:
    made = zones()
    made.set_network(Network(BLUE, "green", 7, (ip_address("10.1.0.1"),)))
    it = view(made, "green")
    assert ask(it, "web.green").data == ["10.1.0.2"]
    assert ask(it, "web.blue.netplug.internal").rcode == wire.NXDOMAIN
    assert ask(it, "host.netplug.internal", wire.AAAA).answers == ()


def test_many_under_one_name_are_truncated_over_udp_and_whole_over_tcp() -> None:
    made = zones()
    for number in range(400):
        address = ip_address(f"10.1.{2 + number // 250}.{1 + number % 250}")
        made.networks[BLUE].add(Entry(f"m{number}", ("many",), (address,)))
    it = view(made, "blue")
    assert len(made.networks[BLUE].nodes[wire.to_wire("many")]) == 1
    reply = ask(it, "many")
    assert (reply.tc, reply.answers, reply.rcode) == (True, (), 0)
    whole = respond(it, query("many"), tcp=True)
    assert isinstance(whole, bytes)
    assert whole[6:8] == (400).to_bytes(2)
    assert MOST_TURNS < 400


@pytest.mark.parametrize("name", ["x" * 64, "a..b", ".".join(["x" * 63] * 4), "é" * 40])
def test_names_that_cannot_be_are_passed_over(name: str) -> None:
    made = zones()
    before = set(made.networks[BLUE].nodes)
    made.networks[BLUE].add(Entry("x", (name,), (ip_address("10.1.0.9"),)))
    made.networks[BLUE].remove("x")
    assert set(made.networks[BLUE].nodes) == before
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
