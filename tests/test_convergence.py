"""Plans follow from records: other facts of the host, other drivers, other options reach what lives."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from built_in_drivers import DRIVERS
from engine_host import END, NET, SANDBOX, Host, running, tcp, until
from kernel_calls import refusing

from netplug.drivers.api import HostFacts
from netplug.drivers.bridge import BridgeDriver
from netplug.drivers.naming import host_side
from netplug.drivers.plan import Plan
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import Bridge, Element, Hairpin, Macvlan, Shape, Veth
from netplug.drivers.tables import ANTISPOOF
from netplug.engine.convergence import Change
from netplug.engine.records import NetworkRecord
from netplug.errors import NetplugError

pytestmark = pytest.mark.usefixtures("quiet")


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    """A network with a joined and published endpoint of Docker's and an attached namespace."""
    host = await Host.boot()
    host.kernel.foreign.links["eth0"] = ""
    host.kernel.foreign.facts = HostFacts(mtu=1500, uplink="eth0")
    await host.docker_network()
    await host.docker_endpoint()
    host.kernel.inhabitants.add(SANDBOX)
    await host.join()
    await host.publish(END, tcp(8080))
    await host.attach("ns1", ports=(tcp(9090),))
    yield host
    await host.close()


def mtus(host: Host) -> set[int]:
    return {step.mtu for step in host.kernel._world.state.values() if isinstance(step, Bridge | Veth)}


def changed(host: Host, **options: object) -> NetworkRecord:
    record = host.engine.registry.network(NET)
    net = replace(record.network, options=replace(record.network.options, **options))  # type: ignore[arg-type]
    raw = {**record.options, **({"mtu": str(options["mtu"])} if "mtu" in options else {})}
    return replace(record, network=net, options=raw)


async def change(host: Host, **options: object) -> list[Change]:
    async with host.engine.registry.lock(NET):
        return await host.engine.convergence.change(changed(host, **options))


# Facts


async def test_mtu_of_the_uplink_reaches_what_lives(host: Host) -> None:
    await host.see(mtu=1400)
    await host.engine.convergence.all()
    assert mtus(host) == {1400}
    assert host.endpoint().attachment.mtu == 1400
    await host.check()
    await host.reboot()
    assert mtus(host) == {1400}
    await host.check()


async def test_mtu_is_followed_at_once_and_by_comparison(host: Host) -> None:
    async with running(host):
        host.kernel.foreign.facts = HostFacts(mtu=1400, uplink="eth0")
        await until(lambda: host.kernel.moved.set() or mtus(host) == {1400})
        host.kernel.foreign.facts = HostFacts(mtu=9000, uplink="eth0")
        await host.reconciler.repair()
        assert mtus(host) == {9000}


async def test_mtu_that_the_user_chose_stays() -> None:
    host = await Host.boot()
    await host.cli_network(mtu="1300")
    await host.attach("ns1")
    await host.see(mtu=1400, uplink="eth0")
    assert not await host.engine.convergence.network(NET)
    assert mtus(host) == {1300}
    await host.close()


async def test_host_without_uplink_keeps_the_mtu(host: Host) -> None:
    await host.see(mtu=1400, uplink="")
    await host.engine.convergence.all()
    assert mtus(host) == {1500}


async def test_mtu_of_a_parent_is_followed_without_an_uplink() -> None:
    host = await Host.boot()
    host.kernel.foreign.links["eth1"] = ""
    await host.cli_network("192.168.1.0/24", name="lan", mode="macvlan", parent="eth1")
    await host.attach("ns1")
    host.kernel.foreign.mtus["eth1"] = 1400
    await host.see(uplink="")
    await host.engine.convergence.all()
    assert {step.mtu for step in host.made(Macvlan)} == {1400}
    await host.close()


async def test_nothing_is_computed_twice(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    await host.engine.convergence.all()
    computed = []
    monkeypatch.setattr(BridgeDriver, "create_network", lambda *_: computed.append(1) or Plan())
    await host.see(routes=(), chains=((4, "DOCKER"),))
    await host.engine.convergence.all()
    assert not computed
    await host.engine.convergence._follow(NET)
    assert computed


async def test_endpoint_that_came_meanwhile_is_not_forgotten(host: Host) -> None:
    await host.engine.convergence.all()
    await host.see(mtu=1400)
    await host.attach("ns2")
    await host.engine.convergence.all()
    assert mtus(host) == {1400}
    await host.check()


# Drivers


class Former(BridgeDriver):
    """A driver of another version: no anti-spoofing, and hairpin everywhere."""

    def create_endpoint(self, net: Any, ep: Any, host: Any) -> Plan:
        plan = Plan(tuple(step for step in super().create_endpoint(net, ep, host) if not isinstance(step, Element)))
        return plan + Plan((Hairpin(host_side(ep.id)),))


async def test_what_another_version_built_becomes_what_this_one_builds() -> None:
    host = await Host.boot()
    host.engine.drivers._drivers["bridge"] = Former()
    try:
        await host.docker_network()
        await host.docker_endpoint()
        host.kernel.inhabitants.add(SANDBOX)
        await host.join()
        assert {it.set for it in host.elements(table=ANTISPOOF)} == {"bridges"}
    finally:
        DRIVERS._drivers["bridge"] = BridgeDriver()
    veth = host.made(Veth)
    await host.reboot()
    guarded = host.elements("macs", "own4", "own6", table=ANTISPOOF)
    assert {it.item.partition(" ")[0] for it in guarded} == {host_side(END)}
    assert not host.made(Hairpin)
    assert host.made(Veth) == veth
    await host.check()
    assert isinstance(DRIVERS, Drivers)
    await host.close()


# Users


async def test_change_reaches_network_and_endpoints(host: Host) -> None:
    found = await change(host, rate=(8_000_000, 9_000_000), masquerade=False, spoofchk=False)
    assert len(host.made(Shape)) == 2
    assert {it.set for it in host.elements(table=ANTISPOOF)} == {"exempt"}
    assert not host.elements("masqueraded")
    assert {(one.what, one.object.partition("/")[0]) for one in found} == {
        ("added", "shape"),
        ("added", "link"),  # ifb
        ("changed", "link"),  # veth, no longer pinned
        ("added", "element"),  # exempt from anti-spoofing
        ("removed", "element"),  # anti-spoofing, source NAT
    }
    assert {one.owner for one in found} == {
        f"network {host.networks()[0].network.name}",
        *(f"endpoint {record.endpoint.id[:12]}" for record in host.endpoints()),
    }
    await host.check()
    await host.reboot()
    assert len(host.made(Shape)) == 2
    await host.check()
    await change(host, rate=None, masquerade=True, spoofchk=True)
    await host.check()


async def test_preview_changes_nothing(host: Host) -> None:
    before = await host.state()
    found, _ = await host.engine.convergence.preview(changed(host, rate=(8_000_000, 9_000_000)))
    assert {one.what for one in found} == {"added"}
    assert await host.state() == before
    assert found == await change(host, rate=(8_000_000, 9_000_000))


async def test_change_that_the_kernel_refuses_changes_nothing(host: Host) -> None:
    await host.engine.convergence.all()
    before = await host.state()

    with (
        refusing(host.kernel, lambda step: isinstance(step, Shape)),
        pytest.raises(NetplugError, match="the kernel refused"),
    ):
        await change(host, rate=(8_000_000, 9_000_000), spoofchk=False, mtu=1400)
    assert await host.state() == before
    await host.check()


async def test_what_cannot_be_followed_is_a_difference_and_stops_nothing(host: Host) -> None:
    bad = host_side(END)
    with refusing(host.kernel, lambda step: isinstance(step, Veth) and step.name == bad and step.mtu == 1400):
        await host.see(mtu=1400)
        await host.engine.convergence.all()
        assert mtus(host) == {1400, 1500}
        assert [one.object for one in await host.reconciler.diff()] == [f"link/{bad}"]
    await host.reconciler.repair()
    assert mtus(host) == {1400}
    await host.check()


async def test_dead_sandbox_keeps_nobody_from_a_change(host: Host) -> None:
    host.kernel.vanish("/run/netns/ns1")
    await change(host, rate=(8_000_000, 9_000_000), mtu=1400)
    assert len(host.made(Shape)) == 1
    await host.reconciler.repair()
    assert len(host.endpoints()) == 1
    await host.check()


async def test_endpoint_that_left_gets_the_change_with_its_next_join(host: Host) -> None:
    await host.engine.endpoints.leave(NET, END)
    await change(host, rate=(8_000_000, 9_000_000), mtu=1400)
    assert len(host.made(Shape)) == 1
    await host.check()
    await host.join()
    assert len(host.made(Shape)) == 2
    assert mtus(host) == {1400}
    await host.check()
