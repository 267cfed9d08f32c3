"""What goes out: questions in our own words, with numbers and a spelling that nobody can guess."""

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
"""By CD as it stands in a header, and whether there is EDNS."""
SPELLINGS = 1024
_OPT = {False: wire.opt(), True: wire.opt(dnssec=True)}


def message(question: Question, asked: bytes, ident: int) -> bytes:
    """Return a query: our own header, the name as it is spelled with type and class, EDNS where the asker speaks it."""
    if question.edns:
        head, opt = _HEADS[question.data[3] & 0x10 | 1], _OPT[question.dnssec]
        return b"".join((ident.to_bytes(2), head, asked, opt))
    return ident.to_bytes(2) + _HEADS[question.data[3] & 0x10] + asked


def cut(question: Question) -> bytes:
    """Return an answer that says that the whole one is too long for a datagram."""
    whole = bytearray(reply(question))
    whole[2] |= 0x02
    return bytes(whole)


def spellings() -> tuple[bytes, ...]:
    """Return tables by which `bytes.translate` spells a lower-cased name: each letter in a case that nobody can guess.

    An answer has to repeat the question as it was asked, so a forger has to guess that too
    (draft-vixie-dnsext-dns0x20): with one of 1 024 tables up to ten bits.
    """
    letters = ascii_lowercase.encode()
    lower, bits = int.from_bytes(letters), int.from_bytes(b"\x20" * len(letters))
    drawn = os.urandom(SPELLINGS * len(letters))
    return tuple(
        bytes.maketrans(letters, (lower ^ int.from_bytes(drawn[at : at + len(letters)]) & bits).to_bytes(len(letters)))
        for at in range(0, len(drawn), len(letters))
    )


def numbers() -> Iterator[int]:
    """Yield numbers of 16 bits that nobody can guess."""
    while True:
        yield from struct.unpack("2048H", os.urandom(4096))
