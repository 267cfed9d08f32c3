"""CNI and netavark with hostile stdin and environment: refused in plain words and without a trace, or done."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from engine_host import Host
from hostile import INTERNAL, NETWORKS, VALUES, changed, mutated, often, raw_texts, readable
from hypothesis import given
from hypothesis import strategies as st
from quiet import quiet_log

from netplug.frontends.cni.result import parse
from netplug.frontends.cni.service import CniService
from netplug.frontends.cni.wire import Call, CniError, Reply

NETNS = "/run/netns/box"
CNI_ENV = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c",
    "CNI_NETNS": NETNS,
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=web;IP=10.1.0.9;MAC=02:00:00:00:00:09",
    "CNI_PATH": "/opt/cni/bin",
}
CNI = {
    "cniVersion": "1.1.0",
    "name": "blue",
    "type": "pynet",
    "mtu": 1400,
    "bridge": "br-blue",
    "ipMasq": True,
    "capabilities": {"portMappings": True},
    "ipam": {
        "type": "netplug-ipam",
        "ranges": [
            [{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.5", "rangeEnd": "10.1.0.99", "gateway": "10.1.0.1"}]
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.0.7"}],
    },
    "dns": {"nameservers": ["10.1.0.1"], "domain": "x.example", "search": ["y.example"], "options": ["ndots:2"]},
    "runtimeConfig": {
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}],
        "bandwidth": {"ingressRate": 1000000, "ingressBurst": 80000, "egressRate": 1000000, "egressBurst": 80000},
        "aliases": ["www"],
    },
    "args": {"cni": {"labels": [{"key": "nerdctl/name", "value": "web"}]}},
    "prevResult": {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth9", "mac": "02:00:00:00:00:01", "sandbox": NETNS}],
        "ips": [{"address": "10.8.0.2/24", "gateway": "10.8.0.1", "interface": 0}],
        "routes": [{"dst": "10.0.0.0/8", "gw": "10.8.0.1"}],
        "dns": {},
    },
    "cni.dev/valid-attachments": [{"containerID": "c", "ifname": "eth0"}],
}
NETAVARK_NETWORK = {
    "name": "blue",
    "id": "2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9",
    "driver": "pynet",
    "network_interface": "br-blue",
    "internal": False,
    "ipv6_enabled": False,
    "dns_enabled": True,
    "network_dns_servers": ["10.1.0.53"],
    "options": {"mtu": "1400", "isolate": "true", "no_default_route": "false"},
    "ipam_options": {"driver": "host-local"},
    "subnets": [
        {"subnet": "10.1.0.0/24", "gateway": "10.1.0.1", "lease_range": {"start_ip": "10.1.0.5", "end_ip": "10.1.0.99"}}
    ],
    "routes": [{"destination": "10.9.0.0/16", "gateway": "10.1.0.7"}],
}
NETAVARK = {
    "container_id": "c" * 64,
    "container_name": "web",
    "port_mappings": [{"container_port": 80, "host_port": 8080, "host_ip": "", "protocol": "tcp", "range": 1}],
    "network": NETAVARK_NETWORK,
    "network_options": {
        "interface_name": "eth0",
        "aliases": ["www"],
        "static_ips": ["10.1.0.9"],
        "static_mac": "02:00:00:00:00:09",
        "options": {"rate": "1mbit"},
    },
}
ENV_VALUES = VALUES.map(lambda it: it if isinstance(it, str) else json.dumps(it)).map(
    lambda text: text.replace("\0", "").encode(errors="replace").decode()
)


class Machine:
    """A host whose runtimes call, on a loop of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.host = self.loop.run_until_complete(Host.boot())
        self.dump = self.host.dump()

    def call(self, env: dict[str, str], stdin: bytes, name: str = "pynet") -> Reply:
        service = CniService(self.host.engine)
        # The daemon gets what the executable writes.
        call = Call.parse(Call(name, env, stdin).render(), 0)
        return self.loop.run_until_complete(asyncio.wait_for(service.answer(call), 20))

    def state(self) -> object:
        return self.loop.run_until_complete(self.host.state())

    def clear(self) -> None:
        """Delete all, and demand that nothing is left."""
        if self.host.networks():
            host, self.host = self.host, self.loop.run_until_complete(Host.boot())
            try:
                self.loop.run_until_complete(host.delete_all())
                assert (host.dump(), host.leases(), host.endpoints()) == (self.dump, [], [])
            finally:
                self.loop.run_until_complete(host.close())

    def judge(self, reply: Reply, before: object, *, key: str) -> None:
        """Demand one JSON object in plain words, and of a refusal no trace."""
        said = json.loads(reply.stdout) if reply.stdout else {}
        assert isinstance(said, dict)
        assert reply.code in {0, 1}
        assert bool(said.get(key)) == bool(reply.code), reply
        words = f"{said.get(key)} {said.get('details', '')}" if reply.code else ""
        assert not INTERNAL.search(words), reply
        assert "\x1b" not in words
        assert said.get("code") != 100, reply
        assert reply.stderr == ""
        readable(self.host.engine)
        if reply.code:
            assert self.state() == before


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with quiet_log():
        it = Machine()
        yield it
        it.loop.run_until_complete(it.host.close())
        it.loop.close()


def cni(machine: Machine, env: dict[str, str], stdin: bytes) -> None:
    """Call, and delete what was made."""
    before = machine.state()
    reply = machine.call(env, stdin)
    try:
        machine.judge(reply, before, key="msg")
        if not reply.code and env["CNI_COMMAND"] == "ADD":
            config = json.loads(stdin)
            config.pop("prevResult", None)  # a former life's: DEL takes nothing of the present one
            assert not machine.call({**env, "CNI_COMMAND": "DEL"}, json.dumps(config).encode()).code
            assert not machine.host.endpoints()
    finally:
        machine.clear()


@often(200)
@given(mutated(CNI))
def test_cni_configuration(machine: Machine, config: Any) -> None:
    cni(machine, CNI_ENV, json.dumps(config).encode())


@often(100)
@given(
    mutated({key: value for key, value in CNI.items() if key != "prevResult"}),
    st.sampled_from(["DEL", "CHECK", "GC", "STATUS", "VERSION"]),
)
def test_cni_configuration_of_other_commands(machine: Machine, config: Any, command: str) -> None:
    cni(machine, {**CNI_ENV, "CNI_COMMAND": command}, json.dumps(config).encode())


@often(200)
@given(
    st.dictionaries(st.sampled_from(sorted(CNI_ENV)), ENV_VALUES, min_size=1, max_size=2),
    st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS"]),
    st.sampled_from(["", "IP=", "MAC=", "K8S_POD_NAME=", "NERDCTL_CNI_DHCP_HOSTNAME=", "IgnoreUnknown=1;X="]),
)
def test_cni_environment(machine: Machine, env: dict[str, str], command: str, argument: str) -> None:
    given_env = {**CNI_ENV, "CNI_COMMAND": command, **env}
    if "CNI_ARGS" in env:
        given_env["CNI_ARGS"] = argument + env["CNI_ARGS"]
    cni(machine, given_env, json.dumps(CNI).encode())


@often(100)
@given(raw_texts(json.dumps(CNI).encode()), st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS", ""]))
def test_cni_stdin(machine: Machine, stdin: bytes, command: str) -> None:
    cni(machine, {**CNI_ENV, "CNI_COMMAND": command}, stdin)


def netavark(machine: Machine, command: str, stdin: bytes, netns: str = NETNS) -> None:
    before = machine.state()
    env = {"NETAVARK_COMMAND": command, "NETAVARK_NETNS": netns}
    reply = machine.call(env, stdin)
    try:
        machine.judge(reply, before, key="error")
        if not reply.code and command == "setup":
            assert not machine.call({**env, "NETAVARK_COMMAND": "teardown"}, stdin).code
            assert not machine.host.endpoints()
    finally:
        machine.clear()


@often(150)
@given(mutated(NETAVARK), st.sampled_from(["setup", "setup", "teardown", "update"]))
def test_netavark_request(machine: Machine, request_: Any, command: str) -> None:
    netavark(machine, command, json.dumps(request_).encode())


@often(100)
@given(mutated(NETAVARK_NETWORK))
def test_netavark_network(machine: Machine, network: Any) -> None:
    netavark(machine, "create", json.dumps(network).encode())


@often(100)
@given(
    raw_texts(json.dumps(NETAVARK).encode()), st.sampled_from(["create", "setup", "teardown", "info", ""]), ENV_VALUES
)
def test_netavark_stdin(machine: Machine, stdin: bytes, command: str, netns: str) -> None:
    netavark(machine, command or netns or "x", stdin, netns)


@pytest.mark.parametrize("cidr", [*NETWORKS, "0.0.0.0/1", "128.0.0.0/1", "2000::/3", "255.255.255.255/32"])
def test_absurd_subnet_is_refused_without_a_trace(machine: Machine, cidr: str) -> None:
    """Reserved ones too; the kernel would take most of them, and lose the host's own way to others."""
    before = machine.state()
    network = {**NETAVARK_NETWORK, "subnets": [{"subnet": cidr}], "routes": None}
    config = {"cniVersion": "1.1.0", "name": "blue", "type": "pynet", "ipam": {"type": "netplug-ipam", "subnet": cidr}}
    replies = [
        machine.call({"NETAVARK_COMMAND": "create"}, json.dumps(network).encode()),
        machine.call({**CNI_ENV, "CNI_ARGS": ""}, json.dumps(config).encode()),
    ]
    if cidr not in {"10.1.0.0/32", "10.1.0.0/31", "fd00::/127", "fd00::/128", "10.0.0.0/08"}:
        assert replies[0].code, replies
        assert "internal" not in replies[0].stdout
        assert replies[1].code, replies
    if replies[1].code:
        assert json.loads(replies[1].stdout)["code"] != 100
    machine.clear()
    assert machine.state() == before or not all(it.code for it in replies)


def test_ordinary_requests_are_done(machine: Machine) -> None:
    """Else all that is above would hold of a plugin that refuses everything."""
    reply = machine.call(CNI_ENV, json.dumps(CNI).encode())
    assert json.loads(reply.stdout)["ips"][1]["address"] == "10.1.0.9/24"
    machine.clear()
    assert "subnets" in machine.call({"NETAVARK_COMMAND": "create"}, json.dumps(NETAVARK_NETWORK).encode()).stdout
    machine.clear()
    env = {"NETAVARK_COMMAND": "setup", "NETAVARK_NETNS": NETNS}
    assert "10.1.0.9/24" in machine.call(env, json.dumps(NETAVARK).encode()).stdout
    machine.clear()


@pytest.mark.parametrize("value", [True, 7, 2**31, 1.5, [], {}])
@pytest.mark.parametrize(
    "path", [("ips", 0, "address"), ("ips", 0, "gateway"), ("routes", 0, "dst"), ("routes", 0, "gw")]
)
def test_number_is_no_address_of_a_result(path: tuple[Any, ...], value: Any) -> None:
    """Python's `ipaddress` takes it for one."""
    result = changed(CNI["prevResult"], path, value, "set")
    if not value and path[-1] in {"gateway", "gw"}:
        assert parse(result, "1.1.0")
        return
    with pytest.raises(CniError, match="cannot be read"):
        parse(result, "1.1.0")
