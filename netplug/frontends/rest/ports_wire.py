"""The bodies of the REST API about ports of living endpoints. Their field names are a contract."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from netplug.drivers.api import PortMapping
from netplug.engine.added_ports import Added
from netplug.engine.exposure import added, published
from netplug.engine.records import EndpointRecord
from netplug.frontends.first_error import FirstError
from netplug.frontends.rest.fields import Ref
from netplug.frontends.rest.wire import PortIn


class PortsIn(BaseModel):
    """`endpoint`: id, beginning of an id, container, or ``network/container``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: Ref
    ports: Annotated[tuple[PortIn, ...], Field(min_length=1, max_length=65535), FirstError()]

    def to_specs(self) -> list[PortMapping]:
        return [port.to_spec() for port in self.ports]


class PortsOut(BaseModel):
    """What an endpoint publishes now. `ports`: such as ``0.0.0.0:8080->80/tcp``; `added_ports`: those of ``publish``.

    `note`: what was so before, and what is amiss.
    """

    endpoint: str
    network: str
    name: str
    container: str
    front_end: str
    ports: list[str]
    added_ports: list[str]
    note: str = ""

    @classmethod
    def of(cls, record: EndpointRecord, network: str, done: Added | None = None) -> Self:
        same = ", ".join(dict.fromkeys(map(str, done.present if done else ())))
        notes = (f"published already: {same}" if same else "", *(done.notes if done else ()))
        return cls(
            endpoint=record.endpoint.id,
            network=network,
            name=record.name,
            container=record.container,
            front_end=record.front_end,
            ports=[text for _, text in published(record)],
            added_ports=added(record),
            note="; ".join(filter(None, notes)),
        )
