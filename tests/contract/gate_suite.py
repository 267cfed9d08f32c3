"""What every kernel must do with the gate in iptables. For the fake, and for both flavours of the real one."""

from ipaddress import ip_network

import pytest
from kernel_suite import BRIDGE, CREATED, EQUAL, Surroundings, gone, whats

from netplug.drivers import firewall
from netplug.drivers.plan import Plan
from netplug.drivers.steps import FormerRules, Gate, Passage
from netplug.kernel.api import Kernel
from netplug.kernel.executor import Executor

SUBNETS = {4: ip_network("10.9.0.0/24"), 6: ip_network("fd00:9::/64")}


class GateSuite:
    """The gate where others have rules."""

    @pytest.mark.parametrize("family", [4, 6])
    async def test_gate_is_created_once_found_equal_and_removed(
        self, kernel: Kernel, around: Surroundings, flavour: str, family: int
    ) -> None:
        gate = Gate(family, flavour)
        around.have_rules(family, flavour)
        before = around.snapshot()
        assert await whats(kernel, gate) == ["missing"]
        assert await kernel.ensure((gate,)) == [CREATED]
        assert await whats(kernel, gate) == []
        assert await kernel.ensure((gate,)) == [EQUAL]
        assert set((await kernel.owned()).of(Gate, Passage)) == {gate}
        around.lose(gate)
        assert await whats(kernel, gate) == ["missing"]
        assert await kernel.ensure((gate,)) == [CREATED]
        assert await whats(kernel, gate) == []
        await gone(kernel, gate)
        assert await whats(kernel, gate) == ["missing"]
        assert around.snapshot() == before

    @pytest.mark.parametrize("family", [4, 6])
    async def test_passage_is_created_once_found_equal_and_removed(
        self, kernel: Kernel, around: Surroundings, flavour: str, family: int
    ) -> None:
        gate = Gate(family, flavour)
        one, other = (Passage(family, flavour, link, SUBNETS[family]) for link in ("br0", "br1"))
        around.have_rules(family, flavour)
        before = around.snapshot()
        assert await kernel.ensure((gate, one)) == [CREATED, CREATED]
        between = around.snapshot()
        assert await whats(kernel, gate, one, other) == ["missing"]
        assert await kernel.ensure((other,)) == [CREATED]
        assert await kernel.ensure((gate, one, other)) == [EQUAL] * 3
        assert await whats(kernel, gate, one, other) == []
        assert set((await kernel.owned()).of(Gate, Passage)) == {gate, one, other}
        await gone(kernel, other)
        assert around.snapshot() == between
        assert await whats(kernel, gate, one, other) == ["missing"]
        await gone(kernel, one, gate)
        assert around.snapshot() == before

    async def test_passages_go_with_the_gate_and_come_with_it(
        self, kernel: Kernel, around: Surroundings, flavour: str
    ) -> None:
        gate, passage = Gate(4, flavour), Passage(4, flavour, "br0", SUBNETS[4])
        around.have_rules(4, flavour)
        await kernel.ensure((gate, passage))
        await gone(kernel, gate)
        assert await whats(kernel, gate, passage) == ["missing", "missing"]
        assert await kernel.ensure((passage,)) == [CREATED]
        assert await kernel.ensure((gate,)) == [EQUAL]
        assert await whats(kernel, gate, passage) == []

    async def test_gates_of_ip_versions_do_not_disturb_each_other(
        self, kernel: Kernel, around: Surroundings, flavour: str
    ) -> None:
        for family in (4, 6):
            around.have_rules(family, flavour)
        before = around.snapshot()
        gates = [Gate(family, flavour) for family in (4, 6)]
        passages = [Passage(family, flavour, "br0", SUBNETS[family]) for family in (4, 6)]
        assert await kernel.ensure((*gates, *passages)) == [CREATED] * 4
        await gone(kernel, passages[0], gates[0])
        assert await whats(kernel, *gates, *passages) == ["missing", "missing"]
        await gone(kernel, passages[1], gates[1])
        assert around.snapshot() == before

    async def test_facts_tell_where_a_gate_is_needed(self, kernel: Kernel, around: Surroundings, flavour: str) -> None:
        assert (await kernel.facts()).gates == ()
        around.have_rules(4, flavour)
        assert (await kernel.facts()).gates == ((4, flavour),)
        await kernel.ensure((Gate(4, flavour),))
        assert (await kernel.facts()).gates == ((4, flavour),)

    async def test_base_of_networks_leaves_nothing(self, kernel: Kernel, around: Surroundings, flavour: str) -> None:
        for family in (4, 6):
            around.have_rules(family, flavour)
        before = around.snapshot()
        plan = Plan((BRIDGE,)) + firewall.base((4, 6), await kernel.facts())
        assert {it.family for it in plan if isinstance(it, Gate)} == {4, 6}
        executor = Executor(kernel)
        assert set((await executor.apply(plan)).values()) == {CREATED}
        assert await executor.drift(plan) == ()
        assert set((await executor.apply(plan)).values()) == {EQUAL}
        await executor.revert(plan)
        await kernel.settle()
        assert around.snapshot() == before

    async def test_rules_of_a_former_release_are_found_once_and_removed(
        self, kernel: Kernel, around: Surroundings, flavour: str
    ) -> None:
        around.have_rules(4, flavour)
        before = around.snapshot()
        around.leave_former_rules(4, flavour)
        assert set((await kernel.owned()).of(FormerRules)) == {FormerRules()}
        await gone(kernel, FormerRules())
        assert (await kernel.owned()).of(FormerRules) == frozenset()
        assert around.snapshot() == before
