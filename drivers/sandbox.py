"""An endpoint in its sandbox: its attachment, and the plan that configures the sandbox as a runtime does.

The plan is for sandboxes without a runtime that configures them.
"""

from collections.abc import Collection
from dataclasses import replace

from .antispoof import at_any_mac
from .api import Attachment, Endpoint, Network
from .naming import sandbox_side
from .plan import Plan
from .steps import EVERYTHING, Address, IPAddress, IPInterface, Loopback, Macvlan, Route, SourceRoute, Step, Veth
from .tunnel_tables import of_fast_path


def gateways(net: Network, ep: Endpoint) -> tuple[IPInterface, ...]:
    """Return the gateways of the subnets that contain the endpoint's addresses."""
    reached = [subnet for subnet in net.subnets if any(address in subnet.pool for address in ep.addresses)]
    return tuple(subnet.gateway for subnet in reached if subnet.gateway)


def attachment(net: Network, ep: Endpoint) -> Attachment:
    """Return the attachment of an endpoint with a link. Internal networks have no gateways."""
    ways = () if net.internal else tuple(gateway.ip for gateway in gateways(net, ep))
    return Attachment(
        link=sandbox_side(ep.id),
        prefix=net.options.ifname,
        mac=ep.chosen_mac(),
        mtu=net.options.mtu,
        gateways=ways,
        isolated=not ways,
        metric=net.options.metric,
    )


def place(
    plan: Plan,
    ep: Endpoint,
    attachment: Attachment,
    netns: str,
    ifname: str,
    *,
    tunable: bool = False,
    any_mac: bool = False,
) -> Plan:
    """Return an endpoint's plan with its sandbox side created in `netns` as `ifname`, with addresses and routes.

    `tunable`: other plugins may change the link and move the routes (`Veth`, `Route`). `any_mac`: they may also change
    the MAC, so it is not checked.
    """
    if attachment.link is None:
        return plan + Plan((Loopback(netns),))
    steps: list[Step] = [Address(ifname, address, netns) for address in ep.addresses]
    for route in attachment.routes:
        metric = 0 if route.destination.prefixlen else attachment.metric
        steps.append(Route(route.destination, ifname, route.gateway, netns, metric=metric))
    ways = default_routes(attachment, netns, ifname)
    if tunable:
        steps = [replace(step, tunable=True) if isinstance(step, Route) else step for step in steps]
        ways = Plan(tuple(replace(step, tunable=True) if isinstance(step, Route) else step for step in ways))
    links = inside(_at_any_mac(plan) if any_mac else plan, netns, ifname, tunable=tunable)
    return links + Plan(tuple(steps)) + ways


def inside(plan: Plan, netns: str, ifname: str, *, tunable: bool = False) -> Plan:
    """Return a plan with the sandbox side of its link created in `netns`, with its final name."""

    def placed(step: Step) -> Step:
        match step:
            case Veth():
                return replace(step, netns=netns, peer=ifname, tunable=tunable)
            case Macvlan(up=False):
                return replace(step, netns=netns, ifname=ifname, tunable=tunable)
        return step

    return Plan(tuple(map(placed, plan)))


def moved(plan: Plan, netns: str | None) -> Plan:
    """Return an endpoint's plan for a sandbox side that a runtime may have moved into `netns`; None: moved back."""

    def taken(step: Step) -> Step:
        if isinstance(step, Macvlan) and not (step.up or step.netns) and step.moved != netns:
            return replace(step, moved=netns, netns_id="")
        return step

    return Plan(tuple(map(taken, plan)))


def reaching(plan: Plan, former: Plan, netns: str, netns_id: str = "") -> Plan:
    """Return an endpoint's plan whose links take a new MTU in sandbox `netns` too, where others may tune them.

    `former`: the plan that was applied before. The result is to be applied, not to be stored.
    """
    mtus = {step.key: step.mtu for step in former if isinstance(step, Macvlan)}

    def reached(step: Step) -> Step:
        match step:
            case Veth(netns=None) if netns:
                return replace(step, moved=netns, netns_id=netns_id)
            case Macvlan(up=False) if mtus.get(step.key, step.mtu) != step.mtu:
                return replace(step, former=mtus[step.key])
        return step

    return Plan(tuple(map(reached, plan)))


def _at_any_mac(plan: Plan) -> Plan:
    """Return a plan whose ports accept any MAC. It has no fast path, which needs a fixed MAC."""
    slow = (step for step in plan if not of_fast_path(step))
    return at_any_mac(Plan(tuple(replace(step, pinned=False) if isinstance(step, Veth) else step for step in slow)))


def source_routes(ep: Endpoint, attachment: Attachment, netns: str, ifname: str, without: Collection[int]) -> Plan:
    """Return the default routes of what the endpoint's addresses send. `without`: IP versions that need none."""
    found: dict[int, IPAddress] = {}
    steps: list[Step] = []
    for route in attachment.routes:
        if route.gateway and not route.destination.prefixlen:
            found.setdefault(route.destination.version, route.gateway)
    for address in ep.addresses if attachment.link else ():
        own = (gateway for gateway in attachment.gateways if gateway in address.network)
        every = (gateway for gateway in attachment.gateways if gateway.version == address.version)
        gateway = next(own, None) or next(every, None) or found.get(address.version)
        if gateway and address.version not in without:
            steps.append(SourceRoute(address.ip, ifname, gateway, netns))
    return Plan(tuple(steps))


def default_routes(attachment: Attachment, netns: str, ifname: str) -> Plan:
    """Return the default routes of an attachment."""
    metric = attachment.metric
    return Plan(tuple(Route(EVERYTHING[it.version], ifname, it, netns, metric=metric) for it in attachment.gateways))
