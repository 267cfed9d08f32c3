"""Infers which container a requested address is for, since Docker before 29.0 does not name it.

Docker's API must not be called while Docker waits for the answer, and events may arrive late. But Docker's files are
current: it writes a container and its networks to disk before it starts the container, also when a stopped container is
connected to a network, which causes no event. And it mounts the file system before it sets up the network. So the
container is one of those in the network that have no endpoint there and are mounted (if the storage driver shows that).
If there is exactly one, that is it. Otherwise the result is unknown: the address of another container would be worse
than a new one.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog

from netplug.engine import Engine
from netplug.engine.records import FrontEnd, NetworkRecord
from netplug.ipam.lease import OwnerKind

log = structlog.get_logger(__name__)

READ_TIMEOUT_S = 2.0
"""Deadline, since Docker waits. A container takes 30 µs if its file is unchanged, otherwise 100 µs."""
OVERLAYS = frozenset({"overlay2", "fuse-overlayfs"})
"""Storage drivers whose folder `merged` exists only while a container is mounted."""


class DockerFacts(Protocol):
    """Facts about Docker that are known already: its data folder, and the names of its networks by id."""

    @property
    def root(self) -> Path | None: ...

    @property
    def networks(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True)
class Container:
    """A container in Docker's files. `networks`: names and ids."""

    name: str
    driver: str
    networks: frozenset[str]


class ContainerInference:
    """Infers the container of a request; see above."""

    def __init__(self, engine: Engine, docker: DockerFacts) -> None:
        self._engine = engine
        self._docker = docker
        self._read: dict[Path, tuple[tuple[int, int], Container]] = {}

    async def name(self, pool_id: str) -> str:
        """Return the name of the container for which Docker requests an address of a pool; empty if unknown.

        Files are read only if the pool retains addresses, which the name could restore.
        """
        record, root = self._network(pool_id), self._docker.root
        called = self._docker.networks.get(record.network.id, "") if record else ""
        if record is None or root is None or not called or not any(self._engine.allocator.retained(pool_id)):
            return ""
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                starting = await asyncio.to_thread(self._starting, root, record.network.id, called)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, TimeoutError) as exc:
            log.warning("caller.unreadable", root=str(root), error=str(exc))
            return ""
        present = self._present(pool_id, record)
        if present is None:
            return ""
        names = [item.name for ident, item in starting.items() if ident not in present and item.name not in present]
        log.debug("caller.inferred", network=record.network.name, candidates=names)
        return names[0] if len(names) == 1 else ""

    def _network(self, pool_id: str) -> NetworkRecord | None:
        pool = self._engine.allocator.pool(pool_id)
        if pool is None or not pool.sticky_s:
            return None
        return next((r for r in self._engine.registry.networks() if r.network.id in pool.holders), None)

    def _present(self, pool_id: str, record: NetworkRecord) -> set[str] | None:
        """Return ids and names of the containers that have an address; None if some are unknown."""
        present = set()
        for lease in self._engine.allocator.leases(pool_id):
            name = lease.owner.name
            if lease.owner.kind is OwnerKind.ENDPOINT:
                built = self._engine.registry.find(record.network.id, lease.owner.id)
                if built is not None and built.front_end is not FrontEnd.DOCKER:
                    continue
                name = (built.container or built.name) if built is not None else ""
            elif lease.owner.kind is not OwnerKind.PENDING:
                continue
            if not name:
                return None
            present.add(name)
        return present

    # In a thread

    def _starting(self, root: Path, network: str, called: str) -> dict[str, Container]:
        """Return the containers of a network, by id, except those that are not mounted."""
        found = {}
        folders = list((root / "containers").iterdir())
        self._read = {folder: self._read[folder] for folder in folders if folder in self._read}
        for folder in folders:
            try:
                container = self._parsed(folder)
            except FileNotFoundError:
                continue  # being created or removed, so not starting
            belongs = called in container.networks or any(network.startswith(item) for item in container.networks)
            if belongs and _mounted(root, container.driver, folder.name) is not False:
                found[folder.name] = container
        return found

    def _parsed(self, folder: Path) -> Container:
        path = folder / "config.v2.json"
        status = path.stat()
        mark = (status.st_mtime_ns, status.st_ino)
        known = self._read.get(folder)
        if known is None or known[0] != mark:
            known = self._read[folder] = mark, _container(json.loads(path.read_bytes()))
        return known[1]


def _container(data: Any) -> Container:
    networks = (data["NetworkSettings"] or {}).get("Networks") or {}
    ids = ((item or {}).get("NetworkID") for item in networks.values())
    return Container(data["Name"].lstrip("/"), data.get("Driver", ""), frozenset(filter(None, (*networks, *ids))))


def _mounted(root: Path, driver: str, ident: str) -> bool | None:
    """Tell whether a container's file system is mounted; None if the storage driver does not show it."""
    if driver not in OVERLAYS:
        return None
    try:
        layer = (root / "image" / driver / "layerdb" / "mounts" / ident / "mount-id").read_text().strip()
    except OSError:
        return None
    return (root / driver / layer / "merged").exists()
