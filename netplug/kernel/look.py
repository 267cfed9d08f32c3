"""As much of this host's kernel as can be looked at without changing anything: for commands without a daemon.

`LinuxKernel` finishes what an earlier process began, and listens for changes. This does not.
"""

import asyncio
from dataclasses import replace
from types import TracebackType
from typing import Self

from netplug.drivers.api import HostFacts
from netplug.kernel.firewall import firewalld
from netplug.kernel.firewall.iptables import Iptables
from netplug.kernel.firewall.legacy_watch import LegacyWatch
from netplug.kernel.firewall.table_reader import NOTHING, TableReader
from netplug.kernel.firewall.view import HostFirewall
from netplug.kernel.host import facts
from netplug.kernel.host.inspection import HostInspection
from netplug.kernel.netlink.connection import Netlink
from netplug.kernel.survey import Survey


class KernelLook:
    """The network namespace of the thread that makes it. Belongs to one event loop."""

    def __init__(self) -> None:
        self._nl = Netlink.open()
        self._tables = TableReader()
        self._legacy = LegacyWatch(lambda: None)
        iptables = {family: Iptables(family, self._legacy) for family in (4, 6)}
        self.firewall = HostFirewall(iptables, self._tables, lambda: 0)
        self.inspection = HostInspection()

    async def facts(self) -> HostFacts:
        """Return what drivers may know of the host."""
        await self.firewall.filters()
        survey = Survey((), NOTHING, {})
        await asyncio.to_thread(survey.look, self._nl)
        host = survey.host
        found = facts.of(host.links.values(), host.addresses, host.routes, self.firewall.last())
        return replace(found, firewalld=firewalld.read(self._tables), tables=self._tables.foreign())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._legacy.close()
        self._tables.close()
        self._nl.close()
