"""Types of sets and maps: keys and data between nft's words and the kernel's encoding.

The kernel keeps nft's numbers of data types for whoever lists a set (NFTA_SET_KEY_TYPE, nftables/datatype.h). Six bits
each, they form a concatenation, whose fields fill full registers of 32 bits.
"""

import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network, summarize_address_range
from itertools import zip_longest
from typing import Self, TypeAlias

from netplug.kernel.netlink.connection import attr, attrs, nest, walk
from netplug.kernel.netlink.nf_tables import (
    CATCH_ALL,
    DATA_VALUE,
    ELEM_DATA,
    ELEM_FLAGS,
    ELEM_KEY,
    ELEM_KEY_END,
    INTERVAL_END,
    be32,
    padded,
    verdict,
    verdict_words,
)

_INTEGER, _IPV4, _IPV6, _MAC, _PROTO, _PORT, _INDEX, _NAME = 4, 7, 8, 9, 12, 13, 20, 41
_LENGTHS = {_IPV4: 4, _IPV6: 16, _MAC: 6, _PROTO: 1, _PORT: 2, _INDEX: 4, _NAME: 16}
_VERDICT = 0xFFFFFF00
_ANONYMOUS, _INTERVAL, _MAP = 0x1, 0x4, 0x8
_FLAGS, _KEY_TYPE, _KEY_LENGTH, _DATA_TYPE, _DATA_LENGTH, _DESCRIPTION, _USERDATA = 3, 4, 5, 6, 7, 9, 13
_DESC_CONCAT, _FIELD_LENGTH = 2, 1
_TYPEOF, _CONCATENATION, _PAYLOAD = 3, b"\x0d", b"\x07"
_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "ipv6-icmp": 58, "sctp": 132}
_PROTOCOL_NAMES = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}
_SEPARATOR = " . "
_CATCH_ALL = "*"

Field = tuple[int, int]
"""Number of a data type, and length in bytes."""
Content: TypeAlias = dict[bytes, bytes]
"""Elements of a set: data by key; see `SetType`."""
_END = be32(ELEM_FLAGS, INTERVAL_END)


class BadElementError(ValueError):
    """An element does not fit the type of its set; says why."""


@dataclass(frozen=True, slots=True)
class SetType:
    """`key`, `data`: fields of a concatenation; a map to verdicts has no fields of data, and a set neither."""

    key: tuple[Field, ...]
    data: tuple[Field, ...] = ()
    verdicts: bool = False
    interval: bool = False

    @classmethod
    def of(cls, found: Mapping[int, bytes]) -> Self | None:
        """Return the type of a set that the kernel tells of; None for an anonymous one."""
        flags = _number(found.get(_FLAGS))
        if flags & _ANONYMOUS:
            return None
        lengths = [_number(attrs(it).get(_FIELD_LENGTH)) for it in _fields(found)]
        key = _split(_number(found[_KEY_TYPE]), lengths or [_number(found[_KEY_LENGTH])])
        raw = _raw_fields(found.get(_USERDATA, b""))
        key = tuple((number, raw.get(at, length)) for at, (number, length) in enumerate(key))
        data_type = _number(found.get(_DATA_TYPE)) if flags & _MAP else 0
        verdicts = data_type == _VERDICT
        data = () if verdicts or not data_type else _split(data_type, [_number(found[_DATA_LENGTH])])
        return cls(key, data, verdicts, bool(flags & _INTERVAL))

    def encode(self, item: str, data: str) -> tuple[bytes, bytes]:
        """Return key and data of an element as the kernel has them.

        Raises:
            BadElementError: it does not fit.
        """
        return self.key_of(item), self._data_of(item, data)

    def key_of(self, item: str) -> bytes:
        """Return the key of an element as the kernel has it: of an interval both its ends, of a catch-all element none.

        Raises:
            BadElementError: it does not fit.
        """
        if item == _CATCH_ALL:
            return b""
        try:
            ends = [_packed(word, of) for word, of in zip(item.split(_SEPARATOR), self.key, strict=True)]
        except (ValueError, OverflowError, OSError) as error:
            raise BadElementError(f"{item!r} does not fit: {error}") from error
        first, last = _joined([it for it, _ in ends]), _joined([it for _, it in ends])
        if self.interval:
            return first + last
        if first != last:
            raise BadElementError(f"{item!r} is an interval, and the set has none")
        return first

    def _data_of(self, item: str, data: str) -> bytes:
        if bool(data) != bool(self.data or self.verdicts):
            raise BadElementError(f"{item!r}: {data!r} is not what the set has as data")
        try:
            if self.verdicts:
                return verdict(data)
            words = data.split(_SEPARATOR) if data else []
            return _joined([_packed(word, of)[0] for word, of in zip(words, self.data, strict=True)])
        except (ValueError, OverflowError, OSError) as error:
            raise BadElementError(f"{item!r}: {data!r} does not fit: {error}") from error

    def decode(self, key: bytes, data: bytes) -> tuple[str, str]:
        """Return an element as nft prints it: item and data."""
        first, last = (key[: len(key) // 2], key[len(key) // 2 :]) if self.interval else (key, key)
        ends = zip(_unpacked(first, self.key), _unpacked(last, self.key), self.key, strict=True)
        item = _SEPARATOR.join(_words(low, high, of) for low, high, of in ends) if key else _CATCH_ALL
        if self.verdicts:
            return item, verdict_words(data)
        values = zip(_unpacked(data, self.data), self.data, strict=True) if self.data else ()
        return item, _SEPARATOR.join(_words(value, value, of) for value, of in values)

    def attributes(self, key: bytes, data: bytes) -> tuple[bytes, ...]:
        """Return the attributes of an element; without data, as it is deleted by.

        An interval of one field is two elements in the kernel: its start, and the first value behind it.
        """
        first, last = (key[: len(key) // 2], key[len(key) // 2 :]) if self.interval else (key, b"")
        body = nest(ELEM_KEY, attr(DATA_VALUE, first)) if key else be32(ELEM_FLAGS, CATCH_ALL)
        if data:
            body += nest(ELEM_DATA, data if self.verdicts else attr(DATA_VALUE, data))
        if not last:
            return (body,)
        if not self._has_ends:
            return (body + nest(ELEM_KEY_END, attr(DATA_VALUE, last)),)
        behind = _moved(last, 1)
        return (body, nest(ELEM_KEY, attr(DATA_VALUE, behind)) + _END) if any(behind) else (body,)

    def read(self, elements: Iterable[bytes]) -> Content:
        """Return the elements that the kernel tells of."""
        found: list[tuple[bytes, bool, bytes]] = []
        rest: Content = {}
        for parts in map(attrs, elements):
            if ELEM_KEY not in parts:
                rest[b""] = self._data_in(parts)
                continue
            key = attrs(parts[ELEM_KEY])[DATA_VALUE]
            if self.interval and not self._has_ends:
                key += attrs(parts[ELEM_KEY_END])[DATA_VALUE] if ELEM_KEY_END in parts else key
            found.append((key, not _number(parts.get(ELEM_FLAGS)) & INTERVAL_END, self._data_in(parts)))
        return rest | (dict(_intervals(found)) if self._has_ends else {key: data for key, _, data in found})

    def _data_in(self, parts: Mapping[int, bytes]) -> bytes:
        if ELEM_DATA not in parts:
            return b""
        # A verdict is compared as what it is sent as.
        return verdict(verdict_words(parts[ELEM_DATA])) if self.verdicts else attrs(parts[ELEM_DATA])[DATA_VALUE]

    @property
    def _has_ends(self) -> bool:
        return self.interval and len(self.key) == 1


def _intervals(found: list[tuple[bytes, bool, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """Yield first and last value, together, and data of intervals. `found`: value, whether it is a start, and data."""
    ordered = sorted(found)  # of equal values, an end comes before a start
    behind = [value for value, _, _ in ordered[1:]]
    for (first, starts, data), after in zip_longest(ordered, behind):
        if starts:
            yield first + (_moved(after, -1) if after else b"\xff" * len(first)), data


def _moved(value: bytes, by: int) -> bytes:
    """Return the number that is so much more, in as many bytes; behind the last one is 0."""
    size = len(value)
    return ((int.from_bytes(value, "big") + by) % (1 << 8 * size)).to_bytes(size, "big")


def _joined(fields: list[bytes]) -> bytes:
    return padded(*fields) if len(fields) > 1 else b"".join(fields)


def _number(value: bytes | None) -> int:
    return int.from_bytes(value or b"", "big")


def _fields(found: Mapping[int, bytes]) -> list[bytes]:
    concat = attrs(found.get(_DESCRIPTION, b"")).get(_DESC_CONCAT, b"")
    return [body for _, body in walk(concat)]


def _split(number: int, lengths: list[int]) -> tuple[Field, ...]:
    """Return the fields of a concatenation. The lengths of most types are known; else `lengths` has them."""
    types: list[int] = []
    while number:
        types.insert(0, number & 0x3F)
        number >>= 6
    if len(lengths) == len(types):
        return tuple(zip(types, lengths, strict=True))
    return tuple((of, _LENGTHS.get(of, 4)) for of in types)


def _raw_fields(userdata: bytes) -> dict[int, int]:
    """Return the lengths of fields that are bits of a packet (``@th,96,24``), in bytes, by their place in the key.

    Only nft's notes tell them: the expressions that the key was declared by (libnftnl/udata.h,
    NFTNL_UDATA_SET_KEY_TYPEOF). A note has a type, a length and a value; an expression has its kind and its own notes.
    """
    found: dict[int, int] = {}
    declared = dict(_notes(dict(_notes(userdata)).get(_TYPEOF, b"")))
    if declared.get(0, b"")[:1] == _CONCATENATION:
        for at, (_, field) in enumerate(_notes(declared.get(1, b""))):
            parts = dict(_notes(field))
            payload = dict(_notes(parts.get(1, b"")))
            if parts.get(0, b"")[:1] == _PAYLOAD and not any(payload.get(0, b"")):
                found[at] = int.from_bytes(payload[4], sys.byteorder) // 8
    return found


def _notes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 2 <= len(data):
        yield data[at], data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]


def _packed(word: str, of: Field) -> tuple[bytes, bytes]:
    """Return the ends of an interval, equal ones for a value."""
    number, length = of
    match number:
        case 7 | 8:
            if "/" in word:
                net = ip_network(word)
                return net.network_address.packed, net.broadcast_address.packed
            value = ip_address(word).packed
        case 9:
            value = bytes.fromhex(word.replace(":", ""))
        case 12:
            value = bytes((_PROTOCOLS.get(word) or int(word),))
        case 20:
            value = socket.if_nametoindex(word).to_bytes(4, sys.byteorder)
        case 41:
            value = word.encode().ljust(length, b"\0")
        case _ if length == _LENGTHS[_IPV6]:
            value = ip_address(word).packed
        case _ if length == _LENGTHS[_MAC]:
            value = bytes.fromhex(word.replace(":", ""))
        case _:
            value = int(word, 0).to_bytes(length, "big")
    if len(value) != length:
        raise ValueError(f"{word!r} has {len(value)} bytes, not {length}")
    return value, value


def _unpacked(data: bytes, of: tuple[Field, ...]) -> list[bytes]:
    found, at = [], 0
    for _, length in of:
        found.append(data[at : at + length])
        at += (length + 3) & ~3
    return found


def _words(low: bytes, high: bytes, of: Field) -> str:
    match of[0]:
        case 7 | 8:
            kind = IPv4Address if of[0] == _IPV4 else IPv6Address
            if low == high:
                return str(kind(low))
            nets = list(summarize_address_range(kind(low), kind(high)))
            return str(nets[0]) if len(nets) == 1 else f"{kind(low)}-{kind(high)}"
        case 9:
            return low.hex(":")
        case 12:
            return _PROTOCOL_NAMES.get(low[0], str(low[0]))
        case 20:
            return _link(int.from_bytes(low, sys.byteorder))
        case 41:
            return low.rstrip(b"\0").decode(errors="replace")
    # Bytes at an offset (``@nh,64,128``), of which nft knows no type: what is that long is an address.
    if of[1] == _LENGTHS[_IPV6]:
        return str(IPv6Address(low))
    if of[1] == _LENGTHS[_MAC]:
        return low.hex(":")
    return str(int.from_bytes(low, "big"))


def _link(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:  # it is gone
        return f"#{index}"
