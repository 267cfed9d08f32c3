"""Requests that are repeated since the process died before it had answered them.

A record that is there at a start may be the work of a request whose answer was lost. The executables of CNI repeat such
a request by themselves, other callers may. The first request after a start that asks for just what is there is answered
as the lost one would have been. A second one is refused as ever: its caller has made a mistake.
"""

from collections.abc import Collection

import structlog

from netplug.drivers.naming import short
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import IPAddress
from netplug.engine.disagreement import NetworkDiffersError, differences_of_endpoint, refuse_disagreement
from netplug.engine.records import EndpointRecord, EndpointSpec, NetworkRecord, NetworkSpec
from netplug.engine.registry import Registry
from netplug.ipam.allocator import Allocator

log = structlog.get_logger(__name__)


class LostAnswers:
    """Finds what a request asks for among the records of an earlier process."""

    def __init__(self, registry: Registry, allocator: Allocator, drivers: Drivers) -> None:
        self._registry = registry
        self._allocator = allocator
        self._drivers = drivers

    async def network(self, spec: NetworkSpec) -> NetworkRecord | None:
        """Return the network that a lost answer told of.

        Raises:
            DriverError: an option is wrong.
        """
        if not self._registry.unanswered:
            return None
        name = self._drivers.parse(spec.options).name or spec.name
        found = [
            it
            for it in self._registry.networks()
            if (it.network.id == spec.id if spec.id else it.network.name == name) and it.front_end is spec.front_end
        ]
        for record in found:
            async with self._registry.lock(record.network.id):
                if self._registry.find_network(record.network.id) is record and self._is_same(record, spec):
                    return record if self.take(record.network.id) else None
        return None

    def _is_same(self, record: NetworkRecord, spec: NetworkSpec) -> bool:
        made = record.as_created
        if (dict(made.options), made.internal, dict(record.labels)) != (
            dict(spec.options),
            spec.internal,
            {**spec.labels},
        ):
            return False
        if len(record.network.subnets) != len(spec.subnets):
            return False
        try:
            refuse_disagreement(record, spec, self._registry, self._allocator, self._drivers)
        except NetworkDiffersError:
            return False
        return True

    def is_endpoint(self, built: EndpointRecord, wanted: EndpointSpec, addresses: Collection[IPAddress]) -> bool:
        """Tell whether a lost answer told of this endpoint. Under the lock of its network."""
        if built.endpoint.id not in self._registry.unanswered or built.front_end is not wanted.front_end:
            return False
        mode = self._registry.network(built.endpoint.network).network.options.mode
        differs = differences_of_endpoint(built, wanted, addresses, mode, self._drivers)
        return not differs and self.take(built.endpoint.id)

    def take(self, ident: str) -> bool:
        """Tell whether the answer about this object was lost; a second time it was not."""
        if ident not in self._registry.unanswered:
            return False
        self._registry.unanswered.discard(ident)
        log.info("request.repeated_after_crash", object=short(ident))
        return True
