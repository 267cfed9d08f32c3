"""What we wrote into FDBs and neighbour tables and did not remove, to know from the kernel's word whether others did.

The kernel tells of our own writes as well (``RTNLGRP_NEIGH``), and of the FDB's not who wrote. So what is told is
compared with what we want by then: it is ours if it says the same, or if we have no such entry any more.
"""

import socket
from ipaddress import ip_address

from netplug.drivers.tunnel import NO_MAC, Fdb, Neighbour
from netplug.kernel.links import neighbours
from netplug.kernel.netlink.rtnl import AF_BRIDGE

NEWNEIGH, DELNEIGH = 28, 29
_NOWHERE = ip_address("0.0.0.0")


class ForwardingEntries:
    """Entries of ours, by key."""

    def __init__(self) -> None:
        self._wanted: dict[str, Fdb | Neighbour] = {}

    def add(self, step: Fdb | Neighbour) -> None:
        """Note an entry that is about to be written."""
        self._wanted[step.key] = step

    def forget(self, step: Fdb | Neighbour) -> None:
        """Note that an entry is about to be removed."""
        self._wanted.pop(step.key, None)

    def is_foreign_change(self, kind: int, body: bytes) -> bool:
        """Tell whether somebody else harmed an entry. `kind`, `body`: of the message, struct ndmsg first."""
        told = neighbours.entry(body)
        try:
            link = socket.if_indextoname(told.index)
        except OSError:
            return False  # the link went too, and is told of by itself
        if body[0] != AF_BRIDGE:
            neighbour = self._wanted.get(Neighbour(link, told.dst, told.mac).key) if told.dst else None
            return neighbour is not None and (kind == DELNEIGH or not told.permanent or told.mac != neighbour.mac)
        wanted = self._wanted.get(Fdb(link, told.mac, told.dst or _NOWHERE).key)
        if not isinstance(wanted, Fdb) or kind == DELNEIGH:
            return wanted is not None
        if told.master:
            return not told.sticky
        return told.mac != NO_MAC and told.dst != wanted.vtep
