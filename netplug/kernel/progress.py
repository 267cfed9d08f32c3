"""Executing steps: errors of the kernel get the name of the step, and outcomes are recorded."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TypeVar

from netplug.drivers.step_types import BUILT_IN
from netplug.drivers.steps import Step
from netplug.kernel.api import Before, Done, Outcome, StepError
from netplug.kernel.netlink.connection import NetlinkError

_S = TypeVar("_S", bound=Step)


@contextmanager
def naming(step: Step) -> Iterator[None]:
    """Turn what the kernel says into an error that names the step."""
    try:
        yield
    except StepError:
        raise
    except NetlinkError as error:
        raise StepError("internal", step, f"kernel refused {step.key!r}: {error.strerror}") from error
    except TimeoutError as error:
        raise StepError("unavailable", step, f"the kernel does not answer for {step.key!r}") from error
    except FileNotFoundError as error:
        raise StepError("not_found", step, f"sandbox {error.filename} is gone") from error
    except OSError as error:
        raise StepError("internal", step, f"{step.key!r} failed: {error.strerror or error}") from error
    except Exception as error:
        if type(step) in BUILT_IN:
            raise
        # A fault of the package that brings the type: other steps are done nevertheless.
        words = f"{step.key!r} failed in the package of step type {type(step).__name__!r}: {error}"
        raise StepError("internal", step, words) from error


class Progress:
    """How far an `ensure` has come; see `Kernel.ensure`."""

    def __init__(self, outcomes: list[Outcome], before: Before | None) -> None:
        self.outcomes = outcomes
        self._before = before

    def record(self, step: Step, found: Outcome | Done) -> None:
        """Record what was found of a step."""
        done = found if isinstance(found, Done) else Done(found)
        self.outcomes.append(done.outcome)
        if done.before and self._before is not None:
            self._before.setdefault(step.key, done.before)

    def record_all(self, steps: Sequence[Step], found: Sequence[Outcome | Done]) -> None:
        """Record what was found of several steps."""
        for step, done in zip(steps, found, strict=True):
            self.record(step, done)


def merged(done: Mapping[_S, Outcome], before: Mapping[str, Step] = MappingProxyType({})) -> Done:
    """Return what was found of a step of several parts. `before`: what there was of them, by key; else as it is."""
    kinds = set(done.values())
    outcome = kinds.pop() if len(kinds) == 1 else Outcome.ADJUSTED
    if outcome is not Outcome.ADJUSTED:
        return Done(outcome)
    there = (part for part, found in done.items() if found is not Outcome.CREATED)
    return Done(outcome, tuple(before.get(part.key, part) for part in there))
