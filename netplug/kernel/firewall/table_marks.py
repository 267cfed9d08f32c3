"""How a later process knows a table of ours: its comment has digests of its text and of what the kernel made of it."""

import hashlib

from netplug.drivers.steps import Table
from netplug.kernel.api import StepError
from netplug.kernel.firewall import compiler
from netplug.kernel.firewall.compiler import CompileError
from netplug.kernel.firewall.table_image import Image

MARKED = "netplug "
"""Beginning of the comment of a table of ours."""


def of(step: Table) -> str:
    """Return family and name of a table, as elements name it."""
    return f"{step.family} {step.name}"


def mark_for(step: Table, made: Image) -> str:
    """Return the comment by which a later process knows a table, unless its rules have been changed."""
    return f"{MARKED}{_digest(step.text)} {made.digest}"


def is_right(step: Table, mark: str, found: Image) -> bool:
    """Return whether a table is as its text makes it. Only for a table without a mark of ours the text is compiled.

    Raises:
        StepError: it cannot be compiled.
    """
    if mark.startswith(MARKED):
        return mark == mark_for(step, found)
    return compiled(step).digest == found.digest


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def compiled(step: Table) -> Image:
    """Return what the kernel tells of a table with this text.

    Raises:
        StepError: "unavailable", this host cannot make it.
    """
    try:
        return compiler.compiled(step.family, step.text)
    except CompileError as error:
        hint = "load the module, or use a kernel that has it"
        if error.missing:
            hint = "install libnftables (Debian: libnftables1; elsewhere: nftables)"
        raise StepError(
            "unavailable", step, f"table {of(step)!r} cannot be made on this host: {error}", hint=hint
        ) from error
