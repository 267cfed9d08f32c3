"""Objects that another program changes back each time that they are repaired.

Two programs that both insist would go on for ever, and each repair costs time and moves packets. So after some repairs
in a row the pauses between them grow. All else is repaired as ever. `netplug diff`, events and metrics tell of it once.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from netplug.drivers.steps import Element, Hook, Step
from netplug.engine.conditions import Conditions, Difference

FREE = 10
"""Repairs in a row without a pause: a firewall that is loaded piece by piece takes some."""
RECOVERY_S = 5.0
"""Of so long that an object stayed as it is to be, one repair is forgotten."""
LONGEST_S = 60.0
"""Between two repairs of an object."""
_WORDS = (
    "another program changes it each time that it is repaired, so that is done once a minute at most; "
    "find that program (netplug events shows when it happens), and have it leave netplug's objects alone"
)


@dataclass(slots=True)
class _Case:
    """Repairs of an object: how many of late, when the last one was, and from when on the next one may be."""

    owner: str
    repairs: float
    repaired: float
    until: float


class Contests:
    """Counts repairs, and tells which objects rest. `clock`: in seconds."""

    def __init__(self, conditions: Conditions, clock: Callable[[], float]) -> None:
        self._conditions = conditions
        self._clock = clock
        self._cases: dict[str, _Case] = {}

    def repaired(self, found: Iterable[Difference]) -> list[Difference]:
        """Note what was repaired just now. Return that of it of which others have not changed all too often."""
        now, fresh = self._clock(), []
        for it in found:
            case = self._cases.setdefault(it.object, _Case(it.owner, 0.0, now, now))
            well_s = max(0.0, now - max(case.repaired, case.until))
            case.repairs = max(0.0, case.repairs - well_s / RECOVERY_S) + 1
            case.repaired, over = now, case.repairs - FREE
            case.until = now + min(2.0**over, LONGEST_S) if over >= 0 else now
            if over < 0:
                fresh.append(it)
        return fresh

    def report(self, different: Collection[str]) -> None:
        """Tell of the present cases, given the keys of all objects that differ now; forget those that are over."""
        now = self._clock()
        for key, case in list(self._cases.items()):
            well_s = now - max(case.repaired, case.until)
            if key not in different and well_s > RECOVERY_S * max(1.0, min(case.repairs, 2.0 * FREE)):
                del self._cases[key]
        self._conditions.report("contest", [Difference(it.owner, key, _WORDS) for key, it in self._contested()])

    def _contested(self) -> list[tuple[str, _Case]]:
        return [(key, case) for key, case in sorted(self._cases.items()) if case.repairs >= FREE]

    def concerns(self, key: str) -> bool:
        """Return whether the object of a step, by key, is changed back again and again."""
        case = self._cases.get(key)
        return case is not None and case.repairs >= FREE

    def rests(self, step: Step) -> bool:
        """Return whether a step is not to be repaired yet, or depends on a table that is not."""
        if not self._cases:
            return False
        now = self._clock()
        table = f"table/{step.table}" if isinstance(step, Element | Hook) else ""
        return any((case := self._cases.get(key)) is not None and now < case.until for key in (step.key, table))

    def due_s(self) -> float | None:
        """Return in how many seconds the next object may be repaired that rests now; None if none does."""
        now = self._clock()
        resting = [case.until for case in self._cases.values() if case.until > now]
        return min(resting) - now if resting else None

    def pardon(self) -> None:
        """Forget all: a user has it repaired, and may have ended the other program."""
        self._cases.clear()
