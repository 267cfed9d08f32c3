"""Allocates the next free subnet from the base ranges of one address space.

Subnets that were never used come first, in ascending order; then released ones, the longest released first, so that
stale routes and neighbour entries for an old subnet have time to expire. One step skips a whole obstacle, such as a
wide route, so the cost depends on the number of obstacles and not on the number of subnets.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from .pool import Base, IPNetwork

REMEMBERED = 65_536  # released subnets; the default bases have fewer

Blocker: TypeAlias = Callable[[IPNetwork], IPNetwork | None]
"""Returns a network in use that overlaps the given one, or None."""


class SubnetAllocator:
    """The allocation order of one space's subnets. `steps` counts the candidates examined, for tests."""

    def __init__(self, bases: Sequence[Base]) -> None:
        self._bases = tuple(bases)
        self._cursors = [0] * len(bases)
        self._released: OrderedDict[IPNetwork, None] = OrderedDict()
        self.steps = 0

    def cut(self, version: int, blocker: Blocker) -> IPNetwork | None:
        """Return the next subnet of IP version `version` that `blocker` allows; None if there is none."""
        for which, base in enumerate(self._bases):
            if base.network.version != version:
                continue
            for index, network in self._free(base, self._cursors[which], blocker):
                self._cursors[which] = index + 1
                if network not in self._released:
                    return network
            self._cursors[which] = base.count
        return self._again(version, blocker)

    def take(self, network: IPNetwork) -> None:
        """Record that a subnet is in use, no matter by whom."""
        self._released.pop(network, None)

    def release(self, network: IPNetwork) -> None:
        """Record that a subnet is no longer in use."""
        if any(base.has(network) for base in self._bases):
            self._released[network] = None
            if len(self._released) > REMEMBERED:
                self._released.popitem(last=False)

    def _again(self, version: int, blocker: Blocker) -> IPNetwork | None:
        for network in self._released:
            self.steps += 1
            if network.version == version and blocker(network) is None:
                return network
        # Subnets that were blocked when the cursor passed, by a route that no longer exists; and forgotten ones.
        for base in self._bases:
            if base.network.version == version:
                for _, network in self._free(base, 0, blocker):
                    return network
        return None

    def _free(self, base: Base, index: int, blocker: Blocker) -> Iterator[tuple[int, IPNetwork]]:
        while index < base.count:
            self.steps += 1
            network = base.subnet(index)
            block = blocker(network)
            if block is None:
                yield index, network
                index += 1
            else:
                index = base.index(int(block.broadcast_address)) + 1
