"""The loopback link of a sandbox. The kernel creates it with the namespace, but down."""

from netplug.kernel.api import MISSING, Outcome
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import RTM_NEWLINK, Netlink
from netplug.kernel.netlink.rtnl import IFF_UP, IFINFO, Link

NAME = "lo"


def ensure(nl: Netlink) -> Outcome:
    """Set it up. `nl`: socket in the sandbox."""
    found = rtnl.link(nl, NAME)
    if found is None or found.up:
        return Outcome.EQUAL
    nl.request(RTM_NEWLINK, IFINFO.pack(0, 0, found.index, IFF_UP, IFF_UP))
    return Outcome.ADJUSTED


def drift(links: dict[str, Link] | None) -> str:
    """Return what is wrong; empty if nothing. `links`: those of the sandbox; None if it is gone."""
    if links is None:
        return MISSING
    return "" if NAME in links and links[NAME].up else "is down"
