"""Where in a pool the picking of addresses begins."""

from collections.abc import Callable
from hashlib import blake2b
from itertools import count
from typing import TypeAlias

from .pool import EXTERNAL, GLOBAL, Pool

Start: TypeAlias = Callable[[Pool], float]
"""Where in a pool picking begins: a fraction of it, 0 ≤ start < 1. Asked anew when another host was there."""


def default_start(pool: Pool) -> float:
    """Return 0, but ½ for external pools: there Docker picks from the beginning, and we must not meet.

    In the middle of 172.18.0.0/16 is 172.18.128.0, which reads as a subnet: one further on then.
    """
    if pool.space != EXTERNAL:
        return 0.0
    first, last = pool.window
    middle = (last - first + 1) // 2
    if pool.network.version == 4 and (first + middle) % 256 == 0 and last - first >= 256:
        return (middle + 1.5) / (last - first + 1)
    return 0.5


class HashedStart:
    """Starts for one of several hosts that share pools "global": places of its own, another one at each call.

    >>> from ipaddress import ip_network
    >>> start, other, pool = HashedStart("a"), HashedStart("b"), Pool("global", ip_network("10.1.0.0/16"))
    >>> len({start(pool), start(pool), other(pool)})
    3
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._calls = count()

    def __call__(self, pool: Pool) -> float:
        if pool.space != GLOBAL:
            return default_start(pool)
        digest = blake2b(f"{self._host} {pool.id} {next(self._calls)}".encode(), digest_size=4).digest()
        return int.from_bytes(digest) / 2**32
