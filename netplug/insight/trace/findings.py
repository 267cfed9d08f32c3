"""What a check finds."""

from dataclasses import dataclass

from netplug.insight.trace.model import Cause


@dataclass(frozen=True, slots=True)
class Finding:
    """`station`: before, or at, which the packet is lost, "back-…" if its answer is; empty: anywhere on the way."""

    station: str
    cause: Cause
