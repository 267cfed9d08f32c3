"""Removes networks without endpoints, as `docker network prune` does.

Docker's own networks are Docker's to prune. Kept too is what looks unused and is not: what podman has, whose networks
are in its files alone; what a container is just joining; what a container of another host is in; and what holds
addresses for containers that are to come back.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from netplug.drivers.naming import short
from netplug.engine.implicit_networks import ImplicitNetworks
from netplug.engine.networks import Networks
from netplug.engine.records import FrontEnd, NetworkRecord
from netplug.engine.registry import Registry
from netplug.errors import NetplugError, Reportable
from netplug.ipam.allocator import Allocator
from netplug.store.api import StoreError

log = structlog.get_logger(__name__)

_CREATING_S = 60.0
"""So long Docker may take to create a network, which it lists only then; it gives up on a plugin earlier."""

DockerKnows = Callable[[str], Awaitable[bool | None]]


@dataclass(frozen=True, slots=True)
class Label:
    """A label that a network may have. `value` None: with any value."""

    key: str
    value: str | None = None

    def on(self, record: NetworkRecord) -> bool:
        return self.key in record.labels and self.value in {None, record.labels[self.key]}


@dataclass(frozen=True, slots=True)
class NetworkFilter:
    """Which networks are meant: those with all `labels`, with none of `without`, and of one of `modes` (empty: any).

    `before`: only those created before this Unix time; 0: at any time.
    """

    labels: tuple[Label, ...] = ()
    without: tuple[Label, ...] = ()
    modes: frozenset[str] = frozenset()
    before: float = 0.0

    def __bool__(self) -> bool:
        return self != NetworkFilter()

    def admits(self, record: NetworkRecord, started: float) -> bool:
        """Tell whether a network is meant. `started`: one whose creation is unknown was created before that."""
        if self.before and (record.created or started) >= self.before:
            return False
        if self.modes and record.network.options.mode not in self.modes:
            return False
        return all(it.on(record) for it in self.labels) and not any(it.on(record) for it in self.without)


@dataclass(frozen=True, slots=True)
class Kept:
    """A network that was meant and stays, and why."""

    id: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Pruned:
    """What came of it. `removed`: with `dry_run`, what would be removed."""

    removed: tuple[NetworkRecord, ...] = ()
    kept: tuple[Kept, ...] = ()


class OtherHosts(Protocol):
    """What the other hosts of a cluster do with its networks."""

    async def refuse_used(self, record: NetworkRecord) -> None:
        """Refuse a network that another host uses.

        Raises:
            NetplugError: "forbidden", with the reason.
            StoreError: the store that the hosts share does not answer.
        """


class Pruning:
    """Removes unused networks. A network that cannot be removed does not stop the others.

    `other_hosts`: None on a host without a cluster.
    """

    def __init__(
        self, registry: Registry, networks: Networks, implicit_networks: ImplicitNetworks, allocator: Allocator
    ) -> None:
        self.other_hosts: OtherHosts | None = None
        self._registry = registry
        self._networks = networks
        self._implicit_networks = implicit_networks
        self._allocator = allocator
        self._started = time.time()

    async def prune(self, wanted: NetworkFilter, docker_knows: DockerKnows, *, dry_run: bool = False) -> Pruned:
        """Remove the networks that are meant and that nobody uses.

        `docker_knows`: tells whether Docker has a network, None if Docker does not answer. `dry_run`: change nothing.
        """
        removed: list[NetworkRecord] = []
        kept = [] if wanted else self._quarantined()
        for record in self._registry.networks():
            if not wanted.admits(record, self._started):
                continue
            try:
                await self._prune(record, docker_knows, dry_run=dry_run)
            except StoreError as exc:
                kept.append(_kept(record, f"store: {exc}"))
            except Exception as exc:
                if not isinstance(exc, Reportable) or exc.kind == "internal":
                    raise
                if exc.kind != "not_found":  # somebody else removed it meanwhile
                    kept.append(_kept(record, exc.message))
            else:
                removed.append(record)
        if removed and not dry_run:
            log.info("networks.pruned", networks=[record.network.name for record in removed], kept=len(kept))
        return Pruned(tuple(removed), tuple(kept))

    async def _prune(self, record: NetworkRecord, docker_knows: DockerKnows, *, dry_run: bool) -> None:
        """Remove a network, unless somebody uses it."""
        ident, docker = record.network.id, record.front_end is FrontEnd.DOCKER
        self._refuse_used(record)
        if docker:
            await _refuse_dockers(record, docker_knows)
        elif self.other_hosts is not None:
            await self.other_hosts.refuse_used(record)
        async with self._implicit_networks.unjoined(record.network.name):
            if not dry_run:
                await self._networks.delete(ident, by=FrontEnd.CLI, orphaned=docker)

    def _refuse_used(self, record: NetworkRecord) -> None:
        unusable = self._registry.quarantine.endpoints_in(record.network.id)
        if count := len(self._registry.endpoints(record.network.id)) + len(unusable):
            raise _used(f"it has {count} endpoints" if count > 1 else "it has an endpoint")
        if record.front_end is FrontEnd.NETAVARK:
            raise _used("podman may have it, which keeps its networks itself")
        if names := sorted({lease.owner.name for pool in record.pools for lease in self._allocator.retained(pool)}):
            raise _used(f"it keeps addresses for {', '.join(names[:3])}{' and others' if len(names) > 3 else ''}")

    def _quarantined(self) -> list[Kept]:
        quarantine = self._registry.quarantine
        return [Kept(net.id, net.name, "it cannot be used: see netplug diff") for net in quarantine.known()]


async def _refuse_dockers(record: NetworkRecord, docker_knows: DockerKnows) -> None:
    """Refuse a network that a Docker may have: not only the one that we listen to uses the plugin."""
    if not record.claimed or time.time() - record.created < _CREATING_S:
        raise _used("docker made it: docker network prune")
    known = await docker_knows(record.network.id)
    if known is not False:
        raise _used("docker has it: docker network prune" if known else "docker does not answer whether it has it")


def _used(reason: str) -> NetplugError:
    return NetplugError("forbidden", reason)


def _kept(record: NetworkRecord, reason: str) -> Kept:
    log.debug("network.kept", network=short(record.network.id), reason=reason)
    return Kept(record.network.id, record.network.name, reason)
