"""What every kernel must do with ports in succession, which are one step, and with many at once."""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from kernel_suite import ADJUSTED, CREATED, EQUAL, Surroundings, gone, refusal, whats
from owned import ENTRIES

from netplug.drivers import firewall
from netplug.drivers.api import PortMapping
from netplug.drivers.plan import Plan
from netplug.drivers.port_ranges import each
from netplug.drivers.steps import Flows, Forward, Forwards, HostPort, Proto, Relay, Resolver, Step
from netplug.errors import NetplugError
from netplug.kernel.api import HostKernel, StepError
from netplug.kernel.executor import Executor

INSIDE = ip_address("10.9.0.2")
INSIDE6 = ip_address("fd00:9::2")
EVERYWHERE = ip_address("0.0.0.0")
EVERYWHERE6 = ip_address("::")
BOTH = (Forwards(4), Forwards(6))
RANGES: tuple[Step, ...] = (
    HostPort(Proto.UDP, EVERYWHERE, 9000, count=3),
    HostPort(Proto.TCP, EVERYWHERE6, 9000, count=3),
    Forward(Proto.UDP, None, 9000, INSIDE, 7000, 3),
    Forward(Proto.TCP, ip_address("fd00::5"), 9000, INSIDE6, 7000, 3),
    Flows(Proto.UDP, 9000, INSIDE, None, 3),
    Relay(Proto.TCP, EVERYWHERE6, 9000, INSIDE6, 7000, 3),
)


class PortsSuite:
    """Ports of the host by ranges and in numbers."""

    async def test_a_range_is_one_step_and_its_ports_are_there(self, kernel: HostKernel, around: Surroundings) -> None:
        before = around.snapshot()
        assert await kernel.ensure((*BOTH, *RANGES)) == [CREATED] * 8
        assert await kernel.ensure((*BOTH, *RANGES)) == [EQUAL] * 8
        assert await whats(kernel, *RANGES) == []
        for step in RANGES:
            assert await whats(kernel, *each(step)) == []
        assert (await kernel.owned()).of(*ENTRIES) == {part for step in RANGES[2:4] for part in each(step)}
        for proto, address in ((Proto.UDP, "127.0.0.1"), (Proto.TCP, "::1")):
            with pytest.raises(NetplugError, match="9002"):
                await kernel.ports.reserve(proto, ip_address(address), 9002, 9002)
        await gone(kernel, *RANGES[::-1], *BOTH)
        assert around.snapshot() == before

    async def test_a_range_of_which_a_part_is_gone_is_made_whole(self, kernel: HostKernel) -> None:
        await kernel.ensure((*BOTH, *RANGES))
        for step in RANGES[:4]:
            part = list(each(step))[1]
            await gone(kernel, part)
            assert await whats(kernel, step) == ["missing"]
            assert await kernel.ensure((step,)) == [ADJUSTED]
            assert await whats(kernel, step) == []
        await gone(kernel, *RANGES[::-1], *BOTH)

    async def test_a_range_with_a_taken_port_leaves_nothing(self, kernel: HostKernel, around: Surroundings) -> None:
        around.take_port(Proto.TCP, EVERYWHERE, 9003)
        before = around.snapshot()
        plan = firewall.publish(PortMapping(Proto.TCP, 80, host_port=9000, count=5), EVERYWHERE, INSIDE)
        with pytest.raises(Exception, match=r"0\.0\.0\.0:9003/tcp"):
            await Executor(kernel).apply(Plan(BOTH) + plan)
        assert around.snapshot() == before
        assert await kernel.ports.reserve(Proto.TCP, EVERYWHERE, 9000, 9000) == 9000

    @pytest.mark.parametrize("step", [step for step in RANGES if not isinstance(step, Flows)], ids=lambda it: it.key)
    async def test_a_range_of_which_a_part_was_there_is_undone_to_that(
        self, kernel: HostKernel, around: Surroundings, step: Step
    ) -> None:
        reserved = [RANGES[1]] if isinstance(step, Relay) else []
        first, second, third = each(step)
        if isinstance(second, Forward | Relay):
            second = replace(second, target=4242)
        await kernel.ensure((*BOTH, *reserved, first, second))
        around.take_port(Proto.SCTP, EVERYWHERE, 9003)
        before, owned = around.snapshot(), await kernel.owned()
        with pytest.raises(StepError, match=r"0\.0\.0\.0:9003/sctp"):
            await Executor(kernel).apply(Plan((step, HostPort(Proto.SCTP, EVERYWHERE, 9003))))
        assert await whats(kernel, first, second, third) == ["missing"]
        assert (around.snapshot(), await kernel.owned()) == (before, owned)
        await gone(kernel, first, second, *reserved, *BOTH)

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
        await kernel.ensure((*BOTH, *one_by_one))
        assert await kernel.ensure(RANGES) == [EQUAL] * len(RANGES)
        await gone(kernel, *one_by_one[::-1])
        assert await whats(kernel, *RANGES[:4]) == ["missing"] * 4
        await gone(kernel, *BOTH)

    async def test_many_ports_are_led_and_led_elsewhere(self, kernel: HostKernel) -> None:
        many = Forward(Proto.TCP, None, 10_000, INSIDE, 10_000, 3000)
        other = replace(many, port=12_990, address=ip_address("10.9.0.3"), count=20)
        await kernel.ensure((Forwards(4), other))
        assert await kernel.ensure((many,)) == [ADJUSTED]
        assert await whats(kernel, many) == []
        assert len((await kernel.owned()).of(*ENTRIES)) == 3010
        assert await kernel.ensure((many,)) == [EQUAL]
        await gone(kernel, many, replace(other, port=13_000, count=10))
        assert (await kernel.owned()).of(*ENTRIES) == set()
        await gone(kernel, Forwards(4))

    async def test_many_ports_that_cannot_all_be_led_lead_where_they_did(self, kernel: HostKernel) -> None:
        many = Forward(Proto.TCP, None, 10_000, INSIDE, 10_000, 3000)
        other = replace(many, port=10_100, address=ip_address("10.9.0.3"), count=20)
        await kernel.ensure((Forwards(4), other))
        before = await kernel.owned()
        with pytest.raises(StepError, match="IPv6 published ports is missing"):
            await Executor(kernel).apply(Plan((many, replace(many, address=INSIDE6))))
        assert await kernel.owned() == before
        await gone(kernel, other, Forwards(4))

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
