"""After foreign firewall commits: repairs what was changed of ours at once, and compares all rules now and then.

kube-proxy commits every second, fail2ban in bursts, and each commit may be a ``nft flush ruleset``. The rules that
networks share are few: repairing them takes milliseconds. It is done right after a commit, but at most once a second
while commits go on. A comparison of all rules takes longer with each container. So the time between two of them doubles
as long as they find nothing. It is short again after a finding, or after a quiet time. Others have no business in our
tables: after a commit that changes these, all rules are compared at once.
"""

import asyncio
from collections.abc import Awaitable, Callable
from time import process_time

from netplug.engine.allowance import Allowance
from netplug.engine.base_plan import BasePlan
from netplug.engine.happenings import because
from netplug.engine.link_changes import SHARE

SETTLE_S = 0.3
"""Time to let a burst of foreign changes (a firewall reload) end before looking."""
LONGEST_S = 15.0
"""Between two comparisons, while other programs commit all the time."""
HOLD_S = 0.5
"""Between two repairs of shared rules, while other programs commit all the time; half of it after a finding."""
_SHARE = 10
"""Repairing shared rules takes at most one part in so many of the time in the long run."""


class Commits:
    """Reacts to the commits of other programs.

    Shared rules are repaired at once, all others by the next comparison. `word`: set at each commit. `ours`: set before
    it if the commit changed tables of ours. `look`: compares and repairs all rules; tells whether it found something.
    """

    def __init__(
        self, word: asyncio.Event, ours: asyncio.Event, base_plan: BasePlan, look: Callable[[], Awaitable[bool]]
    ) -> None:
        self._word = word
        self._ours = ours
        self._base_plan = base_plan
        self._look = look
        self._clock = asyncio.get_running_loop().time
        self._held = Allowance(self._clock(), _SHARE)
        self._looked = Allowance(self._clock(), SHARE)
        self._ready = 0.0
        """From when on the shared rules may be repaired again."""
        self._eager = 0.0
        """From when on all may be compared right after a commit."""

    async def run(self) -> None:
        """React until cancelled."""
        with because("another program changed the firewall"):
            await self._react()

    async def _react(self) -> None:
        clock = self._clock
        pause_s, looked, due = SETTLE_S, clock() - LONGEST_S, None
        while True:
            await self._wait(due)
            if due is None:
                due = max(clock() + SETTLE_S, looked + max(pause_s, self._base_plan.rest_s()))
            if self._ours.is_set():
                due = min(due, max(clock(), self._eager))
            await asyncio.sleep(min(self._ready, due) - clock())
            lost = self._word.is_set() and self._ready <= clock() and await self._hold()
            if lost or due <= clock():
                self._word.clear()
                self._ours.clear()
                found = await self._compare() or lost
                quiet = clock() - looked > 2 * LONGEST_S
                pause_s = SETTLE_S if found or quiet else min(2 * pause_s, LONGEST_S)
                looked, due = clock(), None

    async def _compare(self) -> bool:
        before = process_time()
        found = await self._look()
        if not found:
            self._eager = self._clock() + self._looked.spend(self._clock(), process_time() - before)
        return found

    async def _hold(self) -> bool:
        """Repair the shared rules, and return whether something had been lost."""
        self._word.clear()
        started = self._clock()
        lost = await self._base_plan.hold()
        # The repair may have waited for a lock: its share of the time stays small.
        wait_s = self._held.spend(self._clock(), self._clock() - started)
        self._ready = max(self._clock() + wait_s, started + (HOLD_S / 2 if lost else HOLD_S))
        return lost

    async def _wait(self, due: float | None) -> None:
        try:
            async with asyncio.timeout_at(due):
                await self._word.wait()
        except TimeoutError:
            return
