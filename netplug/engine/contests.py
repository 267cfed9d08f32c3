"""Objects that another program changes back each time that they are repaired.

Two programs that both insist would go on for ever, and each repair costs time and moves packets. So after some repairs
in a row, each of what changed right after the one before, the pauses between them grow. All else is repaired as ever.
`netplug diff`, events and metrics tell of it once.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from math import ceil, log2

from netplug.drivers.steps import Element, Hook, Step
from netplug.engine.conditions import Conditions, Difference

CONTEST = "contest"
"""The source of what is told of them."""
FREE = 10
"""Repairs in a row without a pause: a firewall that is loaded piece by piece takes some."""
RECOVERY_S = 1.0
"""Of so long that an object stayed as it is to be, one repair is forgotten."""
SHARE = 20
"""Repairs of what changes again and again take at most one part in so many of a processor."""
LONGEST_RECOVERY_S = 30.0
LONGEST_S = 15.0
"""Between two repairs of an object, unless they take long."""
_WORDS = (
    "another program changes it each time that it is repaired, so that is done only now and then; "
    "find that program (netplug events shows when it happens), and have it leave netplug's objects alone"
)


@dataclass(slots=True)
class _Case:
    """Repairs of an object: how many of late, when the last one was, and from when on the next one may be.

    `changed`: when it was first seen that it differs again; None, it does not. `paused`: whether the pause was needed.
    """

    owner: str
    repairs: float
    repaired: float
    until: float
    changed: float | None = None
    paused: bool = False

    def count(self, now: float, recovery_s: float) -> float:
        """Return the number of repairs, without those that are forgotten since it stayed as it was to be."""
        well_s = (now if self.changed is None else self.changed) - self.repaired
        return max(0.0, self.repairs - well_s / recovery_s)

    def is_well(self, now: float, recovery_s: float) -> None:
        """Note that it is as it is to be, be it by the other program: peace begins, or goes on."""
        if self.changed is not None:
            self.repairs, self.repaired, self.changed = self.count(now, recovery_s), now, None


class Contests:
    """Counts repairs, and tells which objects rest. `clock`: in seconds.

    What is changed again long after its repair is no contest, however often: it is repaired at once, for ever.
    """

    def __init__(self, conditions: Conditions, clock: Callable[[], float]) -> None:
        self._conditions = conditions
        self._clock = clock
        self._cases: dict[str, _Case] = {}
        self._recovery_s = RECOVERY_S

    def spent(self, repair_s: float) -> None:
        """Note what the last repair took of a processor: the longer, the longer is what counts as peace."""
        self._recovery_s = min(max(RECOVERY_S, SHARE * repair_s), LONGEST_RECOVERY_S)

    def repaired(self, found: Iterable[Difference]) -> list[Difference]:
        """Note what was repaired just now. Return that of it of which others have not changed all too often."""
        now, fresh = self._clock(), []
        for it in found:
            case = self._cases.setdefault(it.object, _Case(it.owner, 0.0, now, now))
            pause_s = max(LONGEST_S, self._recovery_s)
            # No more than the longest pause takes, so that it is over soon when the other program has ended.
            most = FREE + ceil(log2(pause_s))
            case.repairs = min(case.count(now, self._recovery_s) + 1, most)
            case.repaired, case.changed, over = now, None, case.repairs - FREE
            case.paused = over >= 0
            case.until = now + min(max(2.0**over, self._recovery_s), pause_s) if case.paused else now
            if not case.paused:
                fresh.append(it)
        return fresh

    def report(self, different: Collection[str]) -> None:
        """Tell of the present cases, given the keys of all objects that differ now; forget those that are over."""
        now = self._clock()
        for key, case in list(self._cases.items()):
            if key in different:
                case.changed = now if case.changed is None else case.changed
                continue
            case.is_well(now, self._recovery_s)
            if not case.count(now, self._recovery_s):
                del self._cases[key]
        self._conditions.report(CONTEST, [Difference(it.owner, key, _WORDS) for key, it in self._contested()])

    def _contested(self) -> list[tuple[str, _Case]]:
        return [(key, case) for key, case in sorted(self._cases.items()) if self._insists(case)]

    def _insists(self, case: _Case) -> bool:
        """Return whether the last repair was one too many, and no peace since then is long enough."""
        return case.paused and case.count(self._clock(), self._recovery_s) > FREE - 1

    def concerns(self, key: str) -> bool:
        """Return whether the object of a step, by key, is changed back again and again."""
        case = self._cases.get(key)
        return case is not None and self._insists(case)

    def rests(self, step: Step) -> bool:
        """Return whether a step is not to be repaired yet, or depends on a table that is not."""
        if not self._cases:
            return False
        table = f"table/{step.table}" if isinstance(step, Element | Hook) else ""
        return any((case := self._cases.get(key)) is not None and self._rests(case) for key in (step.key, table))

    def _rests(self, case: _Case) -> bool:
        return self._clock() < case.until and self._insists(case)

    def due_s(self) -> float | None:
        """Return in how many seconds to look again for what rests or is to be over; None if nothing does."""
        now, due = self._clock(), list[float]()
        for _, case in self._contested():
            if case.changed is None:
                peace = case.repaired + (case.repairs - FREE + 1) * self._recovery_s
                due.append(max(0.0, peace - now))
            elif case.until > now:
                due.append(case.until - now)
        return min(due, default=None)

    def pardon(self) -> None:
        """Forget all: a user has it repaired, and may have ended the other program."""
        self._cases.clear()
