"""Pools, and the address spaces that subnets are allocated from.

A pool's id is built from the request, because Docker repeats the request after each restart and expects the same id.
It is readable, because it appears in `docker network inspect`, in logs and in keys of the store.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

from .errors import IpamError, Kind
from .lease import IPAddress

IPNetwork: TypeAlias = IPv4Network | IPv6Network

LOCAL = "local"
GLOBAL = "global"
EXTERNAL = "external"


@dataclass(frozen=True, slots=True)
class Pool:
    """A subnet that addresses are leased from.

    Attributes:
        space: name of its address space.
        network: the subnet. Static addresses may be anywhere in it.
        range: the part from which addresses are allocated (``--ip-range``); None: all of the subnet.
        holds: the number of requests for this pool that were not released yet.
        holders: ids of the networks that are bound to it. A pool exists while it has holds or holders.
        sticky_s: for how many seconds a released address is retained for the name of its last owner; 0: not at all.
        ends: first and last address to allocate, where the range is not a subnet (CNI: rangeStart, rangeEnd).

    >>> Pool("local", ip_network("10.0.0.0/16"), ip_network("10.0.1.0/24")).id
    'local/10.0.0.0/16/10.0.1.0/24'
    """

    space: str
    network: IPNetwork
    range: IPNetwork | None = None
    holds: int = 0
    holders: tuple[str, ...] = ()
    sticky_s: int = 0
    ends: tuple[IPAddress, IPAddress] | None = None

    @property
    def id(self) -> str:
        return pool_id(self.space, self.network, self.range)

    @property
    def wanted(self) -> bool:
        """Whether the pool has a hold or a holder."""
        return bool(self.holds or self.holders)

    def more(self) -> "Pool":
        """Return the pool with one more hold."""
        return replace(self, holds=self.holds + 1)

    def less(self) -> "Pool":
        """Return the pool with one hold less."""
        return replace(self, holds=self.holds - 1)

    def bound_to(self, holder: str) -> "Pool":
        """Return the pool bound to one more network."""
        return replace(self, holders=(*self.holders, holder))

    def unbound_from(self, holder: str) -> "Pool":
        """Return the pool no longer bound to this network."""
        return replace(self, holders=tuple(other for other in self.holders if other != holder))

    def sticky(self, seconds: int) -> "Pool":
        """Return the pool with another `sticky_s`."""
        return replace(self, sticky_s=seconds)

    @property
    def window(self) -> tuple[int, int]:
        """The first and last address to allocate, as numbers; if there is none, the last is the smaller one.

        Up to /30, the first address of an IPv4 subnet is its network address, and the last its broadcast address.
        Up to /126, the first address of an IPv6 subnet is the subnet-router anycast address (RFC 4291 §2.6.1; for /127
        see RFC 6164).

        >>> Pool("local", ip_network("10.1.0.0/29")).window == (0x0A010001, 0x0A010006)
        True
        """
        part = self.network if self.range is None else self.range
        first, last = int(part.network_address), int(part.broadcast_address)
        if self.network.prefixlen <= self.network.max_prefixlen - 2:
            first = max(first, int(self.network.network_address) + 1)
            if self.network.version == 4:
                last = min(last, int(self.network.broadcast_address) - 1)
        if self.ends is not None:
            first, last = max(first, int(self.ends[0])), min(last, int(self.ends[1]))
        return first, last

    def check(self, address: IPAddress) -> None:
        """Check that an endpoint may have `address`.

        Raises:
            IpamError: invalid: it is outside the subnet, or its network or broadcast address.
        """
        if address not in self.network:
            raise IpamError(
                Kind.INVALID,
                f"address {address} is not in subnet {self.network}",
                hint="choose an address of the network's subnet",
            )
        if isinstance(self.network, IPv4Network) and self.network.prefixlen <= 30:
            ends = {
                self.network.network_address: "network address",
                self.network.broadcast_address: "broadcast address",
            }
            if isinstance(address, IPv4Address) and (what := ends.get(IPv4Address(int(address)))):
                raise IpamError(Kind.INVALID, f"address {address} is the {what} of subnet {self.network}")

    def address(self, number: int) -> IPAddress:
        """Convert a number to an address of the pool's family."""
        return IPv4Address(number) if self.network.version == 4 else IPv6Address(number)


@dataclass(frozen=True, slots=True)
class Usage:
    """How many addresses of a pool are used. The numbers of an IPv6 pool may have 20 digits.

    Attributes:
        size: addresses that can be allocated (of the range, if there is one).
        free: those of them that are neither leased nor retained.
        leased: leases, including static ones outside the range.
        kept: retained addresses. When none is free, they are given away.
    """

    size: int
    free: int
    leased: int
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Base:
    """A range from which subnets of prefix length `size` are allocated.

    Raises:
        IpamError: invalid: the range has no subnets of this size.
    """

    network: IPNetwork
    size: int

    def __post_init__(self) -> None:
        if not self.network.prefixlen <= self.size <= self.network.max_prefixlen:
            raise IpamError(
                Kind.INVALID,
                f"base {self.network} cannot be divided into /{self.size} subnets",
                hint=f"choose a size from {self.network.prefixlen} to {self.network.max_prefixlen}",
            )

    @property
    def count(self) -> int:
        """The number of its subnets."""
        return 1 << (self.size - self.network.prefixlen)

    def subnet(self, index: int) -> IPNetwork:
        """Return the subnet with this index, from 0.

        >>> Base(ip_network("10.208.0.0/12"), 24).subnet(257)
        IPv4Network('10.209.1.0/24')
        """
        first = int(self.network.network_address) + (index << (self.network.max_prefixlen - self.size))
        if self.network.version == 4:
            return IPv4Network((first, self.size))
        return IPv6Network((first, self.size))

    def index(self, number: int) -> int:
        """Return the index of the subnet that contains an address, given as a number."""
        return (number - int(self.network.network_address)) >> (self.network.max_prefixlen - self.size)

    def has(self, network: IPNetwork) -> bool:
        """Return whether `network` is a subnet of this base."""
        return network.prefixlen == self.size and contains(self.network, network)


@dataclass(frozen=True, slots=True)
class Space:
    """An address space. Without bases, each request for a pool must name its subnet."""

    name: str
    bases: tuple[Base, ...] = ()

    def exhausted(self, version: int) -> IpamError:
        """Return the error for a request that finds no free subnet of this IP version."""
        bases = ", ".join(str(base.network) for base in self.bases if base.network.version == version)
        message = (
            f"address space {self.name!r} has no free IPv{version} subnet in {bases}"
            if bases
            else f"address space {self.name!r} has no IPv{version} range to choose a subnet from"
        )
        return IpamError(Kind.UNAVAILABLE, message, hint="choose one with --subnet")


def taking(holder: str) -> tuple[Callable[[Pool], Pool], Callable[[Pool], Pool]]:
    """Return two functions: one adds a hold to a pool, or binds it to network `holder`; the other undoes that."""
    if not holder:
        return Pool.more, Pool.less
    return (lambda pool: pool.bound_to(holder)), (lambda pool: pool.unbound_from(holder))


def pool_id(space: str, network: IPNetwork, part: IPNetwork | None = None) -> str:
    """Return the id of the pool for this request.

    >>> pool_id("local", ip_network("10.208.0.0/24"))
    'local/10.208.0.0/24'
    """
    return f"{space}/{network}" if part is None else f"{space}/{network}/{part}"


def contains(outer: IPNetwork, inner: IPNetwork) -> bool:
    """Return whether `inner` is `outer` or a part of it; False if their families differ."""
    return (
        outer.version == inner.version
        and outer.prefixlen <= inner.prefixlen
        and int(outer.network_address) == int(inner.network_address) & int(outer.netmask)
    )


def check_request(network: IPNetwork | None, part: IPNetwork | None, *, v6: bool) -> None:
    """Check that subnet, range and family of a request agree.

    Raises:
        IpamError: invalid.
    """
    if network is None:
        if part is not None:
            raise IpamError(Kind.INVALID, f"range {part} needs the subnet that contains it", hint="give --subnet")
        return
    if v6 and network.version == 4:
        raise IpamError(
            Kind.INVALID,
            f"subnet {network} is IPv4, but the request is for an IPv6 pool",
            hint="give an IPv6 --subnet",
        )
    if part is None:
        return
    if part.version != network.version:
        raise IpamError(
            Kind.INVALID,
            f"range {part} is IPv{part.version}, but subnet {network} is IPv{network.version}",
            hint="use the same family for both",
        )
    if not contains(network, part):
        raise IpamError(
            Kind.INVALID,
            f"range {part} is not in subnet {network}",
            hint="choose an --ip-range inside the subnet",
        )


def parse_address(text: str) -> IPAddress:
    """Parse an address that a user wrote.

    Raises:
        ValueError: it is none, or has a zone (RFC 4007 §11), which may be any text.
    """
    return ip_address(_without_zone(text))


def _without_zone(text: str) -> str:
    if "%" in text:
        raise ValueError(f"{text!r} has a zone")
    return text


def parse_network(text: str, *, what: str = "subnet") -> IPNetwork:
    """Parse a network that a user wrote. `what`: how errors name it.

    Raises:
        IpamError: invalid: it is not a network, or has host bits set.

    >>> parse_network("10.1.0.0/16")
    IPv4Network('10.1.0.0/16')
    >>> parse_network("10.1.0.5/16", what="range")
    Traceback (most recent call last):
    ...
    netplug.ipam.errors.IpamError: range 10.1.0.5/16 has host bits set (did you mean 10.1.0.0/16?)
    """
    try:
        network = ip_network(_without_zone(text), strict=False)
    except ValueError as exc:
        hint = "write it as 10.1.0.0/16 or fd00:1::/64"
        raise IpamError(Kind.INVALID, f"{what} {text!r} is not an address range", hint=hint) from exc
    try:
        return ip_network(text)
    except ValueError as exc:
        raise IpamError(Kind.INVALID, f"{what} {text} has host bits set", hint=f"did you mean {network}?") from exc
