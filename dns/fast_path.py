"""The fast path: answers ordinary queries about local names, working on the wire format only.

It returns None for anything unusual, and `slow_path` decides. Otherwise its result, an answer or a question for an
upstream, is exactly that of `slow_path`; a test asserts this for arbitrary octets. A query takes about a microsecond.
"""

from collections.abc import Callable, Sequence
from time import monotonic

from . import special_use, wire
from .extended_errors import NONE
from .question import Question
from .view import COOKIE, READY_FLAGS, READY_HEADS, Node, RRset, View

_ONE_QUESTION = b"\0\1\0\0\0\0"
_OPT = {False: wire.opt(), True: wire.opt(dnssec=True)}
_OPT_NONE = {
    _OPT[dnssec]: {code: wire.opt(dnssec=dnssec, options=wire.extended_error(*why)) for code, why in NONE.items()}
    for dnssec in _OPT
}
"""The OPT record of a negative answer, with an extended error: by the OPT of a positive one, and by RCODE."""
_TYPES_WITHOUT_DATA = frozenset(wire.key(kind) for kind in (0, wire.OPT, *range(wire.TKEY, wire.ANY + 1)))
"""Types without data: OPT, and the QTYPEs and meta-types such as AXFR and ANY."""
_DATA_TYPES = frozenset(wire.key(kind) for kind in range(1, wire.TKEY)) - _TYPES_WITHOUT_DATA
_SRV = wire.key(wire.SRV)
_DNSSEC = {False: b"\0", True: b"\x80"}
_RD = 0x01
_UNDERSCORE = 0x5F
"""The first character of a service label (RFC 2782); the name below may be a local one."""
QR, AA, RA, CD = 0x80, 0x04, 0x80, 0x10
"""Header bits: QR and AA of the first octet of flags, RA and CD of the second."""
_NXDOMAIN = bytes((QR | AA | _RD, RA | wire.NXDOMAIN)) + b"\0\1\0\0\0\1\0\0"


def answer(view: View, data: bytes, clock: Callable[[], float] = monotonic) -> bytes | Question | None:
    """Return the answer to a query over UDP, or its question if an upstream has to answer.

    None: the slow path decides.
    """
    ready = view.ready.get(data[2:])
    if ready is not None:
        return data[:2] + (ready if isinstance(ready, bytes) else next(ready))
    return compute_answer(view, data, clock)


def compute_answer(view: View, data: bytes, clock: Callable[[], float] = monotonic) -> bytes | Question | None:
    """Do as `answer`, for a query that is not in `view.ready` octet by octet.

    The query may differ from a ready one only in upper and lower case, or in a client cookie (RFC 7873), which is
    different each time and which this server ignores.
    """
    if (head := data[2:12]) in READY_HEADS:
        asked = data[12:]
        low = asked.lower()
        name = low[:-4]
        if name in view.first:
            if (ready := view.ready.get(head + low)) is not None:
                # Flags and counts, the question in the client's spelling, and the records after it.
                tail = ready if isinstance(ready, bytes) else next(ready)
                return b"".join((data[:2], tail[:10], asked, tail[len(data) - 2 :]))
        elif name and 0 < (size := name[0]) < 64 and (kind := asked[-4:]) in _DATA_TYPES and len(name) < 256:
            # The parent name exists, and has no such child: only the first label has to be checked.
            if name[size + 1 :] in view.known_parents:
                return b"".join((data[:2], _NXDOMAIN, asked, view.authority))
            external = not (view.forwarded or view.rest or name.endswith(view.local_suffixes))
            if external and (found := _external(view, data, name, kind, clock)) is not None:
                return found
    else:
        options = -14 if data[-14:-8] == COOKIE else -2 if data.endswith(b"\0\0") else 0
        ready = view.ready_edns.get(data[2:options])
        if ready is not None:
            return data[:2] + (ready if isinstance(ready, bytes) else next(ready))
    return _parsed(view, data, clock)


def _external(view: View, data: bytes, name: bytes, kind: bytes, clock: Callable[[], float]) -> bytes | Question | None:
    """Answer from the cache, or return the question for an upstream; None: the slow path decides.

    `name` is not a special-use domain name, and not in a local zone.
    """
    known = view.upstream_cache.get(name + kind + b"\0")
    if known is not None and (found := known.at(clock())) is not None:
        flags = (QR << 8 | RA | found[0] | _RD << 8).to_bytes(2)
        reply = b"".join((data[:2], flags, b"\0\1", found[1], b"\0\0", data[12:], found[2]))
        return reply if len(reply) <= wire.PLAIN_SIZE else None
    at, end = name[0] + 1, len(name) - 1
    if at >= end or name[end] or name[1] == _UNDERSCORE or name in view.removed:
        return None
    while at < end and 0 < name[at] < 64:  # an octet 0 ends the name: anything may follow it
        at += name[at] + 1
    return Question(data, name, kind, len(data)) if at == end else None


def _parsed(view: View, data: bytes, clock: Callable[[], float]) -> bytes | Question | None:
    """Parse a query and answer it."""
    end = data.find(b"\0", wire.HEADER) + 5
    # Flags: a query with opcode 0; only RD, AD and CD may be set.
    if end < 17 or end > len(data) or data[4:10] != _ONE_QUESTION or data[2] & 0xFE or data[3] & 0xCF:
        return None
    size, opt, dnssec = wire.PLAIN_SIZE, b"", False
    if end < len(data) or data[10:12] != b"\0\0":
        if (edns := _edns(data[10:12] + data[end:])) is None:
            return None
        size, opt, dnssec = edns
    name, kind = data[wire.HEADER : end - 4].lower(), data[end - 4 : end]
    node = view.find(name)
    rrset: RRset | None = None
    if node is not None and kind in node and kind != _SRV:
        rrset = node[kind]
        code, counts, records = AA << 8, len(rrset.records).to_bytes(2) + b"\0\0", next(rrset.turns)
    elif (found := _without_rrset(view, data, name, kind, node, clock, dnssec=dnssec)) is not None:
        code, counts, records = found
        if code & AA << 8:
            if node is None and not view.rest and (parent := wire.parent(name)) in view.first:
                view.known_parents.add(parent)
            opt = _OPT_NONE[opt][code & 0xF] if opt else b""
    elif node is None and _is_external(view, data, name, kind):
        return Question(data, name, kind, end, size, bool(opt), dnssec)
    else:
        return None
    flags = (QR << 8 | RA | code | (data[2] << 8) | (data[3] & CD)).to_bytes(2)
    head = b"".join((flags, b"\0\1", counts, b"\0\1" if opt else b"\0\0"))
    if node is not None and code & AA << 8:
        _make_ready(view, data, end, head, rrset.rotations if rrset else [records], opt)
    reply = b"".join((data[:2], head, data[wire.HEADER : end], records, opt))
    return reply if len(reply) <= size else None


def _edns(rest: bytes) -> tuple[int, bytes, bool] | None:
    """Return the client's UDP payload size, our OPT record, and the DO bit; None: the slow path decides.

    `rest`: ARCOUNT, and all octets after the question. Accepted is one OPT of version 0 without options, or with a
    client cookie only (RFC 7873), which is ignored.
    """
    if rest[:5] != b"\0\1\0\0\x29" or rest[7:9] != b"\0\0":
        return None
    if rest[11:] != b"\0\0" and (rest[11:17] != COOKIE or len(rest) != 25):
        return None
    dnssec = rest[9] >= 0x80
    return min(max((rest[5] << 8) + rest[6], wire.PLAIN_SIZE), wire.UDP_SIZE), _OPT[dnssec], dnssec


def _without_rrset(
    view: View, data: bytes, name: bytes, kind: bytes, node: Node | None, clock: Callable[[], float], *, dnssec: bool
) -> tuple[int, bytes, bytes] | None:
    """Return flags with RCODE, ANCOUNT with NSCOUNT, and the records, for a name without an RRset of this type."""
    if node is None and (cached := view.upstream_cache.get(name + kind + _DNSSEC[dnssec])) is not None:
        # A client that validates signatures itself (CD) gets its answer from the upstream.
        return cached.at(clock()) if data[2] & _RD and not data[3] & CD else None
    below = _below(name, view.domain)
    if kind[2:] != b"\0\1" or kind in _TYPES_WITHOUT_DATA or (node is None and not below) or (node and kind in node):
        return None
    code = wire.NXDOMAIN if node is None else wire.NOERROR
    zone = view.domain if below else view.zone_of(name) or name
    return AA << 8 | code, b"\0\0\0\1", view.negative(name, zone)


def _is_external(view: View, data: bytes, name: bytes, kind: bytes) -> bool:
    """Return whether a question about a name without a node is surely for an upstream."""
    return bool(
        data[2] & _RD
        and kind[2:] == b"\0\1"
        and kind not in _TYPES_WITHOUT_DATA
        and not view.forwarded
        and not special_use.may_be(name)
        and not name.endswith(view.network_zones)
        and name[1] != _UNDERSCORE
        and name not in view.removed
        and _below(name, wire.ROOT)
    )


def _make_ready(view: View, data: bytes, end: int, head: bytes, records: Sequence[bytes], opt: bytes) -> None:
    """Store the answers to a query in `view`, each without the message id."""
    if data[2:10] not in READY_FLAGS:
        return
    name = data[wire.HEADER : end - 4].lower()
    asked = name + data[end - 4 : end]
    tails = [b"".join((head, asked, turn, opt)) for turn in records]
    if len(tails[0]) + 2 <= wire.PLAIN_SIZE:
        # The key ends after the question, or after the TTL field of the OPT record: options are ignored.
        view.keep(name, data[2 : wire.HEADER] + asked + data[end : end + 9], tails, edns=bool(opt))


def _below(name: bytes, zone: bytes) -> bool:
    """Return whether a name is below a zone; False for a malformed name."""
    if not name.endswith(zone) or len(name) > wire.LONGEST_NAME:
        return False
    at, apex = 0, len(name) - len(zone)
    while at < apex:
        if name[at] > wire.LONGEST_LABEL:
            return False
        at += name[at] + 1
    return at == apex
