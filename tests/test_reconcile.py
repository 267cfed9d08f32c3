"""Kernel and records are brought in line again: at the start, when others interfered, when dockerd restarted."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any
from unittest.mock import Mock

import pytest
import pytest_asyncio
from engine_host import END, NET, NEXT, OTHER, SANDBOX, Host, running, tcp, udp, until

from netplug import reconcile
from netplug.drivers.steps import (
    Bridge,
    Element,
    Flows,
    FormerRules,
    Gate,
    HostPort,
    Passage,
    Proto,
    Relay,
    Resolver,
    Step,
    Table,
)
from netplug.drivers.tables import ANTISPOOF, NETWORKS
from netplug.engine import base_plan, link_changes
from netplug.engine.records import Description, FrontEnd
from netplug.kernel.api import Comparison, Outcome
from netplug.store.api import StoreError
from netplug.store.sqlite import SqliteStore

pytestmark = pytest.mark.usefixtures("quiet")
PORTS = (tcp(8080), udp(53))


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    """A network with a joined and published endpoint of Docker's and an attached namespace, and a gate in iptables."""
    host = await Host.boot()
    await host.see(gates=((4, "nft"),))
    await host.docker_network()
    await host.docker_endpoint(ports=PORTS)
    host.kernel.inhabitants.add(SANDBOX)
    await host.join()
    await host.publish()
    await host.attach("ns1", ports=(tcp(9090),))
    yield host
    await host.close()


def ids(host: Host) -> set[str]:
    return {record.endpoint.id for record in host.endpoints() if record.front_end.value == "docker"}


# What got lost or changed


async def test_what_comes_and_goes_is_no_drift() -> None:
    host = await Host.boot()
    works: list[Callable[[], Awaitable[object]]] = [
        host.cli_network,
        lambda: host.attach("ns1", ports=PORTS),
        lambda: host.engine.endpoints.detach(NET, "ns1", "eth0"),
        lambda: host.engine.networks.delete(NET, by=FrontEnd.CLI),
    ]
    for work in works:
        task = asyncio.ensure_future(work())
        while not task.done():
            assert await host.reconciler.diff() == []
            await asyncio.wait({task}, timeout=0.0005)  # the store's thread needs its turns too
        await task
    assert not host.kernel._world.state
    await host.close()


async def test_each_lost_object_is_told_of_and_comes_back(host: Host) -> None:
    before = host.dump()
    plans = [host.engine.base_plan.plan, host.networks()[0].plan]
    plans += [record.exposed for record in host.endpoints()]
    plans += [record.plan for record in host.endpoints() if record.front_end.value == "cli"]
    healed = 0
    for step in (step for plan in plans for step in plan):
        if step.key not in host.kernel._world.state or isinstance(step, Bridge | Flows):
            continue
        host.kernel.lose(step.key)
        differences = await host.reconciler.diff()
        assert step.key in {difference.object for difference in differences}
        mended = await host.reconciler.repair()
        assert step.key in {difference.object for difference in mended}
        assert host.dump() == before, step.key
        await host.check()
        healed += 1
    assert healed > 30


async def test_nothing_to_mend_is_nothing_done(host: Host) -> None:
    host.kernel.calls.clear()
    assert await host.reconciler.diff() == []
    assert await host.reconciler.repair() == []
    assert host.kernel.calls == []


async def test_owner_of_a_difference_is_named(host: Host) -> None:
    await host.engine.endpoints.describe(NET, END, Description("c1", "web"))
    host.kernel.lose(host.networks()[0].plan.steps[1].key)
    host.kernel.lose(f"hostport/tcp/0.0.0.0/{8080}")
    host.kernel.lose("gate/4/nft")
    owners = {difference.owner for difference in await host.reconciler.diff()}
    assert owners == {f"network {NET[:12]}", f"endpoint {END[:12]} (web)", "host"}


@pytest.mark.parametrize("name", [NETWORKS, ANTISPOOF])
async def test_tampered_table_is_put_right(host: Host, name: str) -> None:
    before = host.dump()
    (table,) = [step for step in host.made(Table) if step.key == f"table/{name}"]
    host.kernel.tamper(replace(table, text=table.text.replace("drop", "accept")))
    assert [(d.object, d.what) for d in await host.reconciler.diff()] == [(table.key, "its rules differ")]
    await host.reconciler.repair()
    assert table in host.made(Table)
    assert host.dump() == before


async def test_one_that_cannot_be_mended_keeps_no_other_from_it(host: Host) -> None:
    stubborn, other = f"element/{NETWORKS}/published4_any/", f"element/{NETWORKS}/home4/"
    lost = [key for key in host.kernel._world.state if key.startswith((stubborn, other))]
    assert any(key.startswith(stubborn) for key in lost)
    for key in lost:
        host.kernel.lose(key)
    host.kernel.fail_at(next(key for key in lost if key.startswith(other)))
    await host.reconciler.repair()
    assert {d.object[: len(other)] for d in await host.reconciler.diff()} == {other}
    host.kernel.heal()
    await host.reconciler.repair()
    await host.check()


# What nobody knows


async def test_unknown_marked_objects_go_and_foreign_ones_stay(host: Host) -> None:
    before = host.dump()
    host.kernel.foreign.links["br0"] = "bridge"
    stray = (
        Table("inet", "netplug-old", "set old { type inet_service; }"),
        Element("inet netplug-old", "old", "80"),
        Element(NETWORKS, "home4", "10.9.0.0/24 . np-old"),
        Element(NETWORKS, "published4_any", "tcp . 1", "10.9.0.2 . 80"),
        Element(ANTISPOOF, "macs", "nphold . 02:00:00:00:00:02"),
        Gate(6, "legacy"),
        Passage(4, "nft", "br0", ip_network("10.9.0.0/24")),
        FormerRules(),
        Bridge("np-old", "02:00:00:00:00:01", 1500),
    )
    await host.kernel.ensure(stray)
    told = {d.object for d in await host.reconciler.diff() if d.what == "belongs to no record"}
    assert told == {step.key for step in stray}
    await host.reconciler.repair()
    await host.check()
    assert host.dump() == before
    assert host.kernel.foreign.links["br0"] == "bridge"


async def test_wiped_state_directory_leaves_nothing(host: Host) -> None:
    clean = await Host.boot()
    await host.kernel.close()
    await host.store.close()
    host.store = await SqliteStore.open(":memory:")
    await host.reboot()
    await host.check()
    assert [line for line in host.dump() if not line.startswith("flows/")] == clean.dump()
    await clean.close()


# The dead and the living


@pytest.mark.parametrize("started", [True, False], ids=["start", "repair"])
async def test_endpoint_without_links_and_inhabitants_is_dropped(host: Host, *, started: bool) -> None:
    host.kernel.inhabitants.clear()
    host.kernel.lose(f"link/nph{END[:12]}")
    await (host.reboot() if started else host.reconciler.repair())
    assert ids(host) == set()
    await host.check()
    await host.docker_endpoint(NEXT, ports=PORTS)  # address and ports are free again
    await host.publish(NEXT)


async def test_endpoint_without_links_in_an_inhabited_sandbox_is_kept_and_told_of(host: Host) -> None:
    host.kernel.lose(f"link/nph{END[:12]}")
    await host.reconciler.repair()
    assert ids(host) == {END}
    objects = {difference.object for difference in await host.reconciler.diff()}
    assert f"link/nph{END[:12]}" in objects
    assert any(lease.owner.id == END for lease in host.leases())


async def test_endpoint_that_left_has_no_links_to_miss(host: Host) -> None:
    await host.engine.endpoints.leave(NET, END)
    await host.reboot()
    assert ids(host) == {END}
    await host.check()


async def test_attachment_is_rebuilt_while_its_namespace_exists(host: Host) -> None:
    before = host.dump()
    (built,) = [record for record in host.endpoints() if record.front_end.value == "cli"]
    host.kernel.lose(built.plan.steps[0].key)
    await host.reconciler.repair()
    assert host.dump() == before
    host.kernel.vanish("/run/netns/ns1")
    await host.reconciler.repair()
    assert ids(host) == {END} == {record.endpoint.id for record in host.endpoints()}
    await host.check()


async def test_new_namespace_at_the_same_path_gets_nothing_of_the_former(host: Host) -> None:
    """``ip netns del lab; ip netns add lab``, also between two lives of the daemon, or by a reboot."""
    for again in (host.reconciler.repair, host.reboot):
        host.kernel.vanish("/run/netns/ns1")
        host.kernel.appear("/run/netns/ns1")
        before = host.kernel.dump().count("/run/netns/ns1")
        await again()
        assert host.kernel.dump().count("/run/netns/ns1") == before == 0
        assert {record.endpoint.id for record in host.endpoints()} == {END}
        await host.check()
        await host.attach("ns1", ports=(tcp(9090),))


async def test_namespace_of_an_older_record_is_learned(host: Host) -> None:
    (built,) = [record for record in host.endpoints() if record.front_end.value == "cli"]
    known = {record.endpoint.id: record.sandbox_id for record in host.endpoints()}
    assert known[END] == ""  # Docker makes it later
    older = replace(built, sandbox_id="", plan=built.plan.of_namespace(""))
    await host.engine.registry.save(older)
    await host.reboot()
    now = {record.endpoint.id: record for record in host.endpoints()}
    assert now[built.endpoint.id] == built
    assert now[END].sandbox_id
    await host.check()
    host.kernel.vanish("/run/netns/ns1")
    host.kernel.appear("/run/netns/ns1")
    await host.reboot()
    assert {record.endpoint.id for record in host.endpoints()} == {END}
    await host.check()
    await host.engine.endpoints.leave(NET, END)
    assert host.endpoint().sandbox_id == ""


async def test_namespace_that_lives_on_without_its_path_is_left_alone(host: Host) -> None:
    """A process holds it, or it has another path: its link is there, and we do not reach inside."""
    host.kernel._world.gone.add("/run/netns/ns1")
    (built,) = [record for record in host.endpoints() if record.front_end.value == "cli"]
    (port,) = [step for step in built.exposed if isinstance(step, Element)]
    host.kernel.lose(port.key)
    before = host.kernel.dump().count("/run/netns/ns1")
    await host.reconciler.repair()
    assert host.kernel.dump().count("/run/netns/ns1") == before
    assert port.key in host.kernel._world.state
    assert built in host.endpoints()
    host.kernel._world.gone.clear()


async def test_reboot_of_the_host_leaves_networks_and_no_dead(host: Host) -> None:
    for key in list(host.kernel._world.state):
        host.kernel.lose(key)
    host.kernel.inhabitants.clear()
    host.kernel.vanish("/run/netns/ns1")
    await host.reboot()
    await host.check()
    assert (len(host.networks()), host.endpoints()) == (1, [])


async def test_ports_are_held_again_after_a_start(host: Host) -> None:
    await host.reboot()
    held = {step.port for step in host.kernel._world.state.values() if isinstance(step, HostPort)}
    assert held == {8080, 53, 9090}
    await host.check()


async def test_of_an_endpoint_only_its_sockets_are_made_anew_after_a_start(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With thousands of ports all the rest would take as long again. Those of a network are opened at once."""
    await host.kernel.close()
    calls: list[Sequence[Step]] = []
    done: list[Step] = []
    ensure = host.kernel.ensure

    async def noted(steps: Sequence[Step], *args: Any) -> list[Outcome]:
        calls.append(steps)
        done.extend(steps)
        return await ensure(steps, *args)

    monkeypatch.setattr(host.kernel, "ensure", noted)
    host.live()
    await host.reconciler.start()
    assert sum(any(isinstance(step, HostPort) for step in steps) for steps in calls) == 1  # a network
    of_endpoints = {step for record in host.engine.registry.endpoints() for step in record.present}
    assert {type(step) for step in done if step in of_endpoints} == {HostPort, Relay}
    assert {step.port for step in done if isinstance(step, HostPort)} == {8080, 53, 9090}
    await host.check()


async def test_port_taken_meanwhile_is_told_of(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    await host.kernel.close()
    host.kernel.foreign.ports.add((Proto.TCP, ip_address("0.0.0.0"), 8080))
    host.live()
    log = Mock()
    monkeypatch.setattr(reconcile, "log", log)
    await host.reconciler.start()
    [owner] = {record.described for record in host.endpoints() if record.front_end is FrontEnd.DOCKER}
    assert [it.kwargs["owner"] for it in log.warning.call_args_list if it.args == ("repair.failed",)] == [owner]
    missing = {d.object for d in await host.reconciler.diff() if d.object.startswith("hostport/")}
    assert missing == {"hostport/tcp/0.0.0.0/8080"}
    host.kernel.foreign.ports.clear()
    await host.reconciler.repair()
    await host.check()


# In the background


async def test_word_of_a_change_makes_it_look(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_changes, "SETTLE_S", 0.0)
    whole = set(host.kernel._world.state)
    async with running(host):
        for _ in range(2):
            host.kernel.lose(f"table/{ANTISPOOF}")
            host.kernel.changed.set()
            await until(lambda: whole <= set(host.kernel._world.state))
    await host.reconciler.repair()  # the end of the task may have come before that of its last mending
    await host.check()


async def test_slow_timer_looks_by_itself(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_changes, "INTERVAL_S", 0.01)
    async with running(host):
        host.kernel.lose("gate/4/nft")
        await until(lambda: "gate/4/nft" in host.kernel._world.state)


async def test_failed_look_is_not_the_last(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_changes, "INTERVAL_S", 0.01)
    tries = []
    compare = host.kernel.compare

    async def fails_twice(steps: Any) -> Any:
        tries.append(1)
        if len(tries) < 3:
            raise OSError("the kernel is out of order")
        return await compare(steps)

    monkeypatch.setattr(host.kernel, "compare", fails_twice)
    async with running(host):
        host.kernel.lose("gate/4/nft")
        await until(lambda: "gate/4/nft" in host.kernel._world.state)


async def test_one_step_that_cannot_be_mended_keeps_no_other_from_it(host: Host) -> None:
    """A bridge that is gone while somebody has the port of its name server; a gate that is refused beside others."""
    (network,) = host.networks()
    resolver = next(step for step in network.plan if isinstance(step, Resolver))
    gate, table = Gate(4, "nft"), host.made(Table)[0]
    host.kernel.fail_at(resolver.key)
    host.kernel.fail_at(gate.key)
    for step in (resolver, gate, table):
        host.kernel.lose(step.key)
    await host.reconciler.repair()
    assert {it.object for it in await host.reconciler.diff()} == {resolver.key, gate.key}
    host.kernel.heal()
    await host.reconciler.repair()
    assert await host.reconciler.diff() == []


async def test_what_is_built_while_the_same_is_swept_stays() -> None:
    host = await Host.boot()
    made = await host.docker_network(OTHER, "10.7.0.0/24")
    await host.docker_endpoint(NEXT, "10.7.0.2/24", network=OTHER)
    steps = (*host.engine.base_plan.plan, *made.plan, *host.endpoint(NEXT, OTHER).plan)
    await host.engine.networks.delete(OTHER, by=FrontEnd.DOCKER)
    await host.kernel.ensure(steps)  # nobody knows them
    remove, begun, go = host.kernel.remove, asyncio.Event(), asyncio.Event()

    async def slowly(unknown: Sequence[Step]) -> None:
        if not begun.is_set():
            begun.set()
            await go.wait()
        await remove(unknown)

    async def make() -> None:
        await host.docker_network(OTHER, "10.7.0.0/24")
        await host.docker_endpoint(NEXT, "10.7.0.2/24", network=OTHER)

    host.kernel.remove = slowly  # type: ignore[method-assign]
    async with asyncio.TaskGroup() as group:
        group.create_task(host.reconciler.repair())
        await begun.wait()
        made_anew = group.create_task(make())
        await asyncio.wait({made_anew}, timeout=0.2)  # as far as it comes
        go.set()
    await host.check()
    await host.close()


async def test_looks_are_rarer_with_as_many_routes_as_a_router_has(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_changes, "INTERVAL_S", 0.001)
    looks, compare = 0, host.kernel.compare

    async def counted(steps: Sequence[Step]) -> Comparison:
        nonlocal looks
        looks += 1
        return await compare(steps)

    host.kernel.compare = counted  # type: ignore[method-assign]
    async with running(host):
        await until(lambda: looks > 5, "looks by the timer")
        monkeypatch.setattr(base_plan, "ROUTE_S", 3600.0)  # as if there were a million times as many
        await until(lambda: host.engine.base_plan.rest_s() > 3600)
        before = looks
        await asyncio.sleep(0.2)  # the subject: but for those that had begun there is none
        assert looks <= before + 2
        before = looks
        host.kernel.changed.set()
        await until(lambda: looks > before, "a change is looked at all the same")


@pytest.mark.parametrize("writes", range(3))
async def test_what_cannot_be_written_keeps_nothing_else_from_being_repaired(
    host: Host, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """The disk is full from some moment of an attach on: what it began can be neither ended nor forgotten."""
    made, write, left = host.dump(), host.store.txn, writes

    async def refuse(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        if not left:
            raise StoreError("the disk is full")
        left -= 1
        return await write(*args, **kwargs)

    monkeypatch.setattr(host.store, "txn", refuse)
    with pytest.raises(StoreError):
        await host.attach("ns2")
    (bridge,) = (step.key for step in host.networks()[0].plan if isinstance(step, Bridge))
    host.kernel.lose(bridge)
    with suppress(StoreError):
        await host.reconciler.repair()
    assert bridge in host.kernel._world.state
    assert await host.reconciler.drift() == []
    monkeypatch.setattr(host.store, "txn", write)
    await host.reconciler.repair()
    assert host.dump() == made
    await host.check()
