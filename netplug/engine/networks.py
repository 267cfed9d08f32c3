"""Use cases of networks."""

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import structlog

from netplug.drivers.api import Network, Scope
from netplug.drivers.errors import DriverError
from netplug.drivers.naming import short
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import IPAddress, IPNetwork
from netplug.drivers.tunnel import Vxlan
from netplug.engine.addressing import Addressing
from netplug.engine.base_plan import BasePlan
from netplug.engine.endpoints import Endpoints
from netplug.engine.journal import Intent, Journal
from netplug.engine.peers import Peers
from netplug.engine.records import NETWORKS, FrontEnd, NetworkRecord, NetworkSpec
from netplug.engine.registry import Registry, put
from netplug.errors import NetplugError
from netplug.ipam.pool import EXTERNAL
from netplug.kernel.executor import Executor
from netplug.tasks.uncancellable import uncancellable

log = structlog.get_logger(__name__)


class Cluster(Protocol):
    """What makes networks that are on several hosts: by `Networks.build` and `Networks.take_down` on each."""

    async def create(self, spec: NetworkSpec) -> NetworkRecord:
        """Make a network on all hosts."""

    async def delete(self, record: NetworkRecord, *, by: FrontEnd, orphaned: bool = False) -> None:
        """Delete a network on all hosts; one of Docker's on this one alone, as long as others have it."""

    async def subnet(self, name: str, wanted: IPNetwork | None, *, v6: bool) -> tuple[IPNetwork, IPAddress]:
        """Return the subnet of a network that Docker is about to make, and its gateway."""

    async def gateway(self, subnet: IPNetwork) -> IPAddress | None:
        """Return the gateway of the network that has a subnet; None when there is none yet."""


class Networks:
    """Creates, deletes and names networks. `cluster`: None where there are no other hosts."""

    def __init__(
        self,
        registry: Registry,
        base_plan: BasePlan,
        journal: Journal,
        addressing: Addressing,
        endpoints: Endpoints,
        peers: Peers,
        executor: Executor,
        drivers: Drivers,
    ) -> None:
        self._executor = executor
        self._registry = registry
        self._base_plan = base_plan
        self._journal = journal
        self._addressing = addressing
        self._endpoints = endpoints
        self._peers = peers
        self._drivers = drivers
        self.cluster: Cluster | None = None

    async def create(self, spec: NetworkSpec) -> NetworkRecord:
        """Make a network, here or, if its mode is one of several hosts, on all of them.

        Raises:
            NetplugError, DriverError, IpamError: and nothing was changed.
            StoreError: the store that the hosts share does not answer.
        """
        if self.cluster is not None and self._stretches(self._drivers.parse(spec.options).mode):
            return await self.cluster.create(spec)
        return await self.build(spec)

    async def delete(self, ref: str, *, by: FrontEnd, orphaned: bool = False) -> None:
        """Delete a network, wherever it is; see `take_down`.

        Raises:
            StoreError: the store that the hosts share does not answer.
        """
        record = self._registry.network(ref)
        if self.cluster is not None and self._stretches(record.network.options.mode):
            await self.cluster.delete(record, by=by, orphaned=orphaned)
        else:
            await self.take_down(ref, by=by, orphaned=orphaned)

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
            _refuse_sticky(net, spec)
        else:
            _refuse_subnets(net, spec)
        self._registry.starting[ident] = net
        try:
            host = await self._base_plan.read_host()
            net = replace(net, options=driver.complete(options, host))
            async with self._registry.lock(ident):
                record = await self._create(net, spec)
        finally:
            del self._registry.starting[ident]
            await self._base_plan.trim(self._registry.all_networks())
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
            await self._base_plan.ensure(self._registry.all_networks())
            intent = Intent(f"network {net.name}", driver.create_network(net, host), (NETWORKS + net.id,))
            key, used = await self._journal.build(intent)
            record = NetworkRecord(
                net, spec.front_end, taken.pools, intent.plan, used, dict(spec.options), cluster=spec.cluster
            ).summarized()
            # Docker sends CreateNetwork once in a network's life: it must outlive even a loss of power.
            await self._journal.commit(key, [put(record)], durable=True)
            self._registry.remember(record)
        return record

    @uncancellable
    async def take_down(self, ref: str, *, by: FrontEnd, orphaned: bool = False) -> None:
        """Take a network of this host down.

        Docker asks only when it knows of no endpoint, so those of its own that are still here are dead and go with it.
        Where others are attached the network stays, as one of ours: Docker forgets it whatever we answer.
        `orphaned`: Docker made it and knows it no more, so anybody may delete it.

        Raises:
            NetplugError: "not_found"; "forbidden" when another front end made it, or when it still has endpoints and
                Docker is not who asks.
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
            if others:
                await self._registry.save(replace(record, front_end=FrontEnd.CLI, claimed=False))
                log.warning("network.kept", network=short(ident), name=record.network.name, endpoints=len(others))
                return
            await self._peers.forget(ident)
            intent = Intent(f"network {record.network.name}", record.plan.without(record.used), (record.key,))
            await self._journal.take_down(intent, durable=True)
            # At once, lest somebody miss what has just gone.
            self._registry.forget(record)
            await self._addressing.release_network(record, self._registry.networks())
        log.info("network.deleted", network=short(ident), name=record.network.name)
        await self._base_plan.trim(self._registry.all_networks())

    def _removal(self, ident: str) -> str:
        """Return the command that removes a network, by its id; nothing for one that is just being made."""
        record = self._registry.find_network(ident)
        if record is None:
            return ""
        return f"{'docker' if record.front_end is FrontEnd.DOCKER else 'netplug'} network rm {record.network.name}"

    def _refuse_delete(self, record: NetworkRecord, by: FrontEnd) -> None:
        name = record.network.name
        # A conflist has no command for deleting; whoever may attach may clear away what it left.
        if FrontEnd.DOCKER in {record.front_end, by} and record.front_end is not by:
            maker = "docker" if record.front_end is FrontEnd.DOCKER else "netplug"
            # Of a cluster it may have been made elsewhere, and by others.
            theirs = record.cluster and record.front_end is FrontEnd.DOCKER
            words = f"docker has network {name!r} here" if theirs else f"network {name!r} was made by {maker}"
            raise NetplugError("forbidden", words, hint=f"{maker} network rm {name}")
        if by is not FrontEnd.DOCKER and (count := len(self._registry.endpoints(record.network.id))):
            endpoints = f"{count} endpoints" if count > 1 else "an endpoint"
            raise NetplugError("forbidden", f"network {name!r} has {endpoints}", hint="detach first")

    async def follow(self, *, build: bool = True) -> None:
        """Compute the plans of networks anew that tunnel from another address than this host's VTEP is now.

        What the kernel refuses is a difference to the record then, and mended as such. `build`: bring the plans about
        at once; else that is left to whoever compares them with the kernel.
        """
        host = self._base_plan.host
        for record in self._registry.networks():
            if host.vtep and any(isinstance(step, Vxlan) and step.local != host.vtep for step in record.plan):
                try:
                    await self._follow(record.network.id, build=build)
                except (DriverError, NetplugError, ExceptionGroup) as exc:
                    log.warning("network.behind", network=short(record.network.id), error=str(exc))

    @uncancellable
    async def _follow(self, ident: str, *, build: bool) -> None:
        """The record first: what a crash leaves undone is a difference to it."""
        async with self._registry.lock(ident):
            record = self._registry.find_network(ident)
            if record is None:
                return
            net = record.network
            plan = self._drivers.of(net).create_network(net, self._base_plan.host)
            gone = record.plan.without((*record.used, *(step.key for step in plan)))
            await self._registry.save(replace(record, plan=plan).summarized())
            log.info("network.followed", network=short(ident), name=net.name, vtep=str(self._base_plan.host.vtep))
            if build:
                await self._executor.apply(plan)
                await self._executor.revert(gone)

    def reserve(self, ident: str, names: Mapping[IPAddress, str]) -> None:
        """Keep a network's addresses for the containers that were made with them, by name, and for no others."""
        if record := self._registry.find_network(ident):
            self._addressing.reserve(record, names)

    @uncancellable
    async def forward(self, ident: str, upstream: str) -> None:
        """Have the containers of a network ask whom option `dns_upstream` says; when that is empty, whom the host asks.

        Raises:
            DriverError: it is none.
        """
        async with self._registry.lock(ident):
            record = self._registry.network(ident)
            kept = {key: value for key, value in record.options.items() if key != "dns_upstream"}
            said = {"dns_upstream": upstream} if upstream else {}
            options = replace(record.network.options, dns_upstream=self._drivers.parse(said).dns_upstream)
            network = replace(record.network, options=options)
            await self._registry.save(replace(record, network=network, options=kept | said))
        log.info("network.forwards", network=short(ident), name=record.network.name, upstream=upstream)

    @uncancellable
    async def name(self, ident: str, name: str) -> None:
        """Learn from Docker that a network is its own and what it calls it.

        A name given by ``-o name=`` stays, and one that is taken is not taken over.
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
                await self._registry.save(named)


def _refuse_sticky(net: Network, spec: NetworkSpec) -> None:
    """Refuse to promise addresses that somebody else chooses."""
    if net.options.sticky and any(subnet.space == EXTERNAL for subnet in spec.subnets):
        value = spec.options["sticky"][:80]
        raise NetplugError(
            "invalid",
            f"option sticky={value}: Docker's own IPAM chooses the addresses of this network",
            hint=f"docker network create -d pynet --ipam-driver pynet -o sticky={value} NAME",
        )


def _refuse_subnets(net: Network, spec: NetworkSpec) -> None:
    """Refuse subnets that nobody would have an address of; Docker gives each network some, asked or not."""
    if spec.subnets and spec.front_end is not FrontEnd.DOCKER:
        mode = net.options.mode
        raise NetplugError(
            "invalid", f"a network of mode {mode!r} has no addresses", hint="leave out --subnet and --ipv6"
        )
