"""The files that keep events: two of JSON lines in the state directory, the older one replaced when the newer is full.

Nothing is flushed to the disk: after a loss of power the last seconds may be missing. A torn line is left out. All
functions block.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

NAME, OLDER = "events.jsonl", "events.1.jsonl"
MOST_BYTES = 4 << 20
"""Of each file: some ten thousand events."""


class EventFiles:
    """The files in a folder. One process writes them at a time."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self._path, self._older = folder / NAME, folder / OLDER
        self._most_bytes = most_bytes

    def append(self, events: Sequence[dict[str, Any]]) -> None:
        """Write events at the end.

        Raises:
            OSError: they cannot be written.
        """
        data = b"".join(json.dumps(it, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" for it in events)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(fd).st_size
            if size and size + len(data) > self._most_bytes:
                self._path.replace(self._older)
                os.close(fd)
                fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            elif size and os.pread(fd, 1, size - 1) != b"\n":  # torn by a crash
                data = b"\n" + data
            os.write(fd, data)
        finally:
            os.close(fd)

    def newest_first(self) -> Iterator[dict[str, Any]]:
        """Yield what was written, the last first."""
        for path in (self._path, self._older):
            try:
                lines = path.read_bytes().split(b"\n")
            except FileNotFoundError:
                continue
            for line in reversed(lines):
                if (found := _read(line)) is not None:
                    yield found


def _read(line: bytes) -> dict[str, Any] | None:
    try:
        found: Any = json.loads(line) if line else None
    except ValueError:
        return None
    known = (
        isinstance(found, dict)
        and all(isinstance(found.get(key), int | float) for key in ("id", "time"))
        and "kind" in found
    )
    return found if known and isinstance(found["kind"], str) else None
