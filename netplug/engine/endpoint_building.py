"""Builds endpoints: options, addresses, plan, journal, ports, in this order; a build that fails leaves nothing."""

import time
from collections.abc import Sequence
from contextlib import nullcontext

import structlog

from netplug.drivers.api import Endpoint, Network
from netplug.drivers.naming import short
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import IPAddress, Route
from netplug.engine.addressing import Addressing
from netplug.engine.journal import Intent, Journal
from netplug.engine.network_checks import refuse_anycast
from netplug.engine.planning import Planner
from netplug.engine.port_reservation import in_order
from netplug.engine.publishing import Publishing
from netplug.engine.records import ENDPOINTS, Caller, EndpointRecord, EndpointSpec, NetworkRecord
from netplug.engine.registry import Registry, put
from netplug.engine.way_out import WayOut
from netplug.errors import NetplugError
from netplug.kernel.api import HostKernel, StepError
from netplug.tasks.turns import aside

log = structlog.get_logger(__name__)

_DESCRIPTORS = 4
"""File descriptors that an endpoint may take beside those of its ports: for the name server in its sandbox."""


class EndpointBuilder:
    """Builds new endpoints, and endpoints with other addresses, under the lock of their network."""

    def __init__(
        self,
        registry: Registry,
        planner: Planner,
        journal: Journal,
        addressing: Addressing,
        kernel: HostKernel,
        drivers: Drivers,
        publishing: Publishing,
        way_out: WayOut,
    ) -> None:
        self._registry = registry
        self._planner = planner
        self._journal = journal
        self._addressing = addressing
        self._kernel = kernel
        self._drivers = drivers
        self._publishing = publishing
        self._way_out = way_out

    async def create(self, record: NetworkRecord, spec: EndpointSpec, wanted: Sequence[IPAddress]) -> EndpointRecord:
        """Build a new endpoint. `wanted`: addresses that the user asks for; the runtime's are in `spec`.

        Raises:
            NetplugError, DriverError, IpamError: and nothing was changed.
        """
        started = time.monotonic()
        self._registry.quarantine.refuse(f"{ENDPOINTS}{spec.network}/{spec.id}")
        driver, net = self._drivers.of(record.network), record.network
        options = self._drivers.parse_endpoint(spec.options, net.options.mode)
        if net.internal and options.gw_priority is not None:
            words = f"option gw_priority: network {net.name!r} is internal, and never provides the default route"
            raise NetplugError("invalid", words, hint="leave it out")
        refuse_anycast(net, wanted)
        driver.admit(net, len(self._registry.endpoints(net.id)))
        self._kernel.ports.admit(_DESCRIPTORS, "one more endpoint")
        async with self._addressing.addresses(record, spec, wanted) as leased:
            endpoint = Endpoint(
                spec.id, net.id, leased.addresses, spec.mac or leased.mac, in_order(spec.ports), options
            )
            built = EndpointRecord(
                endpoint,
                spec.front_end,
                leased.pools,
                spec.name,
                spec.aliases,
                spec.container,
                sandbox=spec.netns or spec.elsewhere[0],
                ifname=spec.ifname,
                sandbox_id=spec.netns_id or spec.elsewhere[1],
                runtime=spec.caller.runtime,
                ipam=spec.ipam,
                hairpin=spec.hairpin,
                pinned=spec.pinned,
            )
            built = await self.build(net, built, spec)
        log.info(
            "endpoint.created",
            network=net.name,
            endpoint=short(spec.id),
            addresses=[str(address.ip) for address in built.endpoint.addresses],
            ms=round((time.monotonic() - started) * 1000, 1),
        )
        return built

    async def build(self, net: Network, wanted: EndpointRecord, spec: EndpointSpec) -> EndpointRecord:
        """Build an endpoint as its record says, with the routes of `spec`; what is there already stays.

        Raises:
            NetplugError, DriverError: and nothing was changed.
        """
        given = spec.routes
        ways = self._way_out.free(spec.netns, spec.netns_id, wanted.key) if spec.netns else {4, 6}
        while True:
            hidden = self._planner.new_endpoint(net, wanted, given, ways)
            try:
                built = await self._published(net, hidden, spec.caller)
            except StepError as error:
                # A container may have a default route of another plugin's network, which nobody tells us: it stays.
                step = error.step
                if error.kind != "exists" or not wanted.front_end.shares:
                    raise
                if not isinstance(step, Route) or not step.leads_out:
                    raise
                log.info("endpoint.has_way_out", endpoint=short(wanted.endpoint.id), route=step.key)
                ways = ways - {step.destination.version}
            else:
                return built

    async def _published(self, net: Network, hidden: EndpointRecord, caller: Caller) -> EndpointRecord:
        # Docker publishes ports by a request of its own; all others attach at once.
        async with self._publishing.exposed(net, hidden, caller) if hidden.ifname else nullcontext(hidden) as built:
            intent = Intent(f"endpoint {short(built.endpoint.id)}", built.present, (built.key,))
            key, _ = await self._journal.build(intent)
            await self._journal.commit(key, [await aside(len(built.exposed), put, built)])
            self._registry.remember(built)
        return built
