"""Notifications of changes by others, as the engine sees them. Real in `netlink.changes`."""

import asyncio
from typing import Protocol


class Changes(Protocol):
    """Events that are set when others changed something."""

    def ours(self) -> asyncio.Event:
        """Return the event that is set when others may have changed something of ours; the caller clears it."""

    def commits(self) -> asyncio.Event:
        """Return the event that is set when others changed the firewall, be it ours or not; the caller clears it."""

    def tables(self) -> asyncio.Event:
        """Return the event that is set, before that of commits, when a commit changed a table of ours; as `ours`."""

    def underlay(self) -> asyncio.Event:
        """Return an event that is set when addresses or the mtu of links of others have changed.

        Each caller has one of its own, which it clears.
        """

    def routes(self) -> asyncio.Event:
        """Return the event that is set when routes may have changed; as `ours`.

        They are listened to from the first call on. While they change all the time it is set now and then only.
        """
