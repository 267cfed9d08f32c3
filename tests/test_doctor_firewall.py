"""The doctor's checks of the rules of others."""

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
import pytest_asyncio
from doctor_host import host_subject
from engine_host import NET, Host

from netplug.drivers.api import Network
from netplug.drivers.options import NetworkOptions
from netplug.drivers.steps import IPNetwork
from netplug.insight.doctor import firewall
from netplug.kernel.firewall import foreign_rules
from netplug.kernel.firewall.api import DroppingRule, FilterTable, FirewallReport
from netplug.kernel.firewall.gate_rules import Filter

pytestmark = pytest.mark.usefixtures("quiet")


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    host = await Host.boot()
    await host.cli_network("10.1.0.0/24")
    yield host
    await host.close()


def rules_of(text: str) -> list[DroppingRule]:
    saved = f"*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:DOCKER-USER - [0:0]\n{text}\nCOMMIT\n"
    return list(foreign_rules.of_iptables(4, "nft", Filter.parse(saved)))


async def verdicts(host: Host, folder: Path, *rules: DroppingRule) -> list[str]:
    host.kernel.foreign.firewall = FirewallReport(dropping=rules)
    return [it.verdict for it in await firewall.foreign(host_subject(host, folder))]


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        ("-A FORWARD -j DROP", "warning"),
        ("-A FORWARD -j REJECT --reject-with icmp-port-unreachable", "warning"),
        ('-A FORWARD -m comment --comment "no \\"way\\"" -j DROP', "warning"),
        ("-A FORWARD -i np-+ -j DROP", "warning"),
        ("-A FORWARD -s 10.1.0.0/16 -j DROP", "warning"),
        ("-A DOCKER-USER -d 10.1.0.2/32 -j DROP", "warning"),
        ("-A FORWARD -i np-+ -p tcp -m tcp --dport 25 -j DROP", "note"),
        ("-A FORWARD -i eth0 -j DROP", "note"),
        ("-A FORWARD -p udp -j DROP", "note"),
        ("-A FORWARD -s 192.0.2.0/24 -j DROP", ""),
        ("-A FORWARD -i eth0 -o virbr0 -j REJECT", ""),
        ("-A FORWARD -m conntrack --ctstate INVALID -j DROP", ""),
        ("-A FORWARD -j ACCEPT", ""),
        ("-A FORWARD -j NETPLUG-FORWARD\n-A FORWARD -j DROP", ""),
    ],
)
async def test_rule_of_iptables(host: Host, tmp_path: Path, rule: str, verdict: str) -> None:
    found = rules_of(rule)
    assert await verdicts(host, tmp_path, *found) == [verdict] * bool(verdict)
    if verdict:
        assert found[0].mend == f"iptables-nft -D {rule.removeprefix('-A ')}"


@pytest.mark.parametrize(("rules", "count"), [("", 1), ("-A OUTPUT -o eth0 -j ACCEPT", 0), ("-A INPUT -j DROP", 1)])
async def test_policy_of_output_drops_all_if_there_is_no_rule(
    host: Host, tmp_path: Path, rules: str, count: int
) -> None:
    saved = Filter.parse(f"*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT DROP [0:0]\n{rules}\nCOMMIT\n")
    found = list(foreign_rules.of_iptables(6, "legacy", saved))
    assert [it.mend for it in found] == ["ip6tables-legacy -P OUTPUT ACCEPT"] * count
    assert await verdicts(host, tmp_path, *found) == ["warning"] * count


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        (DroppingRule("table inet site, chain forward", "forward", "policy drop", "mend"), "warning"),
        (DroppingRule("table inet site, chain forward", "forward", "policy drop", "", ("eth0",)), "warning"),
        (DroppingRule("table inet site, chain forward", "forward", "policy drop", "", ("np-+",)), ""),
        (
            DroppingRule("table inet site, chain forward", "forward", "rule 4", "", (), (ip_network("10.1.0.2"),)),
            "warning",
        ),
        (DroppingRule("table inet site, chain forward", "forward", "rule 4", "", (), (), whole=False), "note"),
    ],
)
async def test_rule_of_nf_tables(host: Host, tmp_path: Path, rule: DroppingRule, verdict: str) -> None:
    assert await verdicts(host, tmp_path, rule) == [verdict] * bool(verdict)


OURS, THEIRS = ip_network("10.1.0.2"), ip_network("192.0.2.0/24")


@pytest.mark.parametrize("hook", ["prerouting", "input", "output"])
@pytest.mark.parametrize(
    ("links", "networks", "whole", "after", "verdict"),
    [
        ((), (), True, False, "warning"),
        (("np-+",), (), True, False, "warning"),
        ((), (OURS,), True, False, "warning"),
        ((), (OURS,), True, True, "note"),
        ((), (), True, True, ""),
        ((), (OURS,), False, False, ""),
        ((), (THEIRS,), True, False, ""),
        (("eth0",), (), True, False, ""),
        (("eth0",), (OURS,), True, False, ""),
    ],
)
async def test_rule_of_nf_tables_at_another_hook(
    host: Host, tmp_path: Path, *, hook: str, links: tuple[str, ...], networks: tuple[IPNetwork, ...], whole: bool,
    after: bool, verdict: str,
) -> None:  # fmt: skip
    rule = DroppingRule("table inet site, chain a", "a", "rule 4", "", links, networks, whole, hook, after)
    assert await verdicts(host, tmp_path, rule) == [verdict] * bool(verdict)


async def test_rules_that_cannot_be_read(host: Host, tmp_path: Path) -> None:
    host.kernel.foreign.firewall = FirewallReport(filters=(FilterTable(4, "legacy", unread="there is no program"),))
    (found,) = await firewall.iptables(host_subject(host, tmp_path))
    assert (found.verdict, found.mend) == ("warning", "apt-get install iptables")


@pytest.mark.parametrize("gate", [True, False])
async def test_policy_drop_needs_the_gate(host: Host, tmp_path: Path, *, gate: bool) -> None:
    table = FilterTable(4, "nft", {"FORWARD": "DROP"}, {"FORWARD": 1, "INPUT": 0}, gate=gate)
    host.kernel.foreign.firewall = FirewallReport(filters=(table,))
    found = list(await firewall.iptables(host_subject(host, tmp_path)))
    assert [it.verdict for it in found] == ["warning"] * (not gate)


async def test_rules_in_both_flavours_are_a_note(host: Host, tmp_path: Path) -> None:
    tables = tuple(FilterTable(4, flavour, rules={"FORWARD": 1}) for flavour in ("nft", "legacy"))
    host.kernel.foreign.firewall = FirewallReport(filters=tables)
    assert [it.verdict for it in await firewall.flavours(host_subject(host, tmp_path))] == ["note"]


@pytest.mark.parametrize(
    ("rule", "mends"),
    [
        ("-A ufw-user-input -p udp -m udp --dport 53 -j ACCEPT", ["ufw allow 4789/udp"]),
        ("-A ufw-user-input -p udp -m multiport --dports 53,4000:5000 -j ACCEPT", []),
    ],
)
async def test_tunnels_that_ufw_drops(host: Host, tmp_path: Path, rule: str, mends: list[str]) -> None:
    text = f"*filter\n:INPUT DROP [0:0]\n:ufw-user-input - [0:0]\n{rule}\nCOMMIT\n"
    ports = tuple(foreign_rules.udp_ports(Filter.parse(text)))
    table = FilterTable(4, "nft", {"INPUT": "DROP"}, ufw=True, udp_ports=ports)
    host.kernel.foreign.firewall = FirewallReport(filters=(table,))
    network = Network(NET, "blue", options=NetworkOptions(mode="overlay"))
    subject = replace(host_subject(host, tmp_path), networks=[network])
    assert [it.mend for it in await firewall.tunnels(subject)] == mends
