"""No endless loop against another program that changes things back: repairs with growing pauses, told once."""

from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import pytest
from engine_host import NEXT, Host

from netplug import reconcile
from netplug.drivers.steps import Bridge, Element, Step, Table
from netplug.drivers.tables import NETWORKS
from netplug.engine import contests as module
from netplug.engine.conditions import Conditions, Difference
from netplug.engine.contests import FREE, LONGEST_S, RECOVERY_S, SHARE, Contests
from netplug.engine.happenings import Kind
from netplug.kernel.api import Comparison

pytestmark = pytest.mark.usefixtures("quiet")

BRIDGE = Bridge("np-blue", "02:00:00:00:00:01", 1500)
TABLE = Table("inet", NETWORKS.partition(" ")[2], "")
LOST = Difference("network blue", BRIDGE.key, "missing")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def contests(clock: Clock) -> Contests:
    return Contests(Conditions(), clock)


def insist(contests: Contests, clock: Clock, seconds: float) -> list[float]:
    """Let another program change an object back at once, for so long; return when it was repaired."""
    times, ends = list[float](), clock.now + seconds
    while clock.now < ends:
        if not contests.rests(BRIDGE):
            contests.repaired([LOST])
            times.append(clock.now)
        contests.report({BRIDGE.key})
        clock.now += 0.25
    return times


def test_pauses_between_repairs_grow_up_to_the_longest(contests: Contests, clock: Clock) -> None:
    times = insist(contests, clock, 10 * LONGEST_S)
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses[: FREE - 1] == [0.25] * (FREE - 1)
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(LONGEST_S, abs=0.5)
    assert len(times) < FREE + 20


def test_what_happens_now_and_then_is_repaired_at_once_for_ever(contests: Contests, clock: Clock) -> None:
    for _ in range(1000):
        clock.now += RECOVERY_S
        assert not contests.rests(BRIDGE)
        assert contests.repaired([LOST]) == [LOST]
    contests.report(())
    assert not contests._conditions.all()


def test_contest_is_told_once_and_is_over_when_the_other_program_ends(contests: Contests, clock: Clock) -> None:
    insist(contests, clock, 100)
    (told,) = contests._conditions.all()
    assert (told.owner, told.object) == (LOST.owner, LOST.object)
    clock.now += LONGEST_S
    contests.repaired([LOST])
    contests.report(())
    assert contests._conditions.all()
    clock.now += LONGEST_S + 2 * FREE * RECOVERY_S + 1
    contests.report(())
    assert not contests._conditions.all()
    assert not contests.concerns(BRIDGE.key)
    assert contests.due_s() is None


def test_what_a_person_does_soon_after_a_contest_is_repaired_at_once(contests: Contests, clock: Clock) -> None:
    """The other program has ended: one repair after the longest pause, and some seconds of peace, end it."""
    insist(contests, clock, 300)
    ended = clock.now
    while contests.rests(BRIDGE):
        clock.now += 0.25
    assert clock.now - ended <= LONGEST_S
    contests.repaired([LOST])
    contests.report(())
    assert contests.rests(BRIDGE)
    peace = contests.due_s()
    assert peace is not None
    assert peace <= 10 * RECOVERY_S
    clock.now += peace
    contests.report(())
    assert not contests._conditions.all()
    assert not contests.rests(BRIDGE)


def test_peace_is_longer_where_a_repair_takes_long(contests: Contests, clock: Clock) -> None:
    """A change every five seconds is harmless to a small host, and would keep a large one busy."""
    for cost_s, repaired in ((0.05, 200), (1.0, 60)):
        contests.pardon()
        contests.spent(cost_s)
        count, ends = 0, clock.now + 1000
        while clock.now < ends:
            if not contests.rests(BRIDGE):
                contests.repaired([LOST])
                count += 1
            clock.now += 5
            contests.report({BRIDGE.key})
        assert count * cost_s <= 1000 / SHARE + FREE * cost_s
        assert count >= repaired * 0.8


def test_time_while_it_differs_is_no_peace(contests: Contests, clock: Clock) -> None:
    insist(contests, clock, 60)
    contests.repaired([LOST])
    contests.report({BRIDGE.key})
    clock.now += LONGEST_S - 0.5
    assert contests.rests(BRIDGE)
    assert contests.due_s() == pytest.approx(0.5)
    contests.report({BRIDGE.key})
    assert contests.concerns(BRIDGE.key)
    clock.now += 0.5
    assert not contests.rests(BRIDGE)


def test_contest_is_over_too_when_the_other_program_takes_its_change_back(contests: Contests, clock: Clock) -> None:
    insist(contests, clock, 60)
    contests.report(())
    assert contests.concerns(BRIDGE.key)
    clock.now += LONGEST_S * RECOVERY_S
    contests.report(())
    assert not contests.concerns(BRIDGE.key)
    assert not contests._conditions.all()
    assert contests.due_s() is None


def test_elements_rest_with_their_table_and_nothing_else_does(contests: Contests, clock: Clock) -> None:
    insist(contests, clock, 5)
    for _ in range(FREE):
        contests.repaired([Difference("host", TABLE.key, "missing")])
    assert contests.rests(Element(NETWORKS, "icc", "np-blue . np-blue"))
    assert not contests.rests(Bridge("np-red", "02:00:00:00:00:02", 1500))
    contests.pardon()
    assert not contests.rests(TABLE)


# In the engine


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    host = await Host.boot()
    await host.cli_network("10.3.0.0/24")
    await host.cli_network("10.4.0.0/24", ident=NEXT, name="red")
    yield host
    await host.close()


def bridges(host: Host) -> list[Bridge]:
    return [step for it in host.networks() for step in it.plan if isinstance(step, Bridge)]


async def test_repairs_of_one_object_end_and_those_of_all_others_go_on(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_S", 3600.0)
    told: list[Kind] = []
    host.engine.happenings.watchers.append(lambda it: told.append(it.kind))
    blue, red = bridges(host)
    host.engine.drifts.contests._clock = Clock()
    for _ in range(3 * FREE):
        host.kernel.lose(blue.key)
        await host.reconciler.repair(patient=True)
    assert blue.key not in host.kernel._world.state
    assert told.count(Kind.FAULT_FOUND) == len(host.engine.conditions.all())
    shown = {it.object: it.what for it in await host.reconciler.diff() if "another program" in it.what}
    assert blue.key in shown
    count = len(told)
    host.kernel.lose(red.key)
    await host.reconciler.repair(patient=True)
    assert red.key in host.kernel._world.state
    await host.reconciler.repair()
    assert blue.key in host.kernel._world.state, "whoever asks for it gets all repaired"
    assert Kind.DRIFT_FOUND not in told[count:]


async def test_what_is_changed_back_before_anybody_looks_counts_as_repaired(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that is faster than the comparison after the repair."""
    monkeypatch.setattr(module, "LONGEST_S", 3600.0)
    blue, _ = bridges(host)
    host.engine.drifts.contests._clock = Clock()
    compare = host.kernel.compare

    async def at_once(steps: Sequence[Step]) -> Comparison:
        host.kernel.lose(blue.key)
        return await compare(steps)

    host.kernel.compare = at_once  # type: ignore[method-assign]
    for _ in range(2 * FREE):
        await host.reconciler.repair(patient=True)
    assert any("another program" in it.what for it in await host.reconciler.diff())
    assert host.engine.drifts.contests.rests(blue)


async def test_what_rests_still_differs_in_the_looks_between_two_repairs(host: Host) -> None:
    """Else these would count as peace, and the next ten repairs had no pause."""
    told: list[Kind] = []
    blue, _ = bridges(host)
    clock = host.engine.drifts.contests._clock = Clock()
    repairs, seconds = 0, 100
    for _ in range(4 * seconds):
        repairs += blue.key in host.kernel._world.state
        host.kernel.lose(blue.key)
        await host.reconciler.repair(patient=True)
        if repairs == 2 * FREE and not host.engine.happenings.watchers:
            host.engine.happenings.watchers.append(lambda it: told.append(it.kind))
        clock.now += 0.25
    # Ten and some, since a quarter of a second of peace each time forgets a quarter of a repair; then pauses that grow.
    assert FREE <= repairs <= 1.5 * FREE + 5 + seconds / LONGEST_S
    assert host.engine.happenings.watchers
    assert not {Kind.FAULT_FOUND, Kind.FAULT_OVER, Kind.DRIFT_FOUND, Kind.DRIFT_OVER} & set(told)


async def test_a_repair_that_takes_long_is_what_peace_is_measured_by(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a comparison without a repair, which takes less."""
    contests, seconds = host.engine.drifts.contests, 0.0

    def spending() -> float:
        nonlocal seconds
        seconds += 0.5
        return seconds

    monkeypatch.setattr(reconcile, "process_time", spending)
    host.kernel.lose(bridges(host)[0].key)
    await host.reconciler.repair(patient=True)
    assert contests._recovery_s == SHARE * 0.5
    await host.reconciler.repair(patient=True)
    assert contests._recovery_s == SHARE * 0.5


async def test_table_that_another_program_deletes_each_time_costs_a_bounded_number_of_repairs(host: Host) -> None:
    host.engine.drifts.contests._clock = Clock()
    table = f"table/{NETWORKS}"
    held = 0
    for _ in range(5 * FREE):
        host.kernel.lose(table)
        held += await host.engine.base_plan.hold()
    assert held == FREE
    assert any(it.object == table for it in await host.reconciler.drift())
