"""What a runtime does with an attachment, as a plan: for sandboxes that have no runtime to do it."""

from ipaddress import ip_network

from .api import Attachment, Endpoint
from .plan import Address, Loopback, Plan, Route, Step

_DEFAULT = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}


def place(plan: Plan, ep: Endpoint, attachment: Attachment, netns: str, ifname: str) -> Plan:
    """Return an endpoint's plan with its sandbox side made in `netns` as `ifname`, with addresses and routes."""
    if attachment.link is None:
        return plan + Plan((Loopback(netns),))
    steps: list[Step] = [Address(ifname, address, netns) for address in ep.addresses]
    steps += [Route(route.destination, ifname, route.gateway, netns) for route in attachment.routes]
    return plan.into(netns, ifname) + Plan(tuple(steps)) + ways_out(attachment, netns, ifname)


def ways_out(attachment: Attachment, netns: str, ifname: str) -> Plan:
    """Return the default routes of an attachment."""
    return Plan(tuple(Route(_DEFAULT[it.version], ifname, it, netns) for it in attachment.gateways))
