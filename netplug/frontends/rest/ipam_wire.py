"""The bodies of the REST API about addresses: pools, leases, findings of the audit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from pydantic import BaseModel

from netplug.engine.audit import Finding
from netplug.ipam.lease import LASTING, Lease, OwnerKind
from netplug.ipam.pool import Pool, Usage


@dataclass(frozen=True, slots=True)
class Held:
    """A lease, and the name of its host. `here`: that is this host, or all hosts."""

    lease: Lease
    host: str
    here: bool = True


class LeaseOut(BaseModel):
    """`owner_kind`: pending, gateway, aux, endpoint or kept; `owner_id` is the endpoint's, or the network's.

    `until`: of a kept address, the time to which it is kept for the container `owner_name` (ISO 8601, UTC); none when
    that one was created with it, and has it as long as it exists. `host`: on which the owner is; empty for what is on
    all hosts of a cluster.
    """

    address: str
    owner_kind: str
    owner_id: str
    owner_name: str
    mac: str
    until: str | None = None
    host: str = ""

    @classmethod
    def of(cls, held: "Held", names: Mapping[str, str]) -> Self:
        """`names`: present names of networks and endpoints by id; the lease has those of its begin."""
        lease, owner = held.lease, held.lease.owner
        # Another host's endpoint may have an id of one here.
        known = held.here and owner.kind is not OwnerKind.AUX
        name = (known and names.get(owner.id, "")) or owner.name
        passing = 0 < lease.until < LASTING
        until = datetime.fromtimestamp(lease.until, UTC).isoformat(timespec="seconds") if passing else None
        return cls(
            address=str(lease.address),
            owner_kind=owner.kind,
            owner_id=owner.id,
            owner_name=name,
            mac=lease.mac,
            until=until,
            host=held.host,
        )


class PoolOut(BaseModel):
    """`size`: addresses that can be chosen (of the range, where there is one); `used`: leases, static ones too.

    `kept`: addresses kept for containers that are gone, which are among the `leases` too.
    """

    id: str
    space: str
    subnet: str
    range: str | None
    size: int
    used: int
    kept: int
    networks: list[str]
    leases: list[LeaseOut]

    @classmethod
    def of(cls, pool: Pool, usage: Usage, leases: Sequence["Held"], names: Mapping[str, str]) -> Self:
        kept = sum(held.lease.owner.kind is OwnerKind.KEPT for held in leases)
        return cls(
            id=pool.id,
            space=pool.space,
            subnet=str(pool.network),
            range=str(pool.range) if pool.range else None,
            size=usage.size,
            used=len(leases) - kept,
            kept=kept,
            networks=[names.get(holder, holder) for holder in pool.holders],
            leases=[LeaseOut.of(held, names) for held in sorted(leases, key=lambda held: int(held.lease.address))],
        )


class LeaseFindingOut(BaseModel):
    """`address`: empty if the finding is about the pool."""

    subnet: str
    address: str
    what: str

    @classmethod
    def of(cls, found: Finding) -> Self:
        return cls(subnet=str(found.pool.network), address=str(found.address or ""), what=found.what)


class Pools(BaseModel):
    pools: list[PoolOut]


class Findings(BaseModel):
    findings: list[LeaseFindingOut]
