"""Several pools with one subnet: networks of the same LAN, each with a range of its own."""

from collections.abc import Iterable
from ipaddress import ip_network

from .errors import IpamError, Kind
from .lease import IPAddress
from .pool import IPNetwork, Pool


def disjoint(one: Pool, other: Pool) -> bool:
    """Return whether two pools have the same subnet and disjoint ranges.

    >>> from ipaddress import ip_network
    >>> lan = ip_network("192.168.1.0/24")
    >>> halves = [Pool("local", lan, half) for half in lan.subnets()]
    >>> disjoint(*halves), disjoint(halves[0], halves[0]), disjoint(halves[0], Pool("local", lan))
    (True, False, False)
    """
    if (one.space, one.network) != (other.space, other.network):
        return False
    (first, last), (others_first, others_last) = _bounds(one), _bounds(other)
    return last < others_first or others_last < first


def common_subnet(first: IPAddress, last: IPAddress) -> IPNetwork:
    """Return the smallest subnet that contains both addresses. Disjoint ranges get different ones.

    >>> from ipaddress import ip_address
    >>> common_subnet(ip_address("192.168.1.65"), ip_address("192.168.1.127"))
    IPv4Network('192.168.1.64/26')
    """
    length = first.max_prefixlen - (int(first) ^ int(last)).bit_length()
    return ip_network(f"{first}/{length}", strict=False)


def refuse_foreign(pool: Pool, address: IPAddress, others: Iterable[Pool]) -> None:
    """Refuse a static address in the range of another network of the LAN, which may allocate it.

    Raises:
        IpamError: unavailable.
    """
    for other in others:
        first, last = _bounds(other)
        if disjoint(pool, other) and first <= int(address) <= last:
            words = f"address {address} is in the range of another network of subnet {pool.network}"
            raise IpamError(Kind.UNAVAILABLE, words, hint="choose another address, or none")


def _bounds(pool: Pool) -> tuple[int, int]:
    if pool.ends:
        return int(pool.ends[0]), int(pool.ends[1])
    part = pool.range or pool.network
    return int(part.network_address), int(part.broadcast_address)
