"""Reads firewalld's nf_tables rules. firewalld drops packets from links without a zone, whatever other tables accept.

Only the values that its rules compare, the chains of zones and what accepts all are read. The rest differs between
versions. A zone is chosen for packets to the host as for those that are forwarded, so the former are looked at, in

- firewalld 1: chain ``filter_INPUT_ZONES``, ``iifname "np-*" goto filter_IN_netplug``, which ends in ``accept``;
- firewalld 2: chain ``filter_INPUT_POLICIES``, ``iifname "np-*" jump filter_IN_netplug``, ``iifname "np-*" accept``;
- from 2.5 on: chain ``filter_INPUT_dispatch``, ``iifname "np-*" jump filter_IN_netplug_to_HOST``, as in version 1.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import replace

from netplug.drivers.api import Firewalld
from netplug.kernel.firewall import rule_bytes
from netplug.kernel.firewall.table_reader import TableReader
from netplug.kernel.netlink.nf_tables import INET

_TABLE = "firewalld"
_PORT_BYTES = 2
_CHOOSING = ("filter_INPUT_ZONES", "filter_INPUT_POLICIES", "filter_INPUT_dispatch")
"""The chain that chooses the zone, by version."""
_ZONE = re.compile(rb"filter_IN_(?!policy_)([^\0]+?)(?:_to_HOST)?\0")
"""The chain of a zone."""


def read(tables: TableReader) -> Firewalld | None:
    """Return the links and ports in firewalld's rules; None if it is absent, or if its default zone is trusted."""
    if ("inet", _TABLE) not in tables.named():
        return None
    rules = tables.raw(INET, _TABLE)
    found = _zones(
        (rule for chain, rule in rules if chain in _CHOOSING), {chain for chain, rule in rules if _accepts_all(rule)}
    )
    values = (value for _, rule in rules for value in rule_bytes.values(rule) if len(value) == _PORT_BYTES)
    return found and replace(found, ports=frozenset(int.from_bytes(value, "big") for value in values))


def zones(tables: TableReader) -> Firewalld | None:
    """Return what `read` does, but for ports and most of `trusted`. It looks at few rules, however many there are."""
    if ("inet", _TABLE) not in tables.named():
        return None
    rules = [rule for chain in _CHOOSING for _, rule in tables.raw(INET, _TABLE, chain)]
    default = {_chain(found) for rule in rules if rule_bytes.is_unconditional(rule) and (found := _ZONE.search(rule))}
    accepting = {chain for chain in default if any(_accepts_all(it) for _, it in tables.raw(INET, _TABLE, chain))}
    return _zones(rules, accepting)


def _zones(rules: Iterable[bytes], accepting: Collection[str]) -> Firewalld | None:
    """Return what the rules that choose a zone say; None if the default zone is one that accepts all.

    Args:
        rules: in order; of one chain.
        accepting: chains that accept all.
    """
    links: dict[str, str] = {}
    trusted: set[str] = set()
    for rule in rules:
        zone = _ZONE.search(rule)
        accepts = _chain(zone) in accepting if zone else rule_bytes.accepts(rule)
        if accepts and rule_bytes.is_unconditional(rule):
            return None
        names = set(rule_bytes.names(rule_bytes.values(rule)))
        if zone:
            links |= dict.fromkeys(names, zone[1].decode())
        if accepts:
            trusted |= names or {""}
    return Firewalld(tuple(sorted(links.items())), trusted=frozenset(trusted))


def _chain(zone: re.Match[bytes]) -> str:
    return zone[0].rstrip(b"\0").decode()


def _accepts_all(rule: bytes) -> bool:
    return rule_bytes.accepts(rule) and rule_bytes.is_unconditional(rule)
