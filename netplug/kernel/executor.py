"""Applies, reverts and compares plans.

The executor does not depend on types of steps, except for the order of published ports. It records what it did, so
that it can undo it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import structlog

from netplug.drivers import port_ranges
from netplug.drivers.plan import Plan
from netplug.drivers.steps import Flows, HostPort, Relay, Step
from netplug.kernel.api import Before, Drift, Kernel, Outcome, StepError
from netplug.tasks.uncancellable import uncancellable

log = structlog.get_logger(__name__)


class Executor:
    """Executes plans on a kernel. `rests`: tells whether a step is not to be mended yet.

    `refused`: why the objects of steps could not be mended, by key; until they are, or are removed. `mended`: keys of
    those that were made or changed by `mend`; the caller clears it.
    """

    def __init__(self, kernel: Kernel, rests: Callable[[Step], bool] = lambda _: False) -> None:
        self._kernel = kernel
        self._rests = rests
        self.refused: dict[str, str] = {}
        self.mended: set[str] = set()

    async def apply(self, plan: Plan, left: list[Step] | None = None) -> Mapping[str, Outcome]:
        """Apply a plan and return what was found of each step, by key; of equal keys the first.

        On any exception, cancellation too, what this very call created is removed again, in reverse and to the end, and
        what it adjusted is put back where it can be (`Kernel.ensure`), before the exception goes on. A failure of that
        is attached to it as a note, and is in the log; `left` is given the steps of which some may still be there then.

        Raises:
            StepError: with the step that failed.
        """
        steps = arrange(plan.steps)
        outcomes: list[Outcome] = []
        before: Before = {}
        try:
            await self._kernel.ensure(steps, outcomes, before)
        except BaseException as error:
            created = list(_created(steps, outcomes, before))
            await uncancellable(self._undo_after(error, created, before, left))
            raise
        self._forget_refusals(steps)
        found: dict[str, Outcome] = {}
        for step, outcome in zip(steps, outcomes, strict=True):
            found.setdefault(step.key, outcome)
        log.debug("plan.applied", steps=found)
        return found

    async def _undo_after(
        self, error: BaseException, created: Sequence[Step], before: Before, left: list[Step] | None
    ) -> None:
        try:
            await self._undo(created, before)
        except Exception as failure:  # noqa: BLE001 - the first error is what the caller gets
            log.error("plan.undo_failed", cause=str(error), error=_flat(failure))  # noqa: TRY400
            error.add_note(f"and it could not all be undone: {_flat(failure)}")
            if left is not None:
                left += created

    async def _undo(self, created: Sequence[Step], before: Before) -> None:
        made = set(port_ranges.keys(created))
        try:
            await self._kernel.remove(arrange(created, reverting=True))
        finally:
            if spared := [step for steps in before.values() for step in steps if step.key not in made]:
                await self._kernel.ensure(arrange(spared))

    async def mend(self, plan: Plan, used: set[str] | None = None) -> None:
        """Bring about what can be of a plan that was applied before; what one step lacks keeps no other from it.

        `used`: is given the keys of steps whose objects exist and are not ours.

        Raises:
            ExceptionGroup: of `StepError`; all other steps are as they should be.
        """
        errors: list[StepError] = []
        steps = [step for step in plan if not self._rests(step)]
        await self._mend(arrange(steps), errors, set() if used is None else used)
        if errors:
            raise ExceptionGroup("some objects could not be mended", errors)

    async def _mend(self, steps: Sequence[Step], errors: list[StepError], used: set[str]) -> None:
        """Apply steps, without those that fail alone. Each of these costs as many tries as halving the rest takes.

        What is done together fails together, so the step that an error names need not be the one at fault.
        """
        outcomes: list[Outcome] = []
        try:
            await self._kernel.ensure(steps, outcomes)
        except StepError as error:
            left = steps[len(outcomes) :]
            if len(left) == 1:
                errors.append(error)
                self.refused[left[0].key] = str(error)
                return
            middle = len(left) // 2
            await self._mend(left[:middle], errors, used)
            await self._mend(left[middle:], errors, used)
        else:
            self._forget_refusals(steps)
        finally:
            for step, outcome in zip(steps, outcomes, strict=False):
                if outcome is Outcome.USED:
                    used.add(step.key)
                elif outcome is not Outcome.EQUAL:
                    self.mended.add(step.key)

    async def revert(self, plan: Plan) -> None:
        """Remove a plan, in reverse. What is absent is no failure; goes on after failures.

        Raises:
            ExceptionGroup: of `StepError`.
        """
        self._forget_refusals(plan)
        await self._kernel.remove(arrange(plan.steps, reverting=True))
        log.debug("plan.reverted", steps=[step.key for step in plan])

    def _forget_refusals(self, steps: Iterable[Step]) -> None:
        for step in steps if self.refused else ():
            self.refused.pop(step.key, None)

    async def drift(self, plan: Plan) -> tuple[Drift, ...]:
        """Return the steps that are missing or differ, in order."""
        return tuple(await self._kernel.drift(plan.steps))


def arrange(steps: Sequence[Step], *, reverting: bool = False) -> tuple[Step, ...]:
    """Return the steps in an order in which the kernel can take more of them at once.

    Several published ports follow one another as (port, element, flows) each. Of such a stretch first all ports are
    reserved, then all led, then the old flows dropped, with those that slipped in meanwhile. When reverting, first
    nothing leads there any more, and the flows go after that. So of two equal `Flows` steps one does nothing that the
    other does not, and it is left out: looking through the connection table takes longer than all the rest. Flows of
    all ports are led by rules, and are dropped when these are there, or gone.
    """
    result: list[Step] = []
    stretch: list[Step] = []
    led = [step for step in steps if isinstance(step, Flows) and not step.port]
    for step in reversed(steps) if reverting else steps:
        if step in led:
            continue
        if port_ranges.is_published(step):
            stretch.append(step)
        else:
            result += _stretch(stretch, reverting=reverting)
            stretch = []
            result.append(step)
    return (*result, *_stretch(stretch, reverting=reverting), *dict.fromkeys(led))


def _stretch(steps: list[Step], *, reverting: bool) -> list[Step]:
    ports = [step for step in steps if isinstance(step, HostPort)]
    forwards = [step for step in steps if port_ranges.leads(step)]
    relays = [step for step in steps if isinstance(step, Relay)]
    every = {step.key: step for step in steps if isinstance(step, Flows)}
    flows = sorted(every.values(), key=lambda step: (step.proto, step.address.version))
    return [*relays, *forwards, *flows, *ports] if reverting else [*ports, *forwards, *flows, *relays]


def _created(steps: Sequence[Step], outcomes: Sequence[Outcome], before: Before) -> Iterator[Step]:
    """Yield what was created: steps, and those parts of an adjusted one that were not there."""
    made: set[str] = set()
    for step, outcome in zip(steps, outcomes, strict=False):
        if outcome is Outcome.CREATED:
            made.update(port_ranges.keys((step,)))
            yield step
        elif outcome is Outcome.ADJUSTED and step.key in before:
            there = {part.key for part in before[step.key]} - made
            yield from (part for part in port_ranges.each(step) if part.key not in there)


def _flat(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_flat(item) for item in error.exceptions)
    return str(error)
