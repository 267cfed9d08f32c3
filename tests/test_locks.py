"""Locks by name, and what they keep apart."""

import asyncio

import pytest
from engine_host import END, NET, OTHER, Host, turn

from netplug.drivers.steps import Route
from netplug.tasks.locks import Locks


@pytest.mark.parametrize("where", ["engine", "networks"])
async def test_who_waits_and_who_comes_later_have_one_lock(where: str) -> None:
    host = await Host.boot()
    networks, holders, most = host.engine.implicit_networks, 0, 0
    locks = networks._making if where == "networks" else Locks()
    hold = networks.one_at_a_time if where == "networks" else locks.hold

    async def work(turns: int) -> None:
        nonlocal holders, most
        async with hold("a"):
            holders += 1
            most = max(most, holders)
            for _ in range(turns):
                await turn()
            holders -= 1

    first, second = asyncio.ensure_future(work(3)), asyncio.ensure_future(work(3))
    await first  # let go of, with a waiter that has not run yet
    await asyncio.gather(second, work(2), work(0))
    assert most == 1
    assert not len(locks)
    await host.close()


@pytest.mark.parametrize("where", ["engine", "networks"])
async def test_block_that_fails_leaves_nothing(where: str) -> None:
    host = await Host.boot()
    networks = host.engine.implicit_networks
    locks = networks._making if where == "networks" else Locks()
    with pytest.raises(ValueError, match="no"):
        async with networks.one_at_a_time("a") if where == "networks" else locks.hold("a"):
            raise ValueError("no")
    assert not len(locks)
    await host.close()


async def test_a_waiter_that_goes_away_leaves_nothing() -> None:
    locks = Locks()
    async with locks.hold("a"):
        waiting = asyncio.ensure_future(locks.hold("a").__aenter__())
        await turn()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert not len(locks)


@pytest.mark.usefixtures("quiet")
async def test_parallel_attaches_to_one_namespace_make_one_way_out() -> None:
    host = await Host.boot()
    names = {NET: "blue", OTHER: "red", END: "green"}
    for ident, name in names.items():
        await host.cli_network(ident=ident, name=name)
    built = await asyncio.gather(
        *(host.attach("ns1", network=ident, ifname=f"eth{number}") for number, ident in enumerate(names))
    )
    ways = [step for one in built for step in one.plan if isinstance(step, Route)]
    assert len(ways) == 1
    await asyncio.gather(
        *(host.engine.endpoints.detach(ident, "ns1", f"eth{number}") for number, ident in enumerate(names))
    )
    assert host.endpoints() == []
    await host.check()
    await host.close()
