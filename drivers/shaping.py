"""Rate limits of an endpoint.

A limit has two values, in this order: for traffic to the sandbox, and for traffic from it.
"""

from .api import Endpoint, Network
from .errors import DriverError, Kind
from .naming import mac_of_id, shaping_side
from .options import EndpointOptions, NetworkOptions
from .plan import Plan
from .steps import Ifb, Shape

DEFAULT_BURST_S = 0.01
"""Default burst as the time in which the bucket fills. It is longer than a tick of any kernel timer."""
MIN_DEFAULT_BURST = 80 * 1024
"""Bytes. It exceeds the largest GSO packet (64 kB), which counts with the headers of all its segments. With a smaller
burst the kernel would have to split each of them."""
_HEADER = 18
"""Bytes of an Ethernet header with a VLAN tag."""

Sides = tuple[int, int]


def limit(net: NetworkOptions, own: EndpointOptions | None = None) -> tuple[Sides, Sides]:
    """Return rate in bit/s and burst in bytes of an endpoint, 0 for no limit. Its own options override the network's.

    Raises:
        DriverError: a burst without a rate, or one smaller than a packet of full size.
    """
    own = own or EndpointOptions()
    given = (own.rate or net.rate, own.burst or (None if own.rate else net.burst))
    rates, bursts = given[0] or (0, 0), given[1] or (0, 0)
    sides = [_side(rate, burst, net.mtu) for rate, burst in zip(rates, bursts, strict=True)]
    if any(bursts) and not any(rates):
        raise DriverError(Kind.INVALID, "option burst needs option rate", hint="give both, or none")
    return rates, (sides[0], sides[1])


def _side(rate: int, burst: int, mtu: int) -> int:
    if rate and burst and burst < mtu + _HEADER:
        words = f"option burst={burst}: a packet of full size needs {mtu} bytes (mtu) and {_HEADER} bytes of header"
        raise DriverError(Kind.INVALID, words, hint="leave it out, or give more")
    if not rate:
        return 0
    return burst or max(int(rate / 8 * DEFAULT_BURST_S), MIN_DEFAULT_BURST)


def with_limits(net: Network, ep: Endpoint, link: str, veth: Plan) -> Plan:
    """Return the plan of an endpoint's veth with its rate limits. `link`: its host side."""
    rate, burst = limit(net.options, ep.options)
    if not any(rate):
        return veth
    ifb = Plan((Ifb(shaping_side(ep.id), mac_of_id("ifb/" + ep.id)),)) if rate[1] else Plan()
    return ifb + veth + Plan((Shape(link, shaping_side(ep.id) if ifb else "", rate, burst),))
