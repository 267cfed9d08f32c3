"""Any octets in, and out of it a valid answer, a question for an upstream, or silence: the hard cases of DNS."""

import struct
from ipaddress import ip_address

import dnslib
import pytest
from dns_packets import COOKIE, ask, both, opt, query, read, view, zones
from hypothesis import given, settings
from hypothesis import strategies as st

from netplug.dns import wire
from netplug.dns.fast_path import answer
from netplug.dns.question import Question
from netplug.dns.slow_path import respond
from netplug.dns.view import MAX_READY_PER_NAME
from netplug.dns.zone import Entry, View

WEB = b"\x03web\x04blue\x07netplug\x08internal\0"
NAMES = ["web", "web.blue.netplug.internal", "app", "nosuch", "nosuch.blue.netplug.internal", "example.com", "db", "."]
KINDS = [1, 28, 12, 33, 16, 65, 255, 252, 41, 6, 2, 0]


@pytest.fixture
def blue() -> View:
    return view(zones(), "blue")


def code(view: View | None, data: bytes, *, tcp: bool = False) -> int | None:
    """Return the RCODE of an answer; it must be one. None: silence."""
    found = respond(view, data, tcp=tcp)
    if view is not None and not tcp:
        fast = answer(view, data)
        assert fast is None or type(fast) is type(found)
    if found is None:
        return None
    assert isinstance(found, bytes), found
    assert found[:2] == data[:2]
    assert found[2] & 0x80
    return read(found).rcode


# Messages that are none


@pytest.mark.parametrize("size", range(12))
def test_runts_are_not_answered(blue: View, size: int) -> None:
    data = query("web")[:size]
    assert code(blue, data) is None


def test_answers_are_not_answered(blue: View) -> None:
    assert code(blue, query("web", flags=0x8180)) is None


BROKEN = {
    "header alone": query("web")[:12],
    "no question": struct.pack("!6H", 1, 0x100, 0, 0, 0, 0),
    "two questions": struct.pack("!6H", 1, 0x100, 2, 0, 0, 0) + (WEB + b"\0\1\0\1") * 2,
    "answers announced": struct.pack("!6H", 1, 0x100, 1, 1, 0, 0) + WEB + b"\0\1\0\1",
    "authorities announced": struct.pack("!6H", 1, 0x100, 1, 0, 1, 0) + WEB + b"\0\1\0\1",
    "octets behind": query(WEB) + b"x",
    "octets behind OPT": query(WEB, edns=opt()) + b"x",
    "pointer to itself": query(b"\xc0\x0c"),
    "pointer forward": query(b"\xc0\x20"),
    "pointer into the header": query(b"\xc0\x00"),
    "label and pointer": query(b"\x03web\xc0\x0c"),
    "label type 0x40": query(b"\x40" + b"x" * 64 + b"\0"),
    "label type 0x80": query(b"\x80web\0"),
    "label past the end": query(b"\x3fweb"),
    "name without an end": struct.pack("!6H", 1, 0x100, 1, 0, 0, 0) + b"\x03web",
    "type cut off": struct.pack("!6H", 1, 0x100, 1, 0, 0, 0) + WEB + b"\0\1\0",
    "name of 256 octets": query(
        b"\x3f" + b"x" * 63 + b"\x3f" + b"x" * 63 + b"\x3f" + b"x" * 63 + b"\x3e" + b"x" * 62 + b"\0"
    ),
    "OPT announced": struct.pack("!6H", 1, 0x100, 1, 0, 0, 1) + WEB + b"\0\1\0\1",
    "two OPT": struct.pack("!6H", 1, 0x100, 1, 0, 0, 2) + WEB + b"\0\1\0\1" + opt() * 2,
    "OPT with a name": query(WEB, edns=opt(owner=b"\1x\0")),
    "OPT with a pointer": query(WEB, edns=opt(owner=b"\xc0\x0c")),
    "OPT past the end": query(WEB, edns=opt()[:-2] + b"\0\5x"),
    "option past the end": query(WEB, edns=opt(options=b"\0\x0a\0\x08xx")),
    **{
        f"cookie of {size}": query(WEB, edns=opt(options=struct.pack("!HH", 10, size) + b"c" * size))
        for size in (0, 1, 7, 9, 15, 41)
    },
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_messages_out_of_order_are_format_errors(blue: View, data: bytes) -> None:
    assert code(blue, data) == wire.FORMERR
    assert answer(blue, data) is None


# Unusual, and in order


def test_name_of_255_octets_is_one(blue: View) -> None:
    labels = [b"\x3f" + b"x" * 63] * 3 + [b"\x21" + b"x" * 33]
    name = b"".join(labels) + b"\x0aabcdefghij" + b"\x07netplug\x08internal\0"
    assert len(name) == 255
    assert code(blue, query(name)) == wire.NXDOMAIN
    assert answer(blue, query(name)) is not None


@pytest.mark.parametrize("opcode", [1, 2, 4, 5, 6, 15])
def test_other_opcodes_are_not_implemented(blue: View, opcode: int) -> None:
    data = query(WEB, flags=opcode << 11)
    assert code(blue, data) == wire.NOTIMP
    reply = respond(blue, data)
    assert isinstance(reply, bytes)
    assert reply[2] >> 3 & 0xF == opcode


@pytest.mark.parametrize("klass", [0, 3, 254, 255])
def test_other_classes_are_refused(blue: View, klass: int) -> None:
    assert code(blue, query(WEB, klass=klass)) == wire.REFUSED
    assert answer(blue, query(WEB, klass=klass)) is None


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("kind", [wire.AXFR, wire.IXFR])
def test_zones_are_not_transferred(blue: View, kind: int, tcp: bool) -> None:
    assert code(blue, query("netplug.internal", kind), tcp=tcp) == wire.REFUSED


def test_any_gets_one_type(blue: View) -> None:
    reply = ask(blue, "web", wire.ANY)
    assert [record[1] for record in reply.answers] == ["A"]


def test_case_is_kept_in_the_question_and_does_not_matter(blue: View) -> None:
    for name in ("wEb.BLUE.netPLUG.Internal", "WEB"):
        reply = both(blue, query(name))
        assert isinstance(reply, bytes)
        assert name.split(".")[0].encode() in reply
        assert read(reply).data == ["10.1.0.2"]


@pytest.mark.parametrize("label", [b"web.blue", b"w\0b", b"\x03web"])
def test_dots_and_zeros_in_a_label_are_part_of_it(blue: View, label: bytes) -> None:
    name = bytes((len(label),)) + label + b"\x07netplug\x08internal\0"
    assert code(blue, query(name)) == wire.NXDOMAIN


def test_label_that_looks_like_the_domain_is_a_label(blue: View) -> None:
    inner = b"\x07netplug\x08internal"
    found = both(blue, query(bytes((len(inner) + 1,)) + b"x" + inner + b"\3com\0"))
    assert isinstance(found, Question)
    found = both(blue, query(bytes((len(inner),)) + inner + b"\0"))
    assert isinstance(found, bytes)
    assert read(found).authorities[0][0] == "."


@pytest.mark.parametrize("size", [0, 1, 511, 512, 4096, 65535])
def test_edns_sizes_and_ours(blue: View, size: int) -> None:
    data = query(WEB, edns=opt(size))
    for reply in (answer(blue, data), respond(blue, data)):
        assert isinstance(reply, bytes)
        assert reply.endswith(opt(1232))


def test_edns_of_another_version_is_told_ours(blue: View) -> None:
    data = query(WEB, edns=opt(version=1))
    assert code(blue, data) == wire.BADVERS
    reply = respond(blue, data)
    assert isinstance(reply, bytes)
    assert reply[-11:] == b"\0\0\x29\x04\xd0\x01\0\0\0\0\0"


@pytest.mark.parametrize(
    "options", [COOKIE, COOKIE[:3] + b"\x10" + COOKIE[4:] * 2, b"\xff\xff\0\1x", b"\0\3\0\0" + COOKIE]
)
def test_options_are_neither_taken_up_nor_echoed(blue: View, options: bytes) -> None:
    data = query(WEB, edns=opt(options=options))
    assert code(blue, data) == wire.NOERROR
    reply = both(blue, data)
    assert isinstance(reply, bytes)
    assert reply.endswith(opt(1232))


def test_new_cookies_and_cases_fill_no_memory(blue: View) -> None:
    for number in range(1000):
        assert answer(blue, query(WEB, edns=opt(options=COOKIE[:4] + number.to_bytes(8)))) is not None
        assert answer(blue, query(f"n{number}.blue.netplug.internal")) is not None
    assert not blue.ready
    for name in ("wEb", "web", "WEB", "Web"):
        reply = both(blue, query(name))
        assert isinstance(reply, bytes)
        assert reply[12:17] == b"\3" + name.encode() + b"\0"
        assert len(blue.ready) == 1
    blue.forget(wire.to_wire("web"))
    assert not blue.ready


def test_flags_of_the_query_in_the_answer(blue: View) -> None:
    for edns in (None, opt(flags=0x8000)):
        # RD, AD, CD, Z and an RCODE that means nothing here.
        for sent, back in ((0x0100, 0x8580), (0x0000, 0x8480), (0x0130, 0x8590), (0x0173, 0x8590), (0x0703, 0x8580)):
            reply = both(blue, query(WEB, flags=sent, edns=edns))
            assert isinstance(reply, bytes)
            assert reply[2:4] == back.to_bytes(2)
            if edns:
                assert reply[-4] == 0x80


# What is asked elsewhere, and what is not


@pytest.mark.parametrize("name", ["example.com", "nosuch.red", "web.com", "metadata.google.internal", "."])
def test_names_of_others_are_an_upstreams_to_answer(blue: View, name: str) -> None:
    found = both(blue, query(name, edns=opt(flags=0x8000)))
    assert isinstance(found, Question)
    assert (found.dnssec, found.size) == (True, 1232)
    # Not without being asked to (RFC 1034 §4.3.1).
    assert code(blue, query(name, flags=0)) == wire.REFUSED


@pytest.mark.parametrize(
    "name",
    [
        *("x.invalid", "printer.local", "x.onion", "x.alt", "x.test", "x.home.arpa", "local", "nosuch", "router"),
        *("9.9.0.10.in-addr.arpa", "1.1.168.192.in-addr.arpa", "2.0.0.127.in-addr.arpa", "x.9.9.0.10.in-addr.arpa"),
        ".".join("0" * 30) + ".d.f.ip6.arpa",
    ],
)
def test_names_of_special_use_are_never_asked(blue: View, name: str) -> None:
    for kind in (wire.A, wire.PTR):
        reply = ask(blue, name, kind)
        assert (reply.rcode, len(reply.authorities)) == (wire.NXDOMAIN, 1)


@pytest.mark.parametrize("name", ["10.in-addr.arpa", "0.10.in-addr.arpa", "168.192.in-addr.arpa", "d.f.ip6.arpa"])
def test_part_of_a_private_address_is_no_absent_name(blue: View, name: str) -> None:
    assert ask(blue, name, wire.PTR).rcode == wire.NOERROR


@pytest.mark.parametrize(
    "name", ["8.8.8.8.in-addr.arpa", "192.in-addr.arpa", "x.10.in-addr.arpa", "010.in-addr.arpa", "999.in-addr.arpa"]
)
def test_other_reverse_names_are_an_upstreams(blue: View, name: str) -> None:
    assert isinstance(both(blue, query(name, wire.PTR)), Question)


def test_localhost(blue: View) -> None:
    for name in ("localhost", "x.LocalHost"):
        assert ask(blue, name).data == ["127.0.0.1"]
        assert ask(blue, name, wire.AAAA).data == ["::1"]
        assert ask(blue, name, 15).answers == ()
    assert ask(blue, "1.0.0.127.in-addr.arpa", wire.PTR).data == ["localhost."]


def test_rule_for_a_name_of_special_use_prevails(blue: View) -> None:
    blue.forwarded = (wire.to_wire("10.in-addr.arpa"), wire.to_wire("local"))
    for name in ("printer.local", "9.9.0.10.in-addr.arpa"):
        assert isinstance(both(blue, query(name, wire.PTR)), Question)
    assert ask(blue, "2.0.1.10.in-addr.arpa", wire.PTR).data == ["web.blue.netplug.internal."]


@pytest.mark.parametrize("data", [query("web"), query("example.com"), query("web", edns=opt())])
def test_strangers_are_refused(data: bytes) -> None:
    assert code(None, data) == wire.REFUSED


# Why there is nothing


def why(data: bytes) -> tuple[int, str] | None:
    """Return the extended error of an answer (RFC 8914)."""
    (found,) = [rr for rr in dnslib.DNSRecord.parse(data).ar if rr.rtype == wire.OPT]
    options = [it.data for it in found.rdata if it.code == 15]
    return (int.from_bytes(options[0][:2]), options[0][2:].decode()) if options else None


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("nosuch.blue.netplug.internal", wire.A, "name"),
        ("nosuch.blue", wire.A, "name"),
        ("web", 16, "type"),
        ("app1.blue.netplug.internal", wire.AAAA, "type"),
        ("nosuch", wire.A, "one label"),
        ("x.local", wire.A, "special-use"),
        ("9.9.0.10.in-addr.arpa", wire.PTR, "special-use"),
        ("localhost", 15, "type"),
    ],
)
def test_who_speaks_edns_is_told_why_there_is_nothing(blue: View, name: str, kind: int, words: str) -> None:
    data = query(name, kind, edns=opt())
    for reply in (answer(blue, data) or respond(blue, data), respond(blue, data)):
        assert isinstance(reply, bytes)
        found = why(reply)
        assert found is not None
        assert words in found[1]
    ask(blue, name, kind, edns=opt())
    plain = both(blue, query(name, kind))
    assert isinstance(plain, bytes)
    assert not read(plain).additional


def test_strangers_are_told_why() -> None:
    reply = respond(None, query("web", edns=opt()))
    assert isinstance(reply, bytes)
    assert why(reply) == (18, "the client has no address in this network")


def test_answers_with_records_need_no_reason(blue: View) -> None:
    reply = both(blue, query("web", edns=opt()))
    assert isinstance(reply, bytes)
    assert why(reply) is None


# Ready answers


@pytest.mark.parametrize("kind", [wire.A, wire.AAAA, 65, 16])
@pytest.mark.parametrize("edns", [None, opt(), opt(4096, flags=0x8000), opt(options=COOKIE)])
@pytest.mark.parametrize("flags", [0x0100, 0x0120, 0x0110, 0x0000])
@pytest.mark.parametrize("name", ["app1", "aPP1", "app1.blue.netplug.internal", "App1.blue.netplug.Internal"])
def test_answer_that_is_ready_is_as_the_first_was(name: str, flags: int, edns: bytes | None, kind: int) -> None:
    made = zones()
    blue = view(made, "blue")
    # One with another spelling, size and cookie may have been there before.
    both(blue, query(name.lower(), kind, flags=flags, edns=opt(1400)))
    both(blue, query(name.upper(), kind, flags=flags))
    data = query(name, kind, flags=flags, edns=edns)
    expected = respond(blue, data)
    assert [both(blue, data) for _ in range(3)] == [expected] * 3
    made.networks["b" * 64].add(Entry("a1", ("app1",), (ip_address("10.1.0.77"), ip_address("fd00:1::77"))))
    assert [both(blue, data) for _ in range(3)] == [respond(blue, data)] * 3
    if kind in {wire.A, wire.AAAA}:
        assert both(blue, data) != expected
    made.networks["b" * 64].remove("a1")
    assert [both(blue, data) for _ in range(3)] == [respond(blue, data)] * 3


def test_one_name_has_few_ready_answers(blue: View) -> None:
    for size in range(512, 2000):
        assert both(blue, query(WEB, edns=opt(size))) is not None
    assert len(blue.ready_edns) <= MAX_READY_PER_NAME
    blue.forget(wire.to_wire("web.blue.netplug.internal"))
    assert not blue.ready_edns


# Anything at all


def _check(data: bytes, reply: bytes | Question | None, most: int) -> None:
    if isinstance(reply, bytes):
        assert reply[:2] == data[:2]
        assert reply[2] & 0x80
        assert len(reply) <= most
        if data.isascii():  # dnslib reads no other names
            read(reply)


SEEDS = st.sampled_from(
    [query(name, kind, edns=edns) for name in NAMES for kind in KINDS for edns in (None, opt(), opt(options=COOKIE))]
)
BLUE = view(zones(), "blue")
BOTH = view(zones(), "blue", "red")


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A query with some octets replaced, cut or put in."""
    data = bytearray(draw(SEEDS))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(data)


@settings(max_examples=600, deadline=None)
@given(st.one_of(mutated(), st.binary(max_size=80)), st.sampled_from([BLUE, BOTH]))
def test_both_paths_answer_anything_and_alike(data: bytes, it: View) -> None:
    fast, careful = answer(it, data), respond(it, data)
    for reply in (fast, careful):
        _check(data, reply, 1232)
    if isinstance(fast, Question):
        assert fast == careful
    elif fast is not None:
        assert isinstance(careful, bytes)
        assert fast[:12] == careful[:12]
        assert sorted(fast) == sorted(careful)
    for view_, tcp in ((None, False), (it, True)):
        _check(data, respond(view_, data, tcp=tcp), 65535)
