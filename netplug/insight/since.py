"""Points in time as users write them: Docker's forms of ``--since``."""

import re
import time
from datetime import datetime

_AGO = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", re.ASCII)
_UNIX = re.compile(r"\d{1,12}(\.\d{1,9})?", re.ASCII)
_UNITS_S = (86_400.0, 3_600.0, 60.0, 1.0)
FORMS = "10m, 1h30m, 2026-01-31T12:00:00Z, 2026-01-31, or a Unix time"


def parse_since(text: str, now: float | None = None) -> float:
    """Return Unix time.

    A time without a zone is this process's local time, as with Docker.

    >>> parse_since("1h30m", now=10_000.0)
    4600.0
    >>> parse_since("1970-01-02T00:00:00Z")
    86400.0
    >>> parse_since("1700000000.5")
    1700000000.5

    Raises:
        ValueError: it is neither; the message names it.
    """
    if _UNIX.fullmatch(text):
        return float(text)
    if text and (found := _AGO.fullmatch(text)):
        ago_s = sum(float(number) * unit for number, unit in zip(found.groups(), _UNITS_S, strict=True) if number)
        return (time.time() if now is None else now) - ago_s
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f"{text[:40]!r} is no time (write {FORMS})") from None
