"""What host checks look at: with a daemon or without."""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from netplug.config import Settings
from netplug.drivers.api import HostFacts, Network
from netplug.kernel.firewall.api import FirewallView
from netplug.kernel.host.api import Inspection


class KernelView(Protocol):
    """As much of a kernel as is looked at without changing anything."""

    @property
    def firewall(self) -> FirewallView: ...
    @property
    def inspection(self) -> Inspection: ...

    def facts(self) -> Awaitable[HostFacts]:
        """Return what drivers may know of the host."""


@dataclass(frozen=True, slots=True)
class HostSubject:
    """A host.

    Attributes:
        settings: those of the daemon; those that it would have, if none runs.
        networks: those of this host's records, as far as they can be read.
        daemon: whether the caller is the daemon.
        state: the database, if it may be read from its file: no daemon has it.
    """

    settings: Settings
    kernel: KernelView
    networks: Sequence[Network] = ()
    endpoints: int = 0
    daemon: bool = True
    state: Path | None = None

    def of_mode(self, *modes: str) -> list[Network]:
        """Return the networks of some modes."""
        return [net for net in self.networks if net.options.mode in modes]
