"""Fences: a transaction whose answer was lost cannot be committed later.

After a timeout the client does not know whether etcd committed its transaction. Worse, etcd may commit it later: a hung
member goes on and reads its socket buffer; TCP retransmits once the cable is plugged in again. So each transaction
has a fence: a key that must not exist when the transaction is committed. If the answer is lost, the client creates that
key before it reads or writes anything else. From then on, what the client reads is the final outcome.

Fences are put under a lease, which is longer than any request can be late.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from netplug.store.api import Compare

FENCES = "fences/"
LEASE_S = 3600
"""How long a fence stays: no hung member executes a request later than this."""
_MAX_PUTS = 100  # per transaction; etcd allows 128 operations


class Fences:
    """The fences of one store's transactions. `put`: writes records with these keys under a lease of `LEASE_S`."""

    def __init__(self, put: Callable[[Sequence[str]], Awaitable[None]]) -> None:
        self._put = put
        self._lost: set[str] = set()
        self._raising: asyncio.Task[None] | None = None

    def condition(self, txn: str) -> Compare:
        """Return the comparison that holds while the fence of transaction `txn` does not exist."""
        return Compare(FENCES + txn, 0)

    def lost(self, txn: str) -> None:
        """Record that the answer to transaction `txn` was lost, or that its caller was cancelled."""
        self._lost.add(txn)

    async def raised(self) -> None:
        """Return when no lost transaction can be committed any more.

        Raises:
            StoreError: etcd does not answer, or refuses.
        """
        while self._lost:
            if self._raising is None:
                self._raising = asyncio.create_task(self._raise())
                self._raising.add_done_callback(self._end)
            await asyncio.shield(self._raising)  # all callers share one request and its deadline

    def _end(self, task: asyncio.Task[None]) -> None:
        self._raising = None
        if not task.cancelled():
            task.exception()  # retrieved, although there may be no caller any more

    async def _raise(self) -> None:
        while txns := sorted(self._lost)[:_MAX_PUTS]:
            await self._put([FENCES + txn for txn in txns])
            self._lost.difference_update(txns)
