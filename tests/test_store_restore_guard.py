"""A store that was given older data refuses what would rest on them, before it is done."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from etcd_server import Member, needs_etcd, running, until

from netplug.cluster.records import IDENTITY
from netplug.cluster.view import View
from netplug.store import restore_guard
from netplug.store.access import EtcdAccess
from netplug.store.api import Compacted, Compare, Delete, Put, Restored, StoreError
from netplug.store.etcd import EtcdStore
from netplug.store.restore_guard import MARKS, RestoreGuard

pytestmark = needs_etcd
A, B = MARKS + "a", MARKS + "b"


class Backed:
    """A store of which a backup can be made and restored."""

    def __init__(self, etcd: Member, store: EtcdStore, folder: Path) -> None:
        self.etcd = etcd
        self.store = store
        self._folder = folder

    async def save(self, name: str = "backup") -> None:
        await asyncio.to_thread(self.etcd.save, self._folder / name)

    async def restore(self, name: str = "backup") -> None:
        """Records have their old revisions, and others brought the store past what was seen: that tells nothing."""
        _, revision = await self.store.range("")
        await asyncio.to_thread(self.etcd.restore, self._folder / name, writes=revision + 1)


@pytest.fixture(scope="module")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Member]:
    """Return one of its own: `Backed.restore` writes as often as it was written before."""
    with running(tmp_path_factory.mktemp("etcd")) as (member,):
        yield member


@pytest.fixture
async def backed(etcd: Member, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Backed]:
    monkeypatch.setattr(restore_guard, "DELAY_S", 0.001)
    store = await EtcdStore.open(EtcdAccess((etcd.host,)))
    yield Backed(etcd, store, tmp_path)
    await store.close()


def guarding(backed: Backed, me: str) -> RestoreGuard:
    return RestoreGuard(backed.store, me)


async def marked(store: RestoreGuard, work: Callable[[], Awaitable[object]]) -> None:
    await work()
    await store.mark()


async def test_each_change_is_followed_by_a_mark(backed: Backed) -> None:
    store = guarding(backed, "a")
    await store.mark()
    assert await store.get(A) is None
    await store.txn([], [Put("x", {})])
    await store.mark()
    record = await store.get(A)
    assert record is not None
    assert store.seen is not None
    assert store.seen[:2] == (A, record.revision)
    await store.mark()
    assert await store.get(A) == record


async def test_what_hangs_on_a_lease_is_no_change(backed: Backed) -> None:
    store = guarding(backed, "a")
    lease = await store.lease(10)
    await store.txn([], [Put("alive", {}, lease)])
    await store.mark()
    assert await store.get(A) is None


@pytest.mark.parametrize("op", [Put("x", {"n": 2}), Delete("x")])
async def test_nothing_is_done_in_older_data(backed: Backed, op: Put | Delete) -> None:
    store = guarding(backed, "a")
    await marked(store, lambda: store.txn([], [Put("x", {"n": 1})]))
    await backed.save()
    await marked(store, lambda: store.txn([], [Put("y", {})]))
    await backed.restore()
    with pytest.raises(Restored, match="has lost data"):
        await store.txn([], [op])
    record = await store.get("x")
    assert record is not None
    assert record.value == {"n": 1}
    assert store.data_lost.is_set()
    with pytest.raises(Restored):
        await store.verify()


async def test_who_only_looked_on_notices_by_the_marks_of_others(backed: Backed) -> None:
    one, other = guarding(backed, "a"), guarding(backed, "b")
    await marked(one, lambda: one.txn([], [Put("x", {})]))
    await backed.save()
    await marked(one, lambda: one.txn([], [Put("y", {})]))
    for record in (await other.range(MARKS))[0]:
        other.see(record.key, record.revision)
    await backed.restore()
    with pytest.raises(Restored):
        await other.txn([Compare("z", 0)], [Put("z", {})])
    assert await other.get("z") is None


async def test_a_failed_comparison_is_no_loss(backed: Backed) -> None:
    store = guarding(backed, "a")
    await marked(store, lambda: store.txn([], [Put("x", {})]))
    assert await store.txn([Compare("x", 0)], [Put("x", {})]) is None
    assert not store.data_lost.is_set()


async def test_who_mends_may_write_and_all_may_after_that(backed: Backed) -> None:
    store = guarding(backed, "a")
    await backed.save()
    await marked(store, lambda: store.txn([], [Put("x", {})]))
    await backed.restore()
    with pytest.raises(Restored):
        await store.txn([], [Put("y", {})])
    with store.recovering():
        await store.txn([], [Put("x", {"again": True})])
    with pytest.raises(Restored):
        await store.txn([], [Put("y", {})])
    store.accept()
    assert await store.txn([], [Put("y", {})]) is not None
    await store.mark()
    assert store.seen is not None
    await store.verify()


async def test_a_watch_ends_when_the_store_is_taken_anew(backed: Backed) -> None:
    store = guarding(backed, "a")
    watch = store.watch("x", await store.txn([], [Put("w", {})]) or 0)
    await store.txn([], [Put("x1", {})])
    assert (await anext(watch)).key == "x1"
    store.accept()
    await store.txn([], [Put("x2", {})])
    with pytest.raises(Compacted):
        await anext(watch)


async def test_marks_are_made_and_remembered_in_the_background(backed: Backed) -> None:
    store, remembered = guarding(backed, "a"), []

    async def remember(mark: str, revision: int) -> None:
        remembered.append((mark, revision))

    task = asyncio.ensure_future(store.write_marks(remember))
    await store.txn([], [Put("x", {})])
    await until(lambda: bool(remembered))
    store.see(B, 10_000)
    await until(lambda: remembered[-1] == (B, 10_000))
    # The store lacks that: who mends it says so, and marking goes on.
    store._changed.set()
    await until(store.data_lost.is_set)
    store.accept()
    count = len(remembered)
    await until(lambda: len(remembered) > count)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_mark_that_was_not_written_is_written_later(backed: Backed, monkeypatch: pytest.MonkeyPatch) -> None:
    store = guarding(backed, "a")
    await store.txn([], [Put("x", {})])
    txn = backed.store.txn

    async def fails(*_: Any, **__: Any) -> int | None:
        raise StoreError("full")

    monkeypatch.setattr(backed.store, "txn", fails)
    with pytest.raises(StoreError, match="full"):
        await store.mark()
    monkeypatch.setattr(backed.store, "txn", txn)
    await store.mark()
    assert await store.get(A) is not None


async def test_view_takes_other_data_that_have_the_same_revisions(backed: Backed) -> None:
    await backed.save("before")
    other = await backed.store.txn([], [Put(IDENTITY, {"id": "two"})])
    await backed.save("other")
    await asyncio.to_thread(backed.etcd.restore, backed._folder / "before")
    store = guarding(backed, "a")
    await marked(store, lambda: store.txn([], [Put(IDENTITY, {"id": "one"})]))
    record = await store.get(IDENTITY)
    assert record is not None
    assert record.revision == other
    view = View(store)
    following = asyncio.create_task(view.follow())
    await until(lambda: view.identity == "one")
    await backed.restore("other")
    store.accept()
    await store.txn([], [Put(A, {})])
    await until(lambda: view.identity == "two")
    following.cancel()


async def test_view_reads_again_what_it_was_reading_when_the_store_was_taken_anew(backed: Backed) -> None:
    store = guarding(backed, "a")
    await store.txn([], [Put(IDENTITY, {"id": "one"})])
    view, read, generations = View(store), store.range, []

    async def taken_anew_meanwhile(prefix: str) -> Any:
        records = await read(prefix)
        generations.append(store.generation)
        if len(generations) == 1:
            store.accept()
        return records

    store.range = taken_anew_meanwhile  # type: ignore[method-assign]
    following = asyncio.create_task(view.follow())
    await until(lambda: view.identity == "one")
    assert generations == [0, 1]
    following.cancel()
