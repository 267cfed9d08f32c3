"""nf_tables messages (linux/netfilter/nf_tables.h): queries, transactions, elements of sets, base chains of links.

Constant tables are text, see `firewall.compiler`. Attributes are in network order, data as it is compared.
"""

import errno
import struct
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from netplug.kernel.netlink.connection import (
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    Netlink,
    NetlinkError,
    attr,
    attrs,
    nest,
    string,
    text,
    walk,
)

NETDEV, BRIDGE, IPV4, IPV6, INET = 5, 7, 2, 10, 1
"""Address families of tables: NFPROTO_NETDEV, NFPROTO_BRIDGE, NFPROTO_IPV4, NFPROTO_IPV6, NFPROTO_INET."""
FAMILIES = {"netdev": NETDEV, "bridge": BRIDGE, "ip": IPV4, "ip6": IPV6, "inet": INET}
"""By their names in nft(8)."""
FAMILY_NAMES = {number: name for name, number in FAMILIES.items()}

SUBSYSTEM = 10
NEWTABLE, GETTABLE, DELTABLE = 0, 1, 2
NEWCHAIN, GETCHAIN, DELCHAIN = 3, 4, 5
NEWRULE, GETRULE, DELRULE = 6, 7, 8
NEWSET, GETSET, DELSET = 9, 10, 11
NEWSETELEM, GETSETELEM, DELSETELEM = 12, 13, 14
GETGEN = 16
_BATCH_BEGIN, _BATCH_END, _BATCH_GENERATION = 0x10, 0x11, 1

TABLE_NAME, TABLE_FLAGS = 1, 2
CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY = 3, 4, 5
RULE_CHAIN, RULE_HANDLE, ELEMENTS, GENERATION = 2, 3, 3, 1
LIST_ELEM, ELEM_KEY, ELEM_DATA, ELEM_FLAGS, ELEM_KEY_END = 1, 1, 2, 3, 10
INTERVAL_END, CATCH_ALL = 0x1, 0x2
DATA_VALUE, _DATA_VERDICT, _VERDICT_CODE, _VERDICT_CHAIN = 1, 2, 1, 2

OWNED = 0x2
"""NFT_TABLE_F_OWNER (since Linux 5.12): only the socket that created the table can change it. The kernel deletes the
table when the socket is closed, also when its process is killed."""

_VERDICTS = {"drop": 0, "accept": 1, "continue": -1, "jump": -3, "goto": -4, "return": -5}
_VERDICT_NAMES = {code: name for name, code in _VERDICTS.items()}
_COMMENT = 0
"""NFTNL_UDATA_CHAIN_COMMENT, the type of a comment in a chain's user data."""
_INGRESS = 0

ABSENT = frozenset((errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT))
"""Error codes for what is not there, also as the kernel lacks the family."""

Message: TypeAlias = tuple[int, int, bytes]
"""Type, flags and payload, as `Netlink.batch` takes them."""


def be32(kind: int, value: int) -> bytes:
    """Return an attribute with a 32-bit number in network order; it may be negative."""
    return attr(kind, struct.pack(">I", value & 0xFFFFFFFF))


def message(kind: int, family: int, *body: bytes, flags: int = 0) -> Message:
    """Return an nf_tables message (linux/netfilter/nfnetlink.h, struct nfgenmsg)."""
    return SUBSYSTEM << 8 | kind, flags, struct.pack(">BBH", family, 0, 0) + b"".join(body)


def batch(messages: list[Message], generation: int = 0) -> list[Message]:
    """Return the messages as one transaction. The kernel acknowledges the last message, and those that it refuses.

    `generation`: of the ruleset that it changes; if there is another one by then, it is refused (ERESTART). 0: any.
    """
    header = struct.pack(">BBH", 0, 0, SUBSYSTEM)
    *first, (kind, flags, payload) = messages
    begin = header + (be32(_BATCH_GENERATION, generation) if generation else b"")
    return [(_BATCH_BEGIN, 0, begin), *first, (kind, flags | NLM_F_ACK, payload), (_BATCH_END, 0, header)]


# Queries


def dump(netlink: Netlink, kind: int, family: int, *body: bytes) -> list[bytes]:
    """Return all matching objects, each with its nfgenmsg; none, if what they would be in is absent."""
    number, _, query = message(kind, family, *body)
    try:
        return netlink.dump(number, query)
    except NetlinkError as error:
        if error.errno in ABSENT:
            return []
        raise


def get(netlink: Netlink, kind: int, family: int, *body: bytes) -> dict[int, bytes] | None:
    """Return the attributes of one object; None, if it is absent."""
    number, _, query = message(kind, family, *body)
    try:
        return attrs(netlink.get(number, query), 4)
    except NetlinkError as error:
        if error.errno in ABSENT:
            return None
        raise


# Tables


def numbered(table: str) -> tuple[int, str]:
    """Return the number of a table's family, and its name there.

    >>> numbered("inet netplug")
    (1, 'netplug')
    """
    family, _, name = table.partition(" ")
    return FAMILIES[family], name


def new_table(family: int, name: str, flags: int = 0) -> Message:
    """Return the message that creates a table."""
    return message(NEWTABLE, family, text(TABLE_NAME, name), be32(TABLE_FLAGS, flags), flags=NLM_F_CREATE)


def without_table(family: int, name: str) -> list[Message]:
    """Return the messages that delete a table; they succeed also if it is absent."""
    return [
        message(NEWTABLE, family, text(TABLE_NAME, name), flags=NLM_F_CREATE),
        message(DELTABLE, family, text(TABLE_NAME, name)),
    ]


def comment(kind: int, words: str) -> bytes:
    """Return a comment as attribute with user data (since Linux 5.10; earlier kernels ignore it)."""
    data = words.encode() + b"\0"
    return attr(kind, bytes((_COMMENT, len(data))) + data)


def comment_of(userdata: bytes) -> str:
    """Return the comment in user data, empty if there is none."""
    return userdata[2 : 2 + userdata[1]].rstrip(b"\0").decode(errors="replace") if len(userdata) > 1 else ""


def base_chain(family: int, table: str, chain: str, hook: int, priority: int, link: str = "") -> Message:
    """Return the message that creates a base chain, which accepts what its rules let pass."""
    where = nest(CHAIN_HOOK, be32(1, hook), be32(2, priority), text(3, link) if link else b"")
    body = text(1, table), text(CHAIN_NAME, chain), where, be32(CHAIN_POLICY, 1), text(7, "filter")
    return message(NEWCHAIN, family, *body, flags=NLM_F_CREATE)


def rule(family: int, table: str, chain: str, *expressions: bytes) -> Message:
    """Return the message that appends a rule to a chain."""
    body = text(1, table), text(RULE_CHAIN, chain), nest(4, *expressions)
    return message(NEWRULE, family, *body, flags=NLM_F_CREATE | NLM_F_APPEND)


# Elements


def padded(*fields: bytes) -> bytes:
    """Return a concatenation of fields, each padded to full registers."""
    return b"".join(field + bytes(-len(field) & 3) for field in fields)


def verdict(words: str) -> bytes:
    """Return the data of a verdict, as an element has it.

    >>> verdict_words(verdict("goto from_open")), verdict_words(verdict("drop"))
    ('goto from_open', 'drop')

    Raises:
        ValueError: it is none.
    """
    name, _, chain = words.partition(" ")
    if name not in _VERDICTS or bool(chain) != (name in {"jump", "goto"}):
        raise ValueError(f"{words!r} is no verdict")
    return attr(_DATA_VERDICT, be32(_VERDICT_CODE, _VERDICTS[name]) + (text(_VERDICT_CHAIN, chain) if chain else b""))


def verdict_words(data: bytes) -> str:
    """Return a verdict in nft's language."""
    parts = attrs(attrs(data)[_DATA_VERDICT])
    name = _VERDICT_NAMES.get(int.from_bytes(parts[_VERDICT_CODE], "big", signed=True), "?")
    return f"{name} {string(parts[_VERDICT_CHAIN])}" if _VERDICT_CHAIN in parts else name


def elements(kind: int, family: int, table: str, of: str, items: Sequence[bytes], flags: int) -> Message:
    """Return a message about elements of a set. `items`: the attributes of each."""
    listed = nest(ELEMENTS, *(nest(LIST_ELEM, item) for item in items))
    return message(kind, family, text(1, table), text(2, of), listed, flags=flags)


# Base chains of links


def hook(table: str, link: str, chain: str) -> list[Message]:
    """Return the messages that create a base chain on a link's ingress, which jumps to another chain."""
    jump = nest(1, text(1, "immediate"), nest(2, be32(1, 0), nest(2, verdict(f"jump {chain}"))))
    return [base_chain(NETDEV, table, link, _INGRESS, 0, link), rule(NETDEV, table, link, jump)]


def is_hook(chain: Mapping[int, bytes]) -> bool:
    """Return whether a base chain is as `hook` makes it."""
    where = attrs(chain[4])
    numbers = [int.from_bytes(it, "big", signed=True) for it in (where[1], where[2], chain.get(5, b""))]
    return numbers == [_INGRESS, 0, 1]


def without_hook(table: str, link: str) -> list[Message]:
    """Return the messages that delete the base chain of a link."""
    of = text(1, table)
    return [
        message(DELRULE, NETDEV, of, text(2, link)),
        message(DELCHAIN, NETDEV, of, text(3, link)),
    ]


def jump_target(expressions: bytes) -> str:
    """Return the chain to which a rule jumps that does nothing else; empty for another rule."""
    found = [attrs(body) for _, body in walk(expressions)]
    if len(found) != 1 or string(found[0].get(1)) != "immediate":
        return ""
    data = attrs(found[0][2]).get(2, b"")
    return verdict_words(data).partition(" ")[2] if _DATA_VERDICT in attrs(data) else ""
