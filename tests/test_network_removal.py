"""Networks that Docker made and knows no more may be removed by the command line; those that it knows may not."""

from ipaddress import ip_network

import pytest
from docker_client import NET, Plugin

from netplug.drivers.errors import DriverError
from netplug.engine.records import FrontEnd, NetworkSpec, SubnetSpec
from netplug.errors import NetplugError
from netplug.frontends.rest.app import _Api
from netplug.reconcile import Reconciler


@pytest.mark.parametrize(("docker_says", "removed"), [(True, False), (None, False), (False, True)])
async def test_network_of_dockers_is_removed_only_when_docker_knows_it_no_more(
    docker_says: bool | None, removed: bool
) -> None:
    plugin = await Plugin.start()
    subnet = SubnetSpec(ip_network("10.1.0.0/24"), space="external")
    await plugin.engine.networks.create(NetworkSpec(NET, "blue", subnets=(subnet,), front_end=FrontEnd.DOCKER))

    async def knows(network_id: str) -> bool | None:
        assert network_id == NET
        return docker_says

    api = _Api(plugin.engine, Reconciler(plugin.engine), "host", "1", knows)
    if removed:
        await api.delete_network("blue")
    else:
        with pytest.raises(NetplugError, match="made by docker"):
            await api.delete_network("blue")
    assert bool(plugin.engine.registry.networks()) is not removed
    await plugin.store.close()


async def test_mode_that_no_driver_has_is_refused_with_those_that_there_are() -> None:
    plugin = await Plugin.start()
    with pytest.raises(DriverError, match="mode='ipvlan': must be one of bridge, host, macvlan, none"):
        await plugin.engine.networks.create(NetworkSpec(name="blue", options={"mode": "ipvlan"}))
    assert not plugin.engine.registry.networks()
    await plugin.store.close()
