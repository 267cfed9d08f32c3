"""Settings below /proc/sys. They are memory, not disk: reading and writing them does not wait."""

from pathlib import Path

from netplug.drivers.steps import Sysctl
from netplug.kernel.api import MISSING, Outcome, StepError

ROOT = Path("/proc/sys")
"""What lies below net/ is that of the namespace of the thread that opens the file."""


def ensure(step: Sysctl) -> Outcome:
    """Write a setting that differs.

    `CREATED` only if it is to be taken back; `USED` when that would be wrong, since it was so before.
    """
    path = ROOT / step.name
    try:
        if _read(path) == step.value:
            return Outcome.USED if step.restore else Outcome.EQUAL
        path.write_text(step.value + "\n")
    except FileNotFoundError as error:
        raise StepError("not_found", step, f"kernel setting {step.name} is missing") from error
    except OSError as error:
        raise StepError(
            "internal", step, f"kernel setting {step.name} cannot be set to {step.value}: {error.strerror}"
        ) from error
    return Outcome.CREATED if step.restore else Outcome.ADJUSTED


def remove(step: Sysctl) -> None:
    """Take a setting back that is to be taken back, unless somebody changed it since, or its link is gone."""
    if not step.restore or drift(step):
        return
    try:
        (ROOT / step.name).write_text(step.restore + "\n")
    except OSError as error:
        raise StepError(
            "internal", step, f"kernel setting {step.name} cannot be set back to {step.restore}: {error.strerror}"
        ) from error


def drift(step: Sysctl) -> str:
    """Say what is wrong with a setting; empty when nothing."""
    try:
        value = _read(ROOT / step.name)
    except OSError:
        return MISSING
    return "" if value == step.value else f"is {value}, not {step.value}"


def _read(path: Path) -> str:
    return " ".join(path.read_text().split())
