"""Pools and address leases in a store: the allocator's `LeaseStore`.

A claim is a transaction that succeeds only if the address has no record, so the store decides between two hosts that
want the same address. All state is in the store, except claims whose answer was lost.
"""

import asyncio
from dataclasses import replace
from ipaddress import ip_network
from typing import TypeVar
from urllib.parse import quote, unquote

from netplug.drivers.codec import JsonObject, decode, decode_known, encode
from netplug.ipam.lease import IPAddress, Lease, OwnerKind
from netplug.ipam.pool import Pool
from netplug.store.api import Compare, Delete, Put, Record, Store, StoreError, Unreachable
from netplug.tasks.uncancellable import uncancellable

IPAM = "ipam/"
POOLS = IPAM + "pools/"
LEASES = IPAM + "leases/"
OPS_PER_TXN = 100  # etcd allows 128 in one transaction (--max-txn-ops)

_R = TypeVar("_R", Pool, Lease)


class StoredLeases:
    """`LeaseStore` on a `Store`, which the caller closes. `host`: this host's id if several hosts share the store."""

    def __init__(self, store: Store, host: str = "") -> None:
        self._store = store
        self._host = host
        self._unconfirmed: dict[str, JsonObject] = {}
        self._withdrawing = asyncio.Lock()
        self.unreadable: dict[str, str] = {}

    async def load(self) -> tuple[list[Pool], list[Lease]]:
        """Return all pools and leases.

        A pool whose record cannot be read completely is returned with what can be read, so that its subnet stays in
        use. An address whose lease cannot be read stays in use too: the store refuses a claim if there is a record.
        """
        self.unreadable = {}
        pools = [self._pool(record) for record in (await self._store.range(POOLS))[0]]
        leases = [self._lease(record) for record in (await self._store.range(LEASES))[0]]
        return [it for it in pools if it is not None], [it for it in leases if it is not None]

    def _pool(self, record: Record) -> Pool | None:
        try:
            return _decode(Pool, record)
        except StoreError as exc:
            self.unreadable[record.key] = str(exc)
            return decode_known(Pool, record.value) or _pool_of(record.key)

    def _lease(self, record: Record) -> Lease | None:
        try:
            return lease_of(record)[0]
        except StoreError as exc:
            self.unreadable[record.key] = str(exc)
            return None

    async def claim(self, lease: Lease) -> bool:
        """Store a new lease; return False if the address has a record.

        If the store does not answer, it may have stored the lease nevertheless. Such a lease is deleted before the next
        claim, provided that its owner's id or the host's id identifies it.
        A cancelled claim waits for the answer and deletes the lease; otherwise the address would leak.
        """
        await self._withdraw()
        key = lease_key(lease.pool, lease.address)
        stored: list[int | None] = []
        try:
            return await uncancellable(self._put_new(key, lease), stored.append) is not None
        except asyncio.CancelledError:
            for revision in stored:
                if revision is not None:
                    await uncancellable(self._delete_cancelled(key, revision, lease))
            raise

    async def _delete_cancelled(self, key: str, revision: int, lease: Lease) -> None:
        try:
            await self._store.txn([Compare(key, revision)], [Delete(key)])
        except StoreError:
            self._unconfirmed[key] = self._stamped(lease)

    async def _put_new(self, key: str, lease: Lease) -> int | None:
        value = self._stamped(lease)
        # Gateways survive a power failure, as their networks do; endpoints do not.
        durable = lease.owner.kind in {OwnerKind.GATEWAY, OwnerKind.AUX}
        try:
            return await self._store.txn([Compare(key, 0)], [Put(key, value)], durable=durable)
        except Unreachable:
            if lease.owner.id or self._host:  # which tells it from another host's lease
                self._unconfirmed[key] = value
            raise

    async def _withdraw(self) -> None:
        """Delete the leases of claims whose answer was lost, unless the record is another owner's by now."""
        async with self._withdrawing:  # one at a time: a second task must not delete what was claimed since
            while self._unconfirmed:
                key, value = self._unconfirmed.popitem()
                try:
                    record = await self._store.get(key)
                    if record is not None and record.value == value:
                        await self._store.txn([Compare(key, record.revision)], [Delete(key)])
                except BaseException:  # the outcome of the claim is as unknown as before
                    self._unconfirmed[key] = value
                    raise

    async def update(self, lease: Lease) -> bool:
        """Store a changed lease; return False if there is no such record, or another host has it."""
        key = lease_key(lease.pool, lease.address)
        put = Put(key, self._stamped(lease))
        while (record := await self._store.get(key)) and self._is_ours(record):
            if await self._store.txn([Compare(key, record.revision)], [put]) is not None:
                return True
        return False

    async def drop(self, pool_id: str, address: IPAddress) -> None:
        """Delete a lease. Deleting a missing one succeeds; another host's lease is left alone."""
        key = lease_key(pool_id, address)
        if not self._host:
            await self._store.txn([], [Delete(key)])
            return
        while (record := await self._store.get(key)) and self._is_ours(record):
            if await self._store.txn([Compare(key, record.revision)], [Delete(key)]) is not None:
                return

    def _is_ours(self, record: Record) -> bool:
        return record.value.get("host", "") == self._host

    async def save_pool(self, pool: Pool) -> bool:
        """Store a new or changed pool; this is never refused. A record that cannot be read is left unchanged."""
        if pool_key(pool.id) in self.unreadable:
            return True
        await self._store.txn([], [Put(pool_key(pool.id), _encode(pool))], durable=True)
        return True

    def _stamped(self, lease: Lease) -> JsonObject:
        return stamped(lease, self._host)

    async def drop_pool(self, pool_id: str) -> None:
        """Delete a pool with all its leases; the pool last, so that it is still known after a crash."""
        records, _ = await self._store.range(leases_prefix(pool_id))
        keys = [*(record.key for record in records), pool_key(pool_id)]
        ops = [Delete(key) for key in keys if key not in self.unreadable]
        for start in range(0, len(ops), OPS_PER_TXN):
            await self._store.txn([], ops[start : start + OPS_PER_TXN], durable=start + OPS_PER_TXN >= len(ops))


def pool_key(pool_id: str) -> str:
    """Return the key of a pool's record.

    >>> pool_key("local/fd00::/64")
    'ipam/pools/local%2Ffd00::%2F64'
    """
    return POOLS + quote(pool_id, safe=":")


def _pool_of(key: str) -> Pool | None:
    """Return the pool that a key describes: it contains the pool's id, which consists of space, subnet and range.

    >>> _pool_of("ipam/pools/local%2F10.0.0.0%2F16%2F10.0.1.0%2F24").id
    'local/10.0.0.0/16/10.0.1.0/24'
    """
    space, *parts = unquote(key.removeprefix(POOLS)).split("/")
    try:
        nets = [ip_network("/".join(pair)) for pair in zip(parts[::2], parts[1::2], strict=True)]
    except ValueError:
        return None
    return Pool(space, nets[0], nets[1] if len(nets) > 1 else None) if nets else None


def leases_prefix(pool_id: str) -> str:
    """Return the prefix of the keys of a pool's leases; no other key has it."""
    return f"{LEASES}{quote(pool_id, safe=':')}/"


def lease_key(pool_id: str, address: IPAddress) -> str:
    """Return the key of a lease's record."""
    return f"{leases_prefix(pool_id)}{address}"


def stamped(lease: Lease, host: str) -> JsonObject:
    """Return a lease's record, with the id of its host."""
    data = _encode(lease)
    return {**data, "host": host} if host else data


def lease_of(record: Record) -> tuple[Lease, str]:
    """Return the lease in a record and the id of its host, which is empty if the store is not shared.

    Raises:
        StoreError: the record cannot be read; the text names its key.
    """
    value = {key: item for key, item in record.value.items() if key != "host"}
    return _decode(Lease, replace(record, value=value)), str(record.value.get("host", ""))


def _encode(value: Pool | Lease) -> JsonObject:
    data = encode(value)
    assert isinstance(data, dict)  # noqa: S101 - a dataclass encodes to an object
    return data


def _decode(cls: type[_R], record: Record) -> _R:
    try:
        return decode(cls, record.value)
    except (ValueError, TypeError) as exc:
        raise StoreError(f"record {record.key!r} is not a {cls.__name__.lower()}: {exc}") from exc
