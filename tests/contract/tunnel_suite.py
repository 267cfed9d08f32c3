"""What every kernel must do with VXLAN links, their peers, and strangers. For the fake and for the real one."""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from kernel_suite import ADJUSTED, BRIDGE, CREATED, EQUAL, Surroundings, gone, refusal, whats
from owned import FORWARDING

from netplug.drivers.plan import Plan
from netplug.drivers.steps import Element, Hook, Step, Veth
from netplug.drivers.tunnel import NO_MAC, Fdb, Neighbour, Vxlan
from netplug.drivers.tunnel_tables import accepted, fast_path, filter_table, filtered, remote, shortcut
from netplug.kernel.api import Kernel, StepError
from netplug.kernel.executor import Executor

VXLAN = Vxlan("npvtest", "fe:00:00:00:05:01", 1450, BRIDGE.name, 4097, ip_address("10.5.0.1"), 4789)
VXLAN6 = replace(VXLAN, local=ip_address("fd00:5::1"), mtu=1430)
FDB = Fdb(VXLAN.name, "02:00:00:00:06:02", ip_address("10.5.0.2"))
FDB6 = replace(FDB, vtep=ip_address("fd00:5::2"))
EVERYBODY = replace(FDB, mac=NO_MAC)
NEIGHBOUR = Neighbour(BRIDGE.name, ip_address("10.9.0.2"), FDB.mac)
NEIGHBOUR6 = replace(NEIGHBOUR, address=ip_address("fd00:9::2"))
FILTER = filter_table()
TUNNEL = filtered(4789, 4097)
VTEP = accepted(ip_address("10.5.0.2"), 4789, 4097)
VTEP6 = accepted(ip_address("fd00:5::2"), 4789, 4097)
LINKS = (BRIDGE, VXLAN)
VETH = Veth("nphtest", "npstest", "fe:00:00:00:01:01", "02:00:00:00:06:03", 1450, BRIDGE.name)
WAYS = fast_path(VXLAN.name).steps
WAY = shortcut(VETH.name, VXLAN.name, VETH.peer_mac, (ip_address("10.9.0.3"), ip_address("fd00:9::3"))).steps
PORTS = (*LINKS, VETH, *WAYS)
REMOTE = remote(VXLAN.name, FDB.mac)


class TunnelSuite:
    """Overlay networks."""

    @pytest.mark.parametrize(
        ("needs", "step"),
        [
            ((BRIDGE,), VXLAN),
            ((BRIDGE,), VXLAN6),
            ((BRIDGE,), replace(VXLAN, flood=True, isolated=True, port=8472)),
            (LINKS, FDB),
            ((BRIDGE, VXLAN6), FDB6),
            (LINKS, EVERYBODY),
            ((*LINKS, EVERYBODY), replace(EVERYBODY, vtep=ip_address("10.5.0.3"))),
            (LINKS, NEIGHBOUR),
            (LINKS, NEIGHBOUR6),
            (LINKS, WAYS[0]),
            ((*LINKS, WAYS[0]), WAYS[1]),
            *((PORTS, step) for step in WAY),
            (PORTS, REMOTE),
            ((), FILTER),
            ((FILTER,), TUNNEL),
            ((FILTER, TUNNEL), VTEP),
            ((FILTER, TUNNEL), VTEP6),
        ],
        ids=lambda value: value.key if hasattr(value, "key") else "",
    )
    async def test_step_is_created_once_found_equal_and_removed(
        self, kernel: Kernel, around: Surroundings, needs: tuple[Step, ...], step: Step
    ) -> None:
        before = around.snapshot()
        assert await kernel.ensure(needs) == [CREATED] * len(needs)
        between = around.snapshot()
        assert await whats(kernel, step) == ["missing"]
        assert await kernel.ensure((step,)) == [CREATED]
        assert await whats(kernel, *needs, step) == []
        assert await kernel.ensure((*needs, step)) == [EQUAL] * (len(needs) + 1)
        assert {item.key for item in (await kernel.owned()).steps()} == {item.key for item in (*needs, step)}
        await gone(kernel, step)
        assert around.snapshot() == between
        assert await whats(kernel, step) == ["missing"]
        await gone(kernel, *needs[::-1])
        assert around.snapshot() == before

    @pytest.mark.parametrize(
        ("needs", "step"),
        [
            ((BRIDGE,), VXLAN),
            (LINKS, FDB),
            (LINKS, NEIGHBOUR),
            (LINKS, NEIGHBOUR6),
            (LINKS, WAYS[0]),
            *((PORTS, step) for step in WAY),
            (PORTS, REMOTE),
            ((), FILTER),
            ((FILTER,), TUNNEL),
            ((FILTER,), VTEP6),
        ],
        ids=lambda value: value.key if hasattr(value, "key") else "",
    )
    async def test_what_others_deleted_is_missed_and_made_again(
        self, kernel: Kernel, around: Surroundings, needs: tuple[Step, ...], step: Step
    ) -> None:
        await kernel.ensure((*needs, step))
        around.lose(step)
        assert await whats(kernel, *needs, step) == ["missing"]
        assert await kernel.ensure((*needs, step)) == [*[EQUAL] * len(needs), CREATED]

    @pytest.mark.parametrize(
        "other",
        [
            replace(VXLAN, mac="fe:00:00:00:05:09"),
            replace(VXLAN, mtu=1400),
            replace(VXLAN, local=ip_address("10.5.0.9")),
            replace(VXLAN, flood=True),
            replace(VXLAN, isolated=True),
            replace(VXLAN, master="np-other"),
        ],
        ids=["mac", "mtu", "local", "flood", "isolated", "master"],
    )
    async def test_link_of_ours_follows_its_step(self, kernel: Kernel, other: Vxlan) -> None:
        await kernel.ensure((BRIDGE, replace(BRIDGE, name="np-other", mac="02:00:00:00:00:02"), VXLAN))
        assert len(await whats(kernel, other)) == 1
        assert await kernel.ensure((other,)) == [ADJUSTED]
        assert await whats(kernel, other) == []
        assert await kernel.ensure((other,)) == [EQUAL]

    async def test_link_of_ours_is_made_anew_for_the_other_ip_version(self, kernel: Kernel) -> None:
        await kernel.ensure((*LINKS, FDB))
        assert len(await whats(kernel, VXLAN6)) == 1
        assert await kernel.ensure((VXLAN6,)) == [CREATED]
        assert await whats(kernel, VXLAN6) == []
        assert await kernel.ensure((FDB6,)) == [CREATED]

    async def test_another_vni_is_refused_not_slipped_under(self, kernel: Kernel) -> None:
        await kernel.ensure(LINKS)
        other = replace(VXLAN, vni=4098)
        assert len(await whats(kernel, other)) == 1
        error = await refusal(kernel, other)
        assert (error.kind, "VNI is 4097, not 4098" in error.message) == ("exists", True)

    @pytest.mark.parametrize(
        ("step", "other"),
        [
            (FDB, replace(FDB, vtep=ip_address("10.5.0.3"))),
            (NEIGHBOUR, replace(NEIGHBOUR, mac="02:00:00:00:06:09")),
            (NEIGHBOUR6, replace(NEIGHBOUR6, mac="02:00:00:00:06:09")),
        ],
        ids=["fdb", "IPv4", "IPv6"],
    )
    async def test_what_moved_is_adjusted(self, kernel: Kernel, step: Step, other: Step) -> None:
        await kernel.ensure((*LINKS, step))
        assert len(await whats(kernel, other)) == 1
        assert await kernel.ensure((other,)) == [ADJUSTED]
        assert await whats(kernel, other) == []
        assert len((await kernel.owned()).of(*FORWARDING)) == 1
        with pytest.raises(StepError, match="nobody"):
            await Executor(kernel).apply(Plan((step, replace(NEIGHBOUR, link="nobody"))))
        assert await whats(kernel, other) == []
        assert len((await kernel.owned()).of(*FORWARDING)) == 1
        await gone(kernel, other)

    async def test_mac_is_forwarded_to_the_port_that_has_it_now(self, kernel: Kernel) -> None:
        new = replace(VETH, name="nphnew", peer="npsnew", mac="fe:00:00:00:01:02")
        await kernel.ensure((*PORTS, *WAY, new))
        moved = shortcut(new.name, VXLAN.name, VETH.peer_mac, ()).steps
        assert await whats(kernel, *moved) == [f"is {VETH.name}, not {new.name}", "missing"]
        assert await kernel.ensure(moved) == [ADJUSTED, CREATED]
        assert await whats(kernel, *moved) == []
        assert await kernel.ensure(moved) == [EQUAL, EQUAL]

    @pytest.mark.parametrize("step", [*WAY, REMOTE, TUNNEL, VTEP, VTEP6], ids=lambda step: step.key)
    async def test_element_without_its_table_is_refused(self, kernel: Kernel, step: Element | Hook) -> None:
        await kernel.ensure((*LINKS, VETH))
        error = await refusal(kernel, step)
        assert (error.kind, step.table in error.message) == ("not_found", True)
        await gone(kernel, step)

    @pytest.mark.parametrize("step", [WAYS[1], *WAY], ids=lambda step: step.key)
    async def test_fast_path_without_its_links_is_refused(self, kernel: Kernel, step: Step) -> None:
        await kernel.ensure((WAYS[0],))
        error = await refusal(kernel, step)
        assert error.kind == "not_found"
        assert {name for name in (VETH.name, VXLAN.name) if name in error.message}
        await gone(kernel, step)
        assert (await kernel.owned()).of(Element, Hook) == frozenset()

    async def test_many_remote_macs_come_and_go_at_once(self, kernel: Kernel) -> None:
        macs = [f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}" for number in range(600)]
        steps = [remote(VXLAN.name, mac) for mac in macs]
        assert set(await kernel.ensure((*LINKS, *WAYS, *steps[::2]))) == {CREATED}
        assert await kernel.ensure(steps) == [EQUAL, CREATED] * 300
        await gone(kernel, *steps[1:])
        assert (await kernel.owned()).of(Element) == {steps[0]}
        assert await whats(kernel, *steps[:2]) == ["missing"]

    async def test_fast_path_follows_links_that_were_made_anew(self, kernel: Kernel, around: Surroundings) -> None:
        await kernel.ensure((*PORTS, REMOTE, *WAY))
        for link in (VETH, VXLAN):
            around.lose(link)
            what = await whats(kernel, *PORTS, REMOTE, *WAY)
            assert what[0] == "missing"
            assert len(what) > 1
            await kernel.ensure((*PORTS, REMOTE, *WAY))
            assert await whats(kernel, *PORTS, REMOTE, *WAY) == []
        await gone(kernel, *WAY, *WAYS)

    async def test_fast_path_goes_with_its_links(self, kernel: Kernel, around: Surroundings) -> None:
        before = around.snapshot()
        await kernel.ensure((*PORTS, REMOTE, *WAY))
        for link in (VETH, VXLAN):
            around.lose(link)
        await gone(kernel, REMOTE, *WAY[::-1])
        assert (await kernel.owned()).of(Element) == frozenset()
        await gone(kernel, *PORTS[::-1])
        assert around.snapshot() == before

    async def test_foreign_holder_of_the_vni_is_named(self, kernel: Kernel, around: Surroundings) -> None:
        around.add_vxlan("flannel.1", VXLAN.vni, VXLAN.port)
        await kernel.ensure((BRIDGE,))
        before = around.snapshot()
        error = await refusal(kernel, VXLAN)
        assert error.kind == "exists"
        assert "VNI 4097 on UDP port 4789 is in use by link 'flannel.1', which is not ours" in error.message
        await gone(kernel, VXLAN)
        assert around.snapshot() == before
        assert await kernel.ensure((replace(VXLAN, port=8472),)) == [CREATED]
        facts = await kernel.facts()
        assert [(link.vni, link.port) for link in facts.links if link.kind == "vxlan"] == [(4097, 4789), (4097, 8472)]

    async def test_own_holder_of_the_vni_is_named(self, kernel: Kernel) -> None:
        await kernel.ensure(LINKS)
        error = await refusal(kernel, replace(VXLAN, name="npvother"))
        assert (error.kind, error.message) == ("exists", "VNI 4097 on UDP port 4789 is in use by link 'npvtest'")

    async def test_vni_is_free_again_when_its_link_was_removed(self, kernel: Kernel) -> None:
        await kernel.ensure(LINKS)
        for name in ("npvother", VXLAN.name):
            await kernel.remove((VXLAN, replace(VXLAN, name="npvother")))
            assert await kernel.ensure((replace(VXLAN, name=name),)) == [CREATED]

    async def test_entries_go_with_their_links(self, kernel: Kernel) -> None:
        await kernel.ensure((*LINKS, FDB, EVERYBODY, NEIGHBOUR))
        await gone(kernel, VXLAN)
        assert await whats(kernel, FDB, EVERYBODY) == ["missing", "missing"]
        await gone(kernel, NEIGHBOUR, BRIDGE)
        assert (await kernel.owned()).of(*FORWARDING) == frozenset()

    async def test_many_entries_do_not_disturb_each_other(self, kernel: Kernel) -> None:
        macs = [f"02:00:00:00:07:{number:02x}" for number in range(40)]
        remote = [Fdb(VXLAN.name, mac, ip_address(f"10.5.0.{2 + i % 3}")) for i, mac in enumerate(macs)]
        near = [Neighbour(BRIDGE.name, ip_address(f"10.9.0.{2 + i}"), mac) for i, mac in enumerate(macs)]
        assert set(await kernel.ensure((*LINKS, *remote, *near))) == {CREATED}
        await gone(kernel, *remote[::2], *near[::2])
        assert (await kernel.owned()).of(*FORWARDING) == {*remote[1::2], *near[1::2]}
        assert await whats(kernel, *remote[1::2], *near[1::2]) == []

    @pytest.mark.parametrize(
        ("step", "named"),
        [
            (VXLAN, BRIDGE.name),
            (FDB, VXLAN.name),
            (NEIGHBOUR, BRIDGE.name),
        ],
        ids=lambda value: value.key if hasattr(value, "key") else "",
    )
    async def test_step_without_what_it_builds_on_names_it(self, kernel: Kernel, step: Step, named: str) -> None:
        error = await refusal(kernel, step)
        assert (error.kind, named in error.message) == ("not_found", True)
        await gone(kernel, step)

    async def test_vtep_of_the_other_ip_version_is_invalid(self, kernel: Kernel) -> None:
        await kernel.ensure(LINKS)
        error = await refusal(kernel, FDB6)
        assert error.kind == "invalid"
        assert "fd00:5::2 is an IPv6 address" in error.message

    async def test_entry_of_a_link_that_is_no_vxlan_is_invalid(self, kernel: Kernel) -> None:
        await kernel.ensure((BRIDGE,))
        error = await refusal(kernel, replace(FDB, link=BRIDGE.name))
        assert (error.kind, BRIDGE.name in error.message) == ("invalid", True)
