"""Who asks for an address, by what Docker has on disk."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio
from docker_client import END, NET, Plugin, endpoint, network

from netplug.docker.container_inference import ContainerInference
from netplug.engine.records import AttachSpec, Description
from netplug.frontends.docker.network import docker_app
from netplug.ipam.lease import Owner, OwnerKind

WEB, DB, JOB = "c1" * 32, "c2" * 32, "c3" * 32
pytestmark = pytest.mark.usefixtures("quiet")


@dataclass
class Facts:
    root: Path | None
    networks: dict[str, str] = field(default_factory=lambda: {NET: "blue"})


class Docker:
    """A data folder of Docker's, and a sticky network of its that keeps an address for `web`."""

    def __init__(self, plugin: Plugin, root: Path) -> None:
        self.plugin = plugin
        self.root = root
        self.facts = Facts(root)
        self.pool = ""
        self.kept = ""
        (root / "containers").mkdir()

    async def start(self) -> None:
        asked = {"AddressSpace": "netplug-local", "Pool": "10.1.0.0/24"}
        self.pool = (await self.plugin.ok("/IpamDriver.RequestPool", asked))["PoolID"]
        wanted = network(sticky="true")
        wanted["IPv4Data"][0]["AddressSpace"] = "netplug-local"
        await self.plugin.ok("/NetworkDriver.CreateNetwork", wanted)
        allocator, owner = self.plugin.engine.allocator, Owner(OwnerKind.PENDING, name="web")
        lease = await allocator.request_address(self.pool, owner=owner)
        await allocator.release_address(self.pool, lease.address)
        self.kept = str(lease.address)
        self.caller = ContainerInference(self.plugin.engine, self.facts)
        self.plugin.app = docker_app(self.plugin.engine, on_activate=lambda: None, container_of=self.caller.name)

    def write(self, ident: str, name: str, *networks: str, ids: str = "", driver: str = "vfs") -> None:
        folder = self.root / "containers" / ident
        folder.mkdir(exist_ok=True)
        found = {key: {"NetworkID": ids} for key in networks or ("blue",)}
        data = {"ID": ident, "Name": f"/{name}", "Driver": driver, "NetworkSettings": {"Networks": found}}
        (folder / "config.v2.json").write_text(json.dumps(data))

    def mount(self, ident: str, *, mounted: bool = True) -> None:
        layer = self.root / "image/overlay2/layerdb/mounts" / ident
        layer.mkdir(parents=True, exist_ok=True)
        (layer / "mount-id").write_text(f"m{ident}")
        (self.root / "overlay2" / f"m{ident}" / ("merged" if mounted else "diff")).mkdir(parents=True)

    async def who(self) -> str:
        return await self.caller.name(self.pool)

    async def ask(self) -> str:
        """Request an address as Docker up to 28 does."""
        asked = {"PoolID": self.pool, "Address": "", "Options": None}
        text: str = (await self.plugin.ok("/IpamDriver.RequestAddress", asked))["Address"]
        return text.split("/", maxsplit=1)[0]

    async def run(self, ident: str = END) -> str:
        address = await self.ask()
        await self.plugin.ok("/NetworkDriver.CreateEndpoint", endpoint(ident, f"{address}/24"))
        return address


@pytest_asyncio.fixture
async def docker(tmp_path: Path) -> AsyncIterator[Docker]:
    plugin = await Plugin.start()
    docker = Docker(plugin, tmp_path)
    await docker.start()
    yield docker
    await plugin.close()


async def test_only_container_of_the_network_without_an_endpoint_is_it(docker: Docker) -> None:
    docker.write(WEB, "web")
    docker.write(DB, "db", "red")
    assert await docker.who() == "web"
    assert await docker.run() == docker.kept
    assert docker.plugin.engine.registry.endpoint(NET, END).name == "web"


@pytest.mark.parametrize(("networks", "ids"), [(("red", "blue"), ""), ((NET,), ""), ((NET[:12],), ""), (("x",), NET)])
async def test_network_may_be_written_down_by_name_or_id(docker: Docker, networks: tuple[str, ...], ids: str) -> None:
    docker.write(WEB, "web", *networks, ids=ids)
    assert await docker.who() == "web"


async def test_of_two_without_an_endpoint_neither_is_said(docker: Docker) -> None:
    docker.write(WEB, "web")
    docker.write(DB, "db")
    assert await docker.who() == ""
    assert await docker.ask() != docker.kept


async def test_of_two_the_one_that_is_mounted_is_it(docker: Docker) -> None:
    for ident, name in ((WEB, "web"), (DB, "db"), (JOB, "job")):
        docker.write(ident, name, driver="overlay2")
        docker.mount(ident, mounted=ident == WEB)
    assert await docker.who() == "web"
    docker.mount(DB)
    assert await docker.who() == ""


async def test_nobody_is_said_when_none_is_mounted(docker: Docker) -> None:
    """A running container of another network is just being connected."""
    docker.write(WEB, "web", driver="overlay2")
    docker.mount(WEB, mounted=False)
    assert await docker.who() == ""


async def test_who_has_an_endpoint_is_not_who_asks(docker: Docker) -> None:
    docker.write(DB, "database")
    docker.write(WEB, "web")
    await docker.run()
    assert await docker.who() == ""  # whose endpoint that is we do not know yet
    await docker.plugin.engine.endpoints.describe(NET, END, Description(DB, "renamed"))
    assert await docker.who() == "web"


async def test_sandbox_that_was_attached_is_nobody_of_dockers(docker: Docker) -> None:
    docker.write(WEB, "web")
    await docker.plugin.engine.endpoints.attach(AttachSpec(NET, "lab", name="watch"))
    assert await docker.who() == "web"


async def test_requests_side_by_side_are_not_taken_for_the_same_container(docker: Docker) -> None:
    docker.write(WEB, "web")
    addresses = await asyncio.gather(*(docker.ask() for _ in range(4)))
    assert len(set(addresses)) == 4
    leases = [it for it in docker.plugin.engine.allocator.leases(docker.pool) if it.owner.kind is OwnerKind.PENDING]
    assert [str(lease.address) for lease in leases if lease.owner.name] == [docker.kept]


async def test_files_are_read_anew_when_they_change(docker: Docker) -> None:
    docker.write(WEB, "web", "red")
    assert await docker.who() == ""
    docker.write(WEB, "web", "red", "blue")
    assert await docker.who() == "web"
    docker.write(WEB, "shop-front", "blue")
    assert await docker.who() == "shop-front"


@pytest.mark.parametrize("what", ["no root", "no folder", "no name", "half made", "garbled", "nothing kept"])
async def test_without_certainty_nothing_is_said(docker: Docker, what: str) -> None:
    docker.write(WEB, "web")
    if what == "no root":
        docker.facts.root = None
    elif what == "no folder":
        docker.facts.root = docker.root / "elsewhere"
    elif what == "no name":
        docker.facts.networks.clear()
    elif what == "half made":
        (docker.root / "containers" / WEB / "config.v2.json").unlink()
    elif what == "garbled":
        (docker.root / "containers" / WEB / "config.v2.json").write_text('{"Name": null}')
    else:
        await docker.plugin.engine.allocator.set_sticky(docker.pool, 0)
    assert await docker.who() == ""
    assert await docker.ask()


async def test_mistake_is_mended_and_logged(docker: Docker) -> None:
    docker.write(WEB, "web")
    await docker.run()
    await docker.plugin.engine.endpoints.describe(NET, END, Description(DB, "db"))
    assert docker.plugin.engine.registry.endpoint(NET, END).name == "db"
