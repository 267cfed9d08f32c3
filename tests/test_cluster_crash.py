"""Hard case 8: a daemon dies between any two changes of kernel, its own store and the shared one.

Its next life, the other host and the store find one story, and can end it. What dies is the process that does a use
case; what its background tasks do meanwhile is not counted, but they die with it. Its lease lives on, as after SIGKILL.
"""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from built_in_drivers import DRIVERS
from clustered import kernel_of, reached_by
from engine_host import Died, Fuse, MortalKernel, MortalStore
from etcd_server import Member, needs_etcd

from netplug.cluster import hosts
from netplug.cluster.claims import SharedLeases
from netplug.cluster.cluster import Cluster
from netplug.cluster.identity import AdmissionGate, Identity, Machine
from netplug.cluster.records import NETWORKS, Definition
from netplug.cluster.underlay import Underlay
from netplug.cluster.vtep import Finder
from netplug.drivers.codec import encode
from netplug.engine import Engine
from netplug.engine.network_updates import NetworkChange
from netplug.engine.records import AttachSpec, FrontEnd, NetworkSpec, SubnetSpec
from netplug.errors import NetplugError
from netplug.ipam.allocator import Allocator
from netplug.ipam.pool import GLOBAL
from netplug.ipam.scan_offset import HashedStart
from netplug.ipam.spaces import default_spaces, ula
from netplug.kernel.fake.kernel import FakeKernel
from netplug.reconcile import Reconciler
from netplug.store.access import EtcdAccess
from netplug.store.etcd import EtcdStore
from netplug.store.restore_guard import RestoreGuard
from netplug.store.sqlite import SqliteStore

pytestmark = [pytest.mark.matrix, needs_etcd, pytest.mark.usefixtures("quiet"), pytest.mark.timeout(120)]

DEADLINE_S = 20
MORE = ip_network("10.77.0.0/24")
_acting = contextvars.ContextVar("acting", default=False)


class Slow(Fuse):
    """Burns only for who does the use case; when it has burnt, for all."""

    dead = False

    def burn(self) -> None:
        if self.dead:
            raise Died
        if _acting.get():
            try:
                super().burn()
            except Died:
                self.dead = True
                raise


class MortalLeases(MortalStore):
    """Leases of the dead are not kept, nor given back."""

    async def keep_alive(self, lease: int) -> bool:
        self._check()
        return await self._store.keep_alive(lease)

    async def revoke(self, lease: int) -> None:
        self._check()
        await self._store.revoke(lease)

    def _check(self) -> None:
        assert isinstance(self._fuse, Slow)
        if self._fuse.dead:
            raise Died


class Host:
    """What outlives its daemon: kernel, number, and its own store."""

    def __init__(self, number: int, etcd: Member) -> None:
        self.number = number
        self.vtep = ip_address(f"192.0.2.{number}")
        self.kernel: FakeKernel = kernel_of(number)
        self.engine: Engine
        self.cluster: Cluster
        self.reconciler: Reconciler
        self._etcd = etcd
        self._local: SqliteStore

    @asynccontextmanager
    async def there(self) -> AsyncIterator["Host"]:
        self._local = await SqliteStore.open(":memory:")
        yield self
        await self._local.close()

    @asynccontextmanager
    async def living(self, changes: int | None = None) -> AsyncIterator["Host"]:
        """One life of its daemon, which ends after so many changes."""
        await self.kernel.close()
        fuse = Slow(changes)
        access = EtcdAccess((self._etcd.host,))
        etcd = await EtcdStore.open(access)
        gate = AdmissionGate(RestoreGuard(MortalLeases(etcd, fuse), str(self.number) * 32))  # type: ignore[arg-type]  # a store, too
        local: Any = MortalStore(self._local, fuse)
        kernel: Any = MortalKernel(self.kernel, fuse)
        me = str(self.number) * 32
        leases = SharedLeases(local, gate, me)
        allocator = Allocator(leases, default_spaces(ula(b"tests")), start=HashedStart(me))
        self.engine = Engine(kernel, local, allocator, DRIVERS)
        name = f"host-{self.number}"
        underlay = Underlay(self.engine, local, Finder(str(self.vtep), access), self.vtep)
        identity = Identity(local, Machine(name), me, {}, "")
        self.cluster = Cluster(self.engine, local, gate, leases, identity=identity, name=name, underlay=underlay)
        self.reconciler = Reconciler(self.engine, None)
        await self.reconciler.start()
        await self.cluster.start()
        task = asyncio.ensure_future(self.cluster.run())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await etcd.close()

    @property
    def etcd(self) -> Member:
        """The store that all share."""
        return self._etcd

    def networks(self) -> set[str]:
        return set(self.cluster.mirroring.shared())

    def mine(self) -> set[str]:
        """The addresses of its endpoints, with its VTEP."""
        found = (it.ip for record in self.engine.registry.endpoints() for it in record.endpoint.addresses)
        return {f"{address} at {self.vtep}" for address in found}


async def network(host: Host) -> None:
    await until(lambda: host.cluster.mirroring.catalogue.identity, "the store is reached")
    subnet = SubnetSpec(space=GLOBAL)
    await host.cluster.networks.create(NetworkSpec("", "blue", {"mode": "overlay"}, (subnet,)))


async def built(host: Host) -> None:
    await until(lambda: [it.network.name for it in host.engine.registry.networks()] == ["blue"], "blue is there")


async def attach(host: Host) -> None:
    await built(host)
    await host.engine.endpoints.attach(AttachSpec("blue", "lab1", name="web"))


async def detach(host: Host) -> None:
    await host.engine.endpoints.detach("blue", "lab1", "eth0")


async def delete(host: Host) -> None:
    await host.engine.networks.delete("blue", by=FrontEnd.CLI)


async def lost(host: Host) -> None:
    """Have a third host that has an endpoint, and whose daemon has ended."""
    async with Host(3, host.etcd).there() as third, third.living():
        await attach(third)
        there = third.mine()
    await until(lambda: reached_by(host.kernel) == there, "the third is reached")


async def forget(host: Host) -> None:
    for key in host.etcd.records("cluster/stopped/"):  # it has ended long ago
        host.etcd.delete(key)
    await host.cluster.forget("host-3")


async def update(host: Host) -> None:
    """Change what is in the kernel, and what is not."""
    change = NetworkChange({"bum": "true", "mtu": "1300", "rate": "10mbit"}, labels={"team": "net"})
    await host.engine.network_updates.update("blue", change)


async def subnet_add(host: Host) -> None:
    await host.engine.network_updates.update("blue", NetworkChange(add=(SubnetSpec(MORE, space=GLOBAL),)))


async def subnet_rm(host: Host) -> None:
    await host.engine.network_updates.update("blue", NetworkChange(remove=(MORE,)))


Act = Callable[[Host], Awaitable[None]]
CASES: dict[str, tuple[tuple[Act, ...], Act]] = {
    "network": ((), network),
    "attach": ((network,), attach),
    "detach": ((network, attach), detach),
    "network rm": ((network,), delete),
    "host forget": ((network, lost), forget),
    "network update": ((network, attach), update),
    "network update --subnet-add": ((network,), subnet_add),
    "network update --subnet-rm": ((network, subnet_add), subnet_rm),
}


@pytest.fixture(autouse=True)
def _emptied(etcd: Member) -> Iterator[None]:
    """Whatever came of one case, the next begins with nothing."""
    yield
    etcd.empty()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_death_in_the_middle_leaves_one_story(
    case: tuple[tuple[Act, ...], Act], etcd: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "OPS_PER_TXN", 1)  # as where there is much to forget
    changes = 0
    async with Host(2, etcd).there() as other, other.living():
        while not await _die(case, changes, other, etcd):
            changes += 1
    assert changes >= (3 if case[1] is forget else 5)


async def _die(case: tuple[tuple[Act, ...], Act], changes: int, other: Host, etcd: Member) -> bool:
    """Let one host die after so many changes; True when it came to the end of what it did."""
    given, act = case
    ended = False
    async with Host(1, etcd).there() as host:
        async with host.living():
            for before in given:
                await before(host)
        async with host.living(changes):
            if given:
                await built(host)
                await until(
                    lambda: host.cluster.view.networks() and host.cluster.mirroring.catalogue.identity,
                    "it has read all",
                )
            with suppress(Died):
                await asyncio.create_task(act(host), context=_in_act())
                ended = True
        async with host.living():
            if act is forget:  # who finds it unfinished does it again
                with suppress(NetplugError):
                    await forget(host)
                assert not [it for it in await host.cluster.hosts() if it.name not in {"host-1", "host-2"}]
                await swept(host)
            await agreed(etcd, host, other)
            # And it can be done, or undone, to its end.
            for last in (detach, delete):
                with suppress(NetplugError):
                    await last(host)
            await agreed(etcd, host, other)
            assert etcd.records("cluster/networks/") == {}
            for one in (host, other):
                await until(lambda one=one: not one.kernel._world.state, "all is gone")  # type: ignore[misc]
    return ended


async def swept(host: Host) -> None:
    """Wait until what an earlier life had in the kernel of others is gone: the look at all, now and then, finds it."""
    host.cluster.view.touch_all()
    async with asyncio.timeout(DEADLINE_S):
        while reached_by(host.kernel) or await host.reconciler.diff():  # `reached_by` omits set `remote`
            await host.reconciler.repair()
            await asyncio.sleep(0.005)


def _in_act() -> contextvars.Context:
    context = contextvars.copy_context()
    context.run(_acting.set, True)
    return context


async def agreed(etcd: Member, *hosts: Host) -> None:
    """Wait until hosts, kernels and store tell one story."""
    for host in hosts:
        host.cluster.view.touch_all()
    await until(lambda: _story(etcd, hosts) == [], lambda: str(_story(etcd, hosts)))
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_S
    for host in hosts:
        while differences := await host.reconciler.diff():  # while a network goes, its parts do one by one
            assert loop.time() < deadline, differences
            await asyncio.sleep(0.005)


def _story(etcd: Member, hosts: tuple[Host, ...]) -> list[str]:
    """Return what is told otherwise somewhere."""
    wrong = []
    defined = {key.rpartition("/")[2] for key in etcd.records("cluster/networks/")}
    told = {
        f"{address} at 192.0.2.{key.split('/')[3][0]}"
        for key, value in etcd.records("cluster/endpoints/").items()
        for address in value["addresses"]
    }
    leases = etcd.records("ipam/leases/").values()
    claims = {f"{it['address']} at 192.0.2.{it['host'][0]}" for it in leases if it["owner"]["kind"] == "endpoint"}
    everything = set().union(*(host.mine() for host in hosts))
    if told != everything:
        wrong.append(f"told {told}, there are {everything}")
    if claims != everything:
        wrong.append(f"claimed {claims}, there are {everything}")
    definitions = etcd.records("cluster/networks/")
    gateways = {it["address"] for it in leases if it["owner"]["kind"] == "gateway"}
    if gateways != {it["gateway"] for one in definitions.values() for it in one["subnets"]}:
        wrong.append(f"gateways {gateways}")
    wrong += [f"{key} is closing" for key, value in definitions.items() if "closing" in value]
    for host in hosts:
        if host.networks() != defined:
            wrong.append(f"{host.number} has {host.networks()} of {defined}")
        for ident, record in host.cluster.mirroring.shared().items():
            built, there = encode(Definition.of(record)), definitions.get(NETWORKS + ident)
            if there and built != {**there, "created": record.created}:
                wrong.append(f"{host.number} has {built}, defined is {there}")
        reached = {it for it in reached_by(host.kernel) if not it.startswith("00:00:00:00:00:00")}  # of option bum
        if (found := reached) != everything - host.mine():
            wrong.append(f"{host.number} reaches {found}")
    return wrong


async def until(holds: Callable[[], object], what: str | Callable[[], str]) -> None:
    async def polled() -> None:
        pause = 0.005
        while not holds():  # several programs change it
            await asyncio.sleep(pause)
            pause = min(pause * 1.2, 0.02)  # a look asks etcd several questions, while both hosts wait

    try:
        async with asyncio.timeout(DEADLINE_S):
            await polled()
    except TimeoutError:
        raise AssertionError(what if isinstance(what, str) else what()) from None
