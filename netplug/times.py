"""Points in time as users write them: as with Docker, a time or how long ago."""

import re
import time
from datetime import datetime

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_PART = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|d)", re.ASCII)
_UNIX = re.compile(r"\d{1,12}(\.\d{1,9})?", re.ASCII)
FORMS = "10m, 1h30m, 2026-01-31T12:00:00Z, 2026-01-31, or a Unix time"


def point_in_time(text: str, now: float | None = None) -> float:
    """Return Unix time.

    A time without a zone is this process's local time, as with Docker.

    >>> point_in_time("1h30m", now=10_000.0)
    4600.0
    >>> point_in_time("1970-01-02T00:00:00Z")
    86400.0
    >>> point_in_time("1700000000.5")
    1700000000.5

    Raises:
        ValueError: it is neither; the message names it.
    """
    if _UNIX.fullmatch(text):
        return float(text)
    parts = _PART.findall(text)
    if parts and "".join(map("".join, parts)) == text:
        return (time.time() if now is None else now) - sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{text[:40]!r} is no time (write {FORMS})") from None
