"""Deletes links in groups, behind everybody's back.

Deleting a link waits for an RCU grace period (15 to 20 ms), and 16 links deleted by one message over their group wait
for one (26 ms, against 277). So a removal only moves the link to a group, and a task deletes what has gathered there
while the deletion before was running. The waiting is done in a thread: it is the kernel that waits, inside ``sendmsg``.

Each deletion has a group number of its own, one that no link had at the start and that is never used again: so nobody
else's link can be in it, without looking through all links of the host each time.
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
from netplug.kernel.netlink.rtnl import DELETE_GROUPS, DELETE_MASK, IFINFO

log = structlog.get_logger(__name__)

FIRST_RETRY_S, LAST_RETRY_S = 0.1, 10.0
SETTLE_DEADLINE_S = 30
"""A group of thousands of links takes seconds, and others may hold the rtnl mutex meanwhile."""


class Reaper:
    """Deletes links in groups. Lives in one event loop.

    `group`: where a link that is to be deleted goes now.
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
        """Whether a deletion is running: whoever asks the kernel about links now may have to wait for it."""
        return self._task is not None and not self._task.done()

    def add(self, name: str, group: int) -> None:
        """Take over a link that is in a group to be deleted."""
        self._pending[name] = group
        if not self.busy:
            # The one task outside a TaskGroup: it must outlive the request that began it, and ends by itself.
            self._task = asyncio.get_running_loop().create_task(self._run(), name="netplug-reaper")

    def has(self, name: str) -> bool:
        """Return whether the link is still to be deleted."""
        return name in self._pending

    async def settle(self, name: str | None = None) -> None:
        """Wait until the link, or all that were added so far, are gone."""
        wanted = {name} if name else set(self._pending)
        async with asyncio.timeout(SETTLE_DEADLINE_S):
            while wanted & self._pending.keys():
                self._changed.clear()
                await self._changed.wait()

    async def sweep(self) -> None:
        """Delete what an earlier process left to be deleted, and choose a group that no link is in."""
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

    def _next_group(self) -> None:
        self.group = DELETE_GROUPS | (self.group + 1) & ~DELETE_MASK

    async def close(self) -> None:
        """Finish the deletions and close the socket; those that fail are left to the next process (`sweep`)."""
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
                # Moved to another group meanwhile, it is still there.
                if group not in failed and self._pending.get(name) == group:
                    del self._pending[name]
            self._changed.set()
            if not failed:
                delay = FIRST_RETRY_S
                continue
            left = sorted(name for name, group in batch.items() if group in failed)
            log.error("links.delete_failed", links=left, error=str(next(iter(failed.values()))))
            if self._closing.is_set():
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._closing.wait()
            delay = min(delay * 2, LAST_RETRY_S)

    def _delete(self, groups: frozenset[int]) -> dict[int, OSError]:
        """Delete the links in these groups, and return the groups in which some could not be."""
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
