"""Limits of what an endpoint receives and sends.

A limit has two sides, in this order: what the sandbox receives, and what it sends.
"""

from .api import Endpoint, Network
from .errors import DriverError, Kind
from .naming import mac_of_id, shaping_side
from .options import EndpointOptions, NetworkOptions
from .plan import Plan
from .steps import Ifb, Shape

DEFAULT_BURST_S = 0.01
"""In this time a bucket fills: more than passes between two looks of any kernel timer."""
MIN_DEFAULT_BURST = 80 * 1024
"""Bytes; more than the largest packet that the kernel hands on unsplit (GSO, 64 kB), which counts with the headers of
all its segments: else every one of them would have to be split."""
_HEADER = 18
"""Bytes of an Ethernet header with a VLAN tag."""

Sides = tuple[int, int]


def limit(net: NetworkOptions, own: EndpointOptions | None = None) -> tuple[Sides, Sides]:
    """Return bits a second and bytes at once for an endpoint, 0 for no limit. Its own options come first.

    Raises:
        DriverError: a burst without a rate, or one that no packet of full size would fit in.
    """
    own = own or EndpointOptions()
    given = (own.rate or net.rate, own.burst or (None if own.rate else net.burst))
    rates, bursts = given[0] or (0, 0), given[1] or (0, 0)
    sides = [_side(rate, burst, net.mtu) for rate, burst in zip(rates, bursts, strict=True)]
    if any(bursts) and not any(rates):
        raise DriverError(Kind.INVALID, "option burst is without option rate", hint="give both, or none")
    return rates, (sides[0], sides[1])


def _side(rate: int, burst: int, mtu: int) -> int:
    if rate and burst and burst < mtu + _HEADER:
        words = f"option burst={burst}: no packet of the network's mtu fits in, {mtu} bytes and {_HEADER} of header"
        raise DriverError(Kind.INVALID, words, hint="leave it out, or give more")
    if not rate:
        return 0
    return burst or max(int(rate / 8 * DEFAULT_BURST_S), MIN_DEFAULT_BURST)


def with_limits(net: Network, ep: Endpoint, link: str, veth: Plan) -> Plan:
    """Return the plan of an endpoint's veth, whose host side is `link`, with what limits it."""
    rate, burst = limit(net.options, ep.options)
    if not any(rate):
        return veth
    ifb = Plan((Ifb(shaping_side(ep.id), mac_of_id("ifb/" + ep.id)),)) if rate[1] else Plan()
    return ifb + veth + Plan((Shape(link, shaping_side(ep.id) if ifb else "", rate, burst),))
