"""Shows that this host's own store cannot take anything new, and looks for the end of it."""

import asyncio

from netplug.engine import Engine
from netplug.engine.conditions import Difference
from netplug.store.sqlite import SqliteStore

LOOK_S = 5.0
"""Between two looks, which cost nothing while all is well."""


async def tell_of_store(engine: Engine, store: SqliteStore) -> None:
    """Report why nothing new can be written, as long as it is so."""
    while True:
        why = await store.trouble()
        engine.conditions.report("store", [Difference("host", "store", why)] if why else ())
        await asyncio.sleep(LOOK_S)
