"""The SQLite file behind `SqliteStore`: records, history, leases. It blocks and belongs to one thread.

One process has the file at a time (`netplug.lock` sees to it), so reads need no transaction of their own.
Keys are BLOBs: their order is that of UTF-8 bytes, as etcd's, and a prefix is one range of the index whatever
signs it holds. History (`event`) is written in the transaction that it tells of, so that a watch has no gap,
not even over a restart.
"""

import contextlib
import json
import math
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, cast

from netplug.drivers.codec import JsonObject

from .api import Compacted, Compare, Event, Record, StoreError
from .encoding import prefix_end

Location: TypeAlias = Path | Literal[":memory:"]

HISTORY_REVISIONS = 10_000
HISTORY_BYTES = 64 * 1024 * 1024  # of values; few records are large, and history must not outgrow the disk
BATCH_BYTES = 256 * 1024  # of what one read of the history takes into memory, unless one transaction is larger
_BUSY_TIMEOUT_S = 5  # an operator's `sqlite3 file` or a backup lets go sooner
_VERSION = 1
_SCHEMA = """
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
    """A put, or a delete when `text` is None."""

    key: bytes
    text: str | None = None
    lease: int | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What a transaction has written, for those who watch."""

    revision: int
    keys: tuple[str, ...]


class Database:
    """The open file. `due`: when the next lease ends, by the clock."""

    def __init__(
        self,
        path: Location,
        clock: Callable[[], float],
        history: int = HISTORY_REVISIONS,
        history_bytes: int = HISTORY_BYTES,
    ) -> None:
        self._path = path
        self._clock = clock
        self._history = history
        self._history_bytes = history_bytes
        self._ttl_s: dict[int, float] = {}
        self._deadlines: dict[int, float] = {}
        self._changes: list[Change] = []
        self._opened = False
        self.due = math.inf

    def open(self) -> None:
        """Open the file, creating it when absent. Leases start their time anew."""
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
        """Close the file; the log is merged into it. One that was never opened is closed."""
        if self._opened:
            self._db.close()

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn what SQLite and the file system say into a `StoreError` in plain words."""
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

    def take_changes(self) -> Sequence[Change]:
        """Return what has been committed since the last call."""
        changes, self._changes = self._changes, []
        return changes

    def get(self, key: bytes) -> Record | None:
        """Return the record of a key."""
        row = self._db.execute("SELECT key, value, revision FROM record WHERE key = ?", (key,)).fetchone()
        return row and _record(*row)

    def range(self, prefix: bytes) -> tuple[list[Record], int]:
        """Return the records of a prefix, and the revision of now."""
        rows = self._db.execute(
            "SELECT key, value, revision FROM record WHERE key >= ? AND key < ? ORDER BY key",
            (prefix, prefix_end(prefix)),
        )
        return [_record(*row) for row in rows], self._state()[0]

    def txn(self, compares: Sequence[tuple[bytes, Compare]], writes: Sequence[Write], *, durable: bool) -> int | None:
        """Compare, then write; None when a comparison fails."""
        with self._transaction(durable=durable):
            for key, wanted in compares:
                row = self._db.execute("SELECT revision FROM record WHERE key = ?", (key,)).fetchone()
                if not wanted.holds(row[0] if row else 0):
                    return None
            change = self._write(writes)
        return self._committed(change)

    def events(self, prefix: bytes, after: int) -> tuple[list[Event], int, bool]:
        """Return the next events, the revision up to which they are whole, and whether there are more.

        Raises:
            Compacted: events after `after` have been forgotten.
        """
        revision, forgotten, _ = self._state()
        if after < forgotten:
            raise Compacted(f"the changes after revision {after} are forgotten up to {forgotten}")
        rows = self._db.execute(
            "SELECT key, value, revision FROM event WHERE revision > ? AND key >= ? AND key < ? ORDER BY revision, seq",
            (after, prefix, prefix_end(prefix)),
        )
        events: list[Event] = []
        size = 0
        with contextlib.closing(rows):
            for key, value, at in rows:
                if size >= BATCH_BYTES and at != events[-1].revision:
                    return events, events[-1].revision, True
                record = None if value is None else _record(key, value, at)
                events.append(Event(key.decode(), record, at))
                size += len(value or "") + 1024
        return events, max(revision, after), False

    def grant(self, ttl_s: float) -> int:
        """Grant a lease."""
        with self._transaction():
            lease = self._db.execute("INSERT INTO lease (ttl_s) VALUES (?)", (ttl_s,)).lastrowid or 0
        self._ttl_s[lease] = ttl_s
        self.keep_alive(lease)
        return lease

    def keep_alive(self, lease: int) -> bool:
        """Start the lease's time anew; in memory only, as after a restart it starts anew anyway."""
        if lease not in self._ttl_s:
            return False
        self._deadlines[lease] = self._clock() + self._ttl_s[lease]
        self.due = min(self._deadlines.values())
        return True

    def revoke(self, lease: int) -> None:
        """End a lease and delete its records."""
        if lease not in self._ttl_s:
            return
        with self._transaction():
            self._db.execute("DELETE FROM lease WHERE id = ?", (lease,))
            keys = self._db.execute("SELECT key FROM record WHERE lease = ? ORDER BY key", (lease,)).fetchall()
            change = self._write([Write(key) for (key,) in keys])
        self._committed(change)
        del self._ttl_s[lease], self._deadlines[lease]
        self.due = min(self._deadlines.values(), default=math.inf)

    def expire(self) -> None:
        """Revoke the leases whose time is over, in the order in which they ended."""
        now = self._clock()
        if now < self.due:
            return
        for lease in sorted(self._deadlines, key=self._deadlines.__getitem__):
            if self._deadlines[lease] <= now:
                self.revoke(lease)

    def _prepare(self) -> None:
        db = self._db
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version > _VERSION:
            raise StoreError(
                f"store {self._path} was written by a newer netplug (format {version}, this one knows"
                f" {_VERSION}); run that one, or choose another state directory"
            )
        if version == 0 and tables:
            raise StoreError(f"store {self._path} is the database of another program; choose another state directory")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        if version == 0:
            with self._transaction(durable=True):
                for statement in _SCHEMA.split(";\n"):
                    db.execute(statement)
        self._ttl_s = dict(db.execute("SELECT id, ttl_s FROM lease"))
        for lease in self._ttl_s:
            self.keep_alive(lease)

    @contextlib.contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[None]:
        if durable:  # in WAL mode: FULL syncs the log at each commit, NORMAL only when it is merged
            self._db.execute("PRAGMA synchronous = FULL")
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:  # left by an error; a full disk may have rolled back already
                self._db.execute("ROLLBACK")
            if durable:
                self._db.execute("PRAGMA synchronous = NORMAL")

    def _state(self) -> tuple[int, int, int]:
        row = self._db.execute("SELECT revision, forgotten, history_bytes FROM state").fetchone()
        return cast("tuple[int, int, int]", row)

    def _write(self, writes: Sequence[Write]) -> Change:
        """Write inside a transaction; no keys and the present revision if nothing differs."""
        revision, forgotten, size = self._state()
        keys: list[str] = []
        for write in writes:
            if write.text is not None:
                self._put(write, revision + 1)
            elif not self._db.execute("DELETE FROM record WHERE key = ?", (write.key,)).rowcount:
                continue
            row = (revision + 1, len(keys), write.key, write.text)
            self._db.execute("INSERT INTO event VALUES (?, ?, ?, ?)", row)
            keys.append(write.key.decode())
            size += len(write.text or "")
        if keys:
            revision += 1
            forgotten, size = self._forget(revision, forgotten, size)
            self._db.execute(
                "UPDATE state SET revision = ?, forgotten = ?, history_bytes = ?", (revision, forgotten, size)
            )
        return Change(revision, tuple(keys))

    def _put(self, write: Write, revision: int) -> None:
        if write.lease is not None and write.lease not in self._ttl_s:
            raise StoreError(f"record {write.key.decode()!r} cannot be put under lease {write.lease}, which has ended")
        self._db.execute(
            "INSERT INTO record VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE"
            " SET value = excluded.value, revision = excluded.revision, lease = excluded.lease",
            (write.key, write.text, revision, write.lease),
        )

    def _forget(self, revision: int, forgotten: int, size: int) -> tuple[int, int]:
        """Drop the oldest revisions beyond the limits, never the newest."""
        while revision - forgotten > self._history or (size > self._history_bytes and forgotten < revision - 1):
            forgotten += 1
            gone = self._db.execute("DELETE FROM event WHERE revision = ? RETURNING length(value)", (forgotten,))
            size -= sum(length or 0 for (length,) in gone.fetchall())
        return forgotten, size

    def _committed(self, change: Change) -> int:
        if change.keys:
            self._changes.append(change)
        return change.revision


def _create(path: Path) -> None:
    """Make the file before SQLite does, which would let all read it; its logs take the file's mode."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        if path.is_file():
            path.chmod(0o600)


def _record(key: bytes, value: str, revision: int) -> Record:
    return Record(key.decode(), cast("JsonObject", json.loads(value)), revision)
