"""Networks of CNI configurations, and the reference plugins' keys: what comes of them in the kernel."""

import json
from typing import Any

import pytest
from harness import (
    BIN_DIR,
    PYNET,
    RANGES4,
    RANGES46,
    CommandError,
    Host,
    Netplug,
    PluginError,
    Runtime,
    SeenServer,
    Wire,
    cni_attached,
    cni_list,
    cni_refusal,
    default_gateway,
    links_of,
    namespace,
    own_ipam,
    tcp_ask,
    wait_until,
)


@pytest.fixture(scope="module", autouse=True)
def plugin(netplug: Netplug) -> str:
    """The executable's path."""
    return netplug.cli("cni", "install", "--bin-dir", BIN_DIR)


# Networks


def test_network_of_a_conflist_is_listed_and_can_be_removed(host: Host, netplug: Netplug) -> None:
    with cni_list(host, netplug, PYNET | own_ipam(RANGES4)) as it:
        with cni_attached(it) as (_, one):
            (shown,) = [net for net in netplug.json("network", "ls") if net["name"] == it.name]
            assert (shown["front_end"], shown["mode"], shown["endpoint_count"]) == ("cni", "bridge", 1)
            (end,) = netplug.json("ps", "--network", it.name)
            assert (end["container"], end["sandbox"], end["interface"]) == (one.container, one.netns, "eth0")
            with pytest.raises(CommandError, match="has an endpoint"):
                netplug.cli("network", "rm", it.name)
            assert not netplug.drift()
        netplug.cli("network", "rm", it.name)


@pytest.mark.parametrize("maker", ["docker", "netplug"])
def test_conflist_joins_a_network_that_others_made(host: Host, netplug: Netplug, dockerd: Any, maker: str) -> None:
    """One segment, one pool: and what the list says of the network must be so."""
    name = f"shared-{maker}"
    if maker == "docker":
        dockerd.docker("network", "create", "-d", "pynet", "--subnet", "10.94.0.0/24", name)
    else:
        netplug.cli("network", "create", name, "--subnet", "10.94.0.0/24")
    wait_until(lambda: name in [net["name"] for net in netplug.json("network", "ls")], what="Docker's name for it")
    listed = json.loads(netplug.cli("cni", "config", name))
    it = Runtime(host, *listed["plugins"], name=listed["name"], version=listed["cniVersion"])
    with namespace(host) as other:
        plugged = other.attach(netplug, name)["addresses"][0].partition("/")[0]
        with cni_attached(it) as (netns, one):
            assert one.ip != plugged
            assert netns.pings(plugged)
            assert other.pings(one.ip)
            if maker == "docker":
                box = dockerd.run("--network", name, command=("sleep", "3600"))
                assert netns.pings(box.ip())
                box.remove()
        other.detach(netplug, name)
    wrong = Runtime(host, PYNET | {"mtu": 1400} | own_ipam([[{"subnet": "10.94.0.0/24"}]]), name=name)
    assert "mtu" in cni_refusal(wrong).text
    if maker == "docker":
        dockerd.docker("network", "rm", name)
    else:
        netplug.cli("network", "rm", name)


def test_changed_configuration_waits_for_the_containers(host: Host, netplug: Netplug) -> None:
    with cni_list(host, netplug, PYNET | own_ipam(RANGES4)) as it:
        with cni_attached(it):
            it.plugins = (PYNET | own_ipam([[{"subnet": "10.95.0.0/24"}]]),)
            refused = cni_refusal(it)
            assert (refused.code, "10.91.0.0/24" in refused.text) == (7, True)
        with cni_attached(it) as (_, one):
            assert one.ip == "10.95.0.2"


def test_failed_add_leaves_neither_endpoint_nor_network(host: Host, netplug: Netplug) -> None:
    with cni_list(host, netplug, PYNET | own_ipam(RANGES4)) as it, namespace(host) as netns:
        netns.exec("ip", "link", "add", "eth0", "type", "bridge")
        with pytest.raises(PluginError) as caught:
            it.add(netns)
        assert caught.value.code == 101
        assert it.name not in [net["name"] for net in netplug.json("network", "ls")]
        assert links_of(netns) == ["eth0", "lo"]


# The reference plugins' keys


def test_bridge_conflist_works_after_changing_its_type(host: Host, netplug: Netplug) -> None:
    """As podman writes it; host-local stays the IPAM plugin that it names."""
    bridge = {
        "type": "pynet",
        "bridge": "cni-podman9",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "mtu": 1400,
        "ipam": {
            "type": "host-local",
            "dataDir": "/run/host-local",
            "routes": [{"dst": "0.0.0.0/0"}],
            "ranges": [[{"subnet": "10.96.0.0/24", "gateway": "10.96.0.1"}]],
        },
        "capabilities": {"portMappings": True, "ips": True},
    }
    with cni_list(host, netplug, bridge) as it:
        with cni_attached(it, args="IgnoreUnknown=1;K8S_POD_NAME=web") as (netns, one):
            assert one.result["interfaces"][0]["name"] == "cni-podman9"
            assert one.ip == "10.96.0.2"
            assert default_gateway(netns) == "10.96.0.1"
            assert netns.pings("10.96.0.1")
            assert json.loads(netns.exec("ip", "-j", "link", "show", "eth0"))[0]["mtu"] == 1400
            assert netplug.json("ps", "--network", it.name)[0]["name"] == "web"
            it.check(one)
        assert host.output("ls", f"/run/host-local/{it.name}").split() == ["last_reserved_ip.0", "lock"]
    host.run(["rm", "-r", "/run/host-local"])


ROUTES = [
    ({}, "10.91.0.1"),
    ({"isGateway": True}, ""),
    ({"isGateway": False}, ""),
    ({"isDefaultGateway": True}, "10.91.0.1"),
    ({"isGateway": True, "isDefaultGateway": True}, "10.91.0.1"),
    ({"internal": True}, ""),
    ({"routes": [{"dst": "0.0.0.0/0", "gw": "10.91.0.9"}]}, "10.91.0.9"),
]


@pytest.mark.parametrize(("keys", "gateway"), ROUTES, ids=lambda it: str(it)[:50])
def test_default_route_is_what_the_keys_say(host: Host, netplug: Netplug, keys: dict[str, Any], gateway: str) -> None:
    with cni_list(host, netplug, PYNET | own_ipam(RANGES4) | keys) as it, cni_attached(it) as (netns, one):
        assert default_gateway(netns) == gateway
        told = [route["gw"] for route in one.result.get("routes", ()) if route["dst"] == "0.0.0.0/0"]
        assert told == [gateway] * bool(gateway)
        it.check(one)


def test_routes_of_ipam_are_set(host: Host, netplug: Netplug) -> None:
    routes = [{"dst": "10.200.0.0/16"}, {"DST": "10.201.0.0/16", "GW": "10.91.0.77"}]
    with cni_list(host, netplug, PYNET | own_ipam(RANGES4, routes=routes)) as it, cni_attached(it) as (netns, one):
        assert one.result["routes"] == [
            {"dst": "10.200.0.0/16", "gw": "10.91.0.1"},
            {"dst": "10.201.0.0/16", "gw": "10.91.0.77"},
        ]
        assert netns.exec("ip", "route", "show", "10.201.0.0/16").startswith("10.201.0.0/16 via 10.91.0.77")
        assert default_gateway(netns) == ""


@pytest.mark.parametrize("masquerade", [True, False])
def test_masquerade_as_said(host: Host, netplug: Netplug, client: Host, wire: Wire, *, masquerade: bool) -> None:
    plugin = PYNET | own_ipam(RANGES4) | {"ipMasq": masquerade}
    client.run(["ip", "route", "add", "10.91.0.0/24", "via", wire.left])
    try:
        with (
            cni_list(host, netplug, plugin) as it,
            cni_attached(it) as (netns, one),
            SeenServer(client, "tcp", 7000),
        ):
            assert tcp_ask(netns, wire.right, 7000) == (wire.left if masquerade else one.ip)
    finally:
        client.run(["ip", "route", "del", "10.91.0.0/24"])


def test_isolated_ports_do_not_hear_each_other(host: Host, netplug: Netplug) -> None:
    plugin = PYNET | own_ipam(RANGES46) | {"portIsolation": True}
    with cni_list(host, netplug, plugin) as it, cni_attached(it) as (one, _), cni_attached(it) as (_, other):
        assert not any(map(one.pings, other.addresses))
        assert one.pings("10.91.0.1")


def test_macvlan_conflist_works_after_changing_its_type(host: Host, netplug: Netplug, wire: Wire) -> None:
    plugin = PYNET | {"master": wire.left_link, "mode": "bridge", "mac": "02:00:00:00:00:07"}
    ranges = [[{"subnet": "203.0.113.0/24", "rangeStart": "203.0.113.130", "gateway": wire.right}]]
    with cni_list(host, netplug, plugin | own_ipam(ranges)) as it, cni_attached(it) as (netns, one):
        (link,) = one.result["interfaces"]
        assert (link["name"], link["mac"], one.ip) == ("eth0", "02:00:00:00:00:07", "203.0.113.130")
        assert "macvlan mode bridge" in netns.exec("ip", "-d", "link", "show", "eth0")
        assert netns.pings(wire.right)
        it.check(one)


def test_existing_bridge_is_used_and_stays(host: Host, netplug: Netplug) -> None:
    host.run(["sh", "-ec", "ip link add mine address 02:00:00:00:00:09 type bridge; ip link set mine up"])
    (before,) = json.loads(host.output("ip", "-j", "link", "show", "mine"))
    with (
        cni_list(host, netplug, PYNET | own_ipam(RANGES4) | {"bridge": "mine"}) as it,
        cni_attached(it) as (netns, one),
    ):
        (bridge, *_) = one.result["interfaces"]
        assert (bridge["name"], bridge["mac"]) == ("mine", before["address"])
        assert netns.pings("10.91.0.1")
    (after,) = json.loads(host.output("ip", "-j", "link", "show", "mine"))
    assert (after["ifindex"], after["address"]) == (before["ifindex"], before["address"])
    host.run(["ip", "link", "del", "mine"])
