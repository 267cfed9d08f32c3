"""Records say by themselves what front ends and the name server ask for; those of older versions are completed."""

import json
import time
from collections.abc import AsyncIterator, Collection
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
import pytest_asyncio
from engine_host import END, NET, NEXT, OTHER, Host

from netplug.drivers.api import Attachment, StaticRoute
from netplug.drivers.summary import Link
from netplug.engine.records import FrontEnd, NetworkSpec, SubnetSpec
from netplug.store.api import Delete, Put
from netplug.store.schema import FIRST, migrated

pytestmark = pytest.mark.usefixtures("quiet")

DEFAULT = StaticRoute(ip_network("0.0.0.0/0"), ip_address("10.2.0.1"))
NEW = {"attachment", "host_link", "routes", "resolvers", "bridge"}

OLD_NETWORK = """
{"network": {"id": "%(net)s", "name": "red", "internal": false, "options": {"mode": "bridge", "mtu": 1400},
             "subnets": [{"pool": "10.2.0.0/24", "gateway": "10.2.0.1/24", "host": null}]},
 "front_end": "cli", "pools": ["local/10.2.0.0/24"], "used": [], "options": {}, "claimed": false, "cluster": "",
 "plan": [{"step": "Bridge", "name": "np-b2b2b2b2b2b2", "mac": "06:6e:92:e1:81:30", "mtu": 1400, "adopt": false},
          {"step": "Resolver", "network": "%(net)s", "link": "np-b2b2b2b2b2b2", "address": "10.2.0.1", "port": 25353}]}
"""
OLD_ENDPOINT = """
{"endpoint": {"id": "%(end)s", "network": "%(net)s", "addresses": ["10.2.0.2/24"], "mac": "02:6e:0a:02:00:02",
              "ports": [], "options": {"rate": null, "burst": null}},
 "front_end": "cli", "pools": ["local/10.2.0.0/24"], "name": "web", "aliases": [], "container": "",
 "sandbox": "/run/netns/ns1", "ifname": "eth0", "linked": true, "exposed": [], "published": [], "hostname": "",
 "serves": [], "healthy": true, "sandbox_id": "", "domainname": "", "resolves": 0.0, "runtime": "", "ipam": "",
 "plan": [{"step": "Veth", "name": "nphe1e1e1e1e1e1", "peer": "eth0", "mac": "fe:6e:cf:c1:6f:7b",
           "peer_mac": "02:6e:0a:02:00:02", "mtu": 1400, "master": "np-b2b2b2b2b2b2", "isolated": false,
           "netns": "/run/netns/ns1", "tunable": false, "pinned": true},
          {"step": "Address", "link": "eth0", "address": "10.2.0.2/24", "netns": "/run/netns/ns1"},
          {"step": "Route", "destination": "0.0.0.0/0", "link": "eth0", "gateway": "10.2.0.1",
           "netns": "/run/netns/ns1"}]}
"""


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    host = await Host.boot()
    yield host
    await host.close()


async def test_record_of_an_older_version_is_completed_from_its_plan(host: Host) -> None:
    ids = {"net": OTHER, "end": END}
    for key, text in ((f"networks/{OTHER}", OLD_NETWORK), (f"endpoints/{OTHER}/{END}", OLD_ENDPOINT)):
        await host.store.txn((), [Put(key, migrated(key, json.loads(text % ids), FIRST.version))])
    host.live()
    await host.engine.registry.load()
    (network,) = host.networks()
    assert network.bridge == Link("np-b2b2b2b2b2b2", "06:6e:92:e1:81:30", 1400)
    assert network.resolvers == (ip_address("10.2.0.1"),)
    built = host.endpoint(network=OTHER)
    assert built.attachment == Attachment(
        "npse1e1e1e1e1e1", mac="02:6e:0a:02:00:02", mtu=1400, gateways=(ip_address("10.2.0.1"),)
    )
    assert built.host_link == Link("nphe1e1e1e1e1e1", "fe:6e:cf:c1:6f:7b", 1400)
    assert built.routes == (DEFAULT,)


async def test_labels_outlive_a_restart_and_records_without_them_keep_their_form(host: Host) -> None:
    await host.docker_network()
    await host.engine.networks.create(NetworkSpec(OTHER, "red", {}, (SubnetSpec(),), labels={"team": "net"}))
    stored = {record.key: record.value for record in (await host.store.range("networks/"))[0]}
    assert {"labels", "created"}.isdisjoint(stored[f"networks/{NET}"])
    assert stored[f"networks/{OTHER}"]["labels"] == {"team": "net"}
    made = {record.network.id: record.created for record in host.networks()}
    assert 0 < made[NET] <= made[OTHER] <= time.time()
    host.live()
    await host.engine.registry.load()
    assert {record.network.id: record.created for record in host.networks()} == made
    assert host.engine.registry.network("red").labels == {"team": "net"}


async def test_time_of_creation_goes_with_its_network_also_if_an_older_version_deletes_it(host: Host) -> None:
    await host.docker_network()
    await host.cli_network(ident=OTHER, name="red")
    await host.engine.networks.delete("red", by=FrontEnd.CLI)
    assert [it.key for it in (await host.store.range("created/"))[0]] == [f"created/{NET}"]
    await host.store.txn((), [Delete(f"networks/{NET}")])
    host.live()
    await host.engine.registry.load()
    assert (await host.store.range("created/"))[0] == []


async def test_completed_records_are_those_that_this_version_writes(host: Host) -> None:
    await host.docker_network()
    await host.docker_endpoint()
    await host.join()
    await host.cli_network("10.2.0.0/24", ident=OTHER, name="red")
    await host.attach("ns1", network=OTHER)
    await host.cli_network("10.3.0.0/24", ident=NEXT, name="ported", mode="host")
    await host.attach("ns2", network=NEXT)
    networks, endpoints = host.networks(), host.endpoints()
    assert {type(record.host_link) for record in endpoints} == {Link}
    for record in (await host.store.range(""))[0]:
        if record.key.startswith(("networks/", "endpoints/")):
            old = _without(record.value, NEW)
            await host.store.txn((), [Put(record.key, migrated(record.key, old, FIRST.version))])
    host.live()
    await host.engine.registry.load()
    assert host.networks() == networks
    assert host.endpoints() == endpoints


async def test_routes_are_those_that_were_made(host: Host) -> None:
    await host.cli_network("10.1.0.0/24", ident=NET)
    await host.cli_network("10.2.0.0/24", ident=OTHER, name="red")
    first = await host.attach("ns1")
    second = await host.attach("ns1", network=OTHER, ifname="eth1")
    assert [route.gateway for route in first.routes] == [ip_address("10.1.0.1")]
    assert second.routes == ()
    assert second.attachment.gateways == (ip_address("10.2.0.1"),)
    await host.engine.endpoints.detach(NET, "ns1", "eth0")
    assert host.endpoint(second.endpoint.id, OTHER).routes == (DEFAULT,)


async def test_routes_of_docker_are_docker_s(host: Host) -> None:
    await host.docker_network()
    built = await host.docker_endpoint()
    assert built.front_end is FrontEnd.DOCKER
    assert built.routes == ()
    assert built.attachment.gateways == (ip_address("10.1.0.1"),)


def _without(value: Any, keys: Collection[str]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key not in keys}
