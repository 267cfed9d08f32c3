"""Answers of upstreams: parsed, validated, and cached for their TTL.

The cache has the answer and authority sections as received, right after the question, so compression pointers stay
valid. TTLs are counted down at most once a second. An expired answer is kept for another day, in case no upstream
answers (serve-stale, RFC 8767).
"""

import struct

from . import wire

LONGEST_S = 86_400
LONGEST_NEGATIVE_S = 10_800
"""RFC 2308 §5 suggests a limit of one to three hours."""
FAILURE_S = 5
"""How long a resolution failure is cached (RFC 9520 §3.2: at least one second)."""
STALE_S = 86_400
STALE_TTL_S = 30
"""How long a stale answer may be used, and with which TTL (RFC 8767 §5.11 and §4)."""
MOST_ALIASES = 16
MOST_ENTRIES = 10_000
MOST_OCTETS = 4096
_AD = 0x20
_ONE = b"\0\1\0\0"
"""ANCOUNT 1, NSCOUNT 0."""
_ADDRESSES = {wire.A: 4, wire.AAAA: 16}
"""Octets of RDATA, by type."""
_NAMES = {
    wire.NS: (0, 1, 0),
    wire.CNAME: (0, 1, 0),
    wire.PTR: (0, 1, 0),
    wire.SOA: (0, 2, 20),
    wire.MX: (2, 1, 0),
    wire.SRV: (6, 1, 0),
}
"""RDATA with names, by type: the octets before them, how many they are, and the octets after them."""
_RECORD = struct.Struct("!HHIH")
"""TYPE, CLASS, TTL, RDLENGTH."""


class Answer:
    """An upstream's answer.

    Attributes:
        code: RCODE; also AD if the client set DO and the upstream validated the signatures.
        counts: ANCOUNT and NSCOUNT as in the header.
        body: the records of both sections.
        ttl_s: how long to cache it; 0: not at all.
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
        """Return code, counts and records with their remaining TTLs; None if expired. See `view.CachedAnswer`."""
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
        """Extend an expired answer as stale; return None if it is too old, or a resolution failure."""
        if self.code & 0xF == wire.SERVFAIL or now >= self.stored + self.ttl_s + STALE_S:
            return None
        self.until = max(self.until, now + STALE_TTL_S)
        return self


class Cache(dict[bytes, Answer]):
    """Answers by question: lower-case name, type, class, and one octet with the client's DO (0x80) and CD (0x10).

    Above `most` entries, the oldest ones are removed.
    """

    def __init__(self, most: int = MOST_ENTRIES) -> None:
        super().__init__()
        self.most = most

    def put(self, key: bytes, answer: Answer) -> None:
        """Cache an answer, unless its TTL is 0 or it is too large."""
        if answer.ttl_s <= 0 or len(answer.body) > MOST_OCTETS:
            return
        self.pop(key, None)  # so that it becomes the newest entry
        if len(self) >= self.most:
            for old in list(self)[: max(self.most // 10, 1)]:
                del self[old]
        self[key] = answer


class NoCache(Cache):
    """Caches nothing: for an upstream whose answers may change at any time."""

    def put(self, key: bytes, answer: Answer) -> None:
        """Ignore it."""


def failure(now: float) -> Answer:
    """Return the SERVFAIL that is cached when no upstream has answered."""
    return Answer(wire.SERVFAIL, b"\0\0\0\0", b"", (), FAILURE_S, now)


def matches(message: bytes, name: bytes, kind: bytes) -> bool:
    """Return whether a message is a response to this question; its records are not checked."""
    end = wire.HEADER + len(name)
    return (
        len(message) >= end + 4
        and message[2] & 0xF8 == 0x80
        and message[4:6] == b"\0\1"
        and (message.startswith(name, wire.HEADER) or message[wire.HEADER : end].lower() == name)
        and message.startswith(kind, end)
    )


def _of_one(message: bytes, start: int, now: float) -> Answer | None:
    """Parse an answer with exactly one address record, as most are; return None for any other answer."""
    if not message.startswith(wire.TO_QUESTION, start) or len(message) < start + 12 or message[3] & (_AD | 0xF):
        return None
    kind, _, ttl, length = _RECORD.unpack_from(message, start + 2)
    end = start + 12 + length
    if _ADDRESSES.get(kind) != length or len(message) < end:
        return None
    ttl_s = ttl if ttl < LONGEST_S else LONGEST_S if ttl < 1 << 31 else 0
    return Answer(wire.NOERROR, _ONE, message[start:end], (6,), ttl_s, now)


def _check_data(message: bytes, kind: int, at: int, end: int) -> None:
    """Check the RDATA of types that any client reads, from an offset to another.

    Raises:
        ValueError: it is malformed.
    """
    if (names := _NAMES.get(kind)) is not None:
        before, number, after = names
        at += before
        for _ in range(number):
            at = wire.follow_name(message, at)
        if at + after != end:
            raise ValueError("RDATA has more or fewer octets than its name")
    elif (size := _ADDRESSES.get(kind)) is not None and end - at != size:
        raise ValueError(f"an address of {end - at} octets")


def read(message: bytes, name: bytes, now: float, *, dnssec: bool = False) -> Answer:
    """Parse a message that `matches` a question.

    Raises:
        ValueError: the message is malformed, has a too long chain of CNAMEs, or is a referral.
    """
    start = at = wire.HEADER + len(name) + 4
    if message.startswith(_ONE, 6) and (found := _of_one(message, start, now)) is not None:
        return found
    answers, authorities = struct.unpack_from("!2H", message, 6)
    ttls: list[int] = []
    ttl_s, negative_s, has_ns, aliases = LONGEST_S, 0, False, 0
    for number in range(answers + authorities):
        at = at + 2 if message.startswith(wire.TO_QUESTION, at) else wire.follow_name(message, at)
        if at + 10 > len(message):
            raise ValueError("a record is incomplete")
        kind, _, ttl, length = _RECORD.unpack_from(message, at)
        ttls.append(at + 4 - start)
        ttl = ttl if ttl < 1 << 31 else 0  # RFC 2181 §8
        at += 10 + length
        if at > len(message):
            raise ValueError("RDATA extends past the end of the message")
        _check_data(message, kind, at - length, at)
        if number < answers:
            ttl_s = min(ttl_s, ttl)
            aliases += kind == wire.CNAME
        elif kind == wire.SOA and length >= 20:
            negative_s = min(ttl, int.from_bytes(message[at - 4 : at]), LONGEST_NEGATIVE_S)
            ttl_s = min(ttl_s, negative_s)
        has_ns |= kind == wire.NS
    code = message[3] & 0xF
    if aliases > MOST_ALIASES:
        raise ValueError(f"a chain of {aliases} CNAME records")
    if code == wire.NOERROR and not answers and has_ns and not negative_s:
        raise ValueError("a referral")
    if not negative_s and (not answers or code == wire.NXDOMAIN):
        ttl_s = 0
    return Answer(code | (message[3] & _AD if dnssec else 0), message[6:10], message[start:at], tuple(ttls), ttl_s, now)
