"""Answers of upstreams: read, checked, and remembered for as long as they say.

Kept are the answer and authority sections behind the question, so that compression pointers stay true; TTLs are
counted down once a second at most. What has run out is kept a day longer, for when no upstream answers (RFC 8767).
"""

import struct

from . import wire

LONGEST_S = 86_400
LONGEST_NEGATIVE_S = 10_800
"""RFC 2308 §5 suggests one to three hours at most."""
FAILURE_S = 5
"""For how long nobody is asked again after all failed (RFC 9520 §3.2: at least one second)."""
STALE_S = 86_400
STALE_TTL_S = 30
"""RFC 8767 §5.11 and §4: for how long an old answer may serve, and with which TTL."""
MOST_ALIASES = 16
MOST_ENTRIES = 10_000
MOST_OCTETS = 4096
_AD = 0x20
_ONE = b"\0\1\0\0"
"""Counts of answers and authorities."""
_ADDRESSES = frozenset({wire.A, wire.AAAA})
_RECORD = struct.Struct("!HHIH")
"""Type, class, TTL, and the length of RDATA."""


class Answer:
    """What an upstream said.

    `code`: RCODE, and AD where it checked signatures for somebody who wanted that. `counts`: of answers and
    authorities, as in a header; `body`: these records. `ttl_s` 0: not to be remembered.
    """

    __slots__ = ("_age", "_now", "_ttls", "body", "code", "counts", "stored", "ttl_s", "until")

    def __init__(self, code: int, counts: bytes, body: bytes, ttls: tuple[int, ...], ttl_s: int, now: float) -> None:
        self.code = code
        self.counts = counts
        self.body = body
        self.ttl_s = ttl_s
        self.stored = now
        self.until = now + ttl_s
        self._ttls = ttls
        self._age = 0
        self._now = code, counts, body

    def at(self, now: float) -> tuple[int, bytes, bytes] | None:
        """Return code, counts and records as of now; None: it has run out. See `zone.Outside`."""
        if now >= self.until:
            return None
        age = int(now - self.stored)
        if age != self._age:
            self._age, self._now = age, (self.code, self.counts, self._aged(age))
        return self._now

    def _aged(self, age: int) -> bytes:
        body = bytearray(self.body)
        for at in self._ttls:
            left = int.from_bytes(body[at : at + 4]) - age
            body[at : at + 4] = (left if left > 0 else STALE_TTL_S if age >= self.ttl_s else 0).to_bytes(4)
        return bytes(body)

    def revive(self, now: float) -> "Answer | None":
        """Let it serve for another while although it has run out; None when it is too old, or no answer."""
        if self.code & 0xF == wire.SERVFAIL or now >= self.stored + self.ttl_s + STALE_S:
            return None
        self.until = max(self.until, now + STALE_TTL_S)
        return self


class Cache(dict[bytes, Answer]):
    """Answers by question: lower-cased name, type and class, and what was wanted (DO 0x80, CD 0x10).

    Where there are more than `most`, those that came first make room.
    """

    def __init__(self, most: int = MOST_ENTRIES) -> None:
        super().__init__()
        self.most = most

    def put(self, key: bytes, answer: Answer) -> None:
        """Remember an answer, if it may be."""
        if answer.ttl_s <= 0 or len(answer.body) > MOST_OCTETS:
            return
        self.pop(key, None)  # the order is that of coming
        if len(self) >= self.most:
            for old in list(self)[: max(self.most // 10, 1)]:
                del self[old]
        self[key] = answer


class NoCache(Cache):
    """Remembers nothing: for an upstream whose answers change from one moment to the next."""

    def put(self, key: bytes, answer: Answer) -> None:
        """Let it go."""


def failure(now: float) -> Answer:
    """Return what is remembered when no upstream answered."""
    return Answer(wire.SERVFAIL, b"\0\0\0\0", b"", (), FAILURE_S, now)


def matches(message: bytes, name: bytes, kind: bytes) -> bool:
    """Tell whether a message is an answer to a question; nothing else of it is looked at."""
    end = wire.HEADER + len(name)
    return (
        len(message) >= end + 4
        and message[2] & 0xF8 == 0x80
        and message[4:6] == b"\0\1"
        and (message.startswith(name, wire.HEADER) or message[wire.HEADER : end].lower() == name)
        and message.startswith(kind, end)
    )


def _of_one(message: bytes, start: int, now: float) -> Answer | None:
    """Return what a message says that has one address for the name itself: most have no more. None: it is another."""
    if not message.startswith(wire.TO_QUESTION, start) or len(message) < start + 12 or message[3] & (_AD | 0xF):
        return None
    kind, _, ttl, length = _RECORD.unpack_from(message, start + 2)
    end = start + 12 + length
    if kind not in _ADDRESSES or len(message) < end:
        return None
    ttl_s = ttl if ttl < LONGEST_S else LONGEST_S if ttl < 1 << 31 else 0
    return Answer(wire.NOERROR, _ONE, message[start:end], (6,), ttl_s, now)


def read(message: bytes, name: bytes, now: float, *, dnssec: bool = False) -> Answer:
    """Return what a message says that `matches` a question.

    Raises:
        ValueError: it is out of order, a chain of aliases without end, or no answer but a hint where to ask.
    """
    start = at = wire.HEADER + len(name) + 4
    if message.startswith(_ONE, 6) and (found := _of_one(message, start, now)) is not None:
        return found
    answers, authorities = struct.unpack_from("!2H", message, 6)
    ttls: list[int] = []
    ttl_s, negative_s, hint, aliases = LONGEST_S, 0, False, 0
    for number in range(answers + authorities):
        at = at + 2 if message.startswith(wire.TO_QUESTION, at) else wire.skip_name(message, at)
        if at + 10 > len(message):
            raise ValueError("a record without its head")
        kind, _, ttl, length = _RECORD.unpack_from(message, at)
        ttls.append(at + 4 - start)
        ttl = ttl if ttl < 1 << 31 else 0  # RFC 2181 §8
        at += 10 + length
        if at > len(message):
            raise ValueError("RDATA past the end")
        if number < answers:
            ttl_s = min(ttl_s, ttl)
            aliases += kind == wire.CNAME
        elif kind == wire.SOA and length >= 20:
            negative_s = min(ttl, int.from_bytes(message[at - 4 : at]), LONGEST_NEGATIVE_S)
            ttl_s = min(ttl_s, negative_s)
        hint |= kind == wire.NS
    code = message[3] & 0xF
    if aliases > MOST_ALIASES:
        raise ValueError(f"{aliases} aliases one after the other")
    if code == wire.NOERROR and not answers and hint and not negative_s:
        raise ValueError("a hint where to ask")
    if not negative_s and (not answers or code == wire.NXDOMAIN):
        ttl_s = 0
    return Answer(code | (message[3] & _AD if dnssec else 0), message[6:10], message[start:at], tuple(ttls), ttl_s, now)
