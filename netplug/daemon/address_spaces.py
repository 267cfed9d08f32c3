"""The address spaces from which networks of this host get subnets."""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv6Network

from netplug.ipam.pool import Base, Space
from netplug.ipam.spaces import LOCAL_V4, default_spaces, ula
from netplug.setting_values import AddressPool
from netplug.store.api import Put, Store

ULA = "meta/ula"


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
