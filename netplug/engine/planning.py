"""Plans follow from records: what networks and endpoints are made of, computed anew from records and today's facts.

Nothing but the record, the driver and the facts of the host decides over a plan. So a plan can be computed at any time,
and compared with the one that was applied.
"""

from collections.abc import Collection
from dataclasses import replace

from netplug.drivers import shared_ports
from netplug.drivers.api import Attachment, Driver, HostFacts, Network, StaticRoute
from netplug.drivers.plan import Plan
from netplug.drivers.registry import Drivers
from netplug.drivers.sandbox import moved, place, source_routes
from netplug.drivers.steps import Hairpin, Veth
from netplug.engine.base_plan import BasePlan
from netplug.engine.read_facts import ReadFacts
from netplug.engine.records import EndpointRecord, FrontEnd, NetworkRecord
from netplug.engine.registry import Record, Registry


class Planner:
    """Computes plans from records.

    It remembers the facts of the host that the plans of a network followed from, so that a network whose record and
    facts did not change costs nothing (`follows`).
    """

    def __init__(self, registry: Registry, base_plan: BasePlan, drivers: Drivers) -> None:
        self._base_plan = base_plan
        self._drivers = drivers
        self._inputs: dict[str, tuple[Network, ReadFacts]] = {}
        registry.watchers.append(self._changed)

    def network(self, net: Network) -> Plan:
        """Return the plan of a network."""
        return self._drivers.of(net).create_network(net, self._facts(net))

    def endpoint(self, net: Network, record: EndpointRecord) -> EndpointRecord:
        """Return an endpoint with its plan as it is today."""
        return self.new_endpoint(net, record, record.given_routes, record.ways)

    def new_endpoint(
        self, net: Network, record: EndpointRecord, routes: tuple[StaticRoute, ...] | None, ways: Collection[int]
    ) -> EndpointRecord:
        """Return an endpoint with its plan, its MAC, and how its sandbox sees it.

        `routes`: those of the sandbox as its runtime chose them; None: default routes by the network's gateways.
        `ways`: IP versions of which the sandbox gets its default route by this endpoint, as far as there is a gateway.
        """
        driver = self._drivers.of(net)
        seen = driver.join(net, record.endpoint)
        endpoint = replace(record.endpoint, mac=seen.mac or record.endpoint.mac)
        if routes is not None:
            seen = replace(seen, gateways=(), routes=routes, isolated=False)
        plan = driver.create_endpoint(net, endpoint, self._facts(net))
        if record.hairpin:
            plan += Plan(tuple(Hairpin(step.name) for step in plan if isinstance(step, Veth)))
        if furnished(driver, record):
            # In a list of CNI plugins those that come after us may tune the link.
            tunable = record.front_end.shares
            any_mac = tunable and not record.pinned
            inside = _leaving_by(seen, ways)
            plan = place(plan, endpoint, inside, record.sandbox, record.ifname, tunable=tunable, any_mac=any_mac)
            plan += source_routes(endpoint, seen, record.sandbox, record.ifname, ways)
        else:
            plan = moved(plan, record.sandbox or None)
        if record.sandbox_id:
            plan = plan.of_namespace(record.sandbox_id)
        return replace(record, endpoint=endpoint, attachment=seen, plan=plan).summarized()

    def exposed(self, net: Network, record: EndpointRecord) -> Plan:
        """Return what the published ports of an endpoint take beyond its plan."""
        driver, plan = self._drivers.of(net), Plan()
        # The runtime binds its own ports, and not those that a user added.
        for ports, shared in ((record.published, record.front_end.shares), (record.opened, False)):
            if ports:
                part = driver.expose(net, replace(record.endpoint, ports=ports))
                plan += (shared_ports.shared(part) if shared else part).without(step.key for step in plan)
        return plan.without(step.key for step in record.plan)

    def follows(self, record: NetworkRecord) -> bool:
        """Whether the plans of a network and its endpoints, as last computed, are still those that follow."""
        net, facts = self._inputs.get(record.network.id, (None, None))
        return facts is not None and net is record.network and facts.are_of(self._base_plan.host)

    def begin(self, net: Network) -> HostFacts:
        """Begin to compute the plans of a network and all of its endpoints. Return the facts of the host for them."""
        facts = ReadFacts.of(self._base_plan.host)
        self._inputs[net.id] = (net, facts)
        return facts

    def settle(self, net: Network) -> None:
        """Note that the plans that were computed since `begin` are those of this network."""
        _, facts = self._inputs[net.id]
        self._inputs[net.id] = (net, facts)

    def forget(self, ident: str) -> None:
        """Note that the plans of a network may not follow any more."""
        self._inputs.pop(ident, None)

    def _facts(self, net: Network) -> HostFacts:
        """Return the facts of the host, which note what is read of them."""
        host = self._base_plan.host
        if net.id not in self._inputs:
            return host
        begun, facts = self._inputs[net.id]
        if not facts.are_of(host):
            self.forget(net.id)  # others of its plans follow from former facts
            return host
        facts = facts.again(host)
        self._inputs[net.id] = (begun, facts)
        return facts

    def _changed(self, before: Record | None, after: Record | None) -> None:
        if isinstance(before, NetworkRecord) and after is None:
            self.forget(before.network.id)


def _leaving_by(seen: Attachment, ways: Collection[int]) -> Attachment:
    """Return an attachment with the default routes of these IP versions alone."""
    gateways = tuple(it for it in seen.gateways if it.version in ways)
    routes = tuple(it for it in seen.routes if it.destination.prefixlen or it.destination.version in ways)
    return replace(seen, gateways=gateways, routes=routes)


def furnished(driver: Driver, record: EndpointRecord) -> bool:
    """Whether we make link, addresses and routes in the sandbox: no runtime does, nor another plugin."""
    return record.front_end is not FrontEnd.DOCKER and (driver.linked or not driver.addressed)
