"""How many subnets an address space has left."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .pool import Base, IPNetwork, Pool, Space


@dataclass(frozen=True, slots=True)
class Room:
    """The IPv4 subnets of the default size in a space: how many there are, and how many no pool overlaps.

    Those that are free may still be avoided, since the host has routes to them.
    """

    space: str
    size: int
    free: int


def room(spaces: Iterable[Space], pools: Sequence[Pool]) -> list[Room]:
    """Return the room of each space that has IPv4 subnets to choose from."""
    networks = [pool.network for pool in pools if pool.network.version == 4]
    found = []
    for space in spaces:
        bases = [base for base in space.bases if base.network.version == 4]
        if bases:
            size = sum(2 ** (base.size - base.network.prefixlen) for base in bases)
            found.append(Room(space.name, size, size - sum(_taken(base, networks) for base in bases)))
    return found


def _taken(base: Base, networks: Iterable[IPNetwork]) -> int:
    """Return how many subnets of a base overlap any of the networks."""
    there = [it for it in networks if it.version == base.network.version and it.overlaps(base.network)]
    small = {int(it.network_address) >> (it.max_prefixlen - base.size) for it in there if it.prefixlen >= base.size}
    large = (1 << base.size - max(it.prefixlen, base.network.prefixlen) for it in there if it.prefixlen < base.size)
    return min(len(small) + sum(large), 1 << base.size - base.network.prefixlen)
