"""Networks that come, go and change while others do: what the networks of a host share is there for each of them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import permutations
from typing import Any

import pytest
import pytest_asyncio
from engine_host import END, NET, OTHER, Host, external

from netplug.drivers.steps import Sysctl
from netplug.engine.network_updates import NetworkChange
from netplug.engine.records import FrontEnd, SubnetSpec
from netplug.errors import NetplugError

pytestmark = pytest.mark.usefixtures("quiet")
V6 = "fd00:4::/64"


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    host = await Host.boot()
    await host.see(gates=((4, "nft"), (6, "nft")))
    yield host
    await host.check()
    await host.close()


def first(host: Host, monkeypatch: pytest.MonkeyPatch, what: str, act: Callable[[], Awaitable[object]]) -> None:
    """Let something else be done in the middle of a use case: before it begins what `Convergence` does, once."""
    convergence, before = host.engine.convergence, getattr(host.engine.convergence, what)

    async def interrupted(*args: Any) -> Any:
        monkeypatch.setattr(convergence, what, before)
        await act()
        return await before(*args)

    monkeypatch.setattr(convergence, what, interrupted)


async def red(host: Host) -> object:
    return await host.cli_network(V6, ident=OTHER, name="red")


async def test_network_that_comes_during_a_comparison_keeps_what_it_needs(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.docker_network()
    first(host, monkeypatch, "all", lambda: red(host))
    await host.reconciler.repair()
    await host.check()
    assert len(host.networks()) == 2


async def test_network_that_comes_during_a_refused_change_keeps_what_it_needs(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.docker_network()

    async def come_and_fail() -> None:
        await red(host)
        raise NetplugError("unavailable", "refused")

    first(host, monkeypatch, "change", come_and_fail)
    with pytest.raises(NetplugError, match="refused"):
        await host.engine.network_updates.update(NET, NetworkChange({"rate": "8mbit"}))
    await host.check()


async def test_what_a_change_needs_stays_while_another_network_goes(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.cli_network()
    await host.docker_network(OTHER, "10.7.0.0/24")
    first(host, monkeypatch, "change", lambda: host.engine.networks.delete(OTHER, by=FrontEnd.DOCKER))
    await host.engine.network_updates.update(NET, NetworkChange(add=(SubnetSpec(external(V6).pool, v6=True),)))
    await host.check()


async def test_deletion_succeeds_though_the_host_cannot_be_read(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    await host.see(forwarding=())  # so that it is turned off with the last network, unless others need it
    await host.docker_network()
    assert any(isinstance(step, Sysctl) and step.restore for step in host.engine.base_plan.plan)

    async def facts() -> None:
        raise NetplugError("unavailable", "the kernel does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(host.kernel, "facts", facts)
        await host.engine.networks.delete(NET, by=FrontEnd.DOCKER)
    assert host.engine.base_plan.plan
    await host.engine.base_plan.trim(host.engine.registry.all_networks)


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
async def test_of_networks_that_get_a_name_at_once_one_gets_it(host: Host, order: tuple[int, ...]) -> None:
    """A user creates one while Docker tells how two of its own are called."""
    await host.docker_network()
    await host.docker_network(OTHER, "10.7.0.0/24")
    name = host.engine.networks.name
    work = name(NET, "blue"), name(OTHER, "blue"), host.cli_network("10.8.0.0/24", ident="c3" * 32)
    done = await asyncio.gather(*(work[number] for number in order), return_exceptions=True)
    assert all(isinstance(it, NetplugError) for it in done if isinstance(it, Exception))
    assert [record.network.name for record in host.networks()].count("blue") == 1


async def test_id_of_an_endpoint_is_of_one_network(host: Host) -> None:
    await host.docker_network()
    await host.docker_network(OTHER, "10.7.0.0/24")
    made = await asyncio.gather(
        host.docker_endpoint(), host.docker_endpoint(END, "10.7.0.2/24", network=OTHER), return_exceptions=True
    )
    (refused,) = (it for it in made if isinstance(it, NetplugError))
    assert f"endpoint '{END[:12]}' exists already, in network" in str(refused)
    assert len(host.endpoints()) == 1
