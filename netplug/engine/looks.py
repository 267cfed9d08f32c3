"""What a comparison of kernel and records has found."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from netplug.drivers import port_ranges
from netplug.drivers.plan import Plan
from netplug.drivers.steps import Element, Step
from netplug.engine.conditions import Difference


@dataclass(frozen=True, slots=True)
class Look:
    """The result of a comparison. `drifted`: differences by step. `unknown`: marked objects without a record."""

    differences: list[Difference]
    drifted: Mapping[Step, str]
    unknown: Sequence[Step]

    def without(self, steps: Iterable[Step]) -> "Look":
        """Return what is left of it without some steps that drifted."""
        gone = set(steps)
        keys = {step.key for step in gone}
        kept = [it for it in self.differences if it.object not in keys]
        return Look(kept, {step: what for step, what in self.drifted.items() if step not in gone}, self.unknown)

    def concerns(self, plan: Plan) -> bool:
        """Whether any step of a plan drifted."""
        return not self.drifted.keys().isdisjoint(plan)

    def of(self, plan: Plan) -> list[Step]:
        """Return the steps of a plan that drifted."""
        return [step for step in plan if step in self.drifted]


def owners_of(plans: Iterable[tuple[str, Plan]]) -> dict[Step, str]:
    """Return whose each step is; of equal ones, the last plan's owner."""
    return {step: owner for owner, plan in plans for step in plan}


def unknown_of(owned: Sequence[Step], known: Mapping[Step, str], changing: frozenset[str]) -> list[Step]:
    """Return the steps of objects that are in no plan, and that nobody is changing."""
    keys = {*port_ranges.keys(known), *changing}
    return [step for step in owned if step.key not in keys]


def names_of(step: Step) -> set[str]:
    """Return the names of links and addresses that identify a step's object."""
    if isinstance(step, Element):
        return {step.item, *step.item.split(" . "), step.data}
    return {value for value in (getattr(step, "name", ""), getattr(step, "link", "")) if isinstance(value, str)}
