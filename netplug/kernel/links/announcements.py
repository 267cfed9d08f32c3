"""Announce the MAC of an address on its segment (step `Announce`): at once, or when the link gets a carrier.

All announcements use one packet socket, which receives nothing and stays open: closing a receiving one waits for an RCU
grace period. The host does not receive its own frames, so its neighbour entry for the address is updated as well.

The kernel delivers a broadcast to all ports of a bridge, and has each container handle it, inside ``sendto``: 0.6 ms
with 250 ports. A MAC that follows from its address is what neighbours know already, unless somebody chose another one
for a former endpoint. So a thread sends these announcements `LATER_S` later, and the attach does not wait.
"""

import fcntl
import socket
import struct
import threading
from contextlib import suppress
from errno import ENETDOWN
from ipaddress import ip_interface
from queue import SimpleQueue

from netplug.drivers.naming import BRIDGES, mac_of_address
from netplug.drivers.steps import Announce
from netplug.kernel.api import Outcome, StepError
from netplug.kernel.links import neighbours
from netplug.kernel.links.conflict_probe import announcement
from netplug.kernel.netlink.connection import RTM_GETLINK, Netlink, text
from netplug.kernel.netlink.rtnl import IFINFO, IFLA_IFNAME

_SIOCGIFFLAGS, _IFF_RUNNING, _IFF_LOWER_UP = 0x8913, 0x40, 1 << 16
_IFREQ = struct.Struct("16sH22x")
LATER_S = 0.005
"""When a thread begins to send, the attach that it is for has been answered."""


class Announcements:
    """Sends announcements, and keeps those whose link has no carrier yet. Safe for threads and the event loop."""

    def __init__(self, nl: Netlink) -> None:
        self._nl = nl
        self._socket: socket.socket | None = None
        self._opening = threading.Lock()
        self._pending: dict[str, Announce] = {}
        self._ready: SimpleQueue[Announce | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def ensure(self, step: Announce) -> Outcome:
        """Announce an address now, or once the link has a carrier. May block on the rtnl mutex."""
        # Store it first: the event loop may be notified of the carrier while this thread checks for one.
        self._pending[step.key] = step
        try:
            neighbours.update(self._nl, socket.if_nametoindex(step.link), step.address, step.mac)
            if self._has_carrier(step.link):
                self._announce(step)
        except OSError as error:
            if error.errno != ENETDOWN:
                self.cancel(step)
                words = f"link {step.link!r} cannot announce {step.address}: {error.strerror or error}"
                raise StepError("unavailable", step, words, hint=f"ip link show {step.link}") from error
        return Outcome.EQUAL

    def cancel(self, step: Announce) -> None:
        """Drop an announcement that was not sent yet."""
        self._pending.pop(step.key, None)

    def on_carrier(self, link: str) -> None:
        """Send the pending announcements of a link that now has a carrier."""
        for step in [it for it in self._pending.copy().values() if it.link == link]:
            with suppress(OSError):  # the carrier was lost again; the next notification retries
                self._announce(step)

    def close(self) -> None:
        """Send what is ready, and close the socket."""
        self._closing.set()
        if self._thread:
            self._ready.put(None)
            self._thread.join()
            self._thread = None
        if self._socket:
            self._socket.close()
            self._socket = None

    def _announce(self, step: Announce) -> None:
        if step.mac.lower() == mac_of_address(ip_interface(step.address)):
            self._submit(step)
        else:
            self._send(step)
            self.cancel(step)

    def _submit(self, step: Announce) -> None:
        """Have the thread send an announcement."""
        with self._opening:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="netplug-announce", daemon=True)
                self._thread.start()
        self._ready.put(step)

    def _run(self) -> None:
        """Send announcements that are still wanted; in the thread."""
        while step := self._ready.get():
            self._closing.wait(LATER_S)
            if self._pending.get(step.key) == step:
                with suppress(OSError):  # the carrier was lost again; the next notification retries
                    self._send(step)
                    self.cancel(step)

    def _send(self, step: Announce) -> None:
        frame, kind = announcement(step)
        self._open().sendto(frame, (step.link, kind))

    def _has_carrier(self, link: str) -> bool:
        """Return whether a link is up and has a carrier."""
        found = fcntl.ioctl(self._open(), _SIOCGIFFLAGS, _IFREQ.pack(link.encode(), 0))
        if link.startswith(BRIDGES) or not _IFREQ.unpack(found)[1] & _IFF_RUNNING:
            return bool(_IFREQ.unpack(found)[1] & _IFF_RUNNING)
        # IFF_RUNNING is set on a new link until the kernel has checked its carrier, so IFF_LOWER_UP decides.
        reply = self._nl.get(RTM_GETLINK, IFINFO.pack(0, 0, 0, 0, 0) + text(IFLA_IFNAME, link))
        return bool(IFINFO.unpack_from(reply)[3] & _IFF_LOWER_UP)

    def _open(self) -> socket.socket:
        with self._opening:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            return self._socket
