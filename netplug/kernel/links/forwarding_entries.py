"""The FDB and neighbour entries that we want, to tell foreign changes from our own in the kernel's notifications.

The kernel notifies about our own writes as well (``RTNLGRP_NEIGH``), and an FDB notification does not name the writer.
So each notification is compared with the entries that we want at that time. It is our own change if both agree, or if
we want no such entry.
"""

import socket
from ipaddress import ip_address

from netplug.drivers.steps import Veth
from netplug.drivers.tunnel import NO_MAC, Fdb, Neighbour
from netplug.kernel.links import neighbours
from netplug.kernel.netlink.rtnl import AF_BRIDGE

NEWNEIGH, DELNEIGH = 28, 29
_NO_VTEP = ip_address("0.0.0.0")


class ForwardingEntries:
    """The entries that we want, by key of their step."""

    def __init__(self) -> None:
        self._wanted: dict[str, Fdb | Neighbour] = {}
        self._pins: dict[str, str] = {}

    def add(self, step: Fdb | Neighbour) -> None:
        """Note an entry that will be written next."""
        self._wanted[step.key] = step

    def forget(self, step: Fdb | Neighbour) -> None:
        """Note that an entry will be removed next."""
        self._wanted.pop(step.key, None)

    def pin(self, step: Veth) -> None:
        """Note which MAC has a static entry at a port, if one has."""
        if step.pinned:
            self._pins[step.name] = step.peer_mac.lower()
        else:
            self.unpin(step)

    def unpin(self, step: Veth) -> None:
        """Note that a port is removed next, or learns MACs."""
        self._pins.pop(step.name, None)

    def is_foreign_change(self, kind: int, body: bytes) -> bool:
        """Return whether a notification shows that another process changed an entry of ours.

        `kind`: message type. `body`: the message from its struct ndmsg on.
        """
        entry = neighbours.entry(body)
        try:
            link = socket.if_indextoname(entry.index)
        except OSError:
            return False  # the link was deleted too, which has a notification of its own
        if body[0] != AF_BRIDGE:
            neighbour = self._wanted.get(Neighbour(link, entry.dst, entry.mac).key) if entry.dst else None
            return neighbour is not None and (kind == DELNEIGH or not entry.permanent or entry.mac != neighbour.mac)
        if entry.master and self._unpins(kind, link, entry):
            return True
        wanted = self._wanted.get(Fdb(link, entry.mac, entry.dst or _NO_VTEP).key)
        if not isinstance(wanted, Fdb) or kind == DELNEIGH:
            return wanted is not None
        if entry.master:
            return not entry.sticky
        return entry.mac != NO_MAC and entry.dst != wanted.vtep

    def _unpins(self, kind: int, link: str, entry: neighbours.Entry) -> bool:
        """Tell whether a port has lost its static entry, or got another one. `link`: where the entry leads to."""
        pin = self._pins.get(link)
        if entry.mac == pin:
            return kind == DELNEIGH or not entry.sticky
        if kind == DELNEIGH or not entry.static:
            return False
        return (pin is not None and entry.sticky) or self._is_elsewhere(link, entry.mac)

    def _is_elsewhere(self, link: str, mac: str) -> bool:
        """Tell whether a MAC is to be at another port than `link`, or on another host."""
        remote = (it for it in self._wanted.values() if isinstance(it, Fdb) and it.mac == mac)
        return mac in self._pins.values() or any(it.link != link for it in remote)
