"""Reads firewalld's nf_tables rules. firewalld drops packets from links without a zone, whatever other tables accept.

Only the values that its rules compare and the chains that they jump to are read. All else differs between versions.
"""

import re
import struct
import sys
from collections.abc import Iterator

from netplug.drivers.api import Firewalld
from netplug.kernel.firewall.nftables import Tables
from netplug.kernel.netlink.nf_tables import INET

_TABLE = "firewalld"
_COMPARED = re.compile(b".." + struct.pack("=H", 3) + b"(..)" + struct.pack("=H", 1), re.DOTALL)
"""NFTA_CMP_DATA with NFTA_DATA_VALUE in it (linux/netfilter/nf_tables.h), followed by the value."""
_NAME = re.compile(rb"[!-.0-~]+")
_PORT_BYTES = 2


def read(tables: Tables) -> Firewalld | None:
    """Return the links and ports in firewalld's rules; None if it is absent, or if its default zone is trusted."""
    if _TABLE not in tables.named(INET):
        return None
    links: set[str] = set()
    ports: set[int] = set()
    trusted: set[str] = set()
    for chain, rule in tables.raw(INET, _TABLE):
        values = list(_values(rule))
        names = {text.decode() for value in values if (text := value.rstrip(b"\0")) and _NAME.fullmatch(text)}
        links |= names
        ports |= {int.from_bytes(value, "big") for value in values if len(value) == _PORT_BYTES}
        if not chain.endswith("_ZONES"):
            continue
        if b"filter_FWD_trusted\0" in rule and not values:
            return None
        if b"filter_IN_trusted\0" in rule:
            trusted |= names or {""}
    return Firewalld(frozenset(links), frozenset(ports), frozenset(trusted))


def _values(rule: bytes) -> Iterator[bytes]:
    """Yield the values that a rule compares with."""
    for found in _COMPARED.finditer(rule):
        length = int.from_bytes(found[1], sys.byteorder) - 4
        yield rule[found.end() : found.end() + length]
