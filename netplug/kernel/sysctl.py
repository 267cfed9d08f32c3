"""Settings below /proc/sys. They are memory, not disk: reading and writing them does not wait."""

from pathlib import Path

from netplug.drivers.plan import Sysctl

from .api import MISSING, Outcome, StepError

ROOT = Path("/proc/sys")
"""What lies below net/ is that of the namespace of the thread that opens the file."""


def ensure(step: Sysctl) -> Outcome:
    """Write a setting that differs. Never `CREATED`: it is not taken back."""
    path = ROOT / step.name
    try:
        if _read(path) == step.value:
            return Outcome.EQUAL
        path.write_text(step.value + "\n")
    except FileNotFoundError as error:
        raise StepError("not_found", step, f"kernel setting {step.name} is missing") from error
    except OSError as error:
        raise StepError(
            "internal", step, f"kernel setting {step.name} cannot be set to {step.value}: {error.strerror}"
        ) from error
    return Outcome.ADJUSTED


def drift(step: Sysctl) -> str:
    """Say what is wrong with a setting; empty when nothing."""
    try:
        value = _read(ROOT / step.name)
    except OSError:
        return MISSING
    return "" if value == step.value else f"is {value}, not {step.value}"


def _read(path: Path) -> str:
    return " ".join(path.read_text().split())
