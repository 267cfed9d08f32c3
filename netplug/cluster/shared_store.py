"""The store that hosts share, as a process of this host opens it: the daemon, or a CNI command without a daemon.

A command claims addresses and advertises endpoints as the daemon does, but does not follow changes of other hosts: what
the daemon left in the kernel stays. If the store cannot be reached, a command changes nothing that hosts share.
"""

import asyncio
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address

import structlog

from netplug.cluster.identity import VTEP
from netplug.cluster.records import IDENTITY
from netplug.cluster.recovery import load_mark
from netplug.cluster.vtep import Finder
from netplug.config import Settings
from netplug.drivers.api import Scope
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import IPAddress
from netplug.engine.records import NETWORKS
from netplug.errors import NetplugError
from netplug.kernel.api import Kernel
from netplug.store.access import EtcdAccess
from netplug.store.api import Put, Record, SharedStore, Store, StoreError, Unreachable
from netplug.store.restore_guard import RestoreGuard
from netplug.store.unreachable import UnreachableStore
from netplug.tasks.latency import Latencies

log = structlog.get_logger(__name__)

COMMAND_DEADLINE_S = 3.0
"""Deadline of a command's requests, since the runtime waits."""
_START_DEADLINE_S = 1.0
"""Longest wait of a starting daemon, which continues without the store; dockerd waits 15 s for a plugin."""


@dataclass(frozen=True, slots=True)
class Shared:
    """The shared store, and the VTEP of this host. `times`: how long its requests took."""

    store: RestoreGuard
    vtep: IPAddress
    times: Latencies = field(default_factory=Latencies)


async def open_for_daemon(
    settings: Settings, own: Store, kernel: Kernel, host_id: str, stack: AsyncExitStack
) -> Shared | None:
    """Open the shared store of the settings; None if they name none.

    While the store is unreachable, this host's own networks work. They also work if the store refuses access, unless
    this host was never in a cluster: then the settings are wrong.

    Args:
        settings: names the store.
        own: the records of this host.
        kernel: tells the addresses of this host.
        host_id: the id of this host.
        stack: closes what is opened.

    Raises:
        NetplugError: "invalid": the store refuses a host that was never in the cluster, a TLS file is unusable, or the
            host has no VTEP.
    """
    if (access := settings.etcd) is None:
        return None
    _warn_of_weak_access(access)
    from netplug.store.etcd import EtcdStore  # noqa: PLC0415 - aiohttp takes half of the start time, and is often not needed
    from netplug.store.etcd_errors import Refused  # noqa: PLC0415

    try:
        store = await EtcdStore.open(access)
        stack.push_async_callback(store.close)
        await store.check(_START_DEADLINE_S)
    except Unreachable as exc:
        log.warning("store.unreachable", reason=str(exc))
    except Refused as exc:
        if await own.get(IDENTITY) is None:
            raise NetplugError("invalid", str(exc)) from exc
        log.warning("store.refused", reason=str(exc))
    except StoreError as exc:
        raise NetplugError("invalid", str(exc)) from exc
    vtep = await _find_vtep(Finder(settings.vtep, access), own, kernel)
    return Shared(RestoreGuard(store, host_id), vtep, store.times)


def _warn_of_weak_access(access: EtcdAccess) -> None:
    if access.user and not access.ca:
        log.warning("store.password_in_clear", store=str(access), hint="give etcd a certificate, and set --etcd-ca")
    if not access.authenticated:
        words = "every client that can connect to etcd can read and change all networks"
        hint = "give etcd a user or client certificates, see docs/store.md"
        log.warning("store.open_to_all", store=str(access), reason=words, hint=hint)


async def _find_vtep(finder: Finder, own: Store, kernel: Kernel) -> IPAddress:
    """Return this host's VTEP; the last known one while the network is not up yet."""
    known = await _known_vtep(own)
    try:
        vtep = await asyncio.to_thread(finder.find, await kernel.facts(), known)
    except NetplugError as exc:
        if known is None:
            raise
        log.warning("vtep.missing", vtep=str(known), reason=exc.message)
        return known
    if vtep != known:
        await own.txn((), [Put(VTEP, {"vtep": str(vtep)})])
    return vtep


async def _known_vtep(own: Store) -> IPAddress | None:
    record = await own.get(VTEP)
    return ip_address(str(record.value["vtep"])) if record else None


async def open_for_command(
    settings: Settings, own: Store, host_id: str, stack: AsyncExitStack, drivers: Drivers
) -> Shared | None:
    """Open the shared store that the daemon of this host used; None for a host without cluster networks.

    The settings of this process may lack it: flags of the daemon are known to the daemon only.

    Args: as of `open_for_daemon`. `drivers` tell which modes are of a cluster.
    """
    vtep = await _known_vtep(own)
    modes = {mode for mode, driver in drivers.items() if driver.scope is Scope.CLUSTER}
    networks, _ = await own.range(NETWORKS)
    if vtep is None or not any(_mode(record) in modes for record in networks):
        return None
    try:
        shared = RestoreGuard(await _open_known(settings, own, stack), host_id)
        await load_mark(own, shared)
        await shared.verify()
        stack.push_async_callback(_mark, shared)
    except StoreError as exc:
        words = f"the netplug daemon does not answer, and without it what hosts share cannot be changed: {exc}"
        shared = RestoreGuard(UnreachableStore(words), host_id)
    return Shared(shared, vtep)


def _mode(record: Record) -> str:
    """Return the mode in the record of a network, which may be another version's."""
    network = record.value.get("network")
    options = network.get("options") if isinstance(network, dict) else None
    return str(options.get("mode")) if isinstance(options, dict) else ""


async def _open_known(settings: Settings, own: Store, stack: AsyncExitStack) -> SharedStore:
    if settings.etcd is None:
        raise StoreError("no store is named in netplug.toml or NETPLUG_STORE")
    from netplug.store.etcd import EtcdStore  # noqa: PLC0415 - see `open_for_daemon`

    shared = await EtcdStore.open(settings.etcd, deadline_s=COMMAND_DEADLINE_S)
    stack.push_async_callback(shared.close)
    known, now = await own.get(IDENTITY), await shared.get(IDENTITY)
    if known is None or now is None or known.value["id"] != now.value["id"]:
        raise StoreError(f"{settings.etcd} has other data than this host has seen there")
    return shared


async def _mark(shared: RestoreGuard) -> None:
    with suppress(StoreError):  # the daemon writes a mark when it is back
        await shared.mark()
