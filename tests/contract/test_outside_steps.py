"""A type of step that another package brings is applied, compared, stored and reverted as ours are."""

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from typing import Any

import pytest

pytest.register_assert_rewrite("kernel_suite", "linux_host")

from kernel_suite import BRIDGE, refusal, whats  # noqa: E402
from linux_host import LinuxHost, LinuxSurroundings, run  # noqa: E402
from outside_steps import OURS, STEPS, Alias  # noqa: E402

from netplug.daemon.step_packages import GROUP, load_steps  # noqa: E402
from netplug.drivers.errors import DriverError  # noqa: E402
from netplug.drivers.plan import Plan  # noqa: E402
from netplug.drivers.step_types import BUILT_IN, STEP_TYPES, StepTypes  # noqa: E402
from netplug.drivers.steps import Bridge  # noqa: E402
from netplug.errors import NetplugError  # noqa: E402
from netplug.kernel import linux  # noqa: E402
from netplug.kernel.api import Kernel, Outcome, StepError  # noqa: E402
from netplug.kernel.executor import Executor  # noqa: E402
from netplug.kernel.fake.handlers import HANDLERS, FakeHandler  # noqa: E402
from netplug.kernel.fake.kernel import FakeKernel  # noqa: E402
from netplug.kernel.fake.world import World  # noqa: E402
from netplug.kernel.linux import LinuxKernel  # noqa: E402

ALIAS = Alias(BRIDGE.name, "to the lab")


@dataclass(frozen=True, slots=True)
class Unknown:
    """A type that nobody registered."""

    key: str = "unknown"


def point(value: str, package: str = "") -> EntryPoint:
    found = EntryPoint("any", value, GROUP)
    return found._for(_Package(package)) if package else found  # type: ignore[attr-defined] # as metadata makes them


class _Package:
    def __init__(self, name: str) -> None:
        self.name = name


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    assert load_steps([point("outside_steps:STEPS")]) == dict(STEPS)
    yield
    STEP_TYPES.discard(Alias)


class OutsideSuite:
    async def test_it_is_applied_compared_and_reverted(self, kernel: Kernel) -> None:
        executor, plan = Executor(kernel), Plan((BRIDGE, ALIAS))
        assert await whats(kernel, ALIAS) == ["missing"]
        assert list((await executor.apply(plan)).values()) == [Outcome.CREATED, Outcome.CREATED]
        assert await executor.drift(plan) == ()
        assert list((await executor.apply(plan)).values()) == [Outcome.EQUAL, Outcome.EQUAL]
        other = replace(ALIAS, words="to the office")
        assert len(await whats(kernel, other)) == 1
        assert await kernel.ensure((other,)) == [Outcome.ADJUSTED]
        assert {ALIAS.key, BRIDGE.key} == {step.key for step in (await kernel.owned()).steps()}
        await executor.revert(Plan((ALIAS,)))
        assert await whats(kernel, ALIAS) == ["missing"]
        assert await whats(kernel, BRIDGE) == []
        await executor.revert(plan)

    async def test_what_it_needs_is_refused_by_name_and_nothing_is_left(self, kernel: Kernel) -> None:
        lost = Alias("np-none", "to nowhere")
        with pytest.raises(StepError, match="link 'np-none' is missing"):
            await Executor(kernel).apply(Plan((BRIDGE, ALIAS, lost)))
        await kernel.settle()
        assert (await kernel.owned()).steps() == []

    async def test_a_type_without_a_handler_is_an_error_in_every_verb(self, kernel: Kernel) -> None:
        error = await refusal(kernel, BRIDGE, Unknown())
        assert "step type 'Unknown' of test_outside_steps has no handler" in str(error)
        (what,) = await whats(kernel, Unknown())
        assert "no handler" in what
        await kernel.ensure((BRIDGE,))
        with pytest.raises(ExceptionGroup) as caught:
            await kernel.remove((Unknown(), BRIDGE))
        assert [str(error) for error in caught.value.exceptions] == [str(error)]
        await kernel.settle()
        assert await whats(kernel, BRIDGE) == ["missing"]


class TestFake(OutsideSuite):
    @pytest.fixture
    async def kernel(self) -> AsyncIterator[FakeKernel]:
        def ensure(world: World, step: Alias) -> Outcome:
            world.wants_link(step, step.link, None)
            return world.plain(step)

        def owned(world: World) -> list[Alias]:
            return [step for step in world.state.values() if isinstance(step, Alias)]

        fake = FakeKernel(packages={Alias: FakeHandler(ensure, owned=owned)})
        yield fake
        await fake.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")
class TestLinux(LinuxHost, OutsideSuite):
    @pytest.fixture
    async def kernel(self, around: LinuxSurroundings) -> AsyncIterator[LinuxKernel]:  # noqa: ARG002
        async with await LinuxKernel.open(STEPS) as kernel:
            yield kernel

    async def test_it_is_in_the_kernel(self, kernel: LinuxKernel) -> None:
        await kernel.ensure((BRIDGE, ALIAS))
        assert f"alias {OURS}{ALIAS.words}" in run("ip", "link", "show", BRIDGE.name)

    async def test_a_handler_that_fails_stops_nothing_else(
        self, kernel: LinuxKernel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any) -> None:
            raise ValueError("the package has a fault")

        await kernel.ensure((BRIDGE, ALIAS))
        handler = type(kernel._handlers.of(ALIAS))
        for verb in ("ensure", "remove", "drift", "owned"):
            monkeypatch.setattr(handler, verb, fail)
        found = await kernel.drift((ALIAS, replace(BRIDGE, mtu=1400)))
        assert [item.step.key for item in found] == [ALIAS.key, BRIDGE.key]
        assert "the package has a fault" in found[0].what
        assert "the package has a fault" in str(await refusal(kernel, ALIAS))
        with pytest.raises(ExceptionGroup):
            await kernel.remove((ALIAS, BRIDGE))
        await kernel.settle()
        assert await whats(kernel, BRIDGE) == ["missing"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")
@pytest.mark.usefixtures("around")
class TestOpening(LinuxHost):
    async def test_a_package_replaces_no_handler_of_ours(self) -> None:
        with pytest.raises(NetplugError, match="step type 'Bridge' has a handler"):
            await LinuxKernel.open({Bridge: STEPS[Alias]})

    async def test_a_handler_of_ours_that_is_missing_is_told_at_the_start(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rest = {cls: factory for cls, factory in linux.HANDLERS.items() if cls is not Bridge}
        monkeypatch.setattr(linux, "HANDLERS", rest)
        with pytest.raises(NetplugError, match=r"step type 'Bridge' of netplug.drivers.steps has no handler"):
            await LinuxKernel.open()

    async def test_a_package_whose_handler_cannot_be_made_loses_its_types_alone(self) -> None:
        def fail(_: object) -> Any:
            raise ValueError("the package has a fault")

        stored = Plan((ALIAS,)).to_json()
        async with await LinuxKernel.open({Alias: fail}) as kernel:
            assert await kernel.ensure((BRIDGE,)) == [Outcome.CREATED]
        with pytest.raises(ValueError, match="a plan has a step 'Alias', which is not known"):
            Plan.from_json(stored)


def test_both_kernels_have_a_handler_for_each_type_of_ours() -> None:
    assert set(linux.HANDLERS) == set(HANDLERS) == set(BUILT_IN)


def test_a_plan_is_stored_with_it_and_cannot_be_read_without_its_package() -> None:
    stored = Plan((BRIDGE, ALIAS)).to_json()
    assert Plan.from_json(stored) == Plan((BRIDGE, ALIAS))
    STEP_TYPES.discard(Alias)
    with pytest.raises(ValueError, match="a plan has a step 'Alias', which is not known"):
        Plan.from_json(stored)
    assert Plan.known(stored) == Plan((BRIDGE,))


def test_a_plan_with_a_type_that_nobody_registered_is_not_stored() -> None:
    with pytest.raises(DriverError, match="step type 'Unknown' of test_outside_steps is not registered"):
        Plan((Unknown(),)).to_json()


def test_a_type_that_two_packages_bring_is_used_of_neither() -> None:
    types = StepTypes(BUILT_IN)
    assert load_steps([point("outside_steps:STEPS", "one"), point("outside_steps:STEPS", "two")], types) == {}
    assert types.get("Alias") is None


def test_a_package_overrides_no_type_of_ours_and_a_broken_one_stops_no_other() -> None:
    class Bridge:
        key = ""

    types = StepTypes(BUILT_IN)
    with pytest.raises(DriverError, match="step type 'Bridge' of package 'one' exists in package 'netplug'"):
        types.add(dataclass(Bridge), "one")
    points = [point("no_such_module:STEPS", "broken"), point("outside_steps:ALIAS", "empty")]
    assert load_steps([*points, point("outside_steps:STEPS", "good")], types) == dict(STEPS)
