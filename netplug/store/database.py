"""The SQLite file behind `SqliteStore`. Its calls block, and all come from one thread.

One process at a time has the file (`netplug.daemon.lock` ensures it), so a read needs no transaction.
Keys are BLOBs: they sort by their UTF-8 bytes, as in etcd, and all keys with one prefix are one range of the index.

Format 1 of the file also holds leases and a history of changes, which versions before this one wrote and read. This
version empties and never fills them. The tables stay, so that an older version can open the file again.
"""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, cast

import structlog

from netplug.drivers.codec import JsonObject

from . import schema_table
from .api import Compare, Record, StoreError
from .encoding import prefix_end
from .schema import FIRST, Schema

log = structlog.get_logger(__name__)

Location: TypeAlias = Path | Literal[":memory:"]

_BUSY_TIMEOUT_S = 5  # longer than an operator's `sqlite3 FILE` query or a backup holds the lock
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
_CAUSES = (
    ("SQLITE_NOTADB", "is not a database; move it away, or choose another state directory"),
    ("SQLITE_CORRUPT", "is damaged; restore it from a backup, or move it away and create the networks anew"),
    ("SQLITE_FULL", "cannot grow: the disk is full; free some space"),
    ("SQLITE_READONLY", "cannot be written: no permission, or a read-only file system"),
    ("SQLITE_PERM", "cannot be opened: no permission"),
    ("SQLITE_CANTOPEN", "cannot be opened: check that it is a file in a directory that can be written"),
    ("SQLITE_BUSY", f"is in use by another process for more than {_BUSY_TIMEOUT_S} s"),
    ("SQLITE_LOCKED", "is in use by another process"),
    ("SQLITE_IOERR", "cannot be read or written: the disk reports an error"),
)


@dataclass(frozen=True, slots=True)
class Write:
    """A put; a delete when `text` is None."""

    key: bytes
    text: str | None = None


class Database:
    """The open file."""

    def __init__(self, path: Location) -> None:
        self._path = path
        self._opened = False

    def open(self) -> None:
        """Open the file; create it if it is missing."""
        if isinstance(self._path, Path):
            _create(self._path)
        self._db = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise
        self._opened = True

    def close(self) -> None:
        """Close the file if it is open; SQLite merges the write-ahead log into it."""
        if self._opened:
            self._db.close()

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn errors of SQLite and of the file system into a `StoreError` in plain words."""
        try:
            yield
        except OSError as exc:
            reason = (exc.strerror or str(exc)).lower()
            if isinstance(exc, FileExistsError):  # of mkdir
                reason = f"{exc.filename} is not a directory"
            raise StoreError(f"store {self._path} cannot be opened: {reason}") from exc
        except sqlite3.Error as exc:
            name = getattr(exc, "sqlite_errorname", "")
            cause = next((words for prefix, words in _CAUSES if name.startswith(prefix)), f"fails: {exc}")
            raise StoreError(f"store {self._path} {cause}") from exc

    def check(self) -> None:
        """Look whether the file is damaged.

        Raises:
            sqlite3.DatabaseError: it is.
        """
        (found,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found)

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
        """Compare, then write; return None when a comparison fails."""
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
        found = schema_table.stored(db) if version else None
        if found and found.refusal:
            raise StoreError(f"store {self._path} {found.refusal}; or move the file away and create the networks anew")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        if version == 0:
            with self._transaction(durable=True):
                for statement in _SCHEMA.split(";\n"):
                    db.execute(statement)
        self._drop_history()
        self._migrate(found)

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


def _create(path: Path) -> None:
    """Create the file with mode 0600 before SQLite would with 0644; SQLite's log files take over its mode."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        if path.is_file():
            path.chmod(0o600)


def _record(key: bytes, value: str, revision: int) -> Record:
    return Record(key.decode(), cast("JsonObject", json.loads(value)), revision)
