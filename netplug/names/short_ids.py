"""What people call an id."""

import re

SHORT = 12
"""Digits of a container's id that Docker, podman and nerdctl show, and take for it."""
_LONG = re.compile(r"(?:.*-)?([0-9a-f]{32,})", re.ASCII | re.DOTALL)


def short_id(ident: str) -> str:
    """Return the digits of an id that are shown; nothing where it has none, and is shown whole.

    nerdctl puts the containerd namespace before those of its containers.

    >>> short_id("3a5d5fd21a47" + "0" * 52), short_id("default-3a5d5fd21a47" + "0" * 52), short_id("cnitool-77383ca0")
    ('3a5d5fd21a47', '3a5d5fd21a47', '')
    """
    found = _LONG.fullmatch(ident)
    return found[1][:SHORT] if found else ""
