"""Whoever asked goes away while a use case waits: it has happened as a whole, or not at all."""

import pytest
from engine_host import DEADLINE_S, Host, cancelled_at, set_up
from test_engine_crash import CASES, Case

from netplug.kernel.fake.kernel import FakeKernel

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.timeout(DEADLINE_S)]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_cancelled_use_case_has_happened_or_not(case: Case) -> None:
    given = await set_up(FakeKernel(), case.given)
    before = given.shape()
    after = await given.clone()
    await case.act(after)
    waits = 1
    while await _cancel(given, case, waits, {before, after.shape()}):
        waits += 1
    assert waits > 1
    for host in (given, after):
        await host.close()


async def _cancel(given: Host, case: Case, waits: int, allowed: set[object]) -> bool:
    host = await given.clone()
    cancelled = await cancelled_at(_awaited(case, host), waits)
    await host.check()
    assert host.shape() in allowed, f"cancelled at wait {waits}"
    await host.reboot()
    await host.check()
    assert host.shape() in allowed, f"cancelled at wait {waits}, and started anew"
    await host.close()
    return cancelled


async def _awaited(case: Case, host: Host) -> object:
    return await case.act(host)
