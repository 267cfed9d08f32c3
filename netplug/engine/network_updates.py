"""Use case of a network that lives: other options, labels or subnets, under its endpoints.

What is wanted is checked as when a network is created, and refused without a change. The rest follows from the changed
record (`Convergence`).
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

import structlog

from netplug.drivers.api import HostFacts, Network, Scope
from netplug.drivers.naming import short
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import LINK, IPNetwork
from netplug.engine.addressing import Addressing, Subnets
from netplug.engine.base_plan import BasePlan
from netplug.engine.convergence import Change, Convergence
from netplug.engine.network_checks import keep_subnets, refuse_labels, refuse_sticky, refuse_subnets
from netplug.engine.publishing import Publishing
from netplug.engine.records import EndpointRecord, NetworkRecord, NetworkSpec, Origin, SubnetSpec
from netplug.engine.registry import Registry
from netplug.engine.update_notes import notes
from netplug.engine.way_out import WayOut, tolerant
from netplug.errors import NetplugError
from netplug.tasks.uncancellable import uncancellable

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class NetworkChange:
    """What shall be otherwise. `options`: raw; an empty value means the default. `internal` None: as it is.

    `labels`: to set; `unlabel`: keys of those to remove. `add`, `remove`: subnets.
    """

    options: Mapping[str, str] = field(default_factory=dict)
    internal: bool | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    unlabel: tuple[str, ...] = ()
    add: tuple[SubnetSpec, ...] = ()
    remove: tuple[IPNetwork, ...] = ()

    def options_after(self, before: Mapping[str, str], mode: str, drivers: Drivers) -> dict[str, str]:
        """Return raw options after the change. What has the default by an empty value is left out."""
        given = {drivers.declared(key, mode).key: text for key, text in self.options.items()}
        kept = {key: text for key, text in before.items() if drivers.declared(key, mode).key not in given}
        return kept | {key: text for key, text in given.items() if text}

    def labels_after(self, before: Mapping[str, str]) -> dict[str, str]:
        """Return labels after the change."""
        return {key: text for key, text in {**before, **self.labels}.items() if key not in self.unlabel}

    def internal_after(self, before: bool) -> bool:
        """Return whether the network is internal after the change."""
        return before if self.internal is None else self.internal


@dataclass(frozen=True, slots=True)
class Updated:
    """A network after an update, or as it would be. `notes`: what present containers do not get, and why."""

    record: NetworkRecord
    changes: Sequence[Change] = ()
    notes: tuple[str, ...] = ()


class Cluster(Protocol):
    """Updates networks that are on several hosts, by `NetworkUpdates.update_here` on each."""

    async def update(self, record: NetworkRecord, change: NetworkChange, *, dry_run: bool) -> Updated:
        """Update a network on all hosts; see `NetworkUpdates.update`."""


class _DryRunError(Exception):
    """A dry run has its answer: what was taken for it is given back."""


class NetworkUpdates:
    """Updates networks, each under its own lock. An update that fails changes nothing.

    `cluster`: None on a host without a cluster.
    """

    def __init__(
        self,
        registry: Registry,
        base_plan: BasePlan,
        convergence: Convergence,
        addressing: Addressing,
        publishing: Publishing,
        way_out: WayOut,
        drivers: Drivers,
    ) -> None:
        self._registry = registry
        self._base_plan = base_plan
        self._convergence = convergence
        self._addressing = addressing
        self._publishing = publishing
        self._way_out = way_out
        self._drivers = drivers
        self.cluster: Cluster | None = None

    async def update(self, ref: str, change: NetworkChange, *, dry_run: bool = False) -> Updated:
        """Update a network: on this host, or on all hosts that it is on. `dry_run`: only tell what would change.

        Raises:
            NetplugError, DriverError, IpamError: and nothing was changed.
            StoreError: the store does not answer.
        """
        record = self._registry.network(ref)
        if self._drivers.of(record.network).scope is not Scope.CLUSTER:
            return await self.update_here(record.network.id, change, dry_run=dry_run)
        if self.cluster is None:
            words = f"network {record.network.name!r} is on several hosts, and cannot be changed on one of them"
            raise NetplugError("unavailable", words, hint="create another network")
        return await self.cluster.update(record, change, dry_run=dry_run)

    @uncancellable
    async def update_here(self, ident: str, change: NetworkChange, *, dry_run: bool = False) -> Updated:
        """Update a network on this host; see `update`."""
        host = await self._base_plan.read_host()
        async with self._registry.lock(ident):
            before = self._registry.network(ident)
            async with self._taken(before, change, host, dry_run=dry_run) as wanted:
                if dry_run:
                    steps, endpoints = await self._convergence.preview(wanted)
                    ways = self._way_out.preview(wanted.network, endpoints)
                    changes = list(dict.fromkeys([*steps, *self._publishing.preview(wanted), *ways]))
                    return Updated(wanted, changes, notes(before, wanted, self._registry.endpoints(ident)))
                changes = await self._bring_about(before, wanted)
            await self._addressing.give_back(before, wanted, self._registry.networks())
            ways = self._way_out.preview(wanted.network, self._registry.endpoints(ident))
            changes = list(dict.fromkeys([*changes, *ways]))
        await self._settle(before, wanted)
        log.info("network.updated", network=short(ident), name=before.network.name, steps=len(changes))
        now = self._registry.network(ident)
        said = (*notes(before, now, self._registry.endpoints(ident)), *self._publishing.missed(ident))
        return Updated(now, changes, said)

    async def _bring_about(self, before: NetworkRecord, wanted: NetworkRecord) -> list[Change]:
        present = self._registry.all_networks
        try:
            with self._registry.becoming(wanted.network):  # what it needs of the shared plan stays meanwhile
                if wanted.network.families() != before.network.families():
                    await self._base_plan.ensure(present)
                ports = self._publishing.preview(wanted)
                return list(dict.fromkeys([*await self._convergence.change(wanted), *ports]))
        except BaseException:
            await self._base_plan.trim(present)
            raise

    async def _settle(self, before: NetworkRecord, wanted: NetworkRecord) -> None:
        """Bring about what follows beside the plans of this network. No lock is held."""
        if wanted.network == before.network:
            return
        await self._publishing.converge(wanted.network.id)
        for sandbox, ident in {(one.sandbox, one.sandbox_id) for one in self._registry.endpoints(wanted.network.id)}:
            with tolerant(sandbox):
                await self._way_out.converge(sandbox, ident)
        if wanted.network.families() != before.network.families():
            await self._base_plan.trim(self._registry.all_networks)

    @asynccontextmanager
    async def _taken(
        self, before: NetworkRecord, change: NetworkChange, host: HostFacts, *, dry_run: bool
    ) -> AsyncIterator[NetworkRecord]:
        """Yield the changed record. Subnets that it adds are given back after a dry run, or if the block fails."""
        driver, endpoints = self._drivers.of(before.network), self._registry.endpoints(before.network.id)
        host = _apart(host, before, endpoints)
        net = self._wanted(before, change, host)
        raw = change.options_after(before.options, before.network.options.mode, self._drivers)
        spec = NetworkSpec(net.id, net.name, raw, change.add, net.internal, before.front_end)
        if not driver.addressed:
            refuse_subnets(net, spec)
        labels = change.labels_after(before.labels)
        refuse_labels(net, labels)
        refuse_sticky(net, spec.options, external=self._addressing.external(before.pools))
        kept = keep_subnets(before, change.remove, change.add, endpoints)
        net, pools = replace(net, subnets=tuple(kept)), tuple(kept.values())
        others = [other for other in self._registry.all_networks() if other.id != net.id]
        others += self._registry.quarantine.known()
        async with AsyncExitStack() as undo:
            await self._addressing.retain(net.id, pools, net.options.sticky, undo)
            with suppress(_DryRunError):
                async with self._more_subnets(net, spec, others, host) as more:
                    net = replace(net, subnets=net.subnets + more.subnets)
                    driver.check(net, others, host)
                    yield replace(
                        before,
                        network=net,
                        pools=pools + more.pools,
                        options=spec.options,
                        labels=labels,
                        origin=_origin(before, net, spec.options),
                    )
                    if dry_run:
                        raise _DryRunError
                undo.pop_all()

    def _more_subnets(
        self, net: Network, spec: NetworkSpec, others: Sequence[Network], host: HostFacts
    ) -> AbstractAsyncContextManager[Subnets]:
        return self._addressing.subnets(
            net,
            spec,
            others=[*others, net],
            avoid=[route for route, _ in host.routes],
            gateway=self._drivers.of(net).gateway,
            removal=lambda _: "",
        )

    def _wanted(self, before: NetworkRecord, change: NetworkChange, host: HostFacts) -> Network:
        """Return the network with other options; its subnets are as they were."""
        net = before.network
        options = self._drivers.changed(net.options, change.options)
        options = self._drivers.of(net).complete(options, host)
        return replace(net, options=options, internal=change.internal_after(net.internal))


def _origin(before: NetworkRecord, net: Network, options: Mapping[str, str]) -> Origin | None:
    """Return how the network was created, if it is not so any more."""
    if before.origin is None and (options, net.internal) == (before.options, before.network.internal):
        return None
    return before.origin or Origin(before.options, internal=before.network.internal)


def _apart(host: HostFacts, record: NetworkRecord, endpoints: Sequence[EndpointRecord]) -> HostFacts:
    """Return the facts of the host as if a network were not there."""
    plans = (record.plan.without(record.used), *(endpoint.plan for endpoint in endpoints))
    keys = (step.key for plan in plans for step in plan)
    names = {key.removeprefix(LINK) for key in keys if key.startswith(LINK)}
    return replace(
        host,
        links=tuple(link for link in host.links if link.name not in names),
        routes=tuple(item for item in host.routes if item[1] not in names),
        addresses=tuple(item for item in host.addresses if item[1] not in names),
    )
