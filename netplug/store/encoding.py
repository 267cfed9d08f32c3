"""Encoding of keys and values, the same for every store.

Keys sort by their UTF-8 bytes, as in etcd, so all keys with one prefix are one range whatever characters they have.
"""

import json
from collections.abc import Sequence

from netplug.drivers.codec import JsonObject
from netplug.store.api import Delete, Put, StoreError


def prefix_bytes(prefix: str) -> bytes:
    """Encode a prefix. The empty prefix matches all keys."""
    try:
        return prefix.encode()
    except UnicodeEncodeError as exc:
        raise StoreError(f"key {prefix!r} is not valid unicode") from exc


def key_bytes(key: str) -> bytes:
    """Encode a key."""
    if not key:
        raise StoreError("a key cannot be empty")
    return prefix_bytes(key)


def prefix_end(prefix: bytes) -> bytes:
    r"""Return the first key after those with a prefix (etcd: range_end). UTF-8 has no byte 0xff, so there is no carry.

    >>> prefix_end(b"a/"), prefix_end(b"")
    (b'a0', b'\xff')
    """
    return prefix[:-1] + bytes([prefix[-1] + 1]) if prefix else b"\xff"


def json_text(key: str, value: JsonObject) -> str:
    """Encode a value as compact JSON."""
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise StoreError(f"record {key!r} cannot be encoded as json: {exc}") from exc


def check_keys(ops: Sequence[Put | Delete]) -> None:
    """Refuse a transaction with two operations on one key, as etcd does: their order is undefined."""
    if len({op.key for op in ops}) < len(ops):
        raise StoreError("a transaction has two operations on one key")
