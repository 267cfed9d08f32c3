"""Telling a segment who has an address now (step `Announce`): at once, or as soon as its link carries anything.

By one packet socket that hears nothing and stays open: closing one that does waits for an RCU grace period. What the
host itself believes is put right too, since it does not hear what it sends.
"""

import fcntl
import socket
import struct
import threading
from contextlib import suppress
from errno import ENETDOWN

from netplug.drivers.naming import BRIDGES
from netplug.drivers.steps import Announce
from netplug.kernel.api import Outcome, StepError
from netplug.kernel.links import neighbours
from netplug.kernel.links.conflict_probe import announcement
from netplug.kernel.netlink.connection import RTM_GETLINK, Netlink, text
from netplug.kernel.netlink.rtnl import IFINFO, IFLA_IFNAME

_SIOCGIFFLAGS, _IFF_RUNNING, _IFF_LOWER_UP = 0x8913, 0x40, 1 << 16
_IFREQ = struct.Struct("16sH22x")


class Announcements:
    """What was announced, and what has to wait for a carrier; told by threads and by the loop."""

    def __init__(self, nl: Netlink) -> None:
        self._nl = nl
        self._socket: socket.socket | None = None
        self._opening = threading.Lock()
        self._pending: dict[str, Announce] = {}

    def ensure(self, step: Announce) -> Outcome:
        """Announce an address, now or later. May wait for the rtnl mutex."""
        # First: the loop may hear of the carrier while this thread looks at it.
        self._pending[step.key] = step
        try:
            neighbours.update(self._nl, socket.if_nametoindex(step.link), step.address, step.mac)
            if self._has_carrier(step.link):
                self._send(step)
                self.cancel(step)
        except OSError as error:
            if error.errno != ENETDOWN:
                self.cancel(step)
                words = f"link {step.link!r} cannot announce {step.address}: {error.strerror or error}"
                raise StepError("unavailable", step, words, hint=f"ip link show {step.link}") from error
        return Outcome.EQUAL

    def cancel(self, step: Announce) -> None:
        """Take back what was not announced yet."""
        self._pending.pop(step.key, None)

    def on_carrier(self, link: str) -> None:
        """Announce what has waited for this link, which carries now."""
        for step in [it for it in self._pending.copy().values() if it.link == link]:
            with suppress(OSError):  # it went again; and comes again
                self._send(step)
                self.cancel(step)

    def close(self) -> None:
        """Close the socket."""
        if self._socket:
            self._socket.close()
            self._socket = None

    def _send(self, step: Announce) -> None:
        frame, kind = announcement(step)
        self._open().sendto(frame, (step.link, kind))

    def _has_carrier(self, link: str) -> bool:
        """Whether a link is up and has a carrier."""
        found = fcntl.ioctl(self._open(), _SIOCGIFFLAGS, _IFREQ.pack(link.encode(), 0))
        if link.startswith(BRIDGES) or not _IFREQ.unpack(found)[1] & _IFF_RUNNING:
            return bool(_IFREQ.unpack(found)[1] & _IFF_RUNNING)
        # A link is taken to run until the kernel has looked at its carrier, some time after it was made.
        told = self._nl.get(RTM_GETLINK, IFINFO.pack(0, 0, 0, 0, 0) + text(IFLA_IFNAME, link))
        return bool(IFINFO.unpack_from(told)[3] & _IFF_LOWER_UP)

    def _open(self) -> socket.socket:
        with self._opening:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            return self._socket
