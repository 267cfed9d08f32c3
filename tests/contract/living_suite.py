"""How objects that live follow their steps when options of their network change. For the fake and for the real kernel.

Nothing is deleted or made anew, so that traffic goes on.
"""

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from kernel_suite import (
    ADJUSTED,
    ANTISPOOF_TABLE,
    BRIDGE,
    CREATED,
    EQUAL,
    GATEWAY,
    IFB,
    MACVLAN,
    NETWORKS_TABLE,
    RESOLVER,
    VETH,
    Surroundings,
    refusal,
    whats,
)
from tunnel_suite import EVERYBODY, VXLAN, WAY, WAYS

from netplug.drivers import antispoof
from netplug.drivers.plan import Plan
from netplug.drivers.sandbox import reaching
from netplug.drivers.steps import (
    Address,
    Element,
    Route,
    Shape,
    SourceRoute,
    Step,
)
from netplug.drivers.tables import NETWORKS
from netplug.kernel.api import HostKernel

LIMITED = Shape("nphtest", "npitest", (8_000_000, 9_000_000), (65_536, 70_000))
BUCKETS = {
    "rates": replace(LIMITED, rate=(80_000_000, 1_000_000)),
    "burst": replace(LIMITED, burst=(131_072, 90_000)),
    "received only": replace(LIMITED, ifb="", rate=(8_000_000, 0), burst=(65_536, 0)),
    "sent only": replace(LIMITED, rate=(0, 9_000_000), burst=(0, 70_000)),
}
HOME = Element(NETWORKS, "home4", "10.9.0.0/24 . np-test")
PORT53 = Element(NETWORKS, "published4", "10.9.0.1 . udp . 53", f"10.9.0.1 . {RESOLVER.port}")


class LivingSuite:
    """Changes of options."""

    @pytest.mark.parametrize("mtu", [1300, 1500, 9000])
    async def test_links_take_a_new_mtu(self, kernel: HostKernel, around: Surroundings, mtu: int) -> None:
        there: tuple[Step, ...] = (BRIDGE, replace(VXLAN, mtu=1450), replace(VETH, mtu=1450))
        await kernel.ensure(there)
        indexes = around.indexes()
        wanted = tuple(replace(step, mtu=mtu) for step in there)  # type: ignore[call-arg]  # all have an mtu
        differing = [step for step in there if step.mtu != mtu]  # type: ignore[attr-defined]
        assert len(await whats(kernel, *wanted)) == len(differing)
        assert (await kernel.ensure(wanted)).count(ADJUSTED) == len(differing)
        assert await whats(kernel, *wanted) == []
        assert around.indexes() == indexes
        await kernel.ensure((replace(VETH, name="nphnew", peer="npsnew", mtu=68),))
        assert await whats(kernel, *wanted) == []

    @pytest.mark.parametrize("version", [4, 6])
    async def test_default_route_of_a_sandbox_moves_to_another_link(
        self, kernel: HostKernel, around: Surroundings, version: int
    ) -> None:
        netns, everything = around.sandbox(), ip_network("0.0.0.0/0" if version == 4 else "::/0")
        ways, steps = [], list[Step]([BRIDGE])
        for number in (1, 2):
            link = f"eth{number}"
            subnet = ip_network(f"10.9.{number}.0/24" if version == 4 else f"fd00:9:{number}::/64")
            steps.append(replace(VETH, name=f"nph{number}", mac=f"02:00:00:00:01:0{number}", peer=link, netns=netns))
            steps.append(Address(link, ip_interface(f"{subnet[2]}/{subnet.prefixlen}"), netns))
            ways.append(Route(everything, link, subnet[1], netns))
        await kernel.ensure((*steps, ways[0]))
        for present, next_ in (ways, ways[::-1]):
            assert await kernel.ensure((next_,)) == [ADJUSTED]
            assert await whats(kernel, next_) == []
            assert len(await whats(kernel, present)) == 1
            await kernel.remove((present,))
            assert await whats(kernel, next_) == []

    @pytest.mark.parametrize("version", [4, 6])
    async def test_what_comes_in_by_a_link_is_answered_by_it(
        self, kernel: HostKernel, around: Surroundings, version: int
    ) -> None:
        netns, everything = around.sandbox(), ip_network("0.0.0.0/0" if version == 4 else "::/0")
        before = around.snapshot()
        steps, sources = list[Step]([BRIDGE]), list[SourceRoute]()
        for number in (1, 2):
            subnet = ip_network(f"10.9.{number}.0/24" if version == 4 else f"fd00:9:{number}::/64")
            name = f"eth{number}"
            steps.append(replace(VETH, name=f"nph{number}", mac=f"02:00:00:00:01:0{number}", peer=name, netns=netns))
            for address in (subnet[2], subnet[3]):
                steps.append(Address(name, ip_interface(f"{address}/{subnet.prefixlen}"), netns))
                sources.append(SourceRoute(address, name, subnet[1], netns))
        steps.append(Route(everything, "eth1", sources[0].gateway, netns))
        await kernel.ensure(steps)
        assert len(await whats(kernel, *sources)) == 4
        assert await kernel.ensure(sources) == [CREATED] * 4
        assert await kernel.ensure(sources) == [EQUAL] * 4
        assert await whats(kernel, *sources, *steps) == []
        for source in sources:
            assert around.answers_by(source) in {source.link, ""}
        await kernel.remove((sources[0],))
        assert await whats(kernel, *sources[1:], *steps) == []
        assert len(await whats(kernel, sources[0])) == 1
        await kernel.remove(sources)
        assert len(await whats(kernel, *sources)) == 4
        assert around.answers_by(sources[2]) in {"eth1", ""}
        await kernel.ensure((sources[2],))
        moved = Route(everything, "eth2", sources[2].gateway, netns, tunable=True)
        assert len(await whats(kernel, moved)) == 1  # a table of ours is not one to which a plugin moved it
        assert await kernel.ensure((moved,)) == [ADJUSTED]
        await kernel.remove((sources[2], moved))
        unreached = replace(sources[0], gateway=ip_network("198.51.100.0/24" if version == 4 else "2001:db8::/64")[1])
        assert (await refusal(kernel, unreached)).kind == "invalid"
        await kernel.remove(steps)
        await kernel.settle()
        assert around.snapshot() == before

    @pytest.mark.parametrize("tunable", [False, True])
    @pytest.mark.parametrize("version", [4, 6])
    async def test_default_route_takes_a_new_metric(
        self, kernel: HostKernel, around: Surroundings, version: int, *, tunable: bool
    ) -> None:
        netns = around.sandbox()
        everything, subnet = ("0.0.0.0/0", "10.9.0.0/24") if version == 4 else ("::/0", "fd00:9::/64")
        gateway, address = (
            ip_network(subnet)[1],
            ip_interface(f"{ip_network(subnet)[2]}/{ip_network(subnet).prefixlen}"),
        )
        link = replace(VETH, peer="eth0", netns=netns)
        route = Route(ip_network(everything), "eth0", gateway, netns, tunable=tunable)
        await kernel.ensure((BRIDGE, link, Address("eth0", address, netns), route))
        for metric in (100, 50, 0):
            wanted = replace(route, metric=metric)
            assert len(await whats(kernel, wanted)) == 1
            assert await kernel.ensure((wanted,)) == [ADJUSTED]
            assert await kernel.ensure((wanted,)) == [EQUAL]
            assert await whats(kernel, wanted) == []
        await kernel.remove((route,))
        assert len(await whats(kernel, *(replace(route, metric=it) for it in (0, 50, 100)))) == 3

    @pytest.mark.parametrize("tunable", [False, True])
    @pytest.mark.parametrize("mtu", [1300, 9000])
    async def test_sandbox_side_takes_a_new_mtu(
        self, kernel: HostKernel, around: Surroundings, mtu: int, *, tunable: bool
    ) -> None:
        netns = around.sandbox()
        veth = replace(VETH, netns=netns, peer="eth0", tunable=tunable)
        await kernel.ensure((BRIDGE, veth))
        wanted = replace(veth, mtu=mtu)
        assert await kernel.ensure((wanted,)) == [ADJUSTED]
        assert await whats(kernel, wanted) == []
        assert around.sandbox_mtu(wanted, netns) == mtu

    @pytest.mark.parametrize("mtu", [1300, 9000])
    async def test_sandbox_side_takes_a_new_mtu_where_a_runtime_moved_it(
        self, kernel: HostKernel, around: Surroundings, mtu: int
    ) -> None:
        netns = around.sandbox()
        _, ident = await kernel.sandboxes.find(netns)
        await kernel.ensure((BRIDGE, VETH))
        around.move(VETH, netns)
        wanted = replace(VETH, mtu=mtu)
        plan = reaching(Plan((wanted,)), Plan((VETH,)), netns, ident)
        assert await kernel.ensure(plan.steps) == [ADJUSTED]
        assert await kernel.ensure(plan.steps) == [EQUAL]
        assert await whats(kernel, wanted, *plan) == []
        assert around.sandbox_mtu(wanted, netns) == mtu

    @pytest.mark.parametrize("moved", [False, True])
    async def test_mtu_that_others_chose_in_a_sandbox_stays(
        self, kernel: HostKernel, around: Surroundings, *, moved: bool
    ) -> None:
        netns = around.sandbox()
        veth = VETH if moved else replace(VETH, netns=netns, peer="eth0", tunable=True)
        await kernel.ensure((BRIDGE, veth))
        if moved:
            around.move(veth, netns)
        around.tune(veth, netns, 1200)
        wanted = replace(veth, mtu=1300)
        assert await kernel.ensure(reaching(Plan((wanted,)), Plan((veth,)), netns).steps) == [ADJUSTED]
        assert await whats(kernel, wanted) == []
        assert around.sandbox_mtu(wanted, netns) == 1200

    async def test_host_side_takes_a_new_mtu_without_its_sandbox(
        self, kernel: HostKernel, around: Surroundings
    ) -> None:
        """Another namespace is at the path."""
        netns = around.sandbox()
        await kernel.ensure((BRIDGE, VETH))
        wanted = replace(VETH, mtu=1300, moved=netns, netns_id="1:2:of another life:3")
        assert await kernel.ensure((wanted,)) == [ADJUSTED]
        assert await whats(kernel, wanted) == []

    @pytest.mark.parametrize("moved", [False, True])
    async def test_macvlan_takes_a_new_mtu_unless_others_chose_one(
        self, kernel: HostKernel, around: Surroundings, *, moved: bool
    ) -> None:
        netns = around.sandbox()
        here = replace(MACVLAN, netns=netns, ifname="eth0", tunable=True)
        await kernel.ensure((BRIDGE, replace(MACVLAN, moved=netns) if moved else here))
        link = replace(MACVLAN, moved=netns) if moved else here
        if moved:
            around.move(link, netns)
        for mtu, former, found in ((1400, 1450, 1400), (1300, 1450, 1400)):
            wanted = replace(link, mtu=mtu)
            (step,) = reaching(Plan((wanted,)), Plan((replace(link, mtu=former),)), netns)
            assert await kernel.ensure((step,)) == [ADJUSTED if found == mtu else EQUAL]
            assert await whats(kernel, wanted) == []
            assert around.sandbox_mtu(wanted, netns) == found

    async def test_macvlan_in_a_bare_namespace_takes_a_new_mtu(self, kernel: HostKernel, around: Surroundings) -> None:
        netns = around.sandbox()
        link = replace(MACVLAN, netns=netns, ifname="eth0")
        await kernel.ensure((BRIDGE, link))
        wanted = replace(link, mtu=1300)
        assert len(await whats(kernel, wanted)) == 1
        assert await kernel.ensure((wanted,)) == [ADJUSTED]
        assert await whats(kernel, wanted) == []
        assert around.sandbox_mtu(wanted, netns) == 1300

    @pytest.mark.parametrize("isolated", [False, True])
    async def test_ports_are_isolated_or_not(self, kernel: HostKernel, around: Surroundings, *, isolated: bool) -> None:
        there = [replace(step, isolated=not isolated) for step in (VETH, VXLAN)]
        await kernel.ensure((BRIDGE, *there))
        indexes = around.indexes()
        wanted = [replace(step, isolated=isolated) for step in (VETH, VXLAN)]
        assert len(await whats(kernel, *wanted)) == 2
        assert await kernel.ensure(wanted) == [ADJUSTED, ADJUSTED]
        assert await whats(kernel, *wanted) == []
        assert around.indexes() == indexes

    async def test_flooding_begins_and_ends(self, kernel: HostKernel, around: Surroundings) -> None:
        await kernel.ensure((BRIDGE, VXLAN))
        indexes = around.indexes()
        flooding = replace(VXLAN, flood=True)
        assert await kernel.ensure((flooding, EVERYBODY)) == [ADJUSTED, CREATED]
        await kernel.remove((EVERYBODY,))
        assert await kernel.ensure((VXLAN,)) == [ADJUSTED]
        assert await whats(kernel, VXLAN) == []
        assert await whats(kernel, EVERYBODY) == ["missing"]
        assert around.indexes() == indexes

    async def test_fast_path_goes_and_comes_under_a_living_port(self, kernel: HostKernel, around: Surroundings) -> None:
        await kernel.ensure((BRIDGE, VXLAN, VETH, *WAYS, *WAY))
        indexes = around.indexes()
        # In either order: table and port may go by plans of their own.
        for gone in ((*WAY, *WAYS), (*WAYS, *WAY)):
            await kernel.remove(gone)
            assert await whats(kernel, VXLAN, VETH, *WAYS, *WAY) == ["missing"] * len(gone)
            assert await kernel.ensure((*WAYS, *WAY)) == [CREATED] * len(gone)
        assert await whats(kernel, BRIDGE, VXLAN, VETH, *WAYS, *WAY) == []
        assert around.indexes() == indexes

    async def test_guard_and_pin_come_and_go_under_a_living_port(
        self, kernel: HostKernel, around: Surroundings
    ) -> None:
        guard = antispoof.own(VETH.name, VETH.peer_mac, (ip_address("10.9.0.2"),)).steps
        pinned = replace(VETH, pinned=True)
        await kernel.ensure((ANTISPOOF_TABLE, BRIDGE, VETH))
        indexes = around.indexes()
        assert await kernel.ensure((*guard, pinned)) == [CREATED] * len(guard) + [ADJUSTED]
        assert await whats(kernel, *guard, pinned) == []
        assert await kernel.ensure((VETH,)) == [ADJUSTED]
        await kernel.remove(guard)
        assert await whats(kernel, VETH, *guard) == ["missing"] * len(guard)
        assert around.indexes() == indexes

    @pytest.mark.parametrize("change", BUCKETS)
    async def test_limits_change(self, kernel: HostKernel, around: Surroundings, change: str) -> None:
        await kernel.ensure((BRIDGE, VETH, IFB, LIMITED))
        indexes, wanted = around.indexes(), BUCKETS[change]
        assert len(await whats(kernel, wanted)) == 1
        assert await kernel.ensure((wanted,)) == [ADJUSTED]
        assert await whats(kernel, BRIDGE, VETH, IFB, wanted) == []
        assert around.indexes() == indexes
        if not wanted.ifb:
            await kernel.remove((IFB,))
            assert await whats(kernel, VETH, wanted) == []
            await kernel.ensure((IFB,))
        assert await kernel.ensure((LIMITED,)) == [ADJUSTED]
        assert await whats(kernel, LIMITED) == []

    async def test_limits_come_and_go_under_a_living_link(self, kernel: HostKernel, around: Surroundings) -> None:
        await kernel.ensure((BRIDGE, VETH))
        indexes = around.indexes()
        assert await kernel.ensure((IFB, VETH, LIMITED)) == [CREATED, EQUAL, CREATED]
        await kernel.remove((LIMITED, IFB))
        await kernel.settle()
        assert await whats(kernel, VETH) == []
        assert around.indexes() == indexes

    async def test_subnets_and_name_service_come_and_go(self, kernel: HostKernel) -> None:
        there: tuple[Step, ...] = (NETWORKS_TABLE, BRIDGE, GATEWAY)
        await kernel.ensure(there)
        for _ in range(2):
            assert await kernel.ensure((HOME, RESOLVER, PORT53)) == [CREATED] * 3
            await kernel.remove((PORT53, RESOLVER, HOME))
            assert await whats(kernel, *there, HOME, RESOLVER, PORT53) == ["missing"] * 3
