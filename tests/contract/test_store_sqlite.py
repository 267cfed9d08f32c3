"""The embedded store keeps the promises of all stores, and says in plain words when a disk does not let it."""

import asyncio
import errno
import os
import sqlite3
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

pytest.register_assert_rewrite("store_suite")

from store_suite import Reopen, StoreSuite, keys, put  # noqa: E402

from netplug.store import opening  # noqa: E402
from netplug.store.api import Compare, Delete, Put, Record, Store, StoreError  # noqa: E402
from netplug.store.database import Database, Write  # noqa: E402
from netplug.store.reserve import Reserve  # noqa: E402
from netplug.store.sqlite import SqliteStore  # noqa: E402


class Holder:
    """The open store of a test, and how to open it again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store: SqliteStore

    async def open(self) -> Store:
        self.store = await SqliteStore.open(self.path)
        return self.store

    async def reopen(self) -> Store:
        await self.store.close()
        return await self.open()


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
    await pragma(f"max_page_count = {await pragma('page_count')}")
    for durable in (False, True):
        with pytest.raises(StoreError, match=r"cannot grow: the disk is full") as caught:
            await store.txn([], [Put("b", {}), Put("c", {"v": "x" * 100_000}), Delete("a")], durable=durable)
        assert str(holder.path) in str(caught.value)
    records, after = await store.range("")
    assert ([record.key for record in records], after) == (["a"], revision)
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


async def test_a_put_under_a_lease_is_refused(holder: Holder) -> None:
    with pytest.raises(StoreError, match="record 'a' cannot be put under lease 7: the embedded store has no leases"):
        await holder.store.txn([], [Put("b", {}), Put("a", {}, 7)])
    assert await keys(holder.store, "") == []


OLD_SCHEMA = """
CREATE TABLE state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    revision INTEGER NOT NULL,
    forgotten INTEGER NOT NULL, -- the events up to this revision have been dropped
    history_bytes INTEGER NOT NULL
) STRICT;
INSERT INTO state VALUES (1, 0, 0, 0);
CREATE TABLE record (
    key BLOB NOT NULL PRIMARY KEY, value TEXT NOT NULL, revision INTEGER NOT NULL, lease INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX record_lease ON record (lease) WHERE lease IS NOT NULL;
CREATE TABLE lease (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_s REAL NOT NULL) STRICT;
CREATE TABLE event (
    revision INTEGER NOT NULL, seq INTEGER NOT NULL, key BLOB NOT NULL, value TEXT,
    PRIMARY KEY (revision, seq)
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 1;
"""
"""Of versions whose embedded store had leases and a history."""


def old_file(path: Path) -> None:
    """Make the file as such a version left it: two records, one of them under a lease, and all their changes."""
    database = sqlite3.connect(path)
    database.executescript("PRAGMA journal_mode = WAL;" + OLD_SCHEMA)
    database.execute("INSERT INTO lease VALUES (1, 10.0)")
    database.executemany(
        "INSERT INTO record VALUES (?, ?, ?, ?)",
        [(b"networks/a", '{"v":1}', 3, None), (b"alive", '{"v":2}', 4, 1)],
    )
    events = [(2, 0, b"networks/b", '{"v":0}'), (3, 0, b"networks/a", '{"v":1}'), (3, 1, b"networks/b", None)]
    database.executemany("INSERT INTO event VALUES (?, ?, ?, ?)", [*events, (4, 0, b"alive", '{"v":2}')])
    database.execute("UPDATE state SET revision = 4, forgotten = 1, history_bytes = 21")
    database.commit()
    database.close()


def contents(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    database = sqlite3.connect(path)
    found = {table: database.execute(f"SELECT * FROM {table}").fetchall() for table in ("state", "lease", "event")}  # noqa: S608
    database.close()
    return found


async def test_a_file_with_history_and_leases_is_opened_without_them(tmp_path: Path) -> None:
    path = tmp_path / "netplug.db"
    old_file(path)
    store = await SqliteStore.open(path)
    assert await store.range("") == ([Record("networks/a", {"v": 1}, 3)], 4)
    assert await store.txn([Compare("networks/a", 3)], [Put("networks/a", {"v": 2}), Put("c", {})]) == 5
    await store.close()
    assert contents(path) == {"state": [(1, 5, 5, 0)], "lease": [], "event": []}
    store = await SqliteStore.open(path)
    assert await store.range("") == ([Record("c", {}, 5), Record("networks/a", {"v": 2}, 5)], 5)
    await store.close()


@pytest.mark.parametrize("old", [False, True])
async def test_an_older_version_opens_the_file_again(tmp_path: Path, *, old: bool) -> None:
    path = tmp_path / "netplug.db"
    if old:
        old_file(path)
    store = await SqliteStore.open(path)
    revision = await put(store, "a", 1)
    await store.close()
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA user_version").fetchone() == (1,)
    # What it does at start, and for `Put("a", …, lease)`.
    assert database.execute("SELECT id, ttl_s FROM lease").fetchall() == []
    assert database.execute("SELECT revision, forgotten, history_bytes FROM state").fetchone() == (
        revision,
        revision,
        0,
    )
    lease = database.execute("INSERT INTO lease (ttl_s) VALUES (?)", (10.0,)).lastrowid
    database.execute(
        "INSERT INTO record VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE"
        " SET value = excluded.value, revision = excluded.revision, lease = excluded.lease",
        (b"a", '{"v":2}', revision + 1, lease),
    )
    database.execute("INSERT INTO event VALUES (?, ?, ?, ?)", (revision + 1, 0, b"a", '{"v":2}'))
    database.execute("UPDATE state SET revision = ?, forgotten = ?, history_bytes = ?", (revision + 1, revision, 7))
    assert database.execute("SELECT key FROM record WHERE lease = ? ORDER BY key", (lease,)).fetchall() == [(b"a",)]
    database.close()


def open_database(path: Path) -> Database:
    database = Database(path)
    database.open()
    return database


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


# A full disk, and one that can only be read; with real disks: `integration/test_disk.py`


async def with_reserve(path: Path) -> SqliteStore:
    return await SqliteStore.open(path, Reserve(path, 1 << 16))


def in_the_way(path: Path) -> Path:
    """Have no room for the reserve."""
    reserve = path.with_name(f"{path.name}-reserve")
    reserve.unlink(missing_ok=True)
    reserve.mkdir()
    return reserve


async def test_room_is_kept_beside_the_file_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "netplug.db"
    store = await with_reserve(path)
    kept = path.with_name("netplug.db-reserve")
    assert (kept.stat().st_blocks * 512 >= 1 << 16, stat.S_IMODE(kept.stat().st_mode)) == (True, 0o600)
    assert await store.trouble() == ""
    await store.close()


async def test_without_room_nothing_new_is_stored_and_all_else_is(tmp_path: Path) -> None:
    path = tmp_path / "netplug.db"
    store = await with_reserve(path)
    await put(store, "a")
    await store.close()
    obstacle = in_the_way(path)
    store = await with_reserve(path)
    assert "the disk is full but for" in await store.trouble()
    with pytest.raises(StoreError, match=r"cannot grow: the disk is full .*; free some space"):
        await store.txn([], [Put("a", {"v": 2}), Put("b", {})])
    assert await keys(store, "") == ["a"]
    # What ends something: an intent, a record that is changed, one that is deleted.
    await store.txn([], [Put("journal/1", {}), Put("a", {"v": 3})])
    await store.txn([], [Delete("a"), Delete("journal/1")])
    obstacle.rmdir()
    assert await store.trouble() == ""
    await put(store, "b")
    assert await keys(store, "") == ["b"]
    await store.close()


async def test_reserve_is_given_for_what_is_deleted_alone(tmp_path: Path) -> None:
    path = tmp_path / "netplug.db"
    store = await with_reserve(path)
    await put(store, "a")
    await put(store, "b")
    kept = path.with_name("netplug.db-reserve")

    def limit(pages: int) -> None:
        store._database._db.execute(f"PRAGMA max_page_count = {pages}")

    (used,) = await store._call(lambda: store._database._db.execute("PRAGMA page_count").fetchone())
    await store._call(lambda: limit(used))
    with pytest.raises(StoreError, match="cannot grow: the disk is full; free some space"):
        await put(store, "c", "x" * 100_000)
    assert kept.exists()
    with pytest.raises(StoreError, match="cannot grow: the disk is full; free some space"):
        await store.txn([], [Put("a", {"v": "x" * 100_000})])  # still too much, though the room was given
    assert not kept.exists()
    await store.txn([], [Delete("b")])
    await store._call(lambda: limit(2**30))
    await put(store, "c", "x" * 100_000)
    assert kept.exists()
    await store.close()


@pytest.mark.parametrize("log", [False, True], ids=["closed", "killed"])
async def test_a_file_that_can_only_be_read_is_read_until_it_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, log: bool
) -> None:
    path = tmp_path / "was" / "netplug.db"
    store = await SqliteStore.open(path)
    await put(store, "a")
    left = tmp_path / "netplug.db"
    if not log:
        await store.close()
    for file in path.parent.iterdir():
        if not file.name.endswith("-shm"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    await store.close()

    def refused(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(opening, "create", refused)
        store = await SqliteStore.open(left)
        assert await keys(store, "") == ["a"]
        for _ in range(2):
            assert "netplug.db cannot be written: read-only file system" in await store.trouble()
            with pytest.raises(StoreError, match="cannot be written: read-only file system"):
                await put(store, "b")
        assert modes(tmp_path).keys() == {tmp_path.name, "was", "netplug.db", *["netplug.db-wal"] * log}
    await put(store, "b")
    assert (await keys(store, ""), await store.trouble()) == (["a", "b"], "")
    await store.close()
