"""Networks of the cluster: defined once in the store, built on every host.

A definition is one transaction, serialized with all others by a guard record: so name, VNI and subnets are allocated in
a state that does not change meanwhile. Every host makes its networks agree with the definitions (`mirroring`).
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress

import structlog

from netplug.cluster.allocation import completed, free_subnet, gateways_of, refuse_other, subnets_for, vni_for
from netplug.cluster.identity import AdmissionGate
from netplug.cluster.mirroring import Mirroring
from netplug.cluster.records import GUARD, MEMBERS, NETWORKS, Definition, as_put, ident_of, parse
from netplug.cluster.view import View
from netplug.drivers import shared
from netplug.drivers.api import Scope
from netplug.drivers.naming import short
from netplug.drivers.steps import IPAddress, IPNetwork
from netplug.engine import Engine
from netplug.engine.disagreement import refuse_disagreement
from netplug.engine.records import FrontEnd, NetworkRecord, NetworkSpec
from netplug.errors import NetplugError
from netplug.ipam.pool import GLOBAL
from netplug.store.api import Compare, Delete, Put, Record, StoreError
from netplug.tasks.uncancellable import uncancellable

log = structlog.get_logger(__name__)

_ATTEMPTS = 100
"""Largest number of attempts of a definition, while other hosts define networks: enough for 50 hosts at once."""
DOCKER_CREATES_S = 20.0
"""For how long a network is not built here after Docker asked for its subnet; Docker creates it in milliseconds."""


class _DefinedError(NetplugError):
    """A network of this name is defined."""


class Definitions:
    """Defines and deletes networks.

    `docker_name`: returns the name of a network in this host's Docker.
    """

    def __init__(self, engine: Engine, store: AdmissionGate, view: View, mirroring: Mirroring, me: str) -> None:
        self.docker_name: Callable[[str], str] = short
        self._mirroring = mirroring
        self._catalogue = mirroring.catalogue
        self._engine = engine
        self._store = store
        self._view = view
        self._me = me

    # Use cases

    @uncancellable
    async def create(self, spec: NetworkSpec) -> NetworkRecord:
        """Define a network, and build it here. All but users may create one that is defined already, if it is equal.

        Users choose names; Docker and runtimes repeat on each host what one configuration says, and after a crash.

        Raises:
            NetplugError, DriverError, IpamError: the request is refused; nothing was changed.
            StoreError: the store does not answer.
        """
        await self._mirroring.ready()
        async with self._mirroring.lock:
            await self._mirroring.await_deletions(self._engine.drivers.parse(spec.options).name or spec.name)
            try:
                return await self._create(spec)
            except _DefinedError:
                if spec.front_end is not FrontEnd.DOCKER and not spec.front_end.shares:
                    raise
                return await self._create(spec)  # another host was faster: it is there now

    async def _create(self, spec: NetworkSpec) -> NetworkRecord:
        if spec.front_end is FrontEnd.DOCKER:
            return await self._adopt(spec)
        if spec.front_end.shares and (there := await self._built(spec)):
            return there
        ident = spec.id or secrets.token_hex(32)
        definition = await self._define(ident, spec)
        return await self._build_defined(ident, definition)

    async def _build_defined(self, ident: str, definition: Definition, docker: str = "") -> NetworkRecord:
        """Build a network that was just defined; if that fails, delete the definition."""
        try:
            record = await self._engine.networks.build(definition.to_spec(ident, docker))
        except BaseException:
            await uncancellable(self._catalogue.remove(ident, definition))
            raise
        log.info("network.defined", network=short(ident), name=definition.name, vni=definition.options.get("vni"))
        return record

    async def _adopt(self, spec: NetworkSpec) -> NetworkRecord:
        """Create a network of this host's Docker: define it, or join the cluster's network of its name."""
        name = self._engine.drivers.parse(spec.options).name
        spaces = {pool.space for it in spec.subnets if it.pool and (pool := self._engine.allocator.pool_of(it.pool))}
        if not name or spaces != {GLOBAL}:
            raise NetplugError(
                "invalid",
                "a network over several hosts needs option name, and IPAM by pynet, so that hosts share its addresses",
                hint="docker network create -d pynet --ipam-driver pynet --ipam-opt name=blue -o mode=overlay "
                "-o name=blue blue",
            )
        ident, definition = await self._called(name)
        try:
            if definition is None:
                async with self._used(ident):
                    return await self._build_defined(ident, await self._define(ident, spec), spec.id)
            refuse_other(definition, spec, self._engine.drivers)
            return await self._take_over(ident, definition, spec.id)
        finally:  # if refused, the network is built here again
            self._mirroring.expected_from_docker.pop(ident, None)
            self._mirroring.soon(ident)

    async def _called(self, name: str) -> tuple[str, Definition | None]:
        """Return the network of this name, or an id for a new one."""
        found = ((ident, it) for ident, it in (await self._catalogue.all()).items() if it.name == name)
        return next(found, (secrets.token_hex(32), None))

    async def _take_over(self, ident: str, definition: Definition, docker: str) -> NetworkRecord:
        """Build a network under Docker's id, in place of the one that is built here."""
        mirrored = self._mirroring.shared().get(ident)
        again = mirrored is not None and mirrored.network.id == docker and self._engine.networks.answered_anew(docker)
        if mirrored is not None and not again:
            self._refuse_second(mirrored)
            self._refuse_endpoints(mirrored)
        async with self._used(ident):
            await self._catalogue.add_user(ident, definition.name, docker)
            if mirrored is not None and again:
                return mirrored
            if mirrored is not None:
                await self._engine.networks.take_down(mirrored.network.id, by=FrontEnd.CLI)
            return await self._engine.networks.build(definition.to_spec(ident, docker))

    @asynccontextmanager
    async def _used(self, ident: str) -> AsyncIterator[None]:
        """Have this host's Docker be a user of a network that the block builds; not if that fails, or the process dies.

        Docker repeats a request, but not its body: what such a crash left, nobody would remove.
        """
        await self._catalogue.begin_release(ident)
        try:
            yield
        except BaseException:
            await uncancellable(self._remove_user(ident))
            raise
        await self._catalogue.end_release(ident)

    async def _built(self, spec: NetworkSpec) -> NetworkRecord | None:
        """Return the network of this name, built here, which it was not yet; None if there is no such network.

        Raises:
            NetplugError: it cannot be built here, or differs from what is asked for.
        """
        engine, name = self._engine, self._engine.drivers.parse(spec.options).name or spec.name
        ident, definition = await self._called(name)
        if definition is None or definition.deleting:
            return None
        record = await self._mirroring.built(ident, definition)
        refuse_disagreement(record, spec, engine.registry, engine.allocator, engine.drivers)
        return record

    @uncancellable
    async def delete(self, record: NetworkRecord, *, by: FrontEnd, orphaned: bool = False) -> None:
        """Delete a network on all hosts. Deletion by Docker deletes it here only, while it is used on other hosts.

        Raises:
            NetplugError: "forbidden": it has endpoints, or Docker has it; the message names the hosts.
            StoreError: the store does not answer.
        """
        ident = ident_of(record)
        async with self._mirroring.lock:
            if record.front_end is FrontEnd.DOCKER:
                await self._catalogue.begin_release(ident)
                await self._engine.networks.take_down(record.network.id, by=by, orphaned=orphaned)
                await self._remove_user(ident)
                return
            stored = await self._store.get(NETWORKS + ident)
            if stored is None:
                await self._store.store.verify()  # older data may lack it, which other hosts write again
                await self._engine.networks.take_down(record.network.id, by=FrontEnd.CLI)
                return
            await self._catalogue.refuse_used(ident, record.network.name)  # before joins are refused
            async with self._joins_refused(ident, stored) as (definition, revision):
                await self._catalogue.refuse_used(ident, definition.name)
                await self._engine.networks.take_down(record.network.id, by=FrontEnd.CLI)
            await self._catalogue.remove(ident, definition, revision)

    async def _remove_user(self, ident: str) -> None:
        """Remove this host's Docker from the users of a network, and delete the network if it was the last one."""
        try:
            ended = await self._release(ident)
        except StoreError as exc:
            log.warning("network.kept", network=short(ident), reason=str(exc))
            ended = False
        if not ended:
            self._mirroring.soon(ident)

    async def _release(self, ident: str) -> bool:
        await self._store.txn([], [Delete(f"{MEMBERS}{ident}/{self._me}")])
        ended = await self.delete_if_unused(ident)
        await self._catalogue.end_release(ident)
        return ended

    async def resume_releases(self) -> None:
        """Go on with deletions by this host's Docker that a crash ended, or of which the store did not hear.

        And undo creations by Docker that a crash ended.

        Raises:
            StoreError: the store does not answer, or refuses; the caller tries again later.
        """
        async with self._mirroring.lock:
            for ident in await self._catalogue.released():
                here = self._mirroring.shared().get(ident)
                if here and here.front_end is FrontEnd.DOCKER:  # the deletion was refused, or did not begin
                    await self._catalogue.end_release(ident)
                elif not await self._release(ident):
                    self._mirroring.soon(ident)
                elif here:  # at once: Docker may be about to repeat its creation
                    await self._engine.networks.take_down(here.network.id, by=FrontEnd.CLI)

    async def join_again(self) -> None:
        """Add this host's Docker to the users of its networks again: those of a host that is forgotten are deleted.

        Raises:
            StoreError: the store does not answer.
        """
        async with self._mirroring.lock:
            for ident, record in self._mirroring.shared().items():
                member = self._catalogue.user(ident, record.network.id)
                if record.front_end is FrontEnd.DOCKER and await self._store.get(member.key) is None:
                    with suppress(NetplugError):  # it has no definition, which `Mirroring` restores
                        await self._catalogue.add_user(ident, record.network.name, record.network.id)

    async def delete_if_unused(self, ident: str) -> bool:
        """Delete a network that Docker created if no host's Docker has it any more; tell whether it was deleted.

        Raises:
            StoreError: the store does not answer.
        """
        stored = await self._store.get(NETWORKS + ident)
        if stored is None or not stored.value.get("docker"):
            return False
        try:
            await self._catalogue.refuse_used(ident, str(stored.value.get("name")))
            async with self._joins_refused(ident, stored) as (definition, revision):
                await self._catalogue.refuse_used(ident, definition.name)
        except NetplugError as exc:
            log.debug("network.kept", network=short(ident), reason=exc.message)
            return False
        await self._catalogue.remove(ident, definition, revision)
        return True

    @asynccontextmanager
    async def _joins_refused(self, ident: str, stored: Record) -> AsyncIterator[tuple[Definition, int]]:
        """Refuse joins of a network during the block, and afterwards unless the block fails.

        Yield the definition, and its revision since joins are refused.
        """
        key, revision = NETWORKS + ident, None
        # From the mark on no endpoint can be published: that compares this record.
        while revision is None:
            definition = parse(Definition, stored)
            marked = {**stored.value, "deleting": True, "deleter": self._me}
            revision = await self._store.txn([Compare(key, stored.revision)], [Put(key, marked)])
            if revision is None:
                updated = await self._store.get(key)
                if updated is None or updated.value.get("deleting"):
                    words = f"network {definition.name!r} is being deleted by another host"
                    raise NetplugError("unavailable", words, hint="try again")
                stored = updated
        try:
            yield definition, revision
        except BaseException:
            opened = {**stored.value, "deleting": False, "deleter": ""}
            await uncancellable(self._store.txn([Compare(key, revision)], [Put(key, opened)]))
            raise

    async def subnet(self, name: str, wanted: IPNetwork | None, *, v6: bool) -> tuple[IPNetwork, IPAddress]:
        """Return the subnet and gateway of a network, which need not be defined yet.

        One that is built here with the subnet is known without the store: dockerd asks for those of its networks when
        it starts, and cannot use a network without an answer until it starts again.

        Raises:
            NetplugError: "unavailable": there is no free subnet; "exists": the network has endpoints here.
            StoreError: the store does not answer.
        """
        if wanted and (gateway := _gateway_of(wanted, (it for it in self._here() if it.name == name))):
            return wanted, gateway
        await self._mirroring.ready()
        others, version = await self._catalogue.all(), 6 if v6 else 4
        ident, known = next(((ident, it) for ident, it in others.items() if it.name == name), ("", None))
        for it in known.subnets if known else ():
            if wanted in {None, it.subnet} and it.subnet.version == version:
                if wanted is None:
                    await self._take_down_for_docker(ident)
                    await self._refuse_routes(it.subnet, name)
                return it.subnet, it.gateway
        network = wanted or free_subnet(version, others, await self._mirroring.not_free(), self._catalogue.identity)
        return network, network[1]

    async def gateway(self, subnet: IPNetwork) -> IPAddress | None:
        """Return the gateway of the network that has a subnet; None if there is no such network.

        Raises:
            StoreError: the store does not answer.
        """
        return _gateway_of(subnet, self._here()) or _gateway_of(subnet, (await self._catalogue.all()).values())

    def _here(self) -> Iterable[Definition]:
        """Return the definitions of the networks that are built here: known without the store."""
        return map(Definition.of, self._mirroring.shared().values())

    async def _take_down_for_docker(self, ident: str) -> None:
        """Take down a network that Docker is about to create.

        Docker accepts an allocated subnet only if the host has no route to it; otherwise it asks for another subnet
        without end (libnetwork, requestPoolHelper).
        """
        async with self._mirroring.lock:
            mirrored = self._mirroring.shared().get(ident)
            if mirrored is None:
                return
            self._refuse_second(mirrored)
            self._refuse_endpoints(mirrored)
            loop = asyncio.get_running_loop()
            self._mirroring.expected_from_docker[ident] = loop.time() + DOCKER_CREATES_S
            loop.call_later(DOCKER_CREATES_S, self._mirroring.soon, ident)
            await self._engine.networks.take_down(mirrored.network.id, by=FrontEnd.CLI)

    async def _refuse_routes(self, subnet: IPNetwork, name: str) -> None:
        """Refuse a subnet that Docker would not accept, see `_take_down_for_docker`."""
        for taken in await self._mirroring.taken():
            if taken.version == subnet.version and taken.overlaps(subnet):
                words = f"subnet {subnet} of network {name!r} of the cluster overlaps {taken}, which this host uses"
                raise NetplugError("exists", words, hint=f"if that is intended, add --subnet {subnet}")

    def _refuse_second(self, mirrored: NetworkRecord) -> None:
        if mirrored.front_end is FrontEnd.DOCKER:
            name, ident = mirrored.network.name, mirrored.network.id
            docker_name = self.docker_name(ident) or short(ident)
            words = f"network {name!r} of the cluster exists on this host as Docker network {docker_name!r}"
            raise NetplugError("exists", words, hint="use that one, or remove it first")

    def _refuse_endpoints(self, mirrored: NetworkRecord) -> None:
        if self._engine.registry.endpoints(mirrored.network.id):
            words = f"network {mirrored.network.name!r} has endpoints on this host that are not docker's"
            raise NetplugError("exists", words, hint="detach them, then create the network by docker")

    # Defining

    async def _define(self, ident: str, spec: NetworkSpec) -> Definition:
        drivers = self._engine.drivers
        options = drivers.parse(spec.options)
        driver = drivers.named(options.mode)
        if driver.scope is not Scope.CLUSTER:
            words = f"a network of mode {options.mode!r} cannot span several hosts"
            raise NetplugError(
                "invalid", words, hint=f"leave out --cluster, or use mode {drivers.default(Scope.CLUSTER)}"
            )
        name = options.name or spec.name or short(ident)
        host = await self._engine.base_plan.read_host()
        options = driver.complete(options, host)
        taken = await self._mirroring.not_free()
        for _ in range(_ATTEMPTS):
            guard = await self._store.get(GUARD)
            others = await self._catalogue.all()
            if other := next((other for other, it in others.items() if it.name == name), None):
                here = self._mirroring.shared().get(other)  # a Docker network has another id
                words = f"network {name!r} exists already in the cluster ({short(here.network.id if here else other)})"
                raise _DefinedError("exists", words, hint="choose another name")
            vni = vni_for(ident, options.vni, options.vxlan_port, others, drivers)
            subnets = subnets_for(spec, others, taken, self._catalogue.identity)
            chosen = {shared.MTU: str(options.mtu), shared.VNI: str(vni)}
            raw = completed(spec.options, **{it.key: value for it, value in chosen.items() if it in driver.options})
            definition = Definition(
                name,
                raw,
                subnets,
                spec.internal,
                docker=spec.front_end is FrontEnd.DOCKER,
                labels=dict(spec.labels),
                created=round(time.time(), 3),
            )
            ops = [Put(GUARD, {"last": ident}), as_put(NETWORKS + ident, definition), *gateways_of(ident, definition)]
            ops += [self._catalogue.user(ident, spec.id)] if definition.docker else []
            unchanged = [Compare(GUARD, guard.revision if guard else 0), Compare(NETWORKS + ident, 0)]
            if await self._store.txn(unchanged, ops) is not None:
                return definition
        raise NetplugError("unavailable", "too many networks are being created at once", hint="try again")


def _gateway_of(subnet: IPNetwork, definitions: Iterable[Definition]) -> IPAddress | None:
    return next((it.gateway for one in definitions for it in one.subnets if it.subnet == subnet), None)
