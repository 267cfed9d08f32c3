"""The parts of a process that manages this host's networks, each made in one place, once.

The daemon (`life`) and a CNI command without a daemon (`daemonless`) are composed of the same parts. `open_host` opens
what a process holds of its host, `compose` builds the engine on it. The other parts are made when they are first asked
for, and their modules are imported then: a command needs few of them, and starts in half a second.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeAlias

import structlog

from netplug import __version__
from netplug.cluster.identity import VTEP, Identity, Machine
from netplug.config import Settings
from netplug.daemon.address_spaces import site_prefix, spaces
from netplug.daemon.drivers import load_drivers
from netplug.daemon.installed import installed
from netplug.daemon.store_trouble import care_for_store
from netplug.drivers.registry import Drivers
from netplug.engine import Engine
from netplug.ipam.allocator import Allocator
from netplug.ipam.scan_offset import HashedStart
from netplug.ipam.store import LeaseStore
from netplug.kernel.api import HostKernel
from netplug.kernel.host.kept_sockets import Keeper
from netplug.reconcile import Reconciler
from netplug.store.access import EtcdAccess
from netplug.store.leases import StoredLeases
from netplug.store.reserve import Reserve
from netplug.store.sqlite import SqliteStore
from netplug.tasks.apart import apart
from netplug.tasks.latency import Latencies

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from netplug.cluster.cluster import Cluster
    from netplug.cluster.shared_store import Shared
    from netplug.docker.events import DockerEvents
    from netplug.docker.resolver import SandboxResolvers
    from netplug.frontends.cni.service import CniService
    from netplug.insight.event_log import EventLog
    from netplug.insight.insight import Insight
    from netplug.insight.metrics.metrics import Metrics
    from netplug.names.server import NameServer

log = structlog.get_logger(__name__)

OpenKernel = Callable[[], Awaitable[HostKernel]]
Serving: TypeAlias = Callable[..., AbstractAsyncContextManager[None]]
"""Serves apps, each on its socket; see `serving_all`."""
Background = dict[str, Callable[[], Coroutine[Any, Any, None]]]


async def linux_kernel(keeper: Keeper | None = None) -> HostKernel:
    """Open the kernel of this network namespace, with the types of steps that other packages bring.

    `keeper`: keeps the sockets that reserve ports for the next life of this process.
    """
    from netplug.daemon.step_packages import GROUP, load_steps  # noqa: PLC0415
    from netplug.kernel.linux import LinuxKernel  # noqa: PLC0415 - tests with a fake kernel do not need it

    return await LinuxKernel.open(load_steps(installed(GROUP)), keeper)


@dataclass(frozen=True, slots=True)
class Host:
    """What a process holds of its host. `resources`: closes it, and the parts that are built on it."""

    settings: Settings
    store: SqliteStore
    kernel: HostKernel
    identity: Identity
    drivers: Drivers
    resources: AsyncExitStack


async def open_host(
    settings: Settings, resources: AsyncExitStack, *, kernel: OpenKernel | None = None, machine: Machine | None = None
) -> Host:
    """Open this host's records and its kernel. The caller holds the locks."""
    store = await SqliteStore.open(settings.database, Reserve(settings.database))
    resources.push_async_callback(store.close)
    opened = await (kernel or linux_kernel)()
    resources.push_async_callback(opened.close)
    identity = await Identity.load(store, machine or Machine.read())
    return Host(settings, store, opened, identity, load_drivers(), resources)


async def open_shared(host: Host) -> "Shared | None":
    """Open the store that hosts share, for the daemon; see `open_for_daemon`."""
    if host.settings.etcd is None:
        return None
    from netplug.cluster.shared_store import open_for_daemon  # noqa: PLC0415

    return await open_for_daemon(host.settings, host.store, host.kernel, host.identity.id, host.resources)


async def open_known(host: Host) -> "Shared | None":
    """Open the store that hosts share, for a command; see `open_for_command`."""
    if await host.store.get(VTEP) is None:
        return None
    from netplug.cluster.shared_store import open_for_command  # noqa: PLC0415 - a host alone need not wait for it

    return await open_for_command(host.settings, host.store, host.identity.id, host.resources, host.drivers)


async def compose(host: Host, shared: "Shared | None", *, docker: bool) -> "Composition":
    """Build the engine, and the cluster on it if hosts share a store.

    `docker`: whether this process follows Docker's events.
    """
    if shared:
        return await _compose_cluster(host, shared, docker=docker)
    engine = await _engine(host, StoredLeases(host.store))
    return Composition(host, engine, None, {"sqlite": host.store.times}, docker=docker)


async def _engine(host: Host, leases: LeaseStore) -> Engine:
    settings = host.settings
    bases = spaces(await site_prefix(host.store), settings.address_pool)
    allocator = Allocator(leases, bases, start=HashedStart(host.identity.id))
    engine = Engine(host.kernel, host.store, allocator, host.drivers)
    engine.base_plan.forward_others = settings.forward_others
    engine.restored.note = settings.run_dir / "records.unsure"
    return engine


async def _compose_cluster(host: Host, shared: "Shared", *, docker: bool) -> "Composition":
    from netplug.cluster.claims import SharedLeases  # noqa: PLC0415 - a host alone need not wait for all these
    from netplug.cluster.cluster import Cluster  # noqa: PLC0415
    from netplug.cluster.foreign_networks import Allowed  # noqa: PLC0415
    from netplug.cluster.identity import AdmissionGate  # noqa: PLC0415
    from netplug.cluster.underlay import Underlay  # noqa: PLC0415
    from netplug.cluster.vtep import Finder  # noqa: PLC0415

    store, settings, identity = host.store, host.settings, host.identity
    gate = AdmissionGate(shared.store)
    leases = SharedLeases(store, gate, identity.id)
    engine = await _engine(host, leases)
    finder = Finder(settings.vtep, settings.etcd or EtcdAccess(()))
    underlay = Underlay(engine, store, finder, shared.vtep)
    cluster = Cluster(engine, store, gate, leases, identity=identity, name=settings.host_name, underlay=underlay)
    cluster.mirroring.allowed = Allowed.parse(settings.cluster_allow)
    return Composition(host, engine, cluster, {"sqlite": store.times, "etcd": shared.times}, docker=docker)


class Composition:
    """The parts on top of the engine. Each is made at its first use, with the parts that it needs."""

    def __init__(
        self,
        host: Host,
        engine: Engine,
        cluster: "Cluster | None",
        store_times: Mapping[str, Latencies],
        *,
        docker: bool,
    ) -> None:
        self.host = host
        self._store_times = store_times
        self.engine = engine
        self.cluster = cluster
        self._follows_docker = docker
        self._http_loaded = asyncio.Event()

    @cached_property
    def reconciler(self) -> Reconciler:
        """Compares kernel and records."""
        made = Reconciler(self.engine, self.docker.view if self.docker else None)
        if self.docker:
            self.docker.on_return = made.garbage.on_return
        return made

    @cached_property
    def cni(self) -> "CniService":
        """Answers CNI and netavark calls."""
        from netplug.frontends.cni.service import CniService  # noqa: PLC0415

        return CniService(self.engine, self.host.settings.dns_domain)

    @cached_property
    def name_server(self) -> "NameServer":
        """Answers DNS questions of containers."""
        from netplug.kernel.host.upstream_sockets import open_filtered  # noqa: PLC0415
        from netplug.names.server import NameServer  # noqa: PLC0415

        settings = self.host.settings
        server = NameServer(
            self.engine,
            settings.dns_domain,
            settings.dns_rules,
            opener=open_filtered,
            special=settings.dns_special == "host",
            refuse_rebinding=settings.dns_rebinding == "refuse",
        )
        self.host.resources.callback(server.close)
        if self.cluster:
            self.cluster.peering.names = server
        return server

    @cached_property
    def sandbox_resolvers(self) -> "SandboxResolvers":
        """Puts the name server into Docker's sandboxes."""
        from netplug.docker.resolver import SandboxResolvers  # noqa: PLC0415

        resolvers = SandboxResolvers(self.engine, self.name_server)
        self.host.resources.push_async_callback(resolvers.close)
        return resolvers

    @cached_property
    def docker(self) -> "DockerEvents | None":
        """Learns names from Docker; None if this process does not follow Docker."""
        if not self._follows_docker:
            return None
        from netplug.docker.events import DockerEvents  # noqa: PLC0415

        settings = self.host.settings
        events = DockerEvents(
            self.engine, settings.docker_host, settings.driver_name, self.sandbox_resolvers, settings.host_root
        )
        if self.cluster:
            self.cluster.networks.docker_name = lambda ident: events.networks.get(ident, "")
        return events

    @cached_property
    def api(self) -> "ASGIApp":
        """Answers `netplug` commands."""
        from netplug.frontends.rest.app import api_app, nobody_asked  # noqa: PLC0415

        settings = self.host.settings
        return api_app(
            self.engine,
            self.reconciler,
            host=settings.host_name,
            version=__version__,
            docker_knows=self.docker.knows if self.docker else nobody_asked,
            cluster=self.cluster,
            domain=settings.dns_domain,
            names=self.name_server,
            more=self.insight.routes,
        )

    @cached_property
    def insight(self) -> "Insight":
        """Shows what there is."""
        from netplug.insight.insight import Insight, Subject  # noqa: PLC0415

        resolvers = self.sandbox_resolvers if self.docker else None
        subject = Subject(
            self.host.settings, self.engine, self.reconciler, self.name_server, self.cluster, self.events, resolvers
        )
        return Insight(subject)

    @cached_property
    def events(self) -> "EventLog":
        """Keeps what happens from its first use on."""
        from netplug.insight.event_files import EventFiles  # noqa: PLC0415
        from netplug.insight.event_log import EventLog  # noqa: PLC0415

        kept = EventLog(EventFiles(self.host.settings.state_dir))
        self.engine.happenings.watchers.append(kept.take)
        self.host.resources.push_async_callback(kept.close)
        return kept

    @cached_property
    def plugin(self) -> "ASGIApp":
        """Answers dockerd."""
        from netplug.docker.container_inference import ContainerInference  # noqa: PLC0415
        from netplug.engine.pools import container_unknown  # noqa: PLC0415
        from netplug.frontends.docker.network import docker_app, unknown  # noqa: PLC0415

        return docker_app(
            self.engine,
            on_activate=self.reconciler.garbage.on_activate,
            on_lost_request=self.reconciler.garbage.on_lost_request,
            on_ready=self.sandbox_resolvers.serve,
            container_of=ContainerInference(self.engine, self.docker).name if self.docker else container_unknown,
            own=self.docker.own.calls if self.docker else unknown,
            driver=self.host.settings.driver_name,
        )

    @cached_property
    def background(self) -> Background:
        """What runs as long as the daemon: name of the work → function to run and to restart."""
        return {
            "reconciler": self.reconciler.run,
            "dns": self.name_server.run,
            "dns.host": self.engine.host_names.run,
            "dns.sandboxes": self.sandbox_resolvers.run,
            "dhcp": self.cni.leases.run,
            "store": partial(care_for_store, self.engine, self.host.store),
            **({"docker": self.docker.run} if self.docker else {}),
            **({"cluster": self.cluster.run} if self.cluster else {}),
            **self.insight.background,
            **({"page": self._serve_page} if self.host.settings.http else {}),
        }

    async def load_http(self) -> Serving:
        """Make what answers HTTP, in a thread: its modules take longer than a question for a name may wait.

        Return what serves it.
        """

        def load() -> Serving:
            from netplug.frontends.serving import serving_all  # noqa: PLC0415

            _ = self.plugin, self.api
            return serving_all

        serving = await apart(load)
        if self.host.settings.managed:
            self._dockerd_starts()
            if self.docker:
                self.docker.on_lost = self._dockerd_starts
        self._http_loaded.set()
        return serving

    def _dockerd_starts(self) -> None:
        """Do as when dockerd activates a plugin: it does not activate managed ones, but starts them."""
        from netplug.frontends.docker.network import begin_session  # noqa: PLC0415 - loaded by now

        begin_session(self.engine)
        self.reconciler.garbage.on_activate()

    async def _serve_page(self) -> None:
        await self._http_loaded.wait()
        from netplug.daemon.page import serve_page  # noqa: PLC0415

        await serve_page(self.host.settings, self.api, self.metrics)

    @cached_property
    def metrics(self) -> "Metrics":
        """What Prometheus reads."""
        from netplug.insight.metrics.metrics import Metrics  # noqa: PLC0415
        from netplug.insight.metrics.reading import Sources  # noqa: PLC0415

        return Metrics(
            Sources(self.engine, self.name_server, self.cluster, self._store_times),
            endpoint_traffic=self.host.settings.http_endpoint_traffic,
            streams=lambda: self.events.followers,
        )
