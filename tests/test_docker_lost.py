"""What Docker never heard of: its networks are told from those of other Dockers, and its pools are given back."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path

import pytest
import pytest_asyncio
from docker_client import NET, Plugin, call, network
from engine_host import END, Host

from netplug.docker.garbage import GarbageCollector
from netplug.docker.own_docker import OwnDocker
from netplug.engine.host_services import HostServices
from netplug.engine.records import DockerView
from netplug.frontends.docker.network import docker_app
from netplug.frontends.serving import serving
from netplug.tasks.request import current

pytestmark = pytest.mark.usefixtures("quiet", "garbage_at_once")
POOL = ip_network("10.1.0.0/24")
OWN = os.getpid()


@pytest_asyncio.fixture
async def plugin() -> AsyncIterator[Plugin]:
    plugin = await Plugin.start()
    yield plugin
    await plugin.close()


async def collect(plugin: Plugin, view: DockerView) -> None:
    async def look() -> DockerView:
        return view

    them = GarbageCollector(plugin.engine, look)
    await them.after_lost_request(them.suspects())


async def served(plugin: Plugin, own: int, folder: Path) -> None:
    """Have a process, this one, ask for a network over the socket, with `own` as the Docker that we listen to."""
    app = docker_app(plugin.engine, on_activate=lambda: None, own=lambda pid: pid == own)
    path = str(folder / "pynet.sock")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        async with serving(app, sock):
            reader, writer = await asyncio.open_unix_connection(path)
            body = json.dumps(network()).encode()
            head = f"POST /NetworkDriver.CreateNetwork HTTP/1.1\r\nHost: \r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
            writer.close()
            await writer.wait_closed()


@pytest.mark.parametrize("own", [OWN, 1], ids=["ours", "another"])
async def test_network_that_its_docker_never_listed_goes_unless_it_is_another_dockers(
    plugin: Plugin, tmp_path: Path, own: int
) -> None:
    await served(plugin, own, tmp_path)
    await collect(plugin, DockerView(networks=frozenset({NET})))
    assert plugin.engine.registry.networks(), "Docker lists it"
    await collect(plugin, DockerView())
    assert bool(plugin.engine.registry.networks()) is (own != OWN)


async def test_caller_without_a_socket_is_nobody(plugin: Plugin) -> None:
    app = docker_app(plugin.engine, on_activate=lambda: None, own=bool)
    body = json.dumps(network()).encode()
    answer = await call(app, "/NetworkDriver.CreateNetwork", body, {"content-length": str(len(body))})
    assert answer.status == 200
    assert not plugin.engine.registry.network(NET).claimed
    assert current().caller == 0


@pytest.mark.parametrize(("asked", "listed", "left"), [(1, 0, 0), (2, 1, 1), (3, 2, 2), (2, 0, 0)])
async def test_pool_that_docker_asked_for_in_vain_is_given_back(
    plugin: Plugin, asked: int, listed: int, left: int
) -> None:
    request = {"AddressSpace": "netplug-local", "Pool": str(POOL), "SubPool": "", "Options": {}, "V6": False}
    for _ in range(asked):
        await plugin.ok("/IpamDriver.RequestPool", request)
    holds = frozenset((POOL, str(number)) for number in range(listed))
    await collect(plugin, DockerView(subnets=frozenset({POOL} if listed else ()), holds=holds))
    assert [pool.holds for pool in plugin.engine.allocator.pools()] == [left] * bool(left)


async def test_pool_that_docker_asked_for_again_before_the_search_is_given_back_once(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = {"AddressSpace": "netplug-local", "Pool": str(POOL), "SubPool": "", "Options": {}, "V6": False}
    await plugin.ok("/IpamDriver.RequestPool", request)

    async def look() -> DockerView:
        return DockerView(subnets=frozenset({POOL}), holds=frozenset({(POOL, NET)}))

    async def repair() -> None:
        """Find nothing."""

    them = GarbageCollector(plugin.engine, look)
    suspects = them.suspects()
    await plugin.ok("/IpamDriver.RequestPool", request)
    await them.after_lost_request(suspects)
    (pool,) = plugin.engine.allocator.pools()
    assert pool.holds == 2, "it is not known which one was lost"
    release, released = plugin.engine.allocator.release_pool, asyncio.Event()

    async def noting(pool_id: str) -> bool:
        done = await release(pool_id)
        released.set()
        return done

    monkeypatch.setattr(plugin.engine.allocator, "release_pool", noting)
    task = asyncio.ensure_future(them.run(suspects, repair))
    try:
        async with asyncio.timeout(20):
            await released.wait()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    (pool,) = plugin.engine.allocator.pools()
    assert pool.holds == 1


async def test_pool_of_a_network_of_ours_keeps_a_hold(plugin: Plugin) -> None:
    """It may be another Docker's, which our Docker does not list."""
    request = {"AddressSpace": "netplug-local", "Pool": str(POOL), "SubPool": "", "Options": {}, "V6": False}
    for _ in range(2):
        await plugin.ok("/IpamDriver.RequestPool", request)
    spec = network()
    spec["IPv4Data"][0]["AddressSpace"] = "netplug-local"
    await plugin.ok("/NetworkDriver.CreateNetwork", spec)
    await collect(plugin, DockerView())
    (pool,) = plugin.engine.allocator.pools()
    assert (pool.holds, pool.holders) == (1, (NET,))


async def test_process_at_dockers_socket_is_ours(tmp_path: Path) -> None:
    path, services = tmp_path / "docker.sock", HostServices()
    own = OwnDocker(f"unix://{path}", services.runtimes, services.socket_owners)
    await own.learn()
    assert not own.calls(OWN), "nobody answers"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nOK")
        await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(answer, path):
        await own.learn()
    assert own.calls(OWN)
    assert not own.calls(1)
    assert not own.calls(0)
    assert not own.calls(1 << 22), "there is no such process"


async def test_docker_elsewhere_is_not_asked() -> None:
    services = HostServices()
    own = OwnDocker("tcp://192.0.2.1:2375", services.runtimes, services.socket_owners)
    await own.learn()
    assert not own.calls(OWN)


async def test_return_of_dockers_events_begins_the_search() -> None:
    """A dockerd that was killed at its only network does not activate the plugin when it starts."""
    host = await Host.boot()
    await host.docker_network()
    await host.docker_endpoint()
    looked = asyncio.Event()

    async def look() -> DockerView:
        looked.set()
        return DockerView(networks=frozenset({NET}))

    them = GarbageCollector(host.engine, look)

    async def repair() -> None:
        """Find nothing."""

    task = asyncio.ensure_future(them.run(them.suspects(), repair))
    try:
        async with asyncio.timeout(5):
            while host.endpoints():  # noqa: ASYNC110 - of the start
                await asyncio.sleep(0)
            await host.docker_endpoint()
            them.on_return()
            while host.endpoints():  # noqa: ASYNC110
                await asyncio.sleep(0)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert looked.is_set()
    assert END
    await host.close()
