"""After foreign changes to links, and at intervals: compares all, and repairs it.

Each change is looked at soon. Comparisons that find nothing have an allowance of processor time. A program that changes
a link of ours all the time, when nothing is to repair, uses it up: then they take a small part of a processor, and what
others change meanwhile waits for seconds at most.
"""

import asyncio
from collections.abc import Awaitable, Callable
from time import process_time

from netplug.engine.allowance import Allowance
from netplug.engine.base_plan import BasePlan
from netplug.engine.contests import Contests
from netplug.engine.happenings import because

INTERVAL_S = 30.0
"""Interval of comparisons. Those of which the kernel tells begin `SETTLE_S` later, of firewall rules at once."""
REST_SHARE, LONGEST_INTERVAL_S = 0.003, 300.0
"""Part of a processor that comparisons at intervals take at most, and how long an interval becomes for that: each one
enters the sandboxes of all endpoints that have a namespace of their own (0.7 ms). Nearly all changes are told of."""
SETTLE_S = 0.1
"""Time to let a burst of foreign changes to links end."""
SHARE = 20
"""Comparisons that find nothing take at most one part in so many of a processor in the long run."""


class LinkChanges:
    """Reacts to foreign changes to links. `word`: set at each of them. `look`: compares and repairs all.

    `look` tells whether it repaired something.
    """

    def __init__(
        self, word: asyncio.Event, base_plan: BasePlan, contests: Contests, look: Callable[[], Awaitable[bool]]
    ) -> None:
        self._word = word
        self._base_plan = base_plan
        self._contests = contests
        self._look = look
        self._spent_s = 0.0
        """Processor time of the last comparison."""

    async def run(self) -> None:
        """React until cancelled."""
        clock, ready = asyncio.get_running_loop().time, 0.0
        allowance = Allowance(clock(), SHARE)
        while True:
            cause = "another program changed a link"
            try:
                async with asyncio.timeout(self._due_s()):
                    await self._word.wait()
                await asyncio.sleep(max(SETTLE_S, ready - clock()))
            except TimeoutError:
                cause = "a comparison at intervals found it"
            self._word.clear()
            before = process_time()
            with because(cause):
                found = await self._look()
            self._spent_s = process_time() - before
            ready = 0.0 if found else clock() + allowance.spend(clock(), self._spent_s)

    def _due_s(self) -> float:
        """Return in how many seconds to compare all, whatever the kernel tells."""
        spare_s = min(self._spent_s / REST_SHARE, LONGEST_INTERVAL_S)
        interval_s, resting_s = max(INTERVAL_S, spare_s, self._base_plan.rest_s()), self._contests.due_s()
        return interval_s if resting_s is None else min(interval_s, max(resting_s, SETTLE_S))
