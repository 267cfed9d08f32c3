"""The store that the allocator needs. The store decides who has an address; the allocator's memory is a cache.

The store of a cluster can refuse a claim because another host has the address. The store of a single host never does.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from .lease import IPAddress, Lease
from .pool import Pool


class LeaseStore(Protocol):
    """Stores pools and leases. Calls take effect in the order in which they start.

    `unreadable`: keys of the records that `load` could not read, with the reason. They are left unchanged.
    """

    @property
    def unreadable(self) -> Mapping[str, str]: ...

    async def load(self) -> tuple[Sequence[Pool], Sequence[Lease]]:
        """Return all pools and leases."""

    async def claim(self, lease: Lease) -> bool:
        """Store a new lease; return False if another host has the address.

        If it raises, also by a cancellation, nothing is claimed.
        """

    async def update(self, lease: Lease) -> bool:
        """Store a changed lease; return False if there is no such lease."""

    async def drop(self, pool_id: str, address: IPAddress) -> None:
        """Delete a lease. Deleting a missing one succeeds."""

    async def save_pool(self, pool: Pool) -> bool:
        """Store a new or changed pool; return False if it overlaps a pool of another host."""

    async def drop_pool(self, pool_id: str) -> None:
        """Delete a pool with all its leases. Deleting a missing one succeeds."""
