"""What could not be reverted is tried again, until it is done, and touches nothing that came since."""

from collections.abc import AsyncIterator, Sequence

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
