"""The fast path: answers to ordinary questions about names that we know, from wire to wire.

It refuses everything unusual by returning None; `slow_path` then decides. What it does accept it answers, or finds to
be an upstream's to answer, exactly as `slow_path` would, which a test asserts for any octets. A question costs it about
a microsecond.
"""

from collections.abc import Callable
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
"""Our OPT where there is nothing, by that of an answer and by RCODE: it says why."""
_UNUSUAL = frozenset(wire.key(kind) for kind in (0, wire.OPT, *range(wire.TKEY, wire.ANY + 1)))
"""Types that are no data: they ask for something else."""
_USUAL = frozenset(wire.key(kind) for kind in range(1, wire.TKEY)) - _UNUSUAL
_SRV = wire.key(wire.SRV)
_DNSSEC = {False: b"\0", True: b"\x80"}
_RD = 0x01
_UNDERSCORE = 0x5F
"""With which the name of a service begins, perhaps of a name that we have (RFC 2782)."""
ANSWER, AUTHORITATIVE, RA, CD = 0x80, 0x04, 0x80, 0x10
"""Header bits of the first and the second octet of flags."""
_NOT_THERE = bytes((ANSWER | AUTHORITATIVE | _RD, RA | wire.NXDOMAIN)) + b"\0\1\0\0\0\1\0\0"


def answer(view: View, data: bytes, clock: Callable[[], float] = monotonic) -> bytes | Question | None:
    """Return the answer to a question that came by UDP, or the question when an upstream has to be asked.

    None: it takes more care.
    """
    ready = view.ready.get(data[2:])
    if ready is not None:
        return data[:2] + (ready if isinstance(ready, bytes) else next(ready))
    return unready(view, data, clock)


def unready(view: View, data: bytes, clock: Callable[[], float] = monotonic) -> bytes | Question | None:
    """Do as `answer`, where the answer to this very question is not ready.

    It may be ready but for the case of letters, or for what is behind EDNS's own fields: a client's cookie is another
    one each time (RFC 7873), and we do not take it.
    """
    if (head := data[2:12]) in READY_HEADS:
        asked = data[12:]
        low = asked.lower()
        name = low[:-4]
        if name in view.first:
            if (ready := view.ready.get(head + low)) is not None:
                # Flags and counts, the question as it was asked, and what is behind it.
                tail = ready if isinstance(ready, bytes) else next(ready)
                return b"".join((data[:2], tail[:10], asked, tail[len(data) - 2 :]))
        elif name and 0 < (size := name[0]) < 64 and (kind := asked[-4:]) in _USUAL and len(name) < 256:
            # Below a name of the zone that is there, one more label is all that has to be looked at.
            if name[size + 1 :] in view.above:
                return b"".join((data[:2], _NOT_THERE, asked, view.denial))
            elsewhere = not (view.served or view.others or name.endswith(view.ours))
            if elsewhere and (said := _elsewhere(view, data, name, kind, clock)) is not None:
                return said
    else:
        options = -14 if data[-14:-8] == COOKIE else -2 if data.endswith(b"\0\0") else 0
        ready = view.ready_edns.get(data[2:options])
        if ready is not None:
            return data[:2] + (ready if isinstance(ready, bytes) else next(ready))
    return _whole(view, data, clock)


def _elsewhere(
    view: View, data: bytes, name: bytes, kind: bytes, clock: Callable[[], float]
) -> bytes | Question | None:
    """Answer from what an upstream said before, or return the question for one; None: it takes more care.

    Such a name is not of special use, and ends in nothing that is ours.
    """
    known = view.outside.get(name + kind + b"\0")
    if known is not None and (found := known.at(clock())) is not None:
        flags = (ANSWER << 8 | RA | found[0] | _RD << 8).to_bytes(2)
        said = b"".join((data[:2], flags, b"\0\1", found[1], b"\0\0", data[12:], found[2]))
        return said if len(said) <= wire.PLAIN_SIZE else None
    at, end = name[0] + 1, len(name) - 1
    if at >= end or name[end] or name[1] == _UNDERSCORE or name in view.gone:
        return None
    while at < end and name[at] < 64:
        at += name[at] + 1
    return Question(data, name, kind, len(data)) if at == end else None


def _whole(view: View, data: bytes, clock: Callable[[], float]) -> bytes | Question | None:
    """Read a question and answer it."""
    end = data.find(b"\0", wire.HEADER) + 5
    # Flags: no answer, opcode 0, nothing else set but RD, AD, CD.
    if end < 17 or end > len(data) or data[4:10] != _ONE_QUESTION or data[2] & 0xFE or data[3] & 0xCF:
        return None
    size, opt, dnssec = wire.PLAIN_SIZE, b"", False
    if end < len(data) or data[10:12] != b"\0\0":
        if (edns := _edns(data[10:12] + data[end:])) is None:
            return None
        size, opt, dnssec = edns
    name, kind = data[wire.HEADER : end - 4].lower(), data[end - 4 : end]
    node = view.find(name) if view.others else view.first.get(name)
    rrset: RRset | None = None
    if node is not None and kind in node and kind != _SRV:
        rrset = node[kind]
        code, counts, records = AUTHORITATIVE << 8, len(rrset.records).to_bytes(2) + b"\0\0", next(rrset.turns)
    elif (found := _otherwise(view, data, name, kind, node, clock, dnssec=dnssec)) is not None:
        code, counts, records = found
        if code & AUTHORITATIVE << 8:
            if node is None and not view.others and (above := wire.parent(name)) in view.first:
                view.above.add(above)
            opt = _OPT_NONE[opt][code & 0xF] if opt else b""
    elif node is None and _outward(view, data, name, kind):
        return Question(data, name, kind, end, size, bool(opt), dnssec)
    else:
        return None
    flags = (ANSWER << 8 | RA | code | (data[2] << 8) | (data[3] & CD)).to_bytes(2)
    head = b"".join((flags, b"\0\1", counts, b"\0\1" if opt else b"\0\0"))
    if node is not None and code & AUTHORITATIVE << 8:
        _keep(view, data, end, head, rrset.rotations if rrset else [records], opt)
    said = b"".join((data[:2], head, data[wire.HEADER : end], records, opt))
    return said if len(said) <= size else None


def _edns(rest: bytes) -> tuple[int, bytes, bool] | None:
    """Return the asker's size, our OPT, and whether DNSSEC is wanted. `rest`: ARCOUNT, and what is behind the question.

    Accepted is one OPT of version 0, without options or with a cookie of the client's (RFC 7873), which we do not take.
    """
    if rest[:5] != b"\0\1\0\0\x29" or rest[7:9] != b"\0\0":
        return None
    if rest[11:] != b"\0\0" and (rest[11:17] != COOKIE or len(rest) != 25):
        return None
    dnssec = rest[9] >= 0x80
    return min(max((rest[5] << 8) + rest[6], wire.PLAIN_SIZE), wire.UDP_SIZE), _OPT[dnssec], dnssec


def _otherwise(
    view: View, data: bytes, name: bytes, kind: bytes, node: Node | None, clock: Callable[[], float], *, dnssec: bool
) -> tuple[int, bytes, bytes] | None:
    """Return AA and RCODE, the counts of answers and authorities, and these, where we have no record of this type."""
    if node is None and (outside := view.outside.get(name + kind + _DNSSEC[dnssec])) is not None:
        # Those who check signatures themselves get their answer from the upstream.
        return outside.at(clock()) if data[2] & _RD and not data[3] & CD else None
    below = _below(name, view.domain)
    if kind[2:] != b"\0\1" or kind in _UNUSUAL or (node is None and not below) or (node and kind in node):
        return None
    code = wire.NXDOMAIN if node is None else wire.NOERROR
    zone = view.domain if below else view.zone_of(name) or name
    return AUTHORITATIVE << 8 | code, b"\0\0\0\1", view.negative(name, zone)


def _outward(view: View, data: bytes, name: bytes, kind: bytes) -> bool:
    """Tell whether a question for a name that we have not is surely an upstream's; those in our zone are answered."""
    return bool(
        data[2] & _RD
        and kind[2:] == b"\0\1"
        and kind not in _UNUSUAL
        and not view.served
        and not special_use.may_be(name)
        and not name.endswith(view.zones_here)
        and name[1] != _UNDERSCORE
        and name not in view.gone
        and _below(name, wire.ROOT)
    )


def _keep(view: View, data: bytes, end: int, head: bytes, records: list[bytes], opt: bytes) -> None:
    """Remember the answers to a question, each as it comes after the id."""
    if data[2:10] not in READY_FLAGS:
        return
    name = data[wire.HEADER : end - 4].lower()
    asked = name + data[end - 4 : end]
    tails = [b"".join((head, asked, turn, opt)) for turn in records]
    if len(tails[0]) + 2 <= wire.PLAIN_SIZE:
        # Behind the question: ARCOUNT says whether there is an OPT, of which all but its options counts.
        view.keep(name, data[2 : wire.HEADER] + asked + data[end : end + 9], tails, edns=bool(opt))


def _below(name: bytes, zone: bytes) -> bool:
    """Tell whether a name is below a zone, and in order; what is not in order is below nothing."""
    if not name.endswith(zone) or len(name) > wire.LONGEST_NAME:
        return False
    at, apex = 0, len(name) - len(zone)
    while at < apex:
        if name[at] > wire.LONGEST_LABEL:
            return False
        at += name[at] + 1
    return at == apex
