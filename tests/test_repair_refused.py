"""One step that cannot be repaired keeps no other from it, costs little, and is shown with its reason."""

from collections.abc import AsyncIterator, Sequence
from itertools import groupby
from typing import Any

import pytest
import pytest_asyncio
from engine_host import END, OTHER, SANDBOX, Host, tcp

from netplug.drivers import firewall
from netplug.drivers.naming import host_side
from netplug.drivers.plan import Plan
from netplug.drivers.steps import Address, Bridge, Element, Step, Table
from netplug.drivers.tables import ANTISPOOF
from netplug.engine.records import EndpointRecord
from netplug.kernel.api import Outcome, StepError
from netplug.kernel.executor import Executor
from netplug.kernel.fake.kernel import FakeKernel

pytestmark = pytest.mark.usefixtures("quiet")


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    """Two networks; in the first an endpoint of Docker's and two namespaces, all with a published port."""
    host = await Host.boot()
    await host.docker_network()
    await host.cli_network("10.2.0.0/24", ident=OTHER, name="red")
    await host.docker_endpoint()
    host.kernel.inhabitants.add(SANDBOX)
    await host.join()
    await host.publish(END, tcp(8080))
    await host.attach("ns1", ports=(tcp(9090),))
    await host.attach("ns2", ports=(tcp(9091),))
    await host.attach("ns3", network=OTHER)
    yield host
    await host.close()


def lose(host: Host, *steps: Step) -> None:
    for step in steps:
        if step.key in host.kernel._world.state:
            host.kernel.lose(step.key)


def attached(host: Host, netns: str) -> EndpointRecord:
    return next(it for it in host.endpoints() if it.sandbox == f"/run/netns/{netns}")


def of(plan: Plan, kind: type[Step]) -> list[Any]:
    return [step for step in plan if isinstance(step, kind)]


async def shown(host: Host) -> dict[str, str]:
    return {it.object: it.what for it in await host.reconciler.diff()}


async def test_refused_element_is_shown_and_all_else_of_its_endpoint_network_and_batch_comes_back(host: Host) -> None:
    record = attached(host, "ns1")
    bad = of(record.plan, Element)[0]
    lose(host, *host.elements(), *host.elements(table=ANTISPOOF), *record.exposed, *of(record.plan, Address))
    host.kernel.fail_at(bad.key)
    await host.reconciler.repair()
    assert await shown(host) == {bad.key: f"missing (repair failed: {bad.key!r} fails because a test wants it to)"}
    host.kernel.heal()
    assert [it.object for it in await host.reconciler.repair()] == [bad.key]
    await host.check()
    host.kernel.lose(bad.key)
    assert await shown(host) == {bad.key: "missing"}


async def test_endpoint_in_a_dead_sandbox_keeps_no_other_from_repair(host: Host) -> None:
    host.kernel.lose(f"link/{host_side(attached(host, 'ns2').endpoint.id)}")
    host.kernel.vanish("/run/netns/ns1")
    for it in host.networks():
        lose(host, *of(it.plan, Element))
    await host.reconciler.repair()
    assert {it.sandbox for it in host.endpoints()} == {SANDBOX, "/run/netns/ns2", "/run/netns/ns3"}
    await host.check()


async def test_refused_bridge_keeps_no_other_network_from_repair(host: Host) -> None:
    bridges = [of(it.plan, Bridge)[0] for it in host.networks()]
    lose(host, *bridges)
    host.kernel.fail_at(bridges[0].key)
    await host.reconciler.repair()
    left = await shown(host)
    mine = next(it for it in host.networks() if of(it.plan, Bridge)[0] is bridges[0])
    names = {f"network {mine.network.name}", *(f"endpoint {it.endpoint.id[:12]}" for it in host.endpoints())}
    assert {it.owner for it in await host.reconciler.diff()} <= names
    assert left[bridges[0].key].startswith("missing (repair failed: ")
    assert bridges[1].key not in left
    host.kernel.heal()
    await host.reconciler.repair()
    await host.check()


async def test_refused_step_of_the_host_keeps_no_network_from_repair(host: Host) -> None:
    """Not even one of the other table."""
    bad = next(step for step in of(host.engine.base_plan.plan, Table) if step.key == f"table/{ANTISPOOF}")
    before = host.dump()
    gone = {bad.key, *(step.key for step in host.elements(table=ANTISPOOF))}
    lose(host, bad, *host.elements())
    host.kernel.fail_at(bad.key)
    await host.reconciler.repair()
    assert (await shown(host)).keys() == gone
    assert set(before) - set(host.dump()) == gone
    host.kernel.heal()
    await host.reconciler.repair()
    await host.check()


class Counting(FakeKernel):
    """Counts the steps that it was given. `together`: tables and their elements are one transaction."""

    def __init__(self, *, together: bool) -> None:
        super().__init__()
        self.given = 0
        self._together = together

    async def ensure(self, steps: Sequence[Step], outcomes: Any = None, before: Any = None) -> list[Outcome]:
        done: list[Outcome] = [] if outcomes is None else outcomes
        for whole, run in groupby(steps, lambda step: self._together and isinstance(step, Table | Element)):
            batch = list(run)
            bad = next((step for step in batch if step.key in self._failures), None)
            if whole and bad:
                self.given += len(batch)
                raise StepError("internal", batch[0], "the kernel refused the batch")
            for step in batch:
                self.given += 1
                await super().ensure((step,), done, before)
        return done


@pytest.mark.parametrize("together", [False, True])
async def test_steps_that_cannot_be_mended_cost_no_square(*, together: bool) -> None:
    kernel = Counting(together=together)
    macs = [Element(ANTISPOOF, "macs", f"nph{number} . 02:00:00:00:00:01") for number in range(2000)]
    plan, bad = Plan((firewall.table(ANTISPOOF, "antispoof"), *macs)), {macs[3].key, macs[1500].key}
    for key in bad:
        kernel.fail_at(key)
    executor = Executor(kernel)
    with pytest.raises(ExceptionGroup):
        await executor.mend(plan)
    assert executor.refused.keys() == bad
    assert kernel.given < (5 if together else 1.1) * len(plan)
    kernel.heal()
    await executor.mend(plan)
    assert not executor.refused
    assert len(kernel._world.state) == len(plan)
