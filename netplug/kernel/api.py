"""The seam between the executor and a kernel, real or fake.

A kernel knows four verbs, all of them in terms of steps: `ensure`, `remove`, `drift` and `owned`. They take several
steps at once so that an implementation can put what belongs together into one netlink message or one iptables-restore.
"""

import asyncio
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

from netplug.drivers.api import HostFacts
from netplug.drivers.steps import HostPort, IPAddress, Proto, Resolver, Step
from netplug.errors import NetplugError

_S = TypeVar("_S", bound=Step)


class Outcome(StrEnum):
    """What `ensure` found. `USED`: it is there, it fits, and it is not ours: never to be deleted."""

    CREATED = "created"
    ADJUSTED = "adjusted"
    EQUAL = "equal"
    USED = "used"


Before: TypeAlias = dict[str, tuple[Step, ...]]
"""By the key of a step that was adjusted: what there was in its place, as steps that bring it back."""


class Done(NamedTuple):
    """What was found of a step. `before`: as in `Before`; empty where nothing can be put back."""

    outcome: Outcome
    before: tuple[Step, ...] = ()


class StepError(NetplugError):
    """A step could not be brought about, or undone; `step` is the first that failed.

    Kinds: "exists", someone else has an object of that name; "not_found", what the step builds on is missing (the
    bridge of a veth, the link of an address, the set of a member, a sandbox); "invalid", what is there cannot be used;
    "unavailable", a port is taken or the kernel lacks a feature; "forbidden"; "internal", the kernel refused.
    """

    def __init__(self, kind: str, step: Step, message: str, *, hint: str = "") -> None:
        super().__init__(kind, message, hint=hint)
        self.step = step


MISSING = "missing"
IN_USE = "is already in use on this host"
"""In messages about a port that is taken; after that stands by whom, where that can be told."""


@dataclass(frozen=True, slots=True)
class Drift:
    """A step that the kernel does not agree with: `MISSING`, or what differs, in words."""

    step: Step
    what: str


@dataclass(frozen=True, slots=True)
class Owned:
    """What bears our mark in the host's namespace, as steps that are enough to remove it, in an order of making.

    Links are told of as `Bridge`s, whatever they are. Of a veth whose both ends are here only the host side is named;
    links that are being deleted are left out. Chains are told of as open ones, with a `Rule` for each rule in them.
    """

    found: tuple[Step, ...] = ()

    def steps(self) -> list[Step]:
        """Return them all."""
        return list(self.found)

    def of(self, *types: type[_S]) -> frozenset[_S]:
        """Return those of some types."""
        return frozenset(step for step in self.found if isinstance(step, types))


@dataclass(frozen=True, slots=True)
class Comparison:
    """One look at the kernel: what disagrees with the steps, what bears our mark, and what the host is like."""

    drifts: tuple[Drift, ...]
    owned: Owned
    facts: HostFacts


class Served(Protocol):
    """What serves a pair of sockets, which are its own, until it is closed."""

    def close(self) -> None: ...


class Interception(Protocol):
    """Sockets in a sandbox, to which what is asked of a name server there comes; they are the caller's to close."""

    udp: socket.socket
    tcp: socket.socket

    def open(self, family: int, kind: int, peer: object) -> socket.socket:
        """Return a socket of the sandbox by which that name server itself is asked; blocks for 0.3 ms.

        Raises:
            OSError: the sandbox is gone.
        """

    def end(self) -> None:
        """Leave that name server alone again, of whose sandbox nothing may be left; blocks for a millisecond."""


Serve = Callable[[Resolver, socket.socket, socket.socket], Served]
"""Is given a step, its UDP and its TCP socket."""


class Reservations(Protocol):
    """Ports of the host that a runtime keeps for a container of its own by bound sockets."""

    async def cover(self, step: HostPort) -> bool:
        """Tell whether nobody else can have any of a port."""


class Kernel(Protocol):
    """What the executor and the engine need of a kernel."""

    async def ensure(
        self, steps: Sequence[Step], outcomes: list[Outcome] | None = None, before: Before | None = None
    ) -> list[Outcome]:
        """Bring the steps about, in order, and return what was found of each.

        Neighbouring firewall steps are one transaction. When a step fails, those before it stay as they are.

        Args:
            steps: what is wanted.
            outcomes: is appended to as steps are done and is what is returned; so a caller knows after an exception or
                a cancellation how far it came. A step is done or not, never half.
            before: is given what there was of ports in succession, entries of tables and sets that were adjusted. What
                else is adjusted (links, chains) stays so.

        Raises:
            StepError: with the step that failed.
        """

    async def remove(self, steps: Sequence[Step]) -> None:
        """Remove what the steps name, in the order given. Absent is success; what is not ours stays.

        Links are unusable at once and gone soon after: see `settle`. Goes on after failures.

        Raises:
            ExceptionGroup: of `StepError`.
        """

    async def drift(self, steps: Sequence[Step]) -> list[Drift]:
        """Return the steps that are missing or differ. Changes nothing."""

    async def compare(self, steps: Sequence[Step]) -> Comparison:
        """Return `drift`, `owned` and `facts` as of one look, which on a large host costs little more than one."""

    async def owned(self) -> Owned:
        """Return what bears our mark."""

    async def facts(self) -> HostFacts:
        """Return what drivers may know of the host."""

    async def settle(self) -> None:
        """Wait until all links whose removal was asked for are gone."""

    async def reserve(
        self, proto: Proto, address: IPAddress, first: int, last: int, theirs: "Reservations | None" = None
    ) -> int:
        """Reserve a free port of the host by a bound socket and return its number; 0 to 0 lets the kernel choose.

        A later `ensure` of the `HostPort` step finds the reservation; `remove` of that step ends it. `theirs`: sockets
        of the container's runtime; a port that these keep for it is taken note of.

        Raises:
            NetplugError: "unavailable", with the taken port in the message.
        """

    def reservations(self, pid: int, container: str) -> "Reservations":
        """Return the sockets of a runtime. `pid`: of its process that calls; `container`: the id of its container."""

    def admit(self, descriptors: int, what: str) -> None:
        """Refuse what takes more descriptors of this process for good than there are; some are kept for who asks us.

        Raises:
            NetplugError: "unavailable", with `what` and the name of the setting.
        """

    async def strangers(self, link: str, addresses: Collection[IPAddress]) -> Mapping[IPAddress, str]:
        """Return those of the addresses that a station on the segment of this link has, with its MAC.

        Stations of the host itself, its macvlans too, are not asked. Takes some tenths of a second.

        Raises:
            NetplugError: "unavailable", the link is gone or down.
        """

    async def sandbox(self, ref: str) -> tuple[str, str]:
        """Find a network namespace by its path, or by its name below /run/netns.

        Returns its absolute path and its identity, which no other namespace has, had or will have
        (`netplug.kernel.sandbox.netns.identity`).

        Raises:
            NetplugError: "not_found"; "invalid" when it is no network namespace, or the host's own.
        """

    async def has_processes(self, path: str, netns_id: str = "") -> bool:
        """Tell whether a process lives in the network namespace of this path; False when there is none.

        With an identity, that one is meant, whatever is at the path by now.
        """

    def serve_resolvers(self, serve: Serve) -> None:
        """Have the sockets of `Resolver` steps served from now on, also of those ensured before.

        Who serves them closes them when told to close. Without anybody, what is asked waits in their queues.
        """

    async def intercept(self, path: str, server: IPv4Address) -> Interception:
        """Have what a sandbox asks of the name server at an address come to us; a former life's is taken over.

        Raises:
            NetplugError: "not_found", there is no sandbox of this path; "unavailable", it cannot be done there.
        """

    def changes(self) -> asyncio.Event:
        """Return the event that is set when others may have changed something of ours; the caller clears it."""

    def commits(self) -> asyncio.Event:
        """Return the event that is set when others changed the firewall, be it ours or not; the caller clears it."""

    def underlay(self) -> asyncio.Event:
        """Return the event that is set when addresses or the mtu of links of others have changed; as `changes`."""

    def routes(self) -> asyncio.Event:
        """Return the event that is set when routes may have changed; as `changes`.

        They are listened to from the first call on. While they change all the time it is set now and then only.
        """

    async def close(self) -> None:
        """Let go of sockets and threads; the data plane stays."""
