"""Bodies of updates: what shall be otherwise in a network, and what came of it. Their field names are a contract."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from netplug.engine.network_updates import NetworkChange, Updated
from netplug.frontends.rest.fields import MOST, Cidr, Labels
from netplug.frontends.rest.wire import DifferenceOut, NetworkOut, SubnetIn


class UpdateIn(BaseModel):
    """`options`: as of ``-o key=value``; an empty value means the default. What is not given stays as it is.

    `remove_labels`: keys. `dry_run`: only tell what would change.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    options: dict[str, str] = {}
    internal: bool | None = None
    labels: Labels = {}
    remove_labels: Annotated[tuple[str, ...], Field(max_length=MOST)] = ()
    add_subnets: Annotated[tuple[SubnetIn, ...], Field(max_length=MOST)] = ()
    remove_subnets: Annotated[tuple[Cidr, ...], Field(max_length=MOST)] = ()
    dry_run: bool = False

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if both := sorted(self.labels.keys() & set(self.remove_labels)):
            raise ValueError(f"label {both[0][:80]!r} cannot be both set and removed")
        return self

    def to_change(self) -> NetworkChange:
        return NetworkChange(
            self.options,
            self.internal,
            self.labels,
            self.remove_labels,
            tuple(subnet.to_spec() for subnet in self.add_subnets),
            self.remove_subnets,
        )


class UpdateOut(BaseModel):
    """A network after an update, or as it would be. `changes`: of objects in the kernel; `what` is a word.

    `notes`: what containers that run do not get, and why.
    """

    network: NetworkOut
    changes: list[DifferenceOut]
    notes: list[str]
    dry_run: bool

    @classmethod
    def of(cls, updated: Updated, endpoint_count: int, *, dry_run: bool) -> Self:
        return cls(
            network=NetworkOut.of(updated.record, endpoint_count),
            changes=[DifferenceOut(owner=it.owner, object=it.object, what=it.what) for it in updated.changes],
            notes=list(updated.notes),
            dry_run=dry_run,
        )
