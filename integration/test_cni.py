"""The CNI plugin with the daemon: every command in every version of the specification, in real namespaces.

That nothing is left is asserted by the leak check of every test, see `conftest.py`.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from harness import (
    BIN_DIR,
    VERSIONS,
    Attached,
    CommandError,
    Host,
    Namespace,
    Netplug,
    PluginError,
    Runtime,
    SeenServer,
    Wire,
    cni_attached,
    cni_list,
    execute,
    namespace,
    tcp_ask,
    udp_ask,
    wait_until,
)

CAPABILITIES = dict.fromkeys(
    ("portMappings", "ips", "mac", "ipRanges", "dns", "aliases", "bandwidth", "cgroupPath"), True
)
PLUGIN: dict[str, Any] = {"type": "pynet", "capabilities": CAPABILITIES}
RANGES4 = [[{"subnet": "10.91.0.0/24"}]]
RANGES46 = [*RANGES4, [{"subnet": "fd00:91::/64"}]]
PARALLEL = 50


def ipam(ranges: Any, **more: Any) -> dict[str, Any]:
    return {"ipam": {"type": "netplug-ipam", "ranges": ranges} | more}


@pytest.fixture(scope="module", autouse=True)
def plugin(netplug: Netplug) -> str:
    """The executable's path, and its alias as an IPAM plugin."""
    netplug.cli("cni", "install", "--bin-dir", BIN_DIR, "--name", "netplug-ipam")
    return netplug.cli("cni", "install", "--bin-dir", BIN_DIR)


def refusal(it: Runtime, **options: Any) -> PluginError:
    """Return what a failing ADD answers; nothing is left of it, so that no DEL is needed."""
    with namespace(it.host) as netns, pytest.raises(PluginError) as caught:
        it.add(netns, **options)
    return caught.value


def links(netns: Namespace) -> list[str]:
    return sorted(link["ifname"] for link in json.loads(netns.exec("ip", "-j", "link")))


def addresses(netns: Namespace, ifname: str = "eth0") -> set[str]:
    found = json.loads(netns.exec("ip", "-j", "addr", "show", ifname))[0]["addr_info"]
    return {f"{it['local']}/{it['prefixlen']}" for it in found if it["scope"] == "global"}


def default_gateway(netns: Namespace, *family: str) -> str:
    words = netns.exec("ip", *family, "route", "show", "default").split()
    return words[2] if words else ""


# Every command in every version

ADDRESSING = {"v4": RANGES4, "v6": [[{"subnet": "fd00:91::/64"}]], "both": RANGES46}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("families", ADDRESSING)
def test_life_of_a_container(host: Host, netplug: Netplug, version: str, families: str) -> None:
    """ADD makes what it says in its version's words; CHECK agrees; DEL takes it away and may be said again."""
    with cni_list(host, netplug, PLUGIN | ipam(ADDRESSING[families]), version=version) as it:
        with cni_attached(it) as (netns, one):
            result = one.result
            assert result["cniVersion"] == version
            assert {ip.partition("/")[0] for ip in addresses(netns)} == set(one.addresses)
            wanted = {"v4": ["10.91.0.2"], "v6": ["fd00:91::2"], "both": ["10.91.0.2", "fd00:91::2"]}[families]
            assert one.addresses == wanted
            for address in one.addresses:
                gateway = "fd00:91::1" if ":" in address else "10.91.0.1"
                assert default_gateway(netns, "-6" if ":" in address else "-4") == gateway
                assert netns.pings(gateway)
            if version >= "0.3.0":
                assert_interfaces(host, netns, one, version)
            if version >= "0.4.0":
                it.check(one)
            if version >= "1.1.0":
                it.status()
        # `cni_attached` said DEL; once more, and with nothing left to go by.
        it.delete(one)
        it.delete(one, netns="", bare=True)
        assert netplug.json("ps", "--network", it.name) == []


def assert_interfaces(host: Host, netns: Namespace, one: Attached, version: str) -> None:
    bridge, outer, inner = one.result["interfaces"]
    assert (inner["name"], inner["sandbox"]) == ("eth0", one.netns)
    assert "sandbox" not in bridge | outer
    for link, place in ((bridge, host.output), (outer, host.output), (inner, netns.exec)):
        (found,) = json.loads(place("ip", "-j", "link", "show", link["name"]))
        assert link["mac"] == found["address"]
        assert link.get("mtu") == (found["mtu"] if version >= "1.1.0" else None)
    for ip in one.result["ips"]:
        assert ip["interface"] == 2
        assert ip.get("version") == (None if version >= "1.0.0" else "6" if ":" in ip["address"] else "4")


@pytest.mark.parametrize("version", VERSIONS)
def test_command_that_a_version_has_not(host: Host, netplug: Netplug, version: str) -> None:
    with cni_list(host, netplug, PLUGIN, version=version) as it:
        refused = {
            "0.4.0": [lambda: it.check(Attached("c", "/run/netns/x", "eth0", "", {}))],
            "1.1.0": [it.status, it.gc],
        }
        for since, commands in refused.items():
            for command in commands:
                if version < since:
                    with pytest.raises(PluginError, match="config version does not allow") as caught:
                        command()
                    assert caught.value.code == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_result_that_a_version_cannot_say(host: Host, netplug: Netplug, version: str) -> None:
    """Without an address, and with two of a family."""
    cases = {
        "no valid IP addresses": {"ipam": {}},
        "more than 1 address per family": ipam([*RANGES4, [{"subnet": "10.93.0.0/24"}]]),
    }
    for words, plugin in cases.items():
        with cni_list(host, netplug, PLUGIN | plugin, version=version) as it:
            if version < "0.3.0":
                assert words in refusal(it).text
            else:
                with cni_attached(it) as (netns, one):
                    assert len(addresses(netns)) == len(one.result.get("ips", ())) == (0 if "no" in words else 2)
                    assert links(netns) == ["eth0", "lo"]


@pytest.mark.parametrize("version", [*VERSIONS, "0.5.5"])
def test_version_needs_no_daemon_nor_known_version(host: Host, plugin: str, version: str) -> None:
    env = {"CNI_COMMAND": "VERSION", "NETPLUG_RUN_DIR": "/nowhere", "CNI_NETNS": "dummy", "CNI_PATH": "dummy"}
    answer = execute(host, plugin, json.dumps({"cniVersion": version}), env)
    assert answer == {"cniVersion": version, "supportedVersions": list(VERSIONS)}


def test_executable_tells_about_itself(host: Host, plugin: str) -> None:
    done = host.run([plugin])
    assert done.stdout == ""
    assert done.stderr.startswith("CNI pynet plugin v")
    assert VERSIONS[-1] in done.stderr.splitlines()[1]


# What is wrong with a call

ENVIRONMENTS = [
    ({"CNI_COMMAND": "FOO"}, 4, "CNI_COMMAND"),
    ({"CNI_CONTAINERID": ""}, 4, "CNI_CONTAINERID"),
    ({"CNI_CONTAINERID": "/x"}, 4, "CNI_CONTAINERID"),
    ({"CNI_NETNS": ""}, 4, "CNI_NETNS"),
    ({"CNI_NETNS": "/run/netns/none"}, 4, "/run/netns/none"),
    ({"CNI_NETNS": "/proc/1/ns/net"}, 8, "own network namespace"),
    ({"CNI_IFNAME": ""}, 4, "CNI_IFNAME"),
    ({"CNI_IFNAME": "a" * 16}, 4, "CNI_IFNAME"),
    ({"CNI_IFNAME": "a/b"}, 4, "CNI_IFNAME"),
    ({"CNI_ARGS": "FOO=bar"}, 4, "FOO"),
]
CONFIGS = [
    ("[]", 6, "not a JSON object"),
    ("{", 6, "not JSON"),
    ('{"cniVersion": "9.9.9", "name": "x"}', 1, "9.9.9"),
    ('{"cniVersion": "1.0.0"}', 7, "missing network name"),
    ('{"cniVersion": "1.0.0", "name": "a/b"}', 7, "a/b"),
    ('{"cniVersion": "1.0.0", "name": "x", "colour": "red"}', 2, "colour='red'"),
    ('{"cniVersion": "1.0.0", "name": "x", "mtu": "big"}', 7, "mtu='big'"),
    ('{"cniVersion": "1.0.0", "name": "x", "vlan": 100}', 2, "vlan=100"),
    ('{"cniVersion": "1.0.0", "name": "x", "isGateway": "perhaps"}', 7, "isGateway"),
    ('{"cniVersion": "1.0.0", "name": "x", "hairpinMode": true, "promiscMode": true}', 7, "hairpin"),
    ('{"cniVersion": "1.0.0", "name": "x", "ipam": {"ranges": [[{"subnet": "10.1.0.1/24"}]]}}', 7, "10.1.0.1/24"),
    ('{"cniVersion": "1.0.0", "name": "x", "ipam": {"subnet": "10.1.0.0/31"}}', 7, "too small"),
    (
        '{"cniVersion": "1.0.0", "name": "x", "ipam": {"subnet": "10.1.0.0/24", "rangeStart": "10.2.0.1"}}',
        7,
        "10.2.0.1",
    ),
    ('{"cniVersion": "1.0.0", "name": "x", "ipam": {"type": "nobody"}}', 7, "nobody"),
    ('{"cniVersion": "1.0.0", "name": "x", "runtimeConfig": {"portMappings": [{"hostPort": 0}]}}', 7, "hostPort"),
    ('{"cniVersion": "1.0.0", "name": "x", "runtimeConfig": {"bandwidth": {"ingressRate": 8}}}', 2, "ingressRate=8"),
    ('{"cniVersion": "1.0.0", "name": "x", "runtimeConfig": {"ips": ["10.1.0"]}}', 7, "10.1.0"),
]
NAMED = [env for env in ENVIRONMENTS if env[0].get("CNI_NETNS", "") != "/proc/1/ns/net"]


@pytest.mark.parametrize(("wrong", "code", "words"), ENVIRONMENTS, ids=lambda it: str(it)[:40])
def test_wrong_environment_is_refused_by_name(
    host: Host, plugin: str, wrong: dict[str, str], code: int, words: str
) -> None:
    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": "eth0"} | wrong
    with pytest.raises(PluginError) as caught:
        execute(host, plugin, '{"cniVersion": "1.0.0", "name": "x"}', env)
    assert (caught.value.code, words in caught.value.text) == (code, True), caught.value


@pytest.mark.parametrize(("config", "code", "words"), CONFIGS, ids=lambda it: str(it)[:60])
def test_wrong_configuration_is_refused_by_name(host: Host, plugin: str, config: str, code: int, words: str) -> None:
    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": "eth0"}
    with pytest.raises(PluginError) as caught:
        execute(host, plugin, config, env)
    assert (caught.value.code, words in caught.value.text) == (code, True), caught.value


# Networks


def test_network_of_a_conflist_is_listed_and_can_be_removed(host: Host, netplug: Netplug) -> None:
    with cni_list(host, netplug, PLUGIN | ipam(RANGES4)) as it:
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
    wrong = Runtime(host, PLUGIN | {"mtu": 1400} | ipam([[{"subnet": "10.94.0.0/24"}]]), name=name)
    assert "mtu" in refusal(wrong).text
    if maker == "docker":
        dockerd.docker("network", "rm", name)
    else:
        netplug.cli("network", "rm", name)


def test_changed_configuration_waits_for_the_containers(host: Host, netplug: Netplug) -> None:
    with cni_list(host, netplug, PLUGIN | ipam(RANGES4)) as it:
        with cni_attached(it):
            it.plugins = (PLUGIN | ipam([[{"subnet": "10.95.0.0/24"}]]),)
            refused = refusal(it)
            assert (refused.code, "10.91.0.0/24" in refused.text) == (7, True)
        with cni_attached(it) as (_, one):
            assert one.ip == "10.95.0.2"


def test_failed_add_leaves_neither_endpoint_nor_network(host: Host, netplug: Netplug) -> None:
    with cni_list(host, netplug, PLUGIN | ipam(RANGES4)) as it, namespace(host) as netns:
        netns.exec("ip", "link", "add", "eth0", "type", "bridge")
        with pytest.raises(PluginError) as caught:
            it.add(netns)
        assert caught.value.code == 101
        assert it.name not in [net["name"] for net in netplug.json("network", "ls")]
        assert links(netns) == ["eth0", "lo"]


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
    with cni_list(host, netplug, PLUGIN | ipam(RANGES4) | keys) as it, cni_attached(it) as (netns, one):
        assert default_gateway(netns) == gateway
        told = [route["gw"] for route in one.result.get("routes", ()) if route["dst"] == "0.0.0.0/0"]
        assert told == [gateway] * bool(gateway)
        it.check(one)


def test_routes_of_ipam_are_set(host: Host, netplug: Netplug) -> None:
    routes = [{"dst": "10.200.0.0/16"}, {"DST": "10.201.0.0/16", "GW": "10.91.0.77"}]
    with cni_list(host, netplug, PLUGIN | ipam(RANGES4, routes=routes)) as it, cni_attached(it) as (netns, one):
        assert one.result["routes"] == [
            {"dst": "10.200.0.0/16", "gw": "10.91.0.1"},
            {"dst": "10.201.0.0/16", "gw": "10.91.0.77"},
        ]
        assert netns.exec("ip", "route", "show", "10.201.0.0/16").startswith("10.201.0.0/16 via 10.91.0.77")
        assert default_gateway(netns) == ""


@pytest.mark.parametrize("masquerade", [True, False])
def test_masquerade_as_said(host: Host, netplug: Netplug, client: Host, wire: Wire, *, masquerade: bool) -> None:
    plugin = PLUGIN | ipam(RANGES4) | {"ipMasq": masquerade}
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
    plugin = PLUGIN | ipam(RANGES46) | {"portIsolation": True}
    with cni_list(host, netplug, plugin) as it, cni_attached(it) as (one, _), cni_attached(it) as (_, other):
        assert not any(map(one.pings, other.addresses))
        assert one.pings("10.91.0.1")


def test_macvlan_conflist_works_after_changing_its_type(host: Host, netplug: Netplug, wire: Wire) -> None:
    plugin = PLUGIN | {"master": wire.left_link, "mode": "bridge", "mac": "02:00:00:00:00:07"}
    ranges = [[{"subnet": "203.0.113.0/24", "rangeStart": "203.0.113.130", "gateway": wire.right}]]
    with cni_list(host, netplug, plugin | ipam(ranges)) as it, cni_attached(it) as (netns, one):
        (link,) = one.result["interfaces"]
        assert (link["name"], link["mac"], one.ip) == ("eth0", "02:00:00:00:00:07", "203.0.113.130")
        assert "macvlan mode bridge" in netns.exec("ip", "-d", "link", "show", "eth0")
        assert netns.pings(wire.right)
        it.check(one)


def test_existing_bridge_is_used_and_stays(host: Host, netplug: Netplug) -> None:
    host.run(["sh", "-ec", "ip link add mine address 02:00:00:00:00:09 type bridge; ip link set mine up"])
    (before,) = json.loads(host.output("ip", "-j", "link", "show", "mine"))
    with cni_list(host, netplug, PLUGIN | ipam(RANGES4) | {"bridge": "mine"}) as it, cni_attached(it) as (netns, one):
        (bridge, *_) = one.result["interfaces"]
        assert (bridge["name"], bridge["mac"]) == ("mine", before["address"])
        assert netns.pings("10.91.0.1")
    (after,) = json.loads(host.output("ip", "-j", "link", "show", "mine"))
    assert (after["ifindex"], after["address"]) == (before["ifindex"], before["address"])
    host.run(["ip", "link", "del", "mine"])


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
            cni_list(host, netplug, PLUGIN | ipam(RANGES46) | config) as it,
            cni_attached(it, **options) as (netns, one),
        ):
            assert addresses(netns) == wanted
            assert json.loads(netns.exec("ip", "-j", "link", "show", "eth0"))[0]["address"] == mac
            assert one.result["interfaces"][2]["mac"] == mac


def test_requested_address_that_cannot_be_had_is_refused(host: Host, netplug: Netplug) -> None:
    with cni_list(host, netplug, PLUGIN | ipam(RANGES4)) as it, cni_attached(it) as (_, one):
        assert one.ip in refusal(it, args=f"IP={one.ip}").text
        assert "10.99.9.9" in refusal(it, args="IP=10.99.9.9").text
        assert "network address" in refusal(it, args="IP=10.91.0.0").text


def test_addresses_come_from_the_range_and_each_set_gives_one(host: Host, netplug: Netplug) -> None:
    ranges = [
        [{"subnet": "10.91.0.0/24", "rangeStart": "10.91.0.10", "rangeEnd": "10.91.0.11"}, {"subnet": "10.92.0.0/24"}],
        [{"subnet": "10.93.0.0/24", "gateway": "10.93.0.254"}],
    ]
    with cni_list(host, netplug, PLUGIN | ipam(ranges)) as it, ExitStack() as stack:
        found = [stack.enter_context(cni_attached(it))[1].addresses for _ in range(3)]
        assert found == [["10.91.0.10", "10.93.0.1"], ["10.91.0.11", "10.93.0.2"], ["10.92.0.2", "10.93.0.3"]]


def test_ranges_of_the_runtime_come_first(host: Host, netplug: Netplug) -> None:
    with (
        cni_list(host, netplug, PLUGIN) as it,
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
    with cni_list(host, netplug, PLUGIN | ipam(RANGES46)) as it:
        with cni_attached(it, runtime={"portMappings": ports}) as (netns, one), SeenServer(netns, proto.lower(), 80):
            assert ask(client, wire.left, 8080) == wire.right
            assert ask(host, "127.0.0.1", 8080)
            assert ask(netns, wire.left, 8080)
            it.check(one)
        with cni_attached(it, runtime={"portMappings": ports}) as (netns, _), SeenServer(netns, proto.lower(), 80):
            assert ask(client, wire.left, 8080) == wire.right


def test_names_and_aliases_are_remembered_in_both_forms(host: Host, netplug: Netplug) -> None:
    with cni_list(host, netplug, PLUGIN | ipam(RANGES4)) as it:
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
    plain = PLUGIN | ipam(RANGES4, resolvConf="/run/resolv.test")
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
        cni_list(host, netplug, PLUGIN | ipam(RANGES4)) as it,
        cni_list(host, netplug, PLUGIN | ipam([[{"subnet": "10.98.0.0/24"}]])) as other,
        namespace(host) as netns,
    ):
        first = it.add(netns, container="one")
        second = it.add(netns, container="one", ifname="eth1")
        third = other.add(netns, container="one", ifname="eth2")
        assert links(netns) == ["eth0", "eth1", "eth2", "lo"]
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
    with cni_list(host, netplug, PLUGIN | ipam(RANGES46)) as it, ExitStack() as stack, ThreadPoolExecutor(16) as pool:
        places = [stack.enter_context(namespace(host)) for _ in range(PARALLEL)]
        made = list(pool.map(it.add, places))
        assert len({address for one in made for address in one.addresses}) == 2 * PARALLEL
        assert places[0].pings(made[-1].addresses[0])
        assert not netplug.drift()
        list(pool.map(it.delete, made))
        assert netplug.json("ps", "--network", it.name) == []


# CHECK, GC, STATUS


def test_check_finds_what_is_missing(host: Host, netplug: Netplug) -> None:
    breakages = {
        "address": ["ip", "addr", "flush", "dev", "eth0"],
        "route": ["ip", "route", "del", "default"],
        "link": ["ip", "link", "del", "eth0"],
    }
    with cni_list(host, netplug, PLUGIN | ipam(RANGES4), version="0.4.0") as it:
        for what, command in breakages.items():
            with cni_attached(it) as (netns, one):
                it.check(one)
                netns.exec(*command)
                with pytest.raises(PluginError) as caught:
                    it.check(one)
                assert (caught.value.code, f"{what}/" in caught.value.text) == (104, True), caught.value
        with cni_attached(it) as (_, one):
            it.delete(one)
            with pytest.raises(PluginError) as caught:
                it.check(one)
            assert caught.value.code == 103


def test_check_wants_the_previous_result(host: Host, netplug: Netplug) -> None:
    with cni_list(host, netplug, PLUGIN | ipam(RANGES4)) as it, cni_attached(it) as (_, one):
        it.check(one)
        one.result = {}
        with pytest.raises(PluginError, match="prevResult"):
            it.check(one)


def test_gc_frees_what_the_runtime_forgot(host: Host, netplug: Netplug) -> None:
    """Half of them; one whose namespace is gone; and with the last the network itself."""
    with cni_list(host, netplug, PLUGIN | ipam(RANGES46), version="1.1.0") as it, ExitStack() as stack:
        places = [stack.enter_context(namespace(host)) for _ in range(6)]
        ports = [{"runtime": {"portMappings": [{"hostPort": 9000 + n, "containerPort": 80}]}} for n in range(6)]
        made = [it.add(place, **port) for place, port in zip(places, ports, strict=True)]
        places[0].remove()
        it.gc(*made[3:])
        assert {end["container"] for end in netplug.json("ps", "--network", it.name)} == {x.container for x in made[3:]}
        assert all(links(place) == ["eth0", "lo"] for place in places[3:])
        wait_until(lambda: links(places[1]) == ["lo"], what="its link to go")
        it.gc()
        assert it.name not in [net["name"] for net in netplug.json("network", "ls")]
        it.gc()


def test_gc_without_a_list_is_refused(host: Host, plugin: str) -> None:
    env = {"CNI_COMMAND": "GC", "CNI_PATH": BIN_DIR}
    with pytest.raises(PluginError, match="valid-attachments"):
        execute(host, plugin, '{"cniVersion": "1.1.0", "name": "x", "type": "pynet"}', env)


def test_status_tells_of_a_full_range_and_a_damaged_network(host: Host, netplug: Netplug) -> None:
    with cni_list(host, netplug, PLUGIN | ipam([[{"subnet": "10.91.0.0/30"}]]), version="1.1.0") as it:
        it.status()
        with cni_attached(it):
            with pytest.raises(PluginError, match="no IPv4 address is free") as caught:
                it.status()
            assert caught.value.code == 50
            assert refusal(it).code == 11
        it.status()
        (bridge,) = [net for net in netplug.json("network", "ls") if net["name"] == it.name]
        host.run(["ip", "link", "del", f"np-{bridge['id'][:12]}"])
        with pytest.raises(PluginError) as caught:
            it.status()
        assert caught.value.code == 51
        wait_until(lambda: not netplug.drift(), 20, "the bridge to be mended")
        it.status()


def test_status_tells_of_a_network_that_cannot_be_made(host: Host, netplug: Netplug) -> None:
    with cni_list(host, netplug, PLUGIN | {"master": "nowhere0"} | ipam(RANGES4), version="1.1.0") as it:
        with pytest.raises(PluginError, match="nowhere0") as caught:
            it.status()
        assert caught.value.code == 50
