"""A well-formed question, as the fast and the slow path pass it to an upstream."""

from dataclasses import dataclass

from . import wire


@dataclass(slots=True)
class Question:
    """A well-formed question.

    Attributes:
        data: the client's message.
        name: in wire format, lower case.
        kind: type and class.
        end: the offset in `data` after the question.
        size: the most octets of an answer.
        edns: the query has an OPT record.
        dnssec: its DO bit is set.
    """

    data: bytes
    name: bytes
    kind: bytes
    end: int
    size: int = wire.PLAIN_SIZE
    edns: bool = False
    dnssec: bool = False

    @property
    def recursive(self) -> bool:
        """Whether the client wants recursion (RD), so that an upstream may be asked."""
        return bool(self.data[2] & 0x01)

    @property
    def unchecked(self) -> bool:
        """Whether the client also accepts answers that fail DNSSEC validation (CD)."""
        return bool(self.data[3] & 0x10)
