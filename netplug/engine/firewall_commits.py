"""Others changed the firewall: what all networks share is looked at at once, all of it less and less often.

kube-proxy commits every second, and each commit may be a ``nft flush ruleset``. What networks share is few rules, that
stand among those of others: to see to them takes some milliseconds, and it is done for each commit, as long as that is
a small part of the time. To look at everything takes longer with each container. So the time between two such looks
doubles each time that nothing was found, and starts anew when something was, or after a time of peace.
"""

import asyncio
from collections.abc import Awaitable, Callable

from netplug.engine.base_plan import BasePlan

SETTLE_S = 0.5
"""Time to let a burst of foreign changes (a firewall reload) end before looking."""
LONGEST_S = 15.0
"""Between two looks, while others commit all the time."""
_SHARE = 10
"""Of the time, at most one part in so many is given to what networks share."""


class Commits:
    """Reacts to each commit of others.

    `word`: set when there was one. `look`: looks at everything, mends it, and tells whether there was something.
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
                # It may have waited for others that change the same.
                await asyncio.sleep(min((clock() - now) * (_SHARE - 1), SETTLE_S))

    async def _wait(self, due: float | None) -> None:
        try:
            async with asyncio.timeout_at(due):
                await self._word.wait()
        except TimeoutError:
            return
