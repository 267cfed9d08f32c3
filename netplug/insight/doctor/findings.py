"""What checks find, and what a check is."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Verdict(StrEnum):
    """How bad it is, from good to bad. `NOTE`: worth knowing, and nothing is wrong. `UNCHECKED`: nobody knows."""

    OK = "ok"
    UNCHECKED = "not checked"
    NOTE = "note"
    WARNING = "warning"
    FAILURE = "failure"

    @property
    def rank(self) -> int:
        """A number that grows with how bad it is."""
        return list(Verdict).index(self)

    @property
    def wrong(self) -> bool:
        """Whether somebody should do something."""
        return self in {Verdict.WARNING, Verdict.FAILURE}


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found. `why`: in words, with the values. `mend`: a command, or what to write where.

    `check`: id of the check; filled in by whoever runs it.
    """

    verdict: Verdict
    why: str
    mend: str = ""
    check: str = ""


def worst(findings: Sequence[Finding]) -> Verdict:
    """Return the worst verdict."""
    return max((it.verdict for it in findings), key=lambda it: it.rank, default=Verdict.OK)


def ok(why: str) -> Finding:
    """All is well; `why` says what was looked at."""
    return Finding(Verdict.OK, why)


def note(why: str, mend: str = "") -> Finding:
    """Worth knowing."""
    return Finding(Verdict.NOTE, why, mend)


def warning(why: str, mend: str = "") -> Finding:
    """Something will fail, or some things do."""
    return Finding(Verdict.WARNING, why, mend)


def failure(why: str, mend: str = "") -> Finding:
    """Something fails."""
    return Finding(Verdict.FAILURE, why, mend)


def unchecked(why: str, mend: str = "") -> Finding:
    """It could not be looked at."""
    return Finding(Verdict.UNCHECKED, why, mend)


@dataclass(frozen=True, slots=True)
class Check(Generic[_T]):
    """One check of a subject. `ident`: stable. `well`: what to say if it finds nothing. `deadline_s`: for all of it."""

    ident: str
    well: str
    look: Callable[[_T], Awaitable[Iterable[Finding]]]
    deadline_s: float = 1.5
