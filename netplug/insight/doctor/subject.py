"""What host checks look at: with a daemon or without."""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

from netplug.config import Settings
from netplug.drivers.api import HostFacts, Network
from netplug.kernel.firewall.api import FirewallReport, FirewallView
from netplug.kernel.host.api import Inspection, Program
from netplug.tasks.apart import apart


class KernelView(Protocol):
    """As much of a kernel as is looked at without changing anything."""

    @property
    def firewall(self) -> FirewallView: ...
    @property
    def inspection(self) -> Inspection: ...

    def facts(self) -> Awaitable[HostFacts]:
        """Return what drivers may know of the host."""


PROGRAMS = frozenset({"NetworkManager", "systemd-networkd", "systemd-network", "dhcpcd", "netplug"})
"""Those that checks look for. The kernel cuts names of processes after 15 characters."""


class OneLook:
    """A kernel that several checks look at, at the same time: firewall, facts and processes are read once."""

    def __init__(self, kernel: KernelView) -> None:
        self._kernel = kernel

    @property
    def inspection(self) -> Inspection:
        """What else the kernel tells."""
        return self._kernel.inspection

    @property
    def firewall(self) -> "OneLook":
        """The firewall: this object."""
        return self

    async def facts(self) -> HostFacts:
        """Return the facts as of one look."""
        return await asyncio.shield(self._facts)

    async def programs(self, *names: str) -> list[Program]:
        """Return the processes with some of `PROGRAMS` as names, as of one look at all processes."""
        return [it for it in await asyncio.shield(self._programs) if it.name in names]

    async def report(self) -> FirewallReport:
        """Return the firewall as of one look."""
        return await asyncio.shield(self._report)

    @cached_property
    def _facts(self) -> asyncio.Future[HostFacts]:
        return asyncio.ensure_future(self._kernel.facts())

    @cached_property
    def _programs(self) -> asyncio.Future[tuple[Program, ...]]:
        return asyncio.ensure_future(apart(partial(self._kernel.inspection.programs, PROGRAMS)))

    @cached_property
    def _report(self) -> asyncio.Future[FirewallReport]:
        return asyncio.ensure_future(self._kernel.firewall.report())


@dataclass(frozen=True, slots=True)
class HostSubject:
    """A host.

    Attributes:
        settings: those of the daemon; those that it would have, if none runs.
        networks: those of this host's records, as far as they can be read.
        daemon: whether the caller is the daemon.
        root: the root of the file system, for files of other programs.
    """

    settings: Settings
    kernel: OneLook
    networks: Sequence[Network] = ()
    endpoints: int = 0
    daemon: bool = True
    root: Path = Path("/")

    def of_mode(self, *modes: str) -> list[Network]:
        """Return the networks of some modes."""
        return [net for net in self.networks if net.options.mode in modes]
