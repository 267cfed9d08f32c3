"""What every kernel must do with guards and forwarded ports. Subclassed for the fake and for the real one."""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from kernel_suite import ADJUSTED, CREATED, EQUAL, Surroundings, gone, refusal, whats
from owned import ENTRIES, TABLES

from netplug.drivers.plan import Plan
from netplug.drivers.steps import (
    Bridge,
    Flows,
    Forward,
    Forwards,
    Guard,
    Guards,
    HostPort,
    Proto,
    Relay,
    Resolver,
    Step,
)
from netplug.kernel.api import Kernel, StepError
from netplug.kernel.executor import Executor

GUARD = Guard("nphtest", "02:00:00:00:02:01", (ip_address("10.9.0.2"), ip_address("fd00:9::2")))
FORWARD = Forward(Proto.TCP, None, 8080, ip_address("10.9.0.2"), 80)
BOTH = [(Guards(), GUARD), (Forwards(4), FORWARD)]


class TablesSuite:
    """Tables and what lies in them."""

    @pytest.mark.parametrize(
        ("table", "step"),
        [
            *BOTH,
            (Guards(), replace(GUARD, addresses=())),
            (Guards(), replace(GUARD, mac="")),
            (Forwards(4), replace(FORWARD, host=ip_address("10.0.0.5"), proto=Proto.UDP)),
            (Forwards(4), replace(FORWARD, proto=Proto.SCTP)),
            (Forwards(6), replace(FORWARD, address=ip_address("fd00:9::2"))),
            (Forwards(6), replace(FORWARD, address=ip_address("fd00:9::2"), host=ip_address("fd00::5"))),
        ],
        ids=lambda value: value.key,
    )
    async def test_step_is_created_once_found_equal_and_removed(
        self, kernel: Kernel, around: Surroundings, table: Guards | Forwards, step: Guard | Forward
    ) -> None:
        before = around.snapshot()
        assert await whats(kernel, table, step) == ["missing", "missing"]
        assert await kernel.ensure((table, step)) == [CREATED, CREATED]
        assert await whats(kernel, table, step) == []
        assert await kernel.ensure((table, step)) == [EQUAL, EQUAL]
        owned = await kernel.owned()
        assert (owned.of(*TABLES), owned.of(*ENTRIES)) == ({table}, {step})
        await gone(kernel, step)
        assert await whats(kernel, table, step) == ["missing"]
        await gone(kernel, table)
        assert around.snapshot() == before

    @pytest.mark.parametrize(("table", "step"), BOTH, ids=lambda value: value.key)
    async def test_what_others_deleted_is_missed_and_made_again(
        self, kernel: Kernel, around: Surroundings, table: Guards | Forwards, step: Guard | Forward
    ) -> None:
        await kernel.ensure((table, step))
        around.lose(table)
        assert await whats(kernel, table, step) == ["missing", "missing"]
        assert await kernel.ensure((table, step)) == [CREATED, CREATED]
        await gone(kernel, step, table)

    @pytest.mark.parametrize("step", [GUARD, FORWARD], ids=lambda value: value.key)
    async def test_entry_without_its_table_is_refused(self, kernel: Kernel, step: Guard | Forward) -> None:
        error = await refusal(kernel, step)
        assert error.kind == "not_found"
        await gone(kernel, step)

    @pytest.mark.parametrize(
        ("table", "step", "other"),
        [
            (Guards(), GUARD, replace(GUARD, addresses=(ip_address("10.9.0.3"),))),
            (Guards(), GUARD, replace(GUARD, mac="02:00:00:00:02:02")),
            (Forwards(4), FORWARD, replace(FORWARD, address=ip_address("10.9.0.3"))),
        ],
        ids=["addresses", "mac", "address"],
    )
    async def test_entry_that_differs_is_adjusted(
        self, kernel: Kernel, table: Step, step: Guard | Forward, other: Guard | Forward
    ) -> None:
        await kernel.ensure((table, other))
        assert len(await whats(kernel, table, step)) == 1
        assert await kernel.ensure((step,)) == [ADJUSTED]
        assert await whats(kernel, table, step) == []
        assert (await kernel.owned()).of(*ENTRIES) == {step}
        await gone(kernel, step, table)

    @pytest.mark.parametrize(
        ("table", "step", "other"),
        [
            (Guards(), GUARD, replace(GUARD, addresses=(ip_address("10.9.0.3"),))),
            (Guards(), GUARD, replace(GUARD, mac="02:00:00:00:02:02")),
            (Guards(), GUARD, replace(GUARD, mac="")),
            (Forwards(4), FORWARD, replace(FORWARD, address=ip_address("10.9.0.3"))),
        ],
        ids=["addresses", "mac", "no mac", "address"],
    )
    async def test_entry_that_was_adjusted_is_put_back_when_the_rest_fails(
        self, kernel: Kernel, around: Surroundings, table: Step, step: Guard | Forward, other: Guard | Forward
    ) -> None:
        await kernel.ensure((table, other))
        around.take_port(Proto.TCP, ip_address("0.0.0.0"), 8081)
        before = around.snapshot()
        taken = HostPort(Proto.TCP, ip_address("0.0.0.0"), 8081)
        with pytest.raises(StepError, match="8081"):
            await Executor(kernel).apply(Plan((step, taken)))
        assert await whats(kernel, other) == []
        assert (await kernel.owned()).of(*ENTRIES) == {other}
        # What is made and then adjusted by one plan is new, and goes.
        await gone(kernel, other)
        with pytest.raises(StepError, match="8081"):
            await Executor(kernel).apply(Plan((other, step, taken)))
        assert (await kernel.owned()).of(*ENTRIES) == set()
        await kernel.ensure((other,))
        assert around.snapshot() == before
        await gone(kernel, other, table)

    async def test_entry_of_which_a_part_is_gone_is_removed(self, kernel: Kernel) -> None:
        await kernel.ensure((Guards(), replace(GUARD, addresses=GUARD.addresses[:1])))
        await gone(kernel, GUARD)
        assert (await kernel.owned()).of(*ENTRIES) == set()
        await gone(kernel, Guards())

    async def test_entries_do_not_disturb_each_other(self, kernel: Kernel) -> None:
        guards = [Guard(f"nph{i}", f"02:00:00:00:02:{i:02x}", (ip_address(f"10.9.0.{i}"),)) for i in range(2, 24)]
        ports = [replace(FORWARD, port=port) for port in range(8000, 8020)]
        steps: list[Step] = [Guards(), Forwards(4), Forwards(6), *guards, *ports]
        assert set(await kernel.ensure(steps)) == {CREATED}
        await gone(kernel, *guards[::2], *ports[::2])
        assert (await kernel.owned()).of(*ENTRIES) == {*guards[1::2], *ports[1::2]}
        assert await whats(kernel, *guards[1::2], *ports[1::2]) == []
        await gone(kernel, *reversed(steps))
        assert (await kernel.owned()).of(*ENTRIES) == set()

    async def test_relay_serves_a_reserved_port(self, kernel: Kernel) -> None:
        everywhere = ip_address("::")
        port = HostPort(Proto.TCP, everywhere, 8080)
        step = Relay(Proto.TCP, everywhere, 8080, ip_address("fd00:9::2"), 80)
        assert (await refusal(kernel, step)).kind == "not_found"
        assert await kernel.ensure((port, step)) == [CREATED, CREATED]
        assert await kernel.ensure((port, step)) == [EQUAL, EQUAL]
        other = replace(step, target=81)
        assert len(await whats(kernel, other)) == 1
        assert await kernel.ensure((other,)) == [ADJUSTED]
        assert await whats(kernel, port, other) == []
        await gone(kernel, other)
        assert await whats(kernel, port, other) == ["missing"]
        await gone(kernel, port)

    async def test_published_port_is_undone_whole(self, kernel: Kernel, around: Surroundings) -> None:
        before = around.snapshot()
        taken = ip_address("0.0.0.0")
        around.take_port(Proto.TCP, taken, 8081)
        plan = Plan(
            (
                Forwards(4),
                HostPort(Proto.UDP, taken, 8080),
                replace(FORWARD, proto=Proto.UDP),
                Flows(Proto.UDP, 8080, ip_address("10.9.0.2")),
                HostPort(Proto.TCP, taken, 8081),
                replace(FORWARD, port=8081),
            )
        )
        with pytest.raises(Exception, match="8081"):
            await Executor(kernel).apply(plan)
        assert around.snapshot() == before

    async def test_resolver_follows_its_link_and_its_step(self, kernel: Kernel, around: Surroundings) -> None:
        bridge = Bridge("np-test", "02:00:00:00:00:01", 1500)
        step = Resolver("blue", "np-test", ip_address("10.9.0.1"), 25353)
        assert await kernel.ensure((bridge, step)) == [CREATED, CREATED]
        assert await kernel.ensure((replace(step, network="red"),)) == [ADJUSTED]
        assert len(await whats(kernel, step)) == 1
        assert await kernel.ensure((step,)) == [ADJUSTED]
        around.lose(bridge)
        assert await whats(kernel, step) == ["missing"]
        assert await kernel.ensure((bridge,)) == [CREATED]
        assert len(await whats(kernel, step)) == 1
        await kernel.ensure((step,))
        assert await whats(kernel, bridge, step) == []
        await gone(kernel, step, bridge)

    async def test_resolver_refuses_a_taken_port_and_says_where(self, kernel: Kernel, around: Surroundings) -> None:
        bridge = Bridge("np-test", "02:00:00:00:00:01", 1500)
        step = Resolver("blue", "np-test", ip_address("10.9.0.1"), 25353)
        await kernel.ensure((bridge,))
        around.take_port(Proto.UDP, ip_address("0.0.0.0"), 25353)
        error = await refusal(kernel, step)
        assert (error.kind, "10.9.0.1 port 25353" in error.message) == ("unavailable", True)
        assert await whats(kernel, step) == ["missing"]
        await gone(kernel, step, bridge)
