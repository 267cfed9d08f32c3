"""Which host has claimed which address, as the shared store says: what makes a record of an endpoint count.

One snapshot and its changes, as `View`, but watched apart from it, so a claim may be heard of after what it is for. Who
misses one asks the store (`look`).
"""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress

import structlog

from netplug.store.api import Compacted, Record, StoreError, Unreachable
from netplug.store.leases import LEASES
from netplug.store.restore_guard import MARKS, RestoreGuard

log = structlog.get_logger(__name__)

_RETRY_S = 0.5
_FEW = 10
"""Claims that are asked for one by one; of more all of their pool are read."""
_UNDER_WAY_S = 0.1


class Claimed:
    """`synced`: from the first snapshot on. `changed`: is told of the keys of claims that came, changed or went."""

    def __init__(self, store: RestoreGuard) -> None:
        self.synced = asyncio.Event()
        self.changed: Callable[[Collection[str]], None] = lambda _: None
        self._store = store
        self._holders: dict[str, tuple[str, int]] = {}
        self._heard = 0
        """All that happened before this revision was heard of."""
        self._news = asyncio.Event()

    def holder(self, key: str) -> str | None:
        """Return the id of the host that has a claim, by its key (`lease_key`).

        Empty for one of a network as a whole; None when nobody has it.
        """
        found = self._holders.get(key)
        return found[0] if found else None

    async def look(self, keys: Collection[str]) -> None:
        """Ask the store about claims of which more may have been written than was heard of.

        Raises:
            StoreError: it does not answer.
        """
        if len(keys) > _FEW:
            await self._hear(keys)
            for prefix in {key.rpartition("/")[0] for key in keys if key not in self._holders}:
                for found in (await self._store.range(f"{prefix}/"))[0]:
                    self._take_answer(found)
            return
        for key in keys:
            if (record := await self._store.get(key)) is not None:
                self._take_answer(record)

    async def _hear(self, keys: Collection[str]) -> None:
        """Wait a moment for claims: word of many that were written at once is under way."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_UNDER_WAY_S):
                while any(key not in self._holders for key in keys):
                    self._news.clear()
                    await self._news.wait()

    def _take_answer(self, record: Record) -> None:
        """Take what was asked for, unless word of its end came sooner."""
        if record.key in self._holders or record.revision >= self._heard:
            self._take(record)

    def _take(self, record: Record) -> None:
        holder = record.value.get("host")
        if record.revision >= self._holders.get(record.key, ("", 0))[1]:
            self._holders[record.key] = holder if isinstance(holder, str) else "", record.revision
            self._news.set()

    async def follow(self) -> None:
        """Keep up with the store until cancelled."""
        failures = 0
        while True:
            try:
                seen = self._store.seen
                marks, _ = await self._store.range(MARKS)
                records, revision = await self._store.range(LEASES)
                if self._store.is_older(marks, seen):  # all stays as it is, until who mends that has done so
                    await asyncio.sleep(_RETRY_S)
                    continue
                before, self._holders = self._holders, {}
                for record in records:
                    self._take(record)
                self._heard = revision
                self.synced.set()
                failures = 0
                self.changed({key for key, _ in before.items() ^ self._holders.items()})
                async for event in self._store.watch(LEASES, revision):
                    if event.record is not None:
                        self._take(event.record)
                    elif event.revision > self._holders.get(event.key, ("", 0))[1]:
                        self._holders.pop(event.key, None)
                    self._heard = event.revision
                    self.changed((event.key,))
                break  # the store is closed
            except Compacted as exc:
                log.debug("claims.read_anew", reason=str(exc))
            except StoreError as exc:
                level = log.debug if failures or isinstance(exc, Unreachable) else log.warning
                level("claims.unreachable", reason=str(exc))
                failures += 1
                await asyncio.sleep(_RETRY_S)
