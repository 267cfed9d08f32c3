"""What can be told of a rule of nf_tables without decoding all of it: expressions, verdict, and what it compares."""

import re
import struct
import sys
from collections.abc import Iterable, Iterator

from netplug.kernel.netlink.connection import attrs, string, walk

_COMPARED = re.compile(b".." + struct.pack("=H", 3) + b"(..)" + struct.pack("=H", 1), re.DOTALL)
"""NFTA_CMP_DATA with NFTA_DATA_VALUE in it (linux/netfilter/nf_tables.h), followed by the value."""
_RULE_EXPRESSIONS, _NAME_OF = 4, 1
"""NFTA_RULE_EXPRESSIONS, NFTA_EXPR_NAME."""
_NEGATED = re.compile(
    struct.pack("=HH", 8, 2) + rb"\0\0\0[^\0].." + struct.pack("=H", 3) + b".." + struct.pack("=H", 1), re.DOTALL
)
"""NFTA_CMP_OP other than NFT_CMP_EQ, followed by such data."""
_NAME = re.compile(rb"[!-.0-~]+")
_NAME_BYTES = 16
_VERDICT = struct.pack("=HH", 12, 2) + struct.pack("=HH", 8, 1)
"""NFTA_DATA_VERDICT with NFTA_VERDICT_CODE in it."""
_ACCEPT, _DROP = _VERDICT + struct.pack(">I", 1), _VERDICT + struct.pack(">I", 0)


def accepts(rule: bytes) -> bool:
    """Return whether a rule accepts what it matches."""
    return _ACCEPT in rule


def drops(rule: bytes) -> bool:
    """Return whether a rule drops or rejects what it matches."""
    return _DROP in rule or "reject" in expressions(rule)


def expressions(rule: bytes) -> list[str]:
    """Return the names of a rule's expressions, in order."""
    body = attrs(rule, 4).get(_RULE_EXPRESSIONS, b"")
    return [string(attrs(it).get(_NAME_OF)) for _, it in walk(body)]


def is_unconditional(rule: bytes) -> bool:
    """Return whether a rule matches each packet, and does nothing besides its verdict."""
    return expressions(rule) == ["immediate"]


def negates(rule: bytes) -> bool:
    """Return whether a rule has a comparison for anything but equality."""
    return _NEGATED.search(rule) is not None


def names(found: Iterable[bytes]) -> Iterator[str]:
    """Yield the names of links among values. What is shorter than a name is how names begin (``+``)."""
    for value in found:
        name = value.rstrip(b"\0")
        if name and _NAME.fullmatch(name):
            yield name.decode() + ("+" if len(value) < _NAME_BYTES else "")


def values(rule: bytes) -> Iterator[bytes]:
    """Yield the values that a rule compares with."""
    for found in _COMPARED.finditer(rule):
        length = int.from_bytes(found[1], sys.byteorder) - 4
        yield rule[found.end() : found.end() + length]
