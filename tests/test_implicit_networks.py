"""Networks that calls of runtimes make: several calls at once, some of which fail, or delete networks."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from engine_host import DEADLINE_S, consistent, turn, until
from test_cni_runtimes import Plugin as Runtimes
from test_cni_service import SUBNET, Plugin, valid

from netplug.kernel.fake.services import FakeSandboxes

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.timeout(DEADLINE_S)]
LATE = "/run/netns/late"
OTHER = {"ipam": {"type": "netplug-ipam", "subnet": "10.2.0.0/29"}}


async def joining_an_empty_network(plugin: Plugin, held: "Held") -> asyncio.Future[Any]:
    """Return the call of a container that has found a network which the last one has left."""
    await plugin("ADD", **SUBNET)
    await plugin("DEL")
    late = asyncio.ensure_future(plugin("ADD", "late", LATE, **SUBNET))
    await held.begun(late)
    return late


@pytest.fixture
async def plugin() -> AsyncIterator[Plugin]:
    async with consistent() as host:
        yield Plugin(host)


@pytest.fixture
async def runtimes() -> AsyncIterator[Runtimes]:
    async with consistent() as host:
        yield Runtimes(host)


class Held:
    """Holds up the call for namespace `LATE` once it has made or found its network, before it attaches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._may = asyncio.Event()
        self.looks = 0
        self.free = 1  # CNI looks for the namespace before it makes a network
        find = FakeSandboxes.find

        async def later(sandboxes: FakeSandboxes, ref: str) -> tuple[str, str]:
            if ref == LATE:
                self.looks += 1
                if self.looks > self.free:
                    await self._may.wait()
            return await find(sandboxes, ref)

        monkeypatch.setattr(FakeSandboxes, "find", later)

    async def begun(self, adding: asyncio.Future[object]) -> None:
        await until(lambda: self.looks > self.free or adding.done())
        assert not adding.done()

    def go_on(self) -> None:
        self._may.set()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    return Held(monkeypatch)


async def test_failure_of_who_made_a_network_takes_it_from_nobody_who_joins_it(plugin: Plugin, held: Held) -> None:
    for steps in range(0, 60, 3):
        await plugin("ADD", **SUBNET)
        (route, *_) = [it.key for it in plugin.host.endpoints()[0].plan if it.key.startswith("route/")]
        await plugin("GC", **valid())
        plugin.host.kernel.fail_at(route)
        maker = asyncio.ensure_future(plugin("ADD", **SUBNET))
        for _ in range(steps):
            await turn()
        held.looks = 0
        late = asyncio.ensure_future(plugin("ADD", "late", LATE, **SUBNET))
        await held.begun(late)
        assert (await maker)["code"] == 100
        plugin.host.kernel.heal()
        held.go_on()
        assert (await late)["ips"], f"begun after {steps} turns"
        await plugin("GC", **valid())
        assert plugin.host.networks() == []
        held._may.clear()


async def test_last_of_several_that_fail_deletes_the_network_that_was_made_for_them(plugin: Plugin, held: Held) -> None:
    await plugin("ADD", "late", **SUBNET)
    (route, *_) = [it.key for it in plugin.host.endpoints()[0].plan if it.key.startswith("route/")]
    await plugin("GC", **valid())
    plugin.host.kernel.fail_at(route)
    late = asyncio.ensure_future(plugin("ADD", "late", LATE, **SUBNET))
    await held.begun(late)
    assert (await plugin("ADD", **SUBNET))["code"] == 100
    assert len(plugin.host.networks()) == 1
    plugin.host.kernel.vanish(LATE)
    held.go_on()
    assert (await late)["code"] == 103
    plugin.host.kernel.heal()
    assert plugin.host.networks() == []


async def test_gc_of_an_empty_network_leaves_it_to_who_is_just_joining(plugin: Plugin, held: Held) -> None:
    late = await joining_an_empty_network(plugin, held)
    assert await plugin("GC", **valid()) == {}
    held.go_on()
    assert (await late)["ips"]
    await plugin("GC", **valid())
    assert plugin.host.networks() == []


async def test_changed_configuration_takes_no_network_from_who_is_just_joining(plugin: Plugin, held: Held) -> None:
    late = await joining_an_empty_network(plugin, held)
    assert (await plugin("ADD", "d", **OTHER))["code"] == 7
    held.go_on()
    assert (await late)["ips"]
    await plugin("DEL", "late")
    assert (await plugin("ADD", "d", **OTHER))["ips"]


async def test_what_podman_makes_anew_takes_no_network_from_who_is_just_joining(runtimes: Runtimes, held: Held) -> None:
    held.free = 0
    subnets = [{"subnet": "10.1.0.0/24"}]
    await runtimes.create(subnets=subnets)
    late = asyncio.ensure_future(runtimes.setup(netns=LATE))
    await held.begun(late)
    await runtimes.create(subnets=subnets)
    refused = await runtimes.create(name="other", subnets=[{"subnet": "10.1.0.0/25"}])
    assert "overlaps" in refused["error"]
    held.go_on()
    assert (await late)["interfaces"]
