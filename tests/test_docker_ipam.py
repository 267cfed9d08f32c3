"""What the plugin does as Docker's IPAM driver."""

from collections.abc import AsyncIterator
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest_asyncio
from docker_client import END, NET, Plugin, endpoint, network

from netplug.drivers.steps import Route
from netplug.engine.records import Description, EndpointSpec, FrontEnd
from netplug.ipam.lease import OwnerKind


@pytest_asyncio.fixture
async def plugin() -> AsyncIterator[Plugin]:
    plugin = await Plugin.start()
    yield plugin
    await plugin.close()


async def own(plugin: Plugin, **options: str) -> tuple[str, str]:
    """Make a network with our IPAM, as Docker does; return its pool's id and gateway."""
    pool = await plugin.ok("/IpamDriver.RequestPool", {"AddressSpace": "netplug-local", "Options": options})
    asked = {"PoolID": pool["PoolID"], "Address": "", "Options": {"RequestAddressType": "com.docker.network.gateway"}}
    gateway = (await plugin.ok("/IpamDriver.RequestAddress", asked))["Address"]
    wanted = network(pool=pool["Pool"], gateway=gateway)
    wanted["IPv4Data"][0]["AddressSpace"] = "netplug-local"
    await plugin.ok("/NetworkDriver.CreateNetwork", wanted)
    return pool["PoolID"], gateway


async def test_a_pool_that_is_chosen_avoids_routes_and_other_pools(plugin: Plugin) -> None:
    office = ip_network("10.208.0.0/14")
    plugin.kernel.foreign.routes.append(Route(office, "wg0"))
    pools = [await plugin.ok("/IpamDriver.RequestPool", {"AddressSpace": "netplug-local"}) for _ in range(3)]
    pools += [await plugin.ok("/IpamDriver.RequestPool", {"AddressSpace": "netplug-global"})]
    pools += [await plugin.ok("/IpamDriver.RequestPool", {"AddressSpace": "netplug-local", "V6": True})]
    networks = {ip_network(pool["Pool"]) for pool in pools}
    assert len(networks) == 5
    assert not any(network.overlaps(office) for network in networks if network.version == 4)
    assert ":" in pools[-1]["Pool"]


async def test_the_ip_range_bounds_what_is_chosen(plugin: Plugin) -> None:
    asked = {
        "AddressSpace": "netplug-local",
        "Pool": "10.90.0.0/16",
        "SubPool": "10.90.8.0/30",
        "Options": {"name": "n"},
    }
    pool = (await plugin.ok("/IpamDriver.RequestPool", asked))["PoolID"]
    given = [
        (await plugin.ok("/IpamDriver.RequestAddress", {"PoolID": pool, "Address": "", "Options": None}))["Address"]
        for _ in range(4)
    ]
    assert sorted(given) == [f"10.90.8.{number}/16" for number in range(4)]
    answer = await plugin.call("/IpamDriver.RequestAddress", {"PoolID": pool, "Address": "", "Options": None})
    assert "has no free address: 4 of 4 are leased" in answer.error
    static = {"PoolID": pool, "Address": "10.90.77.7", "Options": None}
    assert (await plugin.ok("/IpamDriver.RequestAddress", static))["Address"] == "10.90.77.7/16"


async def test_the_name_that_docker_tells_ipam_is_the_endpoints(plugin: Plugin) -> None:
    pool, _ = await own(plugin)
    options = {
        "com.docker.network.endpoint.name": "web",
        "com.docker.network.endpoint.macaddress": "02:42:ac:11:00:09",
        "com.docker.network.ipam.serial": "true",
    }
    given = await plugin.ok("/IpamDriver.RequestAddress", {"PoolID": pool, "Address": "", "Options": options})
    await plugin.ok("/NetworkDriver.CreateEndpoint", endpoint(address=given["Address"]))
    assert plugin.engine.registry.endpoint(NET, END).name == "web"
    assert plugin.leases(OwnerKind.ENDPOINT) == {(pool, given["Address"].split("/")[0], END)}


async def test_after_a_restart_docker_may_repeat_what_it_has_and_nobody_else(plugin: Plugin) -> None:
    pool, gateway = await own(plugin)
    given = await plugin.ok("/IpamDriver.RequestAddress", {"PoolID": pool, "Address": "", "Options": None})
    await plugin.ok("/NetworkDriver.CreateEndpoint", endpoint(address=given["Address"]))
    before = await plugin.state()
    repeated: list[tuple[str, Any]] = [
        ("/IpamDriver.RequestPool", {"AddressSpace": "netplug-local", "Pool": network_of(pool), "Options": {}}),
        ("/IpamDriver.RequestAddress", {"PoolID": pool, "Address": gateway.split("/")[0], "Options": None}),
        ("/IpamDriver.RequestAddress", {"PoolID": pool, "Address": given["Address"].split("/")[0], "Options": None}),
    ]
    assert "is leased" in (await plugin.call(*repeated[2])).error
    await plugin.ok("/Plugin.Activate")
    assert (await plugin.ok(*repeated[0]))["PoolID"] == pool
    assert (await plugin.ok(*repeated[1]))["Address"] == gateway
    assert (await plugin.ok(*repeated[2]))["Address"] == given["Address"]
    assert await plugin.state() == before
    assert "is leased" in (await plugin.call(*repeated[2])).error


def network_of(pool: str) -> str:
    return pool.partition("/")[2]


async def test_a_gateway_stays_as_long_as_its_network(plugin: Plugin) -> None:
    empty = await plugin.state()
    pool, gateway = await own(plugin)
    for _ in range(2):
        await plugin.ok("/IpamDriver.ReleaseAddress", {"PoolID": pool, "Address": gateway.split("/")[0]})
        assert plugin.leases(OwnerKind.GATEWAY)
    await plugin.ok("/IpamDriver.ReleasePool", {"PoolID": pool})
    await plugin.ok("/NetworkDriver.DeleteNetwork", {"NetworkID": NET})
    assert await plugin.state() == empty


async def test_a_pool_of_a_network_that_is_not_ours_goes_with_its_last_hold(plugin: Plugin) -> None:
    empty = await plugin.state()
    asked = {"AddressSpace": "netplug-local", "Pool": "10.9.0.0/24"}
    pool = [(await plugin.ok("/IpamDriver.RequestPool", asked))["PoolID"] for _ in range(2)]
    assert pool[0] == pool[1]
    options = {"RequestAddressType": "com.docker.network.gateway"}
    await plugin.ok("/IpamDriver.RequestAddress", {"PoolID": pool[0], "Address": "10.9.0.1", "Options": options})
    await plugin.ok("/IpamDriver.ReleaseAddress", {"PoolID": pool[0], "Address": "10.9.0.1"})
    assert not plugin.leases(OwnerKind.GATEWAY)
    for _ in range(2):
        await plugin.ok("/IpamDriver.ReleasePool", {"PoolID": pool[0]})
    assert await plugin.state() == empty


async def test_an_address_that_docker_gives_back_is_of_a_dead_endpoint(plugin: Plugin) -> None:
    pool, _ = await own(plugin)
    without = await plugin.state()
    given = await plugin.ok("/IpamDriver.RequestAddress", {"PoolID": pool, "Address": "", "Options": None})
    await plugin.ok("/NetworkDriver.CreateEndpoint", endpoint(address=given["Address"]))
    for _ in range(2):
        await plugin.ok("/IpamDriver.ReleaseAddress", {"PoolID": pool, "Address": given["Address"].split("/")[0]})
    assert await plugin.state() == without


async def test_docker_cannot_give_back_the_address_of_an_attached_sandbox(plugin: Plugin) -> None:
    pool, _ = await own(plugin)
    built = await plugin.engine.endpoints.create(EndpointSpec(END, NET, front_end=FrontEnd.CLI))
    before = await plugin.state()
    address = str(built.endpoint.addresses[0].ip)
    assert await plugin.ok("/IpamDriver.ReleaseAddress", {"PoolID": pool, "Address": address}) == {}
    assert await plugin.state() == before


async def test_refusal_names_the_container_that_has_the_address(plugin: Plugin) -> None:
    """Docker before 29 tells no name with a request: it comes later, by an event."""
    pool, _ = await own(plugin)
    given = (await plugin.ok("/IpamDriver.RequestAddress", {"PoolID": pool, "Address": ""}))["Address"]
    await plugin.ok("/NetworkDriver.CreateEndpoint", endpoint(END, given))
    address = given.partition("/")[0]
    wanted = {"PoolID": pool, "Address": address}
    assert f"is leased to endpoint {END[:12]}" in (await plugin.call("/IpamDriver.RequestAddress", wanted)).error
    for name, words in (("", "container 'c0ffeec0ffee'"), ("db", "container 'db'")):
        await plugin.engine.endpoints.describe(NET, END, Description("c0ffee" * 10, name))
        refused = (await plugin.call("/IpamDriver.RequestAddress", wanted)).error
        assert refused.startswith(f"address {address} of pool 10.")
        assert refused.endswith(f"is leased to {words} (stop or detach it, or choose another address, or none)")


async def test_address_of_a_stopped_container_goes_last_and_with_the_network(plugin: Plugin) -> None:
    pool, _ = await own(plugin)
    given = (await plugin.ok("/IpamDriver.RequestAddress", {"PoolID": pool, "Address": ""}))["Address"]
    address = ip_interface(given).ip
    plugin.engine.networks.reserve(NET, {address: "web"})
    await plugin.ok("/IpamDriver.ReleaseAddress", {"PoolID": pool, "Address": str(address)})
    await plugin.restart()
    assert [(lease.owner.name, lease.address) for lease in plugin.engine.allocator.retained(pool)] == [("web", address)]
    assert (await plugin.ok("/IpamDriver.RequestAddress", {"PoolID": pool, "Address": str(address)}))[
        "Address"
    ] == given
    plugin.engine.networks.reserve(NET, {address + 5: "db"})
    await plugin.ok("/NetworkDriver.DeleteNetwork", {"NetworkID": NET})
    assert not list(plugin.engine.allocator.retained(pool))
    plugin.engine.networks.reserve(NET, {address: "web"})
