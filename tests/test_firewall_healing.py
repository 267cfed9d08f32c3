"""The firewall follows the host, and what others took away is back: tables with all their elements, and the gate."""

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_interface, ip_network
from itertools import takewhile

import pytest
import pytest_asyncio
from engine_host import END, NET, NEXT, SANDBOX, Host, running, tcp, until
from former_state import booted, build
from kernel_calls import Noted, noted

from netplug.drivers import port_ranges
from netplug.drivers.api import HostFacts
from netplug.drivers.steps import Element, Gate, Passage, Step, Table
from netplug.drivers.tables import ANTISPOOF, HOST_MODE, NETWORKS
from netplug.engine import firewall_commits
from netplug.engine.records import FrontEnd

pytestmark = pytest.mark.usefixtures("quiet")
VXLAN = "inet netplug-vxlan"
DOCKER = ((4, "nft"), (6, "nft"))
"""Where Docker has rules, by iptables-nft."""


@pytest_asyncio.fixture
async def full() -> AsyncIterator[Host]:
    """A host with networks of each mode, and endpoints of each front end."""
    host = await booted()
    await build(host)
    yield host
    await host.close()


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    """A host with a bridge of its own, and no networks."""
    it = await Host.boot()
    it.kernel.foreign.links["br0"] = "bridge"
    it.kernel.foreign.addresses.add(("br0", ip_interface("10.9.0.1/24")))
    yield it
    await it.check()
    await it.close()


def elements(host: Host, *tables: str) -> set[Step]:
    return {step for table in tables for step in host.elements(table=table)}


def together(call: Noted) -> set[Step]:
    """Return the tables and elements at the beginning of a call: they are one transaction."""
    found = takewhile(lambda step: isinstance(step, Table | Element), call.steps)
    return {part for step in found for part in port_ranges.each(step)}


def harm(host: Host, name: str, how: str) -> Table:
    """Let others delete a table, or change its rules. Return it as it was."""
    table = next(step for step in host.made(Table) if step.key == f"table/{name}")
    if how == "lost":
        host.kernel.lose(table.key)
    else:
        host.kernel.tamper(replace(table, text=f"{table.text}\nchain theirs {{\n}}"))
    return table


# Tables


@pytest.mark.parametrize("how", ["lost", "changed"])
@pytest.mark.parametrize("name", [NETWORKS, ANTISPOOF, HOST_MODE, VXLAN])
@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
async def test_table_is_repaired_with_all_its_elements_at_once(
    full: Host, name: str, how: str, *, restarted: bool
) -> None:
    before, inside = full.dump(), elements(full, name)
    assert inside
    if restarted:
        await full.kernel.close()
        full.live()
    table = harm(full, name, how)
    with noted(full.kernel) as calls:
        await (full.reconciler.start() if restarted else full.reconciler.repair())
    first = next(call for call in calls if table in call.steps)
    others = {step for step in full.engine.base_plan.plan if isinstance(step, Table)}
    assert together(first) - others == inside
    assert not any(isinstance(step, Element) for call in calls[: calls.index(first)] for step in call.steps)
    assert full.dump() == before
    await full.check()


async def test_all_tables_are_repaired_at_once(full: Host) -> None:
    before, tables = full.dump(), (NETWORKS, ANTISPOOF, HOST_MODE, VXLAN)
    inside = elements(full, *tables)
    for name in tables:
        harm(full, name, "lost")
    with noted(full.kernel) as calls:
        await full.reconciler.repair()
    first = next(call for call in calls if any(isinstance(step, Table) for step in call.steps))
    assert {it for it in together(first) if isinstance(it, Element)} == inside
    assert full.dump() == before


async def test_table_does_not_get_elements_of_an_endpoint_that_left(host: Host) -> None:
    await host.docker_network()
    await host.docker_endpoint()
    host.kernel.inhabitants.add(SANDBOX)
    await host.join()
    await host.publish(END, tcp(8080))
    await host.engine.endpoints.leave(NET, END)
    before = host.dump()
    await host.kernel.close()
    host.live()
    for name in (NETWORKS, ANTISPOOF):
        harm(host, name, "lost")
    with noted(host.kernel) as calls:
        await host.reconciler.start()
    assert not any("nph" in step.key for call in calls for step in call.steps if isinstance(step, Element))
    assert host.dump() == before


async def test_table_that_is_flushed_after_a_restart_is_back_with_its_elements_without_waiting(
    full: Host,
) -> None:
    """By the quick repair alone, which knows no elements but those of the host."""
    await full.reboot()
    before, tables = full.dump(), (NETWORKS, ANTISPOOF, HOST_MODE, VXLAN)
    for name in tables:
        harm(full, name, "lost")
    assert not elements(full, *tables)
    assert await full.engine.base_plan.hold()
    assert full.dump() == before


async def test_element_that_is_refused_keeps_no_other_from_a_table(full: Host) -> None:
    before, bad = set(full.dump()), next(iter(full.elements("home4")))
    await full.kernel.close()
    full.live()
    harm(full, NETWORKS, "lost")
    full.kernel.fail_at(bad.key)
    await full.reconciler.start()
    assert before - set(full.dump()) == {bad.key}
    full.kernel.heal()
    await full.reconciler.repair()
    await full.check()


# The gate


@pytest.mark.parametrize("flavour", ["nft", "legacy"])
async def test_gate_comes_with_the_rules_of_others_and_goes_with_them(host: Host, flavour: str) -> None:
    await host.cli_network("10.3.0.0/24", "fd00:3::/64", ident=NEXT, name="red")
    await host.cli_network("10.9.0.0/24", "fd00:9::/64", bridge="br0")
    before = host.dump()
    assert not host.made(Gate)
    host.kernel.foreign.facts = replace(host.kernel.foreign.facts, gates=((4, flavour), (6, flavour)))
    await host.reconciler.repair()
    assert set(host.made(Gate)) == {Gate(4, flavour), Gate(6, flavour)}
    # On a bridge that the user named there may be others: only what is of the network passes.
    assert set(host.made(Passage)) == {
        Passage(4, flavour, "br0", ip_network("10.9.0.0/24")),
        Passage(6, flavour, "br0", ip_network("fd00:9::/64")),
    }
    await host.check()
    await host.reboot()
    await host.check()
    host.kernel.foreign.facts = replace(host.kernel.foreign.facts, gates=())
    await host.reconciler.repair()
    assert host.dump() == before
    await host.check()


async def test_gate_is_of_the_ip_versions_of_networks_alone(host: Host) -> None:
    await host.see(gates=(*DOCKER, (4, "legacy")))
    await host.cli_network("10.3.0.0/24")
    assert set(host.made(Gate)) == {Gate(4, "nft"), Gate(4, "legacy")}
    await host.cli_network("fd00:4::/64", ident=NEXT, name="red")
    assert set(host.made(Gate)) == {Gate(4, "nft"), Gate(6, "nft"), Gate(4, "legacy")}
    await host.engine.networks.delete("blue", by=FrontEnd.CLI)
    assert host.made(Gate) == [Gate(6, "nft")]


async def test_gate_of_docker_that_starts_later_is_there_soon(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firewall_commits, "SETTLE_S", 0.01)
    await host.cli_network("10.3.0.0/24")
    async with running(host):
        for gates in (DOCKER, (), ((4, "legacy"),)):
            host.kernel.foreign.facts = replace(host.kernel.foreign.facts, gates=gates)
            host.kernel.committed.set()
            wanted = [Gate(*it) for it in gates if it[0] == 4]
            await until(lambda wanted=wanted: host.made(Gate) == wanted)


async def test_lost_gate_comes_back_with_its_passages(host: Host) -> None:
    await host.see(gates=DOCKER)
    await host.cli_network("10.9.0.0/24", bridge="br0")
    before = host.dump()
    assert host.made(Passage)
    host.kernel.lose(Gate(4, "nft").key)
    assert not host.made(Passage)
    assert {it.owner for it in await host.reconciler.diff()} == {"host", "network blue"}
    await host.reconciler.repair()
    assert host.dump() == before


# Forwarding


async def test_others_are_forwarded_as_the_setting_says(host: Host) -> None:
    host.kernel.foreign.links |= {"eth0": "", "eth1": ""}
    host.kernel.foreign.addresses |= {
        ("eth0", ip_interface("192.0.2.1/24")),
        ("eth1", ip_interface("198.51.100.1/24")),
    }
    host.kernel.foreign.facts = HostFacts(forwarding=(), uplink="eth0")
    host.kernel._world.sysctls["net/ipv4/ip_forward"] = "0"

    async def begin(*, forward: bool) -> None:
        host.live()
        host.engine.base_plan.forward_others = forward
        await host.reconciler.start()

    await begin(forward=False)
    await host.cli_network("10.3.0.0/24")
    guarded = {step.item for step in host.elements("strangers4")}
    assert {"eth0", "eth1"} <= guarded
    await begin(forward=True)
    assert not host.elements("strangers4")
    await host.check()
    await begin(forward=False)
    assert {step.item for step in host.elements("strangers4")} == guarded


async def test_uplink_is_kept_apart_as_soon_as_it_comes_and_forgotten_when_it_goes(host: Host) -> None:
    host.kernel.foreign.links["eth0"] = ""
    host.kernel.foreign.addresses.add(("eth0", ip_interface("192.0.2.1/24")))
    host.kernel.foreign.facts = HostFacts(forwarding=(), uplink="eth0")
    host.kernel._world.sysctls["net/ipv4/ip_forward"] = "0"
    await host.cli_network("10.3.0.0/24")

    async def apart() -> set[str]:
        await host.reconciler._follow_host()
        return {step.item for step in host.elements("strangers4")}

    usual = await apart()
    assert "eth0" in usual
    assert "eth1" not in usual
    host.kernel.foreign.links["eth1"] = ""
    host.kernel.foreign.addresses.add(("eth1", ip_interface("198.51.100.1/24")))
    assert await apart() == usual | {"eth1"}
    host.kernel.foreign.addresses.discard(("eth1", ip_interface("198.51.100.1/24")))
    del host.kernel.foreign.links["eth1"]
    assert await apart() == usual
