"""The bodies of ``POST /v1/trace``. Their field names are a contract."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from netplug.insight.trace.model import Cause, Hop, Outcome


class TraceIn(BaseModel):
    """`source`: container, endpoint, name, address, ``host``, ``outside[=ADDRESS]``; `destination`: with a port."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(min_length=1, max_length=300)
    destination: str = Field(min_length=1, max_length=300)


class CauseOut(BaseModel):
    """`kind`: a stable word. `words`: for people. `mend`: a command, or what else to do; empty if there is none."""

    kind: str
    words: str
    mend: str

    @classmethod
    def of(cls, it: Cause) -> Self:
        return cls(kind=it.kind, words=it.words, mend=it.mend)


class HopOut(BaseModel):
    """`verdict`: "ok", "broken", "noted", "not reached". `ms`: since the packet was sent, null without a time."""

    hop: str
    where: str
    what: str
    verdict: str
    ms: float | None
    cause: CauseOut | None

    @classmethod
    def of(cls, it: Hop) -> Self:
        return cls(
            hop=it.name,
            where=it.where,
            what=it.what,
            verdict=str(it.verdict),
            ms=None if it.ms is None else round(it.ms, 3),
            cause=CauseOut.of(it.cause) if it.cause else None,
        )


class TraceOut(BaseModel):
    """`flow`: what was sent. `broken`: the first broken hop, null if it was reached. `notes`: what was not observed."""

    reached: bool
    source: str
    destination: str
    flow: str
    hops: list[HopOut]
    broken: HopOut | None
    notes: list[str]
    took_ms: float

    @classmethod
    def of(cls, it: Outcome) -> Self:
        return cls(
            reached=it.reached,
            source=it.source,
            destination=it.destination,
            flow=it.flow,
            hops=[HopOut.of(hop) for hop in it.hops],
            broken=HopOut.of(it.broken) if it.broken else None,
            notes=list(it.notes),
            took_ms=round(it.took_ms, 1),
        )
