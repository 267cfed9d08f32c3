"""The daemon's life: startup, main_loop, shutdown (uvicorn's `Server` is the model).

Sockets listen from the beginning, so that a second daemon finds them in use. Requests are answered only after the
kernel has been reconciled with the records; until then dockerd's requests wait in the queue of the socket. The daemon
is ready then; it loads the modules that answer HTTP last, since they take as long as all others. A socket file without
a listener makes dockerd hang for 15 s, so a stop removes the files first. Sockets of a socket unit of systemd stay, and
keep what comes for the next daemon. Traffic continues without the daemon.
"""

import asyncio
import contextlib
import faulthandler
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import structlog

from netplug import __version__
from netplug import log as logging
from netplug.cluster.identity import Machine
from netplug.config import Settings, load
from netplug.daemon.composition import (
    Background,
    Composition,
    OpenKernel,
    compose,
    linux_kernel,
    open_host,
    open_shared,
)
from netplug.daemon.descriptor_store import DescriptorStore
from netplug.daemon.lock import DAEMONLESS_LOCK, SOCKET_MODE, claim_socket, exclusive, lock_file, release_socket
from netplug.daemon.namespace_lock import LOCKS, NAMESPACE, claim_namespace
from netplug.daemon.refusing import refuse_waiting
from netplug.daemon.reloading import Reloading
from netplug.daemon.socket_group import let_group_in
from netplug.daemon.status import keep_systemd_informed
from netplug.daemon.systemd import UNIT, inherited_sockets, notify, notify_surely
from netplug.engine import Engine
from netplug.engine.happenings import Kind
from netplug.errors import NetplugError
from netplug.kernel.host.heap import use_one_heap
from netplug.store.api import StoreError
from netplug.store.endpoints import resolved

if TYPE_CHECKING:
    from netplug.cluster.cluster import Cluster

log = structlog.get_logger(__name__)

PATIENCE_S = 20.0
"""Longest wait for commands that work without a daemon, which take a second or two each."""


class Daemon:
    """The daemon from start to stop. `kernel`: opens the kernel; `namespace`, `locks`: see `claim_namespace`.

    `machine`: the machine that it runs on. `inherited`: sockets of systemd (`inherited_sockets`). `kept`: has systemd
    keep sockets for the next daemon. `read`: returns the settings of a reload. `cluster`: None without a shared store.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        kernel: OpenKernel = linux_kernel,
        namespace: str = NAMESPACE,
        locks: Path = LOCKS,
        machine: Machine | None = None,
        inherited: Mapping[Path, socket.socket] = MappingProxyType({}),
        kept: DescriptorStore | None = None,
        read: Callable[[], Settings] = load,
    ) -> None:
        self.cluster: Cluster | None = None
        self._machine = machine
        self._settings = settings
        self._open_kernel = kernel
        self._namespace = namespace, locks
        self._stop = asyncio.Event()
        self._starting = asyncio.timeout(None)
        self._resources = AsyncExitStack()
        self._inherited = dict(inherited)
        self._kept = kept or DescriptorStore()
        self._reloading = Reloading(settings, read)
        self._files = contextlib.ExitStack()
        self._api_socket: socket.socket
        self._plugin_socket: socket.socket
        self._cni_socket: socket.socket
        self._background: Background = {}
        self._parts: Composition

    def stop(self) -> None:
        """Make `run` end in good order; cancel a start that has not finished."""
        if self._stop.is_set():
            return
        self._stop.set()
        with contextlib.suppress(RuntimeError):  # the start has finished, or has not begun
            self._starting.reschedule(asyncio.get_running_loop().time())

    def reload(self) -> None:
        """Read the settings again, and use what can change at run time."""
        self._reloading.ask()

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
            await self.main_loop(started)
        finally:
            await self.shutdown()

    async def startup(self) -> None:
        """Take locks and sockets, compose the parts, reconcile the kernel with the records."""
        started = time.monotonic()
        settings, resources = self._settings, self._resources
        with exclusive(settings.state_dir / DAEMONLESS_LOCK, PATIENCE_S):
            resources.enter_context(lock_file(settings.state_dir / "lock"))
        resources.enter_context(claim_namespace(*self._namespace))
        self._api_socket, self._plugin_socket, self._cni_socket = self._sockets()
        host = await open_host(settings, resources, kernel=self._open_kernel, machine=self._machine)
        resources.callback(self._kept.close)  # before the kernel closes the sockets
        parts = await compose(host, await open_shared(host), docker=settings.docker_host != "none")
        await self._start(parts)
        log.info(
            "daemon.started",
            version=__version__,
            api=str(settings.api_socket),
            plugin=str(settings.plugin_socket),
            networks=len(parts.engine.registry.networks()),
            endpoints=len(parts.engine.registry.endpoints()),
            ms=round((time.monotonic() - started) * 1000),
        )
        _tell(parts.engine, Kind.DAEMON_STARTED)

    async def _start(self, parts: Composition) -> None:
        self._parts, self.cluster = parts, parts.cluster
        _ = parts.events  # keeps what happens during the start too
        await self._guard_store(parts.engine)
        self._background = parts.background  # makes the parts that learn of each record that is loaded
        await parts.reconciler.start()
        self._kept.drop_left()
        if parts.cluster is not None:
            await parts.cluster.start()
        parts.name_server.start()

    async def _guard_store(self, engine: Engine) -> None:
        """Block containers from the shared store, unless configured otherwise."""
        access = self._settings.etcd
        if access is None or self._settings.etcd_for_containers:
            await engine.base_plan.keep_away(())
        else:
            known = await engine.base_plan.stored()
            await engine.base_plan.keep_away(await resolved(access.endpoints, known))

    def _sockets(self) -> tuple[socket.socket, ...]:
        """Take the sockets that systemd keeps, and claim the others."""
        settings = self._settings
        wanted = (settings.api_socket, settings.plugin_socket, settings.cni_socket)
        found = tuple(self._inherited.get(path) or self._claim(path) for path in wanted)
        if self._inherited and self._inherited.keys() != set(wanted):
            missing = [str(path) for path in wanted if path not in self._inherited]
            others = [str(path) for path in self._inherited if path not in wanted]
            hint = f"let ListenStream= of {UNIT} name the sockets of the settings: systemctl edit {UNIT}"
            log.warning("socket.differs", not_of_systemd=missing, not_of_settings=others, hint=hint)
        let_group_in(settings.api_socket, settings.socket_gid)
        return found

    def _claim(self, path: Path) -> socket.socket:
        claimed = claim_socket(path, SOCKET_MODE)
        self._files.callback(release_socket, claimed)
        return claimed

    async def main_loop(self, started: Callable[[], None] = lambda: None) -> None:
        """Serve until `stop`, then finish running requests. Call `started` when all is served."""
        if self._stop.is_set():
            return
        from netplug.frontends.cni.server import serving_cni  # noqa: PLC0415 - a second daemon is refused before

        parts, keep = self._parts, self._parts.engine.supervisor.keep
        background: Background = {
            **self._background,
            "settings": partial(self._reloading.run, parts),
            "systemd": partial(keep_systemd_informed, parts.engine),
        }
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(keep(*work)) for work in background.items()]
            # Duplicates: a stop removes the files before the servers stop, and that closes the original sockets.
            async with serving_cni(parts.cni, self._cni_socket.dup()):
                if not notify("READY=1"):
                    tasks.append(group.create_task(notify_surely("READY=1")))
                serving = await parts.load_http()
                apps = ((parts.plugin, self._plugin_socket), (parts.api, self._api_socket))
                serve = partial(serving, one_request=bool(self._inherited))
                async with serve(*((app, sock.dup()) for app, sock in apps)):
                    started()
                    await self._stop.wait()
                    notify("STOPPING=1")
                    log.info("daemon.stopping")
                    _tell(parts.engine, Kind.DAEMON_STOPPED)
                    parts.events.end_following()
                    if self.cluster is not None:
                        self.cluster.begin_to_stop()
                    self._files.close()
            for task in tasks:
                task.cancel()

    async def shutdown(self) -> None:
        """Release everything, also after an incomplete start."""
        try:
            self._files.close()
        finally:
            for sock in self._inherited.values():
                sock.close()
            await self._resources.aclose()
        log.debug("daemon.stopped")


def _tell(engine: Engine, kind: Kind) -> None:
    networks, endpoints = len(engine.registry.networks()), len(engine.registry.endpoints())
    engine.happenings.tell(kind, "daemon", f"version {__version__}, {networks} networks, {endpoints} endpoints")


def run(settings: Settings, read: Callable[[], Settings] = load) -> None:
    """Run the daemon until SIGTERM or SIGINT. SIGHUP has it `read` the settings again.

    Raises:
        NetplugError: the daemon cannot start, or failed.
    """
    os.umask(0o077)  # as the unit has it: what is for others says so
    logging.configure(settings.log_format, settings.log_level, lasting=True)
    # A daemon that hangs gets SIGABRT from systemd, and the stack of its loop is in the log. Not those of all threads:
    # Python prints the main thread last, after at most 99 others, and may die of reading the frames of one that runs.
    faulthandler.enable(all_threads=False)
    kept, inherited = DescriptorStore.of_service(os.environ), inherited_sockets()
    try:
        asyncio.run(_run(settings, read, kept, inherited))
    except NetplugError as exc:
        if exc.kind == "invalid":
            refuse_waiting(inherited, exc.message)
        raise
    except (StoreError, OSError) as exc:
        raise NetplugError("unavailable", str(exc)) from exc
    except Exception as exc:
        log.exception("daemon.failed")
        causes = exc.exceptions if isinstance(exc, ExceptionGroup) else (exc,)
        raise NetplugError("internal", f"the daemon failed: {causes[0]!r}", hint=f"see {logging.LOG}") from exc


async def _run(
    settings: Settings, read: Callable[[], Settings], kept: DescriptorStore, inherited: Mapping[Path, socket.socket]
) -> None:
    use_one_heap()  # before there are other threads: each that has a heap keeps it
    own = {path: sock.dup() for path, sock in inherited.items()}
    daemon = Daemon(settings, kernel=partial(linux_kernel, kept), inherited=own, kept=kept, read=read)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop)
    # From a terminal it says that the terminal is gone.
    loop.add_signal_handler(signal.SIGHUP, daemon.stop if sys.stderr.isatty() else daemon.reload)
    # Nearly all objects of the start stay. Garbage collection during the start takes a tenth of its time.
    gc.disable()
    await daemon.run(_collect_from_now_on)


def _collect_from_now_on() -> None:
    gc.freeze()
    gc.enable()
