"""Whose ports are taken from whom, and who keeps his."""

import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from engine_host import END, NET, NEXT, Host, tcp

from netplug.engine import publishing
from netplug.errors import NetplugError

LATER = "e3" * 32
TAKEN = r"port 0\.0\.0\.0:8080/tcp is already in use"


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    """A network of Docker's."""
    host = await Host.boot()
    await host.docker_network()
    yield host
    await host.close()


def ids(host: Host) -> set[str]:
    return {record.endpoint.id for record in host.endpoints()}


async def published(host: Host, ident: str, number: int, *ports: int) -> None:
    await host.docker_endpoint(ident, f"10.1.0.{number}/24", ports=tuple(map(tcp, ports)))
    await host.join(ident, f"/run/docker/netns/{number}")
    await host.publish(ident)


async def test_a_taken_port_harms_nobody_who_is_just_starting(host: Host) -> None:
    await published(host, END, 2, 8080)
    await published(host, NEXT, 3, 8081)
    await host.docker_endpoint(LATER, "10.1.0.4/24", ports=(tcp(8080), tcp(8082)))
    before = await host.state()
    with pytest.raises(NetplugError, match=TAKEN):
        await host.publish(LATER)
    assert await host.state() == before


@pytest.mark.parametrize("alive", [True, False])
async def test_only_the_dead_holder_of_that_port_goes_after_a_crash_of_docker(host: Host, *, alive: bool) -> None:
    await published(host, END, 2, 8080)
    await published(host, NEXT, 3, 8081)
    host.engine.publishing.begin_session()
    host.engine.publishing._started -= publishing.GRACE_S
    await host.docker_endpoint(LATER, "10.1.0.4/24", ports=(tcp(8080),))
    if alive:
        host.kernel.inhabitants.add("/run/docker/netns/2")
        with pytest.raises(NetplugError, match=TAKEN):
            await host.publish(LATER)
    else:
        await host.publish(LATER)
    assert ids(host) == ({END} if alive else set()) | {NEXT, LATER}
    await host.check()


async def test_after_a_start_of_ours_a_holder_has_time_to_come_to_life(host: Host) -> None:
    await published(host, END, 2, 8080)
    await host.reboot()
    await host.docker_endpoint(NEXT, "10.1.0.3/24", ports=(tcp(8080),))
    asked = 0

    async def comes_to_life(*_: str) -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    host.kernel.inhabited = comes_to_life  # type: ignore[method-assign]  # a container that is just being started
    with pytest.raises(NetplugError, match=TAKEN):
        await host.publish(NEXT)
    assert ids(host) == {END, NEXT}


async def test_a_dead_holder_is_gone_when_its_time_is_over(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "GRACE_S", 0.2)
    await published(host, END, 2, 8080)
    await host.reboot()
    started = time.monotonic()
    await host.docker_endpoint(NEXT, "10.1.0.3/24", ports=(tcp(8080),))
    await host.publish(NEXT)
    assert ids(host) == {NEXT}
    assert time.monotonic() - started < 5


async def test_ports_of_a_range_have_holders_too(host: Host) -> None:
    await published(host, END, 2, 8080, 8081)
    host.engine.publishing.begin_session()
    host.engine.publishing._started -= publishing.GRACE_S
    await host.docker_endpoint(NEXT, "10.1.0.3/24", ports=(tcp(8080, 80, end=8081),))
    await host.publish(NEXT)
    assert ids(host) == {NEXT}
    assert host.endpoint(NEXT, NET).published
