"""Handlers of steps: each knows one type, and this registry alone tells which.

A new type of step is a dataclass, a handler, and one line: in `netplug.kernel.linux`, or in the entry point of another
package (`netplug.daemon.step_packages`). A handler says in which lane its steps are done. Neighbouring steps of equal
lanes are handed over together, so that they take one thread switch, one transaction or one message.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

from netplug.drivers.step_types import BUILT_IN
from netplug.drivers.steps import Step
from netplug.errors import NetplugError
from netplug.kernel.api import Done, Outcome, StepError
from netplug.kernel.progress import Progress, naming
from netplug.tasks.uncancellable import uncancellable

if TYPE_CHECKING:
    from netplug.kernel.context import Context
    from netplug.kernel.survey import Netns, Survey

S = TypeVar("S", bound=Step)

_YIELD_EVERY = 64
"""Steps after which other tasks run."""


class Lane(Protocol):
    """Where steps are done. What one lane does of a plan is done in order."""

    async def ensure(self, steps: Sequence[Step], progress: Progress) -> None:
        """Apply steps, in order, and record what was found of each.

        Raises:
            StepError: with the step that failed; those before it stay as they are.
        """

    async def remove(self, steps: Sequence[Step]) -> list[Exception]:
        """Remove what steps name, in order, and return what failed."""


class Handler(ABC, Generic[S]):
    """What knows one type of step. Start from `RequestHandler`, `LoopHandler` or `BatchHandler`.

    `in_thread`: `drift` and `owned` run in a thread; else in the event loop, as they look at what the loop changes.
    """

    in_thread: ClassVar[bool] = True

    @abstractmethod
    def lane(self, step: S) -> Lane:
        """Return where this step is done."""

    @abstractmethod
    def drift(self, step: S, survey: "Survey") -> str:
        """Say how the kernel differs from a step, `MISSING` if it is not there; empty when it does not."""

    def owned(self, survey: "Survey") -> Iterable[Step]:  # noqa: ARG002 - for subclasses
        """Return what bears our mark, as steps that are enough to remove it. Types of one table may share a handler."""
        return ()

    def namespaces(self, step: S) -> "tuple[Netns, ...]":  # noqa: ARG002
        """Return the sandboxes that `drift` looks at."""
        return ()

    def note_existing(self, step: S) -> None:
        """Record that an earlier daemon may have created a step's object, so that its removal is noticed."""


class LoopHandler(Handler[S]):
    """A handler whose work takes microseconds, and is done in the event loop, one step after the other."""

    def __init__(self, context: "Context") -> None:
        self._lane = context.loop

    def lane(self, step: S) -> Lane:  # noqa: ARG002
        """Return the event loop."""
        return self._lane

    @abstractmethod
    def ensure(self, step: S) -> Outcome | Done:
        """Apply a step."""

    @abstractmethod
    def remove(self, step: S) -> None:
        """Remove what a step names; absent is success."""


class BatchHandler(Handler[S]):
    """A handler that does several steps at once, or that waits for others."""

    @abstractmethod
    def batch(self, step: S) -> Hashable:
        """Return what neighbouring steps must share to be done at once."""

    @abstractmethod
    async def ensure(self, steps: Sequence[S]) -> Sequence[Outcome | Done]:
        """Apply steps, all or none, and return what was found of each. Is not cancelled."""

    @abstractmethod
    async def remove(self, steps: Sequence[S]) -> None:
        """Remove what steps name; absent is success."""

    def lane(self, step: S) -> Lane:
        """Return the batch."""
        return Batch(self, self.batch(step))


@dataclass(frozen=True, slots=True)
class Batch:
    """The lane of steps that a `BatchHandler` does at once."""

    handler: BatchHandler[Any]
    key: Hashable

    async def ensure(self, steps: Sequence[Step], progress: Progress) -> None:
        """Apply steps; see `Lane`."""
        with naming(steps[0]):
            await uncancellable(self.handler.ensure(steps), partial(progress.record_all, steps))

    async def remove(self, steps: Sequence[Step]) -> list[Exception]:
        """Remove steps; see `Lane`."""
        try:
            with naming(steps[0]):
                await self.handler.remove(steps)
        except StepError as error:
            return [error]
        return []


Factory: TypeAlias = "Callable[[Context], Handler[Any]]"
"""Makes the handler of one kernel."""


class Handlers:
    """The handlers of one kernel by type of step, in an order in which what they know can be made.

    `of_packages`: those that other packages bring; their faults stop nothing else.
    """

    def __init__(self) -> None:
        self._handlers: dict[type[Step], Handler[Any]] = {}
        self.of_packages: set[Handler[Any]] = set()

    def add(self, cls: type[Step], handler: Handler[Any]) -> None:
        """Add the handler of a type.

        Raises:
            NetplugError: "exists", the type has one.
        """
        if cls in self._handlers:
            raise NetplugError("exists", f"step type {cls.__name__!r} has a handler, which cannot be replaced")
        self._handlers[cls] = handler
        if cls not in BUILT_IN:
            self.of_packages.add(handler)

    def make(self, factories: Mapping[type[Step], Factory], context: "Context") -> None:
        """Make the handlers of types, and add them; types of one factory share a handler."""
        handlers: dict[Factory, Handler[Any]] = {}
        for cls, factory in factories.items():
            if factory not in handlers:
                handlers[factory] = factory(context)
            self.add(cls, handlers[factory])

    def require(self, types: Iterable[type[Step]]) -> None:
        """Refuse types that have no handler.

        Raises:
            NetplugError: "invalid".
        """
        for cls in types:
            if cls not in self._handlers:
                raise NetplugError("invalid", _unknown(cls), hint=_HINT)

    def of(self, step: Step) -> Handler[Any]:
        """Return the handler of a step.

        Raises:
            StepError: "invalid", there is none.
        """
        try:
            return self._handlers[type(step)]
        except KeyError:
            raise StepError("invalid", step, _unknown(type(step)), hint=_HINT) from None

    def split(self, steps: Iterable[Step]) -> tuple[list[Step], list[StepError]]:
        """Return the steps that have a handler, and for each of the others what `of` says."""
        known: list[Step] = []
        unknown: list[StepError] = []
        for step in steps:
            try:
                self.of(step)
            except StepError as error:
                unknown.append(error)
            else:
                known.append(step)
        return known, unknown

    def lanes(self, steps: Iterable[Step]) -> Iterator[tuple[Lane, list[Step]]]:
        """Return the steps in order, cut where the lane changes."""
        for lane, run in groupby(steps, lambda step: self.of(step).lane(step)):
            yield lane, list(run)

    def all(self) -> list[Handler[Any]]:
        """Return all handlers, each once."""
        return list(dict.fromkeys(self._handlers.values()))


_HINT = "install the package that brings it, in a version that names it in the entry-point group netplug.steps"


def _unknown(cls: type[Step]) -> str:
    return f"step type {cls.__name__!r} of {cls.__module__} has no handler"


class LoopLane:
    """Does the steps of `LoopHandler`s."""

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers

    async def ensure(self, steps: Sequence[Step], progress: Progress) -> None:
        """Apply steps; see `Lane`."""
        for number, step in enumerate(steps):
            with naming(step):
                # There may be thousands; a task each would take longer than the work.
                progress.record(step, self._handler(step).ensure(step))
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)

    async def remove(self, steps: Sequence[Step]) -> list[Exception]:
        """Remove steps; see `Lane`."""
        errors: list[Exception] = []
        for number, step in enumerate(steps, 1):
            try:
                with naming(step):
                    self._handler(step).remove(step)
            except StepError as error:
                errors.append(error)
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
        return errors

    def _handler(self, step: Step) -> LoopHandler[Any]:
        handler = self._handlers.of(step)
        assert isinstance(handler, LoopHandler)  # noqa: S101 - it named this lane
        return handler
