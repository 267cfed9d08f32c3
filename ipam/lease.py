"""A lease: one address of a pool, with its owner."""

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias

IPAddress: TypeAlias = IPv4Address | IPv6Address


class OwnerKind(StrEnum):
    """What an address is used for.

    PENDING: requested for an endpoint that is not known yet (Docker requests the address before it creates the
    endpoint).
    AUX: an auxiliary address of Docker's (`--aux-address`).
    KEPT: not leased; retained for the name of its last owner (`Pool.sticky_s`).
    """

    PENDING = "pending"
    GATEWAY = "gateway"
    AUX = "aux"
    ENDPOINT = "endpoint"
    KEPT = "kept"


RETURNING = frozenset({OwnerKind.PENDING, OwnerKind.ENDPOINT})
"""Owners that may return under the same name; their addresses are retained."""
LASTING = 253_402_300_799.0
"""The expiry time of a reserved address: the end of the year 9999. The reservation itself ends sooner."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who has an address. `id`: the full id of the endpoint or network; `name`: its name for users, if known.

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

    `mac`: the endpoint's MAC address, if known; a retained address is given out with it again. `until`: only of a
    retained address: its expiry time in seconds since the epoch, or `LASTING`.
    """

    pool: str
    address: IPAddress
    owner: Owner
    mac: str = ""
    until: float = 0.0
