"""Public names with private addresses: what is refused of upstreams' answers, who is exempt, and who is told."""

from ipaddress import ip_network
from pathlib import Path

import dnslib
import pytest
from dns_packets import opt, read
from dns_upstreams import Bench, Script, reply_to
from engine_host import Host

from netplug.config import Settings
from netplug.dns import extended_errors, wire
from netplug.dns.forward_rules import Rule, Rules
from netplug.dns.rebinding import Guard
from netplug.engine.happenings import Happening, Kind
from netplug.names import rebinding
from netplug.names.server import NameServer

BLOCKED = 15
PUBLIC = ("93.184.216.34", "172.32.0.1", "100.128.0.1", "11.0.0.1", "2606:4700::1", "::ffff:5db8:d822")
PRIVATE = (
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.2",
    "169.254.169.254",
    "172.31.255.255",
    "192.168.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fd00::1",
    "fe80::1",
    "fec0::1",
    "::ffff:7f00:1",
    "::a00:1",
    "64:ff9b::a00:1",
)
OWN = ("203.0.113.9", "2001:db8:5::9")
"""Addresses in networks that have public subnets."""


@pytest.fixture
def told() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def guard(told: list[tuple[str, str]]) -> Guard:
    made = Guard(lambda name, address: told.append((wire.to_text(name), str(address))))
    made.on, made.subnets = True, (ip_network("203.0.113.0/24"), ip_network("2001:db8:5::/64"))
    return made


def says(*lines: str) -> Script:
    """Return a script that answers with records; `@` is the name."""
    return lambda data: reply_to(
        data, *(line.replace("@", str(dnslib.DNSRecord.parse(data).q.qname)) for line in lines)
    )


def record(address: str) -> str:
    return f"@ 60 IN {'AAAA' if ':' in address else 'A'} {address}"


def reason(reply: bytes) -> int:
    """Return the extended error of a reply; -1 for none."""
    (found,) = [rr for rr in dnslib.DNSRecord.parse(reply).ar if rr.rtype == wire.OPT]
    return next((int.from_bytes(it.data[:2]) for it in found.rdata if it.code == 15), -1)


@pytest.mark.parametrize("address", [*PUBLIC, *PRIVATE, *OWN])
async def test_private_addresses_are_refused_with_the_reason(
    bench: Bench, guard: Guard, told: list[tuple[str, str]], address: str
) -> None:
    it = bench.upstream(says(record(address)))
    rules = Rules.of((), [it.server], guard=guard)
    refused = address not in PUBLIC
    for number in (1, 2):  # a refused answer is not kept
        reply = await bench.reply(rules, "Evil.example", edns=opt())
        assert read(reply).rcode == wire.NOERROR
        assert len(read(reply).data) == (not refused)
        assert reason(reply) == (BLOCKED if refused else -1)
        assert len(it.seen) == (number if refused else 1)
    assert {name for name, _ in told} == ({"evil.example"} if refused else set())
    guard.on = False
    assert len(await bench.data(rules, "evil.example")) == 1


@pytest.mark.parametrize(
    "lines",
    [
        ("@ 60 IN A 93.184.216.34", "@ 60 IN A 10.0.0.1"),
        ("@ 60 IN CNAME inside.example.net.", "inside.example.net. 60 IN A 10.0.0.1"),
        ("@ 60 IN CNAME inside.example.net.", "inside.example.net. 60 IN AAAA ::1"),
        ("@ 60 IN HTTPS 1 . alpn=h2 ipv4hint=93.184.216.34,10.0.0.1",),
        ("@ 60 IN HTTPS 1 svc.example. ipv6hint=fd00::1",),
    ],
)
async def test_one_private_address_anywhere_refuses_the_whole_answer(
    bench: Bench, guard: Guard, lines: tuple[str, ...]
) -> None:
    rules = Rules.of((), [bench.upstream(says(*lines)).server], guard=guard)
    reply = await bench.reply(rules, "evil.example", edns=opt())
    assert (read(reply).data, reason(reply)) == ([], BLOCKED)


@pytest.mark.parametrize(
    "line",
    [
        "@ 60 IN HTTPS 1 . alpn=h2 ipv4hint=93.184.216.34",
        "@ 60 IN TXT 10.0.0.1",
        "@ 60 IN MX 10 inside.example.net.",
        "@ 60 IN CNAME inside.example.net.",
    ],
)
async def test_answers_without_private_addresses_pass(bench: Bench, guard: Guard, line: str) -> None:
    rules = Rules.of((), [bench.upstream(says(line)).server], guard=guard)
    assert len(await bench.data(rules, "www.example")) == 1


async def test_domains_with_a_resolver_of_their_own_are_exempt(bench: Bench, guard: Guard) -> None:
    it = bench.upstream(says("@ 60 IN A 10.0.0.1"))
    rule = Rule(wire.to_wire("corp.example"), (it.server,))
    rules = Rules.of((rule,), [it.server], guard=guard, also=[wire.to_wire("office.example")])
    for name in ("corp.example", "db.corp.example", "db.office.example"):
        assert await bench.data(rules, name) == ["10.0.0.1"]
    for name in ("other.example", "evilcorp.example", "corp.example.net"):
        assert await bench.data(rules, name) == []
    assert await bench.data(rules.below((Rule(wire.to_wire("net.example"), (it.server,)),)), "a.net.example") != []
    assert await bench.data(rules.below((Rule(wire.ROOT, (it.server,)),)), "evil.example") == []


async def test_waiting_clients_are_all_told(bench: Bench, guard: Guard) -> None:
    rules = Rules.of((), [bench.upstream(says("@ 60 IN A 10.0.0.1")).server], guard=guard)
    asked = [bench.ask(rules, "evil.example", source=f"10.1.0.{n}", edns=opt()) for n in (2, 3)]
    assert [reason(await one) for one in asked] == [BLOCKED, BLOCKED]
    assert bench.forwarder.pending == 0


async def test_each_name_is_told_once_and_all_are_counted(tmp_path: Path) -> None:
    host = await Host.boot()
    try:
        seen: list[Happening] = []
        host.engine.happenings.watchers.append(seen.append)
        server = NameServer(host.engine, conf=tmp_path / "none")
        assert not server.guard.on
        await host.cli_network("203.0.113.0/24")
        assert server.guard.subnets == (ip_network("203.0.113.0/24"),)
        for number in range(2 * rebinding.MOST_TOLD):
            for _ in range(2):
                server.guard.tell(wire.to_wire(f"n{number}.example"), ip_network("10.0.0.0/8")[1])
        assert server.forwarder.counts.blocked == 4 * rebinding.MOST_TOLD
        blocked = [it for it in seen if it.kind is Kind.ANSWER_BLOCKED]
        assert [it.object for it in blocked] == [f"name n{number}.example" for number in range(rebinding.MOST_TOLD)]
        assert blocked[0].what == "has the private address 10.0.0.1"
        server.close()
    finally:
        await host.close()


async def test_the_setting_changes_at_run_time_and_forgets_what_was_kept(bench: Bench, tmp_path: Path) -> None:
    host = await Host.boot()
    it = bench.upstream(says("@ 600 IN A 10.0.0.1"))
    server = NameServer(host.engine, conf=tmp_path / "none", upstreams=[Rule(wire.ROOT, (it.server,))])
    try:
        server.start()
        await host.cli_network("10.9.0.0/24")
        network = host.engine.registry.networks()[0].network.id

        def rules() -> Rules:
            view = server.view([network], network)
            assert view is not None
            return view.rules

        for refuse, expected in ((False, ["10.0.0.1"]), (True, []), (False, ["10.0.0.1"])):
            server.use_upstreams([Rule(wire.ROOT, (it.server,))], special=True, refuse_rebinding=refuse)
            assert await bench.data(rules(), "evil.example") == expected
    finally:
        server.close()
        await host.close()


def test_the_setting_is_off_by_default_and_takes_two_words() -> None:
    assert Settings().dns_rebinding == "allow"
    assert Settings.model_validate({"dns_rebinding": "REFUSE"}).dns_rebinding == "refuse"
    assert extended_errors.REBINDING[0] == BLOCKED
