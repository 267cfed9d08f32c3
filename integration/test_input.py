"""Bad input, by the plugin socket and by the command: one plain line in answer, and nothing changed.

That nothing changed in the kernel is asserted by the leak check of every test; what netplug says of itself is compared
after each single request.
"""

import http.client
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from harness import Netplug, cli_network, namespace

TIMEOUT_S = 60
PARALLEL = 10
BIG = "x" * 10_000

NET = "a" * 64
ENDPOINT = "e" * 64
OTHER = "b" * 64


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("netplug", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def request(path: Path, method: str, url: str, body: bytes = b"") -> tuple[int, str]:
    """Send a request to a unix socket and return status and body."""
    with closing(_Connection(path)) as connection:
        # Who says that a body is too large does not read it.
        with suppress(BrokenPipeError):
            connection.request(method, url, body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


class Plugin:
    """dockerd's place: speaks with the plugin socket of a daemon."""

    def __init__(self, netplug: Netplug) -> None:
        self._plugin = netplug.plugin_socket
        self._api = netplug.host.path("/run/netplug/netplug.sock")

    def post(self, method: str, body: Any) -> tuple[int, dict[str, Any]]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, text = request(self._plugin, "POST", f"/{method}", data)
        answer: dict[str, Any] = json.loads(text)
        return status, answer

    def ok(self, method: str, body: Any) -> dict[str, Any]:
        status, answer = self.post(method, body)
        assert (status, answer.get("Err", "")) == (200, ""), answer
        return answer

    def refused(self, method: str, body: Any) -> str:
        """Assert that a request is refused in one plain line and that nothing changed; return the line."""
        before = self.state()
        status, answer = self.post(method, body)
        assert 400 <= status <= 599, (method, status, answer)
        assert answer["Err"] == answer["Error"]
        line = str(answer["Err"])
        assert_plain(line)
        assert self.state() == before, f"{method} changed something"
        return line

    def all_refused(self, method: str, bad: dict[str, tuple[Any, str]], undo: str = "") -> None:
        """Assert that each request is refused with a word in the answer; `undo` what was not refused."""
        wrong = []
        for what, (body, word) in bad.items():
            try:
                said = self.refused(method, body)
                assert word in said, said
            except AssertionError as exc:
                wrong.append(f"{what}: {exc}".partition("\n")[0])
                if undo:
                    self.post(undo, body)
        assert not wrong, "\n".join(wrong)

    def state(self) -> list[str]:
        """Return what the daemon says of networks, endpoints, leases and differences."""
        return [request(self._api, "GET", f"/v1/{what}")[1] for what in ("networks", "endpoints", "ipam", "diff")]


def assert_plain(line: str) -> None:
    assert 0 < len(line) < 400, line
    assert "\n" not in line
    for word in ("Traceback", "Error(", "Exception", "NoneType", "object at", "pydantic"):
        assert word not in line, line


@pytest.fixture(scope="module")
def plugin(netplug: Netplug) -> Plugin:
    return Plugin(netplug)


def network(ident: str = NET, pool: str = "10.95.0.0/24", gateway: str = "10.95.0.1/24", **generic: str) -> Any:
    data = {"AddressSpace": "LocalDefault", "Pool": pool, "Gateway": gateway, "AuxAddresses": {}}
    options = {"com.docker.network.enable_ipv6": False, "com.docker.network.generic": generic}
    return {"NetworkID": ident, "Options": options, "IPv4Data": [data], "IPv6Data": []}


def endpoint(
    ident: str = ENDPOINT, address: str = "10.95.0.2/24", mac: str = "", net: str = NET, **options: Any
) -> Any:
    interface = {"Address": address, "AddressIPv6": "", "MacAddress": mac}
    return {"NetworkID": net, "EndpointID": ident, "Interface": interface, "Options": options}


def ref(ident: str = ENDPOINT, net: str = NET, **more: Any) -> Any:
    return {"NetworkID": net, "EndpointID": ident, **more}


@contextmanager
def made(plugin: Plugin) -> Iterator[None]:
    """A network and an endpoint, as dockerd would ask for them; deleted at the end, twice."""
    plugin.ok("NetworkDriver.CreateNetwork", network())
    try:
        plugin.ok("NetworkDriver.CreateEndpoint", endpoint())
        yield
    finally:
        for _ in range(2):
            plugin.ok("NetworkDriver.DeleteEndpoint", ref())
            plugin.ok("NetworkDriver.DeleteNetwork", {"NetworkID": NET})


METHODS = (
    "NetworkDriver.CreateNetwork",
    "NetworkDriver.DeleteNetwork",
    "NetworkDriver.CreateEndpoint",
    "NetworkDriver.DeleteEndpoint",
    "NetworkDriver.Join",
    "NetworkDriver.Leave",
    "NetworkDriver.ProgramExternalConnectivity",
    "NetworkDriver.RevokeExternalConnectivity",
    "NetworkDriver.EndpointOperInfo",
    "IpamDriver.RequestPool",
    "IpamDriver.ReleasePool",
    "IpamDriver.RequestAddress",
    "IpamDriver.ReleaseAddress",
)
MALFORMED = {
    "no json": b"hello",
    "half of it": b'{"NetworkID": "a',
    "no utf-8": b'{"NetworkID": "\xff\xfe"}',
    "a list": b"[]",
    "null": b"null",
    "a number": b"1",
    "wrong types": b'{"NetworkID": 7, "EndpointID": [], "PoolID": {}, "Pool": 1, "Address": {}, "SandboxKey": 1}',
    "deep": b'{"NetworkID": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
}


@pytest.mark.parametrize("method", METHODS)
def test_malformed_request_is_refused(plugin: Plugin, method: str) -> None:
    for what, body in MALFORMED.items():
        assert plugin.refused(method, body), what
    assert "empty" in plugin.refused(method, b"")


@pytest.mark.parametrize("method", ["NetworkDriver.CreateNetwork", "IpamDriver.RequestPool"])
def test_oversized_request_is_refused(plugin: Plugin, method: str) -> None:
    body = json.dumps({**network(), "Padding": "x" * 9_000_000}).encode()
    assert "larger" in plugin.refused(method, body)


def test_unknown_methods_and_paths_are_refused(plugin: Plugin) -> None:
    for method in ("NetworkDriver.Sideways", "Nothing", BIG, "NetworkDriver.CreateNetwork/", "../etc/passwd"):
        plugin.refused(method, {})


def test_bad_networks_are_refused(plugin: Plugin) -> None:
    bad = {
        "a subnet that is none": (network(pool="10.95.0.0/33"), "10.95.0.0/33"),
        "a word for a subnet": (network(pool="green"), "green"),
        "host bits": (network(pool="10.95.0.7/24"), "10.95.0.7/24"),
        "a gateway outside": (network(gateway="10.96.0.1/24"), "10.96.0.1"),
        "a bad gateway": (network(gateway="first"), "first"),
        "no id": (network(ident=""), "NetworkID"),
        "a path for an id": (network(ident="../../etc"), "NetworkID"),
        "an id of 10 kB": (network(ident=BIG), "NetworkID"),
        "an unknown option": (network(colour="blue"), "colour"),
        "an unknown mode": (network(mode="sideways"), "sideways"),
        "a bad mtu": (network(mtu="tall"), "tall"),
        "a huge mtu": (network(mtu="999999999"), "mtu"),
        "a bridge's name of 10 kB": (network(bridge=BIG), "bridge"),
        "a bridge that is none": (network(bridge="lo"), "lo"),
        "a bridge's name with a slash": (network(bridge="../x"), "bridge"),
        "a name of 10 kB": (network(name=BIG), "name"),
        "a bad prefix": (network(ifname="a/b"), "ifname"),
        "a bad truth": (network(icc="perhaps"), "perhaps"),
        "the loopback's subnet": (network(pool="127.0.0.0/8", gateway="127.0.0.1/8"), "127.0.0.0/8"),
        "a multicast subnet": (network(pool="224.0.0.0/8", gateway="224.0.0.1/8"), "224.0.0.0/8"),
        "the wire's subnet": (network(pool="203.0.113.0/24", gateway="203.0.113.9/24"), "203.0.113.0/24"),
    }
    plugin.all_refused("NetworkDriver.CreateNetwork", bad, "NetworkDriver.DeleteNetwork")


def test_second_network_of_an_id_or_a_subnet_is_refused(plugin: Plugin) -> None:
    with made(plugin):
        assert "exists" in plugin.refused("NetworkDriver.CreateNetwork", network())
        for pool in ("10.95.0.0/24", "10.95.0.0/16", "10.95.0.128/25"):
            gateway = pool.replace(".0/", ".1/").replace(".128/", ".129/")
            said = plugin.refused("NetworkDriver.CreateNetwork", network(OTHER, pool, gateway))
            assert pool in said
            assert "overlaps" in said


def test_bad_endpoints_are_refused(plugin: Plugin) -> None:
    def port(**binding: Any) -> Any:
        return endpoint(OTHER, "10.95.0.3/24", **{"com.docker.network.portmap": [binding]})

    with made(plugin):
        assert "exists" in plugin.refused("NetworkDriver.CreateEndpoint", endpoint())
        bad = {
            "no network": (endpoint(OTHER, net=OTHER), OTHER[:12]),
            "an address outside": (endpoint(OTHER, "10.96.0.9/24"), "10.96.0.9"),
            "an address that is none": (endpoint(OTHER, "10.95.0.999/24"), "10.95.0.999"),
            "the gateway's address": (endpoint(OTHER, "10.95.0.1/24"), "10.95.0.1"),
            "the broadcast address": (endpoint(OTHER, "10.95.0.255/24"), "10.95.0.255"),
            "a bad MAC": (endpoint(OTHER, "10.95.0.3/24", "blue"), "blue"),
            "a group's MAC": (endpoint(OTHER, "10.95.0.3/24", "01:00:5e:00:00:01"), "01:00:5e:00:00:01"),
            "an id of 10 kB": (endpoint(BIG, "10.95.0.3/24"), "EndpointID"),
            "an unknown option": (endpoint(OTHER, "10.95.0.3/24", colour="blue"), "colour"),
            "a bad protocol": (port(Proto=99, Port=80, HostPort=8080, HostPortEnd=8080), "99"),
            "a bad port": (port(Proto=6, Port=70000, HostPort=8080, HostPortEnd=8080), "70000"),
            "a bad host port": (port(Proto=6, Port=80, HostPort=-1, HostPortEnd=-1), "-1"),
            "a range backwards": (port(Proto=6, Port=80, HostPort=8090, HostPortEnd=8080), "8090"),
        }
        plugin.all_refused("NetworkDriver.CreateEndpoint", bad, "NetworkDriver.DeleteEndpoint")


def test_unknown_ids_are_refused_where_something_is_to_be_done_and_ignored_where_it_is_to_end(plugin: Plugin) -> None:
    with made(plugin):
        for body in (ref(OTHER), ref(net=OTHER), ref(BIG), ref(net=BIG), ref(ENDPOINT[:12]), ref(net=NET[:12])):
            plugin.refused("NetworkDriver.Join", {**body, "SandboxKey": "/var/run/docker/netns/0", "Options": {}})
            plugin.refused("NetworkDriver.ProgramExternalConnectivity", {**body, "Options": {}})
            plugin.refused("NetworkDriver.EndpointOperInfo", body)
        before = plugin.state()
        for body in (ref(OTHER), ref(net=OTHER), ref(ENDPOINT[:12])):
            for verb in ("Leave", "RevokeExternalConnectivity", "DeleteEndpoint"):
                plugin.ok(f"NetworkDriver.{verb}", body)
        for ident in (OTHER, NET[:12]):
            plugin.ok("NetworkDriver.DeleteNetwork", {"NetworkID": ident})
        assert plugin.state() == before


def test_endpoint_is_joined_by_one_sandbox_alone(plugin: Plugin) -> None:
    with made(plugin):
        here, there = ({**ref(), "SandboxKey": f"/var/run/docker/netns/{name}", "Options": {}} for name in "12")
        first = plugin.ok("NetworkDriver.Join", here)
        assert "1" in plugin.refused("NetworkDriver.Join", there)
        assert plugin.ok("NetworkDriver.Join", here) == first, "dockerd repeats what it got no answer to"
        assert "SandboxKey" in plugin.refused("NetworkDriver.Join", {**here, "SandboxKey": BIG})
        plugin.ok("NetworkDriver.Leave", ref())
        plugin.ok("NetworkDriver.Leave", ref())
        plugin.ok("NetworkDriver.Join", there)


def test_of_identical_requests_in_parallel_one_succeeds(plugin: Plugin) -> None:
    with ThreadPoolExecutor(PARALLEL) as pool:

        def count(method: str, body: Any) -> int:
            answers = [it.result() for it in [pool.submit(plugin.post, method, body) for _ in range(PARALLEL)]]
            for _, answer in answers:
                if "Err" in answer:
                    assert_plain(answer["Err"])
            return sum(status == 200 for status, _ in answers)

        assert count("NetworkDriver.CreateNetwork", network()) == 1
        assert count("NetworkDriver.CreateEndpoint", endpoint()) == 1
        assert count("NetworkDriver.DeleteEndpoint", ref()) == PARALLEL
        assert count("NetworkDriver.DeleteNetwork", {"NetworkID": NET}) == PARALLEL


def test_bad_requests_to_ipam_are_refused(plugin: Plugin) -> None:
    def pool(**fields: Any) -> Any:
        base = {"AddressSpace": "netplug-local", "Pool": "", "SubPool": "", "Options": {}, "V6": False}
        return base | fields

    bad = {
        "a bad subnet": (pool(Pool="10.97.0.0/99"), "10.97.0.0/99"),
        "a word": (pool(Pool="green"), "green"),
        "a range outside": (pool(Pool="10.97.0.0/24", SubPool="10.98.0.0/25"), "10.98.0.0/25"),
        "a range without a subnet": (pool(SubPool="10.98.0.0/25"), "10.98.0.0/25"),
        "an unknown space": (pool(AddressSpace="lunar"), "lunar"),
        "a subnet of the other family": (pool(Pool="10.97.0.0/24", V6=True), "10.97.0.0/24"),
        "10 kB": (pool(Pool=BIG), ""),
    }
    plugin.all_refused("IpamDriver.RequestPool", bad)
    ident = plugin.ok("IpamDriver.RequestPool", pool(Pool="10.97.0.0/30"))["PoolID"]
    try:
        for address in ("10.98.0.1", "10.97.0.3", "10.97.0.0", "10.97.0.999", "green", BIG, "fd00::1"):
            plugin.refused("IpamDriver.RequestAddress", {"PoolID": ident, "Address": address, "Options": {}})
        plugin.refused("IpamDriver.RequestAddress", {"PoolID": "lunar", "Address": "", "Options": {}})
        before = plugin.state()
        # Nothing of this is leased.
        for address in ("10.97.0.1", "10.98.0.1"):
            plugin.ok("IpamDriver.ReleaseAddress", {"PoolID": ident, "Address": address})
        assert plugin.state() == before
        for _ in range(2):
            plugin.ok("IpamDriver.RequestAddress", {"PoolID": ident, "Address": "", "Options": {}})
        said = plugin.refused("IpamDriver.RequestAddress", {"PoolID": ident, "Address": "", "Options": {}})
        assert "10.97.0.0/30" in said
        for address in ("10.97.0.1", "10.97.0.2", "10.97.0.2"):
            plugin.ok("IpamDriver.ReleaseAddress", {"PoolID": ident, "Address": address})
    finally:
        for _ in range(2):
            plugin.ok("IpamDriver.ReleasePool", {"PoolID": ident})
    plugin.ok("IpamDriver.ReleasePool", {"PoolID": "lunar"})


# The command

WRONG_USAGE = (
    "fly",
    "network",
    "network fly",
    "network create",
    "network create x --subnet 10.1.2.3/24",
    "network create x --subnet green",
    "network create x --subnet 10.1.0.0/99",
    "network create x --gateway 10.1.0.1",
    "network create x --subnet 10.1.0.0/24 --gateway 10.2.0.1",
    "network create x --subnet 10.1.0.0/24 --ip-range 10.2.0.0/25",
    "network create x -o mtu",
    "network create x -o =1400",
    "network create x -o mtu=1400 -o mtu=1500",
    "attach {net}",
    "attach {net} --netns ''",
    "attach {net} --netns {ns} --ifname a/b",
    "attach {net} --netns {ns} --ifname sixteen-letters-",
    "attach {net} --netns {ns} --ip 10.1",
    "attach {net} --netns {ns} --mac 01:00:00:00:00:01",
    "attach {net} --netns {ns} --publish 99999:80",
    "attach {net} --netns {ns} --publish 80/gre",
    "attach {net} --netns {ns} --publish 8000-8001:80-82",
    "attach {net} --netns /proc/self/ns/net",
    "ps --json=perhaps",
    "serve --store floppy",
    "serve --address-pool base=green,size=24",
    "serve --log-level shouting",
)
REFUSED = (
    "network create {net}",
    "network create {big}",
    "network create a/b",
    "network create ''",
    "network create x --mode sideways",
    "network create x -o colour=blue",
    "network create x -o mtu=tall",
    "network create x -o bridge=lo",
    "network create x --subnet 10.99.0.0/16",
    "network create x --subnet 203.0.113.0/24",
    "network create x --subnet 10.1.0.0/24 --subnet 10.1.0.0/25",
    "network create x --subnet 127.0.0.0/8",
    "network inspect nowhere",
    "network inspect {big}",
    "network rm nowhere",
    "network rm ../../version",
    "attach nowhere --netns {ns}",
    "attach {net} --netns nobody",
    "attach {net} --netns /etc/passwd",
    "attach {net} --netns {ns} --ip 10.98.0.9",
    "attach {net} --netns {ns} --ip 10.99.0.1",
    "attach {net} --netns {ns} --ip 10.99.0.255",
    "attach {net} --netns {ns} --name {big}",
    "attach {net} --netns {ns} --ifname lo",
    "attach {net} --netns {ns} --publish 224.0.0.1:8080:80",
    "detach {net} --netns {ns}",
    "detach nowhere --netns {ns}",
    "ps --network nowhere",
)


@pytest.mark.parametrize(("code", "lines"), [(2, WRONG_USAGE), (1, REFUSED)], ids=["wrong usage", "refused"])
def test_bad_commands_say_why_in_one_line_and_change_nothing(
    netplug: Netplug, plugin: Plugin, code: int, lines: tuple[str, ...]
) -> None:
    command = netplug.command()[0]
    with cli_network(netplug, "--subnet", "10.99.0.0/24") as net, namespace(netplug.host) as bare:
        before = plugin.state()

        def wrong(line: str) -> str:
            """Return what is wrong with the answer to one command, or nothing."""
            argv = [command, *line.split()]
            argv = [it.format(net=net, ns=bare.name, big=BIG).replace("''", "") for it in argv]
            done = netplug.host.run(argv, check=False, timeout_s=TIMEOUT_S)
            fine = done.returncode == code and not done.stdout and done.stderr.count("\n") == 1
            fine = fine and len(done.stderr) < 400 and "Traceback" not in done.stderr
            said = f"{done.stdout}{done.stderr}"[:400]
            return "" if fine else f"{line}: exit {done.returncode}: {said}"

        with ThreadPoolExecutor(2) as pool:
            answers = [it for it in pool.map(wrong, lines) if it]
        assert not answers, "\n".join(answers)
        assert plugin.state() == before
        assert bare.exec("ip", "-br", "link").split()[0] == "lo"
        assert bare.exec("ip", "-br", "link").count("\n") == 0
