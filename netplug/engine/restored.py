"""After `netplug store restore`, a record may be missing of what is connected. So what belongs to no record stays.

It stays until somebody asks for a repair. `netplug diff` shows each such object.
"""

from netplug.engine.conditions import Conditions, Difference
from netplug.store.api import Delete, Store
from netplug.store.restoring import RESTORED


class Restored:
    """Whether objects that belong to no record stay."""

    def __init__(self, store: Store, conditions: Conditions) -> None:
        self._store = store
        self._conditions = conditions
        self.keeps = False

    async def load(self) -> None:
        """Read whether the records were restored."""
        record = await self._store.get(RESTORED)
        self.keeps = record is not None
        when = record.value.get("at") if record else ""
        words = (
            f"the records were restored at {when}: what belongs to no record stays, as it may be a running container's;"
            " restart containers that are missing in 'netplug ps', then run 'netplug repair'"
        )
        self._conditions.report("restored", [Difference("host", "store", words)] if record else ())

    async def end(self) -> None:
        """Let what belongs to no record go, as somebody asked for a repair."""
        if self.keeps:
            await self._store.txn((), [Delete(RESTORED)], durable=True)
            await self.load()
