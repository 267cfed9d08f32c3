"""What a CNI configuration asks for: netplug's keys, the reference plugins', in any case, and what is refused."""

import json
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from built_in_drivers import DRIVERS, parse_endpoint

from netplug.drivers.api import Network, StaticRoute, Subnet
from netplug.drivers.errors import DriverError
from netplug.drivers.options import EndpointOptions
from netplug.drivers.steps import Proto
from netplug.frontends.cni.config import Wanted, translate
from netplug.frontends.cni.wire import Call, CniError, Reply, read

ENV = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": "eth0"}


def wanted(cni_args: str = "", /, **config: Any) -> Wanted:
    text = json.dumps({"cniVersion": "1.0.0", "name": "blue", "type": "pynet"} | config).encode()
    return translate(read(Call("pynet", ENV | {"CNI_ARGS": cni_args}, text)), DRIVERS)


def refused(**config: Any) -> tuple[int, str]:
    with pytest.raises(CniError) as caught:
        wanted(**config)
    return int(caught.value.code), str(caught.value)


OPTIONS: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({}, {}),
    ({"mtu": 1400, "ICC": False}, {"mtu": "1400", "icc": "false"}),
    ({"mtu": 0, "bridge": ""}, {}),
    ({"com.docker.network.bridge.name": "b0"}, {"bridge": "b0"}),
    ({"ipMasq": False}, {"masquerade": "false"}),
    ({"ipmasq": True, "ipMasqBackend": "nftables"}, {"masquerade": "true"}),
    ({"ipMasq": True, "masquerade": False}, {"masquerade": "false"}),
    ({"portIsolation": True}, {"icc": "false"}),
    ({"gw_priority": -5, "isDefaultGateway": True}, {"gw_priority": "-5"}),
    ({"gw_priority": "5", "isGateway": True, "routes": [{"dst": "0.0.0.0/0"}]}, {"gw_priority": "5"}),
    ({"metric": 50}, {"metric": "50"}),
    ({"mode": "bridge"}, {"mode": "bridge"}),
    ({"mode": "macvlan"}, {"mode": "macvlan"}),
    ({"master": "up0"}, {"mode": "macvlan", "parent": "up0"}),
    ({"master": "up0", "mode": "bridge"}, {"mode": "macvlan", "parent": "up0", "macvlan_mode": "bridge"}),
    ({"mode": "vepa"}, {"mode": "macvlan", "macvlan_mode": "vepa"}),
    ({"hairpinMode": True, "forceAddress": True, "preserveDefaultVlan": False}, {}),
    ({"cni.dev/attachments": [], "cni.dev/x": 1, "args": {"podman": {}}}, {}),
]


@pytest.mark.parametrize(("config", "options"), OPTIONS, ids=lambda it: str(it)[:50])
def test_keys_become_options(config: dict[str, Any], options: dict[str, str]) -> None:
    assert wanted(**config).network.options == options


@pytest.mark.parametrize(
    "config",
    [
        {"registryPassword": "s3cr3t"},
        {"apiKey": ["s3cr3t"]},
        {"ipam": {"type": "netplug-ipam", "token": "s3cr3t"}},
        {"runtimeConfig": {"credentials": {"a": "s3cr3t"}}},
        {"routes": [{"dst": "10.0.0.0/8", "token": "s3cr3t"}]},
    ],
)
def test_value_of_what_is_named_a_secret_is_not_shown(config: dict[str, Any]) -> None:
    code, words = refused(**config)
    assert code == 2
    assert "***" in words
    assert "s3cr3t" not in words


def test_args_for_other_plugins_of_the_list_are_left_to_them() -> None:
    cni = {"ips": ["10.1.0.7"], "sysctl": {"net.core.somaxconn": "500"}, "promisc": True}
    assert list(map(str, wanted(args={"cni": cni}).addresses)) == ["10.1.0.7"]


UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"colour": "red"}, "colour='red'"),
    ({"vlan": 5}, "vlan=5"),
    ({"vlanTrunk": [{"id": 5}]}, "vlanTrunk"),
    ({"linkInContainer": True}, "linkInContainer=true"),
    ({"ipam": {"type": "netplug-ipam", "colour": 1}}, "ipam.colour=1"),
    ({"routes": [{"dst": "10.0.0.0/8", "priority": 7}]}, "routes.0.priority=7"),
    ({"runtimeConfig": {"deviceID": "0000:00:1f.6"}}, "runtimeConfig.deviceID"),
    ({"ipam": {"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "10.1.0.0/24"}]]}}, "two ranges of 10.1.0.0/24"),
]
INVALID: list[tuple[dict[str, Any], str]] = [
    ({"mtu": [1]}, "mtu"),
    ({"isGateway": 7}, "isGateway=7"),
    ({"isDefaultGateway": True, "ipam": {"type": "dhcp"}}, "isDefaultGateway=true: not with ipam.type=dhcp"),
    ({"ipam": {"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]]}}, "both families"),
    ({"ipam": {"subnet": "10.1.0.0/24", "gateway": "10.2.0.1"}}, "10.2.0.1"),
    ({"ipam": {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.8"}}, "10.1.0.9"),
    ({"runtimeConfig": {"aliases": ["a b"]}}, "a b"),
    ({"runtimeConfig": {"mac": "01:00:00:00:00:00"}}, "01:00:00:00:00:00"),
    ({"runtimeConfig": {"portMappings": [{"hostPort": 70000, "containerPort": 1}]}}, "hostPort=70000"),
    ({"runtimeConfig": {"portMappings": [{"hostPort": 7, "containerPort": 1, "protocol": "icmp"}]}}, "protocol"),
    ({"master": "up0", "mode": "overlay"}, "overlay"),
    ({"ipam": {"resolvConf": "/nowhere/resolv.conf"}}, "/nowhere/resolv.conf"),
]


@pytest.mark.parametrize(("config", "words"), UNSUPPORTED, ids=lambda it: str(it)[:50])
def test_what_we_do_not_do_is_refused_with_key_and_value(config: dict[str, Any], words: str) -> None:
    code, text = refused(**config)
    assert (code, words in text) == (2, True), text


@pytest.mark.parametrize(("config", "words"), INVALID, ids=lambda it: str(it)[:50])
def test_what_nobody_could_do_is_refused(config: dict[str, Any], words: str) -> None:
    code, text = refused(**config)
    assert (code, words in text) == (7, True), text


def test_bandwidth_without_a_limit_is_none() -> None:
    assert wanted(runtimeConfig={"bandwidth": {"ingressRate": 0, "ingressBurst": 0}}).limits == {}


def test_bandwidth_is_a_rate_each_way_and_a_burst_in_bytes() -> None:
    asked = {"ingressRate": 8_000_000, "ingressBurst": 800_000, "EgressRate": 1_000_000}
    limits = wanted(runtimeConfig={"BANDWIDTH": asked}).limits
    assert limits == {"rate": "8000000/1000000", "burst": "100000/0"}
    assert parse_endpoint(limits, "bridge") == EndpointOptions((8_000_000, 1_000_000), (100_000, 0))
    assert wanted(runtimeConfig={"bandwidth": {"egressRate": 1_000_000}}).limits == {"rate": "0/1000000"}


@pytest.mark.parametrize(
    "config",
    [
        {"runtimeConfig": {"gw_priority": 7}},
        {"args": {"cni": {"gw_priority": "7"}}},
        {"args": {"cni": {"gw_priority": 8}}, "runtimeConfig": {"GW_PRIORITY": "7"}, "gw_priority": 1},
    ],
    ids=str,
)
def test_runtime_ranks_the_networks_of_one_container(config: dict[str, Any]) -> None:
    assert wanted(**config).limits == {"gw_priority": "7"}


@pytest.mark.parametrize(
    "config",
    [
        {"gw_priority": 1, "isGateway": True},
        {"args": {"cni": {"gw_priority": 1}}, "isDefaultGateway": False},
        {"metric": 1, "routes": [{"dst": "10.0.0.0/8"}]},
    ],
    ids=str,
)
def test_priority_of_a_default_route_that_there_is_not_is_refused(config: dict[str, Any]) -> None:
    code, text = refused(**config)
    assert (code, "=1: this configuration gives its containers no default route" in text) == (7, True), text


@pytest.mark.parametrize("value", ["high", 1.5, [1], True])
def test_priority_of_a_container_that_is_no_number_is_refused(value: object) -> None:
    with pytest.raises((CniError, DriverError), match="gw_priority"):
        wanted(runtimeConfig={"gw_priority": value})


def test_mac_is_pinned_if_wanted() -> None:
    assert wanted(macspoofchk=True).pinned
    assert not wanted().pinned


def test_subnets_come_from_ranges_with_their_gateways_and_ends() -> None:
    ranges = [
        [{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10"}, {"Subnet": "10.2.0.0/24", "GATEWAY": "10.2.0.9"}],
        [{"subnet": "fd00::/64"}],
    ]
    found = wanted(ipam={"type": "netplug-ipam", "ranges": ranges})
    first, second, third = found.network.subnets
    assert (first.pool, first.gateway) == (ip_network("10.1.0.0/24"), ip_address("10.1.0.1"))
    assert first.ends == (ip_address("10.1.0.10"), ip_address("10.1.0.255"))
    assert (second.gateway, second.ends, third.v6) == (ip_address("10.2.0.9"), None, True)
    assert found.groups == (
        (ip_network("10.1.0.0/24"), ip_network("10.2.0.0/24")),
        (ip_network("fd00::/64"),),
    )


@pytest.mark.parametrize(
    ("config", "families"),
    [
        ({}, [False]),
        ({"ipv6": True}, [False, True]),
        ({"ipam": {}}, []),
        ({"ipam": {"type": "netplug-ipam"}}, [False]),
        ({"master": "up0"}, []),
        ({"mode": "none"}, []),
        ({"ipv6": True, "ipam": {"subnet": "10.1.0.0/24"}}, [False, True]),
    ],
    ids=str,
)
def test_subnets_that_nobody_names_are_chosen(config: dict[str, Any], families: list[bool]) -> None:
    assert [subnet.v6 for subnet in wanted(**config).network.subnets] == families


def test_ports_in_go_and_in_the_specifications_spelling_are_the_same() -> None:
    spec = wanted(runtimeConfig={"portMappings": [{"hostPort": 8, "containerPort": 9, "protocol": "udp"}]})
    go = wanted(runtimeConfig={"PortMappings": [{"HostPort": 8, "ContainerPort": 9, "Protocol": "UDP", "HostIP": ""}]})
    assert spec.ports == go.ports
    (port,) = spec.ports
    assert (port.proto, port.host_port, port.port, port.host_address) == (Proto.UDP, 8, 9, None)


def test_requested_addresses_add_up() -> None:
    found = wanted(
        "IP=10.1.0.5,10.1.0.6/24",
        args={"cni": {"ips": ["10.1.0.7/24"]}},
        runtimeConfig={"ips": ["fd00::1", "10.1.0.5"]},
    )
    assert list(map(str, found.addresses)) == ["10.1.0.5", "10.1.0.6", "10.1.0.7", "fd00::1"]


ROUTES: list[tuple[dict[str, Any], list[tuple[str, str | None]] | None]] = [
    ({}, None),
    ({"isDefaultGateway": True}, None),
    ({"isGateway": True}, []),
    (
        {"routes": [{"dst": "10.9.0.0/16"}], "isDefaultGateway": True},
        [("10.9.0.0/16", "10.1.0.1"), ("0.0.0.0/0", "10.1.0.1")],
    ),
    ({"ipam": {"routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.7"}]}}, [("0.0.0.0/0", "10.1.0.7")]),
    ({"ipam": {"routes": []}}, []),
    ({"routes": [{"dst": "fd00::/64"}]}, [("fd00::/64", None)]),
]


@pytest.mark.parametrize(("config", "routes"), ROUTES, ids=lambda it: str(it)[:50])
def test_routes(config: dict[str, Any], routes: list[tuple[str, str | None]] | None) -> None:
    net = Network("n", "blue", (Subnet(ip_network("10.1.0.0/24")),))
    found = wanted(**config).routes_in(net, {4: ip_address("10.1.0.1")})
    said = (
        None if routes is None else [StaticRoute(ip_network(dst), ip_address(gw) if gw else None) for dst, gw in routes]
    )
    assert (None if found is None else list(found)) == said


def test_frames_are_read_as_they_are_written() -> None:
    call = Call("pynet", {"CNI_COMMAND": "ADD", "CNI_ARGS": "A=b;C=d"}, b'{"a": "\xc3\xa4"}\n\0')
    assert Call.parse(call.render()) == call
    reply = Reply(1, '{"msg": "ä"}\n', "noise\n")
    assert Reply.parse(reply.render()) == reply
    assert Reply.parse(b"") is None


HEX = "3a5d5fd21a47" + "0" * 52


@pytest.mark.parametrize(
    ("cni_args", "labels", "names"),
    [
        ("K8S_POD_NAME=pod", {}, ("pod",)),
        ("NERDCTL_CNI_DHCP_HOSTNAME=web", {}, ("web",)),
        # What nerdctl says where nobody said more.
        ("IgnoreUnknown=1;NERDCTL_CNI_DHCP_HOSTNAME=3a5d5fd21a47", {}, ()),
        ("NERDCTL_CNI_DHCP_HOSTNAME=inner", {"nerdctl/name": "web", "nerdctl/namespace": "default"}, ("web", "inner")),
        ("", {"nerdctl/name": "web", "nerdctl/hostname": "inner"}, ("web", "inner")),
        ("NERDCTL_CNI_DHCP_HOSTNAME=not a name", {}, ()),
    ],
)
def test_what_a_runtime_says_is_what_a_container_is_called(
    cni_args: str, labels: dict[str, str], names: tuple[str, ...]
) -> None:
    args = {"cni": {"labels": [{"key": key, "value": value} for key, value in labels.items()]}}
    text = json.dumps({"cniVersion": "1.0.0", "name": "blue", "type": "pynet", "args": args}).encode()
    env = ENV | {"CNI_ARGS": cni_args, "CNI_CONTAINERID": f"default-{HEX}"}
    found = translate(read(Call("pynet", env, text)), DRIVERS)
    assert (*filter(None, (found.name,)), *found.aliases) == names


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"runtimeConfig": {"portMappings": [{"hostPort": "x", "containerPort": 1}]}}, "must be a whole number"),
        ({"runtimeConfig": {"portMappings": [{"hostPort": 70000, "containerPort": 1}]}}, "must be at most 65535"),
        ({"runtimeConfig": {"portMappings": [{"hostPort": 1}]}}, "portMappings.0.containerPort is missing"),
        ({"runtimeConfig": {"portMappings": {"a": 1}}}, "must be a list"),
        ({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 2, "protocol": "x"}]}}, "'tcp', 'udp'"),
        ({"runtimeConfig": []}, "must be an object"),
        ({"internal": "perhaps"}, "must be true or false"),
        ({"master": 7}, "must be text"),
    ],
    ids=str,
)
def test_errors_are_in_words_of_the_user(config: dict[str, Any], text: str) -> None:
    with pytest.raises(CniError) as caught:
        wanted(**config)
    assert text in str(caught.value)
    assert "nput" not in str(caught.value)
