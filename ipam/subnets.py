"""A set of networks of one family that finds overlaps without a full scan.

Two networks overlap only if one contains the other. So two searches suffice: for a network that starts inside (in a
sorted list), and for one that contains it (one look-up for each prefix length in the set, at most 33 or 129).
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

from .pool import IPNetwork


class Subnets:
    """Networks of IP version `version`; those of the other version are ignored."""

    def __init__(self, version: int, networks: Iterable[IPNetwork] = ()) -> None:
        self._bits = 32 if version == 4 else 128
        self._version = version
        own = (network for network in networks if network.version == version)
        self._sorted = sorted({(int(network.network_address), network.prefixlen) for network in own})
        self._set = set(self._sorted)
        self._lengths = Counter(length for _, length in self._sorted)

    def add(self, network: IPNetwork) -> None:
        entry = (int(network.network_address), network.prefixlen)
        if entry not in self._set:
            insort(self._sorted, entry)
            self._set.add(entry)
            self._lengths[network.prefixlen] += 1

    def remove(self, network: IPNetwork) -> None:
        """Remove a network. Removing a missing one succeeds."""
        entry = (int(network.network_address), network.prefixlen)
        if entry not in self._set:
            return
        self._set.remove(entry)
        del self._sorted[bisect_left(self._sorted, entry)]
        self._lengths[network.prefixlen] -= 1
        if not self._lengths[network.prefixlen]:
            del self._lengths[network.prefixlen]

    def overlap(self, network: IPNetwork) -> IPNetwork | None:
        """Return one of the networks that overlap `network`; if some contain it, the widest of them.

        >>> from ipaddress import ip_network
        >>> subnets = Subnets(4, [ip_network("10.0.0.0/8"), ip_network("192.168.7.0/24")])
        >>> subnets.overlap(ip_network("10.1.0.0/16")), subnets.overlap(ip_network("192.168.0.0/16"))
        (IPv4Network('10.0.0.0/8'), IPv4Network('192.168.7.0/24'))
        """
        first, length = int(network.network_address), network.prefixlen
        for outer in sorted(self._lengths):
            if outer >= length:
                break
            shift = self._bits - outer
            if (entry := (first >> shift << shift, outer)) in self._set:
                return self._network(entry)
        index = bisect_left(self._sorted, (first, length))
        if index < len(self._sorted) and self._sorted[index][0] <= int(network.broadcast_address):
            return self._network(self._sorted[index])
        return None

    def _network(self, entry: tuple[int, int]) -> IPNetwork:
        return IPv4Network(entry) if self._version == 4 else IPv6Network(entry)
