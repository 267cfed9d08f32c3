"""Room on the disk that is kept for a full disk: what is deleted has to be written too.

A file beside the database holds it. When the disk is full, the file is removed, and its room serves what ends networks
and endpoints. Nothing new is stored until there is room for the file again.
"""

import os
from pathlib import Path

BYTES = 4 << 20
"""As large as SQLite's log becomes (`wal_autocheckpoint`: 1 000 pages of 4 kB). What is in the log fits into the
database then, and deleting needs no more room from there on."""
SUFFIX = "-reserve"


class Reserve:
    """The room kept beside a database. All calls block."""

    def __init__(self, database: Path, size: int = BYTES) -> None:
        self._path = database.with_name(database.name + SUFFIX)
        self._size = size
        self.kept = False

    def keep(self) -> bool:
        """Keep the room unless it is kept already; return whether it is kept now."""
        if not self.kept:
            self.kept = self._write()
        return self.kept

    def give(self) -> bool:
        """Give the room to the database; return whether there was any."""
        was, self.kept = self.kept, False
        try:
            self._path.unlink()
        except OSError:
            return False
        return was

    def _write(self) -> bool:
        try:
            if self._path.stat().st_blocks * 512 >= self._size:
                return True
        except OSError:
            pass
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:
            return False
        try:
            os.posix_fallocate(fd, 0, self._size)
        except OSError:  # a part of the room is of no use to us, and all others lack it
            self._path.unlink(missing_ok=True)
            return False
        finally:
            os.close(fd)
        return True
