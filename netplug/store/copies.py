"""A copy of the database beside it, in case the database is damaged: `netplug store restore` reads both.

A copy takes the place of the former one only if it is whole: a damaged page would be copied as it is.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

SUFFIX = "-copy"


def copy_of(path: Path) -> Path:
    """Return the path of a database's copy."""
    return path.with_name(path.name + SUFFIX)


def write(path: Path) -> None:
    """Write a copy of a database that this process uses. Blocks for some milliseconds a MB, without the GIL.

    Raises:
        sqlite3.Error: the database is damaged, or the disk refuses.
        OSError: the disk refuses.
    """
    copy = copy_of(path)
    new = copy.with_name(copy.name + ".new")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(new)) as target:
            target.execute("PRAGMA journal_mode = MEMORY")
            source.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")  # one file, which can be opened everywhere
            check(target)
        os.fsync(fd)
        _flush_log(path)
        new.replace(copy)
    finally:
        os.close(fd)
        new.unlink(missing_ok=True)


def _flush_log(path: Path) -> None:
    """Have on the disk what the copy has: after a power cut, the database must not be older than it."""
    try:
        fd = os.open(path.with_name(path.name + "-wal"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def set_aside(path: Path) -> None:
    """Take the copy out of the way of a new database; it is kept."""
    copy = copy_of(path)
    if copy.exists():
        copy.replace(copy.with_name(copy.name + "-old"))


def check_age(db: sqlite3.Connection, path: Path) -> None:
    """Look whether a database is older than its copy, as without its log, or if it was emptied.

    Raises:
        sqlite3.DatabaseError: it is.
    """
    copy = copy_of(path)
    if not copy.exists():
        return
    try:
        with closing(sqlite3.connect(f"file:{quote(os.fspath(copy))}?mode=ro&immutable=1", uri=True)) as other:
            known = revision_of(other)
    except sqlite3.Error:
        return  # it is replaced when the database has changed
    if (found := revision_of(db)) < known:
        raise sqlite3.DatabaseError(
            f"it is older than {copy.name}: revision {found}, not {known}; is {path.name}-wal lost?"
        )


def revision_of(db: sqlite3.Connection) -> int:
    """Return the revision of a database; 0 if it is empty."""
    there = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'state'").fetchone()
    return int(db.execute("SELECT max(revision) FROM state").fetchone()[0] or 0) if there else 0


def check(db: sqlite3.Connection) -> None:
    """Look whether a database or one of its records is damaged.

    Raises:
        sqlite3.DatabaseError: it is; the text says how.
    """
    check_pages(db)
    broken = db.execute("SELECT CAST(key AS TEXT) FROM record WHERE NOT json_valid(value) LIMIT 1").fetchone()
    if broken:
        raise sqlite3.DatabaseError(f"record {broken[0]!r} is not JSON")


def check_pages(db: sqlite3.Connection) -> None:
    """Look whether a database is damaged as a whole. A single record that is goes to quarantine.

    Raises:
        sqlite3.DatabaseError: it is; the text says how.
    """
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(" ".join(str(found).replace("*** in database main ***", "").split()))
    newest = "SELECT coalesce((SELECT max(revision) FROM record), 0) <= (SELECT revision FROM state)"
    if not db.execute(newest).fetchone()[0]:
        raise sqlite3.DatabaseError("a record is newer than the database")
