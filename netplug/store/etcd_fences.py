"""Requests whose answers were lost, kept from being done later.

Who has waited in vain for an answer does not know whether its transaction has been done, and what is worse, it may be
done later: a member that hung goes on with what its kernel has taken for it, and a cable that was pulled lets through
what the kernel sends again. So each transaction holds only while its fence is down, and before anything else is read
or written, the fence of one whose answer was lost is raised. From then on what the store holds is the outcome.

A fence is a record, absent while it is down. Raised ones go with a lease: no request is that late.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from .api import Compare

FENCES = "fences/"
LATEST_S = 3600
"""For so long a hung member, once it goes on, may still do what it was asked."""
_MOST_PUTS = 100  # of one transaction


class Fences:
    """Of the transactions of one store. `put`: writes records at these keys, on a lease of `LATEST_S`."""

    def __init__(self, put: Callable[[Sequence[str]], Awaitable[None]]) -> None:
        self._put = put
        self._lost: set[str] = set()
        self._raising: asyncio.Task[None] | None = None

    def condition(self, txn: str) -> Compare:
        """Return what holds while the fence of a transaction is down."""
        return Compare(FENCES + txn, 0)

    def lost(self, txn: str) -> None:
        """Note that an answer did not come, or is not waited for."""
        self._lost.add(txn)

    async def raised(self) -> None:
        """Return when nothing that was lost can be done any more.

        Raises:
            StoreError: the store does not answer, or refuses.
        """
        while self._lost:
            if self._raising is None:
                self._raising = asyncio.create_task(self._raise())
                self._raising.add_done_callback(self._end)
            await asyncio.shield(self._raising)  # all who wait get the one answer, within the one deadline

    def _end(self, task: asyncio.Task[None]) -> None:
        self._raising = None
        if not task.cancelled():
            task.exception()  # also if nobody waits any more

    async def _raise(self) -> None:
        while txns := sorted(self._lost)[:_MOST_PUTS]:
            await self._put([FENCES + txn for txn in txns])
            self._lost.difference_update(txns)
