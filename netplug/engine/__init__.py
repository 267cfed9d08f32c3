"""The use cases: one method each, one lock each, one journal entry each.

The engine orders: it validates, asks a driver for a plan, lets the journal apply it, and remembers. Front ends call
`Engine.networks`, `.network_updates`, `.endpoints`, `.publishing` and `.added_ports`; nothing else changes a network or
an endpoint.
"""

from time import monotonic

from netplug.drivers.registry import Drivers
from netplug.engine.added_ports import AddedPorts
from netplug.engine.addressing import Addressing
from netplug.engine.base_plan import BasePlan
from netplug.engine.conditions import Conditions
from netplug.engine.conflict_detection import ConflictDetection
from netplug.engine.contests import Contests
from netplug.engine.convergence import Convergence
from netplug.engine.dhcp_leases import DhcpClient, DhcpLeases
from netplug.engine.drifts import Drifts
from netplug.engine.endpoint_leases import EndpointLeases
from netplug.engine.endpoints import Endpoints
from netplug.engine.exposure import Exposure
from netplug.engine.garbage_collection import GarbageCollection
from netplug.engine.happenings import Happenings
from netplug.engine.host_names import HostNames
from netplug.engine.host_services import HostServices
from netplug.engine.implicit_networks import ImplicitNetworks
from netplug.engine.journal import Journal
from netplug.engine.leasing import Leasing
from netplug.engine.lost_answers import LostAnswers
from netplug.engine.network_updates import NetworkUpdates
from netplug.engine.networks import Networks
from netplug.engine.peers import Peers
from netplug.engine.planning import Planner
from netplug.engine.pools import Pools
from netplug.engine.pruning import Pruning
from netplug.engine.publishing import Publishing
from netplug.engine.quarantine import Quarantine
from netplug.engine.readiness import Readiness
from netplug.engine.record_happenings import RecordHappenings
from netplug.engine.refused_releases import RefusedReleases
from netplug.engine.registry import Registry
from netplug.engine.requests import Requests
from netplug.engine.restored import Restored
from netplug.engine.superseded_networks import SupersededNetworks
from netplug.engine.supervision import Supervisor
from netplug.ipam.allocator import Allocator
from netplug.kernel.api import HostKernel
from netplug.kernel.executor import Executor
from netplug.store.api import Store


class Engine:
    """All networks and endpoints of this host, and the use cases that change them.

    A use case either succeeds or changes nothing. After a crash, the next start finishes or reverts what was begun.

    `search`: the host's search domains, which sandboxes get too. Empty without a name server.
    """

    search: tuple[str, ...] = ()

    def __init__(self, kernel: HostKernel, store: Store, allocator: Allocator, drivers: Drivers) -> None:
        self.kernel = kernel
        self.store = store
        self.allocator = allocator
        self.drivers = drivers
        self.services = HostServices()
        self.happenings = Happenings()
        self.requests = Requests(self.happenings)
        self.conditions = Conditions(self.happenings)
        self.drifts = Drifts(self.happenings, Contests(self.conditions, monotonic))
        self.executor = Executor(kernel, self.drifts.contests.rests)
        self.quarantine = Quarantine(self.conditions)
        self.journal = Journal(store, self.executor, self.quarantine)
        self.registry = Registry(store, self.quarantine, drivers)
        self._record_happenings = RecordHappenings(self.registry, self.happenings)
        self.restored = Restored(store, self.conditions)
        self.supervisor = Supervisor(self.conditions)
        self.base_plan = BasePlan(kernel, self.executor, store, drivers, self.quarantine, self.drifts)
        self.host_names = HostNames(kernel.resolution, self.base_plan, store, self.registry.all_networks)
        self.planner = Planner(self.registry, self.base_plan, drivers)
        self.conflict_detection = ConflictDetection(allocator, self.registry, kernel, kernel.probe, drivers)
        allocator.called = self.registry.called
        self.refused_releases = RefusedReleases(self.registry)
        addressing = Addressing(allocator, self.conflict_detection, drivers, self.refused_releases)
        self.publishing = Publishing(self.registry, self.journal, kernel, drivers, self.planner)
        self.exposure = Exposure(self.registry, self.conditions, self.publishing)
        self.endpoint_leases = EndpointLeases(self.registry, self.journal, allocator, store, self.refused_releases)
        lost_answers = LostAnswers(self.registry, allocator, drivers)
        self.endpoints = Endpoints(
            self.registry,
            self.planner,
            self.journal,
            addressing,
            kernel,
            drivers,
            self.publishing,
            lost_answers,
            self.endpoint_leases,
            self.refused_releases,
        )
        self.added_ports = AddedPorts(self.registry, self.publishing, self.endpoints, kernel, drivers)
        self.peers = Peers(self.registry, self.base_plan, kernel.changes, self.executor, drivers)
        self.networks = Networks(
            self.registry, self.base_plan, self.journal, addressing, self.endpoints, self.peers, drivers, lost_answers
        )
        self.convergence = Convergence(
            self.registry, self.planner, self.journal, self.executor, self.peers, drivers, self.conditions
        )
        self.network_updates = NetworkUpdates(
            self.registry,
            self.base_plan,
            self.convergence,
            addressing,
            self.publishing,
            self.endpoints.way_out,
            drivers,
        )
        self.implicit_networks = ImplicitNetworks(self.registry, self.networks, allocator, drivers)
        self.pruning = Pruning(self.registry, self.networks, self.implicit_networks, allocator)
        self.readiness = Readiness(
            self.registry, self.base_plan, self.implicit_networks, kernel, self.executor, allocator, drivers
        )
        self.garbage_collection = GarbageCollection(
            self.registry,
            self.networks,
            self.implicit_networks,
            self.endpoints,
            kernel.sandboxes,
            self.services.runtimes,
        )
        self.pools = Pools(
            self.registry, allocator, self.base_plan, self.conflict_detection, self.networks, self.endpoints, drivers
        )
        self.leasing = Leasing(
            self.registry, self.networks, self.implicit_networks, self.endpoints, kernel.sandboxes, drivers
        )
        self.superseded_networks = SupersededNetworks(
            self.registry, self.networks, self.network_updates, self.implicit_networks, allocator, drivers
        )

    def dhcp_leases(self, client: DhcpClient) -> DhcpLeases:
        """Return what keeps the leases of DHCP servers, which `client` asks for."""
        return DhcpLeases(self.registry, self.kernel.sandboxes, self.conditions, self.services.socket_owners, client)
