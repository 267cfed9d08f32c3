"""nf_tables messages: rules as sequences of expressions, sets, and transactions.

Expressions work on 32-bit registers (linux/netfilter/nf_tables.h; nft(8) ``--debug=netlink`` shows them). `load` puts
fields into consecutive registers, so that one lookup finds their concatenation. Each rule has a comment, which
documents it in ``nft list ruleset``. The comment ends with the checksum of the expressions, so equal comments mean
equal rules. Attributes are in network order, data as it is compared.
"""

import struct
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from netplug.kernel.netlink.connection import NLM_F_ACK, NLM_F_CREATE, attr, nest, text

NETDEV, BRIDGE, IPV4, IPV6, INET = 5, 7, 2, 10, 1
"""Address families of tables: NFPROTO_NETDEV, NFPROTO_BRIDGE, NFPROTO_IPV4, NFPROTO_IPV6, NFPROTO_INET."""

_SUBSYSTEM = 10
NEWTABLE, GETTABLE, DELTABLE = 0, 1, 2
NEWCHAIN, DELCHAIN = 3, 5
NEWRULE, GETRULE, DELRULE = 6, 7, 8
NEWSET = 9
NEWSETELEM, GETSETELEM, DELSETELEM = 12, 13, 14
NEWGEN, GETGEN = 15, 16
BATCH_BEGIN, BATCH_END = 0x10, 0x11

TABLE_NAME, RULE_CHAIN, RULE_USERDATA, ELEMENTS, GENERATION = 1, 2, 7, 3, 1
LIST_ELEM, ELEM_KEY, ELEM_DATA, DATA_VALUE = 1, 1, 2, 1

INGRESS, PREROUTING, INPUT, OUTPUT = 0, 0, 1, 3
DROP, ACCEPT, JUMP, RETURN = 0, 1, -3, -5

OWNED = 0x2
"""NFT_TABLE_F_OWNER (since Linux 5.12): only the socket that created the table can change it. The kernel deletes the
table when the socket is closed, also when its process is killed."""

_REGISTERS = 8
"""NFT_REG32_00: the first of sixteen registers of four bytes."""
_COMMENT = 0
"""NFTNL_UDATA_RULE_COMMENT, the type of a comment in a rule's user data."""
_SET_MAP = 0x8

TYPES = {
    "ipv4_addr": (7, 4),
    "ipv6_addr": (8, 16),
    "ether_addr": (9, 6),
    "inet_proto": (12, 1),
    "inet_service": (13, 2),
    "iface_index": (20, 4),
    "ifname": (41, 16),
}
"""Number and length of nft(8)'s data types. Several of them form a concatenation."""

Message: TypeAlias = tuple[int, int, bytes]
"""Type, flags and payload, as `Netlink.batch` takes them."""


def be32(kind: int, value: int) -> bytes:
    """Return an attribute with a 32-bit number in network order; it may be negative."""
    return attr(kind, struct.pack(">I", value & 0xFFFFFFFF))


def padded(*fields: bytes) -> bytes:
    """Return a concatenation of fields, each padded to full registers."""
    return b"".join(field + bytes(-len(field) & 3) for field in fields)


def ifname(name: str) -> bytes:
    """Return an interface name, padded for comparison."""
    return name.encode().ljust(16, b"\0")


# Expressions


def _expression(name: str, *attrs: bytes) -> bytes:
    return nest(1, text(1, name), nest(2, *attrs))


def _data(kind: int, value: bytes) -> bytes:
    return nest(kind, attr(1, value))


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a packet, its metadata or route: length in bytes, name and attributes of the loading expression."""

    length: int
    name: str
    attrs: tuple[bytes, ...]

    def at(self, register: int) -> bytes:
        """Return the expression that loads it into a register."""
        return _expression(self.name, be32(1, register), *self.attrs)


def meta(key: int, length: int) -> Field:
    """Return a field of the packet's metadata."""
    return Field(length, "meta", (be32(2, key),))


def payload(base: int, offset: int, length: int) -> Field:
    """Return bytes of the packet. `base`: 0 link, 1 network, 2 transport header."""
    return Field(length, "payload", (be32(2, base), be32(3, offset), be32(4, length)))


PROTOCOL = meta(1, 2)
"""The EtherType; of a VLAN-tagged frame, the one after the outer tag."""
IIFNAME = meta(6, 16)
L4PROTO = meta(16, 1)
IIFKIND = meta(26, 16)
"""The kind of the input link, such as "bridge". A rule does not match a link without a kind, such as a physical one."""
FIRST_FRAGMENT = Field(2, "exthdr", (attr(2, b"\x2c"), be32(3, 2), be32(4, 2)))
"""Offset and flags of the IPv6 fragment header (RFC 8200 4.5). A rule does not match packets without one."""
ADDRESS_TYPE = Field(4, "fib", (be32(2, 3), be32(3, 2)))
"""Type of the destination address in the routing table: RTN_UNICAST 1, RTN_LOCAL 2, …"""

REVERSE_PATH = Field(4, "fib", (be32(2, 1), be32(3, 0x9)))
"""Index of the input link if it routes to the packet's source, else 0. For a source that is this host it is 0."""


def load(*fields: Field) -> bytes:
    """Load fields into consecutive registers, from the first one on."""
    parts, register = [], _REGISTERS
    for field in fields:
        parts.append(field.at(register))
        register += (field.length + 3) // 4
    return b"".join(parts)


def equal(field: Field, value: bytes, mask: bytes = b"", *, inverted: bool = False) -> bytes:
    """Match if a field equals a value, or with `inverted` if it does not. `mask`: the bits that are compared."""
    masked = (
        _expression(
            "bitwise",
            be32(1, _REGISTERS),
            be32(2, _REGISTERS),
            be32(3, len(mask)),
            _data(4, mask),
            _data(5, bytes(len(mask))),
        )
        if mask
        else b""
    )
    compared = _expression("cmp", be32(1, _REGISTERS), be32(2, int(inverted)), _data(3, value))
    return load(field) + masked + compared


def member(name: str, *fields: Field, inverted: bool = False) -> bytes:
    """Match if a set contains the concatenation of these fields, or with `inverted` if it does not."""
    return load(*fields) + _expression("lookup", text(1, name), be32(2, _REGISTERS), be32(5, int(inverted)))


def dnat(name: str, family: int, address_length: int, *fields: Field) -> bytes:
    """Translate the destination (DNAT) to the address and port that a map has for these fields, if it has any."""
    found = _expression("lookup", text(1, name), be32(2, _REGISTERS), be32(3, _REGISTERS))
    port = _REGISTERS + address_length // 4
    nat = _expression("nat", be32(1, 1), be32(2, family), be32(3, _REGISTERS), be32(5, port))
    return load(*fields) + found + nat


def map_lookup(name: str, field: Field) -> bytes:
    """Match if a map has an element for this field. Its data is then in the first register."""
    found = _expression("lookup", text(1, name), be32(2, _REGISTERS), be32(3, _REGISTERS))
    return load(field) + found


def forward_to(index: int = 0) -> bytes:
    """Forward the frame to the link of an index, by default the one in the first register. Family netdev only."""
    value = index.to_bytes(4, sys.byteorder)
    chosen = _expression("immediate", be32(1, _REGISTERS), _data(2, value)) if index else b""
    return chosen + _expression("fwd", be32(1, _REGISTERS))


def verdict(code: int) -> bytes:
    """Return a verdict: DROP, ACCEPT or RETURN."""
    return _expression("immediate", be32(1, 0), nest(2, nest(2, be32(1, code))))


def jump(chain: str) -> bytes:
    """Jump to another chain of the table. Evaluation continues here if that chain has no verdict."""
    return _expression("immediate", be32(1, 0), nest(2, nest(2, be32(1, JUMP), text(2, chain))))


def notrack() -> bytes:
    """Exclude the packet from connection tracking. It must be before conntrack's priority (-200)."""
    return _expression("notrack")


# Objects


@dataclass(frozen=True, slots=True)
class Set:
    """A set, or a map if it has `data`. `key` and `data` are names of `TYPES`."""

    name: str
    key: tuple[str, ...]
    data: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A base chain, or a regular chain if it has no `type`.

    `type`: "filter" or "nat". `priority`: lower comes first. `device`: the link, in family netdev.
    """

    name: str
    type: str
    hook: int
    priority: int
    rules: tuple[tuple[str, bytes], ...]
    device: str = ""

    def comments(self) -> list[str]:
        """Return the comments of its rules, with their checksums."""
        return [f"{words} [{zlib.crc32(expressions):08x}]" for words, expressions in self.rules]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of ours with its constant sets, chains and rules. `flags`: see `OWNED`."""

    family: int
    name: str
    sets: tuple[Set, ...]
    chains: tuple[BaseChain, ...]
    flags: int = 0

    def create(self) -> list[Message]:
        """Return the messages that create it."""
        messages = [self.message(NEWTABLE, text(1, self.name), *([be32(2, self.flags)] if self.flags else []))]
        for number, item in enumerate(self.sets, 1):
            messages.append(self.message(NEWSET, text(1, self.name), *_set_attrs(item, number)))
        return messages + self.with_chains()

    def with_chains(self) -> list[Message]:
        """Return the messages that create its chains and rules."""
        messages = [self.message(NEWCHAIN, text(1, self.name), *_chain_attrs(chain)) for chain in self.chains]
        for chain in self.chains:
            for comment, (_, expressions) in zip(chain.comments(), chain.rules, strict=True):
                words = comment.encode() + b"\0"
                userdata = attr(RULE_USERDATA, bytes((_COMMENT, len(words))) + words)
                body = (text(1, self.name), text(2, chain.name), nest(4, expressions), userdata)
                messages.append(self.message(NEWRULE, *body, flags=NLM_F_CREATE | 0x800))
        return messages

    def without_chains(self) -> list[Message]:
        """Return the messages that delete its chains; they succeed also if a chain is absent."""
        messages = []
        for chain in self.chains:
            of = text(1, self.name)
            messages += [
                self.message(NEWCHAIN, of, text(3, chain.name)),
                self.message(DELRULE, of, text(2, chain.name), flags=0),
                self.message(DELCHAIN, of, text(3, chain.name), flags=0),
            ]
        return messages

    def delete(self) -> list[Message]:
        """Return the messages that delete it; they succeed also if it is absent."""
        name = text(1, self.name)
        return [self.message(NEWTABLE, name), self.message(DELTABLE, name, flags=0)]

    def elements(self, kind: int, name: str, content: Mapping[bytes, bytes], flags: int) -> Message:
        """Return a message about elements of a set. `content`: data by key, empty data for plain sets."""
        items = [
            nest(LIST_ELEM, _data(ELEM_KEY, key), *([_data(ELEM_DATA, value)] if value else []))
            for key, value in content.items()
        ]
        return self.message(kind, text(1, self.name), text(2, name), nest(ELEMENTS, *items), flags=flags)

    def message(self, kind: int, *attrs: bytes, flags: int = NLM_F_CREATE) -> Message:
        """Return a message about an object of this table."""
        return message(kind, self.family, *attrs, flags=flags)


def message(kind: int, family: int, *attrs: bytes, flags: int = 0) -> Message:
    """Return an nf_tables message (linux/netfilter/nfnetlink.h, struct nfgenmsg)."""
    return _SUBSYSTEM << 8 | kind, flags, struct.pack(">BBH", family, 0, 0) + b"".join(attrs)


def batch(messages: list[Message]) -> list[Message]:
    """Return the messages as one transaction. The kernel acknowledges the last message, and those that it refuses."""
    header = struct.pack(">BBH", 0, 0, _SUBSYSTEM)
    *first, (kind, flags, payload) = messages
    return [(BATCH_BEGIN, 0, header), *first, (kind, flags | NLM_F_ACK, payload), (BATCH_END, 0, header)]


def _chain_attrs(chain: BaseChain) -> list[bytes]:
    name = text(3, chain.name)
    if not chain.type:
        return [name]
    device = text(3, chain.device) if chain.device else b""
    hook = nest(4, be32(1, chain.hook), be32(2, chain.priority), device)
    return [name, hook, be32(5, ACCEPT), text(7, chain.type)]


def _set_attrs(item: Set, number: int) -> list[bytes]:
    kind, length = _type_of(item.key)
    attrs = [text(2, item.name), be32(3, _SET_MAP if item.data else 0), be32(4, kind), be32(5, length)]
    if item.data:
        kind, length = _type_of(item.data)
        attrs += [be32(6, kind), be32(7, length)]
    return [*attrs, be32(10, number)]


def _type_of(names: tuple[str, ...]) -> tuple[int, int]:
    """Return number and length of a concatenation: six bits for each type, full registers for each field."""
    kind = length = 0
    for name in names:
        number, size = TYPES[name]
        kind = kind << 6 | number
        length += size if len(names) == 1 else (size + 3) & ~3
    return kind, length
