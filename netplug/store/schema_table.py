"""The schema of a SQLite store: where the file says it, and the migration of its records.

The file says it in a table of its own, which releases without schemas ignore. The table also has the store's revision
after the last transaction of a release that knows it. If the store has a later one, a release without schemas has
written meanwhile, and its records are of the first schema again.
"""

import json
import sqlite3
from collections.abc import Iterator
from typing import cast

from netplug.drivers.codec import JsonObject

from .encoding import json_text
from .schema import FIRST, Schema, migrated

_TABLE = """
CREATE TABLE IF NOT EXISTS schema (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    version INTEGER NOT NULL, -- no record is older
    oldest INTEGER NOT NULL, -- releases with an older schema cannot use the file
    release TEXT NOT NULL, -- of netplug, the last one that had the file
    revision INTEGER NOT NULL -- of the store, after the last transaction of a release that has this table
) STRICT
"""


def stored(db: sqlite3.Connection) -> Schema | None:
    """Return what the file says of itself; None if it says nothing."""
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'schema'").fetchone():
        return None
    row = db.execute("SELECT version, oldest, release, revision FROM schema").fetchone()
    (revision,) = db.execute("SELECT revision FROM state").fetchone()
    found = Schema(*row[:3])
    return found if row[3] == revision else Schema(FIRST.version, found.oldest, FIRST.release)


def outdated(db: sqlite3.Connection, version: int) -> Iterator[tuple[bytes, str]]:
    """Yield key and new text of each record of schema `version` that is another one in this schema."""
    for key, text in db.execute("SELECT key, value FROM record").fetchall():
        value = cast("JsonObject", json.loads(text))
        new = migrated(key.decode(), value, version)
        if new != value:
            yield key, json_text(key.decode(), new)


def store(db: sqlite3.Connection, schema: Schema) -> None:
    """Write what the file says of itself, inside a transaction."""
    db.execute(_TABLE)
    db.execute(
        "INSERT OR REPLACE INTO schema SELECT 1, ?, ?, ?, revision FROM state",
        (schema.version, schema.oldest, schema.release),
    )


def follow(db: sqlite3.Connection) -> None:
    """Note that this release has written, inside the transaction."""
    db.execute("UPDATE schema SET revision = (SELECT revision FROM state)")
