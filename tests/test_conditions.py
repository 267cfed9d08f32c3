"""What is wrong and no look at the kernel shows: there as long as it is reported, told once when it begins and ends."""

import pytest
from engine_host import Host
from structlog.testing import capture_logs

from netplug.engine.conditions import Conditions, Difference

TWIN = Difference("host b", "vtep", "has the address of this host, 192.0.2.1")
SMALL = Difference("network blue", "mtu", "host b has room for 1350 bytes, not for 1450")


def test_a_report_takes_the_place_of_what_its_source_reported_before() -> None:
    conditions = Conditions()
    conditions.report("vteps", [TWIN])
    conditions.report("mtu", [SMALL, SMALL])
    assert conditions.all() == [SMALL, TWIN]
    conditions.report("vteps", [])
    assert conditions.all() == [SMALL]


def test_the_log_says_once_when_something_begins_and_ends() -> None:
    conditions = Conditions()
    with capture_logs() as said:
        for found in ([TWIN], [TWIN], [], []):
            conditions.report("vteps", found)
    assert [(it["event"], it["owner"], it["what"]) for it in said] == [
        ("condition.found", TWIN.owner, TWIN.what),
        ("condition.over", TWIN.owner, TWIN.what),
    ]


@pytest.mark.usefixtures("quiet")
async def test_diff_shows_what_is_reported_and_repair_claims_nothing() -> None:
    host = await Host.boot()
    host.engine.conditions.report("vteps", [TWIN])
    assert await host.reconciler.diff() == [TWIN]
    assert await host.reconciler.repair() == []
    host.engine.conditions.report("vteps", [])
    assert await host.reconciler.diff() == []
    await host.close()


def test_faults_are_counted_by_source_and_a_source_stays() -> None:
    conditions = Conditions()
    conditions.report("task dns", [Difference("host", "task dns", "fails")])
    conditions.report("task look", [Difference("host", "task look", "fails")])
    conditions.report("names", [])
    assert conditions.counts() == {"task": 2}
    conditions.report("task dns", ())
    conditions.report("task look", ())
    assert conditions.counts() == {"task": 0}


class _Counted(str):
    """Counts how often it is compared."""

    __slots__ = ()
    __hash__ = str.__hash__
    compared = 0

    def __eq__(self, other: object) -> bool:
        _Counted.compared += 1
        return str.__eq__(self, other)


@pytest.mark.usefixtures("quiet")
def test_one_more_of_a_thousand_faults_is_found_without_comparing_each_with_each() -> None:
    """A member that writes thousands of bad records kept the loop of all others busy for seconds."""
    conditions, many = Conditions(), 1000
    for more in range(3):
        conditions.report("hosts", [Difference("store", _Counted(it), "is bad") for it in range(many + more)])
    assert len(conditions.all()) == many + 2
    assert _Counted.compared < 20 * many
