"""The CNI plugin among others: before and after foreign plugins, with their IPAM, and as theirs.

The others are Debian's, of version 1.1.1, and so know the specification up to 1.0.0. What they leave behind (firewall
chains) is why each test has a host of its own.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import (
    BIN_DIR,
    FOREIGN_DIR,
    Host,
    Netplug,
    PluginError,
    Runtime,
    SeenServer,
    connect,
    default_gateway,
    execute,
    namespace,
    tcp_ask,
)

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0")
CHAINED = tuple(version for version in VERSIONS if version >= "0.4.0")
RANGES = {"ranges": [[{"subnet": "10.91.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}
PYNET = {"type": "pynet", "ipam": {"type": "netplug-ipam"} | RANGES}


@pytest.fixture
def own(new_host: Callable[..., Host]) -> Iterator[tuple[Host, Netplug]]:
    """A host with a daemon, where all plugins are installed."""
    host = new_host()
    netplug = Netplug(host, "--docker-host", "none")
    for name in ("pynet", "netplug-ipam"):
        netplug.cli("cni", "install", "--bin-dir", BIN_DIR, "--name", name)
    yield host, netplug
    assert netplug.json("ps") == []
    assert not netplug.drift()
    netplug.stop()


@pytest.mark.parametrize("version", VERSIONS)
def test_tuning_after_ours_is_let_be(own: tuple[Host, Netplug], version: str) -> None:
    """It changes the MAC and the MTU of our link; neither CHECK nor the mending minds."""
    host, netplug = own
    tuning = {
        "type": "tuning",
        "mac": "02:00:00:00:00:42",
        "mtu": 1300,
        "sysctl": {"net.ipv4.conf.all.arp_filter": "1"},
    }
    it = Runtime(host, PYNET, tuning, version=version)
    with namespace(host) as netns:
        one = it.add(netns)
        assert one.result["interfaces"][2]["mac"] == "02:00:00:00:00:42"
        assert one.ip == "10.91.0.2"
        if version >= "0.4.0":
            it.check(one)
        netplug.cli("repair")
        (link,) = json.loads(netns.exec("ip", "-j", "link", "show", "eth0"))
        assert (link["address"], link["mtu"]) == ("02:00:00:00:00:42", 1300)
        assert netns.pings("10.91.0.1")
        it.delete(one)


@pytest.mark.parametrize("pinned", [False, True])
def test_tuning_of_the_mac_silences_who_shall_keep_his(own: tuple[Host, Netplug], pinned: bool) -> None:
    host, _ = own
    it = Runtime(host, PYNET | {"macspoofchk": pinned}, {"type": "tuning", "mac": "02:00:00:00:00:42"})
    with namespace(host) as netns:
        one = it.add(netns)
        assert netns.pings("10.91.0.1") != pinned
        it.delete(one)


@pytest.mark.parametrize("version", CHAINED)
def test_portmap_and_firewall_after_ours(
    own: tuple[Host, Netplug], new_host: Callable[..., Host], version: str
) -> None:
    host, _ = own
    client = new_host("client")
    wire = connect(host, client)
    ports = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    it = Runtime(host, PYNET, portmap, {"type": "firewall", "backend": "iptables"}, version=version)
    with namespace(host) as netns:
        one = it.add(netns, runtime=ports)
        assert [link["name"] for link in one.result["interfaces"]][2] == "eth0"
        with SeenServer(netns, "tcp", 80):
            assert tcp_ask(client, wire.left, 8080) == wire.right
        assert "10.91.0.2:80" in host.output("iptables-save")
        it.delete(one)
        assert "10.91.0.2" not in host.output("iptables-save")


@pytest.mark.parametrize("called", ["0", "1"], ids=["routed", "bridged"])
def test_container_reaches_its_own_port_by_portmap(own: tuple[Host, Netplug], called: str) -> None:
    """With bridge-nf-call-iptables what is led back to it never leaves the bridge."""
    host, netplug = own
    host.run(["sysctl", "-qw", f"net.bridge.bridge-nf-call-iptables={called}"])
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    plugin = PYNET | {"hairpinMode": True, "capabilities": {}, "ipam": {"type": "netplug-ipam"} | RANGES}
    it = Runtime(host, plugin, portmap)
    with namespace(host) as netns, SeenServer(netns, "tcp", 80):
        one = it.add(netns, runtime={"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]})
        assert tcp_ask(netns, "10.91.0.1", 8080)
        assert not netplug.drift()
        it.delete(one)


def test_routes_that_sbr_moved_are_let_be(own: tuple[Host, Netplug]) -> None:
    """It moves them to a table of its own, by which the container answers."""
    host, netplug = own
    it = Runtime(host, PYNET, {"type": "sbr"})
    with namespace(host) as netns:
        one = it.add(netns)
        moved = netns.exec("ip", "route", "show", "table", "all")
        assert "default via 10.91.0.1 dev eth0 table 100" in moved
        assert netns.exec("ip", "route", "show", "default") == ""
        it.check(one)
        assert not netplug.drift()
        netns.exec("ip", "address", "add", "10.99.0.1/24", "dev", "eth0")
        netns.exec("ip", "address", "del", one.result["ips"][0]["address"], "dev", "eth0")
        netplug.cli("repair")  # of the address; the routes stay where they are
        assert netns.exec("ip", "route", "show", "default") == ""
        netns.exec("ip", "route", "flush", "table", "100")
        with pytest.raises(PluginError) as caught:
            it.check(one)
        assert caught.value.code == 104
        it.delete(one)


@pytest.mark.parametrize("version", VERSIONS)
def test_loopback_before_ours_stays_in_the_result(own: tuple[Host, Netplug], version: str) -> None:
    host, _ = own
    it = Runtime(host, {"type": "loopback"}, PYNET, version=version)
    with namespace(host) as netns:
        one = it.add(netns)
        assert one.result["interfaces"][0]["name"] == "lo"
        (mine,) = [ip for ip in one.result["ips"] if ip["address"] == "10.91.0.2/24"]
        assert one.result["interfaces"][mine["interface"]]["name"] == "eth0"
        if version >= "0.4.0":
            it.check(one)
        it.delete(one)


def test_second_plugin_for_the_same_interface_is_refused(own: tuple[Host, Netplug]) -> None:
    host, netplug = own
    bridge = {"type": "bridge", "bridge": "br0", "ipam": {"type": "host-local", "dataDir": "/run/hl"} | RANGES}
    it = Runtime(host, bridge, PYNET)
    with namespace(host) as netns:
        with pytest.raises(PluginError, match="previous plugin's result") as caught:
            it.add(netns, container="c")
        assert caught.value.code == 101
        assert netplug.json("network", "ls") == []


def test_way_out_by_a_network_of_another_plugin_stays(own: tuple[Host, Netplug]) -> None:
    """As the reference does it, which knows no more of ours than we of its; nerdctl has both at once."""
    host, netplug = own
    theirs = {"ranges": [[{"subnet": "10.92.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {"type": "bridge", "bridge": "br0", "isGateway": True}
    first = Runtime(host, bridge | {"ipam": {"type": "host-local", "dataDir": "/run/hl"} | theirs})
    second = Runtime(host, PYNET, version="1.0.0")
    with namespace(host) as netns:
        for runtimes in ((first, second), (second, first)):
            ends = [it.add(netns, ifname=f"eth{number}") for number, it in enumerate(runtimes)]
            ways = netns.exec("ip", "route", "show", "default").splitlines()
            gateways = {line.split()[2] for line in ways}
            assert gateways == {"10.92.0.1"} if runtimes[0] is first else "10.91.0.1" in gateways
            assert netns.pings("10.91.0.1")
            assert not netplug.drift()
            second.check(ends[runtimes.index(second)])
            for it, one in zip(runtimes, ends, strict=True):
                it.delete(one)
    host.run(["ip", "link", "del", "br0"])


def test_priority_ranks_our_networks(own: tuple[Host, Netplug]) -> None:
    host, netplug = own
    other = {"ranges": [[{"subnet": "10.92.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}
    low = Runtime(host, PYNET | {"gw_priority": -1})
    high = Runtime(host, {"type": "pynet", "ipam": {"type": "netplug-ipam"} | other})
    with namespace(host) as netns:
        for runtimes in ((low, high), (high, low)):
            ends = {it: it.add(netns, ifname=f"eth{number}") for number, it in enumerate(runtimes)}
            assert default_gateway(netns) == "10.92.0.1"
            for it, one in ends.items():
                it.check(one)
            assert not netplug.drift()
            high.delete(ends[high])
            assert default_gateway(netns) == "10.91.0.1"
            low.delete(ends[low])
            assert "suppress" not in netns.exec("ip", "rule")


# Their IPAM


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", *VERSIONS])
def test_foreign_ipam_gives_the_addresses(own: tuple[Host, Netplug], version: str) -> None:
    host, netplug = own
    kinds: list[dict[str, Any]] = [
        {"type": "host-local", "dataDir": "/run/hl"} | RANGES,
        {"type": "static", "addresses": [{"address": "10.92.0.7/24", "gateway": "10.92.0.1"}]},
    ]
    for ipam, address, gateway in zip(kinds, ("10.91.0.2", "10.92.0.7"), ("10.91.0.1", "10.92.0.1"), strict=True):
        it = Runtime(host, {"type": "pynet", "ipam": ipam}, version=version)
        with namespace(host) as netns:
            one = it.add(netns)
            assert one.ip == address
            assert netns.pings(gateway)
            (end,) = netplug.json("ps")
            assert end["addresses"] == [f"{address}/24"]
            if version >= "0.4.0":
                it.check(one)
            it.delete(one)
            it.delete(one)
        netplug.cli("network", "rm", it.name)
    assert not list(host.path("/run/hl").rglob("10.*"))


def test_failure_after_foreign_ipam_gives_its_addresses_back(own: tuple[Host, Netplug]) -> None:
    host, netplug = own
    it = Runtime(host, {"type": "pynet", "ipam": {"type": "host-local", "dataDir": "/run/hl"} | RANGES})
    with namespace(host) as netns:
        netns.exec("ip", "link", "add", "eth0", "type", "bridge")
        with pytest.raises(PluginError) as caught:
            it.add(netns)
        assert caught.value.code == 101
    assert not list(host.path("/run/hl").rglob("10.*"))
    assert netplug.json("network", "ls") == []


def test_error_of_foreign_ipam_is_handed_on(own: tuple[Host, Netplug]) -> None:
    host, netplug = own
    it = Runtime(host, {"type": "pynet", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.1.1/24"}]]}})
    with namespace(host) as netns, pytest.raises(PluginError, match="host-local"):
        it.add(netns)
    assert netplug.json("network", "ls") == []


# Ours for them


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", *VERSIONS])
def test_our_ipam_for_their_bridge(own: tuple[Host, Netplug], version: str) -> None:
    host, netplug = own
    bridge = {"type": "bridge", "bridge": "br0", "isGateway": True, "ipam": {"type": "netplug-ipam"} | RANGES}
    it = Runtime(host, bridge, version=version)
    with namespace(host) as netns:
        one = it.add(netns, args="IgnoreUnknown=1;K8S_POD_NAME=web;IP=10.91.0.9")
        assert one.ip == "10.91.0.9"
        assert netns.pings("10.91.0.1")
        (end,) = netplug.json("ps")
        assert (end["name"], end["container"], end["addresses"]) == ("web", one.container, ["10.91.0.9/24"])
        with pytest.raises(PluginError, match=r"10\.91\.0\.9"):
            it.add(netns, ifname="eth1", args="IP=10.91.0.9")
        if version >= "0.4.0":
            it.check(one)
        it.delete(one)
        it.delete(one, netns="")
    assert [lease["owner_kind"] for pool in netplug.json("ipam", "ls") for lease in pool["leases"]] == ["gateway"]
    netplug.cli("network", "rm", it.name)


def test_our_ipam_by_itself_has_gc_and_status(own: tuple[Host, Netplug]) -> None:
    """As a bridge of version 1.1 would call it."""
    host, netplug = own
    config: dict[str, Any] = {"cniVersion": "1.1.0", "name": "theirs", "type": "bridge", "vlan": 7}
    config["ipam"] = {"type": "netplug-ipam", "ranges": [[{"subnet": "10.91.0.0/30"}]]}
    env = {"CNI_IFNAME": "eth0", "CNI_NETNS": "/run/netns/x", "CNI_PATH": FOREIGN_DIR}

    def call(command: str, container: str = "", **more: Any) -> dict[str, Any]:
        text = json.dumps(config | {key.replace("_", "-"): value for key, value in more.items()})
        settings = env | {"CNI_COMMAND": command, "CNI_CONTAINERID": container}
        return execute(host, f"{BIN_DIR}/netplug-ipam", text, settings)

    call("STATUS")
    assert call("ADD", "c1") == {"cniVersion": "1.1.0", "ips": [{"address": "10.91.0.2/30", "gateway": "10.91.0.1"}]}
    with pytest.raises(PluginError, match="no free address") as caught:
        call("ADD", "c2")
    assert caught.value.code == 11
    with pytest.raises(PluginError) as caught:
        call("STATUS")
    assert caught.value.code == 50
    listed = [{"containerID": "c1", "ifname": "eth0"}]
    call("GC", **{"cni.dev/valid_attachments": listed})
    assert len(netplug.json("ps")) == 1
    call("GC", **{"cni.dev/valid_attachments": []})
    assert netplug.json("network", "ls") == []
