"""Plans are applied whole or not at all, and reverted without a trace."""

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_calls import keeping

from netplug.drivers import firewall, published_ports, sandbox
from netplug.drivers.api import HostFacts, PortMapping
from netplug.drivers.plan import Plan
from netplug.drivers.steps import (
    Address,
    Bridge,
    Element,
    Flows,
    Gate,
    Hairpin,
    HostPort,
    IPAddress,
    Proto,
    Route,
    Step,
    Sysctl,
    Veth,
)
from netplug.drivers.tables import NETWORKS
from netplug.kernel.api import Outcome, StepError
from netplug.kernel.executor import Executor, arrange
from netplug.kernel.fake.kernel import FakeKernel

BASE = firewall.base((4, 6), HostFacts(gates=((4, "nft"), (6, "legacy"))))
NETWORK = Plan(
    (
        Bridge("np-1", "02:00:00:00:00:01", 1500),
        Address("np-1", ip_interface("10.9.0.1/24")),
        Address("np-1", ip_interface("fd00:9::1/64")),
        Element(NETWORKS, "from", "np-1", "goto from_open"),
        Element(NETWORKS, "home4", "10.9.0.0/24 . np-1"),
        Route(ip_network("10.8.0.0/16"), "np-1", ip_address("10.9.0.9")),
    )
)


EVERYWHERE = ip_address("0.0.0.0")


def inside(number: int) -> IPAddress:
    return ip_address(f"10.9.0.{number + 2}")


def endpoint(number: int, netns: str | None) -> Plan:
    veth = Veth(f"nph{number}", f"nps{number}", "02:00:00:00:01:01", "02:00:00:00:02:01", 1500, "np-1")
    plan = Plan((veth, Hairpin(veth.name)))
    for proto in (Proto.TCP, Proto.UDP):
        plan += published_ports.publish(PortMapping(proto, 80, host_port=8080 + number), EVERYWHERE, inside(number))
    if netns:
        plan = sandbox.inside(plan, netns, "eth0") + Plan(
            (
                Address("eth0", ip_interface(f"10.9.0.{number + 2}/24"), netns),
                Route(ip_network("0.0.0.0/0"), "eth0", ip_address("10.9.0.1"), netns),
            )
        )
    return plan


WHOLE = BASE + NETWORK + endpoint(0, None) + endpoint(1, "/run/netns/one")
KEYS = sorted({step.key for step in WHOLE})

# Any prefix of a valid plan is one; the layers may be there before or not.
plans = st.integers(0, len(WHOLE)).map(lambda length: Plan(WHOLE.steps[:length]))


@given(before=plans, wanted=plans, key=st.sampled_from(KEYS))
async def test_failed_apply_leaves_the_state_as_it_was(before: Plan, wanted: Plan, key: str) -> None:
    kernel = FakeKernel()
    executor = Executor(kernel)
    await executor.apply(before)
    state = kernel.dump()
    kernel.fail_at(key)
    if any(step.key == key for step in wanted):
        with pytest.raises(StepError) as caught:
            await executor.apply(wanted)
        assert caught.value.step.key == key
        assert kernel.dump() == state or _sysctls_only(state, kernel.dump())
    else:
        await executor.apply(wanted)


@given(plan=plans)
async def test_revert_of_apply_is_identity(plan: Plan) -> None:
    kernel = FakeKernel()
    executor = Executor(kernel)
    before = kernel.dump()
    await executor.apply(plan)
    assert await executor.drift(plan) == ()
    await executor.revert(plan)
    assert _sysctls_only(before, kernel.dump())
    await executor.revert(plan)


@given(plan=plans)
async def test_apply_is_idempotent(plan: Plan) -> None:
    kernel = FakeKernel()
    executor = Executor(kernel)
    first = await executor.apply(plan)
    state = kernel.dump()
    again = await executor.apply(plan)
    assert first.keys() == again.keys() == {step.key for step in plan}
    assert set(again.values()) <= {Outcome.EQUAL}
    assert kernel.dump() == state


@given(before=plans, steps=st.integers(0, 2 * len(WHOLE)))
async def test_cancelled_apply_leaves_the_state_as_it_was(before: Plan, steps: int) -> None:
    kernel = FakeKernel()
    executor = Executor(kernel)
    await executor.apply(before)
    state = kernel.dump()
    task = asyncio.ensure_future(executor.apply(WHOLE))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        assert _sysctls_only(state, kernel.dump())
    else:
        assert await executor.drift(WHOLE) == ()


async def test_second_cancellation_does_not_stop_the_undo() -> None:
    kernel = FakeKernel()
    task = asyncio.ensure_future(Executor(kernel).apply(WHOLE))
    for _ in range(len(WHOLE) // 2):
        await asyncio.sleep(0)
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    assert task.cancelled()
    assert _sysctls_only("", kernel.dump())


@given(plan=plans, key=st.sampled_from(KEYS))
async def test_what_was_lost_is_seen_and_made_again(plan: Plan, key: str) -> None:
    kernel = FakeKernel()
    executor = Executor(kernel)
    await executor.apply(plan)
    kernel.lose(key)
    drift = await executor.drift(plan)
    lost = [step for step in plan if step.key == key and not isinstance(step, Flows | Sysctl)]
    assert {step.key for step in lost} <= {item.step.key for item in drift}
    await executor.apply(plan)
    assert await executor.drift(plan) == ()


async def test_failure_of_the_undo_is_attached_to_the_cause() -> None:
    class Stubborn(FakeKernel):
        async def remove(self, steps: Sequence[Step]) -> None:
            assert steps
            raise ExceptionGroup("undo", [ValueError("will not go")])

    kernel = Stubborn()
    kernel.fail_at("address//np-1/10.9.0.1/24")
    with pytest.raises(StepError, match="because a test wants it") as caught:
        await Executor(kernel).apply(BASE + NETWORK)
    assert any("will not go" in note for note in caught.value.__notes__)


async def test_revert_goes_on_and_tells_all_failures() -> None:
    kernel = FakeKernel()
    executor = Executor(kernel)
    gates = (Gate(4, "nft"), Gate(6, "nft"))
    await executor.apply(Plan((Bridge("np-1", "02:00:00:00:00:01", 1500), *gates)))
    with keeping(kernel, *gates), pytest.raises(ExceptionGroup) as caught:
        await executor.revert(Plan((Bridge("np-1", "02:00:00:00:00:01", 1500), *gates)))
    assert len(caught.value.exceptions) == 2
    assert (await kernel.owned()).of(Gate) == frozenset(gates)
    assert (await kernel.owned()).of(Bridge) == frozenset()


async def test_what_is_used_is_not_undone() -> None:
    kernel = FakeKernel()
    kernel.foreign.links["br0"] = "bridge"
    bridge = Bridge("br0", "02:00:00:00:00:01", 1500, adopt=True)
    kernel.fail_at("link/nowhere")
    with pytest.raises(StepError):
        await Executor(kernel).apply(Plan((bridge, Bridge("nowhere", "02:00:00:00:00:02", 1500))))
    assert kernel.foreign.links["br0"] == "bridge"
    assert await Executor(kernel).apply(Plan((bridge,))) == {"link/br0": Outcome.USED}


def test_published_ports_become_one_transaction() -> None:
    plan = endpoint(0, None) + endpoint(1, None)
    kinds = [type(step) for step in arrange(endpoint(0, None).steps)]
    assert kinds == [Veth, Hairpin, HostPort, HostPort, Element, Element, Flows]
    reverting = [type(step) for step in arrange(endpoint(0, None).steps, reverting=True)]
    assert reverting == [Element, Element, Flows, HostPort, HostPort, Hairpin, Veth]
    assert {step.key for step in arrange(plan.steps)} == {step.key for step in plan}


@pytest.mark.parametrize("reverting", [False, True])
def test_flows_of_all_ports_are_dropped_when_the_rules_have_changed(reverting: bool) -> None:
    flows = Flows(Proto.UDP, 0, inside(0))
    assert arrange((*BASE, flows, *NETWORK), reverting=reverting)[-1] == flows


def _sysctls_only(before: str, after: str) -> bool:
    """Whether two states are equal but for sysctls, which are not taken back."""

    def rest(state: str) -> list[str]:
        return [line for line in state.splitlines() if not line.startswith("sysctl ")]

    return rest(before) == rest(after)
