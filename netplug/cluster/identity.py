"""The id of this host in the cluster, bound to the machine on which it was created, so that a copy cannot use it.

A copied disk contains the id. If the machine's marks differ from those stored with the id, the state is a copy or was
moved; only a user can tell which (`rebind`). A copy with equal marks is detected while the original is alive, see
`membership`. This is stored, so that the copy is not admitted while the original's daemon is stopped.

A host that is not admitted reads the shared store, but cannot write to it (`AdmissionGate`).
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
VTEP = "meta/vtep"
"""Where this host keeps its VTEP, once it had a shared store."""
NOT_YET = "this host has not reached the cluster's store yet"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NETNS = Path("/proc/self/ns/net")
_MACHINE = Path("/etc/machine-id")
_PRODUCT = Path("/sys/class/dmi/id/product_uuid")


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine on which a daemon runs.

    Attributes:
        place: the boot and the network namespace, which has one daemon at most.
        marks: hashes of ids that distinguish this machine from others, without those that cannot be read.
    """

    place: str
    marks: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls) -> Self:
        """Read the place and the marks of this machine."""
        marks = {}
        with contextlib.suppress(OSError):
            marks["machine-id"] = _hashed(_MACHINE.read_bytes().strip())
        with contextlib.suppress(OSError, ValueError):
            found = uuid.UUID(_PRODUCT.read_text().strip())
            # Kernels differ in the order of its first bytes (SMBIOS 3.0 7.2.1).
            marks["product"] = _hashed(min(found.bytes, found.bytes_le))
        return cls(f"{_BOOT.read_text().strip()}/{_NETNS.stat().st_ino}", marks)


class Identity:
    """The id of this host, with the state that decides whether it may be used here."""

    def __init__(self, store: Store, machine: Machine, ident: str, marks: Mapping[str, str], refused: str) -> None:
        self.id = ident
        self.machine = machine
        self._store = store
        self._marks = marks
        self._refused = refused

    @classmethod
    async def load(cls, store: Store, machine: Machine) -> Self:
        """Read the id. The first start creates it and binds it to this machine."""
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
        """Why this host is not admitted; empty if its state gives no reason."""
        if any(self.machine.marks.get(key, value) != value for key, value in self._marks.items()):
            return "this host's state was made on another machine: it is a copy, or was moved"
        return self._refused

    async def refuse(self, why: str) -> None:
        """Store that this is a copy of a host that is alive."""
        if self._refused != why:
            self._refused = why
            await self._save()

    async def rebind(self) -> None:
        """Bind the id to this machine, as the user requested."""
        self._marks, self._refused = dict(self.machine.marks), ""
        await self._save()

    async def _save(self) -> None:
        marks: JsonObject = dict(self._marks)
        value: JsonObject = {"id": self.id, "marks": marks, "refused": self._refused}
        await self._store.txn((), [Put(OWN, value)], durable=True)


class AdmissionGate:
    """The shared store, which refuses writes until `Membership` has admitted this host.

    `refusal`: why this host may not write; empty if it may.
    """

    def __init__(self, store: RestoreGuard) -> None:
        self.store = store
        self.refusal = NOT_YET

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Those of the store."""
        return self.store.unguarded.unreadable

    async def get(self, key: str) -> Record | None:
        return await self.store.get(key)

    async def range(self, prefix: str) -> tuple[list[Record], int]:
        return await self.store.range(prefix)

    async def txn(
        self, compares: Sequence[Compare], ops: Sequence[Put | Delete], *, durable: bool = False
    ) -> int | None:
        """Execute a transaction, as the store does.

        Raises:
            NotAdmitted: this host may not write; nothing was changed.
        """
        if self.refusal:
            raise NotAdmitted(self.refusal)
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
    """Hash a mark, since the machine id must be kept confidential (machine-id(5))."""
    return hashlib.sha256(b"netplug/" + mark).hexdigest()[:32]
