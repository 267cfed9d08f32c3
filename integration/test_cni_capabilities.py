"""What runtimes ask for a container: addresses, MACs, ports, names; and many at once."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from harness import (
    BIN_DIR,
    PYNET,
    RANGES4,
    RANGES46,
    Host,
    Netplug,
    PluginError,
    SeenServer,
    Wire,
    addresses_of,
    cni_attached,
    cni_list,
    cni_refusal,
    default_gateway,
    faster,
    limited,
    links_of,
    namespace,
    own_ipam,
    tcp_ask,
    udp_ask,
)

PARALLEL = 50


@pytest.fixture(scope="module", autouse=True)
def plugin(netplug: Netplug) -> str:
    """The executable's path."""
    return netplug.cli("cni", "install", "--bin-dir", BIN_DIR)


# Addresses, ports, names


def test_requested_addresses_and_mac_come_from_each_place(host: Host, netplug: Netplug) -> None:
    """The later of CNI_ARGS, args and runtimeConfig has the last word on the MAC; addresses add up."""
    cases: list[tuple[dict[str, Any], dict[str, Any], str, set[str]]] = [
        ({}, {"args": "IP=10.91.0.50;MAC=02:00:00:00:00:01"}, "02:00:00:00:00:01", {"10.91.0.50/24", "fd00:91::2/64"}),
        (
            {"args": {"cni": {"ips": ["fd00:91::50"], "mac": "02:00:00:00:00:02"}, "podman_labels": {}}},
            {"args": "MAC=02:00:00:00:00:01"},
            "02:00:00:00:00:02",
            {"10.91.0.2/24", "fd00:91::50/64"},
        ),
        (
            {"args": {"cni": {"mac": "02:00:00:00:00:02"}}},
            {"runtime": {"ips": ["10.91.0.60/24", "fd00:91::60"], "mac": "02:00:00:00:00:03"}},
            "02:00:00:00:00:03",
            {"10.91.0.60/24", "fd00:91::60/64"},
        ),
    ]
    for config, options, mac, wanted in cases:
        with (
            cni_list(host, netplug, PYNET | own_ipam(RANGES46) | config) as it,
            cni_attached(it, **options) as (netns, one),
        ):
            assert addresses_of(netns) == wanted
            assert json.loads(netns.exec("ip", "-j", "link", "show", "eth0"))[0]["address"] == mac
            assert one.result["interfaces"][2]["mac"] == mac


def test_requested_address_that_cannot_be_had_is_refused(host: Host, netplug: Netplug) -> None:
    with cni_list(host, netplug, PYNET | own_ipam(RANGES4)) as it, cni_attached(it) as (_, one):
        assert one.ip in cni_refusal(it, args=f"IP={one.ip}").text
        assert "10.99.9.9" in cni_refusal(it, args="IP=10.99.9.9").text
        assert "network address" in cni_refusal(it, args="IP=10.91.0.0").text


def test_addresses_come_from_the_range_and_each_set_gives_one(host: Host, netplug: Netplug) -> None:
    ranges = [
        [{"subnet": "10.91.0.0/24", "rangeStart": "10.91.0.10", "rangeEnd": "10.91.0.11"}, {"subnet": "10.92.0.0/24"}],
        [{"subnet": "10.93.0.0/24", "gateway": "10.93.0.254"}],
    ]
    with cni_list(host, netplug, PYNET | own_ipam(ranges)) as it, ExitStack() as stack:
        found = [stack.enter_context(cni_attached(it))[1].addresses for _ in range(3)]
        assert found == [["10.91.0.10", "10.93.0.1"], ["10.91.0.11", "10.93.0.2"], ["10.92.0.2", "10.93.0.3"]]


def test_ranges_of_the_runtime_come_first(host: Host, netplug: Netplug) -> None:
    with (
        cni_list(host, netplug, PYNET) as it,
        cni_attached(it, runtime={"ipRanges": [[{"Subnet": "10.97.0.0/24"}]]}) as (_, one),
    ):
        assert one.ip == "10.97.0.2"


PORT_KEYS = [("hostPort", "containerPort", "protocol", "hostIP"), ("HostPort", "ContainerPort", "Protocol", "HostIP")]


@pytest.mark.parametrize("keys", PORT_KEYS, ids=["spec", "go"])
@pytest.mark.parametrize("proto", ["tcp", "UDP"])
def test_ports_are_published(
    host: Host, netplug: Netplug, client: Host, wire: Wire, keys: tuple[str, ...], proto: str
) -> None:
    ports = [dict(zip(keys, (8080, 80, proto, ""), strict=True))]
    ask = tcp_ask if proto == "tcp" else udp_ask
    with cni_list(host, netplug, PYNET | own_ipam(RANGES46)) as it:
        with cni_attached(it, runtime={"portMappings": ports}) as (netns, one), SeenServer(netns, proto.lower(), 80):
            assert ask(client, wire.left, 8080) == wire.right
            assert ask(host, "127.0.0.1", 8080)
            assert ask(netns, wire.left, 8080)
            it.check(one)
        with cni_attached(it, runtime={"portMappings": ports}) as (netns, _), SeenServer(netns, proto.lower(), 80):
            assert ask(client, wire.left, 8080) == wire.right


def test_one_container_is_limited_each_way(host: Host, netplug: Netplug) -> None:
    bandwidth = {"ingressRate": 16_000_000, "ingressBurst": 128_000, "egressRate": 4_000_000}
    with (
        cni_list(host, netplug, PYNET | own_ipam(RANGES4)) as network,
        cni_attached(network, runtime={"bandwidth": bandwidth}) as (slow, one),
        cni_attached(network) as (quick, _),
    ):
        assert limited(host, slow, one.ip, 2_000_000)
        assert limited(slow, host, "10.91.0.1", 500_000)
        assert faster(quick, host, "10.91.0.1", 20_000_000)
        network.check(one)


def test_names_and_aliases_are_remembered_in_both_forms(host: Host, netplug: Netplug) -> None:
    with cni_list(host, netplug, PYNET | own_ipam(RANGES4)) as it:
        for given in (["web", "www"], {it.name: ["web", "www"], "other": ["x"]}):
            options = {"args": "IgnoreUnknown=1;K8S_POD_NAME=pod1;X=y", "runtime": {"aliases": given}}
            with cni_attached(it, **options):
                (end,) = netplug.json("ps", "--network", it.name)
                assert (end["name"], end["aliases"]) == ("pod1", ["web", "www"])


def test_resolver_settings_are_the_runtimes_else_the_configurations_else_the_files(
    host: Host, netplug: Netplug
) -> None:
    host.path("/run/resolv.test").write_text("nameserver 192.0.2.53\nsearch a b\noptions ndots:2\n")
    configured = {"dns": {"nameservers": ["192.0.2.54"], "domain": "c"}}
    by_file = {"nameservers": ["192.0.2.53"], "search": ["a", "b"], "options": ["ndots:2"]}
    # The daemon reads it, so it is its file.
    plain = PYNET | own_ipam(RANGES4, resolvConf="/run/resolv.test")
    for plugin, options, wanted in (
        (plain, {}, by_file),
        (plain | configured, {}, configured["dns"]),
        (plain | configured, {"runtime": {"dns": {"Servers": ["192.0.2.55"]}}}, {"nameservers": ["192.0.2.55"]}),
    ):
        with cni_list(host, netplug, plugin) as it, cni_attached(it, **options) as (_, one):
            assert one.result["dns"] == wanted
    host.path("/run/resolv.test").unlink()


def test_container_on_two_networks_and_twice_on_one(host: Host, netplug: Netplug) -> None:
    with (
        cni_list(host, netplug, PYNET | own_ipam(RANGES4)) as it,
        cni_list(host, netplug, PYNET | own_ipam([[{"subnet": "10.98.0.0/24"}]])) as other,
        namespace(host) as netns,
    ):
        first = it.add(netns, container="one")
        second = it.add(netns, container="one", ifname="eth1")
        third = other.add(netns, container="one", ifname="eth2")
        assert links_of(netns) == ["eth0", "eth1", "eth2", "lo"]
        assert default_gateway(netns) == "10.91.0.1"
        it.delete(first)
        it.check(second)
        other.check(third)
        with pytest.raises(PluginError) as caught:
            it.add(netns, container="one", ifname="eth1")
        assert caught.value.code == 101
        it.delete(second)
        other.delete(third)


def test_fifty_at_once(host: Host, netplug: Netplug) -> None:
    with (
        cni_list(host, netplug, PYNET | own_ipam(RANGES46)) as it,
        ExitStack() as stack,
        ThreadPoolExecutor(16) as pool,
    ):
        places = [stack.enter_context(namespace(host)) for _ in range(PARALLEL)]
        made = list(pool.map(it.add, places))
        assert len({address for one in made for address in one.addresses}) == 2 * PARALLEL
        assert places[0].pings(made[-1].addresses[0])
        assert not netplug.drift()
        list(pool.map(it.delete, made))
        assert netplug.json("ps", "--network", it.name) == []
