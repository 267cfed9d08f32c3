"""Connects this host with the hosts that share networks with it through a store.

Everything is level-triggered. Each loop compares desired and actual state: definitions with this host's networks, this
host's endpoints with those advertised, endpoints of other hosts with the kernel. Events only trigger a comparison; a
timer triggers all. While the store is unreachable, nothing changes, and traffic continues.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from netplug.cluster.adverts import Adverts
from netplug.cluster.answers import Answers
from netplug.cluster.audit import audit
from netplug.cluster.barrier import Barrier
from netplug.cluster.catalogue import Catalogue
from netplug.cluster.claim_holders import ClaimHolders
from netplug.cluster.claims import SharedLeases
from netplug.cluster.following import Following
from netplug.cluster.host_happenings import HostHappenings
from netplug.cluster.hosts import Host, Hosts
from netplug.cluster.identity import AdmissionGate, Identity
from netplug.cluster.membership import Membership
from netplug.cluster.mirroring import Mirroring
from netplug.cluster.networks import Definitions
from netplug.cluster.peering import Peering
from netplug.cluster.questions import Questions
from netplug.cluster.records import (
    EndpointAdvert,
    duplicate_vtep,
    endpoint_key,
    ident_of,
)
from netplug.cluster.recovery import Recovery
from netplug.cluster.underlay import Underlay
from netplug.cluster.updating import Updating
from netplug.cluster.view import View, name_of
from netplug.drivers.api import meshed
from netplug.drivers.naming import short
from netplug.drivers.steps import IPAddress
from netplug.engine import Engine
from netplug.engine.audit import Finding
from netplug.engine.conditions import Difference
from netplug.engine.records import EndpointRecord, NetworkRecord
from netplug.errors import NetplugError
from netplug.ipam.lease import Lease, OwnerKind
from netplug.store.api import Delete, Store, StoreError, Unreachable
from netplug.tasks.request import begin_work_of

log = structlog.get_logger(__name__)

INTERVAL_S = 30.0
"""Interval of comparisons without an event."""
START_S = 1.0
"""Longest wait of a start for the store; dockerd waits 15 s for a plugin."""


class Cluster:
    """The cluster as the engine and the front ends see it (`EndpointListener`). `me`: this host's id."""

    def __init__(
        self,
        engine: Engine,
        local: Store,
        store: AdmissionGate,
        leases: SharedLeases,
        *,
        identity: Identity,
        name: str,
        underlay: Underlay,
    ) -> None:
        self.me = me = identity.id
        self._guard = guard = store.store
        self.view = View(guard)
        self.membership = Membership(
            store, self.view, leases.breaker, identity, engine.conditions, name=name, vtep=underlay.vtep
        )
        self.membership.happenings = engine.happenings
        self._host_happenings = HostHappenings(self.view, engine.happenings, me)
        self.barrier = Barrier(store, self.view, self.membership)
        self.questions = Questions(store, self.view, self.membership, leases.breaker, engine.supervisor)
        Answers(self.questions, engine.kernel, self.membership, name)
        catalogue = Catalogue(store, local, self.view, me)
        following = Following(store, self.view, me)
        self.mirroring = Mirroring(engine, store, self.view, catalogue, following, leases.breaker, me)
        self.mirroring.on_update = underlay.wake
        self.networks = Definitions(engine, store, self.view, self.mirroring, me)
        self._adverts = Adverts(engine, store, self.view, self.mirroring, me)
        self._recovery = Recovery(
            engine, local, guard, self.view, self.membership, self.mirroring, leases, self._adverts.of
        )
        self._hosts = Hosts(store, self.networks, catalogue, me, self.view.hosts())
        self.leases = leases
        self._underlay = underlay
        underlay.on_move, underlay.on_notes = self._on_vtep_moved, self._on_notes
        engine.base_plan.vtep = underlay.vtep
        engine.endpoints.listener = self
        engine.networks.cluster = self.networks
        engine.network_updates.cluster = Updating(engine, store, self.view, self.mirroring, following, leases, me)
        engine.pruning.other_hosts = self
        self._breaker = leases.breaker
        self._engine = engine
        self._local = local
        self._store = store
        self._reconnect = store.reconnect
        self._lost: frozenset[str] = frozenset()
        self._joined_in = 0
        """The epoch in which the shared store was found to have this host's Docker as a user of its networks."""
        self._claimed = ClaimHolders(guard)
        complete = self._recovery.complete
        self.peering = Peering(engine, self.view, self._claimed, self.mirroring, self.barrier, me, complete=complete)
        self._networks_due = asyncio.Event()
        self._peers_due = asyncio.Event()

    # Requests of front ends

    async def leases_of(self, pool: str) -> list[tuple[Lease, str]]:
        """Return the leases of a pool with the names of their hosts; the name is empty for gateways.

        Raises:
            StoreError: the store does not answer.
        """
        with self._breaker.request():
            found = await self.leases.claims(pool)
        return [(claim.lease, name_of(self.view, claim.host) if claim.host else "") for claim in found]

    def remote_endpoints(self, network: NetworkRecord) -> list[tuple[str, str, EndpointAdvert]]:
        """Return a network's endpoints on other hosts: name of the host, id, and advert.

        Raises:
            Unreachable: the store does not answer.
        """
        ident = ident_of(network)
        if ident not in self.mirroring.shared():
            return []
        self._breaker.check()
        if not self.view.synced.is_set():
            raise Unreachable("the endpoints of other hosts have not been read from the shared store yet")
        return self.view.remote_endpoints(ident, self.me)

    async def refuse_used(self, record: NetworkRecord) -> None:
        """Refuse a network that has endpoints, a Docker, or containers to come back on any host.

        Raises:
            NetplugError: "forbidden"; the message names the hosts.
            StoreError: the store does not answer.
        """
        ident = ident_of(record)
        if ident not in self.mirroring.shared():
            return
        with self._breaker.request():
            await self.mirroring.catalogue.refuse_used(ident, record.network.name)
            for pool in record.pools:
                for claim in await self.leases.claims(pool):
                    if claim.lease.owner.kind is OwnerKind.KEPT:
                        words = f"it keeps addresses for {claim.lease.owner.name} on {name_of(self.view, claim.host)}"
                        raise NetplugError("forbidden", words)

    async def hosts(self) -> list[Host]:
        """Return the hosts of the cluster; see `Hosts.all`."""
        with self._breaker.request():
            return await self._hosts.all()

    async def forget(self, ref: str) -> Host:
        """Delete all records of a dead host; see `Hosts.forget`."""
        with self._breaker.request():
            return await self._hosts.forget(ref)

    async def rebind(self) -> None:
        """Use this host's id on this machine, to which its state was moved; see `Membership.rebind`."""
        with self._breaker.request():
            await self.membership.rebind()

    async def audit(self) -> list[Finding]:
        """Return faults of the addresses of other hosts; see `audit`.

        Raises:
            StoreError: the store does not answer.
        """
        with self._breaker.request():
            return await audit(self._engine, self.view, self.leases, self.mirroring.shared(), self.me)

    # EndpointListener

    async def joined(self, record: EndpointRecord) -> None:
        """Advertise an endpoint. If the store does not answer, or refuses, `_reconcile_networks` does it later.

        Raises:
            NetplugError: "unavailable": the network is being deleted.
        """
        if not (network := self._cluster_id(record)):
            return
        if first := self.view.duplicate_vteps().get(self.me):
            words = f"this host's VTEP belongs to host {name_of(self.view, first)}, which had it first"
            raise NetplugError("unavailable", words, hint="give one of them another address, or another --vtep")
        try:
            with self._breaker.request():
                await self._adverts.publish(network, record)
        except StoreError as exc:
            self._log_unpublished(network, record, exc)

    async def settled(self, record: EndpointRecord) -> None:
        """Wait until the other hosts reach an advertised endpoint by address and by name; see `Barrier`."""
        if revision := self._adverts.published.get(record.endpoint.id):
            await self.barrier.passed(revision)

    async def left(self, record: EndpointRecord) -> None:
        """Withdraw an endpoint. If the store does not answer, `_reconcile_networks` does it later."""
        self._adverts.published.pop(record.endpoint.id, None)
        if not (network := self._cluster_id(record)):
            return
        try:
            with self._breaker.request():
                await self._store.txn([], [Delete(endpoint_key(network, self.me, record.endpoint.id))])
        except StoreError as exc:
            self._log_unpublished(network, record, exc)

    def _log_unpublished(self, network: str, record: EndpointRecord, exc: StoreError) -> None:
        log.warning("endpoint.untold", endpoint=short(record.endpoint.id), reason=str(exc))
        if not isinstance(exc, Unreachable):  # unlike a store that answers again, this has no event
            self.mirroring.soon(network)

    def _cluster_id(self, record: EndpointRecord) -> str:
        """Return the cluster's id of an endpoint's network; empty for a network of this host only."""
        network = self._engine.registry.network(record.endpoint.network)
        driver = self._engine.drivers.of(network.network)
        return ident_of(network) if meshed(driver) else ""

    # Background work

    async def start(self) -> None:
        """Register, and identify the cluster. Without the store, this host's own networks work."""
        await self._recovery.load()
        try:
            async with asyncio.timeout(START_S):
                await self.membership.heartbeat()
                if self.membership.admitted:
                    await self._recovery.identify()
        except (TimeoutError, Unreachable) as exc:
            self._breaker.answers = False
            self._breaker.await_first_answer()
            log.warning("cluster.unreachable", reason=str(exc) or f"no answer in {START_S:g} s")
        except StoreError as exc:
            log.warning("cluster.refused", reason=str(exc))

    def begin_to_stop(self) -> None:
        """Let requests wait no longer for the store's first answer."""
        self._breaker.begin()

    async def run(self) -> None:
        """Take part in the cluster until cancelled."""
        begin_work_of("cluster", "what the shared store says")
        keep = self._engine.supervisor.keep
        tasks = {"underlay": self._underlay.run, "view": self.view.follow, "membership": self.membership.run}
        tasks |= {"barrier": self.barrier.run, "recovery": self._recovery.run, "timer": self._dispatch}
        tasks |= {"claims": self._claimed.follow, "routes": self._underlay.watch_routes}
        tasks |= {"questions": self.questions.run}
        try:
            async with asyncio.TaskGroup() as group:
                for name, work in tasks.items():
                    group.create_task(keep(f"cluster.{name}", work))
                group.create_task(
                    self._keep_reconciling("cluster.networks", self._networks_due, self._reconcile_networks)
                )
                group.create_task(self._keep_reconciling("cluster.peers", self._peers_due, self.peering.reconcile))
        finally:
            try:
                async with asyncio.timeout(START_S):
                    with suppress(StoreError):
                        await self._guard.mark()
                    await self.membership.leave()
            except (TimeoutError, StoreError) as exc:
                log.debug("host.lease_left", reason=str(exc))

    async def _on_vtep_moved(self, vtep: IPAddress) -> None:
        """Announce a new VTEP. Reconnect to the store, since connections from the old address may be dead unnoticed."""
        self.membership.vtep = vtep
        await self._reconnect()
        self.membership.wake()
        self.view.touch_all()

    def _on_notes(self, notes: tuple[str, ...]) -> None:
        self.mirroring.retry()
        if notes != self.membership.notes:
            self.membership.notes = notes
            self.membership.wake()

    def _compare_hosts(self) -> None:
        """Report hosts with the same VTEP, and records that cannot be read."""
        pairs = sorted(self.view.duplicate_vteps().items())
        found = [
            Difference(f"host {name_of(self.view, it)}", "vtep", self._shared_vtep(it, first)) for it, first in pairs
        ]
        unreadable = {**self._guard.unguarded.unreadable, **self.view.unreadable}
        found += [Difference("store", key, why) for key, why in sorted(unreadable.items())]
        self._engine.conditions.report("hosts", found)

    def _shared_vtep(self, ident: str, first: str) -> str:
        return duplicate_vtep(self.view.hosts()[ident].vtep, name_of(self.view, first))

    async def _dispatch(self) -> None:
        """Trigger the comparisons that a change needs, and all of them on a timer."""
        await self.view.synced.wait()
        known: dict[str, str] = {}
        loop = asyncio.get_running_loop()
        due = loop.time() + INTERVAL_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self.view.changed.wait()
            if loop.time() >= due:
                due = loop.time() + INTERVAL_S
                self.view.touch_all()
            self.view.changed.clear()
            self._compare_hosts()
            self._host_happenings.compare()
            if (copies := dict(self.view.copies(self.me))) != known:
                known = copies
                self.membership.wake()
            if self.view.redefined:
                self.view.redefined = False
                self._networks_due.set()
            if self.view.touched:
                self._peers_due.set()

    async def _keep_reconciling(self, name: str, wanted: asyncio.Event, look: Callable[[], Awaitable[None]]) -> None:
        while True:
            await wanted.wait()
            wanted.clear()
            if delay_s := await self._engine.supervisor.attempt(name, look()):
                asyncio.get_running_loop().call_later(delay_s, wanted.set)

    # Networks, claims and adverts

    async def _reconcile_networks(self) -> None:
        if not self.membership.admitted:
            return  # admission triggers it again
        await self._recovery.identify()
        await self.membership.ensure()
        await self.mirroring.mirror()
        await self.networks.resume_releases()
        if (epoch := self.membership.epoch) != self._joined_in:
            await self.networks.join_again()
            self._joined_in = epoch
        await self._reconcile_claims()
        failed: list[Exception] = []
        for network, record in self.mirroring.shared().items():
            try:
                await self._adverts.publish_all(network, record.network.id, self._lost)
            except Unreachable:
                raise
            except Exception as exc:  # noqa: BLE001 - one network keeps no other from being advertised of
                failed.append(exc)
        if failed:
            raise ExceptionGroup("networks whose endpoints could not all be advertised", failed)

    async def _reconcile_claims(self) -> None:
        """Reconcile this host's claims. Addresses that another host has claimed are lost."""
        pools = {pool for record in self.mirroring.shared().values() for pool in record.pools}
        lost = await self.leases.reconcile(pools)
        for lease, host in lost:
            if lease.owner.id not in self._lost:
                log.error("address.lost", address=str(lease.address), owner=str(lease.owner), host=short(host))
        self._lost = frozenset(lease.owner.id for lease, _ in lost)
