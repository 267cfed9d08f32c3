"""What every kernel must do, whatever it is made of. Subclassed for the fake and for the real one."""

import asyncio
import os
from contextlib import nullcontext
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Protocol

import pytest
from owned import ENTRIES, links, tables

from netplug.drivers import antispoof, firewall, published_ports
from netplug.drivers.api import PortMapping
from netplug.drivers.plan import Plan
from netplug.drivers.steps import (
    Address,
    Announce,
    Bridge,
    Element,
    Flows,
    Hairpin,
    HostPort,
    Ifb,
    IPAddress,
    IPInterface,
    Loopback,
    Macvlan,
    Proto,
    Resolver,
    Route,
    Shape,
    SourceRoute,
    Step,
    Sysctl,
    Veth,
)
from netplug.drivers.tables import ANTISPOOF, NETWORKS
from netplug.drivers.tunnel import Vxlan
from netplug.errors import NetplugError
from netplug.kernel.api import HostKernel, Outcome, StepError
from netplug.kernel.executor import Executor
from netplug.kernel.links.api import SandboxLink

CREATED, ADJUSTED, EQUAL, USED = Outcome.CREATED, Outcome.ADJUSTED, Outcome.EQUAL, Outcome.USED


class Surroundings(Protocol):
    """The host around the kernel, and what others do to it."""

    def add_link(self, name: str, kind: str) -> None: ...
    def add_vxlan(self, name: str, vni: int, port: int) -> None: ...
    def add_address(self, link: str, address: IPInterface) -> None: ...
    def add_route(self, route: Route) -> None: ...
    def answers_by(self, step: SourceRoute) -> str:
        """Return the link by which a sandbox answers from an address; empty if that cannot be seen."""
        ...

    def take_port(self, proto: Proto, address: IPAddress, port: int) -> None: ...
    def keep_port(self, proto: Proto, address: IPAddress, port: int, container: str = "") -> int: ...
    def have_rules(self, family: int, flavour: str) -> None:
        """Let others have a rule about forwarded packets in iptables."""
        ...

    def leave_former_rules(self, family: int, flavour: str) -> None:
        """Let a release before 0.9 have left rules in tables nat and raw."""
        ...

    def sandbox(self) -> str: ...
    def vanish(self, netns: str) -> None: ...
    def appear(self, netns: str) -> None: ...
    def lose(self, step: Step) -> None: ...
    def set_mtu(self, step: Bridge | Veth | Vxlan, mtu: int) -> None: ...
    def move(self, step: Veth | Macvlan, netns: str) -> None: ...
    def tune(self, step: Veth | Macvlan, netns: str, mtu: int) -> None: ...
    def sandbox_mtu(self, step: Veth | Macvlan, netns: str) -> int: ...
    def indexes(self) -> dict[str, str]: ...
    def snapshot(self) -> str: ...


BRIDGE = Bridge("np-test", "02:00:00:00:00:01", 1500)
GATEWAY = Address("np-test", ip_interface("10.9.0.1/24"))
VETH = Veth("nphtest", "npstest", "02:00:00:00:01:01", "02:00:00:00:02:01", 1450, "np-test")
MACVLAN = Macvlan("npstest", "np-test", "bridge", "02:00:00:00:03:01", 1450)
RESOLVER = Resolver("blue", "np-test", ip_address("10.9.0.1"), 25353)
IFB = Ifb("npitest", "02:00:00:00:04:01")
HOST_MACVLAN = replace(MACVLAN, name="npmtest", mac="02:00:00:00:03:02", up=True)
NETWORKS_TABLE = firewall.table(NETWORKS, "networks")
ANTISPOOF_TABLE = firewall.table(ANTISPOOF, "antispoof")


async def refusal(kernel: HostKernel, *steps: Step) -> StepError:
    with pytest.raises(StepError) as caught:
        await kernel.ensure(steps)
    assert caught.value.step in steps
    return caught.value


async def whats(kernel: HostKernel, *steps: Step) -> list[str]:
    return [item.what for item in await kernel.drift(steps)]


async def gone(kernel: HostKernel, *steps: Step) -> None:
    """Remove twice: the second time nothing is there, which is fine."""
    await kernel.remove(steps)
    await kernel.remove(steps)
    await kernel.settle()


class KernelSuite:
    """Everything but the firewall."""

    @pytest.mark.parametrize(
        ("needs", "step"),
        [
            ((), BRIDGE),
            ((), replace(BRIDGE, mtu=68)),
            ((), replace(BRIDGE, mtu=65535)),
            ((BRIDGE,), VETH),
            ((BRIDGE,), replace(VETH, isolated=True)),
            ((BRIDGE,), replace(VETH, pinned=True)),
            ((BRIDGE,), replace(VETH, isolated=True, pinned=True)),
            ((BRIDGE, VETH), Hairpin("nphtest")),
            ((), replace(VETH, name="np-alone", master="")),
            ((BRIDGE,), MACVLAN),
            ((BRIDGE,), replace(MACVLAN, mode="passthru")),
            ((BRIDGE, MACVLAN), HOST_MACVLAN),
            ((BRIDGE, HOST_MACVLAN), Address("npmtest", ip_interface("10.9.0.9/32"))),
            ((BRIDGE, HOST_MACVLAN), Route(ip_network("10.9.0.2/32"), "npmtest")),
            ((BRIDGE,), GATEWAY),
            ((BRIDGE,), Address("np-test", ip_interface("fd00:9::1/64"))),
            ((BRIDGE, GATEWAY), Route(ip_network("10.8.0.0/16"), "np-test", ip_address("10.9.0.7"))),
            ((BRIDGE,), Route(ip_network("10.7.0.0/16"), "np-test")),
            ((BRIDGE,), Route(ip_network("fd00:7::/64"), "np-test")),
            ((BRIDGE, GATEWAY), RESOLVER),
            ((BRIDGE,), replace(RESOLVER, address=ip_address("fd00:9::1"))),
            ((), IFB),
            ((BRIDGE, VETH, IFB), Shape("nphtest", "npitest", (8_000_000, 9_000_000), (65_536, 70_000))),
            ((BRIDGE, VETH), Shape("nphtest", "", (8_000_000, 0), (65_536, 0))),
            ((BRIDGE, VETH, IFB), Shape("nphtest", "npitest", (0, 8_000_000), (0, 65_536))),
            ((), HostPort(Proto.TCP, ip_address("0.0.0.0"), 8080)),
            ((), HostPort(Proto.UDP, ip_address("::"), 8080)),
            ((), HostPort(Proto.TCP, ip_address("127.0.0.1"), 8080)),
        ],
        ids=lambda value: value.key if hasattr(value, "key") else "",
    )
    async def test_step_is_created_once_found_equal_and_removed(
        self, kernel: HostKernel, around: Surroundings, needs: tuple[Step, ...], step: Step
    ) -> None:
        before = around.snapshot()
        assert await kernel.ensure(needs) == [CREATED] * len(needs)
        between = around.snapshot()
        assert await whats(kernel, step) == ["missing"]
        assert await kernel.ensure((step,)) == [CREATED]
        assert await whats(kernel, *needs, step) == []
        assert await kernel.ensure((*needs, step)) == [EQUAL] * (len(needs) + 1)
        await gone(kernel, step)
        assert around.snapshot() == between
        assert len(await whats(kernel, step)) == 1
        await gone(kernel, *needs[::-1])
        assert around.snapshot() == before

    @pytest.mark.parametrize(
        ("needs", "step"),
        [
            ((), BRIDGE),
            ((BRIDGE,), VETH),
            ((BRIDGE,), GATEWAY),
            ((BRIDGE,), Route(ip_network("10.7.0.0/16"), "np-test")),
        ],
        ids=lambda value: value.key if hasattr(value, "key") else "",
    )
    async def test_what_others_deleted_is_missed_and_made_again(
        self, kernel: HostKernel, around: Surroundings, needs: tuple[Step, ...], step: Step
    ) -> None:
        await kernel.ensure((*needs, step))
        around.lose(step)
        assert await whats(kernel, *needs, step) == ["missing"]
        assert await kernel.ensure((*needs, step)) == [*[EQUAL] * len(needs), CREATED]

    async def test_limit_of_ours_follows_its_step(self, kernel: HostKernel) -> None:
        other = Shape("nphtest", "npitest", (40_000_000_000, 1_000_000), (1_048_576, 4_096))
        assert await kernel.ensure((BRIDGE, VETH, IFB, other)) == [CREATED] * 4
        assert await whats(kernel, other) == []
        step = replace(other, rate=(1_000_000, 1_000_000), burst=(4_096, 4_096))
        assert len(await whats(kernel, step)) == 1
        assert await kernel.ensure((step,)) == [ADJUSTED]
        assert await whats(kernel, BRIDGE, VETH, IFB, step) == []
        await gone(kernel, VETH)
        assert await whats(kernel, IFB, step) == ["missing"]
        await gone(kernel, step, IFB, BRIDGE)

    @pytest.mark.parametrize("step", [BRIDGE, VETH])
    async def test_link_of_ours_that_differs_is_adjusted(
        self, kernel: HostKernel, around: Surroundings, step: Bridge | Veth
    ) -> None:
        await kernel.ensure((BRIDGE, VETH))
        around.set_mtu(step, 1300)
        assert len(await whats(kernel, BRIDGE, VETH)) == 1
        assert await kernel.ensure((step,)) == [ADJUSTED]
        assert await whats(kernel, BRIDGE, VETH) == []

    @pytest.mark.parametrize(
        "wanted",
        [
            replace(VETH, mac="02:00:00:00:01:09"),
            replace(VETH, peer_mac="02:00:00:00:02:09"),
            replace(VETH, isolated=True),
            replace(VETH, master="np-other"),
        ],
    )
    async def test_veth_of_ours_follows_its_step(self, kernel: HostKernel, wanted: Veth) -> None:
        await kernel.ensure((BRIDGE, Bridge("np-other", "02:00:00:00:00:02", 1500), VETH))
        assert len(await whats(kernel, wanted)) == 1
        assert await kernel.ensure((wanted,)) == [ADJUSTED]
        assert await whats(kernel, wanted) == []
        assert await kernel.ensure((wanted,)) == [EQUAL]

    @pytest.mark.parametrize("pinned", [False, True])
    async def test_port_of_ours_is_pinned_or_not_as_its_step_says(self, kernel: HostKernel, *, pinned: bool) -> None:
        wanted = replace(VETH, pinned=pinned)
        await kernel.ensure((BRIDGE, replace(VETH, pinned=not pinned)))
        assert len(await whats(kernel, wanted)) == 1
        assert await kernel.ensure((wanted,)) == [ADJUSTED]
        assert await whats(kernel, wanted) == []
        assert await kernel.ensure((wanted,)) == [EQUAL]

    @pytest.mark.parametrize("step", [BRIDGE, VETH], ids=["bridge", "veth"])
    async def test_link_of_someone_else_is_refused_and_left_alone(
        self, kernel: HostKernel, around: Surroundings, step: Bridge | Veth
    ) -> None:
        await kernel.ensure((Bridge("np-other", "02:00:00:00:00:02", 1500),))
        around.add_link(step.name, "bridge")
        before = around.snapshot()
        wanted = step if isinstance(step, Bridge) else replace(step, master="np-other")
        error = await refusal(kernel, wanted)
        assert error.kind == "exists"
        assert step.name in error.message
        assert await whats(kernel, wanted) == ["is not ours"]
        await gone(kernel, wanted)
        assert around.snapshot() == before

    async def test_macvlan_in_a_sandbox_is_made_found_and_removed(
        self, kernel: HostKernel, around: Surroundings
    ) -> None:
        netns = around.sandbox()
        await kernel.ensure((BRIDGE,))
        before = around.snapshot()
        wanted = replace(MACVLAN, netns=netns, ifname="eth0")
        address = Address("eth0", ip_interface("10.9.0.2/24"), netns)
        assert await kernel.ensure((wanted, address)) == [CREATED, CREATED]
        assert await kernel.ensure((wanted, address)) == [EQUAL, EQUAL]
        assert await whats(kernel, wanted, address) == []
        await gone(kernel, wanted)
        assert await whats(kernel, wanted) == ["missing"]
        assert around.snapshot() == before

    async def test_macvlan_goes_with_its_sandbox(self, kernel: HostKernel, around: Surroundings) -> None:
        netns = around.sandbox()
        await kernel.ensure((BRIDGE,))
        wanted = replace(MACVLAN, netns=netns, ifname="eth0")
        await kernel.ensure((wanted, replace(VETH, peer="veth0", netns=netns)))
        around.vanish(netns)
        assert await whats(kernel, wanted) == ["missing"]
        await gone(kernel, wanted)

    async def test_second_macvlan_beside_passthru_is_refused(self, kernel: HostKernel) -> None:
        await kernel.ensure((BRIDGE, replace(MACVLAN, mode="passthru")))
        error = await refusal(kernel, HOST_MACVLAN)
        assert (error.kind, "passthru" in error.message) == ("unavailable", True)

    async def test_macvlan_on_nothing_is_refused(self, kernel: HostKernel) -> None:
        error = await refusal(kernel, MACVLAN)
        assert (error.kind, "np-test" in error.message) == ("not_found", True)

    async def test_announcing_is_an_event_and_no_object(self, kernel: HostKernel) -> None:
        await kernel.ensure((BRIDGE,))
        for address in map(ip_address, ("10.9.0.2", "fd00:9::2")):
            step = Announce("np-test", "02:00:00:00:03:01", address)
            assert await kernel.ensure((step,)) == [EQUAL]
            assert await whats(kernel, step) == []
            await gone(kernel, step)

    async def test_segment_without_strangers_is_silent(self, kernel: HostKernel) -> None:
        await kernel.ensure((BRIDGE,))
        assert await kernel.probe.addresses_in_use("np-test", tuple(map(ip_address, ("10.9.0.77", "fd00:9::77")))) == {}
        with pytest.raises(NetplugError, match="np-gone") as caught:
            await kernel.probe.addresses_in_use("np-gone", (ip_address("10.9.0.77"),))
        assert caught.value.kind == "unavailable"

    async def test_peer_name_of_someone_else_is_refused(self, kernel: HostKernel, around: Surroundings) -> None:
        await kernel.ensure((BRIDGE,))
        around.add_link("npstest", "veth")
        error = await refusal(kernel, VETH)
        assert (error.kind, "npstest" in error.message) == ("exists", True)

    async def test_adopted_bridge_is_used_and_never_deleted(self, kernel: HostKernel, around: Surroundings) -> None:
        around.add_link("br0", "bridge")
        before = around.snapshot()
        step = Bridge("br0", "02:00:00:00:00:01", 1400, adopt=True)
        assert await kernel.ensure((step,)) == [USED]
        assert await whats(kernel, step) == []
        await gone(kernel, step)
        assert around.snapshot() == before
        assert links(await kernel.owned()) == frozenset()

    async def test_bridge_to_adopt_is_made_if_there_is_none(self, kernel: HostKernel) -> None:
        step = Bridge("br0", "02:00:00:00:00:01", 1400, adopt=True)
        assert await kernel.ensure((step,)) == [CREATED]
        assert await kernel.ensure((step,)) == [EQUAL]
        assert links(await kernel.owned()) == {"br0"}

    async def test_link_to_adopt_that_is_no_bridge_is_invalid(self, kernel: HostKernel, around: Surroundings) -> None:
        around.add_link("pair0", "veth")
        error = await refusal(kernel, Bridge("pair0", "02:00:00:00:00:01", 1400, adopt=True))
        assert error.kind == "invalid"

    @pytest.mark.parametrize(
        ("step", "named"),
        [
            (VETH, "np-test"),
            (Hairpin("nphtest"), "nphtest"),
            (Shape("nphtest", "npitest", (8_000_000, 9_000_000), (65_536, 70_000)), "nphtest"),
            (GATEWAY, "np-test"),
            (Route(ip_network("10.7.0.0/16"), "np-test"), "np-test"),
            (Element(NETWORKS, "guarded", "np-test"), NETWORKS),
            (Sysctl("net/ipv4/conf/np-test/route_localnet", "1"), "np-test"),
            (RESOLVER, "np-test"),
            (Address("eth0", ip_interface("10.9.0.2/24"), "/run/netns/np-nowhere"), "np-nowhere"),
        ],
        ids=lambda value: value.key if hasattr(value, "key") else "",
    )
    async def test_step_without_what_it_builds_on_names_it(
        self, kernel: HostKernel, around: Surroundings, step: Step, named: str
    ) -> None:
        if isinstance(step, Address) and step.netns:
            around.vanish(step.netns)
        error = await refusal(kernel, step)
        assert error.kind == "not_found"
        assert named in error.message
        await gone(kernel, step)

    async def test_steps_before_the_failing_one_stay_and_are_told(self, kernel: HostKernel) -> None:
        outcomes: list[Outcome] = []
        with pytest.raises(StepError):
            await kernel.ensure((BRIDGE, GATEWAY, Hairpin("nowhere"), VETH), outcomes)
        assert outcomes == [CREATED, CREATED]
        assert await whats(kernel, BRIDGE, GATEWAY, VETH) == ["missing"]

    async def test_veth_is_made_directly_in_a_sandbox(self, kernel: HostKernel, around: Surroundings) -> None:
        netns = around.sandbox()
        steps: list[Step] = [
            BRIDGE,
            replace(VETH, netns=netns, peer="eth0"),
            Address("eth0", ip_interface("10.9.0.2/24"), netns),
            Address("eth0", ip_interface("fd00:9::2/64"), netns),
            Route(ip_network("0.0.0.0/0"), "eth0", ip_address("10.9.0.1"), netns),
            Route(ip_network("::/0"), "eth0", ip_address("fd00:9::1"), netns),
        ]
        assert await kernel.ensure(steps) == [CREATED] * 6
        assert await whats(kernel, *steps) == []
        assert await kernel.ensure(steps) == [EQUAL] * 6
        assert links(await kernel.owned()) == {"np-test", "nphtest"}
        await gone(kernel, *steps[:1:-1])
        assert await whats(kernel, *steps) == ["missing"] * 4
        await gone(kernel, *steps[1::-1])

    async def test_loopback_of_a_sandbox_comes_up_and_stays(self, kernel: HostKernel, around: Surroundings) -> None:
        """It was there before, and who comes later may need it."""
        step = Loopback(around.sandbox())
        assert await whats(kernel, step) == ["is down"]
        assert await kernel.ensure((step,)) == [ADJUSTED]
        assert await kernel.ensure((step,)) == [EQUAL]
        await kernel.remove((step,))
        assert await whats(kernel, step) == []
        nowhere = Loopback("/run/netns/np-nowhere")
        around.vanish(nowhere.netns)
        assert await whats(kernel, nowhere) == ["missing"]
        await kernel.remove((nowhere,))
        assert (await refusal(kernel, nowhere)).kind == "not_found"

    async def test_removing_from_a_vanished_sandbox_is_success(self, kernel: HostKernel, around: Surroundings) -> None:
        netns = around.sandbox()
        steps: list[Step] = [
            BRIDGE,
            replace(VETH, netns=netns, peer="eth0"),
            Address("eth0", ip_interface("10.9.0.2/24"), netns),
        ]
        await kernel.ensure(steps)
        around.vanish(netns)
        assert await whats(kernel, *steps) == ["missing", "missing"]
        await gone(kernel, *steps[::-1])

    async def test_namespace_in_the_place_of_another_is_not_touched(
        self, kernel: HostKernel, around: Surroundings
    ) -> None:
        """Its path may be that of a former life, and its inode too."""
        netns = around.sandbox()
        _, former = await kernel.sandboxes.find(netns)
        peer = replace(VETH, netns=netns, peer="eth0")
        address = Address("eth0", ip_interface("10.9.0.2/24"), netns)
        way = Route(ip_network("0.0.0.0/0"), "eth0", ip_address("10.9.0.1"), netns)
        plan = Plan((peer, address, way, Loopback(netns)))
        await kernel.ensure((BRIDGE, *plan.of_namespace(former)))
        assert await whats(kernel, *plan, *plan.of_namespace(former)) == []
        assert await kernel.sandboxes.gateways(netns) == {ip_address("10.9.0.1")}
        around.vanish(netns)
        assert await kernel.sandboxes.gateways(netns) == set()
        around.appear(netns)
        _, later = await kernel.sandboxes.find(netns)
        assert later != former
        assert await kernel.sandboxes.gateways(netns) == set()
        await kernel.ensure(tuple(plan.of_namespace(later)))
        assert await whats(kernel, *plan.of_namespace(former).steps[1:]) == ["missing"] * 3
        for step in plan.of_namespace(former):
            assert (await refusal(kernel, step)).kind == "not_found"
        await gone(kernel, *plan.of_namespace(former).steps[:0:-1])
        assert await whats(kernel, *plan.of_namespace(later)) == []
        assert not await kernel.sandboxes.has_processes(netns, former)

    async def test_link_removed_can_be_made_again_at_once(self, kernel: HostKernel) -> None:
        await kernel.ensure((BRIDGE, VETH))
        for _ in range(3):
            await kernel.remove((VETH,))
            assert await kernel.ensure((VETH,)) == [CREATED]
        assert await whats(kernel, BRIDGE, VETH) == []

    async def test_many_links_are_removed_together(self, kernel: HostKernel, around: Surroundings) -> None:
        before = around.snapshot()
        veths = [replace(VETH, name=f"nph{i}", peer=f"nps{i}") for i in range(10)]
        await kernel.ensure((BRIDGE, *veths))
        await asyncio.gather(*(kernel.remove((veth,)) for veth in veths))
        assert links(await kernel.owned()) == {"np-test"}
        await kernel.remove((BRIDGE,))
        await kernel.settle()
        assert around.snapshot() == before

    async def test_address_of_someone_else_is_used_and_stays(self, kernel: HostKernel, around: Surroundings) -> None:
        around.add_link("br0", "bridge")
        around.add_address("br0", ip_interface("10.9.0.1/24"))
        before = around.snapshot()
        step = Address("br0", ip_interface("10.9.0.1/24"))
        assert await kernel.ensure((step,)) == [USED]
        assert await whats(kernel, step) == []
        await gone(kernel, step)
        assert around.snapshot() == before

    async def test_route_of_someone_else_is_used_or_refused_and_stays(
        self, kernel: HostKernel, around: Surroundings
    ) -> None:
        around.add_link("br0", "bridge")
        around.add_address("br0", ip_interface("10.9.0.1/24"))
        step = Route(ip_network("10.7.0.0/16"), "br0", ip_address("10.9.0.7"))
        around.add_route(step)
        before = around.snapshot()
        assert await kernel.ensure((step,)) == [USED]
        assert (await refusal(kernel, replace(step, gateway=ip_address("10.9.0.8")))).kind == "exists"
        await gone(kernel, step)
        assert around.snapshot() == before

    async def test_route_of_ours_follows_its_step(self, kernel: HostKernel) -> None:
        step = Route(ip_network("10.7.0.0/16"), "np-test", ip_address("10.9.0.7"))
        other = replace(step, gateway=ip_address("10.9.0.8"))
        await kernel.ensure((BRIDGE, GATEWAY, step))
        assert len(await whats(kernel, other)) == 1
        assert await kernel.ensure((other,)) == [ADJUSTED]
        assert await whats(kernel, other) == []

    async def test_unreachable_gateway_is_invalid(self, kernel: HostKernel) -> None:
        await kernel.ensure((BRIDGE, GATEWAY))
        error = await refusal(kernel, Route(ip_network("10.7.0.0/16"), "np-test", ip_address("192.0.2.1")))
        assert (error.kind, "192.0.2.1" in error.message) == ("invalid", True)

    async def test_sysctl_that_we_changed_is_set_back_if_wanted(self, kernel: HostKernel) -> None:
        step = Sysctl("net/ipv4/conf/np-test/route_localnet", "1", restore="0")
        await kernel.ensure((BRIDGE,))
        assert await kernel.ensure((step,)) == [Outcome.CREATED]
        assert await kernel.ensure((step,)) == [Outcome.USED]
        await kernel.remove((step,))
        assert await whats(kernel, step) == ["is 0, not 1"]

    async def test_sysctl_that_another_one_changes_is_set_back(self, kernel: HostKernel) -> None:
        """As ``accept_redirects`` by ``ip_forward``."""
        step = Sysctl("net/ipv4/conf/np-test/route_localnet", "0", restore="0")
        await kernel.ensure((BRIDGE, step))
        await kernel.ensure((replace(step, value="1", restore=""),))
        await kernel.remove((step,))
        assert await whats(kernel, step) == []

    async def test_sysctl_is_set_and_never_taken_back(self, kernel: HostKernel) -> None:
        step = Sysctl("net/ipv4/conf/np-test/route_localnet", "1")
        await kernel.ensure((BRIDGE,))
        assert len(await whats(kernel, step)) == 1
        assert await kernel.ensure((step,)) == [ADJUSTED]
        assert await kernel.ensure((step,)) == [EQUAL]
        await gone(kernel, step)
        assert await whats(kernel, step) == []

    async def test_port_of_someone_else_is_named(self, kernel: HostKernel, around: Surroundings) -> None:
        around.take_port(Proto.TCP, ip_address("127.0.0.1"), 8080)
        around.take_port(Proto.UDP, ip_address("0.0.0.0"), 8081)
        error = await refusal(kernel, HostPort(Proto.TCP, ip_address("0.0.0.0"), 8080))
        assert error.kind == "unavailable"
        assert error.message == "port 0.0.0.0:8080/tcp is already in use on this host"
        error = await refusal(kernel, HostPort(Proto.UDP, ip_address("0.0.0.0"), 8081))
        assert error.message == "port 0.0.0.0:8081/udp is already in use on this host"
        assert await kernel.ensure((HostPort(Proto.TCP, ip_address("::"), 8080),)) == [CREATED]

    async def test_port_is_ours_until_removed(self, kernel: HostKernel) -> None:
        step = HostPort(Proto.UDP, ip_address("0.0.0.0"), 8080)
        await kernel.ensure((step,))
        with pytest.raises(NetplugError, match="already in use"):
            await kernel.ports.reserve(Proto.UDP, ip_address("127.0.0.1"), 8080, 8080)
        await kernel.remove((step,))
        assert await kernel.ports.reserve(Proto.UDP, ip_address("127.0.0.1"), 8080, 8080) == 8080

    @pytest.mark.parametrize("proto", [Proto.TCP, Proto.UDP])
    async def test_shared_port_is_left_to_its_runtime(
        self, kernel: HostKernel, around: Surroundings, proto: Proto
    ) -> None:
        anywhere = ip_address("0.0.0.0")
        assert await kernel.ports.reserve(proto, anywhere, 8080, 8080) == 8080
        step = HostPort(proto, anywhere, 8080, shared=True)
        assert await kernel.ensure((step,)) == [EQUAL]
        around.take_port(proto, anywhere, 8080)
        assert await kernel.ensure((step,)) == [EQUAL]
        assert await whats(kernel, step) == []
        with pytest.raises(NetplugError, match="already in use"):
            await kernel.ports.reserve(proto, ip_address("127.0.0.1"), 8080, 8080)
        await gone(kernel, step)
        assert await kernel.ensure((step,)) == [CREATED]

    @pytest.mark.parametrize("kept", ["0.0.0.0", "127.0.0.1"])
    @pytest.mark.parametrize("proto", [Proto.TCP, Proto.UDP])
    async def test_port_that_the_runtime_keeps_is_free_to_it_alone(
        self, kernel: HostKernel, around: Surroundings, proto: Proto, kept: str
    ) -> None:
        pid = around.keep_port(proto, ip_address(kept), 8080)
        inside, anywhere = ip_address("127.0.0.1"), ip_address("0.0.0.0")
        for theirs in (None, kernel.ports.reservations(os.getpid(), "c0" * 32)):
            with pytest.raises(NetplugError, match="already in use"):
                await kernel.ports.reserve(proto, inside, 8080, 8080, theirs)
        theirs = kernel.ports.reservations(pid, "c0" * 32)
        assert await kernel.ports.reserve(proto, inside, 8080, 8080, theirs) == 8080
        step = HostPort(proto, inside, 8080, shared=True)
        assert await kernel.ensure((step,)) == [EQUAL]
        with pytest.raises(NetplugError, match="already in use"):  # by us: another of its containers has it
            await kernel.ports.reserve(proto, inside, 8080, 8080, theirs)
        await kernel.remove((step,))
        with pytest.raises(NetplugError, match="already in use") if kept != "0.0.0.0" else nullcontext():
            await kernel.ports.reserve(proto, anywhere, 8080, 8080, theirs)

    async def test_port_that_is_kept_for_the_container_is_free_to_it(
        self, kernel: HostKernel, around: Surroundings
    ) -> None:
        around.keep_port(Proto.TCP, ip_address("0.0.0.0"), 8080, "c0" * 32)
        anywhere = ip_address("0.0.0.0")
        with pytest.raises(NetplugError, match="already in use"):
            await kernel.ports.reserve(
                Proto.TCP, anywhere, 8080, 8080, kernel.ports.reservations(os.getpid(), "c1" * 32)
            )
        theirs = kernel.ports.reservations(os.getpid(), "c0" * 32)
        assert await kernel.ports.reserve(Proto.TCP, anywhere, 8080, 8080, theirs) == 8080

    @pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
    async def test_port_of_an_address_that_may_come_later_is_reserved(self, kernel: HostKernel, address: str) -> None:
        for proto in (Proto.TCP, Proto.UDP):
            step = HostPort(proto, ip_address(address), 8080)
            assert await kernel.ensure((step,)) == [CREATED]
            await gone(kernel, step)

    async def test_free_port_is_chosen_and_kept(self, kernel: HostKernel) -> None:
        port = await kernel.ports.reserve(Proto.TCP, ip_address("0.0.0.0"), 0, 0)
        assert 1024 <= port <= 65535
        assert await kernel.ensure((HostPort(Proto.TCP, ip_address("0.0.0.0"), port),)) == [EQUAL]

    async def test_first_free_port_of_a_range_is_chosen(self, kernel: HostKernel, around: Surroundings) -> None:
        around.take_port(Proto.TCP, ip_address("0.0.0.0"), 8080)
        anywhere = ip_address("0.0.0.0")
        assert await kernel.ports.reserve(Proto.TCP, anywhere, 8080, 8082) == 8081
        assert await kernel.ports.reserve(Proto.TCP, anywhere, 8080, 8082) == 8082
        with pytest.raises(NetplugError) as caught:
            await kernel.ports.reserve(Proto.TCP, anywhere, 8080, 8082)
        assert caught.value.kind == "unavailable"
        assert "8080-8082" in caught.value.message

    async def test_flows_are_new_once(self, kernel: HostKernel) -> None:
        step = Flows(Proto.UDP, 8080, ip_address("10.9.0.2"))
        assert await kernel.ensure((step,)) == [CREATED]
        assert await kernel.ensure((step,)) == [EQUAL]
        assert await whats(kernel, step) == []
        await gone(kernel, step)

    async def test_counters_are_of_links_that_are_there(self, kernel: HostKernel, around: Surroundings) -> None:
        netns = around.sandbox()
        macvlan = Macvlan("np-mac", BRIDGE.name, "bridge", "02:00:00:00:00:09", 1500, ifname="net0", netns=netns)
        await kernel.ensure([BRIDGE, VETH, macvlan])
        found = await kernel.traffic.of_host({BRIDGE.name, VETH.name, "nobody"})
        assert found.keys() == {BRIDGE.name, VETH.name}
        by_name, by_mac = SandboxLink(netns, "", "net0", ""), SandboxLink(netns, "", "", macvlan.mac)
        other = SandboxLink(netns, "", "net1", "")
        assert (await kernel.traffic.of_sandboxes({by_name, by_mac, other})).keys() == {by_name, by_mac}
        assert await kernel.traffic.of_sandboxes({by_name._replace(netns="/run/netns/np-nobody")}) == {}

    async def test_facts_tell_links_and_routes(self, kernel: HostKernel, around: Surroundings) -> None:
        around.add_link("br0", "bridge")
        around.add_address("br0", ip_interface("10.5.0.1/24"))
        await kernel.ensure((BRIDGE, GATEWAY, VETH, NETWORKS_TABLE))
        facts = await kernel.facts()
        assert facts.kind_of("br0") == facts.kind_of("np-test") == "bridge"
        assert facts.kind_of("nphtest") == facts.kind_of("npstest") == "veth"
        assert (ip_network("10.5.0.0/24"), "br0") in facts.routes
        assert (ip_interface("10.5.0.1/24"), "br0") in facts.addresses
        assert (ip_network("10.9.0.0/24"), "np-test") in facts.routes
        assert (facts.mtu, facts.uplink) == (1500, "")
        assert (facts.chains, facts.gates, facts.tables) == ((), (), ())

    async def test_owned_tells_all_that_is_ours_and_nothing_else(
        self, kernel: HostKernel, around: Surroundings
    ) -> None:
        around.add_link("br0", "bridge")
        around.have_rules(4, "nft")
        home = Element(NETWORKS, "home4", "10.9.0.0/24 . np-test")
        await kernel.ensure((BRIDGE, VETH, NETWORKS_TABLE, home))
        owned = await kernel.owned()
        assert links(owned) == {"np-test", "nphtest"}
        assert tables(owned) == {NETWORKS}
        assert owned.of(*ENTRIES) == {home}
        assert {step.key for step in owned.steps()} == {BRIDGE.key, VETH.key, NETWORKS_TABLE.key, home.key}

    async def test_whole_endpoint_leaves_nothing(self, kernel: HostKernel, around: Surroundings) -> None:
        before = around.snapshot()
        executor = Executor(kernel)
        base = firewall.base((4, 6), await kernel.facts()) + Plan((ANTISPOOF_TABLE,))
        network = Plan((BRIDGE, GATEWAY, Sysctl("net/ipv4/conf/np-test/route_localnet", "1")))
        network += Plan((Element(NETWORKS, "from", "np-test", "goto from_open"),)) + antispoof.bridge(BRIDGE.mac)
        anywhere, inside = ip_address("0.0.0.0"), ip_address("10.9.0.2")
        publish = published_ports.publish(PortMapping(Proto.UDP, 80, host_port=8080), anywhere, inside)
        publish += published_ports.publish(PortMapping(Proto.TCP, 80, host_port=8080), anywhere, inside)
        guard = antispoof.own(VETH.name, VETH.peer_mac, (inside,))
        plans = [base, network, guard + Plan((VETH, Hairpin("nphtest"))) + publish]
        for plan in plans:
            await executor.apply(plan)
        for plan in plans:
            assert await executor.drift(plan) == ()
        for plan in plans[::-1]:
            await executor.revert(plan)
        await kernel.settle()
        assert around.snapshot() == before
        assert (await kernel.owned()).steps() == []
