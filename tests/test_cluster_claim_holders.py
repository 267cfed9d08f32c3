"""What a host knows of claims: what it asks for, and what it hears meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from typing import Any

import pytest
from etcd_server import Member, needs_etcd, until

from netplug.cluster.claim_holders import ClaimHolders
from netplug.store.access import EtcdAccess
from netplug.store.api import Delete, Put, Record
from netplug.store.etcd import EtcdStore
from netplug.store.leases import LEASES
from netplug.store.restore_guard import RestoreGuard

pytestmark = needs_etcd
POOL = f"{LEASES}pool/"
KEY, OTHER, LATE = (f"{POOL}10.1.0.{last}" for last in (2, 3, 99))


class Slow(EtcdStore):
    """Reads at once, and holds the answers until `go`; `read` is set when there is one."""

    go: asyncio.Event | None = None

    def hold(self) -> None:
        self.read, self.go = asyncio.Event(), asyncio.Event()

    async def get(self, key: str) -> Any:
        return await self._hold(await super().get(key))

    async def range(self, prefix: str) -> Any:
        return await self._hold(await super().range(prefix))

    async def _hold(self, answer: Any) -> Any:
        if self.go:
            self.read.set()
            await self.go.wait()
        return answer


@pytest.fixture
async def store(etcd: Member) -> AsyncIterator[Slow]:
    store = await Slow.open(EtcdAccess((etcd.host,)))
    assert isinstance(store, Slow)
    yield store
    await store.close()


@pytest.fixture
async def claimed(store: Slow) -> AsyncIterator[ClaimHolders]:
    claimed = ClaimHolders(RestoreGuard(store, "me"))
    work = asyncio.create_task(claimed.follow())
    await claimed.synced.wait()
    yield claimed
    work.cancel()
    with suppress(asyncio.CancelledError):
        await work


@pytest.mark.parametrize("number", [1, 30])
async def test_answer_under_way_does_not_bring_back_what_is_gone(
    claimed: ClaimHolders, store: Slow, number: int
) -> None:
    keys = [f"{POOL}10.1.0.{last}" for last in range(2, 2 + number)]
    await store.txn((), [Put(key, {"host": "other"}) for key in keys])
    store.hold()
    asked = asyncio.create_task(claimed.refresh([KEY, *(f"{POOL}10.2.0.{last}" for last in range(number - 1))]))
    await store.read.wait()
    await store.txn((), [*map(Delete, keys), Put(LATE, {"host": "other"})])
    await until(lambda: claimed.holder(LATE) is not None)
    assert store.go
    store.go.set()
    await asked
    assert claimed.holder(KEY) is None


async def test_answer_counts_whose_word_is_on_the_way(claimed: ClaimHolders, store: Slow) -> None:
    heard: list[str | None] = []

    def look(keys: Collection[str]) -> None:
        """Have an answer about the second when the first is heard of: they were written at once."""
        if not heard:
            other = OTHER if KEY in keys else KEY
            (key,) = keys
            claimed._apply_read(Record(other, {"host": "other"}, claimed._holders[key][1]))
            heard.append(claimed.holder(other))

    claimed.changed = look
    await store.txn((), [Put(KEY, {"host": "other"}), Put(OTHER, {"host": "other"})])
    await until(lambda: bool(heard))
    assert heard == ["other"]


async def test_answer_counts_after_a_restore_whose_revisions_are_lower(claimed: ClaimHolders, store: Slow) -> None:
    await store.txn((), [Put(KEY, {"host": "other"})])
    await until(lambda: claimed.holder(KEY) is not None)
    store.hold()  # the next snapshot does not arrive
    claimed._store.accept()
    claimed._apply_read(Record(OTHER, {"host": "other"}, claimed._applied_revision - 1))
    assert claimed.holder(OTHER) == "other"
    assert store.go
    store.go.set()
