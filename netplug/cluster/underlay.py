"""What the tunnels of this host lie on: the VTEP, which may change while it lives, and how much its way carries.

Looked at when the kernel tells of an address or an mtu, and on a timer; when it tells of routes, if these decide. Of a
VTEP that goes there may be no other for a moment, or for long: it stays what it was until there is one, and the lack of
it is said.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

import structlog

from netplug.cluster.vtep import Finder
from netplug.drivers.api import HostFacts, meshed
from netplug.drivers.errors import DriverError
from netplug.drivers.steps import IPAddress
from netplug.engine import Engine
from netplug.engine.conditions import Difference
from netplug.errors import NetplugError
from netplug.store.api import Put, Store

log = structlog.get_logger(__name__)

VTEP = "meta/vtep"
SETTLE_S = 0.1
"""Whoever replaces an address takes the old one away before."""
RETRY_S = 1.0
INTERVAL_S = 30.0


class Underlay:
    """Follows the VTEP of this host (`vtep`), and tells what is wrong with it (`report`).

    `moved`: is told of a new VTEP when the networks here have followed. `noted`: is told what is wrong, in words.
    """

    def __init__(self, engine: Engine, local: Store, finder: Finder, vtep: IPAddress) -> None:
        self.vtep = vtep
        self.moved: Callable[[IPAddress], Awaitable[None]] | None = None
        self.noted: Callable[[tuple[str, ...]], None] | None = None
        self._engine = engine
        self._local = local
        self._finder = finder
        self._missing = True
        self._by_routes = asyncio.Event()

    async def run(self) -> None:
        """Look whenever there is reason to, until cancelled."""
        event = self._engine.kernel.underlay()
        while True:
            failed_s = await self._engine.supervisor.attempt("underlay", self.look())
            with suppress(TimeoutError):
                rest_s = self._engine.base_plan.rest_s()
                async with asyncio.timeout(max(rest_s, failed_s or (RETRY_S if self._missing else INTERVAL_S))):
                    await event.wait()
                    await asyncio.sleep(SETTLE_S)
            event.clear()

    async def watch_routes(self) -> None:
        """Have it looked when routes have changed what the VTEP is, or may have what its way carries."""
        await self._by_routes.wait()
        event = self._engine.kernel.routes()
        while True:
            await event.wait()
            await asyncio.sleep(SETTLE_S)
            event.clear()
            if self._is_on_loopback():
                await asyncio.sleep(self._engine.base_plan.rest_s())
                self._engine.kernel.underlay().set()
            elif await asyncio.to_thread(self._finder.has_moved, self.vtep):
                self._engine.kernel.underlay().set()

    def _is_on_loopback(self) -> bool:
        """Whether the VTEP is on the loopback link, and its packets leave by the default route's."""
        return any(it.ip == self.vtep and link == "lo" for it, link in self._engine.base_plan.host.addresses)

    async def look(self) -> None:
        """Look once, and follow."""
        host, why = await self._engine.base_plan.read_host(), ""
        try:
            found = await asyncio.to_thread(self._finder.find, host, self.vtep)
            if found.version != self.vtep.version:  # whom the others could not answer
                why = f"VTEP {self.vtep} is gone, and this host has no other IPv{self.vtep.version} address for it"
                found = self.vtep
        except NetplugError as exc:
            why, found = f"VTEP {self.vtep}: {exc.message}", self.vtep
        if found != self.vtep:
            await self._follow(found)
            host = self._engine.base_plan.host
        self._missing = bool(why)
        if not self._finder.wanted or self._is_on_loopback():
            self._by_routes.set()
        self._report(host, why)

    async def _follow(self, vtep: IPAddress) -> None:
        log.warning("vtep.moved", before=str(self.vtep), now=str(vtep))
        await self._local.txn((), [Put(VTEP, {"vtep": str(vtep)})])
        self._engine.base_plan.vtep = vtep
        await self._engine.base_plan.read_host()
        await self._engine.networks.follow()
        self.vtep = vtep
        if self.moved:
            await self.moved(vtep)

    def _report(self, host: HostFacts, why: str) -> None:
        found = [Difference("host", "vtep", why)] if why else list(self._narrow(host))
        self._engine.conditions.report("underlay", found)
        if self.noted:
            self.noted(tuple(it.what if it.owner == "host" else f"{it.owner}: {it.what}" for it in found))

    def _narrow(self, host: HostFacts) -> Iterable[Difference]:
        """Tell of the networks whose packets do not fit through the tunnels of this host any more."""
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
                words = f"mtu {net.options.mtu} does not fit: the way of VTEP {self.vtep} leaves {room} bytes"
                yield Difference(f"network {net.name}", "mtu", words)
