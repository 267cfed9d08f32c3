"""The shared store: etcd 3.4 or later.

All keys start with one root, so other programs, and other netplug clusters, can use the same etcd. A value in etcd is
`{"txn": ID, "value": …}`. If the answer to a transaction is lost, the retry reads the ids to find out whether the first
attempt was committed. Without it, an own claim whose answer was lost would look like another host's claim. A fence
keeps a lost transaction from being committed later (see `etcd_fences`).

Revisions are etcd's own, so they also count the changes of its other users.
"""

import asyncio
import contextlib
import itertools
import math
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass

from .access import EtcdAccess
from .api import Compare, Delete, Event, Put, Record, StoreError
from .encoding import check_keys
from .etcd_errors import NOT_FOUND, OUT_OF_RANGE, Refused
from .etcd_fences import LEASE_S, Fences
from .etcd_records import Message, Records, b64, number, revision_of
from .etcd_watch import PROGRESS_S, EtcdWatch
from .gateway import ATTEMPT_S, DEADLINE_S, Gateway

ROOT = "/netplug/v1/default/"
MAX_OPS = 128  # the default of etcd's --max-txn-ops
MAX_COMPARES = MAX_OPS - 1  # one more is the fence
PAGE = 500  # records per answer: about 250 KB
_RANGE = "/v3/kv/range"
_TXN = "/v3/kv/txn"
_RANGE_TRIES = 5  # a compaction between two pages makes a range start again; compactions are minutes apart


@dataclass(frozen=True, slots=True)
class EtcdStatus:
    """What a member says of itself. `errors`: such as "NOSPACE", while it refuses to write."""

    version: str
    size_bytes: int
    errors: tuple[str, ...] = ()


class EtcdStore:
    """`SharedStore` on etcd, for any number of processes. Created by `open`.

    Each call ends within a deadline; it raises `Unreachable` if no endpoint answers. A watch waits until etcd is back.

    Leases: etcd counts whole seconds, and expires a lease up to one second late. After a leader election or a restart
    etcd renews all leases.

    Cancellation: a transaction whose caller is cancelled may still be committed, as a whole, until another call gets an
    answer.
    """

    def __init__(self, gateway: Gateway, root: str, page: int, progress_s: float) -> None:
        self._gateway = gateway
        self.times = gateway.times
        self._records = Records(root)
        self.unreadable: Mapping[str, str] = self._records.unreadable
        self._fences = Fences(self._put_fences)
        self._page = page
        self._progress_s = progress_s
        self._id = secrets.token_hex(6)
        self._count = itertools.count(1)

    @classmethod
    async def open(
        cls,
        access: EtcdAccess,
        *,
        root: str = ROOT,
        page: int = PAGE,
        deadline_s: float = DEADLINE_S,
        attempt_s: float = ATTEMPT_S,
        progress_s: float = PROGRESS_S,
    ) -> "EtcdStore":
        """Prepare the store. It sends nothing before the first call.

        Args:
            access: endpoints and credentials.
            root: the prefix of all keys in etcd; ends in "/".
            page: the most records in one answer to `range`.
            deadline_s: for a call, all attempts at all endpoints together.
            attempt_s: for one request to one endpoint.
            progress_s: how long a watch may be silent before it checks that its endpoint is alive.

        Raises:
            StoreError: a TLS file cannot be read.
        """
        return cls(await Gateway.open(access, deadline_s=deadline_s, attempt_s=attempt_s), root, page, progress_s)

    async def check(self, deadline_s: float | None = None) -> None:
        """Read one key, to verify addresses, certificates, user and permissions.

        Args:
            deadline_s: None: the same as for other calls.

        Raises:
            Unreachable: no endpoint answers.
            StoreError: etcd refuses the request.
        """
        start, end = self._records.span("")
        body = {"key": b64(start), "range_end": b64(end), "limit": "1", "keys_only": True}
        await self._gateway.call(_RANGE, body, deadline_s=deadline_s)

    async def get(self, key: str) -> Record | None:
        """Return the record of a key.

        Raises:
            StoreError: another program wrote this key; or, as for every call, etcd refuses.
        """
        kvs = (await self._read({"key": self._records.key(key)})).get("kvs")
        return self._records.record(kvs[0]) if kvs else None

    async def range(self, prefix: str) -> tuple[list[Record], int]:
        """Return the records whose keys start with `prefix`, sorted by key, and the revision of that snapshot.

        Keys that another program wrote are logged and left out.
        """
        for left in reversed(range(_RANGE_TRIES)):
            try:
                return await self._pages(prefix)
            except Refused as exc:
                if exc.code != OUT_OF_RANGE or not left:
                    raise
        raise AssertionError("the last try returns or raises")

    async def txn(
        self,
        compares: Sequence[Compare],
        ops: Sequence[Put | Delete],
        *,
        durable: bool = False,  # noqa: ARG002 - etcd always is
    ) -> int | None:
        """Apply all operations if all comparisons hold, and return the transaction's revision; else return None.

        Raises:
            Unreachable: no answer. The transaction may be committed, now or until the next call gets an answer.
            StoreError: two operations have the same key, there are too many, or a lease has expired. Nothing changes.
        """
        check_keys(ops)
        if len(ops) > MAX_OPS or len(compares) > MAX_COMPARES:
            raise StoreError(
                f"a transaction has {len(ops)} operations and {len(compares)} comparisons;"
                f" etcd takes {MAX_OPS} and {MAX_COMPARES}"
            )
        await self._fences.raised()
        txn = f"{self._id}-{next(self._count)}"
        body: Message = {
            "compare": [self._compare(compare) for compare in (*compares, self._fences.condition(txn))],
            "success": [self._records.operation(op, txn) for op in ops],
        }
        # The retry reads the keys: all, since others may have written some of them again.
        retry = {**body, "failure": [{"requestRange": {"key": self._records.key(op.key)}} for op in ops]}

        def lost() -> Message:
            self._fences.lost(txn)
            return retry

        try:
            answer = await self._gateway.call(_TXN, body, lost)
        except Refused as exc:
            if exc.code != NOT_FOUND:
                raise
            raise StoreError(f"{_leased(ops)}, which has expired") from exc
        except asyncio.CancelledError:
            self._fences.lost(txn)
            raise
        with contextlib.suppress(StoreError):  # the next call tries again
            await self._fences.raised()
        return revision_of(answer) if answer.get("succeeded") else self._committed_before(answer, txn, ops)

    async def lease(self, ttl_s: float) -> int:
        """Grant a lease, and return its id. It expires `ttl_s` seconds, rounded up, after the last `keep_alive`."""
        if not (ttl_s > 0 and math.isfinite(ttl_s)):
            raise StoreError(f"a lease of {ttl_s} s cannot be granted: its time must be positive")
        return number(await self._call("/v3/lease/grant", {"TTL": str(math.ceil(ttl_s))}), "ID")

    async def keep_alive(self, lease: int) -> bool:
        """Renew a lease; return False if it has expired."""
        answer = await self._call("/v3/lease/keepalive", {"ID": str(lease)})
        return number(answer.get("result", {}), "TTL") > 0  # for an expired lease etcd answers success without TTL

    async def revoke(self, lease: int) -> None:
        """Revoke a lease and delete its records. Revoking a missing lease succeeds."""
        try:
            await self._call("/v3/lease/revoke", {"ID": str(lease)})
        except Refused as exc:
            if exc.code != NOT_FOUND:
                raise

    def watch(
        self, prefix: str, revision: int, *, anchor: Callable[[], Compare | None] | None = None
    ) -> AsyncIterator[Event]:
        """Yield the changes after `revision` to keys that start with `prefix`; then wait for more, until `close`.

        After a timeout or a cancellation the iterator can be used again; it loses no event. While etcd is unreachable,
        it waits.

        Raises:
            Compacted: the history after `revision` is gone, or etcd has lost its data or was restored from a backup.
            StoreError: etcd refuses the request.
        """
        self._gateway.check_open()
        return EtcdWatch(self._gateway, self._records, prefix, revision, self._progress_s, anchor)

    async def reconnect(self) -> None:
        """Replace all connections, as this host's address has changed. Pending calls and watches go on."""
        await self._gateway.reconnect()

    async def status(self) -> EtcdStatus:
        """Return what the member that answers says of itself.

        Raises:
            StoreError: it does not answer, or refuses.
        """
        found = await self._gateway.call("/v3/maintenance/status", {})
        errors = found.get("errors")
        names = tuple(map(str, errors)) if isinstance(errors, list) else ()
        return EtcdStatus(str(found.get("version", "")), int(str(found.get("dbSize", 0))), names)

    async def close(self) -> None:
        """Finish pending calls and close the connections. A second call does nothing."""
        await self._gateway.close()

    async def _call(self, path: str, body: Message) -> Message:
        return await self._gateway.call(path, body)

    async def _read(self, body: Message) -> Message:
        await self._fences.raised()
        return await self._call(_RANGE, body)

    async def _put_fences(self, keys: Sequence[str]) -> None:
        lease = await self.lease(LEASE_S)
        await self._call(_TXN, {"success": [self._records.operation(Put(key, {}, lease), key) for key in keys]})

    async def _pages(self, prefix: str) -> tuple[list[Record], int]:
        """Read a range page by page, all at the revision of the first page."""
        start, end = self._records.span(prefix)
        request: Message = {"key": b64(start), "range_end": b64(end), "limit": str(self._page)}
        records: list[Record] = []
        for key in [key for key in self._records.unreadable if key.startswith(prefix)]:
            del self._records.unreadable[key]  # it may be gone
        while True:
            answer = await self._read(request)
            kvs = answer.get("kvs", [])
            records += [record for kv in kvs if (record := self._records.readable(kv)) is not None]
            revision = int(request.get("revision", revision_of(answer)))
            if not answer.get("more"):
                return records, revision
            request |= {"key": self._records.after(kvs[-1]), "revision": str(revision)}

    def _compare(self, compare: Compare) -> Message:
        return {
            "key": self._records.key(compare.key),
            "target": "MOD",
            "result": "GREATER" if compare.at_least else "EQUAL",
            "mod_revision": str(compare.revision - compare.at_least),
        }

    def _committed_before(self, answer: Message, txn: str, ops: Sequence[Put | Delete]) -> int | None:
        """Return the revision if a lost attempt was committed, else None: a comparison failed.

        A put stores the transaction's id. Deletes alone are done if all keys are gone.
        """
        responses = answer.get("responses", ())  # the first attempt asks for none
        found = [kv for response in responses for kv in response["response_range"].get("kvs", ())]
        if responses and not found and not any(isinstance(op, Put) for op in ops):
            return revision_of(answer)
        return next((number(kv, "mod_revision") for kv in found if self._records.written_by(kv, txn)), None)


def _leased(ops: Sequence[Put | Delete]) -> str:
    puts = [op for op in ops if isinstance(op, Put) and op.lease is not None]
    return "; ".join(f"record {op.key!r} cannot be put under lease {op.lease}" for op in puts)
