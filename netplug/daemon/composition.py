"""The parts of a process that manages this host's networks: the daemon, or a CNI command without a daemon."""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from ipaddress import IPv6Network

import structlog

from netplug.config import AddressPool
from netplug.drivers.api import Driver
from netplug.drivers.bridge import BridgeDriver
from netplug.drivers.host import HostDriver
from netplug.drivers.ipam_only import LeasingDriver
from netplug.drivers.macvlan import MacvlanDriver
from netplug.drivers.none import NoneDriver
from netplug.drivers.overlay import OverlayDriver
from netplug.ipam.pool import Base, Space
from netplug.ipam.spaces import LOCAL_V4, default_spaces, ula
from netplug.kernel.api import Kernel
from netplug.store.api import Put, Store

log = structlog.get_logger(__name__)

ULA = "meta/ula"


async def linux_kernel() -> Kernel:
    """Open the kernel of this network namespace."""
    from netplug.kernel.linux import LinuxKernel  # noqa: PLC0415 - tests with a fake kernel do not need it

    return await LinuxKernel.open()


async def site_prefix(store: Store) -> IPv6Network:
    """Return this site's prefix of unique local addresses; chosen at the first start and stored (RFC 4193 §3.2.2)."""
    if record := await store.get(ULA):
        return IPv6Network(str(record.value["prefix"]))
    prefix = ula(secrets.token_bytes(16))
    await store.txn((), [Put(ULA, {"prefix": str(prefix)})], durable=True)
    return prefix


def spaces(prefix: IPv6Network, pools: Sequence[AddressPool]) -> tuple[Space, ...]:
    """Return the address spaces; `pools` replace the bases of the local space, per IP version."""
    given = [Base(pool.base, pool.size) for pool in pools]
    v4 = tuple(base for base in given if base.network.version == 4)
    v6 = tuple(base for base in given if base.network.version == 6)
    local, *others = default_spaces(prefix, local_v4=v4 or (LOCAL_V4,))
    if v6:
        local = replace(local, bases=(*(v4 or (LOCAL_V4,)), *v6))
    return (local, *others)


def drivers() -> dict[str, Driver]:
    """Return the drivers by mode: the built-in ones, and those of entry points."""
    found: dict[str, Driver] = {
        "bridge": BridgeDriver(),
        "host": HostDriver(),
        "ipam": LeasingDriver(),
        "macvlan": MacvlanDriver(),
        "none": NoneDriver(),
        "overlay": OverlayDriver(),
    }
    for point in entry_points(group="netplug.drivers"):
        try:
            found[point.name] = point.load()()
        except Exception:
            # A third-party package; networks of other modes must work nevertheless.
            log.exception("driver.failed", mode=point.name, source=point.value)
    return found
