"""The text of rules: as nft prints them, and as iptables-save does where iptables made them."""

import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from netplug.kernel.firewall.libnftables import Nft, NftError
from netplug.kernel.netlink import nf_tables as nft
from netplug.kernel.netlink.connection import NETLINK_NETFILTER, Netlink, attrs, string, text
from netplug.kernel.probes import places
from netplug.kernel.probes.api import Rule
from netplug.kernel.probes.matching import Matcher
from netplug.kernel.probes.rule_trace import Event

_IPTABLES = {"ip": "iptables", "ip6": "ip6tables"}
_TABLES = frozenset({"filter", "nat", "mangle", "raw", "security"})
_HANDLE = re.compile(r"^\s*(.*?)\s*# handle (\d+)$")
_HOOKED = re.compile(r"hook (\w+)")
_DEADLINE_S = 5


@dataclass(slots=True)
class Chain:
    """The rules of a chain by handle, and its hook."""

    rules: dict[int, str] = field(default_factory=dict)
    hook: str = ""
    flavour: str = "nft"


def rules_of(events: Iterable[Event], matcher: Matcher) -> list[Rule]:
    """Return what decided about the packets of a job, in order: what dropped one, and what accepted or changed it."""
    wanted = [
        it for it in events if it.verdict in {"drop", "queue", "stolen"} or (it.verdict == "accept" and it.handle)
    ]
    chains: dict[tuple[str, str, str, str], Chain] = {}
    found: dict[Rule, None] = {}
    for it in wanted:
        match = matcher.match(it.packet) if it.packet else None
        if not it.ours and not match:
            continue
        at = it.netns, it.family, it.table, it.chain
        if at not in chains:
            chains[at] = read(*at)
        chain = chains[at]
        words = chain.rules.get(it.handle, "") if it.handle else f"policy {it.verdict}"
        verdict = "reject" if it.verdict == "drop" and _rejects(words) else it.verdict
        rule = Rule(
            it.netns,
            chain.flavour,
            it.family,
            it.table,
            it.chain,
            verdict,
            words,
            it.handle,
            chain.hook,
            back=bool(match and match.back),
            number=match.number if match else 0,
        )
        found[rule] = None
    return list(found)


def _rejects(words: str) -> bool:
    return bool(re.search(r"\breject\b|-j REJECT\b", words))


def read(netns: str, family: str, table: str, chain: str) -> Chain:
    """Read the rules of a chain as they are now."""
    return places.run_in(netns, lambda: _read_here(family, table, chain))


def _read_here(family: str, table: str, chain: str) -> Chain:
    found = Chain()
    try:
        with Nft(handles=True) as library:
            printed = library.run(f"list chain {family} {table} {chain}")
    except NftError:
        printed = ""
    for line in printed.splitlines():
        if hooked := _HOOKED.search(line):
            found.hook = found.hook or hooked[1]
        elif (match := _HANDLE.match(line)) and not match[1].endswith("{"):
            found.rules[int(match[2])] = match[1]
    if family in _IPTABLES and table in _TABLES:
        _in_own_words(found, family, table, chain)
    return found


def _in_own_words(found: Chain, family: str, table: str, chain: str) -> None:
    """Replace the texts by those of iptables-save, if it knows exactly these rules."""
    handles = _handles(family, table, chain)
    lines = _saved((f"{_IPTABLES[family]}-nft-save", "-t", table), chain)
    if lines and len(lines) == len(handles):
        found.rules = dict(zip(handles, lines, strict=True))
        found.flavour = "iptables-nft"


def _handles(family: str, table: str, chain: str) -> list[int]:
    with Netlink.open(NETLINK_NETFILTER) as netlink:
        number = nft.FAMILIES[family]
        dumped = nft.dump(netlink, nft.GETRULE, number, text(1, table), text(2, chain))
        rules = [attrs(it, 4) for it in dumped]
    return [int.from_bytes(it[nft.RULE_HANDLE], "big") for it in rules if string(it.get(nft.RULE_CHAIN)) == chain]


def _saved(command: Sequence[str], chain: str) -> list[str]:
    try:
        done = subprocess.run(command, capture_output=True, timeout=_DEADLINE_S, check=False, text=True)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in done.stdout.splitlines() if line.startswith(f"-A {chain} ")]
