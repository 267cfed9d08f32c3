"""Short forms of container ids."""

import re

SHORT = 12
"""Number of digits of a container's id that Docker, podman and nerdctl show and accept."""
_LONG = re.compile(r"(?:.*-)?([0-9a-f]{32,})", re.ASCII | re.DOTALL)


def short_id(ident: str) -> str:
    """Return the short form of an id; empty if the id has no hexadecimal digits to shorten.

    Ids by nerdctl begin with the containerd namespace.

    >>> short_id("3a5d5fd21a47" + "0" * 52), short_id("default-3a5d5fd21a47" + "0" * 52), short_id("cnitool-77383ca0")
    ('3a5d5fd21a47', '3a5d5fd21a47', '')
    """
    found = _LONG.fullmatch(ident)
    return found[1][:SHORT] if found else ""
