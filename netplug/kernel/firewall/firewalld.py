"""Reads firewalld's nf_tables rules. firewalld drops packets from links without a zone, whatever other tables accept.

Only the values that its rules compare, the chains of zones and what accepts all are read. The rest differs between
versions. A zone is chosen for packets to the host as for those that are forwarded, so the former are looked at, in

- firewalld 1: chain ``filter_INPUT_ZONES``, ``iifname "np-*" goto filter_IN_netplug``, which ends in ``accept``;
- firewalld 2: chain ``filter_INPUT_POLICIES``, ``iifname "np-*" jump filter_IN_netplug``, ``iifname "np-*" accept``;
- from 2.5 on: chain ``filter_INPUT_dispatch``, ``iifname "np-*" jump filter_IN_netplug_to_HOST``, as in version 1.
"""

import re
import struct
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from netplug.drivers.api import Firewalld
from netplug.kernel.firewall.table_reader import TableReader
from netplug.kernel.netlink.nf_tables import INET

_TABLE = "firewalld"
_COMPARED = re.compile(b".." + struct.pack("=H", 3) + b"(..)" + struct.pack("=H", 1), re.DOTALL)
"""NFTA_CMP_DATA with NFTA_DATA_VALUE in it (linux/netfilter/nf_tables.h), followed by the value."""
_NAME = re.compile(rb"[!-.0-~]+")
_PORT_BYTES = 2
_NAME_BYTES = 16
_CHOOSING = ("filter_INPUT_ZONES", "filter_INPUT_POLICIES", "filter_INPUT_dispatch")
"""The chain that chooses the zone, by version."""
_ZONE = re.compile(rb"filter_IN_(?!policy_)([^\0]+?)(?:_to_HOST)?\0")
"""The chain of a zone."""
_EXPRESSION = re.compile(rb"\x01\0(bitwise|cmp|ct|fib|immediate|limit|log|lookup|meta|payload|reject)\0")
"""NFTA_EXPR_NAME."""
_ACCEPT = struct.pack("=HH", 12, 2) + struct.pack("=HH", 8, 1) + struct.pack(">I", 1)
"""NFTA_DATA_VERDICT with NFTA_VERDICT_CODE in it."""


def read(tables: TableReader) -> Firewalld | None:
    """Return the links and ports in firewalld's rules; None if it is absent, or if its default zone is trusted."""
    if ("inet", _TABLE) not in tables.named():
        return None
    rules = tables.raw(INET, _TABLE)
    found = _zones(
        (rule for chain, rule in rules if chain in _CHOOSING), {chain for chain, rule in rules if _accepts_all(rule)}
    )
    values = (value for _, rule in rules for value in _values(rule) if len(value) == _PORT_BYTES)
    return found and replace(found, ports=frozenset(int.from_bytes(value, "big") for value in values))


def zones(tables: TableReader) -> Firewalld | None:
    """Return what `read` does, but for ports and most of `trusted`. It looks at few rules, however many there are."""
    if ("inet", _TABLE) not in tables.named():
        return None
    rules = [rule for chain in _CHOOSING for _, rule in tables.raw(INET, _TABLE, chain)]
    default = {_chain(found) for rule in rules if _is_unconditional(rule) and (found := _ZONE.search(rule))}
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
        accepts = _chain(zone) in accepting if zone else _ACCEPT in rule
        if accepts and _is_unconditional(rule):
            return None
        names = set(_names(_values(rule)))
        if zone:
            links |= dict.fromkeys(names, zone[1].decode())
        if accepts:
            trusted |= names or {""}
    return Firewalld(tuple(sorted(links.items())), trusted=frozenset(trusted))


def _chain(zone: re.Match[bytes]) -> str:
    return zone[0].rstrip(b"\0").decode()


def _accepts_all(rule: bytes) -> bool:
    return _ACCEPT in rule and _is_unconditional(rule)


def _is_unconditional(rule: bytes) -> bool:
    return _EXPRESSION.findall(rule) == [b"immediate"]


def _names(values: Iterable[bytes]) -> Iterator[str]:
    """Yield the names of links among values. What is shorter than a name is how names begin."""
    for value in values:
        name = value.rstrip(b"\0")
        if name and _NAME.fullmatch(name):
            yield name.decode() + ("+" if len(value) < _NAME_BYTES else "")


def _values(rule: bytes) -> Iterator[bytes]:
    """Yield the values that a rule compares with."""
    for found in _COMPARED.finditer(rule):
        length = int.from_bytes(found[1], sys.byteorder) - 4
        yield rule[found.end() : found.end() + length]
