"""The answer of ``GET /v1/doctor``, and of `netplug doctor --json`. Its names are stable."""

from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel

from netplug.insight.doctor.findings import Finding, worst


class FindingOut(BaseModel):
    """A finding. `verdict`: "ok", "not checked", "note", "warning" or "failure"."""

    check: str
    verdict: str
    why: str
    mend: str


class Report(BaseModel):
    """What the doctor says of a host. `verdict`: the worst. `version`: of the daemon; empty if none answers."""

    host: str
    version: str
    verdict: str
    findings: list[FindingOut]

    @classmethod
    def of(cls, host: str, version: str, findings: Sequence[Finding]) -> Self:
        """Return the report of what was found."""
        out = [FindingOut(check=it.check, verdict=it.verdict, why=it.why, mend=it.mend) for it in findings]
        return cls(host=host, version=version, verdict=worst(findings), findings=out)
