"""The store protocols: key → JSON record with a revision, transactions; in a shared store also leases and watches.

`Store` is what every store does; `SharedStore` adds what only hosts that share a store need. The shape is that of the
etcd v3 API (KV, Lease, Watch). One conformance suite tests `Store` on SQLite and on etcd, and `SharedStore` on etcd.
A revision counts the transactions that changed something, over the whole store.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from netplug.drivers.codec import JsonObject


@dataclass(frozen=True, slots=True)
class Record:
    """A stored value. `revision`: of the transaction that last wrote it."""

    key: str
    value: JsonObject
    revision: int


@dataclass(frozen=True, slots=True)
class Compare:
    """Holds when `key` was last written by transaction `revision`; 0: when there is no such key.

    `at_least`: or by a later one.
    """

    key: str
    revision: int
    at_least: bool = False

    def holds(self, revision: int) -> bool:
        """Whether it does, `revision` being that of the key's record; 0: there is none."""
        return revision >= self.revision if self.at_least else revision == self.revision


@dataclass(frozen=True, slots=True)
class Put:
    """Write a record. `lease`: the record is deleted when this lease ends; only in a `SharedStore`."""

    key: str
    value: JsonObject
    lease: int | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a record; absent is success."""

    key: str


@dataclass(frozen=True, slots=True)
class Event:
    """A change. `record` is None when the key was deleted. `revision`: of the transaction that made it."""

    key: str
    record: Record | None
    revision: int


class Compacted(Exception):  # noqa: N818 - a fact, which the reader answers by reading all anew
    """The revision to watch from is no longer remembered: read all anew, then watch from that revision."""


class StoreError(Exception):
    """The store cannot be reached or refuses; the text says which and why."""


class Restored(StoreError):  # noqa: N818 - as the next one
    """The store has older data than it had: a backup was restored. Nothing was done."""


class Unreachable(StoreError):  # noqa: N818 - a kind of StoreError, as the name says where it is caught
    """No answer. Nothing was read; a transaction may have been done all the same, and then as a whole.

    It may even be done later, but not once another call has been answered: what is read then is the outcome.
    """


class Store(Protocol):
    """What every store does. This host's own records are in one (SQLite)."""

    async def get(self, key: str) -> Record | None:
        """Return the record of a key."""

    async def range(self, prefix: str) -> tuple[list[Record], int]:
        """Return the records whose keys begin so, in the order of keys, and the revision they are as of."""

    async def txn(
        self, compares: Sequence[Compare], ops: Sequence[Put | Delete], *, durable: bool = False
    ) -> int | None:
        """Do all operations when all comparisons hold, and return the transaction's revision; else None.

        `durable`: outlives a loss of power when this returns. Without it the transaction outlives a crash of this
        process only, which is enough for what a loss of power ends anyway (endpoints and their links).
        """

    async def close(self) -> None:
        """Finish what was begun and let go of files and connections."""


class SharedStore(Store, Protocol):
    """A store that several hosts share, over the network (etcd): leases, watches, and puts under a lease."""

    async def lease(self, ttl_s: float) -> int:
        """Grant a lease that ends `ttl_s` seconds after it was last kept alive, and return its id."""

    async def keep_alive(self, lease: int) -> bool:
        """Start the lease's time anew; False when it has ended."""

    async def revoke(self, lease: int) -> None:
        """End a lease and delete its records; absent is success."""

    def watch(
        self, prefix: str, revision: int, *, anchor: Callable[[], Compare | None] | None = None
    ) -> AsyncIterator[Event]:
        """Yield the changes after `revision` to keys that begin so, in order, and wait for more.

        `anchor`: returns what must hold whenever the store was out of reach meanwhile, and now and then.

        Raises:
            Compacted: changes after `revision` have been forgotten, or the anchor does not hold.
        """

    async def reconnect(self) -> None:
        """Give up all connections, and go on by new ones: this host's address has changed."""
