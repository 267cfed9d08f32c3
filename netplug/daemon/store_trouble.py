"""Looks after this host's own store: keeps a copy of it, and shows that it cannot take anything new."""

import asyncio
from itertools import count

import structlog

from netplug.engine import Engine
from netplug.engine.conditions import Difference
from netplug.store.api import StoreError
from netplug.store.sqlite import SqliteStore

log = structlog.get_logger(__name__)

LOOK_S = 5.0
"""Between two looks, which cost nothing while all is well."""
_COPY_EVERY = 3
"""Looks. A copy takes a tenth of a second for a thousand endpoints, outside the store's thread."""


async def care_for_store(engine: Engine, store: SqliteStore) -> None:
    """Report why nothing new can be written, as long as it is so, and copy what has changed."""
    said = ""
    for look in count():
        why = await store.trouble()
        engine.restored.disk_fails(fails=await store.fails())
        found = [Difference("host", "store", why)] if why else []
        if not why and look % _COPY_EVERY == 0:
            try:
                await store.copy()
                said = ""
            except StoreError as exc:
                if said != str(exc):
                    log.warning("store.not_copied", error=str(exc))
                said = str(exc)
        engine.conditions.report("store", found or ([Difference("host", "store", said)] if said else []))
        await asyncio.sleep(LOOK_S)
