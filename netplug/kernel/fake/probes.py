"""Probes of a fake kernel: there are none, since nothing is sent in memory."""

from contextlib import AbstractAsyncContextManager

from netplug.errors import NetplugError
from netplug.kernel.probes.api import Prober


class FakeProbes:
    """See `Probes`."""

    def start(self) -> AbstractAsyncContextManager[Prober]:
        """Refuse."""
        raise NetplugError("unavailable", "a kernel in memory sends no packets", hint="probe on a real host")
