"""Published ports as users see them, and those that were asked for but cannot be reached.

An internal network publishes nothing, as with Docker's bridge. That is no fault, but `netplug ps` shows it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from netplug.drivers import port_ranges, published_ports
from netplug.drivers.api import HostFacts, PortMapping
from netplug.drivers.steps import HostPort, IPAddress
from netplug.engine.conditions import Conditions, Difference
from netplug.engine.publishing import Publishing
from netplug.engine.records import EndpointRecord
from netplug.engine.registry import Registry

_SOURCE = "ports"


def published(record: EndpointRecord) -> list[tuple[PortMapping, str]]:
    """Return published ports with their text as in ``docker ps``: one for each IP version."""
    return _shown(record, record.in_force)


def added(record: EndpointRecord) -> list[str]:
    """Return the texts of the published ports that a user added to the living endpoint."""
    return [text for _, text in _shown(record, record.opened)]


def _shown(record: EndpointRecord, ports: Sequence[PortMapping]) -> list[tuple[PortMapping, str]]:
    everywhere = {
        (step.proto, step.port, step.address.version)
        for step in record.exposed
        if isinstance(step, HostPort) and step.address.is_unspecified
    }
    found = []
    for port in ports:
        hosts: list[IPAddress] = [
            host
            for family, host in published_ports.UNSPECIFIED.items()
            if port.host_address is None and (port.proto, port.host_port, family) in everywhere
        ]
        each = [replace(port, host_address=host) for host in hosts] or [port]
        found += [(it, str(it)) for it in each]
    return found


class Exposure:
    """Reports published ports that cannot be reached, as of the host's addresses that were last read.

    No port that was asked for and is not published goes unreported.
    """

    def __init__(self, registry: Registry, conditions: Conditions, publishing: Publishing) -> None:
        self._registry = registry
        self._publishing = publishing
        self._conditions = conditions
        self._addresses: frozenset[IPAddress] | None = None

    def see(self, host: HostFacts) -> None:
        """Learn the addresses of the host, and report ports on any other address."""
        self._addresses = frozenset(interface.ip for interface, _ in host.addresses)
        self._conditions.report(_SOURCE, self._unreached())

    def shown(self, record: EndpointRecord) -> list[str]:
        """Return the published ports of an endpoint, with their faults."""
        found = [f"{text} ({why})" if (why := self._absence(port)) else text for port, text in published(record)]
        found += [f"{port} (not published: internal network)" for port in self._of_internal(record)]
        lost = port_ranges.joined(tuple(self._publishing.lost.get(record.key, ())))
        found += [f"{port} (not published: taken)" for port in lost]
        return found + [f"{port} (not published: no address of that kind)" for port in self._left_out(record)]

    def _absence(self, port: PortMapping) -> str:
        host = port.host_address
        if self._addresses is None or host is None or host.is_unspecified or host.is_loopback:
            return ""
        return "" if host in self._addresses else "address absent"

    def _of_internal(self, record: EndpointRecord) -> tuple[PortMapping, ...]:
        """Return the ports that the internal network does not publish, unless another network of the sandbox does."""
        found = self._registry.find_network(record.endpoint.network)
        if found is None or not found.network.internal or not record.linked or record.in_force:
            return ()
        others = self._registry.in_sandbox(record.sandbox, record.sandbox_id) if record.sandbox else []
        return record.added if any(other.published for other in others) else record.endpoint.ports + record.added

    def _left_out(self, record: EndpointRecord) -> list[PortMapping]:
        """Return the ports on host addresses of an IP version that no network of the container has.

        Only if the runtime binds the ports itself, so that they cannot be relayed.
        """
        found = self._registry.find_network(record.endpoint.network)
        chosen = [port for port in record.endpoint.ports if port.host_address] if record.front_end.shares else []
        if not chosen or found is None or found.network.internal:
            return []
        others = self._registry.endpoints() if record.container else [record]
        same = [it for it in others if (it.front_end, it.container) == (record.front_end, record.container)]
        versions = {interface.version for one in same for interface in one.endpoint.addresses}
        return [port for port in chosen if port.host_address and port.host_address.version not in versions]

    def _unreached(self) -> Iterator[Difference]:
        for record in self._registry.endpoints():
            owner = record.described
            for port in record.in_force:
                if self._absence(port):
                    words = f"this host has no address {port.host_address}; the port works as soon as it has"
                    yield Difference(owner, f"port {port}", words)
            lost = self._publishing.lost.get(record.key, {})
            for why in dict.fromkeys(lost.values()):
                for port in port_ranges.joined([it for it, reason in lost.items() if reason == why]):
                    yield Difference(owner, f"port {port}", f"is not published: {why}")
            for port in self._left_out(record):
                version = port.host_address.version if port.host_address else 0
                yield Difference(owner, f"port {port}", f"is not published: the container has no IPv{version}")
