"""None mode: loopback only, and no address is leased to nobody."""

from collections.abc import AsyncIterator
from ipaddress import ip_address
from typing import Any

import pytest
import pytest_asyncio
from docker_client import END, NET, PORTMAP, REF, Plugin, endpoint, network, port
from engine_host import Host, running, tcp, until

from netplug.drivers.steps import Loopback
from netplug.engine.records import FrontEnd, NetworkSpec, SubnetSpec
from netplug.errors import NetplugError

GATEWAY = {"RequestAddressType": "com.docker.network.gateway"}


@pytest_asyncio.fixture
async def plugin() -> AsyncIterator[Plugin]:
    plugin = await Plugin.start()
    yield plugin
    await plugin.close()


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    host = await Host.boot()
    await host.engine.networks.create(NetworkSpec(NET, "blue", {"mode": "none"}))
    yield host
    await host.check()
    await host.close()


def leases(plugin: Plugin) -> list[Any]:
    allocator = plugin.engine.allocator
    return [lease for pool in allocator.pools() for lease in (*allocator.leases(pool.id), *allocator.retained(pool.id))]


@pytest.mark.parametrize("gateway", [True, False], ids=["20.10", "29"])
async def test_with_our_ipam_no_lease_remains(plugin: Plugin, *, gateway: bool) -> None:
    """20.10 asks for a gateway before it says what for; later engines ask whether one is wanted."""
    empty = await plugin.state()
    asked = {"AddressSpace": "netplug-local", "Pool": "10.1.0.0/24"}
    pool = (await plugin.ok("/IpamDriver.RequestPool", asked))["PoolID"]
    if gateway:
        await plugin.ok("/IpamDriver.RequestAddress", {"PoolID": pool, "Address": "", "Options": GATEWAY})
    wanted = network(mode="none", sticky="true", gateway="10.1.0.1/24" if gateway else "")
    wanted["IPv4Data"][0]["AddressSpace"] = "netplug-local"
    await plugin.ok("/NetworkDriver.CreateNetwork", wanted)
    assert leases(plugin) == []
    options = {"com.docker.network.endpoint.name": "web"}
    given = await plugin.ok("/IpamDriver.RequestAddress", {"PoolID": pool, "Address": "", "Options": options})
    assert leases(plugin) == []
    spec = endpoint(address=given["Address"], **{PORTMAP: [port(8080)]})
    assert await plugin.ok("/NetworkDriver.CreateEndpoint", spec) == {"Interface": {}}
    join = {**REF, "SandboxKey": "/run/docker/netns/1", "Options": {}}
    assert await plugin.ok("/NetworkDriver.Join", join) == {"DisableGatewayService": True}
    await plugin.ok("/NetworkDriver.ProgramExternalConnectivity", {**REF, "Options": {PORTMAP: [port(8080)]}})
    built = plugin.engine.registry.endpoint(NET, END)
    assert (built.endpoint.addresses, built.published, list(built.present)) == ((), (), [])
    for method in ("Leave", "DeleteEndpoint"):
        await plugin.ok(f"/NetworkDriver.{method}", REF)
    await plugin.ok("/IpamDriver.ReleaseAddress", {"PoolID": pool, "Address": given["Address"].split("/")[0]})
    assert leases(plugin) == []
    if gateway:
        await plugin.ok("/IpamDriver.ReleaseAddress", {"PoolID": pool, "Address": "10.1.0.1"})
    await plugin.ok("/IpamDriver.ReleasePool", {"PoolID": pool})
    await plugin.ok("/NetworkDriver.DeleteNetwork", {"NetworkID": NET})
    assert await plugin.state() == empty


async def test_with_dockers_ipam_we_lease_nothing(plugin: Plugin) -> None:
    await plugin.ok("/NetworkDriver.CreateNetwork", network(mode="none"))
    await plugin.ok("/NetworkDriver.CreateEndpoint", endpoint())
    assert leases(plugin) == []


async def test_attached_sandbox_has_its_loopback_up_and_nothing_else(host: Host) -> None:
    built = await host.attach(name="web")
    assert (built.endpoint.addresses, list(built.plan)) == ((), [Loopback("/run/netns/blue", built.sandbox_id)])
    await host.engine.endpoints.detach(NET, "blue", "eth0")
    assert host.endpoints() == []


async def test_sandbox_that_is_gone_is_forgotten(host: Host) -> None:
    await host.attach()
    host.kernel.vanish("/run/netns/blue")
    async with running(host):
        host.kernel.changed.set()
        await until(lambda: not host.endpoints())


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({"addresses": (ip_address("10.1.0.7"),)}, "--ip"),
        ({"mac": "02:42:0a:01:00:07"}, "--mac"),
        ({"ports": (tcp(8080),)}, "--publish"),
        ({"ports": (tcp(8080),), "addresses": (ip_address("fd00::7"),)}, "--ip and --publish"),
    ],
)
async def test_what_needs_a_link_is_refused(host: Host, options: dict[str, Any], flags: str) -> None:
    before = await host.state()
    with pytest.raises(NetplugError, match="sandboxes have no interface but loopback") as caught:
        await host.attach(**options)
    assert caught.value.hint == f"leave out {flags}"
    assert await host.state() == before


async def test_subnet_of_our_own_network_is_refused(host: Host) -> None:
    before = await host.state()
    for subnet in (SubnetSpec(), SubnetSpec(v6=True)):
        spec = NetworkSpec(name="red", options={"mode": "none"}, subnets=(subnet,), front_end=FrontEnd.CLI)
        with pytest.raises(NetplugError, match="a network of mode 'none' has no addresses") as caught:
            await host.engine.networks.create(spec)
        assert caught.value.hint == "leave out --subnet and --ipv6"
    assert await host.state() == before
