"""What fails on the way to what follows from records is tried again, is told of, and stops nothing else."""

import copy
import dataclasses
import pickle
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_interface
from typing import Any

import pytest
import pytest_asyncio
from engine_host import NET, OTHER, SANDBOX, Host, tcp

from netplug.drivers import port_ranges
from netplug.drivers.api import HostFacts, LinkFacts, PortMapping
from netplug.drivers.bridge import BridgeDriver
from netplug.drivers.naming import host_side
from netplug.drivers.plan import Plan
from netplug.drivers.steps import Address, Hairpin, Proto, Shape, Step, Veth
from netplug.engine.read_facts import ReadFacts
from netplug.engine.records import FrontEnd, NetworkRecord
from netplug.kernel.api import StepError
from netplug.store.api import Delete, Put, StoreError

pytestmark = pytest.mark.usefixtures("quiet")


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    """A network with a joined endpoint of Docker's and an attached namespace."""
    host = await Host.boot()
    host.kernel.foreign.links["eth0"] = ""
    host.kernel.foreign.facts = HostFacts(mtu=1500, uplink="eth0")
    await host.docker_network()
    await host.docker_endpoint()
    host.kernel.inhabitants.add(SANDBOX)
    await host.join()
    await host.attach("ns1")
    await host.engine.convergence.all()
    yield host
    await host.close()


class Full:
    """Lets the store refuse the transactions whose operations `matches`, until `end`."""

    def __init__(self, host: Host, matches: Any) -> None:
        self._store: Any = host.engine.journal._store
        self._txn = self._store.txn
        self._matches = matches
        self._store.txn = self._refuse

    async def _refuse(self, compares: Any, ops: Sequence[Put | Delete], *, durable: bool = False) -> Any:
        if self._matches(ops):
            raise StoreError("the disk is full")
        return await self._txn(compares, ops, durable=durable)

    def end(self) -> None:
        del self._store.txn


def limited(host: Host, rate: tuple[int, int] | None) -> NetworkRecord:
    record = host.engine.registry.network(NET)
    return replace(record, network=replace(record.network, options=replace(record.network.options, rate=rate)))


async def limit(host: Host, rate: tuple[int, int] | None) -> None:
    async with host.engine.registry.lock(NET):
        await host.engine.convergence.change(limited(host, rate))


def read_one_more_fact(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the driver of bridges make one more step of each endpoint on some hosts."""
    create = BridgeDriver.create_endpoint

    def hairpin(self: Any, net: Any, ep: Any, facts: Any) -> Plan:
        more = Plan((Hairpin(host_side(ep.id)),)) if facts.bridge_netfilter else Plan()
        return create(self, net, ep, facts) + more

    monkeypatch.setattr(BridgeDriver, "create_endpoint", hairpin)
    host.engine.planner.forget(NET)


@contextmanager
def nothing_removed(host: Host) -> Iterator[None]:
    """Let the kernel refuse to remove anything."""
    remove = host.kernel.remove

    async def refuse(steps: Sequence[Step]) -> None:
        if steps:
            raise ExceptionGroup("refused", [StepError("internal", step, "busy") for step in steps])

    host.kernel.remove = refuse  # type: ignore[method-assign]
    yield
    host.kernel.remove = remove  # type: ignore[method-assign]


# The store


async def test_follow_that_the_store_refused_is_tried_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    read_one_more_fact(host, monkeypatch)
    await host.engine.convergence.all()
    full = Full(host, bool)
    await host.see(bridge_netfilter=True)
    await host.engine.convergence.all()
    assert not host.made(Hairpin)
    assert [(it.object, it.what) for it in await host.reconciler.diff()] == [
        ("plan", "does not follow its record: the disk is full")
    ]
    full.end()
    await host.engine.convergence.all()
    assert len(host.made(Hairpin)) == 2
    await host.check()


async def test_follow_that_a_change_has_done_meanwhile_is_no_fault(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    read_one_more_fact(host, monkeypatch)
    full = Full(host, bool)
    await host.see(bridge_netfilter=True)
    await host.engine.convergence.all()
    full.end()
    await limit(host, (8_000_000, 8_000_000))
    assert len(host.made(Hairpin)) == 2
    await host.engine.convergence.all()
    assert await host.reconciler.diff() == []


async def test_change_stands_although_its_intent_cannot_be_cleared(host: Host) -> None:
    await limit(host, (8_000_000, 8_000_000))
    full = Full(host, lambda ops: all(isinstance(op, Delete) for op in ops))
    await limit(host, None)
    full.end()
    assert not host.made(Shape)
    await host.engine.journal.recover()
    await host.check()


async def test_what_is_wanted_again_is_not_reverted_by_an_earlier_failure(host: Host) -> None:
    await limit(host, (8_000_000, 8_000_000))
    with nothing_removed(host):
        await limit(host, None)
        await limit(host, (8_000_000, 8_000_000))
    await host.engine.journal.recover()
    assert len(host.made(Shape)) == 2
    await host.check()


async def test_what_follows_again_is_not_reverted_by_an_earlier_failure(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_one_more_fact(host, monkeypatch)
    await host.see(bridge_netfilter=True)
    await host.engine.convergence.all()
    with nothing_removed(host):
        await host.see(bridge_netfilter=False)
        await host.engine.convergence.all()
        await host.see(bridge_netfilter=True)
        await host.engine.convergence.all()
    await host.engine.journal.recover()
    assert len(host.made(Hairpin)) == 2
    await host.check()


# Drivers of others


async def test_driver_that_fails_stops_no_other_network(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    await host.cli_network("10.2.0.0/24", ident=OTHER, name="a-red")
    create = BridgeDriver.create_network

    def fail(self: Any, net: Any, facts: Any) -> Plan:
        if net.id == OTHER:
            raise TypeError("not an option")
        return create(self, net, facts)

    monkeypatch.setattr(BridgeDriver, "create_network", fail)
    await host.see(mtu=1400)
    host.kernel.lose(next(step.key for step in host.engine.base_plan.plan))
    await host.reconciler.repair()
    assert host.endpoint().attachment.mtu == 1400
    assert [(it.owner, it.object, it.what) for it in await host.reconciler.diff()] == [
        ("network a-red", "plan", "does not follow its record: not an option")
    ]
    monkeypatch.undo()
    await host.reconciler.repair()
    await host.check()


def test_facts_are_host_facts_to_a_driver() -> None:
    plain = HostFacts(mtu=1400, links=(LinkFacts("eth0"),))
    facts = ReadFacts.of(plain)
    assert isinstance(facts, HostFacts)
    assert (facts == plain, plain == facts, facts == ReadFacts.of(plain), facts == HostFacts()) == (True,) * 3 + (
        False,
    )
    assert hash(facts) == hash(plain)
    assert repr(facts) == repr(plain)
    assert replace(facts, mtu=1300) == replace(plain, mtu=1300)
    assert dataclasses.asdict(facts) == dataclasses.asdict(plain)
    assert copy.deepcopy(facts) == copy.copy(facts) == pickle.loads(pickle.dumps(facts)) == plain  # noqa: S301


def test_copy_of_the_facts_counts_as_read() -> None:
    facts = ReadFacts.of(HostFacts(mtu=1400))
    assert facts.are_of(HostFacts(mtu=1400, uplink="eth0"))
    replace(facts, mtu=1300)
    assert not facts.are_of(HostFacts(mtu=1400, uplink="eth0"))


async def test_link_of_others_does_not_concern_a_network_that_looks_one_up() -> None:
    host = await Host.boot()
    host.kernel.foreign.links["eth0"] = ""
    host.kernel.foreign.facts = HostFacts(mtu=1500, uplink="eth0")
    await host.engine.base_plan.read_host()
    await host.cli_network("192.168.1.0/24", name="lan", mode="macvlan", parent="eth0")
    await host.engine.convergence.all()
    host.kernel.foreign.links["veth0"] = "veth"
    await host.engine.base_plan.read_host()
    assert host.engine.planner.follows(host.engine.registry.network(NET))
    del host.kernel.foreign.links["eth0"]
    await host.engine.base_plan.read_host()
    assert not host.engine.planner.follows(host.engine.registry.network(NET))
    await host.close()


# Thousands of ports


async def test_ranges_of_ports_are_not_taken_apart_for_other_changes(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.attach("ns2", ports=(PortMapping(Proto.TCP, 20000, None, 20000, count=400),))
    await host.engine.convergence.all()
    parts, each = 0, port_ranges.each

    def counted(step: Step) -> Iterator[Step]:
        nonlocal parts
        for part in each(step):
            parts += 1
            yield part

    monkeypatch.setattr(port_ranges, "each", counted)
    await host.see(mtu=1400)
    await host.engine.convergence.all()
    assert parts < 400
    assert {it.mtu for it in host.made(Veth)} == {1400}


# What is not ours


async def test_object_of_the_user_that_a_network_comes_to_need_stays_the_users(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version of the driver wants an address that the user has given to their own bridge."""
    theirs = ("br-theirs", ip_interface("10.9.0.1/24"))
    host.kernel.foreign.links["br-theirs"] = "bridge"
    host.kernel.foreign.addresses.add(theirs)
    await host.engine.base_plan.read_host()
    await host.cli_network("10.2.0.0/24", ident=OTHER, name="red", bridge="br-theirs")
    create = BridgeDriver.create_network

    def more(self: Any, net: Any, facts: Any) -> Plan:
        return create(self, net, facts) + Plan((Address(*theirs),) if net.id == OTHER else ())

    monkeypatch.setattr(BridgeDriver, "create_network", more)
    await host.reboot()
    record = host.engine.registry.network(OTHER)
    assert Address(*theirs) in record.plan
    assert Address(*theirs).key in record.used
    await host.check()


async def test_published_port_of_a_container_without_id_is_not_called_unpublished(host: Host) -> None:
    await host.attach("ns2", front_end=FrontEnd.CNI, ports=(tcp(9091, address="127.0.0.1"),))
    assert await host.reconciler.diff() == []
