"""When a certificate ends. Python's ssl module tells it of a peer's certificate only."""

import base64
import re
from datetime import UTC, datetime
from pathlib import Path

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)
_VALIDITY = re.compile(rb"\x30.(?:\x17\x0d\d{12}Z|\x18\x0f\d{14}Z)(?:\x17\x0d(\d{12})Z|\x18\x0f(\d{14})Z)", re.DOTALL)
"""A SEQUENCE of two times, UTCTime or GeneralizedTime (RFC 5280 4.1.2.5), in DER."""


def ends(path: Path) -> datetime | None:
    """Return when the first certificate of a PEM file ends; None if that cannot be told.

    Raises:
        OSError: the file cannot be read.
    """
    pem = _PEM.search(path.read_bytes())
    found = _VALIDITY.search(base64.b64decode(pem[1])) if pem else None
    if found is None:
        return None
    text = (found[1] or found[2]).decode()
    if len(text) == len("YYMMDDhhmmss"):
        text = ("19" if text >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
