"""Sticky networks: who comes again under a name gets the addresses and the MAC that it had."""

from collections.abc import AsyncIterator
from contextlib import suppress
from ipaddress import ip_address

import pytest
import pytest_asyncio
from engine_host import NET, Died, Fuse, Host, external, tcp

from netplug.engine.records import EndpointRecord, FrontEnd, NetworkSpec
from netplug.errors import NetplugError

MAC = "02:42:0a:01:00:77"
pytestmark = pytest.mark.usefixtures("quiet")


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    host = await Host.boot()
    await host.cli_network("10.1.0.0/24", "fd00:1::/64", sticky="true")
    yield host
    await host.check()
    await host.close()


def addresses(record: EndpointRecord) -> list[str]:
    return [str(address.ip) for address in record.endpoint.addresses]


def kept(host: Host) -> set[tuple[str, str]]:
    allocator = host.engine.allocator
    return {(it.owner.name, str(it.address)) for pool in allocator.pools() for it in allocator.retained(pool.id)}


async def detach(host: Host, netns: str) -> None:
    await host.engine.endpoints.detach(NET, netns, "eth0")


async def test_name_gets_its_addresses_and_mac_again_in_another_sandbox(host: Host) -> None:
    before = await host.attach(name="web")
    await detach(host, "blue")
    other = await host.attach("green", name="db")
    assert not set(addresses(other)) & set(addresses(before))
    after = await host.attach("red", name="web")
    assert (addresses(after), after.endpoint.mac) == (addresses(before), before.endpoint.mac)
    assert kept(host) == set()


@pytest.mark.parametrize("given", ["", MAC])
async def test_mac_that_the_user_gave_is_kept_and_no_other(host: Host, given: str) -> None:
    """A MAC that is made from an address goes with the address, or two sandboxes would have it."""
    before = await host.attach(name="web", mac=given)
    await detach(host, "blue")
    taken = await host.attach("green", name="db", addresses=(before.endpoint.addresses[0].ip,))
    assert (taken.endpoint.mac == before.endpoint.mac) == (not given)
    after = await host.attach("red", name="web")
    assert addresses(after)[1] == addresses(before)[1]
    assert addresses(after)[0] != addresses(before)[0]
    assert (after.endpoint.mac == MAC) == bool(given)
    assert after.endpoint.mac != taken.endpoint.mac


async def test_daemon_that_restarts_still_knows(host: Host) -> None:
    before = await host.attach(name="web", mac=MAC)
    await detach(host, "blue")
    await host.reboot()
    await host.attach("green", name="db")
    after = await host.attach(name="web")
    assert (addresses(after), after.endpoint.mac) == (addresses(before), MAC)


async def test_death_in_the_middle_of_a_detach_loses_no_address(host: Host) -> None:
    before = await host.attach(name="web")
    for changes in range(12):
        after = await host.clone()
        after.live(Fuse(changes))
        await after.engine.registry.load()
        await after.engine.allocator.load()
        await after.engine.base_plan.load()
        with suppress(Died):
            await detach(after, "blue")
        await after.reboot()
        for record in after.endpoints():
            await after.engine.endpoints.delete(NET, record.endpoint.id)
        await after.attach("green", name="db")
        assert addresses(await after.attach("red", name="web")) == addresses(before), changes
        await after.close()


async def test_attachment_that_fails_changes_nothing_of_what_is_kept(host: Host) -> None:
    before = await host.attach(name="web", mac=MAC)
    await detach(host, "blue")
    first = ip_address(addresses(before)[0])
    found = kept(host)
    await host.attach("green", name="holder", ports=(tcp(8080),))
    leases = sorted(map(repr, host.leases()))
    for options in ({"name": "web"}, {"name": "new"}, {"name": "new", "addresses": (first,)}):
        with pytest.raises(NetplugError, match="8080"):
            await host.attach(**options, ports=(tcp(8080),))  # type: ignore[arg-type]
        assert kept(host) == found
        assert sorted(map(repr, host.leases())) == leases
    after = await host.attach("red", name="web")
    assert (addresses(after), after.endpoint.mac) == (addresses(before), MAC)


async def test_subnet_in_which_something_is_kept_comes_before_the_first(host: Host) -> None:
    await host.cli_network("10.2.0.0/30", "10.3.0.0/24", ident="b2" * 32, name="two", sticky="1h")
    first = await host.attach("blue", network="two", name="first")
    before = await host.attach("green", network="two", name="web")
    assert (addresses(first), addresses(before)) == (["10.2.0.2"], ["10.3.0.2"])
    for netns in ("blue", "green"):
        await host.engine.endpoints.detach("two", netns, "eth0")
    assert addresses(await host.attach("red", network="two", name="web")) == ["10.3.0.2"]


async def test_network_that_goes_forgets_all(host: Host) -> None:
    await host.attach(name="web")
    await detach(host, "blue")
    assert len(kept(host)) == 2
    await host.engine.networks.delete(NET, by=FrontEnd.CLI)
    assert kept(host) == set()
    assert (await host.store.range("ipam/"))[0] == []
    await host.cli_network("10.1.0.0/24", sticky="false")
    await host.attach(name="web")
    await detach(host, "blue")
    assert kept(host) == set()


async def test_nothing_is_kept_of_those_without_a_name(host: Host) -> None:
    await host.attach()
    await detach(host, "blue")
    assert kept(host) == set()


async def test_network_whose_addresses_docker_chooses_cannot_be_sticky() -> None:
    host = await Host.boot()
    before = await host.state()
    spec = NetworkSpec(NET, options={"sticky": "7d"}, subnets=(external("10.1.0.0/24"),), front_end=FrontEnd.DOCKER)
    with pytest.raises(NetplugError, match="Docker's own IPAM chooses the addresses") as caught:
        await host.engine.networks.create(spec)
    assert "--ipam-driver pynet -o sticky=7d" in caught.value.hint
    assert await host.state() == before
    await host.close()
