"""After `netplug store restore`, a record may be missing of what is connected. So what belongs to no record stays.

The same holds after a disk failed under a daemon: records of endpoints are not flushed to it at once, and while a loss
of power ends the containers too, a failing disk does not. A note in the run directory, which a boot empties, says so.

It stays until somebody asks for a repair. `netplug diff` shows each such object.
"""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from netplug.engine.conditions import Conditions, Difference
from netplug.store.api import Delete, Put, Store, StoreError
from netplug.store.restoring import RESTORED


class Restored:
    """Whether objects that belong to no record stay. `note`: the file that says that the disk failed; None: nowhere."""

    def __init__(self, store: Store, conditions: Conditions) -> None:
        self._store = store
        self._conditions = conditions
        self.keeps = False
        self.note: Path | None = None
        self._failed = False

    async def load(self) -> None:
        """Read whether the records were restored."""
        record = await self._store.get(RESTORED)
        noted = self.note is not None and self.note.exists()
        self.keeps = record is not None or noted
        when = record.value.get("at") if record else ""
        if noted and record is None:
            when = datetime.now(UTC).isoformat(timespec="seconds")
            with suppress(StoreError):  # as long as it cannot be written, the note stays
                await self._store.txn((), [Put(RESTORED, {"at": when})], durable=True)
                self._forget()
        words = (
            f"the records were restored, or their disk failed, at {when}: what belongs to no record stays, as it may be"
            " a running container's; restart containers that are missing in 'netplug ps', then run 'netplug repair'"
        )
        self._conditions.report("restored", [Difference("host", "store", words)] if self.keeps else ())

    def disk_fails(self, *, fails: bool) -> None:
        """Note whether records may be lost, as their disk fails; once all are written, they are not."""
        if fails == self._failed or self.note is None:
            return
        self._failed = fails
        with suppress(OSError):
            self.note.touch() if fails else self._forget()

    def _forget(self) -> None:
        if self.note is not None:
            self.note.unlink(missing_ok=True)

    async def end(self) -> None:
        """Let what belongs to no record go, as somebody asked for a repair."""
        if self.keeps:
            self._forget()
            await self._store.txn((), [Delete(RESTORED)], durable=True)
            await self.load()
