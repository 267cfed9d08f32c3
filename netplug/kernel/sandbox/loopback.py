"""The loopback link of a sandbox: there from its beginning, but down."""

from netplug.kernel.api import MISSING, Outcome
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import RTM_NEWLINK, Netlink
from netplug.kernel.netlink.rtnl import IFF_UP, IFINFO, Link

NAME = "lo"


def ensure(nl: Netlink) -> Outcome:
    """Set it up; `nl` acts in the sandbox."""
    found = rtnl.link(nl, NAME)
    if found is None or found.up:
        return Outcome.EQUAL
    nl.request(RTM_NEWLINK, IFINFO.pack(0, 0, found.index, IFF_UP, IFF_UP))
    return Outcome.ADJUSTED


def drift(links: dict[str, Link] | None) -> str:
    """Say what is wrong; empty when nothing. `links`: those of the sandbox, None when it is gone."""
    if links is None:
        return MISSING
    return "" if NAME in links and links[NAME].up else "is down"
