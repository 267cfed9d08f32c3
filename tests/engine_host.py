"""A host with an engine on a fake kernel, through several lives, and processes that die in the middle. For tests."""

import asyncio
import copy
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from built_in_drivers import DRIVERS

from netplug.docker.garbage import View
from netplug.drivers import port_ranges
from netplug.drivers.api import PortMapping
from netplug.drivers.plan import Plan
from netplug.drivers.steps import Element, IPAddress, Proto, Relay, Step
from netplug.drivers.tables import NETWORKS
from netplug.engine import Engine
from netplug.engine.records import (
    AttachSpec,
    EndpointRecord,
    EndpointSpec,
    FrontEnd,
    NetworkRecord,
    NetworkSpec,
    SubnetSpec,
)
from netplug.ipam.allocator import Allocator
from netplug.ipam.lease import Lease, OwnerKind
from netplug.ipam.spaces import default_spaces, ula
from netplug.kernel.api import Before, Outcome
from netplug.kernel.fake.kernel import FakeKernel
from netplug.kernel.fake.ports import FakePorts
from netplug.reconcile import Reconciler
from netplug.store.api import Compare, Delete, Put
from netplug.store.leases import StoredLeases
from netplug.store.sqlite import SqliteStore

NET, OTHER = "a1" * 32, "b2" * 32
END, NEXT = "e1" * 32, "e2" * 32
SANDBOX = "/run/docker/netns/1"
DEADLINE_S = 20


class Died(BaseException):
    """The process was killed; nothing that it still tries has an effect."""


class Fuse:
    """Lets `changes` changes of kernel and store happen, then the process is dead. None: it lives on."""

    def __init__(self, changes: int | None = None) -> None:
        self.left = changes
        self.burnt = 0

    def burn(self) -> None:
        if self.left == 0:
            raise Died
        if self.left is not None:
            self.left -= 1
        self.burnt += 1


class MortalKernel:
    """Changes one step at a time, so that death may come between any two."""

    def __init__(self, kernel: FakeKernel, fuse: Fuse) -> None:
        self._kernel = kernel
        self._fuse = fuse

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)

    async def ensure(
        self, steps: Sequence[Step], outcomes: list[Outcome] | None = None, before: Before | None = None
    ) -> list[Outcome]:
        done: list[Outcome] = [] if outcomes is None else outcomes
        for step in steps:
            self._fuse.burn()
            await self._kernel.ensure((step,), done, before)
        return done

    async def remove(self, steps: Sequence[Step]) -> None:
        for step in steps:
            self._fuse.burn()
            await self._kernel.remove((step,))

    @property
    def ports(self) -> "MortalPorts":
        return MortalPorts(self._kernel.ports, self._fuse)


class MortalPorts:
    def __init__(self, ports: FakePorts, fuse: Fuse) -> None:
        self._ports = ports
        self._fuse = fuse

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ports, name)

    async def reserve(self, *wanted: Any) -> int:
        self._fuse.burn()
        return await self._ports.reserve(*wanted)


class MortalStore:
    """Each transaction happens as a whole or not at all."""

    def __init__(self, store: SqliteStore, fuse: Fuse) -> None:
        self._store = store
        self._fuse = fuse

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def txn(
        self, compares: Sequence[Compare], ops: Sequence[Put | Delete], *, durable: bool = False
    ) -> int | None:
        self._fuse.burn()
        return await self._store.txn(compares, ops, durable=durable)


class Host:
    """What outlives a daemon (`kernel`, `store`), and the daemon's present life (`engine`, `reconciler`)."""

    def __init__(self, kernel: FakeKernel, store: SqliteStore) -> None:
        self.kernel = kernel
        self.store = store
        self.engine: Engine
        self.reconciler: Reconciler
        self.vtep: IPAddress | None = None

    @classmethod
    async def boot(cls, kernel: FakeKernel | None = None) -> "Host":
        host = cls(kernel or FakeKernel(), await SqliteStore.open(":memory:"))
        await host.reboot()
        return host

    async def close(self) -> None:
        await self.store.close()

    async def clone(self) -> "Host":
        """Return another host that is just like this one, with a daemon that has just started."""
        host = await self.copy()
        await host.reboot()
        return host

    async def copy(self) -> "Host":
        """Return another host that is just like this one, and where no daemon runs."""
        kernel = FakeKernel()
        kernel.__dict__ |= {
            name: copy.deepcopy(value) for name, value in vars(self.kernel).items() if name != "changed"
        }
        kernel.foreign = kernel._world.foreign
        host = Host(kernel, await SqliteStore.open(":memory:"))
        records, _ = await self.store.range("")
        await host.store.txn((), [Put(record.key, record.value) for record in records])
        return host

    def live(self, fuse: Fuse | None = None, docker: View | None = None) -> None:
        """Begin a life that ends when the fuse is burnt."""
        fuse = fuse or Fuse()
        store: Any = MortalStore(self.store, fuse)
        kernel: Any = MortalKernel(self.kernel, fuse) if fuse.left is not None else self.kernel
        allocator = Allocator(StoredLeases(store), default_spaces(ula(b"tests")))
        self.engine = Engine(kernel, store, allocator, DRIVERS)
        self.engine.base_plan.vtep = self.vtep
        self.reconciler = Reconciler(self.engine, docker)

    async def reboot(self, fuse: Fuse | None = None, docker: View | None = None) -> None:
        """End the process and start the daemon anew."""
        await self.kernel.close()
        self.live(fuse, docker)
        await self.reconciler.start()

    # Looking

    def networks(self) -> list[NetworkRecord]:
        return self.engine.registry.networks()

    def endpoints(self) -> list[EndpointRecord]:
        return self.engine.registry.endpoints()

    def endpoint(self, ident: str = END, network: str = NET) -> EndpointRecord:
        return self.engine.registry.endpoint(network, ident)

    def leases(self) -> list[Lease]:
        allocator = self.engine.allocator
        return [lease for pool in allocator.pools() for lease in allocator.leases(pool.id)]

    def dump(self) -> list[str]:
        # Sysctls of links go with the links, and forwarding stays on: others may have come to need it.
        return sorted(line for line in self.kernel.dump().splitlines() if not line.startswith("sysctl "))

    async def state(self) -> object:
        """Return all that a use case could have changed."""
        records, _ = await self.store.range("")
        return (
            self.dump(),
            [(record.key, record.value) for record in records],
            sorted(map(repr, self.engine.allocator.pools())),
            sorted(map(repr, self.leases())),
            self.networks(),
            sorted(self.endpoints(), key=lambda record: record.key),
        )

    def shape(self) -> object:
        """Return what there is, as a user sees it."""
        return (
            tuple(sorted(record.network.id for record in self.networks())),
            tuple(sorted((r.endpoint.id, r.linked, tuple(map(str, r.in_force))) for r in self.endpoints())),
            tuple(sorted((pool.id, pool.holds) for pool in self.engine.allocator.pools())),
        )

    async def check(self) -> None:
        """Check that records, leases, journal and kernel tell one story."""
        assert (await self.store.range("journal/"))[0] == []
        assert self.engine.journal.changing() == frozenset()
        assert await self.reconciler.diff() == []
        self.check_plans()
        plans = [self.engine.base_plan.plan, *(record.plan for record in self.networks())]
        plans += [self.engine.peers.plan(record.network.id) for record in self.networks()]
        plans += [(record.plan if record.linked else Plan()) + record.exposed for record in self.endpoints()]
        known = set(port_ranges.keys(step for plan in plans for step in plan))
        # Flows are not objects: the fake remembers that they were asked for.
        assert {key for key in self.kernel._world.state if not key.startswith("flows/")} <= known
        assert bool(self.engine.base_plan.plan) <= bool(self.networks())
        base = self.engine.base_plan
        assert base.wanted(record.network for record in self.networks()) == base.plan
        self._check_leases()
        stored = {
            record.key for prefix in ("networks/", "endpoints/") for record in (await self.store.range(prefix))[0]
        }
        assert stored == {record.key for record in (*self.networks(), *self.endpoints())}

    def check_plans(self) -> None:
        """Check that all plans follow from their records."""
        nets = {record.network.id: record.network for record in self.networks()}
        for network in self.networks():
            assert set(self.engine.planner.network(network.network)) == set(network.plan)
        for record in self.endpoints():
            assert self.engine.planner.endpoint(nets[record.endpoint.network], record) == record
            exposed = self.engine.planner.exposed(nets[record.endpoint.network], record)
            parts = {part for step in exposed for part in port_ranges.each(step)}
            assert parts == {part for step in record.exposed for part in port_ranges.each(step)}

    def _check_leases(self) -> None:
        networks = {record.network.id for record in self.networks()}
        owned = {(pool, a.ip, r.endpoint.id) for r in self.endpoints() for pool, a in _leased(r)}
        for lease in self.leases():
            owner, pool = lease.owner, self.engine.allocator.pool(lease.pool)
            if owner.kind is OwnerKind.ENDPOINT:
                assert (lease.pool, lease.address, owner.id) in owned, f"nobody has {lease}"
            elif owner.id:
                assert owner.id in networks, f"nobody has {lease}"
            else:
                assert pool is not None
                assert pool.holds, f"nobody asked for {lease}"
        assert owned <= {(lease.pool, lease.address, lease.owner.id) for lease in self.leases()}
        for pool in self.engine.allocator.pools():
            assert pool.sticky_s or not list(self.engine.allocator.retained(pool.id))
            assert set(pool.holders) <= networks
            assert pool.holders or pool.holds

    def made(self, kind: type[Step]) -> list[Any]:
        """Return what there is of a type of step in the kernel."""
        return [step for step in self.kernel._world.state.values() if isinstance(step, kind)]

    def elements(self, *sets: str, table: str = NETWORKS) -> list[Element]:
        """Return the elements of sets of a table in the kernel; of all its sets, if none is named."""
        return [step for step in self.made(Element) if step.table == table and (not sets or step.set in sets)]

    # Doing

    async def see(self, **facts: Any) -> None:
        """Let the host be otherwise, and the daemon see it."""
        self.kernel.foreign.facts = dataclasses.replace(self.kernel.foreign.facts, **facts)
        await self.engine.base_plan.read_host()

    async def docker_network(self, ident: str = NET, *pools: str, **options: str) -> NetworkRecord:
        """Create a network as Docker does with its own IPAM."""
        subnets = tuple(external(pool) for pool in pools or ("10.1.0.0/24",))
        spec = NetworkSpec(ident, options=options, subnets=subnets, front_end=FrontEnd.DOCKER)
        return await self.engine.networks.create(spec)

    async def cli_network(self, *pools: str, ident: str = NET, name: str = "blue", **options: str) -> NetworkRecord:
        subnets = tuple(SubnetSpec(ip_network(pool)) for pool in pools) or (SubnetSpec(),)
        return await self.engine.networks.create(NetworkSpec(ident, name, options, subnets))

    async def docker_endpoint(self, ident: str = END, *addresses: str, **options: Any) -> EndpointRecord:
        given = tuple(map(ip_interface, addresses or ("10.1.0.2/24",)))
        spec = EndpointSpec(ident, options.pop("network", NET), given, **options)
        return await self.engine.endpoints.create(spec)

    async def join(self, ident: str = END, sandbox: str = SANDBOX) -> None:
        await self.engine.endpoints.join(NET, ident, sandbox)

    async def publish(self, ident: str = END, *ports: PortMapping) -> EndpointRecord:
        return await self.engine.publishing.publish(NET, ident, ports or None)

    async def attach(self, netns: str = "blue", **options: Any) -> EndpointRecord:
        return await self.engine.endpoints.attach(AttachSpec(options.pop("network", NET), netns, **options))

    async def delete_all(self) -> None:
        for record in self.endpoints():
            await self.engine.endpoints.delete(record.endpoint.network, record.endpoint.id)
        for network in self.networks():
            await self.engine.networks.delete(network.network.id, by=network.front_end)
        for pool in self.engine.allocator.pools():
            for _ in range(pool.holds):
                await self.engine.allocator.release_pool(pool.id)


@asynccontextmanager
async def consistent() -> AsyncIterator[Host]:
    """A host whose records, leases, journal and kernel tell one story when the block has ended."""
    host = await Host.boot()
    yield host
    await host.check()
    await host.close()


@asynccontextmanager
async def running(host: Host) -> AsyncIterator[None]:
    """Let the host's reconciler live in the background."""
    task = asyncio.ensure_future(host.reconciler.run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _leased(record: EndpointRecord) -> Iterator[tuple[str, Any]]:
    return zip(record.pools, record.endpoint.addresses, strict=True)


def external(pool: str) -> SubnetSpec:
    """Return a subnet whose addresses Docker's own IPAM gives out; it took the first for the gateway."""
    network = ip_network(pool)
    return SubnetSpec(network, network.network_address + 1, space="external")


def tcp(host: int, inner: int = 80, address: str = "", *, end: int = 0) -> PortMapping:
    return PortMapping(Proto.TCP, inner, ip_address(address) if address else None, host, end)


def udp(host: int, inner: int = 53) -> PortMapping:
    return dataclasses.replace(tcp(host, inner), proto=Proto.UDP)


def led_to(step: Element | Relay) -> tuple[IPAddress, int]:
    """Return the address and port of a container to which a port of the host leads (`FakeKernel.leads`)."""
    if isinstance(step, Relay):
        return step.address, step.target
    address, _, port = step.data.partition(" . ")
    return ip_address(address), int(port)


async def turn() -> None:
    """Let the loop go round once."""
    loop = asyncio.get_running_loop()
    once: asyncio.Future[None] = loop.create_future()
    loop.call_soon(once.set_result, None)
    await once


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Poll with a deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await turn()


class _Steps(Coroutine[Any, Any, Any]):
    """Runs a coroutine in its task and cancels that when it waits for the `at`-th time."""

    def __init__(self, work: Coroutine[Any, Any, Any], at: int) -> None:
        self._work = work
        self._left = at
        self.task: asyncio.Task[Any]

    def send(self, value: Any) -> Any:
        waited_for = self._work.send(value)
        self._left -= 1
        if self._left == 0:
            self.task.cancel()
        return waited_for

    def throw(self, *error: Any) -> Any:
        return self._work.throw(*error)

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Any:
        raise NotImplementedError


async def cancelled_at(work: Coroutine[Any, Any, Any], at: int) -> bool:
    """Cancel work when it waits for the `at`-th time (1: the first); False when it ended before."""
    steps = _Steps(work, at)
    steps.task = asyncio.get_running_loop().create_task(steps)
    try:
        await steps.task
    except asyncio.CancelledError:
        return True
    return steps._left <= 0


Act = Callable[[Host], Awaitable[object]]


async def set_up(kernel: FakeKernel, acts: Collection[Act]) -> Host:
    host = await Host.boot(kernel)
    for act in acts:
        await act(host)
    return host
