"""Queries to upstreams, with an unpredictable message id and mixed case (RFC 5452)."""

import os
import struct
from collections.abc import Iterator
from itertools import product
from string import ascii_lowercase

from . import wire
from .question import Question
from .slow_path import reply

_HEADS = {
    unchecked | edns: struct.pack("!5H", 0x0100 | unchecked, 1, 0, 0, edns)
    for unchecked, edns in product((0, 0x10), (0, 1))
}
"""Headers without id: by CD as in the header, plus 1 with EDNS."""
CASE_TABLES = 1024
_OPT = {False: wire.opt(), True: wire.opt(dnssec=True)}


def message(question: Question, asked: bytes, ident: int) -> bytes:
    """Return a query with our own header; it has EDNS if the client's query has.

    `asked`: the name in mixed case, type and class. `ident`: the message id.
    """
    if question.edns:
        head, opt = _HEADS[question.data[3] & 0x10 | 1], _OPT[question.dnssec]
        return b"".join((ident.to_bytes(2), head, asked, opt))
    return ident.to_bytes(2) + _HEADS[question.data[3] & 0x10] + asked


def truncated(question: Question) -> bytes:
    """Return an empty answer with TC set, as the full one is too long for a datagram."""
    message = bytearray(reply(question))
    message[2] |= 0x02
    return bytes(message)


def case_tables() -> tuple[bytes, ...]:
    """Return tables for `bytes.translate` that give each letter of a lower-case name a random case.

    An answer must repeat the question in the same case, so an attacker has to guess it too
    (draft-vixie-dnsext-dns0x20). 1024 tables add up to ten bits.
    """
    letters = ascii_lowercase.encode()
    lower, bits = int.from_bytes(letters), int.from_bytes(b"\x20" * len(letters))
    drawn = os.urandom(CASE_TABLES * len(letters))
    return tuple(
        bytes.maketrans(letters, (lower ^ int.from_bytes(drawn[at : at + len(letters)]) & bits).to_bytes(len(letters)))
        for at in range(0, len(drawn), len(letters))
    )


def numbers() -> Iterator[int]:
    """Yield unpredictable 16-bit numbers."""
    while True:
        yield from struct.unpack("2048H", os.urandom(4096))
