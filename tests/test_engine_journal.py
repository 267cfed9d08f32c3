"""What could not be reverted is tried again, until it is done, and touches nothing that came since."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
from engine_host import Host

from netplug.drivers.plan import Plan
from netplug.drivers.steps import Bridge, Step
from netplug.engine.journal import Intent
from netplug.kernel.api import StepError
from netplug.store.api import Put

pytestmark = pytest.mark.usefixtures("quiet")
ONE, TWO = (Bridge(f"np-{name}", "02:00:00:00:00:01", 1500) for name in ("one", "two"))
BOTH = Plan((ONE, TWO))


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    host = await Host.boot()
    yield host
    await host.close()


class Stubborn:
    """Lets a kernel remove nothing until `end`."""

    def __init__(self, host: Host) -> None:
        self._kernel, self._remove = host.kernel, host.kernel.remove
        host.kernel.remove = self._refuse  # type: ignore[method-assign]

    async def _refuse(self, steps: Sequence[Step]) -> None:
        if steps:
            raise ExceptionGroup("refused", [StepError("internal", step, "busy") for step in steps])

    def end(self) -> None:
        self._kernel.remove = self._remove  # type: ignore[method-assign]


class Slow:
    """Holds the first removal of steps until `go`; `begun` is set when it waits."""

    def __init__(self, host: Host) -> None:
        self.begun, self.go = asyncio.Event(), asyncio.Event()
        self._remove = host.kernel.remove
        host.kernel.remove = self._wait  # type: ignore[method-assign]

    async def _wait(self, steps: Sequence[Step]) -> None:
        if not self.begun.is_set():
            self.begun.set()
            await self.go.wait()
        await self._remove(steps)


async def leave(host: Host, plan: Plan) -> None:
    """Have a plan's revert fail once."""
    journal = host.engine.journal
    key, _ = await journal.build(Intent("old", plan))
    await journal.commit(key)
    stubborn = Stubborn(host)
    await journal.take_down(Intent("old", plan))
    stubborn.end()


async def left(host: Host) -> list[list[str]]:
    return [[step["name"] for step in it.value["plan"]] for it in (await host.store.range("journal/"))[0]]  # type: ignore[union-attr,call-overload,index,misc]


def there(host: Host) -> set[str]:
    return {step.name for step in host.kernel._world.state.values() if isinstance(step, Bridge)}


async def test_what_a_new_intent_does_not_take_over_stays_left(host: Host) -> None:
    journal = host.engine.journal
    key, _ = await journal.build(Intent("both", BOTH))
    await journal.commit(key)
    stubborn = Stubborn(host)
    await journal.take_down(Intent("both", BOTH))
    assert await left(host) == [["np-one", "np-two"]]
    key, _ = await journal.build(Intent("two again", Plan((TWO,))))
    await journal.commit(key)
    assert await left(host) == [["np-one"]]
    stubborn.end()
    await host.reboot()
    assert await left(host) == []
    assert "np-one" not in there(host)


async def test_what_a_failed_build_could_not_undo_is_undone_later(host: Host) -> None:
    host.kernel.fail_at(TWO.key)
    stubborn = Stubborn(host)
    with pytest.raises(StepError):
        await host.engine.journal.build(Intent("both", BOTH))
    assert await left(host) == [["np-one"]]
    assert host.engine.journal.changing() == frozenset()
    stubborn.end()
    await host.engine.journal.recover()
    assert (await left(host), there(host)) == ([], set())


async def test_records_go_at_the_start_also_where_the_rest_cannot(host: Host) -> None:
    """Else what was deleted would be loaded, and live on until it can be reverted."""
    await host.cli_network()
    (record,) = host.networks()
    intent = Put("journal/aa", {"what": "x", "plan": BOTH.to_json(), "drop": [record.key]})
    await host.kernel.ensure(BOTH.steps)
    await host.store.txn((), [intent])
    stubborn = Stubborn(host)
    await host.reboot()
    assert host.networks() == []
    assert await left(host) == [["np-one", "np-two"]]
    stubborn.end()
    await host.cli_network()
    await host.reconciler.repair()
    assert (len(host.networks()), await left(host)) == (1, [])


async def test_what_is_built_while_the_journal_is_read_stays(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    await host.reboot()
    journal, read = host.engine.journal, host.store.range
    begun, go = asyncio.Event(), asyncio.Event()

    async def slowly(*args: Any) -> Any:
        found = await read(*args)
        begun.set()
        await go.wait()
        return found

    key, _ = await journal.build(Intent("one", Plan((ONE,))))
    monkeypatch.setattr(host.store, "range", slowly)
    async with asyncio.TaskGroup() as group:
        work = group.create_task(journal.recover())
        reads = group.create_task(begun.wait())
        await asyncio.wait([work, reads], return_when=asyncio.FIRST_COMPLETED)
        reads.cancel()
        await journal.commit(key)
        go.set()
    assert there(host) == {"np-one"}


async def test_what_is_built_while_the_old_is_reverted_stays(host: Host) -> None:
    await leave(host, BOTH)
    slow = Slow(host)
    journal = host.engine.journal
    async with asyncio.TaskGroup() as group:
        group.create_task(journal.recover())
        await slow.begun.wait()
        new = group.create_task(journal.build(Intent("two again", Plan((TWO,)))))
        other = Bridge("np-three", "02:00:00:00:00:03", 1500)
        key, _ = await journal.build(Intent("three", Plan((other,))))  # has nothing to do with it, and does not wait
        await journal.commit(key)
        assert not new.done()
        slow.go.set()
    await journal.commit(new.result()[0])
    assert (there(host), await left(host)) == ({"np-two", "np-three"}, [])


async def test_records_go_also_where_what_is_left_is_taken_over(host: Host) -> None:
    intent = Put("journal/aa", {"what": "x", "plan": BOTH.to_json(), "drop": ["gone/1", "gone/2"]})
    await host.store.txn((), [intent, Put("gone/1", {}), Put("gone/2", {})])
    journal = host.engine.journal
    journal = type(journal)(host.store, host.engine.executor, host.engine.quarantine)  # of a new life, not yet read
    key = await journal.begin(Intent("two again", Plan((TWO,))), [Put("gone/2", {"new": 1})])
    await journal.commit(key)
    assert [it.key for it in (await host.store.range("gone/"))[0]] == ["gone/2"]
    assert await left(host) == []
