"""Sticky addresses where Docker tells its IPAM driver the container's name (29.0 and later)."""

from collections.abc import AsyncIterator
from ipaddress import ip_network
from typing import Any

import pytest
import pytest_asyncio
from docker_client import END, NET, REF, Plugin, endpoint, network

from netplug.docker import garbage
from netplug.docker.garbage import GarbageCollector
from netplug.engine.records import DockerView
from netplug.ipam.lease import OwnerKind

MAC = "02:42:0a:01:00:77"
OTHER = "e2" * 32


@pytest_asyncio.fixture
async def plugin() -> AsyncIterator[Plugin]:
    plugin = await Plugin.start()
    yield plugin
    await plugin.close()


async def sticky(plugin: Plugin, value: str = "true") -> str:
    """Make a sticky network with our IPAM, as Docker does; return its pool's id."""
    asked = {"AddressSpace": "netplug-local", "Pool": "10.1.0.0/24"}
    pool: str = (await plugin.ok("/IpamDriver.RequestPool", asked))["PoolID"]
    gateway = {"PoolID": pool, "Address": "", "Options": {"RequestAddressType": "com.docker.network.gateway"}}
    await plugin.ok("/IpamDriver.RequestAddress", gateway)
    wanted = network(sticky=value)
    wanted["IPv4Data"][0]["AddressSpace"] = "netplug-local"
    await plugin.ok("/NetworkDriver.CreateNetwork", wanted)
    return pool


async def start(
    plugin: Plugin, pool: str, name: str, ident: str = END, *, mac: str = "", ip: str = ""
) -> tuple[str, str]:
    """Start a container as Docker 29 does; return its address and MAC."""
    options = {"com.docker.network.endpoint.name": name}
    given = await plugin.ok("/IpamDriver.RequestAddress", {"PoolID": pool, "Address": ip, "Options": options})
    wanted = endpoint(ident, given["Address"])
    wanted["Interface"]["MacAddress"] = mac
    answer = await plugin.ok("/NetworkDriver.CreateEndpoint", wanted)
    return given["Address"].split("/")[0], mac or answer["Interface"]["MacAddress"]


async def stop(plugin: Plugin, pool: str, address: str, ident: str = END) -> None:
    ref = {**REF, "EndpointID": ident}
    await plugin.ok("/NetworkDriver.Leave", ref)
    await plugin.ok("/NetworkDriver.DeleteEndpoint", ref)
    await plugin.ok("/IpamDriver.ReleaseAddress", {"PoolID": pool, "Address": address})


def kept(plugin: Plugin, pool: str) -> dict[str, str]:
    return {lease.owner.name: str(lease.address) for lease in plugin.engine.allocator.retained(pool)}


async def test_container_of_the_same_name_gets_address_and_mac_again(plugin: Plugin) -> None:
    pool = await sticky(plugin)
    first = await start(plugin, pool, "web")
    await stop(plugin, pool, first[0])
    assert kept(plugin, pool) == {"web": first[0]}
    other = await start(plugin, pool, "db", OTHER)
    assert other[0] != first[0]
    await plugin.restart()
    assert await start(plugin, pool, "web") == first


async def test_mac_of_the_user_comes_again_unless_he_gives_another(plugin: Plugin) -> None:
    pool = await sticky(plugin)
    first = await start(plugin, pool, "web", mac=MAC)
    await stop(plugin, pool, first[0])
    assert await start(plugin, pool, "web") == (first[0], MAC)
    await stop(plugin, pool, first[0])
    assert await start(plugin, pool, "web", mac="02:42:0a:01:00:78") == (first[0], "02:42:0a:01:00:78")


async def test_who_asks_for_a_kept_address_gets_it(plugin: Plugin) -> None:
    pool = await sticky(plugin)
    first = await start(plugin, pool, "web", mac=MAC)
    await stop(plugin, pool, first[0])
    taken = await start(plugin, pool, "db", OTHER, ip=first[0])
    assert taken[0] == first[0]
    assert taken[1] != MAC
    again = await start(plugin, pool, "web")
    assert again[0] != first[0]


async def test_address_whose_endpoint_never_came_is_kept_on(plugin: Plugin) -> None:
    pool = await sticky(plugin)
    first = await start(plugin, pool, "web", mac=MAC)
    await stop(plugin, pool, first[0])
    asked = {"PoolID": pool, "Address": "", "Options": {"com.docker.network.endpoint.name": "web"}}
    given = await plugin.ok("/IpamDriver.RequestAddress", asked)
    await plugin.ok("/IpamDriver.ReleaseAddress", {"PoolID": pool, "Address": given["Address"].split("/")[0]})
    assert await start(plugin, pool, "web") == (first[0], MAC)


async def test_container_removed_while_we_were_down_leaves_its_address_to_its_name(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker gave the address back, but nobody heard it."""
    monkeypatch.setattr(garbage, "GRACE_S", 0.0)
    pool = await sticky(plugin)
    first = await start(plugin, pool, "web")
    await plugin.restart()

    async def view() -> DockerView:
        return DockerView(networks=frozenset({NET}), subnets=frozenset({ip_network("10.1.0.0/24")}))

    them = GarbageCollector(plugin.engine, view)
    await them.after_start(them.suspects())
    assert kept(plugin, pool) == {"web": first[0]}
    assert not plugin.leases(OwnerKind.PENDING)
    assert await start(plugin, pool, "web", OTHER) == first


async def test_network_rm_forgets_what_was_kept(plugin: Plugin) -> None:
    before = await plugin.state()
    pool = await sticky(plugin)
    first = await start(plugin, pool, "web")
    await stop(plugin, pool, first[0])
    for address in ("10.1.0.1",):
        await plugin.ok("/IpamDriver.ReleaseAddress", {"PoolID": pool, "Address": address})
    await plugin.ok("/IpamDriver.ReleasePool", {"PoolID": pool})
    await plugin.ok("/NetworkDriver.DeleteNetwork", {"NetworkID": NET})
    assert await plugin.state() == before


async def test_sticky_without_our_ipam_is_refused_with_the_command_to_use(plugin: Plugin) -> None:
    before = await plugin.state()
    wanted: Any = network(sticky="true")
    text = (await plugin.call("/NetworkDriver.CreateNetwork", wanted)).error
    assert "docker network create -d pynet --ipam-driver pynet -o sticky=true" in text
    assert await plugin.state() == before
