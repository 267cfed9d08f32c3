"""Work on networks of a cluster by a process that does not live in it: a CNI command without a daemon.

It claims addresses and tells of endpoints as the daemon does, as long as the store is the one that this host knows. It
follows nothing, and so hears of no others: the kernel has what the daemon left there. Where the store cannot be asked,
what hosts share is not changed.
"""

from contextlib import AsyncExitStack, suppress
from ipaddress import ip_address

from netplug.cluster.records import IDENTITY
from netplug.cluster.recovery import remembered
from netplug.cluster.underlay import VTEP
from netplug.config import Settings
from netplug.drivers.options import OVERLAY
from netplug.drivers.steps import IPAddress
from netplug.engine.records import NETWORKS
from netplug.store.api import SharedStore, Store, StoreError
from netplug.store.restore_guard import RestoreGuard
from netplug.store.unreachable import UnreachableStore

DEADLINE_S = 3.0
"""Of a question to the store: the runtime waits."""


async def visited(
    own: Store, settings: Settings, stack: AsyncExitStack, me: str
) -> tuple[RestoreGuard, IPAddress] | None:
    """Return the store that this host shares, and its VTEP there; None for a host without networks of a cluster.

    Args:
        own: the records of this host.
        settings: where the shared store is; a daemon may have been told so by flags, which nobody else knows.
        stack: closes what is opened.
        me: the id of this host.
    """
    vtep = await own.get(VTEP)
    networks, _ = await own.range(NETWORKS)
    if vtep is None or not any(OVERLAY in str(record.value.get("network")) for record in networks):
        return None
    try:
        shared = RestoreGuard(await _open(own, settings, stack), me)
        await remembered(own, shared)
        await shared.verify()
        stack.push_async_callback(_leave, shared)
    except StoreError as exc:
        words = f"the netplug daemon does not answer, and without it what hosts share stays as it is: {exc}"
        shared = RestoreGuard(UnreachableStore(words), me)
    return shared, ip_address(str(vtep.value["vtep"]))


async def _leave(shared: RestoreGuard) -> None:
    with suppress(StoreError):  # the daemon writes one when it is back
        await shared.mark()


async def _open(own: Store, settings: Settings, stack: AsyncExitStack) -> SharedStore:
    if settings.etcd is None:
        raise StoreError("no store is named in netplug.toml or NETPLUG_STORE")
    from netplug.store.etcd import EtcdStore  # noqa: PLC0415 - aiohttp is half of the start, and seldom needed

    shared = await EtcdStore.open(settings.etcd, deadline_s=DEADLINE_S)
    stack.push_async_callback(shared.close)
    known, now = await own.get(IDENTITY), await shared.get(IDENTITY)
    if known is None or now is None or known.value["id"] != now.value["id"]:
        raise StoreError(f"{settings.etcd} holds other data than this host has seen there")
    return shared
