"""Addresses that are not held as the records say are found."""

from collections.abc import AsyncIterator
from ipaddress import ip_address

import pytest_asyncio
from engine_host import OTHER, SANDBOX, Host

from netplug.engine.audit import audit, orphans
from netplug.ipam.lease import Owner, OwnerKind


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    host = await Host.boot()
    await host.docker_network()
    await host.docker_endpoint()
    await host.join()
    await host.attach("ns1")
    yield host
    await host.close()


async def words(host: Host) -> list[str]:
    return [f"{found.address} {found.what}" for found in await audit(host.engine)]


async def test_all_is_well(host: Host) -> None:
    assert await words(host) == []
    assert orphans(host.engine) == []


async def test_lease_of_an_endpoint_that_there_is_not(host: Host) -> None:
    pool = host.engine.allocator.pools()[0]
    ghost = Owner(OwnerKind.ENDPOINT, "f0" * 32, "ghost")
    lease = await host.engine.allocator.request_address(pool.id, owner=ghost)
    assert await words(host) == [f"{lease.address} leased to endpoint f0f0f0f0f0f0, which does not exist"]


async def test_lease_that_docker_has_not_used_yet_is_none(host: Host) -> None:
    pool = host.engine.allocator.pools()[0]
    await host.engine.allocator.request_address(pool.id, owner=Owner(OwnerKind.PENDING))
    assert await words(host) == []


async def test_address_whose_lease_is_lost_or_somebody_elses(host: Host) -> None:
    record = host.endpoints()[0]
    address = record.endpoint.addresses[0].ip
    await host.engine.allocator.release_address(record.pools[0], address)
    name = record.name or record.endpoint.id[:12]
    assert await words(host) == [f"{address} used by endpoint {name}, but not leased"]
    await host.engine.allocator.request_address(record.pools[0], address=address, owner=Owner(OwnerKind.PENDING))
    assert await words(host) == [f"{address} used by endpoint {name}, but leased to pending"]


async def test_endpoint_whose_sandbox_is_gone(host: Host) -> None:
    host.kernel.vanish(SANDBOX)
    (found,) = await words(host)
    assert found.endswith(f"whose sandbox {SANDBOX} is gone")
    assert ip_address(found.split()[0])


async def test_gateway_of_a_network_that_is_gone_is_the_other_networks_on_the_lan(host: Host) -> None:
    """A crash came before it was handed on: nobody else may get it."""
    await host.cli_network("10.7.0.0/24", ident=OTHER, name="lan")
    (pool,) = host.engine.registry.network(OTHER).pools
    gateway = ip_address("10.7.0.1")
    await host.engine.allocator.assign(pool, gateway, Owner(OwnerKind.GATEWAY, "f0" * 32, "gone"))
    await host.reboot()
    lease = host.engine.allocator.lease(pool, gateway)
    assert lease
    assert lease.owner == Owner(OwnerKind.GATEWAY, OTHER, "lan")
    await host.check()


async def test_address_that_its_endpoint_does_not_have_is_released(host: Host) -> None:
    (record, *_) = host.endpoints()
    owner = Owner(OwnerKind.ENDPOINT, record.endpoint.id, record.name)
    lease = await host.engine.allocator.request_address(record.pools[0], owner=owner)
    assert await words(host) == [
        f"{lease.address} leased to endpoint {record.endpoint.id[:12]}, which does not have it"
    ]
    await host.reboot()
    assert await words(host) == []
