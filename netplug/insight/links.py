"""Which link of a sandbox belongs to which endpoint."""

from collections.abc import Sequence

from netplug.drivers.naming import mark, sandbox_side
from netplug.engine.records import EndpointRecord
from netplug.kernel.probes.api import Facts, LinkState


def owner(link: LinkState, records: Sequence[EndpointRecord]) -> EndpointRecord | None:
    """Return the endpoint that a link of a sandbox belongs to: its altname bears our mark, else it has its address."""
    marked = next((it for it in records if _marked(link, it)), None)
    return marked or next((it for it in records if _addressed(link, it)), None)


def link_of(record: EndpointRecord, inside: Facts) -> LinkState | None:
    """Return the link of an endpoint in its sandbox, whatever the runtime calls it."""
    marked = next((it for it in inside.links if _marked(it, record)), None)
    return marked or next((it for it in inside.links if _addressed(it, record)), None)


def _marked(link: LinkState, record: EndpointRecord) -> bool:
    return mark(sandbox_side(record.endpoint.id)) in link.altnames


def _addressed(link: LinkState, record: EndpointRecord) -> bool:
    own = {it.ip for it in record.endpoint.addresses}
    return any(it.ip in own for it in link.addresses)
