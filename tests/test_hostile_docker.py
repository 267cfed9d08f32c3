"""What users give Docker for netplug (options, labels, subnets, addresses, ports): done, or refused without a trace."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from docker_client import GENERIC, PORTMAP, Answer, Plugin
from hostile import INTERNAL, NETWORKS, TEXTS, VALUES, mutated, often, readable
from hypothesis import given
from hypothesis import strategies as st
from quiet import quiet_log

NET, END = "a1" * 32, "e1" * 32
CREATE = {
    "NetworkID": NET,
    "Options": {
        GENERIC: {
            "mode": "bridge",
            "name": "blue",
            "com.docker.network.driver.mtu": "1400",
            "bridge": "br-blue",
            "host_binding_ipv4": "127.0.0.1",
            "ifname": "net",
            "rate": "1mbit",
            "ttl": "9",
            "dns_upstream": "10.0.0.1",
        },
        "com.docker.network.enable_ipv6": True,
        "com.docker.network.internal": False,
    },
    "IPv4Data": [{"AddressSpace": "LocalDefault", "Pool": "10.1.0.0/24", "Gateway": "10.1.0.1/24", "AuxAddresses": {}}],
    "IPv6Data": [
        {"AddressSpace": "LocalDefault", "Pool": "fd00:1::/64", "Gateway": "fd00:1::1/64", "AuxAddresses": {}}
    ],
}
ENDPOINT = {
    "NetworkID": NET,
    "EndpointID": END,
    "Interface": {"Address": "10.1.0.7/24", "AddressIPv6": "fd00:1::7/64", "MacAddress": "02:00:00:00:00:07"},
    "Options": {
        PORTMAP: [{"Proto": 6, "IP": "", "Port": 80, "HostIP": "127.0.0.1", "HostPort": 8080, "HostPortEnd": 8081}],
        "com.docker.network.endpoint.exposedports": [{"Proto": 6, "Port": 80}],
        "rate": "1mbit",
    },
}
JOIN = {"NetworkID": NET, "EndpointID": END, "SandboxKey": "/run/docker/netns/1", "Options": {}}
POOL = {"AddressSpace": "netplug-local", "Pool": "10.8.0.0/16", "SubPool": "10.8.1.0/24", "Options": {}, "V6": False}
MODES = ("bridge", "host", "none", "macvlan", "overlay", "ipam", "x")


class Docker:
    """Calls the plugin on a loop of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.plugin = self.do(Plugin.start())

    def close(self) -> None:
        self.do(self.plugin.close())
        self.loop.close()

    def do(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def call(self, path: str, body: Any) -> Answer:
        before = self.do(self.plugin.state())
        answer: Answer = self.do(self.plugin.call(path, body))
        assert answer.status in {200, 500}, answer  # Docker's plugins have no other
        if answer.status != 200:
            words = answer.body["Err"]
            assert not INTERNAL.search(words), answer
            assert words.isprintable(), answer
            assert self.do(self.plugin.state()) == before
        readable(self.plugin.engine)
        return answer

    def clear(self) -> None:
        """Delete all as dockerd does."""
        records = self.plugin.engine.registry
        for record in records.endpoints():
            ref = {"NetworkID": record.endpoint.network, "EndpointID": record.endpoint.id}
            self.do(self.plugin.ok("/NetworkDriver.DeleteEndpoint", ref))
        for net in records.networks():
            self.do(self.plugin.ok("/NetworkDriver.DeleteNetwork", {"NetworkID": net.network.id}))
        allocator = self.plugin.engine.allocator
        for pool in allocator.pools():
            for _ in range(pool.holds):
                self.do(self.plugin.ok("/IpamDriver.ReleasePool", {"PoolID": pool.id}))
        assert not allocator.pools()
        assert [line for line in self.plugin.kernel.dump().splitlines() if not line.startswith("sysctl ")] == []


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    with quiet_log():
        it = Docker()
        yield it
        it.close()


@often(40)
@given(mutated(CREATE))
def test_network(docker: Docker, body: Any) -> None:
    docker.call("/NetworkDriver.CreateNetwork", body)
    docker.clear()


@often(50)
@given(st.sampled_from(sorted(CREATE["Options"][GENERIC])), VALUES, st.sampled_from(MODES))  # type: ignore[call-overload,index]
def test_option(docker: Docker, name: str, value: Any, mode: str) -> None:
    text = value if isinstance(value, str) else json.dumps(value)[:300]
    options = {"mode": mode, name: text}
    docker.call("/NetworkDriver.CreateNetwork", {**CREATE, "Options": {GENERIC: options}})
    docker.clear()


@pytest.mark.parametrize("text", TEXTS)
def test_zone_of_a_resolver(docker: Docker, text: str) -> None:
    """It is the name of a link (RFC 4007 11.2): letters, digits and dots may be one, and of the rest here nothing."""
    good = (
        1 <= len(text.encode(errors="replace")) <= 15
        and text.replace(".", "").isalnum()
        and text not in {"all", "default"}
    )
    options = {"mode": "bridge", "dns_upstream": f"fe80::1%{text}"}
    answer = docker.call("/NetworkDriver.CreateNetwork", {**CREATE, "Options": {GENERIC: options}})
    assert (answer.status == 200) == good, (text, answer)
    docker.clear()


@often(40)
@given(mutated(ENDPOINT), mutated(JOIN), st.booleans())
def test_endpoint(docker: Docker, body: Any, join: Any, ordinary: bool) -> None:
    docker.do(docker.plugin.ok("/NetworkDriver.CreateNetwork", CREATE))
    if docker.call("/NetworkDriver.CreateEndpoint", ENDPOINT if ordinary else body).status == 200:
        docker.call("/NetworkDriver.Join", join if ordinary else JOIN)
    docker.clear()


@often(25)
@given(mutated(POOL), st.sampled_from(NETWORKS))
def test_pool(docker: Docker, body: Any, cidr: str) -> None:
    for asked in (body, {**POOL, "Pool": cidr, "SubPool": ""}):
        answer = docker.call("/IpamDriver.RequestPool", asked)
        if answer.status == 200:
            docker.call("/IpamDriver.RequestAddress", {"PoolID": answer.body["PoolID"], "Address": cidr, "Options": {}})
            for lease in docker.plugin.engine.allocator.leases(answer.body["PoolID"]):
                ref = {"PoolID": lease.pool, "Address": str(lease.address)}
                docker.do(docker.plugin.ok("/IpamDriver.ReleaseAddress", ref))
        docker.clear()


def test_ordinary_requests_are_done(docker: Docker) -> None:
    docker.do(docker.plugin.ok("/NetworkDriver.CreateNetwork", CREATE))
    docker.do(docker.plugin.ok("/NetworkDriver.CreateEndpoint", ENDPOINT))
    docker.do(docker.plugin.ok("/NetworkDriver.Join", JOIN))
    docker.clear()
    docker.do(docker.plugin.ok("/IpamDriver.RequestPool", POOL))
    docker.clear()
