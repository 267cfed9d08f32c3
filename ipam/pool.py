"""Pools, and the address spaces that they are cut from.

A pool's id is made of what was asked for, since Docker asks again after each restart and expects the same
answer. It is readable, since it stands in `docker network inspect`, in logs and in the store's keys.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
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
        network: the subnet; static addresses may be anywhere in it.
        range: the part that addresses are picked from (``--ip-range``); None: all of it.
        holds: how often it was requested and not yet released.
        holders: ids of the networks that are bound to it. It exists while it has holds or holders.
        sticky_s: seconds for which a released address is kept for the name of its last owner; 0: not at all.
        ends: first and last address that may be picked, where the part is not a subnet itself (CNI's rangeStart).

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
        """Whether anybody has it."""
        return bool(self.holds or self.holders)

    def more(self) -> "Pool":
        """Return it with one hold more."""
        return replace(self, holds=self.holds + 1)

    def less(self) -> "Pool":
        """Return it with one hold less."""
        return replace(self, holds=self.holds - 1)

    def kept(self, holder: str) -> "Pool":
        """Return it bound to one more network."""
        return replace(self, holders=(*self.holders, holder))

    def let_go(self, holder: str) -> "Pool":
        """Return it no longer bound to this network."""
        return replace(self, holders=tuple(other for other in self.holders if other != holder))

    def sticky(self, seconds: int) -> "Pool":
        """Return it with another time for which released addresses are kept."""
        return replace(self, sticky_s=seconds)

    @property
    def window(self) -> tuple[int, int]:
        """The first and the last address that may be picked, as numbers; the last is smaller if none may.

        The ends of an IPv4 subnet up to /30 are its own name and its broadcast address. Address zero of an
        IPv6 subnet up to /126 means "any router here" (RFC 4291 §2.6.1; /127: RFC 6164).

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
        """Check that `address` may be leased on request.

        Raises:
            IpamError: invalid: it lies outside the subnet, or is its network or broadcast address.
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
        """Return the address with this number in the pool's family."""
        return IPv4Address(number) if self.network.version == 4 else IPv6Address(number)


@dataclass(frozen=True, slots=True)
class Usage:
    """Numbers for a table. Those of an IPv6 pool may have 20 digits.

    Attributes:
        size: addresses that can be picked (of the range, where there is one).
        free: those of them that are neither leased nor kept.
        leased: leases, static ones outside the range included.
        kept: addresses kept for names; given to others when nothing is free.
    """

    size: int
    free: int
    leased: int
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Base:
    """A range that pools of prefix length `size` are cut from.

    Raises:
        IpamError: invalid: it cannot be cut so.
    """

    network: IPNetwork
    size: int

    def __post_init__(self) -> None:
        if not self.network.prefixlen <= self.size <= self.network.max_prefixlen:
            raise IpamError(
                Kind.INVALID,
                f"base {self.network} cannot be cut into /{self.size}",
                hint=f"choose a size from {self.network.prefixlen} to {self.network.max_prefixlen}",
            )

    @property
    def count(self) -> int:
        """How many subnets there are in it."""
        return 1 << (self.size - self.network.prefixlen)

    def subnet(self, index: int) -> IPNetwork:
        """Return the subnet of this number, from 0.

        >>> Base(ip_network("10.208.0.0/12"), 24).subnet(257)
        IPv4Network('10.209.1.0/24')
        """
        first = int(self.network.network_address) + (index << (self.network.max_prefixlen - self.size))
        if self.network.version == 4:
            return IPv4Network((first, self.size))
        return IPv6Network((first, self.size))

    def index(self, number: int) -> int:
        """Return the number of the subnet that holds the address with this number."""
        return (number - int(self.network.network_address)) >> (self.network.max_prefixlen - self.size)

    def has(self, network: IPNetwork) -> bool:
        """Tell whether `network` is one that may be cut from this base."""
        return network.prefixlen == self.size and contains(self.network, network)


@dataclass(frozen=True, slots=True)
class Space:
    """An address space. Without bases each pool's subnet must be named."""

    name: str
    bases: tuple[Base, ...] = ()

    def exhausted(self, version: int) -> IpamError:
        """Return the error of a request that found no subnet of this IP version."""
        bases = ", ".join(str(base.network) for base in self.bases if base.network.version == version)
        message = (
            f"address space {self.name!r} has no free IPv{version} subnet in {bases}"
            if bases
            else f"address space {self.name!r} has no IPv{version} range to choose a subnet from"
        )
        return IpamError(Kind.UNAVAILABLE, message, hint="choose one with --subnet")


def taking(holder: str) -> tuple[Callable[[Pool], Pool], Callable[[Pool], Pool]]:
    """Return how a pool is taken, by a hold or for the network `holder`, and how that is undone."""
    if not holder:
        return Pool.more, Pool.less
    return (lambda pool: pool.kept(holder)), (lambda pool: pool.let_go(holder))


def pool_id(space: str, network: IPNetwork, part: IPNetwork | None = None) -> str:
    """Return the id that the pool of this request has.

    >>> pool_id("local", ip_network("10.208.0.0/24"))
    'local/10.208.0.0/24'
    """
    return f"{space}/{network}" if part is None else f"{space}/{network}/{part}"


def contains(outer: IPNetwork, inner: IPNetwork) -> bool:
    """Tell whether `inner` is `outer` or a part of it; False between families."""
    return (
        outer.version == inner.version
        and outer.prefixlen <= inner.prefixlen
        and int(outer.network_address) == int(inner.network_address) & int(outer.netmask)
    )


def check_request(network: IPNetwork | None, part: IPNetwork | None, *, v6: bool) -> None:
    """Check that subnet, range and family of a request fit together.

    Raises:
        IpamError: invalid: they do not.
    """
    if network is None:
        if part is not None:
            raise IpamError(Kind.INVALID, f"range {part} needs the subnet that it is a part of", hint="give --subnet")
        return
    if v6 and network.version == 4:
        raise IpamError(
            Kind.INVALID,
            f"subnet {network} is IPv4, but an IPv6 pool was asked for",
            hint="give an IPv6 --subnet",
        )
    if part is None:
        return
    if part.version != network.version:
        raise IpamError(
            Kind.INVALID,
            f"range {part} is IPv{part.version}, but subnet {network} is IPv{network.version}",
            hint="give both in one family",
        )
    if not contains(network, part):
        raise IpamError(
            Kind.INVALID,
            f"range {part} is not in subnet {network}",
            hint="choose an --ip-range of the subnet",
        )


def parse_network(text: str, *, what: str = "subnet") -> IPNetwork:
    """Return the network that a user wrote; `what` names it in errors.

    Raises:
        IpamError: invalid: it is not a network, or has host bits.

    >>> parse_network("10.1.0.0/16")
    IPv4Network('10.1.0.0/16')
    >>> parse_network("10.1.0.5/16", what="range")
    Traceback (most recent call last):
    ...
    netplug.ipam.errors.IpamError: range 10.1.0.5/16 has host bits set (did you mean 10.1.0.0/16?)
    """
    try:
        network = ip_network(text, strict=False)
    except ValueError as exc:
        hint = "write it as 10.1.0.0/16 or fd00:1::/64"
        raise IpamError(Kind.INVALID, f"{what} {text!r} is not an address range", hint=hint) from exc
    try:
        return ip_network(text)
    except ValueError as exc:
        raise IpamError(Kind.INVALID, f"{what} {text} has host bits set", hint=f"did you mean {network}?") from exc
