"""What the Docker plugin answers, and what happens beside the answers."""

import asyncio
import http.client
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from docker_client import END, GENERIC, NET, PORTMAP, REF, Plugin, endpoint, network, port

from netplug.drivers.steps import Element
from netplug.drivers.tables import NETWORKS
from netplug.engine.records import NetworkSpec
from netplug.frontends.docker.network import docker_app
from netplug.frontends.serving import serving
from netplug.ipam.lease import OwnerKind


@pytest_asyncio.fixture
async def plugin() -> AsyncIterator[Plugin]:
    plugin = await Plugin.start()
    yield plugin
    await plugin.close()


# The handshake


async def test_the_plugin_says_what_it_is(plugin: Plugin) -> None:
    assert await plugin.ok("/Plugin.Activate") == {"Implements": ["NetworkDriver", "IpamDriver"]}
    assert await plugin.ok("/NetworkDriver.GetCapabilities") == {
        "Scope": "local",
        "ConnectivityScope": "global",
        "GwAllocChecker": True,
    }
    assert await plugin.ok("/IpamDriver.GetCapabilities") == {
        "RequiresMACAddress": False,
        "RequiresRequestReplay": True,
    }
    assert await plugin.ok("/IpamDriver.GetDefaultAddressSpaces") == {
        "LocalDefaultAddressSpace": "netplug-local",
        "GlobalDefaultAddressSpace": "netplug-global",
    }
    assert plugin.activations == 1


async def test_nodes_of_a_swarm_are_heard_of_and_forgotten(plugin: Plugin) -> None:
    before = await plugin.state()
    node = {"DiscoveryType": 1, "DiscoveryData": {"Address": "192.0.2.1", "BindAddress": "0.0.0.0", "Self": True}}
    assert await plugin.ok("/NetworkDriver.DiscoverNew", node) == {}
    assert await plugin.ok("/NetworkDriver.DiscoverDelete", node) == {}
    assert await plugin.state() == before


@pytest.mark.parametrize(("mode", "skip"), [("bridge", False), ("none", True)])
async def test_a_mode_without_gateway_wants_no_gateway_address(plugin: Plugin, mode: str, *, skip: bool) -> None:
    answer = await plugin.ok("/NetworkDriver.GwAllocCheck", {"Options": {GENERIC: {"mode": mode}}})
    assert answer == {"SkipIPv4": skip, "SkipIPv6": skip}


# Networks and endpoints


async def test_network_without_its_driver_is_refused_with_that_reason(plugin: Plugin) -> None:
    """Not "there is no network": Docker would forget one that comes back with its driver."""
    await plugin.ok("/NetworkDriver.CreateNetwork", network())
    (record,) = plugin.engine.registry.networks()
    gone = replace(record.network, options=replace(record.network.options, mode="wormhole"))
    await plugin.engine.registry.save(replace(record, network=gone))
    await plugin.restart()
    before = await plugin.state()
    for path, body in (("CreateEndpoint", endpoint()), ("Join", REF | {"SandboxKey": "/x"}), ("DeleteNetwork", REF)):
        answer = await plugin.call(f"/NetworkDriver.{path}", body)
        assert "cannot be used: there is no driver for mode 'wormhole'" in answer.body["Err"], path
    for path in ("Leave", "DeleteEndpoint"):
        assert await plugin.ok(f"/NetworkDriver.{path}", REF) == {}, "containers can go all the same"
    assert await plugin.state() == before


async def test_mode_none_is_loopback_only(plugin: Plugin) -> None:
    await plugin.ok("/NetworkDriver.CreateNetwork", network(mode="none", gateway=""))
    assert await plugin.ok("/NetworkDriver.CreateEndpoint", endpoint()) == {"Interface": {}}
    joined = await plugin.ok("/NetworkDriver.Join", {**REF, "SandboxKey": "/run/docker/netns/1", "Options": {}})
    assert joined == {"DisableGatewayService": True}


async def test_both_families_get_their_gateways(plugin: Plugin) -> None:
    wanted = network()
    wanted["IPv6Data"] = [{"AddressSpace": "LocalDefault", "Pool": "fd00:1::/64", "Gateway": "fd00:1::1/64"}]
    await plugin.ok("/NetworkDriver.CreateNetwork", wanted)
    asked = endpoint()
    asked["Interface"] |= {"AddressIPv6": "fd00:1::2/64", "MacAddress": "02:42:ac:11:00:09"}
    assert await plugin.ok("/NetworkDriver.CreateEndpoint", asked) == {"Interface": {}}
    joined = await plugin.ok("/NetworkDriver.Join", {**REF, "SandboxKey": "/run/docker/netns/1"})
    assert (joined["Gateway"], joined["GatewayIPv6"]) == ("10.1.0.1", "fd00:1::1")
    assert "DisableGatewayService" not in joined


async def test_an_address_that_docker_left_open_is_chosen_and_told(plugin: Plugin) -> None:
    await plugin.ok("/NetworkDriver.CreateNetwork", network())
    given = (await plugin.ok("/NetworkDriver.CreateEndpoint", endpoint(address="")))["Interface"]
    built = plugin.engine.registry.endpoint(NET, END).endpoint
    assert given == {"Address": str(built.addresses[0]), "MacAddress": built.mac}


async def test_ports_are_published_only_when_docker_says_now(plugin: Plugin) -> None:
    await plugin.ok("/NetworkDriver.CreateNetwork", network())
    await plugin.ok("/NetworkDriver.CreateEndpoint", endpoint(**{PORTMAP: [port(8080)]}))
    await plugin.ok("/NetworkDriver.Join", {**REF, "SandboxKey": "/s", "Options": {PORTMAP: [port(8080)]}})
    assert not plugin.kernel.leads()
    await plugin.ok("/NetworkDriver.ProgramExternalConnectivity", {**REF, "Options": {}})
    assert len(plugin.kernel.leads()) == 1
    info = (await plugin.ok("/NetworkDriver.EndpointOperInfo", REF))["Value"]
    assert info["ports"] == ["0.0.0.0:8080->80/tcp"]
    await plugin.ok("/NetworkDriver.ProgramExternalConnectivity", {**REF, "Options": {PORTMAP: [port(9090)]}})
    (lead,) = plugin.kernel.leads()
    assert lead == Element(NETWORKS, "published4_any", "tcp . 9090", "10.1.0.2 . 80")


async def test_a_host_address_of_a_family_that_the_endpoint_has_not_is_relayed(plugin: Plugin) -> None:
    await plugin.ok("/NetworkDriver.CreateNetwork", network())
    await plugin.ok("/NetworkDriver.CreateEndpoint", endpoint(**{PORTMAP: [port(8080, host_ip="::1")]}))
    await plugin.ok("/NetworkDriver.Join", {**REF, "SandboxKey": "/s"})
    await plugin.ok("/NetworkDriver.ProgramExternalConnectivity", REF)
    assert [step.key for step in plugin.kernel.leads()] == ["relay/tcp/::1/8080"]


async def test_a_taken_port_is_named_and_nothing_is_published(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    await plugin.ok("/NetworkDriver.CreateNetwork", network())
    for ident, address in ((END, "10.1.0.2/24"), ("e2" * 32, "10.1.0.3/24")):
        await plugin.ok("/NetworkDriver.CreateEndpoint", endpoint(ident, address, **{PORTMAP: [port(8080)]}))
    await plugin.ok("/NetworkDriver.ProgramExternalConnectivity", REF)
    before = await plugin.state()
    again = {"NetworkID": NET, "EndpointID": "e2" * 32, "Options": {PORTMAP: [port(7070), port(8080)]}}
    monkeypatch.setattr(plugin.kernel, "inhabited", _yes, raising=False)  # the holder lives
    answer = await plugin.call("/NetworkDriver.ProgramExternalConnectivity", again)
    assert "8080" in answer.error
    assert await plugin.state() == before


async def _yes(*_: object) -> bool:
    return True


@pytest.mark.parametrize("method", ["Leave", "DeleteEndpoint", "RevokeExternalConnectivity"])
async def test_each_end_of_an_endpoint_ends_its_published_ports(plugin: Plugin, method: str) -> None:
    await plugin.ok("/NetworkDriver.CreateNetwork", network())
    await plugin.ok("/NetworkDriver.CreateEndpoint", endpoint(**{PORTMAP: [port(8080)]}))
    await plugin.ok("/NetworkDriver.ProgramExternalConnectivity", REF)
    assert plugin.kernel.leads()
    await plugin.ok(f"/NetworkDriver.{method}", REF)
    assert not plugin.kernel.leads()


async def test_docker_may_not_delete_what_it_did_not_make(plugin: Plugin) -> None:
    record = await plugin.engine.networks.create(NetworkSpec(name="blue"))
    before = await plugin.state()
    answer = await plugin.call("/NetworkDriver.DeleteNetwork", {"NetworkID": record.network.id})
    assert "network 'blue' was made by netplug" in answer.error
    assert await plugin.state() == before


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/NetworkDriver.CreateNetwork", network("b2" * 32, "10.2.0.0/24", "10.2.0.1/24")),
        ("/NetworkDriver.CreateEndpoint", endpoint("e2" * 32, "10.1.0.9/24")),
    ],
    ids=["network", "endpoint"],
)
async def test_of_parallel_identical_requests_one_succeeds(plugin: Plugin, path: str, body: object) -> None:
    await plugin.ok("/NetworkDriver.CreateNetwork", network())
    answers = await asyncio.gather(*(plugin.call(path, body) for _ in range(8)))
    assert sorted(answer.status for answer in answers) == [200] + 7 * [500]
    assert all("exists already" in answer.error for answer in answers if answer.status == 500)


async def test_parallel_joins_and_deletes_of_one_endpoint_agree(plugin: Plugin) -> None:
    await plugin.ok("/NetworkDriver.CreateNetwork", network())
    before = await plugin.state()
    await plugin.ok("/NetworkDriver.CreateEndpoint", endpoint())
    join = {**REF, "SandboxKey": "/s"}
    joined = await asyncio.gather(*(plugin.ok("/NetworkDriver.Join", join) for _ in range(4)))
    assert all(answer == joined[0] for answer in joined)
    methods = ["Leave", "DeleteEndpoint", "RevokeExternalConnectivity"] * 3
    await asyncio.gather(*(plugin.ok(f"/NetworkDriver.{method}", REF) for method in methods))
    assert await plugin.state() == before


# Requests and connections


async def test_a_request_whose_caller_is_cancelled_leaves_nothing_half_done(plugin: Plugin) -> None:
    await plugin.ok("/NetworkDriver.CreateNetwork", network())
    for steps in range(40):
        ident = f"{steps:064x}"
        task = asyncio.ensure_future(plugin.call("/NetworkDriver.CreateEndpoint", endpoint(ident)))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        begun = plugin.engine.registry.find(NET, ident) is not None
        assert begun == bool(plugin.leases(OwnerKind.ENDPOINT))
        assert begun or steps == 0, "what was begun was not ended"
        await plugin.ok("/NetworkDriver.DeleteEndpoint", {"NetworkID": NET, "EndpointID": ident})


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("unix")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(self._path))


@pytest_asyncio.fixture
async def served(plugin: Plugin, tmp_path: Path) -> AsyncIterator[Path]:
    path = tmp_path / "pynet.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        async with serving(plugin.app, sock):
            yield path


async def test_a_connection_serves_many_requests_as_docker_20_writes_them(served: Path) -> None:
    """No Content-Type and an empty Host."""

    def session() -> list[Any]:
        connection = UnixConnection(served)
        answers = []
        for path, body in (
            ("/Plugin.Activate", None),
            ("/NetworkDriver.CreateNetwork", network()),
            ("/NetworkDriver.CreateNetwork", network()),
            ("/NetworkDriver.DeleteNetwork", {"NetworkID": NET}),
        ):
            raw = b"" if body is None else json.dumps(body).encode() + b"\n"
            connection.putrequest("POST", path, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", "")
            connection.putheader("Content-Length", str(len(raw)))
            connection.putheader("Accept", "application/vnd.docker.plugins.v1.2+json")
            connection.endheaders(raw)
            first = connection.sock
            response = connection.getresponse()
            answers.append((response.status, json.loads(response.read())))
            assert connection.sock is first
        connection.close()
        return answers

    activated, created, again, deleted = await asyncio.to_thread(session)
    assert activated == (200, {"Implements": ["NetworkDriver", "IpamDriver"]})
    assert (created, deleted) == ((200, {}), (200, {}))
    assert again[0] == 500


async def test_a_request_is_done_although_docker_hangs_up(plugin: Plugin, served: Path) -> None:
    raw = json.dumps(network()).encode()
    head = f"POST /NetworkDriver.CreateNetwork HTTP/1.1\r\nHost:\r\nContent-Length: {len(raw)}\r\n\r\n".encode()
    with socket.socket(socket.AF_UNIX) as hasty:
        hasty.connect(str(served))
        hasty.sendall(head + raw)
    async with asyncio.timeout(20):
        while not plugin.engine.registry.networks():  # noqa: ASYNC110 - polled until the deadline
            await asyncio.sleep(0.01)


async def test_a_body_that_breaks_off_changes_nothing(plugin: Plugin, served: Path) -> None:
    before = await plugin.state()
    with socket.socket(socket.AF_UNIX) as hasty:
        hasty.connect(str(served))
        hasty.sendall(b"POST /NetworkDriver.CreateNetwork HTTP/1.1\r\nHost:\r\nContent-Length: 500\r\n\r\n{")
    probe = await asyncio.to_thread(_capabilities, served)
    assert probe == 200
    assert await plugin.state() == before


def _capabilities(path: Path) -> int:
    connection = UnixConnection(path)
    connection.request("POST", "/NetworkDriver.GetCapabilities")
    status = connection.getresponse().status
    connection.close()
    return status


async def test_messages_name_the_driver_as_docker_does(plugin: Plugin) -> None:
    plugin.app = docker_app(plugin.engine, on_activate=lambda: None, driver="pynet:1.2")
    refused = await plugin.call("/NetworkDriver.CreateNetwork", network(sticky="7d"))
    assert "docker network create -d pynet:1.2 --ipam-driver pynet:1.2 -o sticky=7d NAME" in refused.error
