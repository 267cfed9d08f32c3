"""How an endpoint shows in its sandbox: its attachment, and what a runtime does with it, as a plan.

The plan is for sandboxes that have no runtime to do it.
"""

from dataclasses import replace
from ipaddress import ip_network

from .api import Attachment, Endpoint, Network
from .naming import sandbox_side
from .plan import Plan
from .steps import Address, IPInterface, Loopback, Route, Step

_DEFAULT = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}


def gateways(net: Network, ep: Endpoint) -> tuple[IPInterface, ...]:
    """Return the gateways of the subnets that the endpoint has addresses of."""
    reached = [subnet for subnet in net.subnets if any(address in subnet.pool for address in ep.addresses)]
    return tuple(subnet.gateway for subnet in reached if subnet.gateway)


def attachment(net: Network, ep: Endpoint) -> Attachment:
    """Return the attachment of an endpoint that has a link; internal networks have no way out."""
    ways = () if net.internal else tuple(gateway.ip for gateway in gateways(net, ep))
    return Attachment(
        link=sandbox_side(ep.id),
        prefix=net.options.ifname,
        mac=ep.chosen_mac(),
        mtu=net.options.mtu,
        gateways=ways,
        isolated=not ways,
    )


def place(plan: Plan, ep: Endpoint, attachment: Attachment, netns: str, ifname: str, *, tunable: bool = False) -> Plan:
    """Return an endpoint's plan with its sandbox side made in `netns` as `ifname`, with addresses and routes.

    `tunable`: others may change the link and move the routes there (`Veth`, `Route`).
    """
    if attachment.link is None:
        return plan + Plan((Loopback(netns),))
    steps: list[Step] = [Address(ifname, address, netns) for address in ep.addresses]
    steps += [Route(route.destination, ifname, route.gateway, netns) for route in attachment.routes]
    ways = ways_out(attachment, netns, ifname)
    if tunable:
        steps = [replace(step, tunable=True) if isinstance(step, Route) else step for step in steps]
        ways = Plan(tuple(replace(step, tunable=True) if isinstance(step, Route) else step for step in ways))
    return plan.into(netns, ifname, tunable=tunable) + Plan(tuple(steps)) + ways


def ways_out(attachment: Attachment, netns: str, ifname: str) -> Plan:
    """Return the default routes of an attachment."""
    return Plan(tuple(Route(_DEFAULT[it.version], ifname, it, netns) for it in attachment.gateways))
