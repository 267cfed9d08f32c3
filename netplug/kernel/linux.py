"""The kernel of this host: hands each step to the module that knows its kind."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType, TracebackType
from typing import Self

import structlog

from netplug.drivers.api import HostFacts
from netplug.drivers.step_types import BUILT_IN, STEP_TYPES
from netplug.drivers.steps import (
    Address,
    Announce,
    Bridge,
    Element,
    Flows,
    FormerRules,
    Gate,
    Hairpin,
    Hook,
    HostPort,
    Ifb,
    Loopback,
    Macvlan,
    Passage,
    Relay,
    Resolver,
    Route,
    Shape,
    SourceRoute,
    Step,
    Sysctl,
    Table,
    Veth,
)
from netplug.drivers.tunnel import Fdb, Neighbour, Vxlan
from netplug.drivers.zones import Zone
from netplug.errors import NetplugError
from netplug.kernel.api import Before, Comparison, Drift, Outcome, Owned
from netplug.kernel.comparison import Compared
from netplug.kernel.context import Context
from netplug.kernel.firewall import firewalld
from netplug.kernel.firewall import handlers as firewall
from netplug.kernel.firewall.conntrack import Conntrack
from netplug.kernel.firewall.former import FormerRelease
from netplug.kernel.firewall.iptables import Iptables
from netplug.kernel.firewall.legacy_watch import LegacyWatch
from netplug.kernel.firewall.table_reader import NOTHING, TableReader
from netplug.kernel.firewall.tables import Tables
from netplug.kernel.firewall.view import HostFirewall
from netplug.kernel.firewall.zones import ZoneHandler
from netplug.kernel.handlers import Factory, Handlers, LoopLane
from netplug.kernel.host import facts
from netplug.kernel.host import handlers as host
from netplug.kernel.host.descriptors import raise_limit
from netplug.kernel.host.heap import give_back
from netplug.kernel.host.inspection import HostInspection
from netplug.kernel.host.kept_sockets import Keeper
from netplug.kernel.host.ports import Ports
from netplug.kernel.host.relays import Relays
from netplug.kernel.host.resolution import HostResolution
from netplug.kernel.host.runtime_reservations import PortReservations
from netplug.kernel.host.sysctl_watch import SysctlWatch
from netplug.kernel.links import handlers as links
from netplug.kernel.links import limit_handlers as limits
from netplug.kernel.links import neighbour_handlers as stations
from netplug.kernel.links.announcements import Announcements
from netplug.kernel.links.conflict_probe import SegmentProbe
from netplug.kernel.links.forwarding_entries import ForwardingEntries
from netplug.kernel.links.reaper import Reaper
from netplug.kernel.links.traffic import LinkTraffic
from netplug.kernel.netlink.changes import KernelChanges
from netplug.kernel.netlink.connection import NETLINK_NETFILTER, Netlink
from netplug.kernel.netlink.link_state import LinkState
from netplug.kernel.netlink.port_flags import PortFlags
from netplug.kernel.netlink.watch import ForeignChanges
from netplug.kernel.probes.api import PROBING
from netplug.kernel.probes.prober import WorkerProbes
from netplug.kernel.progress import Progress
from netplug.kernel.rtnetlink_lane import RequestLane
from netplug.kernel.sandbox import handlers as sandbox
from netplug.kernel.sandbox.proc_mount import SANDBOXES
from netplug.kernel.sandbox.resolvers import Resolvers
from netplug.kernel.sandbox.service import NetworkNamespaces
from netplug.kernel.survey import Survey, View

log = structlog.get_logger(__name__)

HANDLERS: Mapping[type[Step], Factory] = {
    Table: firewall.TableHandler,
    FormerRules: firewall.FormerRulesHandler,
    Gate: firewall.GateHandler,
    Passage: firewall.GateHandler,
    Sysctl: host.SysctlHandler,
    Bridge: links.BridgeHandler,
    Vxlan: links.VxlanHandler,
    Veth: links.VethHandler,
    Macvlan: links.MacvlanHandler,
    Ifb: limits.IfbHandler,
    Hairpin: links.HairpinHandler,
    Shape: limits.ShapeHandler,
    Address: links.AddressHandler,
    Route: links.RouteHandler,
    SourceRoute: links.SourceRouteHandler,
    Announce: stations.AnnounceHandler,
    Fdb: stations.ForwardingHandler,
    Neighbour: stations.ForwardingHandler,
    Loopback: sandbox.LoopbackHandler,
    Resolver: sandbox.ResolverHandler,
    Element: firewall.ElementHandler,
    Hook: firewall.HookHandler,
    HostPort: host.HostPortHandler,
    Relay: host.RelayHandler,
    Flows: firewall.FlowsHandler,
    Zone: ZoneHandler,
}
"""The handlers of our own types, in an order in which what they know can be made."""


class LinuxKernel:
    """The network namespace of the thread that opened it. Belongs to one event loop."""

    def __init__(self, keeper: Keeper | None = None) -> None:
        """Use `open`."""
        self._nl = Netlink.open()
        self._survey = Netlink.open()
        self._reaper = Reaper()
        self._legacy = LegacyWatch(self._note_commit)
        self._iptables = {family: Iptables(family, self._legacy) for family in (4, 6)}
        self._ports = Ports(keeper)
        self._relays = Relays(self._ports)
        self._resolvers = Resolvers()
        self._sysctls = SysctlWatch(self._note_change)
        self._flows = Conntrack()
        self._tables = Tables()
        self._looking = TableReader(Netlink.open(NETLINK_NETFILTER))
        self.firewall = HostFirewall(self._iptables, self._looking, self._tables.changes_by_others)
        self._former = FormerRelease(self._iptables, self._looking)
        self._forwarding = ForwardingEntries()
        self._announcements = Announcements(self._nl)
        self._handlers = Handlers()
        self._requests = RequestLane(self._handlers, self._reaper, self._expect)
        self._foreign = ForeignChanges(
            self._wanted,
            self._is_own_work,
            self._forwarding.is_foreign_change,
            self._requests.hairpins.__contains__,
            self._is_foreign_limit,
            self._announcements.on_carrier,
        )
        self.ports = PortReservations(self._ports)
        self.sandboxes = NetworkNamespaces()
        self.resolvers = self._resolvers
        self.probe = SegmentProbe()
        self.traffic = LinkTraffic()
        self.probes = WorkerProbes()
        self.inspection = HostInspection()
        self.resolution = HostResolution()
        self.changes = KernelChanges(self._foreign)

    def _register(self, packages: Mapping[type[Step], Factory]) -> None:
        context = Context(
            nl=self._nl,
            survey=self._survey,
            loop=LoopLane(self._handlers),
            requests=self._requests,
            reaper=self._reaper,
            announcements=self._announcements,
            forwarding=self._forwarding,
            iptables=self._iptables,
            tables=firewall.TablesLane(self._tables),
            reader=self._looking,
            former=self._former,
            flows=self._flows,
            ports=self._ports,
            relays=self._relays,
            resolvers=self._resolvers,
            sysctls=self._sysctls,
        )
        self._handlers.make(HANDLERS, context)
        self._handlers.require(BUILT_IN)
        for cls, factory in packages.items():
            try:
                self._handlers.make({cls: factory}, context)
            except NetplugError:
                raise
            except Exception:
                # A third-party package failed: networks that need its step type go to quarantine.
                log.exception("steps.refused", type=cls.__name__, package=cls.__module__)
                STEP_TYPES.discard(cls)

    @classmethod
    async def open(
        cls, packages: Mapping[type[Step], Factory] = MappingProxyType({}), keeper: Keeper | None = None
    ) -> Self:
        """Open the namespace of this thread, and finish the deletions that an earlier process began.

        Args:
            packages: handlers of types of steps that other packages bring.
            keeper: keeps the sockets that reserve ports for the next life of this process.

        Raises:
            NetplugError: a type of step has no handler, or two.
        """
        raise_limit()
        kernel = cls(keeper)
        try:
            kernel._register(packages)
            found = await kernel._reaper.sweep()
            ports = {it.index: PortFlags.of(it) for it in found if it.master}
            kernel._legacy.start()
            kernel._foreign.open({it.index: LinkState.of(it) for it in found}, ports)
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
        """Apply the steps; see `Kernel`."""
        done: list[Outcome] = [] if outcomes is None else outcomes
        progress = Progress(done, before)
        for lane, together in list(self._handlers.lanes(steps)):
            await lane.ensure(together, progress)
        return done

    async def remove(self, steps: Sequence[Step]) -> None:
        """Remove what the steps name; see `Kernel`."""
        known, unknown = self._handlers.split(steps)
        errors: list[Exception] = [*unknown]
        for lane, together in self._handlers.lanes(known):
            errors += await lane.remove(together)
        await self._ports.settled()
        if errors:
            raise ExceptionGroup("some objects could not be removed", errors)

    async def compare(self, steps: Sequence[Step]) -> Comparison:
        """Compare all steps with one set of dumps; see `Kernel`. A thread reads them, on a socket of its own.

        An earlier daemon may have created these objects; from now on their removal is noticed.

        Raises:
            NetplugError: the kernel does not answer.
        """
        await self._requests.settle()
        known, unknown = self._handlers.split(steps)
        for step in known:
            self._handlers.of(step).note_existing(step)
        filters = await self.firewall.filters()
        generation = self._tables.generation()
        tables = await asyncio.to_thread(self._looking.look)
        self._tables.adopt(tables, generation)
        survey = Survey(known, tables, filters, former=await self._former.look())
        compared = Compared(survey, self._handlers)
        await asyncio.to_thread(compared.look, self._survey)
        compared.compare_in_loop()
        found = Comparison(
            (*compared.drifts(), *(Drift(error.step, error.message) for error in unknown)),
            compared.owned(),
            self._facts(survey.host),
        )
        del compared, survey, tables
        await asyncio.to_thread(give_back)  # dumps of a large host leave megabytes
        return found

    def _facts(self, host: View) -> HostFacts:
        return replace(
            # A program that fails once does not mean that the rules are gone.
            facts.of(host.links.values(), host.addresses, host.routes, self.firewall.last()),
            firewalld=firewalld.read(self._looking),
            tables=self._looking.foreign(),
        )

    async def drift(self, steps: Sequence[Step]) -> list[Drift]:
        """Return the steps that are missing or differ; see `Kernel`."""
        return list((await self.compare(steps)).drifts)

    async def owned(self) -> Owned:
        """Return what bears our mark; see `Kernel`."""
        return (await self.compare(())).owned

    async def facts(self) -> HostFacts:
        """Return what drivers may know of the host; see `Kernel`."""
        await self._requests.settle()
        await self.firewall.filters()
        survey = Survey((), NOTHING, {})
        await asyncio.to_thread(survey.look, self._survey)
        return self._facts(survey.host)

    async def settle(self) -> None:
        """Wait until all links whose removal was asked for are gone."""
        await self._reaper.settle()

    def _expect(self, mtus: set[int]) -> None:
        self._foreign.expect(mtus)

    def _wanted(self, name: str) -> LinkState | None:
        return None if self._reaper.has(name) else self._requests.links.get(name)

    def _is_own_work(self, generation: int, process: str) -> bool:
        if process == PROBING:
            return True  # its tables end with it, and touch none of ours
        return self._tables.is_ours(generation) or any(it.is_own_commit() for it in self._iptables.values())

    def _is_foreign_limit(self, link: str, port: int) -> bool:
        """Return whether somebody else changed the limits of a link. `port`: of the socket that did, or that asked."""
        return link in self._requests.limited and port not in {self._nl.port, self._survey.port}

    def _note_change(self) -> None:
        self._foreign.event.set()

    def _note_commit(self) -> None:
        self._foreign.commits.set()

    async def close(self) -> None:
        """Let go of sockets and threads; the data plane stays."""
        try:
            await self._requests.close()
            await self._reaper.close()
        finally:
            self.changes.close()
            self._legacy.close()
            self._sysctls.close()
            self._relays.close()
            self._resolvers.close()
            self._ports.close()
            self._announcements.close()
            self._flows.close()
            self._tables.close()
            self._looking.close()
            self._survey.close()
            self._nl.close()
            SANDBOXES.close()
