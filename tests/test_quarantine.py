"""Records that cannot be used, of another version or another's driver, stay as they are and stop nothing else."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from engine_host import END, NET, NEXT, OTHER, Host, tcp

from netplug.cluster.records import EndpointAdvert
from netplug.drivers.codec import decode
from netplug.drivers.steps import HostPort
from netplug.engine.journal import Intent
from netplug.engine.records import FrontEnd, NetworkSpec, SubnetSpec
from netplug.errors import NetplugError
from netplug.ipam.errors import IpamError
from netplug.ipam.pool import IPNetwork, pool_id
from netplug.store.api import Put
from netplug.store.leases import lease_key, pool_key

pytestmark = pytest.mark.usefixtures("quiet")
STEP = {"step": "Wormhole", "name": "np-worm", "depth": 7}


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    """Two networks with an endpoint each; those of the first are what becomes unusable."""
    host = await Host.boot()
    await host.docker_network()
    await host.docker_endpoint(ports=(tcp(8080),))
    await host.join()
    await host.publish()
    host.kernel.inhabitants.add("/run/docker/netns/1")
    await host.cli_network("10.2.0.0/24", ident=OTHER, name="red")
    await host.attach("ns1", network=OTHER, name="web")
    yield host
    await host.close()


async def spoil(host: Host, key: str, **more: Any) -> dict[str, Any]:
    """Change a record as only another version would; return what is stored now."""
    record = await host.store.get(key)
    assert record is not None
    value = json.loads(json.dumps(record.value)) | more
    await host.store.txn((), [Put(key, value)])
    return dict(value)


async def stored(host: Host, key: str) -> Any:
    record = await host.store.get(key)
    return record.value if record else None


def objects_of(host: Host) -> set[str]:
    """Return what is there, but for the sockets of the name server: a network of no use is not served."""
    return {line for line in host.dump() if not line.startswith("resolver/")}


def said(host: Host) -> list[tuple[str, str]]:
    return [(it.object, it.what) for it in host.engine.conditions.all()]


async def works(host: Host) -> None:
    """Check that the other network does, with all that one can do."""
    await host.attach("ns2", network=OTHER, name="db", ports=(tcp(9090),))
    await host.engine.endpoints.detach(OTHER, "ns2", "eth0")
    await host.cli_network("10.3.0.0/24", ident="c3" * 32, name="green")
    await host.engine.networks.delete("green", by=FrontEnd.CLI)
    await host.reconciler.repair()


UNKNOWN: dict[str, dict[str, Any]] = {"field": {"colour": "blue"}, "kind": {"plan": 7}, "step": {"plan": [STEP]}}


@pytest.mark.parametrize("how", UNKNOWN)
async def test_network_of_another_version_is_left_as_it_is(host: Host, how: str) -> None:
    key = f"networks/{NET}"
    objects = objects_of(host)
    value = await spoil(host, key, **UNKNOWN[how])
    await host.reboot()
    assert [record.network.id for record in host.networks()] == [OTHER]
    assert [one for one, _ in said(host)] == [f"endpoints/{NET}/{END}", key]
    await works(host)
    await host.reboot()
    assert await stored(host, key) == value
    assert await stored(host, f"endpoints/{NET}/{END}")
    if how == "field":
        assert objects <= set(host.dump())
    for refused in (
        host.docker_network(),
        host.docker_endpoint(NEXT, "10.1.0.7/24"),
        host.engine.networks.delete(NET, by=FrontEnd.DOCKER),
        host.cli_network(name=NET[:12], ident="d4" * 32),
    ):
        with pytest.raises(NetplugError, match="cannot be used") as caught:
            await refused
        assert caught.value.kind == "unavailable"
    # And the version that can read it finds all as it left it.
    record = await stored(host, key)
    await host.store.txn((), [Put(key, {k: v for k, v in record.items() if k != "colour"})])
    if how == "field":
        await host.reboot()
        assert host.endpoint().published
        assert said(host) == []
        await host.check()


async def test_endpoint_of_another_version_keeps_address_port_and_links(host: Host) -> None:
    key = f"endpoints/{OTHER}/{next(r.endpoint.id for r in host.endpoints() if r.endpoint.network == OTHER)}"
    await host.attach("ns3", network=OTHER, ports=(tcp(7070),))
    (built,) = [one for one in host.endpoints() if one.published and one.front_end is FrontEnd.CLI]
    key, address = built.key, built.endpoint.addresses[0].ip
    value = await spoil(host, key, plan=[STEP, *built.plan.to_json()])
    objects = {line for line in objects_of(host) if "7070" not in line}
    await host.reboot()
    assert len(said(host)) == 1
    assert "Wormhole" in said(host)[0][1]
    assert objects <= set(host.dump())
    assert any(isinstance(step, HostPort) and step.port == 7070 for step in host.kernel._world.state.values())
    with pytest.raises(NetplugError, match="7070"):
        await host.attach("ns4", network=OTHER, ports=(tcp(7070),))
    with pytest.raises(IpamError, match=str(address)):
        await host.attach("ns4", network=OTHER, addresses=(address,))
    with pytest.raises(NetplugError, match="cannot be used"):
        await host.attach("ns3", network=OTHER)
    await works(host)
    assert await stored(host, key) == value


async def test_detaching_an_endpoint_of_another_version_says_why_not(host: Host) -> None:
    (built,) = [it for it in host.endpoints() if it.endpoint.network == OTHER]
    key = built.key
    await spoil(host, key, later=7)
    await host.reboot()
    before = await stored(host, key)
    for netns in ("ns1", "/run/netns/ns1"):
        with pytest.raises(
            NetplugError, match=r"endpoint .* \(web\) cannot be used: EndpointRecord has no field 'later'"
        ):
            await host.engine.endpoints.detach(OTHER, netns, "eth0")
    with pytest.raises(NetplugError, match="eth1 of ns1 is not attached"):
        await host.engine.endpoints.detach(OTHER, "ns1", "eth1")
    assert await stored(host, key) == before


async def test_network_stays_with_an_endpoint_of_another_version(host: Host) -> None:
    (key,) = [it.key for it in (await host.store.range(f"endpoints/{OTHER}"))[0]]
    for ends in (f"endpoints/{NET}/{END}", key):
        await spoil(host, ends, colour="blue")
    await host.reboot()
    with pytest.raises(NetplugError, match="cannot be used"):
        await host.engine.networks.delete(OTHER, by=FrontEnd.CLI)
    await host.engine.networks.delete(NET, by=FrontEnd.DOCKER)  # Docker forgets it whatever is answered
    kept = {record.network.id: record.front_end for record in host.networks()}
    assert kept == {NET: FrontEnd.CLI, OTHER: FrontEnd.CLI}
    await host.reboot()
    await works(host)


async def test_driver_that_is_not_installed_takes_down_no_other_network(host: Host) -> None:
    record = host.engine.registry.network(OTHER)
    other = replace(record.network, options=replace(record.network.options, mode="wormhole"))
    await host.engine.registry.save(replace(record, network=other))
    objects = objects_of(host)
    await host.reboot()
    assert [network.network.id for network in host.networks()] == [NET]
    assert "there is no driver for mode 'wormhole'" in said(host)[-1][1]
    assert objects <= set(host.dump())
    await host.publish()
    await host.engine.endpoints.delete(NET, END)
    await host.engine.networks.delete(NET, by=FrontEnd.DOCKER)
    with pytest.raises(NetplugError, match="overlaps"):
        await host.cli_network("10.2.0.0/25", ident="c3" * 32, name="green")
    with pytest.raises(NetplugError, match="wormhole"):
        await host.cli_network("10.4.0.0/24", ident="c3" * 32, name="red")


async def test_journal_and_base_of_another_version_are_left(host: Host) -> None:
    base = await spoil(host, "meta/base")
    await spoil(host, "meta/base", plan=[*base["plan"], STEP])
    await host.store.txn((), [Put("journal/aa", {"what": "x", "plan": [STEP], "drop": []})])
    await host.store.txn((), [Put("journal/bb", {"what": "x", "why": "y"})])
    await host.reboot()
    assert [one for one, _ in said(host)] == ["journal/aa", "journal/bb", "meta/base"]
    await works(host)
    assert await stored(host, "journal/aa")
    assert STEP in (await stored(host, "meta/base"))["plan"]
    assert await host.engine.journal.begin(Intent("y", host.endpoint().plan))


@pytest.mark.parametrize("broken", [{"colour": 1}, {"network": "x"}], ids=["field", "value"])
async def test_pool_and_lease_of_another_version_stay_taken(host: Host, broken: dict[str, Any]) -> None:
    red = host.engine.registry.network("red")
    subnet: IPNetwork = red.network.subnets[0].pool
    (web,) = [one for one in host.endpoints() if one.name == "web"]
    address = web.endpoint.addresses[0].ip
    lease = lease_key(red.pools[0], address)
    kept = [await spoil(host, pool_key(pool_id("local", subnet)), **broken), await spoil(host, lease, owner=7)]
    await host.reboot()
    assert len(said(host)) == 2
    with pytest.raises(IpamError, match=str(address)):
        await host.attach("ns2", network=OTHER, addresses=(address,))
    await works(host)
    spec = NetworkSpec("c3" * 32, "green", {}, (SubnetSpec(subnet.supernet()),))
    with pytest.raises(NetplugError, match="overlaps"):
        await host.engine.networks.create(spec)
    await host.reboot()
    assert [await stored(host, pool_key(pool_id("local", subnet))), await stored(host, lease)] == kept


def test_an_address_is_of_one_version_or_the_other_and_never_nothing() -> None:
    told = {"mac": "02:00:00:00:00:01", "addresses": [None], "names": []}
    with pytest.raises(ValueError, match="None"):
        decode(EndpointAdvert, told)
