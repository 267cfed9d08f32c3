"""Background work outlives what it works with: it is tried again, and says so once."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from etcd_server import until
from structlog.testing import capture_logs

from netplug.engine import supervision
from netplug.engine.conditions import Conditions
from netplug.engine.supervision import Supervisor
from netplug.store.api import StoreError, Unreachable


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "FIRST_S", 0.001)
    monkeypatch.setattr(supervision, "LAST_S", 0.004)


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with capture_logs() as found:
        yield found


class Subject:
    """Fails as often as it has errors, then it is done."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.times: list[float] = []

    async def work(self) -> None:
        self.times.append(asyncio.get_running_loop().time())
        if self.errors:
            raise self.errors.pop(0)


FULL = StoreError("its database is full")


@pytest.mark.parametrize("error", [FULL, Unreachable("away"), OSError(5, "broken"), KeyError("odd"), RuntimeError()])
async def test_what_fails_is_done_again_until_it_is_done(error: Exception, logs: list[Any]) -> None:
    conditions, subject = Conditions(), Subject(*[error] * 5)
    await Supervisor(conditions).keep("naming", subject.work)
    assert len(subject.times) == 6
    assert conditions.all() == []
    told = [entry for entry in logs if entry["event"].startswith("task.") and entry["log_level"] != "debug"]
    assert [entry["event"] for entry in told] == ["task.failed", "task.recovered"]
    assert told[0]["task"] == "naming"
    assert told[0]["error"]
    assert told[1]["failures"] == 5


async def test_each_try_waits_longer_up_to_a_limit() -> None:
    supervisor = Supervisor(Conditions())
    delays = [await supervisor.attempt("x", Subject(FULL).work()) for _ in range(5)]
    assert delays == [0.001, 0.002, 0.004, 0.004, 0.004]
    assert await supervisor.attempt("x", Subject().work()) == 0
    assert await supervisor.attempt("x", Subject(FULL).work()) == 0.001


async def test_what_goes_on_failing_is_shown_and_others_are_not_concerned() -> None:
    conditions = Conditions()
    supervisor = Supervisor(conditions)
    for _ in range(2):
        await supervisor.attempt("cluster.networks", Subject(FULL).work())
    await supervisor.attempt("dns", Subject().work())
    (found,) = conditions.all()
    assert (found.owner, found.object) == ("host", "task cluster.networks")
    assert found.what == "fails: its database is full"
    await supervisor.attempt("cluster.networks", Subject().work())
    assert conditions.all() == []


async def test_a_store_that_is_away_is_no_fault_of_this_host() -> None:
    conditions = Conditions()
    supervisor = Supervisor(conditions)
    for _ in range(3):
        await supervisor.attempt("cluster.networks", Subject(Unreachable("away")).work())
    assert conditions.all() == []


async def test_each_reason_is_logged_once(logs: list[Any]) -> None:
    supervisor = Supervisor(Conditions())
    for _ in range(30):
        await supervisor.attempt("x", Subject(FULL).work())
        await supervisor.attempt("x", Subject(OSError(28, "no space left on device")).work())
    said = [entry["error"] for entry in logs if entry["event"] == "task.failed" and entry["log_level"] == "warning"]
    assert said == ["its database is full", "[Errno 28] no space left on device"]


async def test_work_that_goes_on_for_a_while_is_well_again(monkeypatch: pytest.MonkeyPatch, logs: list[Any]) -> None:
    monkeypatch.setattr(supervision, "STEADY_S", 0.005)
    failed = False

    async def lasting() -> None:
        nonlocal failed
        if not failed:
            failed = True
            raise FULL
        await asyncio.Event().wait()

    task = asyncio.ensure_future(Supervisor(Conditions()).keep("x", lasting))
    await until(lambda: any(entry["event"] == "task.recovered" for entry in logs))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancellation_ends_it() -> None:
    task = asyncio.ensure_future(Supervisor(Conditions()).keep("x", Subject(*[FULL] * 10_000).work))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_is_no_exception_ends_it() -> None:
    class Died(BaseException):
        pass

    async def work() -> None:
        raise Died

    with pytest.raises(Died):
        await Supervisor(Conditions()).keep("x", work)
