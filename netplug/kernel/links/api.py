"""Links, as the engine asks for them besides steps: conflict detection (RFC 5227), and counters of traffic.

Real in `links.conflict_probe` and `links.traffic`.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

from netplug.drivers.steps import IPAddress


class ConflictProbe(Protocol):
    """Asks the segment of a link."""

    async def addresses_in_use(self, link: str, addresses: Collection[IPAddress]) -> Mapping[IPAddress, str]:
        """Return those of the addresses that a station on the segment of this link has, with its MAC.

        Stations of the host itself, its macvlans too, are not asked. Takes some tenths of a second.

        Raises:
            NetplugError: "unavailable", the link is gone or down.
        """


class LinkCounters(NamedTuple):
    """What a link has received and transmitted since it was made.

    `rx_dropped`, `tx_dropped`: packets that the link or a queue of it dropped; of a limited link (`Shape`), those that
    exceeded the rate too. What the firewall drops is not among them.
    """

    rx_bytes: int = 0
    rx_packets: int = 0
    rx_dropped: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_dropped: int = 0


class SandboxLink(NamedTuple):
    """A link in a sandbox: by its name, or by its MAC where a runtime named it. `netns_id`: identity of the sandbox."""

    netns: str
    netns_id: str
    name: str
    mac: str


class Traffic(Protocol):
    """Counters of links."""

    async def of_host(self, links: Collection[str]) -> Mapping[str, LinkCounters]:
        """Return the counters of links of the host by name; those that are gone are missing."""

    async def of_sandboxes(self, links: Collection[SandboxLink]) -> Mapping[SandboxLink, LinkCounters]:
        """Return the counters of links in sandboxes; those that are gone are missing."""
