"""What a network or an endpoint could not give back since the store refused: it is given back later.

The one thing to know: nothing new is leased in a network as long as something of it is still to be given back. So a
late release never meets what somebody else has got meanwhile.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import structlog

from netplug.drivers.naming import short
from netplug.engine.registry import Registry
from netplug.store.api import StoreError
from netplug.tasks.uncancellable import uncancellable

log = structlog.get_logger(__name__)

Release: TypeAlias = Callable[[], Awaitable[object]]
"""Gives something back, if it is still there. It may be called again after it failed."""


class RefusedReleases:
    """Keeps releases that the store refused, by network, until it takes them. A new process finds them by `orphans`."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._left: defaultdict[str, list[Release]] = defaultdict(list)

    async def attempt(self, network: str, release: Release) -> None:
        """Give something back, now or later; the caller holds the lock of the network, by its id.

        What it belonged to is gone, or was not made: no failure of this is its caller's.
        """
        try:
            await release()
        except StoreError as error:
            log.warning("release.refused", network=short(network), error=str(error))
            self._left[network].append(release)

    async def settle(self, network: str) -> None:
        """Give back what was refused; the caller holds the lock of the network.

        Raises:
            StoreError: the store refuses still.
        """
        while left := self._left.get(network):
            await left[0]()
            del left[0]
        self._left.pop(network, None)

    @uncancellable
    async def settle_all(self) -> None:
        """Do so for all networks, as far as the store takes it."""
        for network in list(self._left):
            async with self._registry.lock(network):
                try:
                    await self.settle(network)
                except StoreError as error:
                    log.debug("release.refused", network=short(network), error=str(error))
