"""Events of changes by others: links, addresses and firewall from the start, routes once somebody asks for them."""

import asyncio

from netplug.kernel.netlink.route_watch import RouteChanges
from netplug.kernel.netlink.watch import ForeignChanges


class KernelChanges:
    """The events; see `api.Changes`."""

    def __init__(self, foreign: ForeignChanges) -> None:
        self._foreign = foreign
        self._routes: RouteChanges | None = None

    def ours(self) -> asyncio.Event:
        """Return the event that is set when others may have changed something of ours."""
        return self._foreign.event

    def commits(self) -> asyncio.Event:
        """Return the event that is set when others changed the firewall."""
        return self._foreign.commits

    def tables(self) -> asyncio.Event:
        """Return the event that is set when others changed a table of ours."""
        return self._foreign.tables

    def underlay(self) -> asyncio.Event:
        """Return an event that is set when addresses or the mtu of links of others have changed."""
        return self._foreign.underlay.listen()

    def routes(self) -> asyncio.Event:
        """Return the event that is set when routes may have changed."""
        if self._routes is None:
            self._routes = RouteChanges()
        return self._routes.event

    def close(self) -> None:
        """Listen no more."""
        self._foreign.close()
        if self._routes:
            self._routes.close()
