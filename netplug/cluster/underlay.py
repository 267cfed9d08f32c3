"""The underlay of this host's tunnels: the VTEP, which may change at run time, and the MTU of its path.

Both are checked after kernel notifications about addresses and MTUs, and on a timer; after changes of routes only if
routes determine the VTEP. When the VTEP's address is removed, the old VTEP stays until another address is found, and
`netplug diff` shows that it is missing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

import structlog

from netplug.cluster.identity import VTEP
from netplug.cluster.vtep import Finder
from netplug.drivers.api import HostFacts, meshed
from netplug.drivers.errors import DriverError
from netplug.drivers.steps import IPAddress
from netplug.engine import Engine
from netplug.engine.conditions import Difference
from netplug.errors import NetplugError
from netplug.store.api import Put, Store

log = structlog.get_logger(__name__)

SETTLE_S = 0.1
"""Pause after a notification: programs that replace an address remove the old one first."""
RETRY_S = 1.0
INTERVAL_S = 30.0


class Underlay:
    """Follows the VTEP of this host, and reports its faults.

    Attributes:
        vtep: the current VTEP.
        on_move: called with a new VTEP after this host's networks use it.
        on_notes: called with the current faults.
    """

    def __init__(self, engine: Engine, local: Store, finder: Finder, vtep: IPAddress) -> None:
        self.vtep = vtep
        self.on_move: Callable[[IPAddress], Awaitable[None]] | None = None
        self.on_notes: Callable[[tuple[str, ...]], None] | None = None
        self._engine = engine
        self._local = local
        self._finder = finder
        self._missing = True
        self._routes_matter = asyncio.Event()
        self._due = engine.kernel.changes.underlay()

    async def run(self) -> None:
        """Check after notifications and on a timer, until cancelled."""
        while True:
            failed_s = await self._engine.supervisor.attempt("underlay", self.check())
            with suppress(TimeoutError):
                rest_s = self._engine.base_plan.rest_s()
                async with asyncio.timeout(max(rest_s, failed_s or (RETRY_S if self._missing else INTERVAL_S))):
                    await self._due.wait()
                    await asyncio.sleep(SETTLE_S)
            self._due.clear()

    def wake(self) -> None:
        """Check now."""
        self._due.set()

    async def watch_routes(self) -> None:
        """Trigger a check when routes have changed the VTEP, or may have changed the MTU of its path."""
        await self._routes_matter.wait()
        event = self._engine.kernel.changes.routes()
        while True:
            await event.wait()
            await asyncio.sleep(SETTLE_S)
            event.clear()
            if self._is_on_loopback():
                await asyncio.sleep(self._engine.base_plan.rest_s())
                self._due.set()
            elif await asyncio.to_thread(self._finder.has_moved, self.vtep):
                self._due.set()

    def _is_on_loopback(self) -> bool:
        """Whether the VTEP is on the loopback link, so that its packets leave by the link of the default route."""
        return any(it.ip == self.vtep and link == "lo" for it, link in self._engine.base_plan.host.addresses)

    async def check(self) -> None:
        """Determine the VTEP, move to a new one, and report faults."""
        host, fault = await self._engine.base_plan.read_host(), ""
        try:
            found = await asyncio.to_thread(self._finder.find, host, self.vtep)
            if found.version != self.vtep.version:  # tunnels need the IP version of the other hosts
                fault = (
                    f"VTEP {self.vtep} was removed, and this host has no other IPv{self.vtep.version} address for it"
                )
                found = self.vtep
        except NetplugError as exc:
            fault, found = f"VTEP {self.vtep}: {exc.message}", self.vtep
        if found != self.vtep:
            await self._follow(found)
            host = self._engine.base_plan.host
        self._missing = bool(fault)
        if not self._finder.wanted or self._is_on_loopback():
            self._routes_matter.set()
        self._report(host, fault)

    async def _follow(self, vtep: IPAddress) -> None:
        log.warning("vtep.moved", before=str(self.vtep), now=str(vtep))
        await self._local.txn((), [Put(VTEP, {"vtep": str(vtep)})])
        self._engine.base_plan.vtep = vtep
        await self._engine.base_plan.read_host()
        await self._engine.convergence.all()
        self.vtep = vtep
        if self.on_move:
            await self.on_move(vtep)

    def _report(self, host: HostFacts, fault: str) -> None:
        found = [Difference("host", "vtep", fault)] if fault else list(self._narrow(host))
        self._engine.conditions.report("underlay", found)
        if self.on_notes:
            self.on_notes(tuple(it.what if it.owner == "host" else f"{it.owner}: {it.what}" for it in found))

    def _narrow(self, host: HostFacts) -> Iterable[Difference]:
        """Yield networks whose MTU is too large for the tunnels of this host."""
        for record in self._engine.registry.networks():
            net = record.network
            driver = self._engine.drivers.of(net)
            if not meshed(driver):
                continue
            try:
                room = driver.room(host)
            except DriverError as exc:
                yield Difference(f"network {net.name}", "mtu", exc.message)
                continue
            if net.options.mtu > room:
                words = f"mtu {net.options.mtu} is too large: the path of VTEP {self.vtep} allows {room} bytes"
                yield Difference(f"network {net.name}", "mtu", words)
