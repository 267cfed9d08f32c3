"""Others change the firewall: ours is back in its place at once, and they cost less and less."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from engine_host import Host, running, until
from kernel_calls import noted

from netplug.drivers.steps import Gate, Table
from netplug.drivers.tables import ANTISPOOF
from netplug.engine import firewall_commits

pytestmark = pytest.mark.usefixtures("quiet")
NEVER_S = 3600.0


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    it = await Host.boot()
    await it.see(gates=((4, "nft"), (4, "legacy")))
    await it.cli_network()
    await it.attach("ns1")
    yield it
    await it.close()


def looks(host: Host) -> Callable[[], int]:
    """Count how often all of the kernel is looked at."""
    count = 0
    compare = host.kernel.compare

    async def counted(*args: object) -> object:
        nonlocal count
        count += 1
        return await compare(*args)  # type: ignore[arg-type]

    host.kernel.compare = counted  # type: ignore[method-assign, assignment]
    return lambda: count


def shared(host: Host) -> list[str]:
    """Return the keys of tables and gates."""
    return [step.key for step in host.engine.base_plan.plan if isinstance(step, Gate | Table)]


async def test_each_that_was_lost_is_back_without_waiting(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firewall_commits, "SETTLE_S", NEVER_S)
    monkeypatch.setattr(firewall_commits, "HOLD_S", 0.0)
    before = host.dump()
    assert len(shared(host)) == 4
    async with running(host):
        for key in shared(host):
            host.kernel.lose(key)
            assert host.dump() != before
            host.kernel.committed.set()
            await until(lambda: host.dump() == before, key)


async def test_all_that_was_flushed_is_back_without_waiting(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firewall_commits, "SETTLE_S", NEVER_S)
    before = host.dump()
    async with running(host):
        for key in shared(host):
            host.kernel.lose(key)
        assert not host.elements()
        host.kernel.committed.set()
        await until(lambda: host.dump() == before)


async def test_first_commit_is_reacted_to_at_once_and_others_once_a_while(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firewall_commits, "SETTLE_S", NEVER_S)
    monkeypatch.setattr(firewall_commits, "HOLD_S", 0.1)
    clock = asyncio.get_running_loop().time
    with noted(host.kernel) as calls:
        async with running(host):
            host.kernel.committed.set()
            await until(lambda: calls)
            started = clock()
            while clock() < started + 0.55:
                host.kernel.committed.set()
                await asyncio.sleep(0.002)
            assert 3 <= len(calls) <= 2 + (clock() - started) / 0.1


async def test_harm_of_the_second_commit_is_repaired_when_its_time_comes(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firewall_commits, "SETTLE_S", NEVER_S)
    monkeypatch.setattr(firewall_commits, "HOLD_S", 0.2)
    before = host.dump()
    with noted(host.kernel) as calls:
        async with running(host):
            host.kernel.committed.set()
            await until(lambda: calls)
            host.kernel.lose(f"table/{ANTISPOOF}")
            host.kernel.committed.set()
            await until(lambda: host.dump() == before)


async def test_commits_that_do_no_harm_cost_fewer_and_fewer_looks(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firewall_commits, "SETTLE_S", 0.01)
    monkeypatch.setattr(firewall_commits, "LONGEST_S", 0.32)
    count, clock = looks(host), asyncio.get_running_loop().time
    started = clock()
    async with running(host):
        while clock() < started + 1.5:
            host.kernel.committed.set()
            await asyncio.sleep(0.002)
        # 0.01, 0.02 … 0.32, and from there on each 0.32; a look takes time too.
        assert 2 <= count() <= 7 + (clock() - started) / 0.32


async def test_harm_that_no_quick_look_shows_is_found_when_commits_go_on(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firewall_commits, "SETTLE_S", 0.01)
    monkeypatch.setattr(firewall_commits, "LONGEST_S", 0.1)
    before = host.dump()
    lost = next(key for key in host.kernel._world.state if key.startswith(f"element/{ANTISPOOF}/"))
    host.kernel.lose(lost)
    async with running(host):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                while host.dump() != before:
                    host.kernel.committed.set()
                    await asyncio.sleep(0.002)
    assert host.dump() == before


async def test_what_cannot_be_mended_costs_no_look_a_commit(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firewall_commits, "SETTLE_S", 0.05)
    monkeypatch.setattr(firewall_commits, "LONGEST_S", 0.4)
    count, clock = looks(host), asyncio.get_running_loop().time
    broken = Gate(4, "nft")
    started = clock()
    async with running(host):
        host.kernel.lose(broken.key)
        host.kernel.fail_at(broken.key)
        while clock() < started + 1.0:
            host.kernel.committed.set()
            await asyncio.sleep(0.002)
        # Each look that mends compares twice.
        assert count() <= 4 + 2 * (clock() - started) / 0.05


async def test_a_repair_that_took_long_keeps_the_next_one_from_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine it takes a tenth of a second, and the next harm may come right after it."""
    monkeypatch.setattr(firewall_commits, "SETTLE_S", NEVER_S)
    monkeypatch.setattr(firewall_commits, "HOLD_S", 0.0)
    monkeypatch.setattr(firewall_commits, "_SHARE", 10**6)
    before = host.dump()
    async with running(host):
        for _ in range(3):
            host.kernel.lose(f"table/{ANTISPOOF}")
            host.kernel.committed.set()
            await until(lambda: host.dump() == before)


async def test_what_others_change_in_our_tables_is_repaired_without_waiting(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An element of a set is no shared rule."""
    monkeypatch.setattr(firewall_commits, "SETTLE_S", NEVER_S)
    before = host.dump()
    lost = [key for key in host.kernel._world.state if key.startswith("element/")]
    async with running(host):
        for key in lost[:3]:
            host.kernel.lose(key)
            host.kernel.touched.set()
            host.kernel.committed.set()
            await until(lambda: host.dump() == before, key)
        assert not host.kernel.touched.is_set()


async def test_commits_to_our_tables_that_do_no_harm_cost_a_small_part_of_the_time(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firewall_commits, "SETTLE_S", NEVER_S)
    seconds, clock = 0.0, asyncio.get_running_loop().time

    def spending() -> float:
        nonlocal seconds
        seconds += 0.3
        return seconds

    monkeypatch.setattr(firewall_commits, "process_time", spending)
    count, started, since = looks(host), clock(), 0.0
    async with running(host):
        while clock() < (since or started + 20) + 1:
            since = since or (clock() if count() >= 4 else 0.0)
            host.kernel.touched.set()
            host.kernel.committed.set()
            await asyncio.sleep(0.002)
        # One second is saved; the fourth look takes more than that, and is paid for by a pause of 4 s.
        assert 4 <= count() <= 4 + (clock() - started) / 4
