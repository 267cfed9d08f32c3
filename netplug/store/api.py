"""The store protocols: key → JSON record with a revision, transactions; in a shared store also leases and watches.

`Store` is what every store does; `SharedStore` adds what only hosts that share a store need. The shape is that of the
etcd v3 API (KV, Lease, Watch). One conformance suite tests `Store` on SQLite and on etcd, and `SharedStore` on etcd.
A revision counts the transactions that changed something, over the whole store.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from netplug.drivers.codec import JsonObject


@dataclass(frozen=True, slots=True)
class Record:
    """A stored value. `revision`: of the transaction that wrote it last (etcd: mod_revision)."""

    key: str
    value: JsonObject
    revision: int


@dataclass(frozen=True, slots=True)
class Compare:
    """Holds if the record of `key` has this revision; with revision 0, if the key does not exist.

    `at_least`: a later revision also holds.
    """

    key: str
    revision: int
    at_least: bool = False

    def holds(self, revision: int) -> bool:
        """Return whether it holds. `revision`: of the key's record, 0 if there is none."""
        return revision >= self.revision if self.at_least else revision == self.revision


@dataclass(frozen=True, slots=True)
class Put:
    """Write a record. `lease`: the record is deleted when this lease ends; only in a `SharedStore`."""

    key: str
    value: JsonObject
    lease: int | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a record. Deleting a missing key succeeds."""

    key: str


@dataclass(frozen=True, slots=True)
class Event:
    """A change. `record` is None if the key was deleted. `revision`: of the transaction that made the change."""

    key: str
    record: Record | None
    revision: int


class Compacted(Exception):  # noqa: N818 - etcd's word; not a failure, the caller just reads a new snapshot
    """The history from the watched revision on is gone: read the range again, and watch from its revision."""


class StoreError(Exception):
    """The store is unreachable or refuses the request; the text says which, and why."""


class Restored(StoreError):  # noqa: N818 - like `Unreachable`
    """The store's data are older than before: someone restored a backup. Nothing was changed."""


class Unreachable(StoreError):  # noqa: N818 - reads well where it is caught
    """No answer. Nothing was read. A transaction may have been committed nevertheless, as a whole.

    It may even be committed later, but only until another call gets an answer: a read then shows the final outcome.
    """


class Store(Protocol):
    """What every store does. SQLite keeps this host's own records."""

    async def get(self, key: str) -> Record | None:
        """Return the record of a key."""

    async def range(self, prefix: str) -> tuple[list[Record], int]:
        """Return the records whose keys start with `prefix`, sorted by key, and the store's revision at that moment."""

    async def txn(
        self, compares: Sequence[Compare], ops: Sequence[Put | Delete], *, durable: bool = False
    ) -> int | None:
        """Apply all operations if all comparisons hold, and return the transaction's revision; else return None.

        `durable`: the transaction is flushed to disk before this returns. Without it the transaction survives a crash
        of this process, but perhaps not a power failure; that is enough for endpoints, which a power failure ends too.
        """

    async def close(self) -> None:
        """Finish pending calls, and close files and connections."""


class SharedStore(Store, Protocol):
    """A store that several hosts share over the network (etcd). It also has leases and watches."""

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Why keys that were seen are no records of netplug; ranges and watches leave them out."""

    async def lease(self, ttl_s: float) -> int:
        """Grant a lease, and return its id. It expires `ttl_s` seconds after the last `keep_alive`."""

    async def keep_alive(self, lease: int) -> bool:
        """Renew a lease; return False if it has expired."""

    async def revoke(self, lease: int) -> None:
        """Revoke a lease and delete its records. Revoking a missing lease succeeds."""

    def watch(
        self, prefix: str, revision: int, *, anchor: Callable[[], Compare | None] | None = None
    ) -> AsyncIterator[Event]:
        """Yield the changes after `revision` to keys that start with `prefix`, in order; then wait for more.

        `anchor`: returns a comparison that is checked after each reconnect, and from time to time. It detects a store
        that was restored from a backup.

        Raises:
            Compacted: the history after `revision` is gone, or the anchor does not hold.
        """

    async def reconnect(self) -> None:
        """Replace all connections, as this host's address has changed. Pending calls and watches go on."""
