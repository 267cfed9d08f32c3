"""After each firewall commit of another program: repairs the shared rules at once, and compares all rules now and then.

kube-proxy commits every second, and each commit may be a ``nft flush ruleset``. The rules that networks share are few:
repairing them takes milliseconds. It is done after each commit, as long as it takes a small part of the time. A
comparison of all rules takes longer with each container. So the time between two of them doubles as long as they find
nothing. It is short again after a finding, or after a quiet time.
"""

import asyncio
from collections.abc import Awaitable, Callable

from netplug.engine.base_plan import BasePlan

SETTLE_S = 0.5
"""Time to let a burst of foreign changes (a firewall reload) end before looking."""
LONGEST_S = 15.0
"""Between two comparisons, while other programs commit all the time."""
_SHARE = 10
"""Repairing shared rules takes at most one part in so many of the time."""


class Commits:
    """Reacts to each commit of another program.

    Shared rules are repaired at once, all others by the next comparison. `word`: set at each commit. `look`:
    compares and repairs all rules, and tells whether it found something.
    """

    def __init__(self, word: asyncio.Event, base_plan: BasePlan, look: Callable[[], Awaitable[bool]]) -> None:
        self._word = word
        self._base_plan = base_plan
        self._look = look

    async def run(self) -> None:
        """React until cancelled."""
        clock = asyncio.get_running_loop().time
        pause_s, looked, due = SETTLE_S, clock() - LONGEST_S, None
        while True:
            await self._wait(due)
            now, lost = clock(), False
            if self._word.is_set():
                self._word.clear()
                if due is None:
                    due = max(now + SETTLE_S, looked + max(pause_s, self._base_plan.rest_s()))
                lost = await self._base_plan.hold()
            if lost or (due is not None and due <= now):
                found = await self._look() or lost
                quiet = clock() - looked > 2 * LONGEST_S
                pause_s = SETTLE_S if found or quiet else min(2 * pause_s, LONGEST_S)
                looked, due = clock(), None
            else:
                # The repair may have waited for a lock: this pause keeps its share of the time small.
                await asyncio.sleep(min((clock() - now) * (_SHARE - 1), SETTLE_S))

    async def _wait(self, due: float | None) -> None:
        try:
            async with asyncio.timeout_at(due):
                await self._word.wait()
        except TimeoutError:
            return
