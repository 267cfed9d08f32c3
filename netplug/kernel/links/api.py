"""Address conflict detection, as the engine sees it (RFC 5227). Real in `links.conflict_probe`."""

from collections.abc import Collection, Mapping
from typing import Protocol

from netplug.drivers.steps import IPAddress


class ConflictProbe(Protocol):
    """Asks the segment of a link."""

    async def addresses_in_use(self, link: str, addresses: Collection[IPAddress]) -> Mapping[IPAddress, str]:
        """Return those of the addresses that a station on the segment of this link has, with its MAC.

        Stations of the host itself, its macvlans too, are not asked. Takes some tenths of a second.

        Raises:
            NetplugError: "unavailable", the link is gone or down.
        """
