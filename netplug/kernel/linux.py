"""The kernel of this host: hands each step to the module that knows its kind."""

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from itertools import groupby
from types import TracebackType
from typing import Self

from netplug.drivers.api import HostFacts
from netplug.drivers.steps import (
    Bridge,
    Flows,
    Forward,
    HostPort,
    Ifb,
    IPAddress,
    IpSet,
    Macvlan,
    Member,
    Proto,
    Relay,
    Resolver,
    Step,
    Veth,
)
from netplug.drivers.tunnel import Fdb, Neighbour, Remote, Shortcut, Shortcuts, Vxlan
from netplug.errors import NetplugError
from netplug.kernel.api import Before, Comparison, Done, Drift, Outcome, Owned, Reservations, Serve, StepError
from netplug.kernel.doing import Notes, named
from netplug.kernel.firewall import entries, firewalld, forwards
from netplug.kernel.firewall.conntrack import Conntrack
from netplug.kernel.firewall.entries import TABLE_STEPS
from netplug.kernel.firewall.ipset import IpSets
from netplug.kernel.firewall.iptables import Firewall
from netplug.kernel.firewall.iptables_rules import FIREWALL_STEPS, FirewallStep
from netplug.kernel.firewall.nftables import Tables
from netplug.kernel.firewall.shortcuts import FastPath
from netplug.kernel.host import facts
from netplug.kernel.host.descriptors import raise_limit, require
from netplug.kernel.host.ports import Ports
from netplug.kernel.host.relays import Relays
from netplug.kernel.host.runtime_reservations import RuntimeSockets, reserve
from netplug.kernel.links import conflict_probe
from netplug.kernel.links.announcements import Announcements
from netplug.kernel.links.forwarding_entries import ForwardingEntries
from netplug.kernel.links.reaper import Reaper
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import Netlink
from netplug.kernel.netlink.route_watch import RouteChanges
from netplug.kernel.netlink.watch import ForeignChanges
from netplug.kernel.rtnetlink_steps import REQUESTS, Request, Requests
from netplug.kernel.sandbox.identity import find, has_processes
from netplug.kernel.sandbox.interception import Interception
from netplug.kernel.sandbox.resolvers import Resolvers
from netplug.kernel.survey import Survey, owned
from netplug.tasks.uncancellable import uncancellable

_BREATH = 64
"""After so many steps others have their turn."""
_REQUESTS = "requests"


class LinuxKernel:
    """The network namespace of the thread that opened it. Belongs to one event loop."""

    def __init__(self, backend: str = "") -> None:
        """Use `open`."""
        self._nl = Netlink.open()
        self._survey = Netlink.open()
        self._reaper = Reaper()
        self._firewall = {family: Firewall(family, backend) for family in (4, 6)}
        self._sets = IpSets()
        self._ports = Ports()
        self._relays = Relays(self._ports)
        self._resolvers = Resolvers()
        self._flows = Conntrack()
        self._tables = Tables()
        self._ways = FastPath(self._tables, self._nl)
        self._forwarding_entries = ForwardingEntries()
        self._announcements = Announcements(self._nl)
        self._routes: RouteChanges | None = None
        self._requests = Requests(self._nl, self._reaper, self._announcements, self._forwarding_entries)
        self._changes = ForeignChanges(
            self._is_ours, self._is_own_work, self._forwarding_entries.is_foreign_change, self._announcements.on_carrier
        )

    @classmethod
    async def open(cls, backend: str = "") -> Self:
        """Open the namespace of this thread, and finish the deletions that an earlier process began.

        Args:
            backend: of iptables, "nft" or "legacy"; "" takes the host's default.
        """
        raise_limit()
        kernel = cls(backend)
        try:
            await asyncio.gather(*(firewall.open() for firewall in kernel._firewall.values()), kernel._reaper.sweep())
            found = await asyncio.to_thread(rtnl.links, kernel._nl)
            kernel._changes.open({link.index: link.mtu for link in found})
        except BaseException:
            await kernel.close()
            raise
        return kernel

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def ensure(
        self, steps: Sequence[Step], outcomes: list[Outcome] | None = None, before: Before | None = None
    ) -> list[Outcome]:
        """Bring the steps about; see `Kernel`."""
        done: list[Outcome] = [] if outcomes is None else outcomes
        notes = Notes(done, before)
        for kind, run in groupby(steps, _kind):
            if isinstance(kind, int):
                await self._firewall[kind].ensure(_firewall_steps(run), done)
            elif kind == _REQUESTS:
                await self._requests.ensure(_requests(run), notes)
            elif kind:
                together = list(run)
                with named(together[0]):
                    await uncancellable(self._ensure_together(together), partial(notes.take, together))
            else:
                await self._ensure_each(run, notes)
        return done

    async def _ensure_each(self, steps: Iterable[Step], notes: Notes) -> None:
        for number, step in enumerate(steps):
            with named(step):
                if isinstance(step, IpSet | Member):
                    await uncancellable(self._sets.ensure(step), partial(notes.note, step))
                else:
                    # There may be thousands; a task each would take longer than the work.
                    notes.note(step, self._ensure(step))
            if number % _BREATH == 0:
                await asyncio.sleep(0)

    async def remove(self, steps: Sequence[Step]) -> None:
        """Remove what the steps name; see `Kernel`."""
        errors: list[Exception] = []
        for kind, run in groupby(steps, _kind):
            if isinstance(kind, int):
                errors += await self._firewall[kind].remove(_firewall_steps(run))
                continue
            if kind == _REQUESTS:
                errors += await self._requests.remove(_requests(run))
                continue
            together = list(run)
            for part in [together] if kind else [[step] for step in together]:
                try:
                    with named(part[0]):
                        await self._remove(part)
                except StepError as error:
                    errors.append(error)
        if errors:
            raise ExceptionGroup("some objects could not be removed", errors)

    async def compare(self, steps: Sequence[Step]) -> Comparison:
        """Look at all there is, once; see `Kernel`. The looking is done in a thread, on a socket of its own.

        Of what is asked about, an earlier life may have made it: from now on word of its loss is heeded.
        """
        self._heed(steps)
        sets = await self._sets.list()
        found = await asyncio.gather(*(firewall.read() for firewall in self._firewall.values()))
        models = dict(zip(self._firewall, found, strict=True))
        look, ways = entries.Snapshot.at(self._tables), self._ways.look()
        survey = await asyncio.to_thread(Survey.of, steps, self._survey)
        drifts = []
        for step in steps:
            match step:
                case HostPort():
                    what = self._ports.drift(step)
                case Relay():
                    what = self._relays.drift(step)
                case Resolver():
                    what = self._resolvers.drift(step)
                case _ if isinstance(step, TABLE_STEPS):
                    what = look.drift(step)
                case Shortcuts() | Shortcut() | Remote():
                    what = ways.drift(step, survey.host.links)
                case _:
                    what = survey.drift(step, sets, models)
            if what:
                drifts.append(Drift(step, what))
        host = survey.host
        return Comparison(
            tuple(drifts),
            replace(owned(survey, sets, models, look), shortcuts=ways.owned()),
            replace(
                facts.of(host.links.values(), host.addresses, host.routes, models),
                firewalld=firewalld.read(self._tables),
                tables=self._tables.foreign(),
            ),
        )

    async def drift(self, steps: Sequence[Step]) -> list[Drift]:
        """Return the steps that are missing or differ; see `Kernel`."""
        return list((await self.compare(steps)).drifts)

    async def owned(self) -> Owned:
        """Return what bears our mark; see `Kernel`."""
        return (await self.compare(())).owned

    async def facts(self) -> HostFacts:
        """Return what drivers may know of the host; see `Kernel`."""
        return (await self.compare(())).facts

    async def settle(self) -> None:
        """Wait until all links whose removal was asked for are gone."""
        await self._reaper.settle()

    async def reserve(
        self, proto: Proto, address: IPAddress, first: int, last: int, theirs: Reservations | None = None
    ) -> int:
        """Reserve a free port; see `Kernel`."""
        return await reserve(self._ports, proto, address, first, last, theirs)

    def reservations(self, pid: int, container: str) -> Reservations:
        """Return the sockets of a runtime; see `Kernel`."""
        return RuntimeSockets(pid, container)

    def admit(self, descriptors: int, what: str) -> None:
        """Refuse what takes more descriptors than there are; see `Kernel`."""
        require(descriptors, what)

    async def strangers(self, link: str, addresses: Collection[IPAddress]) -> Mapping[IPAddress, str]:
        """Ask the segment of a link for addresses; see `Kernel`."""
        try:
            return await conflict_probe.addresses_in_use(link, addresses)
        except OSError as error:
            words = f"the segment of link {link!r} cannot be asked for an address: {error.strerror}"
            raise NetplugError("unavailable", words, hint=f"ip link set {link} up") from error

    async def sandbox(self, ref: str) -> tuple[str, str]:
        """Find a network namespace; see `Kernel`."""
        return find(ref)

    async def has_processes(self, path: str, netns_id: str = "") -> bool:
        """Tell whether a process lives in a network namespace; see `Kernel`."""
        return await asyncio.to_thread(has_processes, path, netns_id)

    def serve_resolvers(self, serve: Serve) -> None:
        """Have the sockets of `Resolver` steps served; see `Kernel`."""
        self._resolvers.serve_resolvers(serve)

    async def intercept(self, path: str, server: IPv4Address) -> Interception:
        """Listen in a sandbox in front of a name server; see `Kernel`."""
        return await asyncio.to_thread(Interception, path, server)

    def changes(self) -> asyncio.Event:
        """Return the event that is set when others may have changed something of ours."""
        return self._changes.event

    def commits(self) -> asyncio.Event:
        """Return the event that is set when others changed the firewall; see `Kernel`."""
        return self._changes.commits

    def underlay(self) -> asyncio.Event:
        """Return the event that is set when addresses or the mtu of links of others have changed."""
        return self._changes.underlay

    def routes(self) -> asyncio.Event:
        """Return the event that is set when routes may have changed; see `Kernel`."""
        if self._routes is None:
            self._routes = RouteChanges()
        return self._routes.event

    def _heed(self, steps: Sequence[Step]) -> None:
        for step in steps:
            match step:
                case Bridge() | Veth() | Macvlan() | Ifb() | Vxlan():
                    self._requests.links.add(step.name)
                case Fdb() | Neighbour():
                    self._forwarding_entries.add(step)

    def _is_ours(self, name: str) -> bool:
        return name in self._requests.links and not self._reaper.has(name)

    def _is_own_work(self, generation: int) -> bool:
        return generation in self._tables.generations or any(item.busy for item in self._firewall.values())

    async def close(self) -> None:
        """Let go of sockets and threads; the data plane stays."""
        try:
            for firewall in self._firewall.values():
                await firewall.close()
            await self._requests.close()
            await self._reaper.close()
        finally:
            self._changes.close()
            if self._routes:
                self._routes.close()
            self._relays.close()
            self._resolvers.close()
            self._ports.close()
            self._announcements.close()
            self._flows.close()
            self._tables.close()
            self._sets.close()
            self._survey.close()
            self._nl.close()

    def _ensure(self, step: Step) -> Outcome | Done:
        match step:
            case HostPort():
                return self._ports.ensure(step)
            case Relay():
                return self._relays.ensure(step)
            case Resolver():
                return self._resolvers.ensure(step)
            case Shortcuts() | Shortcut():
                return self._ways.ensure(step)
            case _ if isinstance(step, TABLE_STEPS):
                return entries.ensure(self._tables, step)
        raise TypeError(f"no way to bring about a {type(step).__name__}")

    async def _ensure_together(self, steps: Sequence[Step]) -> Sequence[Outcome | Done]:
        if remote := [step for step in steps if isinstance(step, Remote)]:
            return self._ways.ensure_remote(remote)
        if forwarded := [step for step in steps if isinstance(step, Forward)]:
            return forwards.ensure(self._tables, forwarded)
        flows = [step for step in steps if isinstance(step, Flows)]
        new = await asyncio.to_thread(self._flows.ensure, flows, self._survey)
        return [Outcome.CREATED if item else Outcome.EQUAL for item in new]

    async def _remove_together(self, steps: Sequence[Step]) -> None:
        if forwarded := [step for step in steps if isinstance(step, Forward)]:
            forwards.remove(self._tables, forwarded)
        elif remote := [step for step in steps if isinstance(step, Remote)]:
            self._ways.remove_remote(remote)
        else:
            await asyncio.to_thread(self._flows.remove, [step for step in steps if isinstance(step, Flows)])

    async def _remove(self, steps: Sequence[Step]) -> None:
        step = steps[0]
        match step:
            case Forward() | Flows() | Remote():
                await self._remove_together(steps)
            case IpSet() | Member():
                await self._sets.remove(step)
            case Shortcuts() | Shortcut():
                self._ways.remove(step)
            case _ if isinstance(step, TABLE_STEPS):
                entries.remove(self._tables, step)
            case HostPort():
                # Whoever serves a socket ends before it does: its number may be another's at once.
                self._relays.remove(Relay(step.proto, step.address, step.port, step.address, step.port, step.count))
                self._ports.remove(step)
            case Relay():
                self._relays.remove(step)
            case Resolver():
                self._resolvers.remove(step)


def _kind(step: Step) -> int | str:
    """Return what neighbouring steps must share to be done at once, empty for those that are done one by one.

    The family of a firewall or of ports, a kind of flows, the VXLAN link of remote MACs, that they are `Requests`.
    """
    match step:
        case Flows():
            return f"{step.proto}{step.address.version}"
        case Forward():
            return f"forward{step.family}"
        case Remote():
            return f"remote {step.vxlan}"
        case _ if isinstance(step, REQUESTS):
            return _REQUESTS
        case _ if isinstance(step, FIREWALL_STEPS):
            return step.family
    return ""


def _firewall_steps(run: Iterator[Step]) -> list[FirewallStep]:
    return [step for step in run if isinstance(step, FIREWALL_STEPS)]


def _requests(run: Iterator[Step]) -> list[Request]:
    return [step for step in run if isinstance(step, REQUESTS)]
