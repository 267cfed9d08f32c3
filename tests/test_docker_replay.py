"""Every request that three real dockerds sent, fed to our plugin and judged by its effect.

The judge (`Oracle`) knows only the requests: which networks, endpoints, addresses and published ports there must be
after each. What the plugin says of itself (registry, leases) and what the kernel has (links, drift, forwarded ports)
must agree with it. Every recording is replayed twice: as it is, where the stub's address space counts as somebody
else's, and with its IPAM requests rewritten to our own earlier answers, where we are both drivers.
"""

import json
import re
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from built_in_drivers import DRIVERS
from docker_client import FIXTURES, Answer, Plugin
from docker_oracle import GENERIC, NEED_NO_BODY, End, Ipam, Net, Oracle
from engine_host import led_to

from netplug.drivers import port_ranges
from netplug.drivers.naming import bridge_name, host_side, sandbox_side
from netplug.drivers.plan import Plan
from netplug.drivers.steps import Bridge
from netplug.ipam.lease import OwnerKind

OUR_OPTIONS = {
    key
    for option in DRIVERS.options(DRIVERS.default())  # the recorded networks name no mode
    for key in (option.key, *option.aliases)
}
NAME = "com.docker.network.endpoint.name"
RECORDINGS = sorted(FIXTURES.glob("*/*.jsonl"))


class Replay:
    def __init__(self, plugin: Plugin, *, rewriting: bool, sticky: bool = False) -> None:
        self.plugin = plugin
        self.oracle = Oracle()
        self.ipam = Ipam(sticky=sticky) if rewriting else None
        self.named: set[str] = set()

    async def request(self, path: str, body: Any, row: Any) -> None:
        method = path.split(".")[1]
        if path.startswith("/IpamDriver.") and self.ipam is None and body is not None:
            await self._foreign_ipam(path, method, body)
            return
        recorded, body = body, self.ipam.rewrite(method, body) if self.ipam else body
        body = await self._without_what_we_refuse(path, method, body)
        expected = self.oracle.expected(method, body)
        answer = await self.plugin.call(path, body)
        assert answer.status == expected, (path, answer.body)
        if expected == 200:
            await self._done(path, method, recorded, body, answer, row)
        else:
            assert answer.error
        await self.verify()

    async def _done(self, path: str, method: str, recorded: Any, body: Any, answer: Answer, row: Any) -> None:
        if path.startswith("/IpamDriver."):
            if self.ipam and body is not None:
                self.ipam.judge(method, recorded, body, answer.body, row.get("answer"))
                if row.get("failed") and method == "RequestAddress":
                    address = answer.body["Address"].split("/")[0]
                    await self.plugin.ok("/IpamDriver.ReleaseAddress", {"PoolID": body["PoolID"], "Address": address})
                    self.ipam.held.discard((body["PoolID"], address))
            return
        self.oracle.apply(method, body)
        judge = getattr(self, "_judge_" + method.lower(), None)
        if judge is not None:
            judge(body, answer.body)
        elif re.match("Create|Delete|Leave|Program|Revoke|Discover", method):
            assert answer.body == {}
        if row.get("failed") and method == "CreateNetwork":
            # The stub refused it, so dockerd knows of no such network: what a reconcile finds and deletes.
            await self.verify()
            await self.request("/NetworkDriver.DeleteNetwork", {"NetworkID": body["NetworkID"]}, {})

    async def end(self) -> None:
        """Remove what the session left, in the order of `docker rm` and `docker network rm`."""
        for ident, end in list(self.oracle.ends.items()):
            ref = {"NetworkID": end.network, "EndpointID": ident}
            await self.request("/NetworkDriver.DeleteEndpoint", ref, {})
        for pool, address in self.ipam.held if self.ipam else ():
            await self.plugin.ok("/IpamDriver.ReleaseAddress", {"PoolID": pool, "Address": address})
            await self.verify()
        for pool in self.plugin.engine.allocator.pools():
            for _ in range(pool.holds):
                await self.plugin.ok("/IpamDriver.ReleasePool", {"PoolID": pool.id})
        for ident in list(self.oracle.nets):
            await self.request("/NetworkDriver.DeleteNetwork", {"NetworkID": ident}, {})

    async def _foreign_ipam(self, path: str, method: str, body: Any) -> None:
        """Send a request about the stub's pools, which we do not have."""
        before = await self.plugin.state()
        answer = await self.plugin.call(path, body)
        if method.startswith("Release"):
            assert answer.body == {}
        else:
            unknown = (
                "address space 'py" if method == "RequestPool" and not body["Options"] else "unknown|does not exist"
            )
            assert re.search(unknown, answer.error)
        assert await self.plugin.state() == before

    async def _without_what_we_refuse(self, path: str, method: str, body: Any) -> Any:
        """See options of the stub refused by name, and return the request without them."""
        if not body or not isinstance(body.get("Options"), dict):
            return body
        options = body["Options"]
        if method in {"GwAllocCheck", "CreateNetwork"}:
            options = options.get(GENERIC) or {}
            unknown = options.keys() - OUR_OPTIONS
        elif method == "CreateEndpoint":
            unknown = {key for key in options if not key.startswith("com.docker.")}
        elif method == "RequestPool":
            unknown = set(options)
        else:
            return body
        if unknown:
            before = await self.plugin.state()
            error = (await self.plugin.call(path, body)).error
            assert any(repr(key) in error for key in unknown), error
            assert await self.plugin.state() == before
            for key in unknown:
                del options[key]
        return body

    # Answers

    def _judge_createendpoint(self, body: Any, answer: Any) -> None:
        asked, given = body["Interface"], answer["Interface"]
        assert not [key for key, value in asked.items() if value and key in given], "what was given is not repeated"
        end = self.oracle.ends[body["EndpointID"]]
        if not asked["MacAddress"]:
            assert re.fullmatch("[0-9a-f]{2}(:[0-9a-f]{2}){5}", given["MacAddress"])
            end.mac = given["MacAddress"]
        assert "Address" not in given
        if self.ipam and end.addresses:
            end.name = self.ipam.names.get(end.addresses[0].split("/")[0], "")
            self.named |= {end.name} - {""}

    def _judge_join(self, body: Any, answer: Any) -> None:
        assert answer["InterfaceName"] == {"SrcName": sandbox_side(body["EndpointID"]), "DstPrefix": "eth"}
        net = self.oracle.nets[body["NetworkID"]]
        if net.internal or not net.subnets:
            assert answer.keys() == {"InterfaceName", "DisableGatewayService"}
            assert answer["DisableGatewayService"] is True
            return
        wanted = {}
        for address in map(ip_interface, self.oracle.ends[body["EndpointID"]].addresses):
            for pool, gateway in net.subnets:
                if address in ip_network(pool) and gateway:
                    wanted["Gateway" if address.version == 4 else "GatewayIPv6"] = gateway.split("/")[0]
        assert wanted.items() <= answer.items()
        assert answer.keys() <= {"InterfaceName", "Gateway", "GatewayIPv6"}

    def _judge_endpointoperinfo(self, body: Any, answer: Any) -> None:
        end = self.oracle.ends[body["EndpointID"]]
        assert answer["Value"]["addresses"] == end.addresses
        assert answer["Value"]["mac"] == end.mac
        built = self.plugin.engine.registry.endpoint(end.network, body["EndpointID"])
        assert answer["Value"]["ports"] == list(map(str, built.published))

    # State

    async def verify(self) -> None:
        registry = self.plugin.engine.registry
        assert {record.network.id for record in registry.networks()} == self.oracle.nets.keys()
        assert {record.endpoint.id for record in registry.endpoints()} == self.oracle.ends.keys()
        for ident, net in self.oracle.nets.items():
            self._verify_network(ident, net)
        for ident, end in self.oracle.ends.items():
            self._verify_endpoint(ident, end)
        self._verify_leases()
        await self._verify_kernel()

    def _verify_network(self, ident: str, net: Net) -> None:
        network = self.plugin.engine.registry.network(ident).network
        assert [str(subnet.pool) for subnet in network.subnets] == [pool for pool, _ in net.subnets]
        for subnet, (_, gateway) in zip(network.subnets, net.subnets, strict=True):
            assert subnet.gateway is not None
            assert not gateway or str(subnet.gateway) == gateway
        assert network.internal == net.internal
        assert network.options.mtu == net.mtu

    def _verify_endpoint(self, ident: str, end: End) -> None:
        built = self.plugin.engine.registry.endpoint(end.network, ident)
        assert [str(address) for address in built.endpoint.addresses] == end.addresses
        assert built.endpoint.mac == end.mac
        assert built.linked == end.linked
        assert built.name == end.name
        left = [single for mapping in built.published for single in port_ranges.singles(mapping)]
        for proto, port, host, first, last in sorted(end.published, reverse=True):
            fits = [
                mapping
                for mapping in left
                if (mapping.port, {"tcp": 6, "udp": 17, "sctp": 132}[mapping.proto]) == (port, proto)
                and str(mapping.host_address or "") == host
                and (mapping.host_port > 0 if first == 0 else first <= mapping.host_port <= last)
            ]
            assert fits, (ident, port, built.published)
            left.remove(fits[0])
        assert not left

    def _verify_leases(self) -> None:
        registry = self.plugin.engine.registry
        of_ends, of_nets = set(), set()
        for record in registry.networks():
            for subnet, pool in zip(record.network.subnets, record.pools, strict=True):
                of_nets.add((pool, str(subnet.gateway.ip if subnet.gateway else ""), record.network.id))
        for built in registry.endpoints():
            for pool, address in zip(built.pools, built.endpoint.addresses, strict=True):
                of_ends.add((pool, str(address.ip), built.endpoint.id))
        assert self.plugin.leases(OwnerKind.ENDPOINT) == of_ends
        assert {lease for lease in self.plugin.leases(OwnerKind.GATEWAY) if lease[2]} == of_nets
        if self.ipam is None:
            assert not self.plugin.leases(OwnerKind.PENDING)
        else:
            pending = {lease[:2] for lease in self.plugin.leases(OwnerKind.PENDING)}
            assert pending <= self.ipam.held

    async def _verify_kernel(self) -> None:
        engine, kernel = self.plugin.engine, self.plugin.kernel
        plan = engine.base_plan.plan
        for record in engine.registry.networks():
            plan += record.plan
        for built in engine.registry.endpoints():
            plan += (built.plan if built.linked else Plan()) + built.exposed
        assert not await engine.executor.drift(plan)
        links = {bridge_name(ident) for ident in self.oracle.nets}
        links |= {host_side(ident) for ident, end in self.oracle.ends.items() if end.linked}
        owned = {link.name for link in (await kernel.owned()).of(Bridge)}
        assert {link for link in owned if not link.startswith("nps")} == links
        for version in (4, 6):
            leads = [step for step in kernel.leads() if led_to(step)[0].version == version]
            assert len(leads) == sum(1 for end in self.oracle.ends.values() for _ in _dnats(end, version)), leads


def _dnats(end: End, version: int) -> Iterator[tuple[Any, ...]]:
    for port in end.published:
        versions = [address.version for address in map(ip_interface, end.addresses)]
        # To one of the other version it is relayed.
        for _ in filter(version.__eq__, [ip_address(port[2]).version] if port[2] else versions):
            yield port


@pytest_asyncio.fixture
async def plugin() -> AsyncIterator[Plugin]:
    plugin = await Plugin.start()
    yield plugin
    await plugin.close()


def _rows(recording: Path) -> list[Any]:
    return [json.loads(line) for line in recording.read_text().splitlines()]


def _names(recording: Path) -> set[str]:
    """Return the names that Docker told with requests for addresses; only 29 does."""
    told = (((row.get("body") or {}).get("Options") or {}).get(NAME) for row in _rows(recording) if "failed" not in row)
    return {name for name in told if name}


RETURNS = {"29.7-04_lifecycle", "29.7-05_daemon_restart", "29.7-06_live_restore"}
"""Recordings in which a container comes again whose name Docker tells."""


@pytest.mark.parametrize("how", ["as-recorded", "own-ipam", "sticky"])
@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
async def test_what_dockerd_asked_for_is_there(plugin: Plugin, recording: Path, how: str) -> None:
    rewriting, sticky = how != "as-recorded", how == "sticky"
    if rewriting and recording.stem.startswith("41"):
        pytest.skip("a swarm uses one subnet in two address spaces, and refuses plugins on a socket anyway")
    replay = Replay(plugin, rewriting=rewriting, sticky=sticky)
    before = await plugin.state()
    for row in _rows(recording):
        if "path" in row:
            await replay.request(row["path"], row["body"], row)
        elif str(row.get("event", "")).startswith("plugin restarted"):
            await plugin.restart()
            await replay.verify()
    await replay.end()
    assert await plugin.state() == before
    if rewriting:
        assert replay.named == _names(recording)
    if sticky and replay.ipam:
        assert bool(replay.ipam.returned) == (f"{recording.parent.name}-{recording.stem}" in RETURNS)


DELETIONS = {"Leave", "DeleteEndpoint", "DeleteNetwork", "RevokeExternalConnectivity", "ReleaseAddress"}
"""What Docker sends twice now and then. A pool has a hold for each request for it, so that no release is repeated."""


class Nervous(Replay):
    """A dockerd whose connections break: it repeats each request without its body, and each deletion with it."""

    async def _done(self, path: str, method: str, recorded: Any, body: Any, answer: Answer, row: Any) -> None:
        await super()._done(path, method, recorded, body, answer, row)
        before = await self.plugin.state()
        if method not in NEED_NO_BODY:
            again = await self.plugin.call(path)
            assert (again.status, again.error) == (400, "the body is empty") if body else again.status == 200
        if method in DELETIONS:
            assert await self.plugin.ok(path, body) == {}
        assert await self.plugin.state() == before


class Restless(Replay):
    """A netplug that is killed after each of its answers, also while dockerd starts and serves no API yet."""

    _starting = False

    async def _done(self, path: str, method: str, recorded: Any, body: Any, answer: Answer, row: Any) -> None:
        self._starting = method in {"Activate", "GetCapabilities"} or (self._starting and path.startswith("/Ipam"))
        await self.plugin.restart()
        if self._starting:
            self.plugin.engine.allocator.guess_session()
        await super()._done(path, method, recorded, body, answer, row)


LIFE = [path for path in RECORDINGS if re.match("0[456]|11", path.stem)]


@pytest.mark.parametrize("how", [Nervous, Restless])
@pytest.mark.parametrize("recording", LIFE, ids=lambda path: f"{path.parent.name}-{path.stem}")
async def test_repeated_requests_and_lost_processes_change_nothing(
    plugin: Plugin, recording: Path, how: type[Replay]
) -> None:
    replay = how(plugin, rewriting=True)
    before = await plugin.state()
    for row in _rows(recording):
        if "path" in row:
            await replay.request(row["path"], row["body"], row)
    await replay.end()
    assert await plugin.state() == before


def test_all_recordings_are_there() -> None:
    counts = [sum("path" in row for row in _rows(recording)) for recording in RECORDINGS]
    assert sum(counts) == 1860
