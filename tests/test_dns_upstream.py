"""Forwarding to scripted upstreams on the loopback link: who is asked when, and what is believed."""

import asyncio
import re
import socket
import struct
from ipaddress import ip_address

import dnslib
import pytest
from dns_packets import opt, query, read, view, zones
from dns_upstreams import DEADLINE_S, Bench, Script, Upstream, address_of, reply_to
from engine_host import until

from netplug.dns import cache, upstream, wire
from netplug.dns.fast_path import answer
from netplug.dns.forward_rules import NO_FORWARDING, Rule, Rules, Server
from netplug.dns.pending import Client
from netplug.dns.question import Question
from netplug.dns.slow_path import respond


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "SECOND_S", 0.03)


def error_of(reply: bytes) -> int:
    """Return the extended error (RFC 8914) of a reply, -1 for none."""
    (found,) = [rr for rr in dnslib.DNSRecord.parse(reply).ar if rr.rtype == wire.OPT]
    return next((struct.unpack("!H", it.data[:2])[0] for it in found.rdata if it.code == 15), -1)


# The ordinary


async def test_answer_is_the_upstreams_with_the_askers_id_and_case(bench: Bench) -> None:
    it = bench.upstream(address_of)
    reply = await bench.reply(bench.rules(it), "eXample.COM", ident=77)
    assert read(reply).data == ["192.0.2.7"]
    assert reply[:4] == b"\0\x4d\x81\x80"
    assert b"\7eXample\3COM\0" in reply
    (seen,) = it.seen
    assert b"\7example\3com\0" in seen.lower()
    assert dnslib.DNSRecord.parse(seen).header.rd


async def test_edns_is_spoken_where_the_asker_does(bench: Bench) -> None:
    it = bench.upstream(address_of)
    await bench.reply(bench.rules(it))
    await bench.reply(bench.rules(it), "other.example", edns=opt(flags=0x8000))
    assert not dnslib.DNSRecord.parse(it.seen[0]).ar
    (edns,) = dnslib.DNSRecord.parse(it.seen[1]).ar
    assert edns.edns_do


async def test_answers_are_remembered_and_grow_old(bench: Bench) -> None:
    it = bench.upstream(address_of)
    rules = bench.rules(it)
    for passed, ttl in ((0, 60), (10, 50), (49, 1)):
        bench.now += passed
        assert read(await bench.reply(rules)).ttls == (ttl,)
    assert len(it.seen) == 1
    bench.now += 2
    assert read(await bench.reply(rules)).ttls == (60,)
    assert len(it.seen) == 2


async def test_fast_path_answers_what_is_remembered(bench: Bench) -> None:
    it = bench.upstream(address_of)
    rules = bench.rules(it)
    blue = view(zones(), "blue")
    blue.upstream_cache = rules.cache
    asked = query("eXample.com", ident=9)
    assert isinstance(answer(blue, asked), Question)
    slow = await bench.reply(rules, "eXample.com", ident=9)
    for data, expected in (
        (asked, slow),
        (query("example.com", edns=opt()), None),
    ):
        fast = answer(blue, data, lambda: bench.now + asyncio.get_running_loop().time())
        if data == asked:
            assert fast == expected
    assert answer(blue, query("example.com", flags=0), lambda: bench.now) is None
    # Who checks signatures gets what an upstream says to such.
    assert isinstance(answer(blue, query("example.com", flags=0x110), lambda: bench.now), Question)


@pytest.mark.parametrize(("code", "soa_s", "kept"), [(3, 30, True), (0, 30, True), (3, 0, False), (0, 0, False)])
async def test_absence_is_remembered_as_long_as_the_soa_says(bench: Bench, code: int, soa_s: int, kept: bool) -> None:
    it = bench.upstream(lambda data: reply_to(data, code=code, soa_s=soa_s))
    rules = bench.rules(it)
    for _ in range(2):
        assert read(await bench.reply(rules)).rcode == code
    assert len(it.seen) == 2 - kept
    bench.now += 31
    await bench.reply(rules)
    assert len(it.seen) == 3 - kept


@pytest.mark.parametrize("ttl", [0, 1 << 31, (1 << 32) - 1])
async def test_ttls_that_are_none_are_not_remembered(bench: Bench, ttl: int) -> None:
    it = bench.upstream(lambda data: reply_to(data, f"example.com. {ttl} IN A 192.0.2.7"))
    rules = bench.rules(it)
    for _ in range(2):
        await bench.reply(rules)
    assert len(it.seen) == 2


async def test_one_question_of_many_is_asked_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "SECOND_S", 60)
    it = bench.upstream(lambda _: None)
    rules = bench.rules(it)
    asked = [bench.ask(rules, source=f"10.1.0.{number}", ident=number) for number in range(2, 12)]
    # One of them asks again and again.
    again = [bench.ask(rules, source="10.1.0.2", ident=2, retry_key=("10.1.0.2", 5353, 2)) for _ in range(3)]
    it.script = address_of
    async with asyncio.timeout(DEADLINE_S):
        replies = await asyncio.gather(*asked, again[-1])
    assert [int.from_bytes(reply[:2]) for reply in replies[:-1]] == list(range(2, 12))
    assert [future.done() for future in again] == [False, False, True]
    assert len(it.seen) == 1
    assert not bench.forwarder._load


async def test_each_name_is_asked_of_whom_its_rule_says(bench: Bench) -> None:
    one, two, other = (bench.upstream(address_of) for _ in range(3))
    rules = Rules.of(
        [Rule(wire.to_wire("corp.example"), (one.server,)), Rule(wire.to_wire("lab.corp.example"), (two.server,))],
        [other.server],
    )
    for name in ("a.corp.example", "lab.corp.example", "x.lab.corp.example", "notcorp.example"):
        await bench.reply(rules, name)
    assert [len(it.seen) for it in (one, two, other)] == [1, 2, 1]
    assert rules.zones == (wire.to_wire("lab.corp.example"), wire.to_wire("corp.example"))


async def test_rules_of_others_have_a_memory_of_their_own(bench: Bench) -> None:
    it = bench.upstream(address_of)
    other = bench.upstream(lambda data: reply_to(data, "example.com. 60 IN A 192.0.2.8"))
    assert await bench.data(bench.rules(it)) == ["192.0.2.7"]
    assert await bench.data(bench.rules(other)) == ["192.0.2.8"]


async def test_nobody_is_asked_where_nothing_is_forwarded(bench: Bench) -> None:
    reply = await bench.reply(NO_FORWARDING, edns=opt())
    assert (read(reply).rcode, error_of(reply)) == (wire.REFUSED, 18)
    reply = await bench.reply(Rules(), edns=opt())
    assert (read(reply).rcode, error_of(reply)) == (wire.SERVFAIL, 23)


# What goes wrong


async def test_slow_server_gets_company_and_the_first_answer_counts(bench: Bench) -> None:
    slow, good = bench.upstream(lambda _: None), bench.upstream(address_of)
    rules = bench.rules(slow, good)
    assert await bench.data(rules) == ["192.0.2.7"]
    assert (len(slow.seen), len(good.seen)) == (1, 1)
    # For a while the good one is asked first.
    assert await bench.data(rules, "other.example") == ["192.0.2.7"]
    assert (len(slow.seen), len(good.seen)) == (1, 2)
    bench.now += upstream.PREFERENCE_S
    await bench.reply(rules, "third.example")
    assert (len(slow.seen), len(good.seen)) == (2, 3)


@pytest.mark.parametrize("code", [1, 2, 4, 5])
async def test_server_that_fails_has_the_next_asked_at_once(
    bench: Bench, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "SECOND_S", 60)
    bad, good = bench.upstream(lambda data: reply_to(data, code=code)), bench.upstream(address_of)
    assert await bench.data(bench.rules(bad, good)) == ["192.0.2.7"]


async def test_nobody_listening_has_the_next_asked_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "SECOND_S", 60)
    good = bench.upstream(address_of)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.9.99", 0))
        nobody = Server(ip_address("127.0.9.99"), free.getsockname()[1])
    assert await bench.data(Rules.of((), [nobody, good.server])) == ["192.0.2.7"]
    reply = await bench.reply(Rules.of((), [nobody]), edns=opt())
    assert (read(reply).rcode, error_of(reply)) == (wire.SERVFAIL, 22)


async def test_all_silent_is_a_failure_that_is_remembered(bench: Bench) -> None:
    one, two = bench.upstream(lambda _: None), bench.upstream(lambda _: None)
    rules = bench.rules(one, two)
    reply = await bench.reply(rules, edns=opt())
    assert (read(reply).rcode, error_of(reply)) == (wire.SERVFAIL, 23)
    asked = len(one.seen) + len(two.seen)
    assert 4 <= asked <= 6
    assert read(await bench.reply(rules)).rcode == wire.SERVFAIL
    assert len(one.seen) + len(two.seen) == asked
    one.script = address_of
    bench.now += cache.FAILURE_S + 1
    assert await bench.data(rules) == ["192.0.2.7"]


@pytest.mark.parametrize("script", [lambda _: None, lambda data: reply_to(data, code=2)], ids=["silent", "failing"])
async def test_old_answer_serves_where_there_is_no_new_one(bench: Bench, script: Script) -> None:
    it = bench.upstream(address_of)
    rules = bench.rules(it)
    await bench.reply(rules)
    it.script = script
    bench.now += 100
    reply = await bench.reply(rules, edns=opt())
    assert (read(reply).data, read(reply).ttls, error_of(reply)) == (["192.0.2.7"], (30,), 3)
    assert bench.forwarder.counts.stale == 1
    it.script = lambda data: reply_to(data, "example.com. 60 IN A 192.0.2.9")
    await until(lambda: not bench.forwarder.pending)
    bench.now += 100
    assert await bench.data(rules) == ["192.0.2.9"]
    it.script = script
    bench.now += cache.STALE_S + 100
    assert read(await bench.reply(rules)).rcode == wire.SERVFAIL


FORGED: dict[str, Script] = {
    "another id": lambda data: bytes((data[0] ^ 1,)) + address_of(data)[1:],
    "another question": lambda data: re.sub(rb"(?i)\x07example", b"\7elpmaxe", address_of(data)),
    "a query": lambda data: data,
    "a runt": lambda data: data[:9],
    "another opcode": lambda data: data[:2] + b"\xa0" + address_of(data)[3:],
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
async def test_what_is_no_answer_to_the_question_is_passed_over(bench: Bench, forge: Script) -> None:
    def script(data: bytes) -> list[bytes]:
        forged = forge(data)
        assert isinstance(forged, bytes)
        return [forged, address_of(data)]

    assert await bench.data(bench.rules(bench.upstream(script))) == ["192.0.2.7"]
    assert bench.forwarder.counts.strange == 1


async def test_answer_from_another_address_is_not_heard(bench: Bench) -> None:
    it = bench.upstream(lambda _: None)
    asked = bench.ask(bench.rules(it))
    await until(lambda: bool(it.seen))
    ((slot, _),) = next(iter(bench.forwarder._queries.values())).attempts
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.9.98", 0))
        forged = reply_to(it.seen[0], "example.com. 60 IN A 192.0.2.66")
        stranger.sendto(forged, slot.sock.getsockname())
    it.script = address_of
    async with asyncio.timeout(DEADLINE_S):
        assert read(await asked).data == ["192.0.2.7"]


def lowered(data: bytes) -> bytes:
    """Answer as one who does not keep the spelling of the question."""
    return address_of(data[:12] + data[12:].lower())


async def test_spelling_cannot_be_guessed_and_is_not_the_askers(bench: Bench) -> None:
    it = bench.upstream(address_of)
    for number in range(40):
        await bench.reply(bench.rules(it), f"n{number}.example.com")
    spelled = {data[data.index(b"\7") : data.index(b"\3", 13)] for data in it.seen}
    assert len(spelled) > 20


async def test_answer_in_another_spelling_is_asked_for_by_tcp(bench: Bench) -> None:
    it = bench.upstream(lambda data: reply_to(data[:12] + data[12:].lower(), "example.com. 60 IN A 192.0.2.66"))
    await it.listen(address_of)
    assert await bench.data(bench.rules(it)) == ["192.0.2.7"]
    # That one answer was forged says nothing of the upstream.
    assert not bench.forwarder._caseless
    assert len(it.by_tcp) == 1


async def asked_in_mixed_case(bench: Bench, it: Upstream) -> None:
    """Ask until the name went out in mixed case: one of a thousand is in lower case by chance."""
    before = bench.forwarder.counts.truncated
    for _ in range(5):
        assert await bench.data(bench.rules(it)) == ["192.0.2.7"]
        if b"\7example\3com\0" not in it.seen[-1]:
            break
    assert bench.forwarder.counts.truncated == before + 1


async def test_upstream_that_keeps_no_spelling_is_asked_without_for_a_while(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "SECOND_S", 60)  # a slow answer is not asked for again
    it = bench.upstream(lowered)
    await it.listen(lowered)
    await asked_in_mixed_case(bench, it)
    for _ in range(2):
        assert await bench.data(bench.rules(it)) == ["192.0.2.7"]
    assert len(it.by_tcp) == 1
    assert b"\7example\3com\0" in it.seen[-1]
    bench.now += upstream.CASELESS_S
    await asked_in_mixed_case(bench, it)
    assert len(it.by_tcp) == 2


async def test_upstream_without_tcp_that_keeps_no_spelling_is_believed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "SECOND_S", 60)  # a slow answer is not asked for again
    it = bench.upstream(lowered)
    await asked_in_mixed_case(bench, it)
    # It is known then, and nobody waits again for TCP to fail.
    assert await bench.data(bench.rules(it)) == ["192.0.2.7"]
    assert bench.forwarder.counts.truncated == 1
    assert b"\7example\3com\0" in it.seen[-1]
    bench.now += upstream.CASELESS_S
    await asked_in_mixed_case(bench, it)


async def test_cut_answer_without_tcp_says_nothing_of_the_spelling(bench: Bench) -> None:
    it = bench.upstream(lambda data: reply_to(data[:12] + data[12:].lower(), tc=True))
    assert dnslib.DNSRecord.parse(await bench.reply(bench.rules(it))).header.tc
    assert not bench.forwarder._caseless


async def test_sockets_are_others_once_a_server_is_silent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netplug.dns.sockets.SLOTS", 1)
    # The way to a server may have changed, and its answers come by another link than those that are heard.
    ports: list[int] = []

    def script(data: bytes) -> bytes | None:
        pool = bench.forwarder._pools[it.server]
        ports.extend(slot.sock.getsockname()[1] for slot in pool._slots.values())
        return address_of(data) if len(it.seen) > 1 else None

    it = bench.upstream(script)
    assert await bench.data(bench.rules(it)) == ["192.0.2.7"]
    assert len(set(ports)) == 2


BAD_ANSWERS: dict[str, Script] = {
    "a chain of aliases": lambda data: reply_to(
        data, *(f"n{n}.example. 9 IN CNAME n{n + 1}.example." for n in range(17))
    ),
    "records missing": lambda data: address_of(data)[:-6],
    "a hint": lambda data: _with_authority(reply_to(data), "example. 9 IN NS ns.example."),
}


def _with_authority(data: bytes, line: str) -> bytes:
    packet = dnslib.DNSRecord.parse(data)
    packet.add_auth(*dnslib.RR.fromZone(line))
    return bytes(packet.pack())


@pytest.mark.parametrize("script", BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
async def test_answer_out_of_order_is_none(bench: Bench, script: Script) -> None:
    bad, good = bench.upstream(script), bench.upstream(address_of)
    assert await bench.data(bench.rules(bad, good)) == ["192.0.2.7"]


async def test_too_long_an_answer_is_asked_for_by_tcp(bench: Bench) -> None:
    lines = [f"example.com. 60 IN A 192.0.2.{number}" for number in range(200)]
    it = bench.upstream(lambda data: reply_to(data, tc=True))
    await it.listen(lambda data: reply_to(data, *lines))
    rules = bench.rules(it)
    reply = await bench.reply(rules, edns=opt())
    assert read(reply).tc
    whole = respond(view(zones(), "blue"), query("example.com"), tcp=True)
    assert isinstance(whole, Question)
    told: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    bench.forwarder.ask(rules, Client(whole, "x", "blue", told.set_result))
    assert len(read(await told).answers) == 200
    assert len(it.by_tcp) == 1


async def test_without_tcp_the_answer_is_cut_for_the_asker_too(bench: Bench) -> None:
    it = bench.upstream(lambda data: reply_to(data, tc=True))
    reply = read(await bench.reply(bench.rules(it)))
    assert (reply.tc, reply.rcode, reply.answers) == (True, 0, ())


# Limits


async def test_one_asker_cannot_use_up_what_others_need(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "MAX_PER_CLIENT", 5)
    monkeypatch.setattr(upstream, "MAX_PER_NETWORK", 8)
    it = bench.upstream(lambda _: None)
    rules = bench.rules(it)
    first = [bench.ask(rules, f"n{n}.example", edns=opt()) for n in range(6)]
    assert [future.done() for future in first] == [False] * 5 + [True]
    assert (read(first[5].result()).rcode, error_of(first[5].result())) == (wire.SERVFAIL, 14)
    second = [bench.ask(rules, f"m{n}.example", source="other") for n in range(4)]
    assert [future.done() for future in second] == [False] * 3 + [True]
    it.script = address_of
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*first, *second)
    assert not bench.forwarder._load
    assert await bench.data(rules, "later.example") == ["192.0.2.7"]


async def test_ports_and_ids_are_many_and_change(bench: Bench) -> None:
    peers: set[int] = set()
    it = bench.upstream(address_of)
    rules = bench.rules(it)
    for number in range(200):
        await bench.reply(rules, f"n{number}.example")
        peers |= {slot.sock.getsockname()[1] for slot in bench.forwarder._pools[it.server]._slots.values()}
    assert len(peers) > 40
    assert len({data[:2] for data in it.seen}) > 190


async def test_sockets_get_successors_and_rest_when_idle(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netplug.dns.sockets.SLOTS", 1)
    monkeypatch.setattr("netplug.dns.sockets.USES", 3)
    monkeypatch.setattr(upstream, "IDLE_S", 0.02)
    it = bench.upstream(address_of)
    ports = set()
    for number in range(9):
        await bench.reply(bench.rules(it), f"n{number}.example")
        ports |= {
            slot.sock.getsockname()[1] for pool in bench.forwarder._pools.values() for slot in pool._slots.values()
        }
    assert len(ports) == 3
    await until(lambda: not bench.forwarder._pools)
