"""Reads the records of a database that no daemon has, and leaves it as it is.

SQLite would make files beside a database that it only reads. So a copy is read, of the file and its write-ahead log.
"""

import shutil
import tempfile
from pathlib import Path

from . import copies
from .api import Record, StoreError
from .database import Database

_LOG = "-wal"


def records(path: Path) -> list[Record]:
    """Return all records. Blocks: 10 ms a MB.

    Raises:
        StoreError: there is no database, or it cannot be used; says why.
    """
    if not path.is_file():
        raise StoreError(f"store {path} does not exist")
    with tempfile.TemporaryDirectory(prefix="netplug-") as folder:
        copy = Path(folder) / path.name
        database = Database(copy)
        try:
            with database.explained():
                for suffix in ("", _LOG, copies.SUFFIX):
                    if (source := path.with_name(path.name + suffix)).exists():
                        shutil.copyfile(source, copy.with_name(copy.name + suffix))
                database.open()
                try:
                    return database.range(b"")[0]
                finally:
                    database.close()
        except StoreError as exc:
            raise StoreError(str(exc).replace(str(copy), str(path))) from exc
