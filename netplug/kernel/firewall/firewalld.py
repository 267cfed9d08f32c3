"""What firewalld's table lets pass: it drops what comes by a link of no zone, whatever rules of others say.

Of its rules are looked for what they compare with and where they lead, since all else differs from version to version.
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
"""NFTA_CMP_DATA, and NFTA_DATA_VALUE in it (linux/netfilter/nf_tables.h); then follows the value."""
_NAME = re.compile(rb"[!-.0-~]+")
_PORT_BYTES = 2


def read(tables: Tables) -> Firewalld | None:
    """Return what firewalld's rules are about; None where there is none, or all is trusted that is of no zone."""
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
    """Yield what a rule compares with."""
    for found in _COMPARED.finditer(rule):
        length = int.from_bytes(found[1], sys.byteorder) - 4
        yield rule[found.end() : found.end() + length]
