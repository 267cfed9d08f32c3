"""The seam between the executor and a kernel, real or fake.

A kernel knows four verbs, all of them in terms of steps: `ensure`, `remove`, `drift` and `owned`. They take several
steps at once so that an implementation can put what belongs together into one netlink message or one transaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

from netplug.drivers.api import HostFacts
from netplug.drivers.steps import Step
from netplug.errors import NetplugError
from netplug.kernel.firewall.api import FirewallView
from netplug.kernel.host.api import HostPorts, Inspection, Resolution
from netplug.kernel.links.api import ConflictProbe, Traffic
from netplug.kernel.netlink.api import Changes
from netplug.kernel.probes.api import Probes
from netplug.kernel.sandbox.api import ResolverSockets, Sandboxes

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
    """A step could not be applied or undone; `step` is the first that failed.

    Kinds: "exists", someone else has an object of that name; "not_found", what the step builds on is missing (the
    bridge of a veth, the link of an address, the table of an element, a sandbox); "invalid", what is there cannot be
    used; "unavailable", a port is taken or the kernel lacks a feature; "forbidden"; "internal", the kernel refused.
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
    links that are being deleted are left out. Tables are told of without their text, and with an `Element` for each
    element in them.
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


class Kernel(Protocol):
    """Brings steps about, removes and compares them: what an executor needs."""

    async def ensure(
        self, steps: Sequence[Step], outcomes: list[Outcome] | None = None, before: Before | None = None
    ) -> list[Outcome]:
        """Apply the steps, in order, and return what was found of each.

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

    async def close(self) -> None:
        """Let go of sockets and threads; the data plane stays."""


class HostKernel(Kernel, Protocol):
    """A kernel with the services of its host. Whoever needs one of these takes that one alone."""

    @property
    def ports(self) -> HostPorts: ...
    @property
    def sandboxes(self) -> Sandboxes: ...
    @property
    def resolvers(self) -> ResolverSockets: ...
    @property
    def probe(self) -> ConflictProbe: ...
    @property
    def traffic(self) -> Traffic: ...
    @property
    def changes(self) -> Changes: ...
    @property
    def firewall(self) -> FirewallView: ...
    @property
    def probes(self) -> Probes: ...
    @property
    def inspection(self) -> Inspection: ...
    @property
    def resolution(self) -> Resolution: ...
