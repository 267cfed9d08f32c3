"""The SQLite file behind `SqliteStore`. Its calls block, and all come from one thread.

One process at a time has the file (`netplug.daemon.lock` ensures it), so a read needs no transaction.
Keys are BLOBs: they sort by their UTF-8 bytes, as in etcd, and all keys with one prefix are one range of the index.

Format 1 of the file also holds leases and a history of changes, which versions before this one wrote and read. This
version empties and never fills them. The tables stay, so that an older version can open the file again.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import structlog

from netplug.drivers.codec import JsonObject

from . import copies, opening, schema_table
from .api import Compare, Record, StoreError
from .encoding import prefix_end
from .opening import BUSY_TIMEOUT_S, Location
from .reserve import BYTES, Reserve
from .schema import FIRST, VERSION, Schema

log = structlog.get_logger(__name__)

_INTENTS = b"journal/"  # keys of what is also written first by whoever deletes
_FORMAT = 1
_SCHEMA = """
CREATE TABLE state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    revision INTEGER NOT NULL,
    forgotten INTEGER NOT NULL, -- for older versions: no history up to this revision; always equal to `revision`
    history_bytes INTEGER NOT NULL -- for older versions: 0
) STRICT;
INSERT INTO state VALUES (1, 0, 0, 0);
CREATE TABLE record (
    key BLOB NOT NULL PRIMARY KEY,
    value TEXT NOT NULL,
    revision INTEGER NOT NULL,
    lease INTEGER -- for older versions: NULL
) STRICT, WITHOUT ROWID;
-- For older versions: empty.
CREATE TABLE lease (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_s REAL NOT NULL) STRICT;
CREATE TABLE event (
    revision INTEGER NOT NULL, seq INTEGER NOT NULL, key BLOB NOT NULL, value TEXT,
    PRIMARY KEY (revision, seq)
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 1;
"""
_CACHE_KB = 512
"""SQLite's own copy of pages, 2 MB by default. Transactions are as fast: the operating system keeps the pages too."""
_RESTORE = "stop netplug, and restore what can be read by 'netplug store restore'; containers stay connected"
_FULL = "cannot grow: the disk is full; free some space"
_LAST = f"cannot grow: the disk is full but for {BYTES >> 20} MB, which are kept for what is deleted; free some space"
_CAUSES = (
    ("SQLITE_NOTADB", f"is not a database; move it away, or choose another state directory, or {_RESTORE}"),
    ("SQLITE_CORRUPT", f"is damaged; {_RESTORE}"),
    ("SQLITE_ERROR", f"is damaged; {_RESTORE}"),
    ("SQLITE_FULL", _FULL),
    ("SQLITE_IOERR_SHMSIZE", _FULL),
    ("SQLITE_READONLY", "cannot be written: no permission, or a read-only file system"),
    ("SQLITE_PERM", "cannot be opened: no permission"),
    ("SQLITE_CANTOPEN", "cannot be opened: check that it is a file in a directory that can be written"),
    ("SQLITE_BUSY", f"is in use by another process for more than {BUSY_TIMEOUT_S} s"),
    ("SQLITE_LOCKED", "is in use by another process"),
    ("SQLITE_IOERR", "cannot be read or written: the disk reports an error"),
)


@dataclass(frozen=True, slots=True)
class Write:
    """A put; a delete when `text` is None."""

    key: bytes
    text: str | None = None


class Database:
    """The open file.

    `reserve`: room for what is deleted while the disk is full. While it is not kept, nothing new is written.

    A file that can only be read, as on a read-only file system, is read. Each transaction tries to open it again.
    """

    def __init__(self, path: Location, reserve: Reserve | None = None) -> None:
        self._path = path
        self._reserve = reserve
        self._opened = False
        self._unwritable = ""
        self._failed = ""

    def open(self) -> None:
        """Open the file; create it if it is missing."""
        try:
            self._open()
        except (sqlite3.Error, OSError) as exc:
            if opening.is_full(exc) and self._reserve and self._reserve.give():
                self._open()
            else:
                self._open_to_read(exc)
        self._opened = True

    def _open(self) -> None:
        if isinstance(self._path, Path) and opening.create(self._path):
            copies.set_aside(self._path)
        self._db = opening.to_write(self._path)
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise
        if self._reserve:
            self._reserve.keep()

    def _open_to_read(self, exc: sqlite3.Error | OSError) -> None:
        """Open a file that cannot be written; raise the error again if it cannot be read as it is either."""
        if not isinstance(self._path, Path) or not opening.is_unwritable(exc):
            raise exc
        try:
            db = opening.to_read(self._path)
        except sqlite3.Error:
            raise exc from None
        found = schema_table.stored(db)
        if found is None or found.refusal or found.version != VERSION:  # it has to be migrated
            db.close()
            raise exc
        self._db, self._unwritable = db, _cause(exc)

    @property
    def fails(self) -> bool:
        """Whether the disk failed with the last change, or cannot be written."""
        return bool(self._failed or self._unwritable)

    @property
    def trouble(self) -> str:
        """Return why nothing new can be written, and what to do; empty if it can."""
        full = self._reserve is not None and not self._reserve.kept
        why = self._unwritable or self._failed or (_LAST if full else "")
        return f"store {self._path} {why}" if why else ""

    def copy(self) -> None:
        """Write a copy beside the file; in any thread."""
        if isinstance(self._path, Path):
            copies.write(self._path)

    def recover(self) -> None:
        """Look whether what was in the way is over. It raises nothing that is still so."""
        with contextlib.suppress(sqlite3.Error, OSError, StoreError):
            if self._unwritable:
                self._open_again()
            if self._reserve:
                self._reserve.keep()
            if self._failed:
                with self._transaction(durable=True):
                    self._db.execute("UPDATE state SET revision = revision")
                self._failed = ""

    def _open_again(self) -> None:
        """Open a file to write that could only be read.

        Raises:
            StoreError: it still cannot be written.
        """
        # In this order: who closes a file loses all locks that its process has on it (fcntl(2)).
        self._db.close()
        self._unwritable = ""
        self.open()
        if self._unwritable:
            raise StoreError(f"store {self._path} {self._unwritable}")
        log.info("store.writable", path=str(self._path))

    def close(self) -> None:
        """Close the file if it is open; SQLite merges the write-ahead log into it."""
        if self._opened:
            self._db.close()

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn errors of SQLite and of the file system into a `StoreError` in plain words."""
        try:
            yield
        except (OSError, sqlite3.Error) as exc:
            raise StoreError(f"store {self._path} {_cause(exc)}") from exc

    def get(self, key: bytes) -> Record | None:
        """Return the record of a key."""
        row = self._db.execute("SELECT key, value, revision FROM record WHERE key = ?", (key,)).fetchone()
        return row and _record(*row)

    def range(self, prefix: bytes) -> tuple[list[Record], int]:
        """Return the records whose keys start with `prefix`, and the store's revision."""
        rows = self._db.execute(
            "SELECT key, value, revision FROM record WHERE key >= ? AND key < ? ORDER BY key",
            (prefix, prefix_end(prefix)),
        )
        return [_record(*row) for row in rows], self._revision()

    def txn(self, compares: Sequence[tuple[bytes, Compare]], writes: Sequence[Write], *, durable: bool) -> int | None:
        """Compare, then write; return None when a comparison fails.

        On a full disk the reserve is given for what adds no records.
        """
        if self._unwritable:
            self._open_again()
        if self._reserve and not self._reserve.kept and self._grows(writes) and not self._reserve.keep():
            raise StoreError(f"store {self._path} {_LAST}")
        try:
            done = self._txn(compares, writes, durable=durable)
        except sqlite3.Error as exc:
            self._failed = "" if opening.is_full(exc) else _cause(exc)
            if not opening.is_full(exc) or not self._reserve or self._grows(writes) or not self._reserve.give():
                raise
        else:
            self._failed = ""
            return done
        log.error("store.full", path=str(self._path), hint="free some space: nothing new can be stored until then")
        # What the log has moves into the file, and the log begins anew, in the room that it has.
        self._db.execute("PRAGMA wal_checkpoint(RESTART)")
        return self._txn(compares, writes, durable=durable)

    def count_from(self, revision: int) -> None:
        """Have the next transaction be later than a revision."""
        with self._transaction(durable=True):
            self._db.execute("UPDATE state SET revision = ?, forgotten = ?", (revision, revision))
            schema_table.follow(self._db)

    def _grows(self, writes: Sequence[Write]) -> bool:
        """Tell whether there are records to write that do not exist."""
        return any(
            write.text is not None and not write.key.startswith(_INTENTS) and self.get(write.key) is None
            for write in writes
        )

    def _txn(self, compares: Sequence[tuple[bytes, Compare]], writes: Sequence[Write], *, durable: bool) -> int | None:
        with self._transaction(durable=durable):
            for key, wanted in compares:
                row = self._db.execute("SELECT revision FROM record WHERE key = ?", (key,)).fetchone()
                if not wanted.holds(row[0] if row else 0):
                    return None
            return self._write(writes)

    def _prepare(self) -> None:
        db = self._db
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version > _FORMAT:
            raise StoreError(
                f"store {self._path} was written by a newer netplug (format {version}, this one knows"
                f" {_FORMAT}); run that one, or choose another state directory"
            )
        if version == 0 and tables:
            raise StoreError(f"store {self._path} is the database of another program; choose another state directory")
        if isinstance(self._path, Path):
            copies.check_age(db, self._path)
        found = schema_table.stored(db) if version else None
        if found and found.refusal:
            raise StoreError(f"store {self._path} {found.refusal}; or move the file away and create the networks anew")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
        if version == 0:
            with self._transaction(durable=True):
                for statement in _SCHEMA.split(";\n"):
                    db.execute(statement)
        else:
            copies.check_pages(db)
        self._drop_history()
        self._migrate(found)
        with self._transaction():  # a file that can only be read is opened all the same
            pass

    def _migrate(self, found: Schema | None) -> None:
        """Make all records those of this schema, in one transaction."""
        before = found or FIRST
        if found == before.ours:
            return
        with self._transaction(durable=True):
            writes = [Write(key, text) for key, text in schema_table.outdated(self._db, before.version)]
            schema_table.store(self._db, before.ours)
            self._write(writes)
        if found or writes:
            log.info("store.migrated", was=before.version, schema=before.ours.version, records=len(writes))

    def _drop_history(self) -> None:
        """Delete the history and the leases that an older version has left, with what was put under a lease."""
        found = "SELECT EXISTS (SELECT 1 FROM event) OR EXISTS (SELECT 1 FROM lease)"
        if not self._db.execute(found).fetchone()[0]:
            return
        with self._transaction():
            self._db.execute("DELETE FROM event")
            self._db.execute("DELETE FROM record WHERE lease IS NOT NULL")
            self._db.execute("DELETE FROM lease")
            self._db.execute("UPDATE state SET forgotten = revision, history_bytes = 0")

    @contextlib.contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[None]:
        if durable:  # in WAL mode: FULL syncs the log at each commit, NORMAL only when it is merged
            self._db.execute("PRAGMA synchronous = FULL")
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:  # after an error; SQLite itself may have rolled back when the disk is full
                self._db.execute("ROLLBACK")
            if durable:
                self._db.execute("PRAGMA synchronous = NORMAL")

    def _revision(self) -> int:
        return cast("int", self._db.execute("SELECT revision FROM state").fetchone()[0])

    def _write(self, writes: Sequence[Write]) -> int:
        """Write inside a transaction, and return its revision; the current one if nothing changes."""
        revision = self._revision()
        changed = False
        for write in writes:
            if write.text is not None:
                self._put(write, revision + 1)
            elif not self._db.execute("DELETE FROM record WHERE key = ?", (write.key,)).rowcount:
                continue
            changed = True
        if changed:
            revision += 1
            self._db.execute("UPDATE state SET revision = revision + 1, forgotten = revision + 1")
            schema_table.follow(self._db)
        return revision

    def _put(self, write: Write, revision: int) -> None:
        self._db.execute(
            "INSERT INTO record (key, value, revision) VALUES (?, ?, ?)"
            " ON CONFLICT (key) DO UPDATE SET value = excluded.value, revision = excluded.revision",
            (write.key, write.text, revision),
        )


def _cause(error: sqlite3.Error | OSError) -> str:
    """Return what is wrong, and what to do, for the end of a sentence."""
    if isinstance(error, FileExistsError):  # of mkdir
        return f"cannot be opened: {error.filename} is not a directory"
    if isinstance(error, OSError):
        reason = (error.strerror or str(error)).lower()
        return f"cannot be {'written' if opening.is_unwritable(error) else 'opened'}: {reason}"
    name = getattr(error, "sqlite_errorname", "")
    if not name and not isinstance(
        error, sqlite3.ProgrammingError
    ):  # of a check, or of Python, which cannot decode what it reads
        return f"is damaged ({error}); {_RESTORE}"
    return next((words for prefix, words in _CAUSES if name.startswith(prefix)), f"fails: {error}")


def _record(key: bytes, value: object, revision: int) -> Record:
    try:
        found = json.loads(cast("str", value))
    except (TypeError, ValueError, RecursionError):
        found = None
    # Who reads it finds an unknown field, and leaves the record as it is: it must not hide all others.
    known: JsonObject = found if isinstance(found, dict) else {"text that is no object": str(value)[:80]}
    return Record(key.decode(errors="backslashreplace"), known, revision)
