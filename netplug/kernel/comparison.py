"""Compares steps with a survey: in the thread that looks, or in the event loop, as their handlers want it."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import structlog

from netplug.drivers.steps import Step
from netplug.kernel.api import Drift, Owned
from netplug.kernel.handlers import Handler, Handlers
from netplug.kernel.netlink.connection import Netlink
from netplug.kernel.survey import Netns, Survey

log = structlog.get_logger(__name__)


class Compared:
    """What differs, and what bears our mark."""

    def __init__(self, survey: Survey, handlers: Handlers) -> None:
        self._survey = survey
        self._handlers = handlers
        self._drifts: dict[int, Drift] = {}
        self._owned: dict[int, list[Step]] = {}

    def look(self, nl: Netlink) -> None:
        """Look at the namespaces, and compare what may be compared in a thread: sandbox by sandbox. Blocks."""
        self._survey.look(nl)
        here: defaultdict[tuple[Netns, ...], list[int]] = defaultdict(list)
        later: set[Netns] = set()
        for number, step in enumerate(self._survey.steps):
            handler = self._handlers.of(step)
            if handler.in_thread:
                here[handler.namespaces(step)].append(number)
            else:
                later.update(handler.namespaces(step))
        self._survey.look_inside(later)
        for namespaces, numbers in here.items():
            with self._survey.inside(namespaces):
                self._compare(numbers)
        self._list_owned(in_thread=True)

    def compare_in_loop(self) -> None:
        """Compare the rest, which the event loop changes."""
        steps = enumerate(self._survey.steps)
        self._compare(number for number, step in steps if not self._handlers.of(step).in_thread)
        self._list_owned(in_thread=False)

    def _compare(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            step = self._survey.steps[number]
            if what := self._drift(step, self._handlers.of(step)):
                self._drifts[number] = Drift(step, what)

    def _list_owned(self, *, in_thread: bool) -> None:
        for number, handler in enumerate(self._handlers.all()):
            if handler.in_thread is in_thread:
                self._owned[number] = self._found(handler)

    def _drift(self, step: Step, handler: Handler[Any]) -> str:
        try:
            return handler.drift(step, self._survey)
        except Exception as error:
            if handler not in self._handlers.of_packages:
                raise
            log.exception("step.not_compared", step=step.key)
            return f"cannot be compared: {error}"

    def _found(self, handler: Handler[Any]) -> list[Step]:
        try:
            return sorted(handler.owned(self._survey), key=lambda step: step.key)
        except Exception:
            if handler not in self._handlers.of_packages:
                raise
            log.exception("steps.not_listed", handler=type(handler).__name__)
            return []

    def drifts(self) -> tuple[Drift, ...]:
        """Return the steps that are missing or differ, in order."""
        return tuple(self._drifts[number] for number in sorted(self._drifts))

    def owned(self) -> Owned:
        """Return what bears our mark, in an order of making."""
        return Owned(tuple(step for number in sorted(self._owned) for step in self._owned[number]))
