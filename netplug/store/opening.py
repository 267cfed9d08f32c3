"""How the SQLite file is opened: to read and write; or only to read, from a disk that cannot be written.

SQLite wants to write beside a database in WAL mode even if it only reads. Where it cannot, there are two ways around:
with a log, the index of the log is kept in memory (`locking_mode=EXCLUSIVE`), without locks on the file, which need a
file that can be written; without a log, the file is declared to be immutable. The lock of the state directory ensures
that nobody else writes.
"""

import errno
import os
import sqlite3
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import quote

Location: TypeAlias = Path | Literal[":memory:"]

BUSY_TIMEOUT_S = 5  # longer than an operator's `sqlite3 FILE` query or a backup holds the lock
_NO_ROOM = ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")
_UNWRITABLE = (*_NO_ROOM, "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_IOERR")


def is_full(error: BaseException) -> bool:
    """Tell whether a disk had no room."""
    return getattr(error, "sqlite_errorname", "") in _NO_ROOM


def is_unwritable(error: BaseException) -> bool:
    """Tell whether what failed may be writing alone."""
    if isinstance(error, OSError):
        return error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}
    return getattr(error, "sqlite_errorname", "").startswith(_UNWRITABLE)


def create(path: Path) -> bool:
    """Create the file with mode 0600 before SQLite would with 0644; SQLite's log files take over its mode.

    Return whether it was missing.

    Raises:
        OSError: it cannot be written. SQLite would notice that with the first change only.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        fd = os.open(path, os.O_RDWR)
        os.fchmod(fd, 0o600)
        os.close(fd)
        return False
    return True


def to_write(path: Location) -> sqlite3.Connection:
    """Open it as usual."""
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    db.text_factory = _text
    return db


def _text(raw: bytes) -> str:
    """Return text that may be damaged: one value that is not UTF-8 would hide all others."""
    return raw.decode(errors="surrogateescape")


def to_read(path: Path) -> sqlite3.Connection:
    """Open it only to read, without writing anything beside it.

    Raises:
        sqlite3.Error: that is impossible too.
    """
    log = path.with_name(path.name + "-wal")
    way = "mode=ro&vfs=unix-none" if log.exists() else "mode=ro&immutable=1"
    db = sqlite3.connect(f"file:{quote(os.fspath(path))}?{way}", uri=True, isolation_level=None)
    db.text_factory = _text
    try:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        db.close()
        raise
    return db
