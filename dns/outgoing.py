"""What goes out: questions in our own words, numbers that nobody can guess."""

import os
import struct
from collections.abc import Iterator
from itertools import product

from . import wire
from .careful import reply
from .question import Question

_HEADS = {
    unchecked | edns: struct.pack("!5H", 0x0100 | unchecked, 1, 0, 0, edns)
    for unchecked, edns in product((0, 0x10), (0, 1))
}
"""By CD as it stands in a header, and whether there is EDNS."""
_OPT = {False: wire.opt(), True: wire.opt(dnssec=True)}


def message(question: Question, ident: int) -> bytes:
    """Return a query: our own header, the question in lower case, EDNS where the asker speaks it."""
    opt = _OPT[question.dnssec] if question.edns else b""
    head = _HEADS[question.data[3] & 0x10 | question.edns]
    return b"".join((ident.to_bytes(2), head, question.name, question.kind, opt))


def cut(question: Question) -> bytes:
    """Return an answer that says that the whole one is too long for a datagram."""
    whole = bytearray(reply(question))
    whole[2] |= 0x02
    return bytes(whole)


def numbers() -> Iterator[int]:
    """Yield numbers of 16 bits that nobody can guess."""
    while True:
        yield from struct.unpack("2048H", os.urandom(4096))
