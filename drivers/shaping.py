"""Limits of what an endpoint receives and sends."""

from .api import Endpoint, Network
from .errors import DriverError, Kind
from .naming import mac_of_id, shaping_side
from .options import EndpointOptions, NetworkOptions
from .plan import Plan
from .steps import Ifb, Shape

DEFAULT_BURST_S = 0.01
"""In this time a bucket fills: more than passes between two looks of any kernel timer."""
LEAST_DEFAULT_BURST = 80 * 1024
"""Bytes; more than the largest packet that the kernel hands on unsplit (GSO, 64 kB), which counts with the headers of
all its segments: else every one of them would have to be split."""
_HEADER = 18
"""Bytes of an Ethernet header with a VLAN tag."""


def limit(net: NetworkOptions, own: EndpointOptions | None = None) -> tuple[int, int]:
    """Return bits a second and bytes at once for an endpoint, (0, 0) for no limit. Its own options come first.

    Raises:
        DriverError: a burst without a rate, or one that no packet of full size would fit in.
    """
    own = own or EndpointOptions()
    rate = own.rate or net.rate
    burst = own.burst or (0 if own.rate else net.burst)
    if burst and not rate:
        raise DriverError(Kind.INVALID, "option burst is without option rate", hint="give both, or none")
    if burst and burst < net.mtu + _HEADER:
        words = f"option burst={burst}: no packet of the network's mtu fits in, {net.mtu} bytes and {_HEADER} of header"
        raise DriverError(Kind.INVALID, words, hint="leave it out, or give more")
    if rate and not burst:
        burst = max(int(rate / 8 * DEFAULT_BURST_S), LEAST_DEFAULT_BURST)
    return rate, burst


def around(net: Network, ep: Endpoint, link: str, veth: Plan) -> Plan:
    """Return the plan of an endpoint's veth, whose host side is `link`, with what limits it."""
    rate, burst = limit(net.options, ep.options)
    if not rate:
        return veth
    ifb = Ifb(shaping_side(ep.id), mac_of_id("ifb/" + ep.id))
    return Plan((ifb,)) + veth + Plan((Shape(link, ifb.name, rate, burst),))
