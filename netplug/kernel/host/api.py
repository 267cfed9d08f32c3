"""Ports of the host and what keeps them, and what else can be told of a host.

Real in `host.ports` and `host.inspection`, fake in `fake.ports` and `fake.inspection`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from netplug.drivers.steps import HostPort, IPAddress, IPNetwork, Proto


class Reservations(Protocol):
    """Ports of the host that a runtime keeps for a container of its own by bound sockets."""

    async def cover(self, step: HostPort) -> bool:
        """Tell whether a reservation covers all of a port."""


class HostPorts(Protocol):
    """Reserves ports of the host."""

    async def reserve(
        self, proto: Proto, address: IPAddress, first: int, last: int, theirs: Reservations | None = None
    ) -> int:
        """Reserve a free port of the host by a bound socket and return its number; 0 to 0 lets the kernel choose.

        A later `ensure` of the `HostPort` step finds the reservation; `remove` of that step ends it. `theirs`: sockets
        of the container's runtime; a port that these keep for it is taken note of.

        Raises:
            NetplugError: "unavailable", with the taken port in the message.
        """

    def reservations(self, pid: int, container: str) -> Reservations:
        """Return the sockets of a runtime. `pid`: of its process that calls; `container`: the id of its container."""

    def admit(self, descriptors: int, what: str) -> None:
        """Refuse what takes more descriptors of this process for good than there are; some are kept for who asks us.

        Raises:
            NetplugError: "unavailable", with `what` and the name of the setting.
        """


@dataclass(frozen=True, slots=True)
class Holder:
    """A socket that is bound to a port. `process`: who has it, in words; empty if no process of this host is found."""

    proto: Proto
    address: str
    port: int
    process: str = ""


@dataclass(frozen=True, slots=True)
class Program:
    """A process of the same network namespace. `arguments`: its command line, the program's path first."""

    pid: int
    name: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Descriptors:
    """File descriptors of a process: how many are open, and how many there may be."""

    open: int
    limit: int


@dataclass(frozen=True, slots=True)
class Offloads:
    """What a link leaves to its device. `features`: those that are active, by their names in ethtool(8)."""

    driver: str = ""
    features: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class RefusingRoute:
    """A route that drops what it matches.

    `kind`: "blackhole", "unreachable" or "prohibit". `metric`: of several to one destination, the lowest is taken.
    """

    kind: str
    destination: IPNetwork
    metric: int = 0


class Inspection(Protocol):
    """Tells what the kernel of this host is like. Changes nothing that stays.

    Methods that are not async block for milliseconds.
    """

    def release(self) -> str:
        """Return the kernel's release, such as "6.1.0-18-amd64"."""

    def lacks(self) -> tuple[str, ...]:
        """Return what netplug needs of a kernel and this one lacks, in words."""

    def sysctl(self, name: str) -> str:
        """Return a sysctl such as "net/ipv4/ip_forward"; empty if there is none."""

    def holders(self, proto: Proto, port: int) -> tuple[Holder, ...]:
        """Return the sockets that are bound to a port of this host."""

    def programs(self, names: Collection[str]) -> tuple[Program, ...]:
        """Return the processes with these names in this network namespace, without the caller and its children."""

    def descriptors(self) -> Descriptors:
        """Return those of this process."""

    def counters(self) -> Mapping[str, int]:
        """Return the counters of IP, TCP and UDP of this network namespace, such as "Tcp.InCsumErrors" (RFC 4022)."""

    async def managed(self, links: Collection[str]) -> Mapping[str, bool] | None:
        """Return which links NetworkManager manages itself, as it tells by D-Bus; None if it cannot be asked.

        Links that it does not know are missing.
        """

    def offloads(self, link: str) -> Offloads:
        """Return what a link leaves to its device; nothing if it tells nothing of it."""

    def refusing_routes(self) -> tuple[RefusingRoute, ...]:
        """Return the routes of the main table that drop what they match."""


class Way(StrEnum):
    """How the host is told who answers for a domain. `OTHER`: only the user can tell its resolver."""

    RESOLVED = "systemd-resolved"
    RESOLVCONF = "resolvconf"
    FILE = "resolv.conf"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Authority:
    """Who answers for the names of a domain. `link`: has the settings, where they belong to one."""

    domain: str
    address: IPAddress
    port: int
    link: str


class Resolution(Protocol):
    """The resolver of the host itself."""

    async def way(self) -> Way:
        """Return how this host is told who answers for a domain.

        Raises:
            NetplugError: "unavailable", it cannot be told.
        """

    async def lead(self, way: Way, authority: Authority) -> bool:
        """Have the host ask `authority`, and return whether it did not. Nothing is done a second time.

        Raises:
            NetplugError: "unavailable", a program does not answer or refuses, or a file cannot be written.
        """

    async def forget(self, way: Way, authority: Authority) -> None:
        """Take back what `lead` did. A program that does not run has nothing to forget.

        Raises:
            NetplugError: "unavailable", as above.
        """

    async def changed(self) -> None:
        """Wait until a program that was told may have forgotten it."""
