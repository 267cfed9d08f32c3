"""Records as etcd stores them: keys below a root, values in an envelope with the id of the transaction."""

import base64
import json
from dataclasses import dataclass, field
from typing import Any

import structlog

from netplug.drivers.codec import JsonObject
from netplug.store.api import Delete, Put, Record, StoreError
from netplug.store.encoding import json_text, key_bytes, prefix_bytes, prefix_end

log = structlog.get_logger(__name__)

Message = dict[str, Any]


def b64(raw: bytes) -> str:
    """Encode bytes as in protobuf's JSON mapping."""
    return base64.b64encode(raw).decode()


def number(message: Message, name: str) -> int:
    """Return a 64-bit number of a message; the JSON mapping leaves out zero."""
    return int(message.get(name, 0))


def revision_of(message: Message) -> int:
    """Return the store's revision from the header of an answer."""
    return number(message.get("header", {}), "revision")


@dataclass(frozen=True, slots=True)
class Records:
    """Translates keys and values.

    `root`: the prefix of all keys in etcd; ends in "/". `unreadable`: why keys that were seen are no records.
    """

    root: str
    unreadable: dict[str, str] = field(default_factory=dict)

    def key(self, key: str) -> str:
        """Return a key as in etcd's messages."""
        return b64(self.root.encode() + key_bytes(key))

    def span(self, prefix: str) -> tuple[bytes, bytes]:
        """Return the range of keys with a prefix: its first key, and the first key after it (range_end)."""
        start = self.root.encode() + prefix_bytes(prefix)
        return start, prefix_end(start)

    def name(self, kv: Message) -> str:
        """Return the key of a KeyValue message.

        Raises:
            ValueError: it is not UTF-8.
        """
        return base64.b64decode(kv["key"]).decode().removeprefix(self.root)

    def after(self, kv: Message) -> str:
        """Return the first possible key after that of a KeyValue message, for the next page."""
        return b64(base64.b64decode(kv["key"]) + b"\0")

    def operation(self, op: Put | Delete, txn: str) -> Message:
        """Return the RequestOp message for an operation. `txn`: the transaction's id."""
        if isinstance(op, Delete):
            return {"requestDeleteRange": {"key": self.key(op.key)}}
        text = f'{{"txn":"{txn}","value":{json_text(op.key, op.value)}}}'
        put = {"key": self.key(op.key), "value": b64(text.encode())}
        return {"requestPut": put if op.lease is None else {**put, "lease": str(op.lease)}}

    def record(self, kv: Message) -> Record:
        """Return the record of a KeyValue message.

        Raises:
            StoreError: another program wrote it; the text names the key.
        """
        try:
            key = self.name(kv)
            value = _envelope(kv)["value"]
            if not isinstance(value, dict):
                raise ValueError("its value is not an object")  # noqa: TRY301 - one message for all causes
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raw = base64.b64decode(kv["key"]).decode(errors="backslashreplace")
            raise StoreError(f"key {raw!r} in etcd is not a record of netplug; delete it with etcdctl") from exc
        return Record(key, value, number(kv, "mod_revision"))

    def readable(self, kv: Message) -> Record | None:
        """Return the record, or None (logged) if another program wrote it: one such key must not hide all others."""
        try:
            record = self.record(kv)
        except StoreError as exc:
            log.warning("store.record_ignored", reason=str(exc))
            key = base64.b64decode(kv["key"]).decode(errors="backslashreplace")
            self.unreadable[key.removeprefix(self.root)] = str(exc)
            return None
        self.unreadable.pop(record.key, None)
        return record

    def written_by(self, kv: Message, txn: str) -> bool:
        """Return whether transaction `txn` wrote this key."""
        try:
            return bool(_envelope(kv)["txn"] == txn)
        except (ValueError, KeyError, TypeError, RecursionError):
            return False


def _envelope(kv: Message) -> JsonObject:
    envelope = json.loads(base64.b64decode(kv.get("value", "")))
    if not isinstance(envelope, dict):
        raise ValueError("not an object")
    return envelope
