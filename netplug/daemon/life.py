"""The daemon's life: startup, main_loop, shutdown (uvicorn's `Server` is the model).

Sockets listen from the beginning, so that a second daemon finds them in use. Requests are answered only after the
kernel has been reconciled with the records; until then dockerd's requests wait in the queue of the socket. A socket
file without a listener makes dockerd hang for 15 s, so a stop removes the files first. Traffic continues without the
daemon.
"""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from netplug import log as logging
from netplug.cluster.claims import SharedLeases
from netplug.cluster.cluster import Cluster
from netplug.cluster.identity import Gate, Identity, Machine
from netplug.cluster.records import IDENTITY
from netplug.cluster.underlay import VTEP, Underlay
from netplug.cluster.vtep import Finder
from netplug.config import Settings
from netplug.daemon.composition import drivers, linux_kernel, site_prefix, spaces
from netplug.daemon.lock import claim_socket, exclusive, lock_file, release_socket
from netplug.daemon.namespace_lock import LOCKS, NAMESPACE, claim_namespace
from netplug.engine import Engine
from netplug.engine.supervision import Supervisor
from netplug.errors import NetplugError
from netplug.ipam.allocator import Allocator
from netplug.ipam.scan_offset import HashedStart
from netplug.kernel.api import Kernel
from netplug.reconcile import Reconciler
from netplug.store.api import Put, Store, StoreError, Unreachable
from netplug.store.endpoints import resolved
from netplug.store.leases import StoredLeases
from netplug.store.restore_guard import RestoreGuard
from netplug.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from netplug.store.etcd import EtcdStore

log = structlog.get_logger(__name__)

TURN = "turn"
"""Lock file of a process that works on the state without a daemon (`netplug.daemon.daemonless_queue`)."""
PATIENCE_S = 20.0
"""Longest wait for such processes, which take a second or two each."""
SOCKET_MODE = 0o600
_SHARED_TIMEOUT_S = 1.0  # at the start, which continues without it; dockerd waits 15 s for a plugin


class Daemon:
    """The daemon from start to stop. `kernel`: opens the kernel; `namespace`, `locks`: see `claim_namespace`.

    `machine`: the machine that it runs on. `cluster`: None without a shared store.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        kernel: Callable[[], Awaitable[Kernel]] = linux_kernel,
        namespace: str = NAMESPACE,
        locks: Path = LOCKS,
        machine: Machine | None = None,
    ) -> None:
        self.cluster: Cluster | None = None
        self._machine = machine
        self._settings = settings
        self._open_kernel = kernel
        self._namespace = namespace, locks
        self._stop = asyncio.Event()
        self._starting = asyncio.timeout(None)
        self._resources = AsyncExitStack()
        self._files = contextlib.ExitStack()
        self._apps: list[tuple[Any, socket.socket]] = []
        self._cni: tuple[Any, socket.socket]
        self._background: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {}
        self._supervisor: Supervisor

    def stop(self) -> None:
        """Make `run` end in good order; cancel a start that has not finished."""
        if self._stop.is_set():
            return
        self._stop.set()
        with contextlib.suppress(RuntimeError):  # the start has finished, or has not begun
            self._starting.reschedule(asyncio.get_running_loop().time())

    async def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Run until `stop`; call `started` after the start.

        Raises:
            NetplugError: it cannot start: a lock or socket is in use, or a resource is unavailable.
        """
        try:
            try:
                async with self._starting:
                    await self.startup()
            except TimeoutError:
                if not self._stop.is_set():
                    raise
            started()
            await self.main_loop()
        finally:
            await self.shutdown()

    async def startup(self) -> None:
        """Take locks and sockets, reconcile the kernel with the records, create the apps."""
        started = time.monotonic()
        settings = self._settings
        with exclusive(settings.state_dir / TURN, PATIENCE_S):
            self._resources.enter_context(lock_file(settings.state_dir / "lock"))
        self._resources.enter_context(claim_namespace(*self._namespace))
        paths = (settings.api_socket, settings.plugin_socket, settings.cni_socket)
        api, plugin, cni = (self._claim(path) for path in paths)
        store = await SqliteStore.open(settings.state_dir / "netplug.db")
        self._resources.push_async_callback(store.close)
        shared = await self._open_shared(store)
        kernel = await self._open_kernel()
        self._resources.push_async_callback(kernel.close)
        identity = await Identity.load(store, self._machine or Machine.read())
        gate = Gate(RestoreGuard(shared, identity.id)) if shared else None
        leases = SharedLeases(store, gate, identity.id) if gate else None
        allocator = Allocator(
            leases or StoredLeases(store),
            spaces(await site_prefix(store), settings.address_pool),
            start=HashedStart(identity.id),
        )
        engine = Engine(kernel, store, allocator, drivers())
        await self._guard_store(engine)
        if leases and gate:
            under = await self._underlay(engine, store, kernel)
            self.cluster = Cluster(engine, store, gate, leases, identity=identity, name=settings.host_name, under=under)
        await self._compose(engine, api, plugin, cni)
        log.info(
            "daemon.started",
            version=own_version(),
            api=str(settings.api_socket),
            plugin=str(settings.plugin_socket),
            networks=len(engine.registry.networks()),
            endpoints=len(engine.registry.endpoints()),
            ms=round((time.monotonic() - started) * 1000),
        )

    async def _underlay(self, engine: Engine, store: Store, kernel: Kernel) -> Underlay:
        """Return this host's VTEP; the last known one while the network is not up yet.

        Raises:
            NetplugError: "invalid": the host has no VTEP.
        """
        assert self._settings.etcd  # noqa: S101 - the caller has opened it
        record = await store.get(VTEP)
        known = ip_address(str(record.value["vtep"])) if record else None
        finder = Finder(self._settings.vtep, self._settings.etcd)
        try:
            vtep = await asyncio.to_thread(finder.find, await kernel.facts(), known)
        except NetplugError as exc:
            if known is None:
                raise
            log.warning("vtep.missing", vtep=str(known), reason=exc.message)
            vtep = known
        if vtep != known:
            await store.txn((), [Put(VTEP, {"vtep": str(vtep)})])
        return Underlay(engine, store, finder, vtep)

    async def _guard_store(self, engine: Engine) -> None:
        """Block containers from the shared store, unless configured otherwise.

        Warn of an etcd without authentication.
        """
        access = self._settings.etcd
        if access is None or self._settings.etcd_for_containers:
            await engine.base_plan.keep_away(())
        else:
            known = await engine.base_plan.stored()
            await engine.base_plan.keep_away(await resolved(access.endpoints, known))
        if access is not None and not access.authenticated:
            words = "every client that can connect to etcd can read and change all networks"
            hint = "give etcd a user or client certificates, see docs/store.md"
            log.warning("store.open_to_all", store=str(access), reason=words, hint=hint)

    async def _open_shared(self, own: Store) -> "EtcdStore | None":
        """Open the shared store. While it is unreachable, this host's own networks work.

        They also work if the store refuses access, unless this host was never in a cluster: then the settings are
        wrong.

        Raises:
            NetplugError: "invalid": the store refuses a host that was never in the cluster, or a TLS file is unusable.
        """
        if (access := self._settings.etcd) is None:
            return None
        if access.user and not access.ca:
            log.warning("store.password_in_clear", store=str(access), hint="give etcd a certificate, and set --etcd-ca")
        from netplug.store.etcd import EtcdStore  # noqa: PLC0415 - aiohttp takes half of the start time, and is often not needed
        from netplug.store.etcd_errors import Refused  # noqa: PLC0415

        try:
            store = await EtcdStore.open(access)
            self._resources.push_async_callback(store.close)
            await store.check(_SHARED_TIMEOUT_S)
        except Unreachable as exc:
            log.warning("store.unreachable", reason=str(exc))
        except Refused as exc:
            if await own.get(IDENTITY) is None:
                raise NetplugError("invalid", str(exc)) from exc
            log.warning("store.refused", reason=str(exc))
        except StoreError as exc:
            raise NetplugError("invalid", str(exc)) from exc
        return store

    async def _compose(self, engine: Engine, api: socket.socket, plugin: socket.socket, cni: socket.socket) -> None:
        # Imported here, since they take half of the start time: a second daemon is refused before.
        from netplug.docker.container_inference import Caller  # noqa: PLC0415
        from netplug.docker.resolver import SandboxResolvers  # noqa: PLC0415
        from netplug.frontends.cni.service import CniService  # noqa: PLC0415
        from netplug.frontends.docker.ipam import nobody_known  # noqa: PLC0415
        from netplug.frontends.docker.network import docker_app  # noqa: PLC0415
        from netplug.frontends.rest.app import api_app, nobody_asked  # noqa: PLC0415
        from netplug.kernel.host.upstream_sockets import open_toward  # noqa: PLC0415
        from netplug.names.server import NameServer  # noqa: PLC0415

        settings, cluster = self._settings, self.cluster
        server = NameServer(
            engine,
            settings.dns_domain,
            settings.dns_rules,
            opener=open_toward,
            special=settings.dns_special == "host",
        )
        self._resources.callback(server.close)
        interceptions = SandboxResolvers(engine, server)
        self._resources.push_async_callback(interceptions.close)
        names = None
        if settings.docker_host != "none":
            from netplug.docker.events import DockerEvents  # noqa: PLC0415 - imports an HTTP client, which takes 8 MB

            names = DockerEvents(engine, settings.docker_host, settings.driver_name, interceptions)
        reconciler = Reconciler(engine, names.view if names else None)
        await reconciler.start()
        if cluster is not None:
            cluster.peering.names = server
            if names is not None:
                cluster.networks.called = lambda ident: names.networks.get(ident, "")
            await cluster.start()
        server.start()
        self._supervisor = engine.supervisor
        cni_service = CniService(engine, settings.dns_domain)
        self._background = {
            "reconciler": reconciler.run,
            "dns": server.run,
            "dns.sandboxes": interceptions.run,
            "dhcp": cni_service.leases.run,
            **({"docker": names.run} if names else {}),
            **({"cluster": cluster.run} if cluster else {}),
        }
        self._cni = cni_service, cni
        self._apps = [
            (
                api_app(
                    engine,
                    reconciler,
                    host=settings.host_name,
                    version=own_version(),
                    docker_knows=names.knows if names else nobody_asked,
                    cluster=cluster,
                    domain=settings.dns_domain,
                    names=server,
                ),
                api,
            ),
            (
                docker_app(
                    engine,
                    on_activate=reconciler.on_activate,
                    on_ready=interceptions.serve,
                    who=Caller(engine, names).name if names else nobody_known,
                ),
                plugin,
            ),
        ]

    def _claim(self, path: Path) -> socket.socket:
        claimed = claim_socket(path, SOCKET_MODE)
        self._files.callback(release_socket, claimed)
        return claimed

    async def main_loop(self) -> None:
        """Serve until `stop`, then finish running requests."""
        if self._stop.is_set():
            return
        from netplug.frontends.cni.server import serving_cni  # noqa: PLC0415 - as in `_compose`
        from netplug.frontends.serving import serving_all  # noqa: PLC0415

        async with asyncio.TaskGroup() as group:
            background = [group.create_task(self._supervisor.keep(*work)) for work in self._background.items()]
            # Duplicates: a stop removes the files before the servers stop, and that closes the original sockets.
            cni, sock = self._cni
            async with serving_all(*((app, sock.dup()) for app, sock in self._apps)), serving_cni(cni, sock.dup()):
                notify("READY=1")
                await self._stop.wait()
                notify("STOPPING=1")
                log.info("daemon.stopping")
                self._files.close()
            for task in background:
                task.cancel()

    async def shutdown(self) -> None:
        """Release everything, also after an incomplete start."""
        try:
            self._files.close()
        finally:
            await self._resources.aclose()
        log.debug("daemon.stopped")


def run(settings: Settings) -> None:
    """Run the daemon until SIGTERM or SIGINT.

    Raises:
        NetplugError: the daemon cannot start, or failed.
    """
    logging.configure(settings.log_format, settings.log_level)
    try:
        asyncio.run(_run(settings))
    except NetplugError:
        raise
    except (StoreError, OSError) as exc:
        raise NetplugError("unavailable", str(exc)) from exc
    except Exception as exc:
        log.exception("daemon.failed")
        causes = exc.exceptions if isinstance(exc, ExceptionGroup) else (exc,)
        raise NetplugError("internal", f"the daemon failed: {causes[0]!r}", hint=f"see {logging.LOG}") from exc


async def _run(settings: Settings) -> None:
    daemon = Daemon(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop)
    # Nearly all objects of the start stay. Garbage collection during the start takes a tenth of its time.
    gc.disable()
    await daemon.run(_collect_from_now_on)


def _collect_from_now_on() -> None:
    gc.freeze()
    gc.enable()


def own_version() -> str:
    """Return the version of the installed package."""
    try:
        return version("netplug")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"


def notify(state: str) -> None:
    """Notify systemd (sd_notify(3)), if the service expects it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.sendto(state.encode(), address)
