"""Who this host is to the others, bound to the machine on which that was made up, so that a copy of it is nobody.

A copied disk brings the id along. Where marks of the machine differ from those kept beside the id, it is a copy, or was
moved; only a user can tell (`rebind`). A copy that has the same marks is found out when the original lives: see
`membership`. That is remembered, lest it come in when the original's daemon is away for a moment.

A host that is not let in reads the store, and writes nothing to it (`Gate`).
"""

import contextlib
import hashlib
import secrets
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from netplug.cluster.claims import NotAdmitted
from netplug.drivers.codec import JsonObject
from netplug.store.api import Compare, Delete, Event, Put, Record, Store
from netplug.store.restore_guard import RestoreGuard

OWN = "meta/host"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NETNS = Path("/proc/self/ns/net")
_MACHINE = Path("/etc/machine-id")
_PRODUCT = Path("/sys/class/dmi/id/product_uuid")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a daemon runs.

    `place`: a network namespace of one boot, which has one daemon at the most. `marks`: what tells this machine from
    others, hashed; those that cannot be read are left out.
    """

    place: str
    marks: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls) -> Self:
        """Read both of this machine."""
        marks = {}
        with contextlib.suppress(OSError):
            marks["machine-id"] = _hashed(_MACHINE.read_bytes().strip())
        with contextlib.suppress(OSError, ValueError):
            found = uuid.UUID(_PRODUCT.read_text().strip())
            # Kernels differ in the order of its first bytes (SMBIOS 3.0 7.2.1).
            marks["product"] = _hashed(min(found.bytes, found.bytes_le))
        return cls(f"{_BOOT.read_text().strip()}/{_NETNS.stat().st_ino}", marks)


class Identity:
    """The id of this host. `load` it; `why` it is not let in, if the state here says so."""

    def __init__(self, store: Store, machine: Machine, ident: str, marks: Mapping[str, str], refused: str) -> None:
        self.id = ident
        self.machine = machine
        self._store = store
        self._marks = marks
        self._refused = refused

    @classmethod
    async def load(cls, store: Store, machine: Machine) -> Self:
        """Read the id; it is made up at the first start, and bound to this machine."""
        record = await store.get(OWN)
        known = record.value if record else {}
        kept = known.get("marks")
        marks = {str(key): str(value) for key, value in kept.items()} if isinstance(kept, dict) else {}
        ident = str(known.get("id") or secrets.token_hex(16))
        it = cls(store, machine, ident, {**machine.marks, **marks}, str(known.get("refused", "")))
        if not known or it._marks != marks:
            await it._save()
        return it

    @property
    def why(self) -> str:
        """Why this host is not let in; empty where nothing here speaks against it."""
        if any(self.machine.marks.get(key, value) != value for key, value in self._marks.items()):
            return "this host's state was made on another machine: it is a copy, or was moved"
        return self._refused

    async def refuse(self, why: str) -> None:
        """Remember that this is a copy of a host that lives."""
        if self._refused != why:
            self._refused = why
            await self._save()

    async def rebind(self) -> None:
        """Bind the id to this machine, as a user wants it."""
        self._marks, self._refused = dict(self.machine.marks), ""
        await self._save()

    async def _save(self) -> None:
        marks: JsonObject = dict(self._marks)
        value: JsonObject = {"id": self.id, "marks": marks, "refused": self._refused}
        await self._store.txn((), [Put(OWN, value)], durable=True)


class Gate:
    """The store that hosts share, as all but `membership` see it.

    `shut`: why this host may not write; empty: it may.
    """

    def __init__(self, store: RestoreGuard) -> None:
        self.store = store
        self.shut = "this host has not reached the cluster's store yet"

    async def get(self, key: str) -> Record | None:
        return await self.store.get(key)

    async def range(self, prefix: str) -> tuple[list[Record], int]:
        return await self.store.range(prefix)

    async def txn(
        self, compares: Sequence[Compare], ops: Sequence[Put | Delete], *, durable: bool = False
    ) -> int | None:
        """As the store's.

        Raises:
            NotAdmitted: nothing was done.
        """
        if self.shut:
            raise NotAdmitted(self.shut)
        return await self.store.txn(compares, ops, durable=durable)

    async def lease(self, ttl_s: float) -> int:
        return await self.store.lease(ttl_s)

    async def keep_alive(self, lease: int) -> bool:
        return await self.store.keep_alive(lease)

    async def revoke(self, lease: int) -> None:
        await self.store.revoke(lease)

    def watch(
        self, prefix: str, revision: int, *, anchor: Callable[[], Compare | None] | None = None
    ) -> AsyncIterator[Event]:
        return self.store.watch(prefix, revision, anchor=anchor)

    async def reconnect(self) -> None:
        await self.store.reconnect()

    async def close(self) -> None:
        await self.store.close()


def _hashed(mark: bytes) -> str:
    """A machine's id is not to be told (machine-id(5))."""
    return hashlib.sha256(b"netplug/" + mark).hexdigest()[:32]
