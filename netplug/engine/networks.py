"""Use cases of networks: create, delete, name."""

import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Protocol

import structlog

from netplug.drivers.api import Network, Scope
from netplug.drivers.naming import short
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import IPAddress, IPNetwork
from netplug.engine.addressing import Addressing
from netplug.engine.base_plan import BasePlan
from netplug.engine.endpoints import Endpoints
from netplug.engine.journal import Intent, Journal
from netplug.engine.lost_answers import LostAnswers
from netplug.engine.network_checks import refuse_sticky, refuse_subnets
from netplug.engine.peers import Peers
from netplug.engine.records import CREATED, NETWORKS, FrontEnd, NetworkRecord, NetworkSpec
from netplug.engine.registry import Registry, put
from netplug.errors import NetplugError
from netplug.ipam.pool import EXTERNAL
from netplug.store.api import Put
from netplug.tasks.uncancellable import uncancellable

log = structlog.get_logger(__name__)


class Cluster(Protocol):
    """Makes networks that are on several hosts, by `Networks.build` and `Networks.take_down` on each host."""

    async def create(self, spec: NetworkSpec) -> NetworkRecord:
        """Create a network on all hosts."""

    async def delete(self, record: NetworkRecord, *, by: FrontEnd, orphaned: bool = False) -> None:
        """Delete a network on all hosts; a network of Docker's on this host only, as long as others have it."""

    async def subnet(self, name: str, wanted: IPNetwork | None, *, v6: bool) -> tuple[IPNetwork, IPAddress]:
        """Return subnet and gateway of a network that Docker is about to create."""

    async def gateway(self, subnet: IPNetwork) -> IPAddress | None:
        """Return the gateway of the network that has this subnet; None if there is no such network yet."""


class Networks:
    """Creates, changes and deletes networks, each under its own lock.

    A create that fails changes nothing. Names, ids, subnets and bridges of two networks never collide. A network with
    endpoints is deleted only for Docker, whose endpoints in it are dead then.

    `cluster`: None on a host without a cluster.
    """

    def __init__(
        self,
        registry: Registry,
        base_plan: BasePlan,
        journal: Journal,
        addressing: Addressing,
        endpoints: Endpoints,
        peers: Peers,
        drivers: Drivers,
        lost_answers: LostAnswers,
    ) -> None:
        self._registry = registry
        self._lost_answers = lost_answers
        self._base_plan = base_plan
        self._journal = journal
        self._addressing = addressing
        self._endpoints = endpoints
        self._peers = peers
        self._drivers = drivers
        self.cluster: Cluster | None = None

    async def create(self, spec: NetworkSpec) -> NetworkRecord:
        """Create a network: on this host, or on all hosts if its mode is one of a cluster.

        Raises:
            NetplugError, DriverError, IpamError: and nothing was changed.
            StoreError: the store that the hosts share does not answer.
        """
        if self.cluster is not None and self._stretches(self._drivers.parse(spec.options).mode):
            return await self.cluster.create(spec)
        return await self._lost_answers.network(spec) or await self.build(spec)

    def answered_anew(self, ident: str) -> bool:
        """Tell whether the answer of who created a network was lost, and is given now. The caller has compared them."""
        return self._lost_answers.take(ident)

    async def delete(self, ref: str, *, by: FrontEnd, orphaned: bool = False) -> None:
        """Delete a network, on all hosts that have it; see `take_down`.

        Raises:
            StoreError: the store that the hosts share does not answer.
        """
        record = self._registry.network(ref)
        if self.cluster is not None and self._stretches(record.network.options.mode):
            await self.cluster.delete(record, by=by, orphaned=orphaned)
        else:
            await self.take_down(ref, by=by, orphaned=orphaned)

    async def delete_for_user(self, ref: str, docker_knows: Callable[[str], Awaitable[bool | None]]) -> None:
        """Delete a network by the user's command; one of Docker's only if Docker says that it does not know it.

        `docker_knows`: tells whether Docker has a network, None if Docker does not answer.

        Raises:
            NetplugError, StoreError: as `delete`.
        """
        record = self._registry.network(ref)
        # Docker gave up on its CreateNetwork, or that dockerd is gone with its data: nobody else can delete it.
        orphaned = record.front_end is FrontEnd.DOCKER and await docker_knows(record.network.id) is False
        await self.delete(record.network.id, by=FrontEnd.CLI, orphaned=orphaned)

    def _stretches(self, mode: str) -> bool:
        return self._drivers.named(mode).scope is Scope.CLUSTER

    @uncancellable
    async def build(self, spec: NetworkSpec) -> NetworkRecord:
        """Build a network on this host.

        Raises:
            NetplugError, DriverError, IpamError: and nothing was changed.
        """
        options = self._drivers.parse(spec.options)
        driver = self._drivers.named(options.mode)
        name = options.name or spec.name
        ident = spec.id or secrets.token_hex(32)
        net = Network(ident, name or short(ident), options=options, internal=spec.internal)
        self._refuse_twins(net)
        if driver.addressed:
            refuse_sticky(net, spec.options, external=any(subnet.space == EXTERNAL for subnet in spec.subnets))
        else:
            refuse_subnets(net, spec)
        try:
            with self._registry.becoming(net):
                host = await self._base_plan.read_host()
                net = replace(net, options=driver.complete(options, host))
                async with self._registry.lock(ident):
                    record = await self._create(net, spec)
        finally:
            await self._base_plan.trim(self._registry.all_networks)
        log.info("network.created", network=short(net.id), name=net.name, mode=net.options.mode)
        return record

    def _refuse_twins(self, net: Network) -> None:
        self._registry.quarantine.refuse(net.id)
        self._registry.quarantine.refuse(net.name)
        for other in self._registry.all_networks():
            if other.id == net.id:
                raise NetplugError("exists", f"network {short(net.id)} exists already")
            if other.name == net.name:
                raise NetplugError(
                    "exists",
                    f"network {net.name!r} exists already ({short(other.id)})",
                    hint="choose another name",
                )

    async def _create(self, net: Network, spec: NetworkSpec) -> NetworkRecord:
        driver, host = self._drivers.of(net), self._base_plan.host
        others = [other for other in self._registry.all_networks() if other.id != net.id]
        others += self._registry.quarantine.known()
        avoid = [route for route, _ in host.routes]
        async with self._addressing.subnets(
            net, spec, others=others, avoid=avoid, gateway=driver.gateway, removal=self._removal
        ) as taken:
            net = self._registry.starting[net.id] = replace(net, subnets=taken.subnets)
            driver.check(net, others, host)
            await self._base_plan.ensure(self._registry.all_networks)
            intent = Intent(f"network {net.name}", driver.create_network(net, host), (NETWORKS + net.id,))
            key, used = await self._journal.build(intent)
            record = NetworkRecord(
                net,
                spec.front_end,
                taken.pools,
                intent.plan,
                used,
                dict(spec.options),
                claimed=spec.claimed,
                cluster=spec.cluster,
                labels=dict(spec.labels),
                created=spec.created if spec.cluster else time.time_ns() // 1_000_000 / 1000,
                origin=spec.origin,
                version=spec.version,
            ).summarized()
            # Docker sends CreateNetwork once in a network's life: it must outlive even a loss of power.
            made = Put(CREATED + net.id, {"at": record.created})
            await self._journal.commit(key, [put(record), made], durable=True)
            self._registry.remember(record)
        return record

    @uncancellable
    async def take_down(self, ref: str, *, by: FrontEnd, orphaned: bool = False) -> None:
        """Delete a network on this host.

        Docker deletes a network only if it knows no endpoint in it. So Docker's endpoints that are still here are dead,
        and are deleted too. If other front ends have endpoints in it, the network stays and becomes one of ours: Docker
        forgets it whatever we answer. `orphaned`: Docker made it and does not know it any more, so any front end may
        delete it.

        Raises:
            NetplugError: "not_found"; "forbidden": another front end made it, or it has endpoints and the request is
                not Docker's.
        """
        ident = self._registry.network(ref).network.id
        async with self._registry.lock(ident):
            record = self._registry.network(ident)
            if not orphaned:
                self._refuse_delete(record, by)
            endpoints = self._registry.endpoints(ident)
            others = [it for it in endpoints if it.front_end is not FrontEnd.DOCKER] if by is FrontEnd.DOCKER else []
            for endpoint in (it for it in endpoints if it not in others):
                await self._endpoints.drop(endpoint)
            if kept := len(others) + len(self._registry.quarantine.endpoints_in(ident)):
                await self._registry.save(replace(record, front_end=FrontEnd.CLI, claimed=False))
                log.warning("network.kept", network=short(ident), name=record.network.name, endpoints=kept)
                return
            await self._peers.forget(ident)
            intent = Intent(f"network {record.network.name}", record.plan.without(record.used), record.keys)
            await self._journal.take_down(intent, durable=True)
            # At once: else reconcile would report what is gone as missing.
            self._registry.forget(record)
            await self._addressing.release_network(record, self._registry.networks())
        log.info("network.deleted", network=short(ident), name=record.network.name)
        await self._base_plan.trim(self._registry.all_networks)

    def _removal(self, ident: str) -> str:
        """Return the command or commands that remove a network, by its id; empty while it is being created."""
        record = self._registry.find_network(ident)
        return "" if record is None else record.front_end.removal(record.network.name)

    def _refuse_delete(self, record: NetworkRecord, by: FrontEnd) -> None:
        name = record.network.name
        # A conflist has no command for deleting: whoever may attach may also delete what it made.
        if FrontEnd.DOCKER in {record.front_end, by} and record.front_end is not by:
            maker = "docker" if record.front_end is FrontEnd.DOCKER else "netplug"
            # A network of a cluster may have been made on another host, by another front end.
            theirs = record.cluster and record.front_end is FrontEnd.DOCKER
            words = f"docker has network {name!r} here" if theirs else f"network {name!r} was made by {maker}"
            raise NetplugError("forbidden", words, hint=f"{maker} network rm {name}")
        if by is not FrontEnd.DOCKER and (count := len(self._registry.endpoints(record.network.id))):
            endpoints = f"{count} endpoints" if count > 1 else "an endpoint"
            raise NetplugError("forbidden", f"network {name!r} has {endpoints}", hint="detach first")
        if by is not FrontEnd.DOCKER and (unusable := self._registry.quarantine.endpoints_in(record.network.id)):
            raise unusable[0].refusal()

    def reserve(self, ident: str, names: Mapping[IPAddress, str]) -> None:
        """Reserve addresses of a network for containers by name, in place of those reserved before."""
        if record := self._registry.find_network(ident):
            self._addressing.reserve(record, names)

    @uncancellable
    async def name(self, ident: str, name: str) -> None:
        """Learn from Docker that a network is Docker's own, and its name there.

        A name given by ``-o name=`` stays. A name that another network has is not used.
        """
        async with self._registry.lock(ident):
            record = next((r for r in self._registry.networks() if r.network.id == ident), None)
            if record is None:
                return
            named = replace(record, claimed=True)
            if "name" not in record.options and record.network.name != name:
                if any(other.name == name for other in self._registry.all_networks()):
                    log.warning("network.name_taken", network=short(ident), name=name)
                else:
                    named = replace(named, network=replace(record.network, name=name))
            if named != record:
                with self._registry.becoming(named.network):  # nobody else takes the name meanwhile
                    await self._registry.save(named)
