"""Networks of the cluster: defined once in the store, built on every host.

A definition is one transaction, guarded against all others that define: so name, VNI and subnets are looked for in a
state that does not change meanwhile. Every host brings its own networks in line with the definitions (`mirror`). What
cannot be built here (an mtu too large, a VNI that a stranger holds) is told to whoever asks for it.
"""

import asyncio
import secrets
from collections.abc import Collection, Mapping
from hashlib import sha256

import structlog

from netplug.claims import drop_all, gateways
from netplug.drivers.api import Scope
from netplug.drivers.naming import short
from netplug.drivers.options import LARGEST_VNI, OVERLAY, parse
from netplug.drivers.steps import IPNetwork
from netplug.engine import Engine
from netplug.engine.records import FrontEnd, NetworkRecord, NetworkSpec
from netplug.engine.shared import driver_of
from netplug.engine.whole import whole
from netplug.errors import NetplugError, Reportable
from netplug.ipam.lease import Lease, Owner, OwnerKind
from netplug.ipam.pool import GLOBAL, check_request, pool_id
from netplug.ipam.spaces import default_spaces, ula
from netplug.ipam.subnets import Subnets
from netplug.store.api import Compare, Delete, Put, Store, StoreError

from .records import ENDPOINTS, GUARD, IDENTITY, NETWORKS, Definition, Range, as_put, describe
from .records import parse as parse_record
from .view import View

log = structlog.get_logger(__name__)

FIRST_VNI = 10_000
"""Below are those that others choose by themselves: flannel 1, swarm and Calico from 4096 on."""
_TRIES = 100
"""Of a transaction that others, who define networks too, come before: 50 hosts at once."""
_HALF_OF_ALL = 1  # default routes, also those of a VPN, are no obstacle


class Definitions:
    """Defines networks, deletes them, and builds here what is defined.

    `identity`: the cluster's id as this host knows it; empty until it does.
    """

    def __init__(self, engine: Engine, store: Store, view: View, me: str) -> None:
        self.identity = ""
        self._engine = engine
        self._store = store
        self._view = view
        self._me = me
        self._lock = asyncio.Lock()

    # Use cases

    @whole
    async def create(self, spec: NetworkSpec) -> NetworkRecord:
        """Define a network, and build it here.

        Raises:
            NetplugError, DriverError, IpamError: and nothing was changed.
            StoreError: the store does not answer.
        """
        if spec.front_end is FrontEnd.DOCKER:
            words = "a network over several hosts is not made by docker yet"
            raise NetplugError("invalid", words, hint="netplug network create --cluster NAME")
        if not self.identity:
            raise NetplugError("unavailable", "this host has not reached the cluster's store yet", hint="try again")
        async with self._lock:
            ident = spec.id or secrets.token_hex(32)
            definition = await self._define(ident, spec)
            try:
                record = await self._engine.networks.build(definition.to_spec(ident))
            except BaseException:
                await asyncio.shield(self._undefine(ident, definition))
                raise
        log.info("network.defined", network=short(ident), name=definition.name, vni=definition.options["vni"])
        return record

    @whole
    async def delete(self, record: NetworkRecord) -> None:
        """Delete a network on all hosts.

        Raises:
            NetplugError: "forbidden": it has endpoints, and where.
            StoreError: the store does not answer.
        """
        ident, key = record.network.id, NETWORKS + record.network.id
        async with self._lock:
            stored = await self._store.get(key)
            if stored is None:
                await self._engine.networks.take_down(ident, by=FrontEnd.CLI)
                return
            definition = parse_record(Definition, stored)
            # From now on nobody publishes an endpoint: that compares this record.
            marked = {**stored.value, "deleting": True}
            revision = await self._store.txn([Compare(key, stored.revision)], [Put(key, marked)])
            if revision is None:
                raise NetplugError(
                    "unavailable", f"network {definition.name!r} is just being changed", hint="try again"
                )
            try:
                await self._refuse_used(ident, definition.name)
                await self._engine.networks.take_down(ident, by=FrontEnd.CLI)
            except BaseException:
                await asyncio.shield(self._store.txn([Compare(key, revision)], [Put(key, stored.value)]))
                raise
            await self._undefine(ident, definition)

    async def _refuse_used(self, ident: str, name: str) -> None:
        hosts: dict[str, int] = {}
        for record in (await self._store.range(f"{ENDPOINTS}{ident}/"))[0]:
            host = record.key.removeprefix(f"{ENDPOINTS}{ident}/").partition("/")[0]
            hosts[host] = hosts.get(host, 0) + 1
        if hosts:
            known = self._view.hosts()
            where = ", ".join(
                f"{count} on {describe(host, known[host].name if host in known else '')}"
                for host, count in sorted(hosts.items())
            )
            raise NetplugError("forbidden", f"network {name!r} has endpoints: {where}", hint="detach first")

    # Defining

    async def _define(self, ident: str, spec: NetworkSpec) -> Definition:
        options = parse(spec.options)
        driver = driver_of(options.mode, self._engine.drivers)
        if driver.scope is not Scope.CLUSTER:
            words = f"a network of mode {options.mode!r} is of one host alone"
            raise NetplugError("invalid", words, hint=f"leave out --cluster, or use mode {OVERLAY}")
        name = options.name or spec.name or short(ident)
        host = await self._engine.shared.read_host()
        options = driver.complete(options, host)
        routes = [route for route, _ in host.routes if route.prefixlen > _HALF_OF_ALL]
        taken = [subnet.pool for net in self._engine.registry.all_networks() for subnet in net.subnets]
        for _ in range(_TRIES):
            guard = await self._store.get(GUARD)
            others = await self._defined()
            if other := next((other for other, it in others.items() if it.name == name), None):
                words = f"network {name!r} exists already in the cluster ({short(other)})"
                raise NetplugError("exists", words, hint="choose another name")
            vni = self._vni(ident, options.vni, options.vxlan_port, others)
            subnets = self._subnets(spec, others, [*routes, *taken])
            raw = {**spec.options, "mtu": str(options.mtu), "vni": str(vni)}
            definition = Definition(name, _without_docker_keys(raw), subnets, spec.internal)
            revision = await self._store.txn(
                [Compare(GUARD, guard.revision if guard else 0), Compare(NETWORKS + ident, 0)],
                [Put(GUARD, {"last": ident}), as_put(NETWORKS + ident, definition), *_gateways(ident, definition)],
            )
            if revision is not None:
                return definition
        raise NetplugError("unavailable", "too many networks are being created at once", hint="try again")

    async def _defined(self) -> dict[str, Definition]:
        found = {}
        for record in (await self._store.range(NETWORKS))[0]:
            try:
                found[record.key.removeprefix(NETWORKS)] = parse_record(Definition, record)
            except StoreError as exc:
                log.warning("record.poisoned", key=record.key, error=str(exc))
        return found

    @staticmethod
    def _vni(ident: str, wanted: int, port: int, others: Mapping[str, Definition]) -> int:
        """Return the VNI that is wanted, or a free one from a place that the network's id gives."""
        held = {}
        for other in others.values():
            options = parse(other.options)
            held[options.vni, options.vxlan_port] = other.name
        if wanted:
            if name := held.get((wanted, port)):
                words = f"option vni={wanted}: network {name!r} of the cluster has it on UDP port {port}"
                raise NetplugError("exists", words, hint="choose another vni or vxlan_port")
            return wanted
        count = LARGEST_VNI - FIRST_VNI + 1
        start = int.from_bytes(sha256(ident.encode()).digest()[:4])
        return next(vni for vni in (FIRST_VNI + (start + n) % count for n in range(count)) if (vni, port) not in held)

    def _subnets(
        self, spec: NetworkSpec, others: Mapping[str, Definition], routed: Collection[IPNetwork]
    ) -> tuple[Range, ...]:
        chosen: list[Range] = []
        for wanted in spec.subnets:
            network = wanted.pool
            if network is None:
                network = self._free(6 if wanted.v6 else 4, others, [*routed, *(it.subnet for it in chosen)])
            else:
                check_request(network, wanted.range, v6=wanted.v6)
                for other in others.values():
                    if clash := next((it for it in other.subnets if _overlap(it.subnet, network)), None):
                        words = f"subnet {network} overlaps {clash.subnet} of network {other.name!r} of the cluster"
                        raise NetplugError("exists", words, hint="choose another --subnet")
            part = wanted.range if wanted.range != network else None
            chosen.append(Range(network, wanted.gateway or network[1], part))
        return tuple(chosen)

    def _free(self, version: int, others: Mapping[str, Definition], taken: Collection[IPNetwork]) -> IPNetwork:
        """Return a subnet that no network of the cluster has, and nothing on this host."""
        obstacles = Subnets(version, (net for net in taken if net.version == version))
        for other in others.values():
            for held in other.subnets:
                if held.subnet.version == version and not obstacles.overlap(held.subnet):
                    obstacles.add(held.subnet)
        space = next(it for it in default_spaces(ula(self.identity.encode())) if it.name == GLOBAL)
        for base in space.bases:
            if base.network.version == version:
                for index in range(base.count):
                    if obstacles.overlap(candidate := base.subnet(index)) is None:
                        return candidate
        raise NetplugError("unavailable", f"the cluster has no free IPv{version} subnet", hint="choose a --subnet")

    async def _undefine(self, ident: str, definition: Definition) -> None:
        """Delete what the store has of a network; the definition last, so that a crash leaves no leases alone."""
        for it in definition.subnets:
            await drop_all(self._store, pool_id(GLOBAL, it.subnet, it.range))
        await self._store.txn([], [Delete(NETWORKS + ident)])

    # Keeping up

    def shared(self) -> dict[str, NetworkRecord]:
        """Return the networks of the cluster that are built here, by id."""
        drivers = self._engine.drivers
        return {
            record.network.id: record
            for record in self._engine.registry.networks()
            if drivers[record.network.options.mode].scope is Scope.CLUSTER
        }

    async def mirror(self) -> None:
        """Build here what is defined and not here, and take down what is here and no longer defined.

        Raises:
            StoreError: the store does not answer.
        """
        async with self._lock:
            defined, built, absent = self._view.networks(), self.shared(), self._engine.registry.absent
            for name in absent.keys() - {definition.name for definition in defined.values()}:
                del absent[name]
            for ident, definition in list(defined.items()):
                if ident not in built and not definition.deleting:
                    await self._build(ident, definition)
            for ident in built.keys() - defined.keys():
                await self._take_down(built[ident])

    async def _build(self, ident: str, definition: Definition) -> None:
        absent = self._engine.registry.absent
        try:
            await self._engine.networks.build(definition.to_spec(ident))
        except Exception as exc:
            if not isinstance(exc, Reportable):
                raise
            if absent.get(definition.name) != exc.message:
                log.warning("network.absent", network=short(ident), name=definition.name, error=exc.message)
            absent[definition.name] = exc.message
        else:
            absent.pop(definition.name, None)
            self._view.touched.add(ident)
            self._view.changed.set()

    async def _take_down(self, record: NetworkRecord) -> None:
        ident = record.network.id
        if await self._store.get(NETWORKS + ident) is not None:
            return  # our view is late
        stored = await self._store.get(IDENTITY)
        if stored is None or stored.value.get("id") != self.identity:
            return  # the store lost all it had: see `restore`
        if self._engine.registry.endpoints(ident):
            await self._restore(record)
        else:
            await self._engine.networks.take_down(ident, by=FrontEnd.CLI)

    async def restore(self) -> None:
        """Define again what is built here: the store has lost it."""
        async with self._lock:
            for record in self.shared().values():
                await self._restore(record)

    async def _restore(self, record: NetworkRecord) -> None:
        """Define a network as it is here; one of this id that is there already stays."""
        ident, definition = record.network.id, Definition.of(record)
        ops = [as_put(NETWORKS + ident, definition), *_gateways(ident, definition)]
        if await self._store.txn([Compare(NETWORKS + ident, 0)], ops) is not None:
            log.warning("network.restored", network=short(ident), name=definition.name)


def _gateways(ident: str, definition: Definition) -> list[Put]:
    owner = Owner(OwnerKind.GATEWAY, ident, definition.name)
    return gateways(Lease(pool_id(GLOBAL, it.subnet, it.range), it.gateway, owner) for it in definition.subnets)


def _overlap(one: IPNetwork, other: IPNetwork) -> bool:
    return one.version == other.version and one.overlaps(other)


def _without_docker_keys(raw: Mapping[str, str]) -> dict[str, str]:
    """Return options in the spelling of ours where a value was completed: mtu has another name with Docker."""
    return {key: value for key, value in raw.items() if key != "com.docker.network.driver.mtu"}
