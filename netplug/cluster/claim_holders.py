"""Which host holds which address, according to the shared store. A peer is accepted only with its claims.

A snapshot and its changes, as `View`, but watched separately; so an endpoint may arrive before its claim. `refresh`
reads missing claims from the store.
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
_MAX_SINGLE_READS = 10
"""Largest number of claims that are read one by one; for more, their whole pools are read."""
_EVENT_WAIT_S = 0.1


class ClaimHolders:
    """The holders of all claims.

    Attributes:
        synced: set from the first snapshot on.
        changed: called with the keys of claims that were added, changed or deleted.
    """

    def __init__(self, store: RestoreGuard) -> None:
        self.synced = asyncio.Event()
        self.changed: Callable[[Collection[str]], None] = lambda _: None
        self._store = store
        self._holders: dict[str, tuple[str, int]] = {}
        self._applied_revision = 0
        """The revision up to which events have arrived."""
        self._generation = store.generation
        self._updated = asyncio.Event()

    def holder(self, key: str) -> str | None:
        """Return the id of the host that holds a claim, by its key (`lease_key`).

        Empty for the network's own addresses; None if there is no such claim.
        """
        found = self._holders.get(key)
        return found[0] if found else None

    async def refresh(self, keys: Collection[str]) -> None:
        """Read claims from the store whose events may not have arrived yet.

        Raises:
            StoreError: the store does not answer.
        """
        if len(keys) > _MAX_SINGLE_READS:
            await self._wait_for_events(keys)
            for prefix in {key.rpartition("/")[0] for key in keys if key not in self._holders}:
                for found in (await self._store.range(f"{prefix}/"))[0]:
                    self._apply_read(found)
            return
        for key in keys:
            if (record := await self._store.get(key)) is not None:
                self._apply_read(record)

    async def _wait_for_events(self, keys: Collection[str]) -> None:
        """Wait a moment for events of claims: those of many that were written at once arrive soon."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_EVENT_WAIT_S):
                while any(key not in self._holders for key in keys):
                    self._updated.clear()
                    await self._updated.wait()

    def _apply_read(self, record: Record) -> None:
        """Apply a record that was read, unless the event of its deletion has arrived already.

        After a restore of the store, no event of its present data has arrived until the next snapshot.
        """
        restored = self._generation != self._store.generation
        if restored or record.key in self._holders or record.revision >= self._applied_revision:
            self._apply(record)

    def _apply(self, record: Record) -> None:
        holder = record.value.get("host")
        if record.revision >= self._holders.get(record.key, ("", 0))[1]:
            self._holders[record.key] = holder if isinstance(holder, str) else "", record.revision
            self._updated.set()

    async def follow(self) -> None:
        """Follow the changes of the store until cancelled."""
        failures = 0
        while True:
            try:
                seen, generation = self._store.seen, self._store.generation
                marks, _ = await self._store.range(MARKS)
                records, revision = await self._store.range(LEASES)
                if self._store.is_older(marks, seen):  # nothing changes before the recovery has ended
                    await asyncio.sleep(_RETRY_S)
                    continue
                before, self._holders = self._holders, {}
                for record in records:
                    self._apply(record)
                self._applied_revision, self._generation = revision, generation
                self.synced.set()
                failures = 0
                self.changed({key for key, _ in before.items() ^ self._holders.items()})
                async for event in self._store.watch(LEASES, revision):
                    if event.record is not None:
                        self._apply(event.record)
                    elif event.revision > self._holders.get(event.key, ("", 0))[1]:
                        self._holders.pop(event.key, None)
                    self._applied_revision = event.revision
                    self.changed((event.key,))
                break  # the store is closed
            except Compacted as exc:
                log.debug("claims.read_anew", reason=str(exc))
            except StoreError as exc:
                level = log.debug if failures or isinstance(exc, Unreachable) else log.warning
                level("claims.unreachable", reason=str(exc))
                failures += 1
                await asyncio.sleep(_RETRY_S)
