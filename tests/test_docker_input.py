"""Bad input to the Docker plugin: a clear error in plain words, and nothing changed."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from docker_client import Plugin, call

from netplug.frontends.http import MAX_BODY

NET = "a1" * 32
END = "e1" * 32
CREATE = "/NetworkDriver.CreateNetwork"
ENDPOINT = "/NetworkDriver.CreateEndpoint"
JOIN = "/NetworkDriver.Join"
PROGRAM = "/NetworkDriver.ProgramExternalConnectivity"
POOL = "/IpamDriver.RequestPool"
ADDRESS = "/IpamDriver.RequestAddress"
PORTMAP = "com.docker.network.portmap"


def network(ident: object = "b2" * 32, **changes: Any) -> dict[str, Any]:
    data = {"AddressSpace": "LocalDefault", "Pool": "10.9.0.0/24", "Gateway": "10.9.0.1/24", "AuxAddresses": {}}
    options = {"com.docker.network.generic": changes.pop("o", {})}
    data |= changes.pop("data", {})
    return {"NetworkID": ident, "Options": options, "IPv4Data": [data], "IPv6Data": []} | changes


def endpoint(ident: object = "e2" * 32, net: object = NET, **changes: Any) -> dict[str, Any]:
    interface = {"Address": "10.1.0.7/24", "AddressIPv6": "", "MacAddress": ""} | changes.pop("interface", {})
    return {"NetworkID": net, "EndpointID": ident, "Interface": interface, "Options": {}} | changes


def port(**changes: object) -> dict[str, Any]:
    item = {"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080, "HostPortEnd": 8080} | changes
    return endpoint(Options={PORTMAP: [item]})


@pytest_asyncio.fixture
async def plugin() -> AsyncIterator[Plugin]:
    """A plugin with one network of Docker's and one joined endpoint."""
    plugin = await Plugin.start()
    await plugin.ok(CREATE, network(NET, data={"Pool": "10.1.0.0/24", "Gateway": "10.1.0.1/24"}))
    await plugin.ok(ENDPOINT, endpoint(END, interface={"Address": "10.1.0.2/24"}))
    await plugin.ok(JOIN, {"NetworkID": NET, "EndpointID": END, "SandboxKey": "/run/docker/netns/1"})
    yield plugin
    await plugin.close()


REFUSED = [
    # What is no JSON, or not of this form
    (CREATE, b"{", "the body is not JSON (at character 1)"),
    (CREATE, b"not json at all", "the body is not JSON (at character 0)"),
    (CREATE, b"\xff\xfe\x00", "the body is not JSON"),
    (CREATE, b"[" * 100_000, "the body is not JSON"),
    (CREATE, b"9" * 10_000, "the body is not JSON"),
    (CREATE, b"[]", "the body must be an object, not a list"),
    (CREATE, b'"x"', "the body must be an object, not 'x'"),
    (CREATE, {}, "field 'NetworkID' is missing"),
    (CREATE, network(7), "field 'NetworkID' must be text, not 7"),
    (CREATE, network(None), "field 'NetworkID' must be text, not null"),
    (CREATE, network(True), "field 'NetworkID' must be text, not true"),
    (CREATE, network(""), "field 'NetworkID' must be 1 to 128 letters"),
    (CREATE, network("x" * 129), "field 'NetworkID' must be 1 to 128 letters"),
    (CREATE, network("x" * 10_000), "field 'NetworkID' must be 1 to 128 letters"),
    (CREATE, network("../../etc"), "'../../etc'"),
    (CREATE, network("a\nb"), "must be 1 to 128 letters"),
    (CREATE, network("a\x00b"), "must be 1 to 128 letters"),
    (CREATE, network("ümlaut"), "must be 1 to 128 letters"),
    (CREATE, network("\ud800"), "field 'NetworkID' must be"),
    (CREATE, network(IPv4Data={}), "field 'IPv4Data' must be a list, not an object"),
    (CREATE, network(IPv4Data=["x"]), "field 'IPv4Data.0' must be an object, not 'x'"),
    (CREATE, network(Options=[]), "field 'Options' must be an object, not a list"),
    (CREATE, network(o={"mtu": 1400}), "must be text, not 1400"),
    # What is ill-formed within
    (CREATE, network(data={"Pool": "10.9.0.0/99"}), "subnet '10.9.0.0/99' is not an address range"),
    (CREATE, network(data={"Pool": ""}), "subnet '' is not an address range"),
    (CREATE, network(data={"Pool": "10.9.0.7/24"}), "subnet 10.9.0.7/24 has host bits set"),
    (CREATE, network(data={"Gateway": "nonsense"}), "gateway 'nonsense' is not an address like"),
    (CREATE, network(data={"Gateway": "10.8.0.1/24"}), "address 10.8.0.1 is not in subnet 10.9.0.0/24"),
    (CREATE, network(data={"Gateway": "fe80::1%eth0/64"}), "'fe80::1%eth0/64'"),
    (CREATE, network(data={"AuxAddresses": {"a": "x"}}), "aux-address 'x' is not an address"),
    (CREATE, network(data={"Pool": "10.1.0.0/16", "Gateway": "10.1.9.1/16"}), "subnet 10.1.0.0/16 overlaps"),
    (CREATE, network(o={"mode": "warp"}), "option mode='warp': must be one of"),
    (CREATE, network(o={"x" * 10_000: ""}), "unknown option 'xxx"),
    (CREATE, network(o={"metric": "50"}), "option metric=50: Docker chooses and makes the default routes"),
    (CREATE, network(o={"gw_priority": "-1"}), "gw_priority=-1: Docker chooses and makes the default routes"),
    (ENDPOINT, endpoint(Options={"gw_priority": "5"}), "itself (use --gw-priority of Docker 28 or later)"),
    (CREATE, network(o={"name": "n" * 10_000}), "must be 1 to 128 letters"),
    (CREATE, network(o={"mtu": "lots"}), "option mtu='lots': must be a number of bytes"),
    (CREATE, network(NET), "exists already"),
    ("/NetworkDriver.GwAllocCheck", {"Options": {"com.docker.network.generic": {"colour": "red"}}}, "'colour'"),
    ("/NetworkDriver.AllocateNetwork", {"NetworkID": "n"}, "swarm networks are not supported"),
    ("/NetworkDriver.FreeNetwork", {"NetworkID": "n"}, "swarm networks are not supported"),
    # Endpoints
    (ENDPOINT, endpoint(END), f"endpoint '{END[:12]}' exists already"),
    (ENDPOINT, endpoint(net="c3" * 32), "there is no network 'c3c3"),
    (ENDPOINT, endpoint(net=NET[:12]), f"there is no network '{NET[:12]}'"),
    (ENDPOINT, endpoint(""), "field 'EndpointID' must be 1 to 128"),
    (ENDPOINT, endpoint(Interface=7), "field 'Interface' must be an object, not 7"),
    (ENDPOINT, endpoint(interface={"Address": "10.1.0.256/24"}), "address '10.1.0.256/24' is not an address like"),
    (ENDPOINT, endpoint(interface={"Address": "10.2.0.2/24"}), "address 10.2.0.2 is in no subnet of network"),
    (ENDPOINT, endpoint(interface={"Address": "fd00::2/64"}), "address fd00::2/64 is not an IPv4 address"),
    (ENDPOINT, endpoint(interface={"AddressIPv6": "10.1.0.9/24"}), "address 10.1.0.9/24 is not an IPv6 address"),
    (ENDPOINT, endpoint(interface={"Address": "10.1.0.1/24"}), "address 10.1.0.1 of pool 10.1.0.0/24 is leased to"),
    (ENDPOINT, endpoint(interface={"MacAddress": "02:42"}), "MAC address '02:42' is not written as"),
    (ENDPOINT, endpoint(interface={"MacAddress": "01:00:5e:00:00:01"}), "is of a group or of nobody"),
    (ENDPOINT, endpoint(Options={"speed": "fast"}), "unknown option 'speed'"),
    (ENDPOINT, endpoint(Options={PORTMAP: {}}), "must be a list, not an object"),
    (ENDPOINT, port(Proto=1), "protocol 1, which is none of 6 (tcp), 17 (udp), 132 (sctp)"),
    (ENDPOINT, port(Proto="tcp"), "must be a whole number, not 'tcp'"),
    (ENDPOINT, port(Proto=6.5), "must be a whole number, not 6.5"),
    (ENDPOINT, port(Port=0), "container port 0 is not from 1 to 65535"),
    (ENDPOINT, port(HostPort=70_000, HostPortEnd=70_000), "host ports 70000-70000 are no range"),
    (ENDPOINT, port(HostPort=9000, HostPortEnd=8000), "host ports 9000-8000 are no range"),
    (ENDPOINT, port(HostPort=-1, HostPortEnd=0), "host ports -1--1 are no range"),
    (ENDPOINT, port(HostIP="localhost"), "host address 'localhost' is not an IP address"),
    (ENDPOINT, port(HostIP="fe80::1%eth0"), "host address 'fe80::1%eth0' has a zone"),
    (JOIN, {"NetworkID": NET, "EndpointID": END}, "field 'SandboxKey' is missing"),
    (
        JOIN,
        {"NetworkID": NET, "EndpointID": END, "SandboxKey": "x" * 5000},
        "'SandboxKey' is longer than 4096",
    ),
    (JOIN, {"NetworkID": NET, "EndpointID": "e9", "SandboxKey": "/x"}, "there is no endpoint 'e9'"),
    (JOIN, {"NetworkID": "f9", "EndpointID": END, "SandboxKey": "/x"}, "there is no network 'f9'"),
    (JOIN, {"NetworkID": NET, "EndpointID": END, "SandboxKey": "/other"}, "is already in sandbox"),
    (PROGRAM, {"NetworkID": NET, "EndpointID": "e9", "Options": None}, "there is no endpoint 'e9'"),
    ("/NetworkDriver.EndpointOperInfo", {"NetworkID": NET, "EndpointID": "e9"}, "there is no endpoint 'e9'"),
    # IPAM
    (POOL, {"AddressSpace": "elsewhere"}, "address space 'elsewhere' is unknown"),
    (POOL, {"AddressSpace": "netplug-local", "Pool": "x"}, "subnet 'x' is not an address range"),
    (POOL, {"AddressSpace": "netplug-local", "Options": {"zone": "z1"}}, "unknown --ipam-opt 'zone'"),
    (POOL, {"AddressSpace": "netplug-local", "SubPool": "10.5.0.0/24"}, "10.5.0.0/24"),
    (POOL, {"AddressSpace": "netplug-local", "Pool": "10.5.0.0/24", "SubPool": "10.6.0.0/24"}, "10.6.0.0/24"),
    (POOL, {"AddressSpace": "netplug-local", "Pool": "10.5.0.0/24", "V6": True}, "10.5.0.0/24"),
    (POOL, {"AddressSpace": "netplug-local", "Pool": "10.1.0.0/20"}, "subnet 10.1.0.0/20 overlaps subnet 10.1.0.0/24"),
    (ADDRESS, {"PoolID": "nowhere", "Address": "", "Options": {}}, "pool 'nowhere' does not exist"),
    (ADDRESS, {"PoolID": "", "Address": "", "Options": {}}, "refused, or not answered, when dockerd started"),
    (ADDRESS, {"PoolID": "p" * 10_000, "Address": "", "Options": {}}, "does not exist"),
    (ADDRESS, {"PoolID": "external/10.1.0.0/24", "Address": "x"}, "address 'x' is not an IP address"),
    (
        ADDRESS,
        {"PoolID": "external/10.1.0.0/24", "Address": "10.9.9.9"},
        "address 10.9.9.9 is not in subnet 10.1.0.0/24",
    ),
    (
        ADDRESS,
        {"PoolID": "external/10.1.0.0/24", "Address": "10.1.0.2"},
        "address 10.1.0.2 of pool 10.1.0.0/24 is leased",
    ),
]


@pytest.mark.parametrize(("path", "body", "text"), REFUSED, ids=lambda value: str(value)[:40].replace("/", ""))
async def test_bad_input_is_refused_in_plain_words(plugin: Plugin, path: str, body: object, text: str) -> None:
    before = await plugin.state()
    answer = await plugin.call(path, body)
    assert text in answer.error
    assert answer.status == 500
    assert await plugin.state() == before


@pytest.mark.parametrize(
    "path", [CREATE, "/NetworkDriver.DeleteNetwork", ENDPOINT, JOIN, PROGRAM, "/NetworkDriver.Leave", POOL, ADDRESS]
)
async def test_an_empty_body_is_refused_at_once_with_another_status(plugin: Plugin, path: str) -> None:
    """dockerd repeats a request without its body when the connection broke; 400 ends that."""
    before = await plugin.state()
    answer = await plugin.call(path, None)
    assert (answer.status, answer.error) == (400, "the body is empty")
    assert await plugin.state() == before
    assert plugin.lost_requests == 1  # what Docker wanted to delete is searched for


@pytest.mark.parametrize("path", ["/NetworkDriver.Dance", "/", "/Plugin.Activate/", "/networkdriver.join"])
async def test_an_unknown_method_is_named(plugin: Plugin, path: str) -> None:
    answer = await plugin.call(path, {})
    assert answer.status == 404
    assert "there is no method" in answer.error


async def test_another_verb_is_refused(plugin: Plugin) -> None:
    answer = await call(plugin.app, CREATE, b"", {}, method="GET")
    assert answer.status == 404
    assert "is not called by GET" in answer.error


@pytest.mark.parametrize("told", [True, False], ids=["with-length", "in-chunks"])
async def test_a_body_that_is_too_large_is_not_read_to_its_end(plugin: Plugin, *, told: bool) -> None:
    before = await plugin.state()
    raw = json.dumps(network(o={"name": "n" * 2 * MAX_BODY})).encode()
    answer = await call(plugin.app, CREATE, raw, {"content-length": str(len(raw))} if told else {})
    assert answer.status == 413
    assert answer.error == f"the request is larger than {MAX_BODY} bytes"
    assert int(answer.headers["unread"]) > 100
    assert await plugin.state() == before


async def test_what_is_deleted_twice_is_deleted(plugin: Plugin) -> None:
    ref = {"NetworkID": NET, "EndpointID": END}
    for method in ("RevokeExternalConnectivity", "Leave", "DeleteEndpoint", "DeleteNetwork"):
        for _ in range(2):
            assert await plugin.ok(f"/NetworkDriver.{method}", ref) == {}
    gone = await plugin.state()
    for method in ("RevokeExternalConnectivity", "Leave", "DeleteEndpoint", "DeleteNetwork"):
        await plugin.ok(f"/NetworkDriver.{method}", ref)
    await plugin.ok("/IpamDriver.ReleasePool", {"PoolID": "nowhere"})
    await plugin.ok("/IpamDriver.ReleaseAddress", {"PoolID": "nowhere", "Address": "10.1.0.2"})
    assert await plugin.state() == gone


async def test_an_id_is_whole_so_its_beginning_deletes_nothing(plugin: Plugin) -> None:
    before = await plugin.state()
    await plugin.ok("/NetworkDriver.DeleteNetwork", {"NetworkID": NET[:12]})
    assert await plugin.state() == before


async def test_a_failure_of_ours_has_an_id_and_no_details(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(plugin.engine.registry, "endpoint", broken)
    answer = await plugin.call("/NetworkDriver.EndpointOperInfo", {"NetworkID": NET, "EndpointID": END})
    assert answer.status == 500
    assert answer.body["Err"].startswith("internal error (id ")
    assert "secret" not in answer.body["Err"]
    logged = capsys.readouterr().out
    found = re.fullmatch(r"internal error \(id ([0-9a-f]{8}): see the log of netplug: .*\)", answer.body["Err"])
    assert found
    assert found[1] in logged
    assert "ZeroDivisionError" in logged
