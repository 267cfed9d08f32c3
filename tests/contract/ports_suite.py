"""What every kernel must do with ports in succession, which are one step, and with many at once."""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from kernel_suite import ADJUSTED, BRIDGE, CREATED, EQUAL, NETWORKS_TABLE, Surroundings, gone, refusal, whats
from owned import ENTRIES

from netplug.drivers import firewall, published_ports
from netplug.drivers.api import PortMapping
from netplug.drivers.plan import Plan
from netplug.drivers.port_ranges import each
from netplug.drivers.steps import Element, Flows, HostPort, Proto, Relay, Resolver, Step
from netplug.drivers.tables import NETWORKS
from netplug.errors import NetplugError
from netplug.kernel.api import HostKernel, StepError
from netplug.kernel.executor import Executor

INSIDE = ip_address("10.9.0.2")
INSIDE6 = ip_address("fd00:9::2")
EVERYWHERE = ip_address("0.0.0.0")
EVERYWHERE6 = ip_address("::")
RANGES: tuple[Step, ...] = (
    HostPort(Proto.UDP, EVERYWHERE, 9000, count=3),
    HostPort(Proto.TCP, EVERYWHERE6, 9000, count=3),
    Element(NETWORKS, "published4_any", "udp . 9000", "10.9.0.2 . 7000", 3),
    Element(NETWORKS, "published6", "fd00::5 . tcp . 9000", "fd00:9::2 . 7000", 3),
    Flows(Proto.UDP, 9000, INSIDE, None, 3),
    Relay(Proto.TCP, EVERYWHERE6, 9000, INSIDE6, 7000, 3),
)


class PortsSuite:
    """Ports of the host by ranges and in numbers."""

    async def test_a_range_is_one_step_and_its_ports_are_there(self, kernel: HostKernel, around: Surroundings) -> None:
        before = around.snapshot()
        assert await kernel.ensure((NETWORKS_TABLE, *RANGES)) == [CREATED] * 7
        assert await kernel.ensure((NETWORKS_TABLE, *RANGES)) == [EQUAL] * 7
        assert await whats(kernel, *RANGES) == []
        for step in RANGES:
            assert await whats(kernel, *each(step)) == []
        assert (await kernel.owned()).of(*ENTRIES) == {part for step in RANGES[2:4] for part in each(step)}
        for proto, address in ((Proto.UDP, "127.0.0.1"), (Proto.TCP, "::1")):
            with pytest.raises(NetplugError, match="9002"):
                await kernel.ports.reserve(proto, ip_address(address), 9002, 9002)
        await gone(kernel, *RANGES[::-1], NETWORKS_TABLE)
        assert around.snapshot() == before

    async def test_a_range_of_which_a_part_is_gone_is_made_whole(self, kernel: HostKernel) -> None:
        await kernel.ensure((NETWORKS_TABLE, *RANGES))
        for step in RANGES[:4]:
            part = list(each(step))[1]
            await gone(kernel, part)
            assert await whats(kernel, step) == ["missing"]
            assert await kernel.ensure((step,)) == [ADJUSTED]
            assert await whats(kernel, step) == []
        await gone(kernel, *RANGES[::-1], NETWORKS_TABLE)

    async def test_a_range_with_a_taken_port_leaves_nothing(self, kernel: HostKernel, around: Surroundings) -> None:
        around.take_port(Proto.TCP, EVERYWHERE, 9003)
        before = around.snapshot()
        plan = published_ports.publish(PortMapping(Proto.TCP, 80, host_port=9000, count=5), EVERYWHERE, INSIDE)
        with pytest.raises(Exception, match=r"0\.0\.0\.0:9003/tcp"):
            await Executor(kernel).apply(Plan((NETWORKS_TABLE,)) + plan)
        assert around.snapshot() == before
        assert await kernel.ports.reserve(Proto.TCP, EVERYWHERE, 9000, 9000) == 9000

    @pytest.mark.parametrize("step", [step for step in RANGES if not isinstance(step, Flows)], ids=lambda it: it.key)
    async def test_a_range_of_which_a_part_was_there_is_undone_to_that(
        self, kernel: HostKernel, around: Surroundings, step: Step
    ) -> None:
        reserved = [RANGES[1]] if isinstance(step, Relay) else []
        first, second, third = each(step)
        if isinstance(second, Relay):
            second = replace(second, target=4242)
        if isinstance(second, Element):
            second = replace(second, data=second.data.replace(" . 7001", " . 4242"))
        await kernel.ensure((NETWORKS_TABLE, *reserved, first, second))
        around.take_port(Proto.SCTP, EVERYWHERE, 9003)
        before, owned = around.snapshot(), await kernel.owned()
        with pytest.raises(StepError, match=r"0\.0\.0\.0:9003/sctp"):
            await Executor(kernel).apply(Plan((step, HostPort(Proto.SCTP, EVERYWHERE, 9003))))
        assert await whats(kernel, first, second, third) == ["missing"]
        assert (around.snapshot(), await kernel.owned()) == (before, owned)
        await gone(kernel, first, second, *reserved, NETWORKS_TABLE)

    async def test_relays_of_which_one_fails_are_as_they_were(self, kernel: HostKernel) -> None:
        ports = list(each(RANGES[1]))[:2]
        step = RANGES[-1]
        first, second, third = each(step)
        assert isinstance(second, Relay)
        second = replace(second, target=4242)
        await kernel.ensure((*ports, second))
        assert (await refusal(kernel, step)).kind == "not_found"
        assert await whats(kernel, first, second, third) == ["missing", "missing"]
        await gone(kernel, second, *ports)

    async def test_steps_of_single_ports_of_an_older_version_are_those_of_a_range(self, kernel: HostKernel) -> None:
        one_by_one = [part for step in RANGES for part in each(step)]
        await kernel.ensure((NETWORKS_TABLE, *one_by_one))
        assert await kernel.ensure(RANGES) == [EQUAL] * len(RANGES)
        await gone(kernel, *one_by_one[::-1])
        assert await whats(kernel, *RANGES[:4]) == ["missing"] * 4
        await gone(kernel, NETWORKS_TABLE)

    async def test_many_ports_are_led_and_led_elsewhere(self, kernel: HostKernel) -> None:
        many = Element(NETWORKS, "published4_any", "tcp . 10000", "10.9.0.2 . 10000", 3000)
        other = replace(many, item="tcp . 12990", data="10.9.0.3 . 12990", count=20)
        await kernel.ensure((NETWORKS_TABLE, other))
        assert await kernel.ensure((many,)) == [ADJUSTED]
        assert await whats(kernel, many) == []
        assert len((await kernel.owned()).of(*ENTRIES)) == 3010
        assert await kernel.ensure((many,)) == [EQUAL]
        await gone(kernel, many, replace(other, item="tcp . 13000", count=10))
        assert (await kernel.owned()).of(*ENTRIES) == set()
        await gone(kernel, NETWORKS_TABLE)

    async def test_many_ports_that_cannot_all_be_led_lead_where_they_did(self, kernel: HostKernel) -> None:
        many = Element(NETWORKS, "published4_any", "tcp . 10000", "10.9.0.2 . 10000", 3000)
        other = replace(many, item="tcp . 10100", data="10.9.0.3 . 10100", count=20)
        await kernel.ensure((NETWORKS_TABLE, other))
        before = await kernel.owned()
        with pytest.raises(StepError, match="no set 'nowhere'"):
            await Executor(kernel).apply(Plan((many, BRIDGE, replace(many, set="nowhere"))))
        await kernel.settle()
        assert await kernel.owned() == before
        await gone(kernel, other, NETWORKS_TABLE)

    async def test_the_port_of_our_own_name_server_can_be_published(
        self, kernel: HostKernel, around: Surroundings
    ) -> None:
        around.add_link("np-test", "bridge")
        resolver = Resolver("blue", "np-test", ip_address("10.9.0.1"), firewall.RESOLVER_PORT)
        ports = [HostPort(proto, EVERYWHERE, firewall.RESOLVER_PORT) for proto in (Proto.TCP, Proto.UDP)]
        for steps in ((resolver, *ports), (*ports, resolver)):
            assert await kernel.ensure(steps) == [CREATED] * 3
            error = await refusal(kernel, replace(ports[0], address=ip_address("127.0.0.1")))
            assert error.kind == "unavailable"
            await gone(kernel, *steps)
