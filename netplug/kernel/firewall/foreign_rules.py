"""Rules of others that drop some of what the host forwards, as far as they come before netplug has let it pass."""

import shlex
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network

from netplug.drivers.steps import IPNetwork
from netplug.kernel.firewall import rule_bytes
from netplug.kernel.firewall.api import BaseChain, DroppingRule
from netplug.kernel.firewall.gate_rules import DOCKER_USER, FORWARD, UFW_INPUT, Filter
from netplug.kernel.firewall.table_reader import OURS, TableReader
from netplug.kernel.netlink import nf_tables as nft
from netplug.kernel.netlink.connection import attrs

_KNOWN = frozenset({"filter", "nat", "mangle", "raw", "security", "firewalld", "docker-bridges", "kube-proxy"})
"""Tables that are read otherwise (iptables-nft's, firewalld's), or whose owner lets pass what is not his."""
_COMPARING = frozenset({"counter", "log", "immediate", "reject", "cmp", "meta", "payload", "bitwise"})
_VERSIONS = (b"\x02", b"\x0a")
"""NFPROTO_IPV4 and NFPROTO_IPV6: nft compares them before addresses."""
_V4_BYTES, _MAC_BYTES, _V6_BYTES = 4, 6, 16
_SHORTEST = 3
"""Bytes of a value that is not a port or protocol: the prefix of a /24."""


def of_iptables(family: int, flavour: str, found: Filter) -> Iterator[DroppingRule]:
    """Yield the rules of ``FORWARD`` before the gate, and of ``DOCKER-USER``, that drop.

    The policy of ``OUTPUT`` only counts if the chain has no rules: it drops all then, also answers to containers.
    """
    rules = list(found.rules.get("FORWARD", ()))
    gate = f"-j {FORWARD}"
    before = rules[: rules.index(gate)] if gate in rules else rules
    for chain, those in (("FORWARD", before), (DOCKER_USER, found.rules.get(DOCKER_USER, ()))):
        for rule in those:
            words = _words(rule)
            if "INVALID" in words:  # conntrack's word for what belongs to no connection
                continue
            if words[-2:] == ["-j", "DROP"] or ("-j" in words and words[words.index("-j") + 1] == "REJECT"):
                yield _rule_of_iptables(family, flavour, chain, rule, words)
    if found.policies.get("OUTPUT", "ACCEPT") != "ACCEPT" and not found.rules.get("OUTPUT"):
        name = _program(family, flavour)
        yield DroppingRule(name, "OUTPUT", "policy drop", f"{name} -P OUTPUT ACCEPT", hook="output")


def _program(family: int, flavour: str) -> str:
    return f"{'iptables' if family == 4 else 'ip6tables'}-{flavour}"


def _words(rule: str) -> list[str]:
    try:
        return shlex.split(rule)
    except ValueError:  # a comment with a quote
        return rule.split()


def _rule_of_iptables(family: int, flavour: str, chain: str, rule: str, words: Sequence[str]) -> DroppingRule:
    links: list[str] = []
    networks: list[IPNetwork] = []
    whole, at = "!" not in words, 0
    while at < len(words) and words[at] != "-j":
        word, value = words[at], words[at + 1] if at + 1 < len(words) else ""
        if word in {"-i", "-o"}:
            links.append(value)
        elif word in {"-s", "-d"}:
            networks.append(ip_network(value, strict=False))
        elif (word, value) != ("-m", "comment") and word != "--comment":
            whole = False
        at += 2
    name = _program(family, flavour)
    mend = f"{name} -D {chain} {rule}"
    return DroppingRule(name, chain, rule, mend, tuple(links), tuple(networks), whole)


def udp_ports(found: Filter) -> Iterator[tuple[int, int]]:
    """Yield the ranges of UDP ports that rules of ``INPUT``, or those of ufw's users, accept."""
    for chain in ("INPUT", UFW_INPUT):
        for rule in found.rules.get(chain, ()):
            words = _words(rule)
            if "ACCEPT" in words and "udp" in words:
                listed = (words[at + 1] for at, word in enumerate(words[:-1]) if word in {"--dport", "--dports"})
                for first, _, last in (it.partition(":") for text in listed for it in text.split(",")):
                    if first.isdigit():
                        yield int(first), int(last or first)


def of_nft(tables: TableReader, chains: Sequence[BaseChain]) -> Iterator[DroppingRule]:
    """Yield the rules of foreign base chains that drop, and those chains that drop the rest.

    Of a chain at another hook than `forward`, the policy only counts if it has no rules: it drops all.
    """
    for chain in chains:
        seen = chain.hook == "forward" or (chain.hook in _OTHER_HOOKS and chain.family in _IP)
        if not seen or chain.table in _KNOWN or chain.table.startswith(OURS):
            continue
        where = f"table {chain.family} {chain.table}, chain {chain.name}"
        rules = [data for _, data in tables.raw(nft.FAMILIES[chain.family], chain.table, chain.name)]
        after = False
        for rule in rules:
            if rule_bytes.drops(rule):
                yield _rule_of_nft(where, chain, rule, after=after)
            after = after or not rule_bytes.drops(rule)
        if chain.policy == "drop" and (chain.hook == "forward" or not rules):
            named = {name for rule in rules if rule_bytes.accepts(rule) for name in _links(rule)}
            yield DroppingRule(
                where, chain.name, "policy drop", _mend(chain), tuple(sorted(named)), (), not named, chain.hook
            )


_OTHER_HOOKS = frozenset({"prerouting", "input", "output"})
_IP = frozenset({"inet", "ip", "ip6"})


def _mend(chain: BaseChain) -> str:
    named = f"{chain.family} {chain.table} {chain.name}"
    if chain.hook != "forward":
        return f"nft 'chain {named} {{ policy accept; }}'"
    return " && ".join(f'nft insert rule {named} {way} "np-*" accept' for way in ("iifname", "oifname"))


def _rule_of_nft(where: str, chain: BaseChain, rule: bytes, *, after: bool) -> DroppingRule:
    handle = int.from_bytes(attrs(rule, 4).get(nft.RULE_HANDLE, b""), "big")
    found, links = [it for it in rule_bytes.values(rule) if it not in _VERSIONS], _links(rule)
    networks = tuple(it for value in found if (it := _network(value)))
    whole = (
        _COMPARING.issuperset(rule_bytes.expressions(rule))
        and not rule_bytes.negates(rule)
        and len(links) + len(networks) == len(found)
    )
    mend = f"nft delete rule {chain.family} {chain.table} {chain.name} handle {handle}"
    text = f"rule with handle {handle}"
    return DroppingRule(where, chain.name, text, mend, tuple(links), networks, whole, chain.hook, after)


def _links(rule: bytes) -> list[str]:
    return [it for it in rule_bytes.names(rule_bytes.values(rule)) if len(it) > 1]


def _network(value: bytes) -> IPNetwork | None:
    """Return the range of addresses that a value is, or begins (nft shortens it to whole bytes); None if it is none."""
    size = len(value)
    if size < _SHORTEST or size == _MAC_BYTES or _is_name(value):
        return None
    if size <= _V4_BYTES:
        return IPv4Network((value.ljust(_V4_BYTES, b"\0"), 8 * size))
    return IPv6Network((value.ljust(_V6_BYTES, b"\0"), 8 * size)) if size <= _V6_BYTES else None


def _is_name(value: bytes) -> bool:
    """Return whether a value is the name of a link, or how some begin."""
    return bool(list(rule_bytes.names((value,))))
