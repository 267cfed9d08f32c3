"""Addresses and routes of others inside a network's subnet are shown with their mend: nobody else can remove them."""

from collections.abc import AsyncIterator
from ipaddress import ip_interface

import pytest
from engine_host import Host

from netplug.engine.happenings import Kind

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    host = await Host.boot()
    await host.cli_network("10.3.0.0/24", "fd00:3::/64")
    yield host
    await host.close()


async def shown(host: Host) -> dict[str, str]:
    return {it.object: it.what for it in await host.reconciler.diff()}


@pytest.mark.parametrize("address", ["10.3.0.7/32", "10.3.0.1/24", "10.3.0.9/8", "fd00:3::7/128"])
async def test_address_of_another_link_is_shown_until_it_is_gone(host: Host, address: str) -> None:
    told: list[Kind] = []
    host.engine.happenings.watchers.append(lambda it: told.append(it.kind))
    foreign = ("eth7", ip_interface(address))
    host.kernel.foreign.addresses.add(foreign)
    for _ in range(2):
        found = await shown(host)
    assert found[f"address {address}"].endswith(f"remove it: ip address del {address} dev eth7")
    assert told == [Kind.FAULT_FOUND]
    assert host.engine.conditions.counts()["conflict"] == 1
    host.kernel.foreign.addresses.remove(foreign)
    assert not await shown(host)
    assert told == [Kind.FAULT_FOUND, Kind.FAULT_OVER]


async def test_other_subnets_are_no_conflict(host: Host) -> None:
    host.kernel.foreign.addresses.add(("eth7", ip_interface("10.4.0.1/8")))
    host.kernel.foreign.addresses.add(("eth7", ip_interface("fd00:4::1/16")))
    assert not await shown(host)
