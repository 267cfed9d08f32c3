"""The store that hosts share: etcd 3.4 or later.

All keys lie below one root, so that several programs, and several clusters of ours, share an etcd. A record is
`{"txn": ID, "value": …}` there: when an answer is lost and another endpoint is asked, the id of the transaction that
wrote a record tells whether the first attempt has been done. Without it, a claim whose answer is lost would look like
one that somebody else has won. And what was lost is not done later (`etcd_fences`).

Revisions are etcd's, and count the changes of all its users.
"""

import asyncio
import contextlib
import itertools
import math
import secrets
from collections.abc import AsyncIterator, Callable, Sequence

from .access import EtcdAccess
from .api import Compare, Delete, Event, Put, Record, StoreError
from .encoding import check_keys
from .etcd_errors import NOT_FOUND, OUT_OF_RANGE, Refused
from .etcd_fences import LATEST_S, Fences
from .etcd_records import Message, Records, b64, number, revision_of
from .etcd_watch import PROGRESS_S, EtcdWatch
from .gateway import ATTEMPT_S, DEADLINE_S, Gateway

ROOT = "/netplug/v1/default/"
MAX_OPS = 128  # etcd's --max-txn-ops, unless told otherwise
MAX_COMPARES = MAX_OPS - 1  # and one is the fence's
PAGE = 500  # records of one answer: 250 KB of records as ours are
_RANGE = "/v3/kv/range"
_TXN = "/v3/kv/txn"
_PAGED_TRIES = 5  # of a range between whose pages etcd was compacted; that happens once in minutes


class EtcdStore:
    """`SharedStore` on an etcd, for any number of processes. Made by `open`.

    Each call ends within a deadline, with `Unreachable` when no endpoint answers. A watch waits for etcd to return.

    Leases: etcd counts whole seconds, and ends a lease up to a second late. After an election or a restart every
    lease starts its time anew.

    Cancellation: a transaction whose caller is cancelled may still be done, as a whole, until another call is answered.
    """

    def __init__(self, gateway: Gateway, root: str, page: int, progress_s: float) -> None:
        self._gateway = gateway
        self._records = Records(root)
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
        """Prepare the store; nothing is sent before the first call.

        Args:
            access: how etcd is reached.
            root: what all keys begin with in etcd, "/" at its end.
            page: the number of records that one answer to `range` has at the most.
            deadline_s: of a call, at all endpoints together.
            attempt_s: of a request to one endpoint.
            progress_s: of silence, after which a watch asks whether its endpoint still lives.

        Raises:
            StoreError: a TLS file cannot be read.
        """
        return cls(await Gateway.open(access, deadline_s=deadline_s, attempt_s=attempt_s), root, page, progress_s)

    async def check(self, deadline_s: float | None = None) -> None:
        """Read one key, to learn that address, certificates, user and permission are right.

        Args:
            deadline_s: None: as of each call.

        Raises:
            Unreachable: no endpoint answers.
            StoreError: it refuses.
        """
        start, end = self._records.span("")
        body = {"key": b64(start), "range_end": b64(end), "limit": "1", "keys_only": True}
        await self._gateway.call(_RANGE, body, deadline_s=deadline_s)

    async def get(self, key: str) -> Record | None:
        """Return the record of a key.

        Raises:
            StoreError: what is there was not written by netplug; or as every call.
        """
        kvs = (await self._read({"key": self._records.key(key)})).get("kvs")
        return self._records.record(kvs[0]) if kvs else None

    async def range(self, prefix: str) -> tuple[list[Record], int]:
        """Return the records whose keys begin so, in the order of keys, and the revision they are as of.

        What was not written by netplug is left out, and logged.
        """
        for left in reversed(range(_PAGED_TRIES)):
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
        """Do all operations when all comparisons hold, and return the transaction's revision; else None.

        Raises:
            Unreachable: no answer; it may have been done, or be done until the next call is answered.
            StoreError: two operations on one key, too many, a lease that has ended: nothing is done.
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
        # A put tells who has done it; without one, that the key is gone is all that was wanted.
        sign = next((op for op in ops if isinstance(op, Put)), ops[0] if ops else None)
        again = {**body, "failure": [{"requestRange": {"key": self._records.key(sign.key)}}]} if sign else body

        def lost() -> Message:
            self._fences.lost(txn)
            return again

        try:
            answer = await self._gateway.call(_TXN, body, lost)
        except Refused as exc:
            if exc.code != NOT_FOUND:
                raise
            raise StoreError(f"{_leased(ops)}, which has ended") from exc
        except asyncio.CancelledError:
            self._fences.lost(txn)
            raise
        with contextlib.suppress(StoreError):  # then before the next call
            await self._fences.raised()
        return revision_of(answer) if answer.get("succeeded") else self._done_before(answer, txn, sign)

    async def lease(self, ttl_s: float) -> int:
        """Grant a lease that ends `ttl_s` seconds, rounded up, after it was last kept alive, and return its id."""
        if not (ttl_s > 0 and math.isfinite(ttl_s)):
            raise StoreError(f"a lease of {ttl_s} s cannot be granted: not a positive time")
        return number(await self._call("/v3/lease/grant", {"TTL": str(math.ceil(ttl_s))}), "ID")

    async def keep_alive(self, lease: int) -> bool:
        """Start the lease's time anew; False when it has ended."""
        answer = await self._call("/v3/lease/keepalive", {"ID": str(lease)})
        return number(answer.get("result", {}), "TTL") > 0  # of an ended one the answer is a success without TTL

    async def revoke(self, lease: int) -> None:
        """End a lease and delete its records; absent is success."""
        try:
            await self._call("/v3/lease/revoke", {"ID": str(lease)})
        except Refused as exc:
            if exc.code != NOT_FOUND:
                raise

    def watch(
        self, prefix: str, revision: int, *, anchor: Callable[[], Compare | None] | None = None
    ) -> AsyncIterator[Event]:
        """Yield the changes after `revision` to keys that begin so, wait for more, and end at `close`.

        The iterator may be asked again after a time-out or cancellation; no event is lost by it. While etcd cannot
        be reached it waits.

        Raises:
            Compacted: changes after `revision` have been forgotten, or etcd has lost its data, or has older ones.
            StoreError: etcd refuses.
        """
        self._gateway.check_open()
        return EtcdWatch(self._gateway, self._records, prefix, revision, self._progress_s, anchor)

    async def reconnect(self) -> None:
        """Give up all connections, and go on by new ones: this host's address has changed."""
        await self._gateway.reconnect()

    async def close(self) -> None:
        """Finish what was begun and close the connections; a second time does nothing."""
        await self._gateway.close()

    async def _call(self, path: str, body: Message) -> Message:
        return await self._gateway.call(path, body)

    async def _read(self, body: Message) -> Message:
        await self._fences.raised()
        return await self._call(_RANGE, body)

    async def _put_fences(self, keys: Sequence[str]) -> None:
        lease = await self.lease(LATEST_S)
        await self._call(_TXN, {"success": [self._records.operation(Put(key, {}, lease), key) for key in keys]})

    async def _pages(self, prefix: str) -> tuple[list[Record], int]:
        """Read a range page by page, all as of the first one's revision."""
        start, end = self._records.span(prefix)
        request: Message = {"key": b64(start), "range_end": b64(end), "limit": str(self._page)}
        records: list[Record] = []
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

    def _done_before(self, answer: Message, txn: str, sign: Put | Delete | None) -> int | None:
        """Return the revision of a transaction that a lost attempt has done, else None: a comparison has failed."""
        for response in answer.get("responses", ()):  # none at the first attempt
            kvs = response["response_range"].get("kvs", ())
            if isinstance(sign, Delete) and not kvs:
                return revision_of(answer)
            if kvs and self._records.written_by(kvs[0], txn):
                return number(kvs[0], "mod_revision")
        return None


def _leased(ops: Sequence[Put | Delete]) -> str:
    puts = [op for op in ops if isinstance(op, Put) and op.lease is not None]
    return "; ".join(f"record {op.key!r} cannot be put under lease {op.lease}" for op in puts)
