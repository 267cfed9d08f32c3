"""Sysctls (step `Sysctl`). Files in /proc/sys are kernel memory, so reading and writing them does not block."""

from pathlib import Path

from netplug.drivers.steps import Sysctl
from netplug.kernel.api import MISSING, Outcome, StepError

ROOT = Path("/proc/sys")
"""Files below net/ belong to the network namespace of the thread that opens them."""


def ensure(step: Sysctl) -> Outcome:
    """Write a sysctl if it differs.

    Returns:
        `CREATED` if it was written and will be restored; `USED` if it already had the value, so it is not restored.
    """
    try:
        if read(step.name) == step.value:
            return Outcome.USED if step.restore else Outcome.EQUAL
        (ROOT / step.name).write_text(step.value + "\n")
    except FileNotFoundError as error:
        raise StepError("not_found", step, f"sysctl {step.name} is missing") from error
    except OSError as error:
        raise StepError(
            "internal", step, f"sysctl {step.name} cannot be set to {step.value}: {error.strerror}"
        ) from error
    return Outcome.CREATED if step.restore else Outcome.ADJUSTED


def remove(step: Sysctl) -> None:
    """Restore a sysctl that has a value to restore, unless it was changed since or its link is gone.

    With `restore` equal to `value` it is written in any case: restoring another one has changed it.
    """
    if not step.restore or (drift(step) and step.restore != step.value):
        return
    try:
        (ROOT / step.name).write_text(step.restore + "\n")
    except OSError as error:
        raise StepError(
            "internal", step, f"sysctl {step.name} cannot be restored to {step.restore}: {error.strerror}"
        ) from error


def drift(step: Sysctl) -> str:
    """Return how a sysctl differs from the step; empty if it does not."""
    try:
        value = read(step.name)
    except OSError:
        return MISSING
    return "" if value == step.value else f"is {value}, not {step.value}"


def read(name: str) -> str:
    """Return the value of a sysctl.

    Raises:
        OSError: there is none.
    """
    return " ".join((ROOT / name).read_text().split())
