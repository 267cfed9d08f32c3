"""Where in a pool the allocation of addresses starts."""

from collections.abc import Callable
from hashlib import blake2b
from itertools import count
from typing import TypeAlias

from .pool import EXTERNAL, GLOBAL, Pool

Start: TypeAlias = Callable[[Pool], float]
"""Returns where in a pool allocation starts: a fraction of it, 0 ≤ start < 1. Called again after a conflict."""


def default_start(pool: Pool) -> float:
    """Return 0; for an external pool about ½, because Docker itself allocates addresses from its start.

    The middle of 172.18.0.0/16 would be 172.18.128.0, which looks like a subnet; so the next address is used.
    """
    if pool.space != EXTERNAL:
        return 0.0
    first, last = pool.window
    middle = (last - first + 1) // 2
    if pool.network.version == 4 and (first + middle) % 256 == 0 and last - first >= 256:
        return (middle + 1.5) / (last - first + 1)
    return 0.5


class HashedStart:
    """Starts for hosts that share the pools of space "global": a different one for each host and at each call.

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
