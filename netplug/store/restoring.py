"""Puts a database in the place of a damaged one: what can be read of that, and what its copy has beside.

Of a record that both have the newer one counts. A record that the damaged file lacks was deleted, if all of the file
can be read; else it may be in the damaged part, and is taken from the copy. The daemon ends what no longer exists.
"""

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from . import copies, schema_table
from .api import StoreError
from .database import Database, Write
from .encoding import json_text
from .schema import VERSION, migrated

LOGS = ("-wal", "-shm")
RESTORED = "meta/restored"
"""Key of the record that says that it was done."""
_INTENTS = b"journal/"
"""Of the copy they do not count: what was under way then is not now."""


@dataclass(slots=True)
class Found:
    """What can be read of a file: revision and text by key. `fault`: why not all; empty if it is whole."""

    fault: str = ""
    records: dict[bytes, tuple[int, str]] = field(default_factory=dict)
    revision: int = 0

    def networks(self) -> int:
        """Return how many are networks."""
        return sum(key.startswith(b"networks/") for key in self.records)

    def endpoints(self) -> int:
        """Return how many are endpoints."""
        return sum(key.startswith(b"endpoints/") for key in self.records)


@dataclass(frozen=True, slots=True)
class Restoration:
    """What was put together. `kept`: where the damaged file is now. `lost`: records that only the copy had."""

    records: Found
    kept: Path
    from_copy: int


def examine(path: Path, known: Iterable[bytes] = ()) -> Found:
    """Read what can be read of a database that no process uses, and leave it as it is.

    `known`: keys to ask for if the file cannot be read in order.
    """
    if not path.is_file():
        return Found(f"{path} does not exist")
    with tempfile.TemporaryDirectory(prefix="netplug-") as folder:
        with_log, alone = Path(folder, "with") / path.name, Path(folder, "alone") / path.name
        for copy, suffixes in ((with_log, ("", "-wal")), (alone, ("",))):
            copy.parent.mkdir()
            for suffix in suffixes:
                with suppress(FileNotFoundError):
                    shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
        found = _read(with_log, path, known)
        if found.fault:
            # A log of another moment may be what makes it unreadable. It is no reason to call the rest whole.
            for key, item in _read(alone, path, known).records.items():
                found.records[key] = max(item, found.records.get(key, item))
    return found


def restore(path: Path) -> Restoration:
    """Restore a damaged database that no process uses.

    Raises:
        StoreError: nothing can be read of it, and there is no copy; or the new one cannot be written. Nothing is
            changed.
    """
    copy = examine(copies.copy_of(path))
    found = examine(path, copy.records)
    merged = dict(found.records)
    for key, item in copy.records.items():
        if found.fault and not key.startswith(_INTENTS):
            merged[key] = max(item, merged.get(key, item))
    if not merged:
        raise StoreError(f"store {path} has nothing that can be read, and neither has {copies.copy_of(path)}")
    new = path.with_name(path.name + "-new")
    _remove(new)
    try:
        _write(new, merged, max(found.revision, copy.revision, *(item[0] for item in merged.values())))
        kept = path.with_name(f"{path.name}-damaged-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
        for suffix in ("", *LOGS):
            with suppress(FileNotFoundError):
                Path(f"{path}{suffix}").replace(f"{kept}{suffix}")
        new.replace(path)
    finally:
        _remove(new)
    taken = sum(key not in found.records or found.records[key] < item for key, item in merged.items())
    return Restoration(Found(found.fault, merged), kept, taken)


def _write(path: Path, records: dict[bytes, tuple[int, str]], revision: int) -> None:
    database = Database(path)
    with database.explained():
        database.open()
        try:
            database.count_from(revision)
            writes = [Write(key, text) for key, (_, text) in sorted(records.items())]
            said = json_text(RESTORED, {"at": datetime.now(UTC).isoformat(timespec="seconds")})
            database.txn([], [*writes, Write(RESTORED.encode(), said)], durable=True)
        finally:
            database.close()


def _remove(path: Path) -> None:
    for suffix in ("", *LOGS):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _read(path: Path, original: Path, known: Iterable[bytes]) -> Found:
    """Read a file that may be changed, of one that stays."""
    found = Found()
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            try:
                version = _version(db)
                found.revision = copies.revision_of(db)
                copies.check(db)
                copies.check_age(db, original)
            except sqlite3.Error as exc:
                found.fault, version = str(exc), VERSION
            db.text_factory = bytes
            for key, text, revision in _rows(db, known, whole=not found.fault):
                try:
                    value, name = json.loads(text), key.decode()
                    item = revision, json_text(name, migrated(name, value, version))
                except (ValueError, TypeError, AttributeError, StoreError) as exc:
                    found.fault = found.fault or f"record {key!r} cannot be read: {exc}"
                    continue
                found.records[key] = max(item, found.records.get(key, item))
    except sqlite3.Error as exc:
        found.fault = found.fault or str(exc)
    return found


def _version(db: sqlite3.Connection) -> int:
    stored = schema_table.stored(db)
    return stored.version if stored else 1


def _rows(db: sqlite3.Connection, known: Iterable[bytes], *, whole: bool) -> Iterator[tuple[bytes, bytes, int]]:
    """Yield key, value and revision of all rows that can be read, some of them twice."""
    columns = "SELECT key, value, revision FROM record"
    for order in ("ASC",) if whole else ("ASC", "DESC"):
        with suppress(sqlite3.Error):
            yield from db.execute(f"{columns} ORDER BY key {order}")
    for key in () if whole else known:
        with suppress(sqlite3.Error):
            yield from db.execute(f"{columns} WHERE key = ?", (key,))
