"""The slow path: takes arbitrary octets, and returns an answer, a question for an upstream, or nothing.

It parses messages itself. dnslib accepts labels of more than 63 octets and names of more than 255, does not detect a
second OPT record, RDATA past the end or trailing octets, and copies AD, Z and RCODE of the query into the answer.
"""

import struct
from collections.abc import Sequence

from . import special_use, wire
from .extended_errors import NO_NAME, NO_TYPE, ONE_LABEL, SPECIAL, UNKNOWN_CLIENT, Why
from .fast_path import AA, QR, RA
from .question import Question
from .view import Node, View

_RD, _CD, _TC, _OPCODE = 0x01, 0x10, 0x02, 0x78
_IN = b"\0\1"
_REFUSED_TYPES = frozenset(map(wire.key, (wire.TKEY, wire.TSIG, wire.IXFR, wire.AXFR, wire.MAILB, wire.MAILA)))
_INVALID_TYPES = frozenset(map(wire.key, (0, wire.OPT)))
_TCP_SIZE = 65535
_OPT = {False: wire.opt(), True: wire.opt(dnssec=True)}
_COOKIE = 10
_COOKIE_SIZES = frozenset({8, *range(16, 41)})
"""A client cookie of 8 octets, optionally with a server cookie of 8 to 32 (RFC 7873 §4)."""
EMPTY = (0, b"")
"""A section without records."""


def respond(view: View | None, data: bytes, *, tcp: bool = False) -> bytes | Question | None:
    """Return the answer; the question if an upstream has to answer; or None if the message must not be answered.

    `view`: None if the client is in no network.
    """
    if len(data) < wire.HEADER or data[2] & QR:
        return None
    counts = struct.unpack_from("!4H", data, 4)
    if data[2] & _OPCODE:
        return _header_only(data, wire.NOTIMP)
    if counts[0] != 1 or counts[1]:
        return _header_only(data, wire.FORMERR)
    try:
        question = _question(data)
    except ValueError:
        return _header_only(data, wire.FORMERR)
    if counts[2]:
        return reply(question, wire.REFUSED if question.kind == wire.key(wire.IXFR) else wire.FORMERR)
    if counts[3] or tcp or len(data) != question.end:
        try:
            version = _extend(question, counts[3], tcp=tcp)
        except ValueError:
            return reply(question, wire.FORMERR)
        if version:
            return reply(question, wire.BADVERS)
    if view is None:
        return reply(question, wire.REFUSED, why=UNKNOWN_CLIENT)
    return _resolve(view, question)


def _resolve(view: View, question: Question) -> bytes | Question:
    if question.kind[2:] != _IN or question.kind in _REFUSED_TYPES:
        return reply(question, wire.REFUSED)
    if question.kind in _INVALID_TYPES:
        return reply(question, wire.FORMERR)
    node = view.find(question.name)
    if node is not None:
        return _from_node(view, question, node)
    if zone := view.zone_of(question.name):
        return _negative(view, question, wire.NXDOMAIN, zone, NO_NAME)
    if not view.forwarded or not any(wire.below(question.name, zone) for zone in view.forwarded):
        local = special_use.answer(question.name, int.from_bytes(question.kind[:2]), view.zones.pools)
        if local is not None and local.records:
            records = [wire.pack(wire.TO_QUESTION, record, special_use.TTL_S) for record in local.records]
            return reply(question, answers=(len(records), b"".join(records)), authoritative=True)
        if local is not None:
            why = ONE_LABEL if local.zone == wire.ROOT else SPECIAL if local.code else NO_TYPE
            return _negative(view, question, local.code, local.zone, why)
    elif wire.ROOT in view.forwarded and (zone := special_use.pool_zone(question.name, view.zones.pools)):
        return _negative(view, question, wire.NXDOMAIN, zone, NO_NAME)
    if not question.recursive:
        return reply(question, wire.REFUSED)
    return question


def _from_node(view: View, question: Question, node: Node) -> bytes:
    kind = question.kind
    if kind[:2] == b"\0\xff" and node:
        # The answer to ANY is one RRset (RFC 8482 §4.1).
        kind = min(node)
    rrset = node.get(kind)
    if rrset is None:
        return _negative(view, question, wire.NOERROR, view.zone_of(question.name) or question.name, NO_TYPE)
    if len(rrset.records) > 1 and sum(map(len, rrset.records)) > room(question):
        return reply(question, answers=rrset.fitting(room(question)), authoritative=True, truncated=True)
    more = _targets(view, rrset.records) if kind == wire.key(wire.SRV) else ()
    answers = len(rrset.records), next(rrset.turns)
    return reply(question, answers=answers, additional=more, authoritative=True)


def _targets(view: View, answers: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return the address records of the targets of SRV records (RFC 2782)."""
    found: dict[bytes, None] = {}
    for record in answers:
        target = record[len(wire.TO_QUESTION) + 10 + 6 :]
        node = view.find(target) or {}
        for kind in (wire.A, wire.AAAA):
            rrset = node.get(wire.key(kind))
            for packed in rrset.records if rrset else ():
                found[target + packed[len(wire.TO_QUESTION) :]] = None
    return tuple(found)


def _negative(view: View, question: Question, code: int, zone: bytes, why: Why) -> bytes:
    """Return a negative answer; its SOA record says how long it may be cached (RFC 2308 §3)."""
    negative = view.negative(question.name, zone)
    return reply(question, code, authorities=(1, negative), authoritative=True, why=why)


def room(question: Question) -> int:
    """Return the octets left for records, besides an OPT record without options."""
    return question.size - question.end - (len(_OPT[False]) if question.edns else 0)


def reply(
    question: Question,
    code: int = wire.NOERROR,
    *,
    answers: tuple[int, bytes] = EMPTY,
    authorities: tuple[int, bytes] = EMPTY,
    additional: Sequence[bytes] = (),
    authoritative: bool = False,
    truncated: bool = False,
    why: Why | None = None,
    bits: int = 0,
) -> bytes:
    """Return the message that answers a question.

    Args:
        question: what the client asked.
        code: the RCODE.
        answers: the number of records, and the records. If the sections do not fit, the message has the answers that
            fit, no other section, and TC set.
        authorities: the same for the authority section.
        additional: records that are left out if they do not fit.
        authoritative: sets AA.
        truncated: sets TC.
        why: an extended error (RFC 8914) for clients with EDNS; its text is left out if it does not fit.
        bits: more bits for the second octet of flags.
    """
    data = question.data
    asked = data[wire.HEADER : question.end]
    left = room(question) - len(answers[1]) - len(authorities[1])
    if left < 0:
        wanted, answers, authorities, additional = answers[0], _truncated(answers, room(question)), EMPTY, ()
        # A missing authority section needs no TC (RFC 2181 §9), unless it is a negative answer.
        truncated |= answers[0] < wanted or not wanted
        left = room(question) - len(answers[1])
    options = b""
    if why is not None and question.edns and left >= 6:
        options = wire.extended_error(why[0], why[1] if left >= 6 + len(why[1]) else "")
    opt = wire.opt(dnssec=question.dnssec, code=code, options=options) if question.edns else b""
    if sum(map(len, additional)) > left - len(options):
        additional = ()
    flags = QR | (AA if authoritative else 0) | data[2] & _RD | (_TC if truncated else 0)
    counts = (1, answers[0], authorities[0], len(additional) + bool(opt))
    head = struct.pack("!2sBB4H", data[:2], flags, RA | data[3] & _CD | bits | code & 0xF, *counts)
    return b"".join((head, asked, answers[1], authorities[1], *additional, opt))


def _truncated(answers: tuple[int, bytes], most: int) -> tuple[int, bytes]:
    """Return the first records that fit into `most` octets. Their compression pointers point to the question only."""
    number = at = 0
    records = answers[1]
    while number < answers[0]:
        end = _end_of_record(records, at)
        if end > most:
            break
        number, at = number + 1, end
    return number, records[:at]


def _end_of_record(records: bytes, at: int) -> int:
    """Return the offset after a well-formed record."""
    while records[at] and records[at] < 0xC0:
        at += records[at] + 1
    at += 2 if records[at] else 1
    return at + 10 + int.from_bytes(records[at + 8 : at + 10])


def relay(question: Question, code: int, counts: bytes, records: bytes, why: Why | None = None) -> bytes:
    """Return the message that passes an upstream's answer on.

    `code`: RCODE and AD, as in the second octet of flags. `counts`: ANCOUNT and NSCOUNT as in the header.
    """
    if why is None:
        data = question.data
        opt, additional = (_OPT[question.dnssec], b"\0\1") if question.edns else (b"", b"\0\0")
        flags = bytes((QR | data[2] & _RD, RA | data[3] & _CD | code))
        asked = data[wire.HEADER : question.end]
        message = b"".join((data[:2], flags, b"\0\1", counts, additional, asked, records, opt))
        if len(message) <= question.size:
            return message
    answers, authorities = struct.unpack("!2H", counts)
    bits = code & 0xF0
    return reply(question, code & 0xF, answers=(answers, records), authorities=(authorities, b""), why=why, bits=bits)


def _header_only(data: bytes, code: int) -> bytes:
    """Return a header without a question, for a message that cannot be parsed any further."""
    return data[:2] + bytes((QR | data[2] & 0x79, code)) + bytes(8)


def _question(data: bytes) -> Question:
    """Parse the question. Its name cannot be compressed, as no name precedes it.

    Raises:
        ValueError: it is malformed.
    """
    at = wire.HEADER
    while at < len(data) and data[at]:
        if data[at] > wire.LONGEST_LABEL:
            raise ValueError("a compression pointer, or an unknown label type")
        at += data[at] + 1
    at += 1
    if at - wire.HEADER > wire.LONGEST_NAME or at + 4 > len(data):
        raise ValueError("the name is too long, or type and class are missing")
    return Question(data, data[wire.HEADER : at].lower(), data[at : at + 4], at + 4)


def _extend(question: Question, count: int, *, tcp: bool) -> int:
    """Parse the additional section; copy the values of its OPT record into `question` (RFC 6891 §6.1).

    Other records are ignored. Returns the EDNS version.

    Raises:
        ValueError: it is malformed.
    """
    data, at = question.data, question.end
    size, edns, dnssec, version = wire.PLAIN_SIZE, False, False, 0
    for _ in range(count):
        start = at
        at = wire.skip_name(data, at)
        if at + 10 > len(data):
            raise ValueError("a record is incomplete")
        kind, klass, ttl, length = struct.unpack_from("!HHIH", data, at)
        at += 10 + length
        if at > len(data):
            raise ValueError("RDATA extends past the end of the message")
        if kind == wire.OPT:
            if edns or data[start] or not _options_valid(data[at - length : at]):
                raise ValueError("a second OPT record, one with an owner name, or one with malformed options")
            size, edns, dnssec, version = klass, True, bool(ttl & 0x8000), ttl >> 16 & 0xFF
    if at != len(data):
        raise ValueError("octets after the last record")
    question.size = _TCP_SIZE if tcp else min(max(size, wire.PLAIN_SIZE), wire.UDP_SIZE)
    question.edns, question.dnssec = edns, dnssec
    return version


def _options_valid(rdata: bytes) -> bool:
    at = 0
    while at + 4 <= len(rdata):
        code, length = struct.unpack_from("!HH", rdata, at)
        at += 4 + length
        if code == _COOKIE and length not in _COOKIE_SIZES:
            return False
    return at == len(rdata)
