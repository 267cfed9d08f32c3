"""One address of a pool with its owner."""

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias

IPAddress: TypeAlias = IPv4Address | IPv6Address


class OwnerKind(StrEnum):
    """What an address is for.

    PENDING: asked for, the endpoint is not yet known (Docker asks for the address before it makes the
    endpoint).
    KEPT: nobody's at present, and kept for the name that had it (`Pool.sticky_s`).
    """

    PENDING = "pending"
    GATEWAY = "gateway"
    AUX = "aux"
    ENDPOINT = "endpoint"
    KEPT = "kept"


RETURNING = frozenset({OwnerKind.PENDING, OwnerKind.ENDPOINT})
"""Owners that may come again under their name, and for which an address is kept."""
LASTING = 253_402_300_799.0
"""Kept so long (to the end of the year 9999) is what was promised to somebody: to the end of the promise."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who has an address. `id`: of the endpoint or network, whole; `name`: as the user knows it, if we do.

    >>> str(Owner(OwnerKind.ENDPOINT, "0123456789abcdef"))
    'endpoint 0123456789ab'
    >>> str(Owner(OwnerKind.ENDPOINT, "0123456789abcdef", "web"))
    'endpoint web'
    >>> str(Owner(OwnerKind.GATEWAY))
    'gateway'
    """

    kind: OwnerKind
    id: str = ""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name or self.id[:12]}".rstrip()


@dataclass(frozen=True, slots=True)
class Lease:
    """An address of the pool with id `pool`, and its owner.

    `mac`: the endpoint's, where it is known; of a kept address: the one to be had again with it. `until`: of a kept
    address alone, the time (seconds since the epoch) to which it is kept, or `LASTING`.
    """

    pool: str
    address: IPAddress
    owner: Owner
    mac: str = ""
    until: float = 0.0
