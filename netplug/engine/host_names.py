"""Names of containers for the host itself: turned on, kept and turned off.

A record says that the host asks, and how it was told so. A program that forgets it is told again: systemd-resolved
after a restart, resolv.conf after a DHCP client wrote it.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from netplug.drivers.api import Network
from netplug.drivers.plan import Plan
from netplug.drivers.steps import Resolver
from netplug.engine import host_link
from netplug.engine.base_plan import BasePlan
from netplug.errors import NetplugError
from netplug.kernel.api import StepError
from netplug.kernel.host.api import Authority, Resolution, Way
from netplug.store.api import Delete, Put, Store

log = structlog.get_logger(__name__)

CHECK_S = 5.0
"""Interval of checks whether the host still asks: a file is read, or systemd-resolved is asked."""


@dataclass(frozen=True, slots=True)
class HostNaming:
    """How the host asks."""

    way: Way
    authority: Authority

    @property
    def is_left_to_user(self) -> bool:
        """Whether only the user can tell the host."""
        return self.way is Way.OTHER


class HostNames:
    """Has the host ask for names, once that is wanted."""

    def __init__(
        self, resolution: Resolution, base_plan: BasePlan, store: Store, networks: Callable[[], Iterable[Network]]
    ) -> None:
        self.present: HostNaming | None = None
        self._resolution = resolution
        self._base_plan = base_plan
        self._store = store
        self._networks = networks
        self._lock = asyncio.Lock()
        self._turned = asyncio.Event()

    async def load(self) -> None:
        """Read the record. `BasePlan.load` has read it too, for the plan."""
        found = await host_link.stored(self._store)
        self.present = HostNaming(found[0], host_link.authority(*found)) if found else None

    async def turn_on(self, domain: str) -> HostNaming:
        """Have the host ask for the names below a domain; all or nothing. If it asks already, nothing changes.

        Raises:
            NetplugError: the host cannot be told, or a port is taken.
        """
        way = await self._resolution.way()
        async with self._lock:
            wanted = HostNaming(way, host_link.authority(way, domain))
            if self.present not in {None, wanted}:
                await self._turn_off()
            await self._store.txn((), [Put(host_link.HOST_NAMES, {"way": str(way), "domain": domain})])
            self.present = wanted
            try:
                await self._bring_about(wanted)
            except BaseException:
                await asyncio.shield(self._undo())
                raise
        self._turned.set()
        log.info("dns.host_asks", way=str(way), domain=domain)
        return wanted

    async def _bring_about(self, wanted: HostNaming) -> None:
        self._base_plan.more = host_link.plan(wanted.way)
        try:
            await self._base_plan.ensure(self._networks)
        except StepError as exc:
            if isinstance(exc.step, Resolver) and exc.kind == "unavailable":
                raise _taken(exc, wanted.authority) from exc
            raise
        await self._resolution.lead(wanted.way, wanted.authority)

    async def _undo(self) -> None:
        with suppress(NetplugError):
            await self._turn_off()

    async def turn_off(self) -> bool:
        """Have the host ask no more, and return whether it did.

        Raises:
            NetplugError: it cannot be told. Then all stays.
        """
        async with self._lock:
            asked = self.present is not None
            if asked:
                await self._turn_off()
                log.info("dns.host_asks_no_more")
        return asked

    async def _turn_off(self) -> None:
        if self.present is not None:
            await self._resolution.forget(self.present.way, self.present.authority)
        former, self._base_plan.more = self._base_plan.more, Plan()
        await self._store.txn((), [Delete(host_link.HOST_NAMES)])
        self.present = None
        await self._base_plan.release(former)

    async def leads(self) -> bool:
        """Tell the host again if it has forgotten it, and return whether it had."""
        async with self._lock:
            if self.present is None or not await self._resolution.lead(self.present.way, self.present.authority):
                return False
        log.info("dns.host_told_again", way=str(self.present.way))
        return True

    async def run(self) -> None:
        """Keep the host asking until cancelled. While it does not, nothing is looked at, and no library is loaded."""
        while True:
            self._turned.clear()
            if self.present is None:
                await self._turned.wait()
            else:
                await self._keep()

    async def _keep(self) -> None:
        """Keep the host asking until that is turned off."""
        restarts = asyncio.ensure_future(self._resolution.changed())
        try:
            while self.present is not None:
                await self.leads()
                await asyncio.wait([restarts], timeout=CHECK_S)
                if restarts.done():
                    restarts.result()
                    restarts = asyncio.ensure_future(self._resolution.changed())
        finally:
            restarts.cancel()
            await asyncio.gather(restarts, return_exceptions=True)


def _taken(error: StepError, wanted: Authority) -> NetplugError:
    words = f"the host cannot ask for names at {wanted.address}: port {wanted.port} is in use on this host"
    return NetplugError(error.kind, words, hint="stop what listens there (ss -lntup), or let it forward the domain")
