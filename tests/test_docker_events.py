"""Names of Docker's networks and containers, from an Engine API that comes and goes."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import pytest_asyncio
from docker_api import DockerApi
from engine_host import DEADLINE_S, END, NET, NEXT, OTHER, Host, until

from netplug.docker import events
from netplug.docker.events import DockerEvents
from netplug.engine.records import DockerView, EndpointSpec, FrontEnd, NetworkSpec, SubnetSpec


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    host = await Host.boot()
    await host.docker_network()
    await host.docker_endpoint()
    yield host
    await host.close()


@pytest_asyncio.fixture
async def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DockerApi]:
    monkeypatch.setattr(events, "RETRY_FIRST_S", 0.01)
    monkeypatch.setattr(events, "RETRY_LAST_S", 0.02)
    api = DockerApi(tmp_path / "docker.sock")
    yield api
    await api.stop()


@pytest_asyncio.fixture
async def names(host: Host, docker: DockerApi) -> AsyncIterator[DockerEvents]:
    names = DockerEvents(host.engine, docker.url)
    task = asyncio.ensure_future(names.run())
    yield names
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def called(host: Host) -> tuple[str, str, str]:
    return host.networks()[0].network.name, host.endpoint().name, host.endpoint().container


async def heard(docker: DockerApi) -> None:
    """Wait until events are followed and what there was before has been read."""
    async with asyncio.timeout(DEADLINE_S):
        await docker.listening.wait()
        if not docker.fails:
            await docker.listed.wait()


async def test_names_are_learned_at_the_start(host: Host, docker: DockerApi, names: DockerEvents) -> None:
    docker.networks = {NET: "blue", OTHER: "nobody's"}
    docker.run_container("c1", "web", blue=(NET, END), other=(OTHER, NEXT), none=(OTHER, ""))
    await docker.start()
    await until(lambda: called(host) == ("blue", "web", "c1"))


async def test_docker_says_where_it_keeps_its_data_and_what_its_networks_are_called(
    host: Host, docker: DockerApi, names: DockerEvents
) -> None:
    docker.networks = {NET: "blue"}
    docker.root = "/srv/docker"
    assert (names.root, names.networks) == (None, {})
    await docker.start()
    await until(lambda: names.root == Path("/srv/docker"))
    assert names.networks == {NET: "blue"}
    await heard(docker)
    docker.tell("network", "create", OTHER, name="red")
    await until(lambda: names.networks == {NET: "blue", OTHER: "red"})


async def test_names_are_learned_from_events(host: Host, docker: DockerApi, names: DockerEvents) -> None:
    await docker.start()
    await heard(docker)
    docker.tell("network", "create", NET, name="blue")
    docker.run_container("c1", "web", blue=(NET, END))
    docker.tell("network", "connect", NET, container="c1")
    await until(lambda: called(host) == ("blue", "web", "c1"))
    docker.run_container("c1", "shop", blue=(NET, END))
    docker.tell("container", "rename", "c1")
    await until(lambda: host.endpoint().name == "shop")
    docker.run_container("c1", "store", blue=(NET, END))
    docker.tell("container", "start", "c1")
    await until(lambda: host.endpoint().name == "store")
    assert docker.filters == {
        "type": ["network", "container"],
        "event": ["create", "connect", "disconnect", "rename", "start", "destroy", "health_status"],
    }


async def test_domain_and_whose_resolvers_are_asked_are_learned(
    host: Host, docker: DockerApi, names: DockerEvents
) -> None:
    started = "2026-11-27T19:25:10.289478735Z"

    async def said(dns: list[str], links: list[str] | None = None, **more: tuple[str, str]) -> float:
        docker.run_container("c1", "web", blue=(NET, END), **more)
        docker.containers["c1"] |= {
            "Config": {"Hostname": f"h{len(docker.inspected)}", "Domainname": "corp.example"},
            "HostConfig": {"Dns": dns, "Links": links},
            "State": {"StartedAt": started},
        }
        docker.tell("container", "start", "c1")
        hostname = docker.containers["c1"]["Config"]["Hostname"]
        await until(lambda: host.endpoint().hostname == hostname)
        assert host.endpoint().domainname == "corp.example"
        return host.endpoint().resolves

    await docker.start()
    await heard(docker)
    assert await said([]) == datetime.fromisoformat("2026-11-27T19:25:10.289478+00:00").timestamp()
    assert await said(["192.0.2.1"]) == 0
    assert await said([], ["/other:/web/other"]) == 0
    assert await said([], other=(OTHER, NEXT)) == 0
    started = "never"
    assert await said([]) == 0


async def test_dockerd_that_restarts_is_found_again(host: Host, docker: DockerApi, names: DockerEvents) -> None:
    for name in ("blue", "red"):
        docker.run_container("c1", name, blue=(NET, END))
        await docker.start()
        await until(lambda name=name: host.endpoint().name == name)  # type: ignore[misc]
        await docker.stop()


async def test_dockerd_that_is_out_of_order_is_asked_again(host: Host, docker: DockerApi, names: DockerEvents) -> None:
    docker.fails = True
    docker.run_container("c1", "web", blue=(NET, END))
    await docker.start()
    await heard(docker)
    assert await names.view() is None
    assert await names.knows(NET) is None
    docker.fails = False
    await until(lambda: host.endpoint().name == "web")


async def test_what_happens_before_events_are_followed_is_learned_too(
    host: Host, docker: DockerApi, names: DockerEvents
) -> None:
    docker.follows.clear()
    await docker.start()
    async with asyncio.timeout(DEADLINE_S):
        await docker.listed.wait()
    docker.run_container("c1", "web", blue=(NET, END))
    docker.tell("container", "start", "c1")
    docker.follows.set()
    await until(lambda: called(host) == ("a1a1a1a1a1a1", "web", "c1"))


async def test_container_that_docker_cannot_inspect_keeps_no_other_from_its_names(
    host: Host, docker: DockerApi, names: DockerEvents
) -> None:
    await host.docker_endpoint(NEXT, "10.1.0.3/24")
    docker.damaged.add("c0")
    docker.run_container("c0", "damaged", blue=(NET, NEXT))
    await docker.start()
    await heard(docker)
    docker.networks = {NET: "blue"}
    docker.run_container("c1", "web", blue=(NET, END))
    docker.containers["c1"]["Config"] = {"Hostname": "inner"}
    docker.tell("container", "start", "c1")
    await until(lambda: host.endpoint().hostname == "inner")
    assert host.endpoint(NEXT).name == "damaged"
    docker.damaged.clear()
    docker.containers["c0"]["Config"] = {"Hostname": "mended"}
    docker.tell("container", "rename", "c0")
    await until(lambda: host.endpoint(NEXT).hostname == "mended")


async def test_vanished_container_is_passed_over(host: Host, docker: DockerApi, names: DockerEvents) -> None:
    await docker.start()
    await heard(docker)
    docker.run_container("c0", "short", blue=(NET, END))
    docker.gone_after_list.add("c0")
    docker.run_container("c1", "web", blue=(NET, END))
    for ident in ("gone", "c0", "c1"):
        docker.tell("container", "start", ident)
    await until(lambda: host.endpoint().name == "web")
    assert docker.inspected == ["gone", "c0", "c1"]  # once each, and by the first connection


async def test_network_that_goes_meanwhile_is_no_error(host: Host, docker: DockerApi, names: DockerEvents) -> None:
    await docker.start()
    await heard(docker)
    docker.run_container("c1", "web", blue=(OTHER, NEXT), red=(NET, END))
    docker.tell("network", "create", OTHER, name="gone")
    docker.tell("container", "start", "c1")
    await until(lambda: host.endpoint().name == "web")


async def test_view_is_what_docker_has(host: Host, docker: DockerApi) -> None:
    names = DockerEvents(host.engine, docker.url)
    assert await names.view() is None
    await docker.start()
    assert await names.view() == DockerView()
    docker.networks = {NET: "blue", OTHER: "red"}
    docker.ipam = {
        NET: {
            "Driver": "pynet",
            "Config": [{"Subnet": "10.1.0.0/24", "Gateway": "10.1.0.1", "AuxiliaryAddresses": {"nas": "10.1.0.9"}}],
        },
        OTHER: {"Driver": "default", "Config": [{"Subnet": "10.2.0.0/24", "Gateway": "10.2.0.1"}]},
    }
    docker.run_container("c1", "web", blue=(NET, END), none=(OTHER, ""))
    docker.containers["c1"]["NetworkSettings"]["Networks"]["blue"] |= {"IPAddress": "10.1.0.2"}
    assert await names.view() == DockerView(
        frozenset({END}),
        frozenset({NET, OTHER}),
        frozenset({ip_network("10.1.0.0/24")}),
        frozenset(map(ip_address, ("10.1.0.1", "10.1.0.2", "10.1.0.9"))),
        frozenset({(ip_network("10.1.0.0/24"), NET)}),
    )
    assert (await names.knows(NET), await names.knows("c3" * 32)) == (True, False)


# Addresses that containers were created with


class FixedHost:
    """A network whose addresses we choose, of the containers that `docker` has."""

    def __init__(self, host: Host, docker: DockerApi) -> None:
        self.host, self.docker = host, docker

    async def boot(self) -> None:
        spec = NetworkSpec(NET, subnets=(SubnetSpec(ip_network("10.1.0.0/29")),), front_end=FrontEnd.DOCKER)
        await self.host.engine.networks.create(spec)
        self.docker.networks = {NET: "blue"}

    def kept(self) -> dict[str, str]:
        allocator = self.host.engine.allocator
        (pool,) = self.host.networks()[0].pools
        return {lease.owner.name: str(lease.address) for lease in allocator.retained(pool)}

    async def keeps(self, **wanted: str) -> None:
        await until(lambda: self.kept() == wanted, f"{wanted} is kept, not {self.kept()}")


@pytest_asyncio.fixture
async def fixed(docker: DockerApi) -> AsyncIterator[FixedHost]:
    host = await Host.boot()
    fixed = FixedHost(host, docker)
    await fixed.boot()
    names = DockerEvents(host.engine, docker.url)
    task = asyncio.ensure_future(names.run())
    yield fixed
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await host.close()


async def test_address_that_a_stopped_container_was_created_with_is_kept_while_it_exists(
    fixed: FixedHost, docker: DockerApi
) -> None:
    docker.create_container("c1", "web", "blue", "10.1.0.2", NET)
    docker.create_container("c9", "far", "green", "10.2.0.2", OTHER)
    await docker.start()
    await fixed.keeps(web="10.1.0.2")
    docker.create_container("c2", "db", "blue", "10.1.0.3")
    docker.tell("container", "create", "c2")
    await fixed.keeps(web="10.1.0.2", db="10.1.0.3")
    built = await fixed.host.engine.endpoints.create(EndpointSpec(END, NET))
    assert [str(it) for it in built.endpoint.addresses] == ["10.1.0.4/29"]
    docker.containers["c1"]["Name"] = "/www"
    docker.tell("container", "rename", "c1")
    await fixed.keeps(www="10.1.0.2", db="10.1.0.3")
    del docker.containers["c1"]
    docker.tell("container", "destroy", "c1")
    await fixed.keeps(db="10.1.0.3")
    docker.containers["c2"]["NetworkSettings"]["Networks"] = {}
    docker.tell("network", "disconnect", NET, container="c2")
    await fixed.keeps()


async def test_what_changed_while_docker_was_away_is_learned_from_its_list(fixed: FixedHost, docker: DockerApi) -> None:
    docker.create_container("c1", "web", "blue", "10.1.0.2", NET)
    docker.create_container("c2", "green", "blue", "10.1.0.2", NET)
    await docker.start()
    await fixed.keeps(green="10.1.0.2")
    await docker.stop()
    del docker.containers["c2"]
    docker.create_container("c3", "db", "blue", "10.1.0.5", NET)
    await docker.start()
    await fixed.keeps(web="10.1.0.2", db="10.1.0.5")
