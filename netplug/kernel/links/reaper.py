"""Deletes links in the background, in groups (ip-link(8), ``group``).

Deleting a link waits for an RCU grace period (15 to 20 ms). Deleting a group of 16 links by one message waits once (26
ms instead of 277). So a removal only moves the link to a group. A task deletes the links that were collected in it
while the previous deletion was running. A thread makes the requests, since the kernel waits inside ``sendmsg``.

Each deletion has a group number of its own. No link had the number at the start, and it is never used again. So the
group holds no foreign link, and the host's links need not be searched each time.
"""

import asyncio
import errno
import secrets
from contextlib import suppress

import structlog

from netplug.drivers.steps import Bridge
from netplug.kernel.links.bridges import schedule_delete
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import RTM_DELLINK, Netlink, NetlinkError, u32
from netplug.kernel.netlink.rtnl import DELETE_GROUPS, DELETE_MASK, IFINFO, Link

log = structlog.get_logger(__name__)

FIRST_RETRY_S, LAST_RETRY_S = 0.1, 10.0
SETTLE_DEADLINE_S = 30
"""A group of thousands of links takes seconds, and another process may hold the rtnl mutex meanwhile."""


class Reaper:
    """Deletes links in groups. Belongs to one event loop.

    `group`: the group to which links are moved for the next deletion.
    """

    def __init__(self) -> None:
        self.group = DELETE_GROUPS | 1 + secrets.randbelow(~DELETE_MASK & 0xFFFF)
        self._nl = Netlink.open()
        self._pending: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    @property
    def busy(self) -> bool:
        """Whether a deletion is running. It may hold the rtnl mutex, for which other requests about links wait."""
        return self._task is not None and not self._task.done()

    def add(self, name: str, group: int) -> None:
        """Register a link that was moved to a group, for deletion."""
        self._pending[name] = group
        if not self.busy:
            # Outside a TaskGroup, since it must outlive the request that started it. It ends by itself.
            self._task = asyncio.get_running_loop().create_task(self._run(), name="netplug-reaper")

    def has(self, name: str) -> bool:
        """Return whether the deletion of a link is pending."""
        return name in self._pending

    async def settle(self, name: str | None = None) -> None:
        """Wait until a link, or all links added so far, are deleted."""
        wanted = {name} if name else set(self._pending)
        async with asyncio.timeout(SETTLE_DEADLINE_S):
            while wanted & self._pending.keys():
                self._changed.clear()
                await self._changed.wait()

    async def sweep(self) -> list[Link]:
        """Delete the links that an earlier process left in such groups, and choose an empty group.

        Return all links that there were before.
        """
        found = await asyncio.to_thread(rtnl.links, self._nl)
        used = {link.group for link in found}
        while self.group in used:
            self._next_group()
        left = [link.name for link in found if link.being_deleted and link.name not in self._pending]
        group = self.group
        for name in await asyncio.to_thread(
            lambda: [it for it in left if schedule_delete(self._nl, Bridge(it, "", 0), group)]
        ):
            self.add(name, group)
        return found

    def _next_group(self) -> None:
        self.group = DELETE_GROUPS | (self.group + 1) & ~DELETE_MASK

    async def close(self) -> None:
        """Finish the deletions and close the socket. `sweep` of the next process retries those that fail."""
        self._closing.set()
        try:
            if self._task:
                async with asyncio.timeout(SETTLE_DEADLINE_S):
                    await asyncio.shield(self._task)
        finally:
            self._nl.close()

    async def _run(self) -> None:
        delay = FIRST_RETRY_S
        while self._pending:
            batch = dict(self._pending)
            self._next_group()
            failed = await asyncio.to_thread(self._delete, frozenset(batch.values()))
            for name, group in batch.items():
                # A link that was moved to another group meanwhile was not deleted.
                if group not in failed and self._pending.get(name) == group:
                    del self._pending[name]
            self._changed.set()
            if not failed:
                delay = FIRST_RETRY_S
                continue
            kept = sorted(name for name, group in batch.items() if group in failed)
            log.error("links.delete_failed", links=kept, error=str(next(iter(failed.values()))))
            if self._closing.is_set():
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._closing.wait()
            delay = min(delay * 2, LAST_RETRY_S)

    def _delete(self, groups: frozenset[int]) -> dict[int, OSError]:
        """Delete the links in these groups. Return the error of each group that failed."""
        failed = {}
        for group in groups:
            try:
                self._request(IFINFO.pack(0, 0, 0, 0, 0) + u32(rtnl.IFLA_GROUP, group))
            except OSError as error:
                failed[group] = error
        return failed

    def _request(self, message: bytes) -> None:
        try:
            self._nl.request(RTM_DELLINK, message)
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise
