"""Cuts the next free subnet out of the bases of one address space.

Subnets that were never used come first, in ascending order; then the released ones, longest released first:
whoever still has a stale route or neighbour entry for an old subnet gets time to lose it. A wide obstacle is
stepped over at once, so the work grows with the number of obstacles and not with the number of possible
subnets.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from .pool import Base, IPNetwork

REMEMBERED = 65_536  # released subnets; more than the default bases have

Blocker: TypeAlias = Callable[[IPNetwork], IPNetwork | None]
"""Returns a network that overlaps the given one and is in use, if there is any."""


class SubnetAllocator:
    """The order of one space's subnets. `steps` counts candidates looked at, for tests."""

    def __init__(self, bases: Sequence[Base]) -> None:
        self._bases = tuple(bases)
        self._cursors = [0] * len(bases)
        self._released: OrderedDict[IPNetwork, None] = OrderedDict()
        self.steps = 0

    def cut(self, version: int, blocker: Blocker) -> IPNetwork | None:
        """Return the next subnet of IP version `version` that nothing blocks."""
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
        """Note that a subnet is used, by whomever."""
        self._released.pop(network, None)

    def release(self, network: IPNetwork) -> None:
        """Note that a subnet is used no longer."""
        if any(base.has(network) for base in self._bases):
            self._released[network] = None
            if len(self._released) > REMEMBERED:
                self._released.popitem(last=False)

    def _again(self, version: int, blocker: Blocker) -> IPNetwork | None:
        for network in self._released:
            self.steps += 1
            if network.version == version and blocker(network) is None:
                return network
        # What was blocked when the cursor passed (a route that has gone since) or is forgotten.
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
