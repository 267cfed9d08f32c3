"""What the allocator needs of a store. The store decides; memory is only faster.

A store for a cluster can refuse a claim, because another host has the address; one for a single host never
does.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from .lease import IPAddress, Lease
from .pool import Pool


class LeaseStore(Protocol):
    """Keeps pools and leases. Calls take effect in the order in which they were begun.

    `unreadable`: keys of the records that `load` found and could not read, and why. They stay as they are.
    """

    @property
    def unreadable(self) -> Mapping[str, str]: ...

    async def load(self) -> tuple[Sequence[Pool], Sequence[Lease]]:
        """Return everything."""

    async def claim(self, lease: Lease) -> bool:
        """Store a new lease; False: somebody else holds the address.

        When it raises, cancellation included, nothing is claimed.
        """

    async def update(self, lease: Lease) -> bool:
        """Store the new owner of a lease; False: there is no such lease."""

    async def drop(self, pool_id: str, address: IPAddress) -> None:
        """Delete a lease; absent is success."""

    async def save_pool(self, pool: Pool) -> bool:
        """Store a pool, new or changed; False: somebody else has a pool that overlaps it."""

    async def drop_pool(self, pool_id: str) -> None:
        """Delete a pool with all its leases; absent is success."""
