"""The embedded store keeps the promises of all stores, and says in plain words when a disk does not let it."""

import asyncio
import os
import sqlite3
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

pytest.register_assert_rewrite("store_suite")

from store_suite import Advance, Forget, Reopen, StoreSuite, keys, put, take  # noqa: E402

from netplug.store.api import Compacted, Delete, Put, Store, StoreError  # noqa: E402
from netplug.store.database import Database, Write  # noqa: E402
from netplug.store.sqlite import SqliteStore  # noqa: E402

HISTORY = 200


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Holder:
    """The open store of a test, and how to open it again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock()
        self.store: SqliteStore

    async def open(self) -> Store:
        self.store = await SqliteStore.open(self.path, clock=self.clock, history=HISTORY)
        return self.store

    async def reopen(self) -> Store:
        await self.store.close()
        return await self.open()

    async def advance(self, seconds: float) -> None:
        self.clock.now += seconds
        await self.store.get("any")  # ends what has to end, as the timer of a true clock would

    async def forget(self) -> None:
        await asyncio.gather(*(put(self.store, "~forget", n) for n in range(HISTORY)))


@pytest_asyncio.fixture
async def holder(tmp_path: Path) -> AsyncIterator[Holder]:
    holder = Holder(tmp_path / "state" / "netplug.db")
    await holder.open()
    yield holder
    await holder.store.close()


@pytest.fixture
def store(holder: Holder) -> Store:
    return holder.store


@pytest.fixture
def reopen(holder: Holder) -> Reopen:
    return holder.reopen


@pytest.fixture
def advance(holder: Holder) -> Advance:
    return holder.advance


@pytest.fixture
def forget(holder: Holder) -> Forget:
    return holder.forget


class TestSqlite(StoreSuite):
    pass


async def refusal(path: Path) -> str:
    with pytest.raises(StoreError) as caught:
        await SqliteStore.open(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def modes(path: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in (path, *path.glob("*"))}


async def test_the_file_and_its_directory_are_for_their_owner_only(holder: Holder) -> None:
    await put(holder.store, "a")
    names = ("netplug.db", "netplug.db-wal", "netplug.db-shm")
    assert modes(holder.path.parent) == {"state": 0o700, **dict.fromkeys(names, 0o600)}


async def test_a_file_that_all_could_read_is_narrowed(tmp_path: Path) -> None:
    path = tmp_path / "netplug.db"
    sqlite3.connect(path).close()
    path.touch()
    path.chmod(0o644)
    await (await SqliteStore.open(path)).close()
    assert modes(path) == {"netplug.db": 0o600}


async def test_a_store_in_memory_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = await SqliteStore.open(":memory:")
    await put(store, "a")
    assert await keys(store, "") == ["a"]
    await store.close()
    assert list(modes(tmp_path)) == [tmp_path.name]


async def test_closing_twice_is_closing_once(holder: Holder) -> None:
    await holder.store.close()
    await holder.store.close()
    assert [file.name for file in holder.path.parent.iterdir()] == ["netplug.db"]


async def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "netplug.db"
    path.write_bytes(b"not a database at all" * 100)
    assert "is not a database; move it away" in await refusal(path)
    assert path.read_bytes().startswith(b"not a database")


async def test_a_damaged_file_is_refused(holder: Holder) -> None:
    for n in range(50):
        await put(holder.store, f"a/{n}", "x" * 1000)
    await holder.store.close()
    content = bytearray(holder.path.read_bytes())
    content[100:4096] = b"\xff" * 3996
    holder.path.write_bytes(content)
    assert "is damaged" in await refusal(holder.path)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("PRAGMA user_version = 7", "newer netplug (format 7, this one knows 1)"),
        ("CREATE TABLE t (a)", "another program"),
    ],
)
async def test_a_database_of_others_is_refused_and_kept(tmp_path: Path, statement: str, words: str) -> None:
    path = tmp_path / "netplug.db"
    database = sqlite3.connect(path)
    database.execute(statement)
    database.close()
    before = path.read_bytes()
    assert words in await refusal(path)
    assert path.read_bytes() == before


async def test_a_path_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert f"cannot be opened: {file} is not a directory" in await refusal(file / "netplug.db")
    assert "cannot be opened" in await refusal(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o500)  # noqa: PTH101 - no matter here that it blocks
    assert "permission denied" in await refusal(tmp_path / "netplug.db")


async def test_a_file_that_cannot_be_written_is_said_so(holder: Holder) -> None:
    await put(holder.store, "a")
    await holder.store._call(lambda: holder.store._database._db.execute("PRAGMA query_only = 1"))
    with pytest.raises(StoreError, match="cannot be written"):
        await put(holder.store, "b")
    assert await keys(holder.store, "") == ["a"]


async def test_a_full_disk_fails_the_transaction_as_a_whole_and_heals(holder: Holder) -> None:
    store = holder.store

    async def pragma(text: str) -> int:
        return await store._call(lambda: store._database._db.execute(f"PRAGMA {text}").fetchone()[0])

    revision = await put(store, "a")
    lease = await store.lease(10)
    await pragma(f"max_page_count = {await pragma('page_count')}")
    for durable in (False, True):
        with pytest.raises(StoreError, match=r"cannot grow: the disk is full") as caught:
            await store.txn([], [Put("b", {}), Put("c", {"v": "x" * 100_000}), Delete("a")], durable=durable)
        assert str(holder.path) in str(caught.value)
    records, after = await store.range("")
    assert ([record.key for record in records], after) == (["a"], revision)
    assert await store.keep_alive(lease)
    await pragma("max_page_count = 1000000")
    assert await put(store, "b", "x" * 100_000) == revision + 1


async def test_a_file_locked_by_another_process_is_said_so(holder: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    await holder.store._call(lambda: holder.store._database._db.execute("PRAGMA busy_timeout = 1"))
    other = sqlite3.connect(holder.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="in use by another process"):
        await put(holder.store, "a")
    other.execute("ROLLBACK")
    other.close()
    await put(holder.store, "a")


async def test_a_slow_watch_is_compacted_instead_of_growing(holder: Holder) -> None:
    start = await put(holder.store, "a", "x" * 300_000)
    await put(holder.store, "a", "y" * 300_000)
    watch = holder.store.watch("a", start - 1)
    assert len(await take(watch, 1)) == 1
    for n in range(HISTORY + 10):
        await put(holder.store, "a", n)
    with pytest.raises(Compacted):
        await take(watch, HISTORY)
    with pytest.raises(Compacted):
        await take(watch, 1)


async def test_a_watch_survives_the_time_out_of_one_reading(holder: Holder) -> None:
    _, start = await holder.store.range("")
    watch = holder.store.watch("a/", start)
    for n in range(20):
        reading = asyncio.ensure_future(anext(watch))
        for _ in range(n % 4):  # at which turn it is cancelled is the subject
            await asyncio.sleep(0)
        reading.cancel()
        done = await asyncio.gather(reading, return_exceptions=True)
        assert isinstance(done[0], asyncio.CancelledError)
    for n in range(3):
        await put(holder.store, f"a/{n}")
    assert [event.key for event in await take(watch, 3)] == ["a/0", "a/1", "a/2"]


async def test_a_long_history_is_read_in_batches_without_gap(holder: Holder) -> None:
    _, start = await holder.store.range("")
    for n in range(20):
        await holder.store.txn([], [Put(f"a/{n}", {"v": "x" * 50_000}), Put(f"b/{n}", {"v": "x" * 50_000})])
    events = await take(holder.store.watch("", start), 40)
    assert [event.key for event in events] == [f"{side}/{n}" for n in range(20) for side in "ab"]


async def test_a_watch_that_is_dropped_is_forgotten(holder: Holder) -> None:
    watch = holder.store.watch("", 0)
    assert len(holder.store._watches) == 1
    del watch
    assert len(holder.store._watches) == 0


async def test_leases_end_by_the_timer_without_any_call(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "netplug.db")
    lease = await store.lease(0.05)
    start = await put(store, "a", lease=lease)
    (event,) = await take(store.watch("a", start), 1)
    assert event.record is None
    await store.close()


async def test_leases_that_end_together_end_in_their_order(holder: Holder) -> None:
    for key, ttl_s in (("late", 30), ("early", 10), ("middle", 20), ("other", 100)):
        await put(holder.store, key, lease=await holder.store.lease(ttl_s))
    _, start = await holder.store.range("")
    await holder.advance(50)
    assert [event.key for event in await take(holder.store.watch("", start), 3)] == ["early", "middle", "late"]
    assert await keys(holder.store, "") == ["other"]


async def test_an_opening_that_is_cancelled_leaves_nothing_open(tmp_path: Path) -> None:
    path = tmp_path / "netplug.db"
    for turns in range(4):
        opening = asyncio.ensure_future(SqliteStore.open(path))
        for _ in range(turns):  # at which turn it is cancelled is the subject
            await asyncio.sleep(0)
        opening.cancel()
        done = await asyncio.gather(opening, return_exceptions=True)
        assert isinstance(done[0], asyncio.CancelledError)
    store = await SqliteStore.open(path)
    await put(store, "a")
    await store.close()


def open_database(path: Path, **limits: int) -> Database:
    database = Database(path, Clock(), **limits)
    database.open()
    return database


def test_history_is_bounded_by_bytes_but_keeps_the_newest(tmp_path: Path) -> None:
    database = open_database(tmp_path / "netplug.db", history_bytes=1000)
    for _ in range(3):
        database.txn([], [Write(b"a", f'"{"x" * 398}"')], durable=False)
    assert len(database.events(b"", 1)[0]) == 2
    with pytest.raises(Compacted):
        database.events(b"", 0)
    database.txn([], [Write(b"a", f'"{"x" * 5000}"')], durable=False)
    assert len(database.events(b"", 3)[0]) == 1
    database.txn([], [Write(b"a")], durable=False)
    assert database._state() == (5, 4, 0)
    database.close()


def test_only_durable_transactions_are_synced(tmp_path: Path) -> None:
    database = open_database(tmp_path / "netplug.db")
    seen: list[str] = []
    database._db.set_trace_callback(seen.append)
    database.txn([], [Write(b"a", "{}")], durable=False)
    assert not [text for text in seen if "PRAGMA" in text]
    database.txn([], [Write(b"a", "{}")], durable=True)
    pragmas = [text for text in seen if "synchronous" in text or text in {"COMMIT", "BEGIN IMMEDIATE"}][2:]
    assert pragmas == ["PRAGMA synchronous = FULL", "BEGIN IMMEDIATE", "COMMIT", "PRAGMA synchronous = NORMAL"]
    database.close()
