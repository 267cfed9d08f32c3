"""The schema of the records that hosts share: one record says it, for all of them.

Shared records are not migrated where they are. Each host writes its own anew when it starts, and ignores what it does
not know in those of others; a definition keeps what a later release has added to it. So hosts of two releases work in
one cluster, while it is upgraded host by host. A release that could not is kept from writing: see `Schema.refusal`.
"""

from netplug.cluster.claims import NotAdmitted
from netplug.cluster.records import SCHEMA
from netplug.drivers.codec import JsonObject, decode_known
from netplug.store.api import Compare, Put, Record, SharedStore
from netplug.store.schema import FIRST, Schema


class SchemaRefused(NotAdmitted):
    """The shared store has a schema that this release cannot use; nothing was changed."""


async def agree(store: SharedStore) -> None:
    """Check that this release can use the store, and let the store say the newest schema in it.

    Raises:
        SchemaRefused: the release cannot; says what to do.
        StoreError: the store does not answer.
    """
    record = await store.get(SCHEMA)
    found = _parsed(record)
    if why := _refusal(found):
        raise SchemaRefused(why)
    newest = found.newest
    if newest != found or record is None:
        value: JsonObject = {"version": newest.version, "oldest": newest.oldest, "release": newest.release}
        # Another host may have been faster: the next heartbeat looks again.
        await store.txn([Compare(SCHEMA, record.revision if record else 0)], [Put(SCHEMA, value)])


async def refusal(store: SharedStore) -> str:
    """Return why this release cannot use the store; empty if it can.

    Raises:
        StoreError: the store does not answer.
    """
    return _refusal(_parsed(await store.get(SCHEMA)))


def _refusal(found: Schema) -> str:
    return f"the shared store {found.refusal}" if found.refusal else ""


def _parsed(record: Record | None) -> Schema:
    """Return what the record says; what no release has written counts as the first schema."""
    return (decode_known(Schema, record.value) if record else None) or FIRST
