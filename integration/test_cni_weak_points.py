"""What the reference plugins leave behind or let happen; here it does not. The numbers are of issues in docs/cni.md.

That nothing is left, no rule, link, address or socket, is asserted by the leak check of every test.
"""

import json
import sys
from typing import Any

import pytest
from harness import (
    BIN_DIR,
    Attached,
    Host,
    Netplug,
    PluginError,
    Runtime,
    SeenServer,
    Wire,
    cni_attached,
    cni_list,
    namespace,
    tcp_ask,
    wait_until,
)


def plugin(number: int, size: int = 24, **more: Any) -> dict[str, Any]:
    ipam = {"type": "netplug-ipam", "ranges": [[{"subnet": f"10.{number}.0.0/{size}"}]]}
    return {"type": "pynet", "ipMasq": True, "capabilities": {"portMappings": True}, "ipam": ipam} | more


def port(number: int = 8080) -> dict[str, Any]:
    return {"portMappings": [{"hostPort": number, "containerPort": 80, "protocol": "tcp"}]}


@pytest.fixture(scope="module", autouse=True)
def executable(netplug: Netplug) -> str:
    return netplug.cli("cni", "install", "--bin-dir", BIN_DIR)


def nothing_of(netplug: Netplug, it: Runtime) -> bool:
    leased = [
        lease for pool in netplug.json("ipam", "ls") for lease in pool["leases"] if lease["owner_kind"] == "endpoint"
    ]
    return netplug.json("ps", "--network", it.name) == [] == leased


@pytest.mark.parametrize("namespace_is", ["empty", "gone", "there"])
@pytest.mark.parametrize("kind", ["bridge", "macvlan"])
def test_del_without_namespace_cleans_all(
    host: Host, netplug: Netplug, wire: Wire, kind: str, namespace_is: str
) -> None:
    config = plugin(101) if kind == "bridge" else plugin(101, master=wire.left_link, ipMasq=None)
    with cni_list(host, netplug, config) as it, namespace(host) as netns:
        one = it.add(netns, runtime=port())
        if namespace_is == "gone":
            netns.remove()
        it.delete(one, netns="" if namespace_is == "empty" else None)
        assert nothing_of(netplug, it)
        assert ":8080" not in host.output("ss", "-Hltn")


def test_del_after_the_link_is_gone_cleans_all(host: Host, netplug: Netplug) -> None:
    with cni_list(host, netplug, plugin(102)) as it, namespace(host) as netns:
        one = it.add(netns, runtime=port())
        netns.exec("ip", "link", "del", "eth0")
        it.delete(one)
        assert nothing_of(netplug, it)


@pytest.mark.parametrize("kind", ["bridge", "macvlan"])
def test_add_to_a_full_range_leaves_nothing_and_can_be_repeated(
    host: Host, netplug: Netplug, wire: Wire, kind: str
) -> None:
    config = plugin(103, 30) if kind == "bridge" else plugin(103, 30, master=wire.left_link, ipMasq=None)
    with cni_list(host, netplug, config) as it, namespace(host) as netns:
        with cni_attached(it):
            for _ in range(2):
                with pytest.raises(PluginError, match="free address") as caught:
                    it.add(netns, container="late")
                assert caught.value.code == 11
                assert [link["ifname"] for link in json.loads(netns.exec("ip", "-j", "link"))] == ["lo"]
        it.delete(it.add(netns, container="late"))


def test_del_of_one_network_leaves_the_ports_of_another(host: Host, netplug: Netplug, client: Host, wire: Wire) -> None:
    with (
        cni_list(host, netplug, plugin(104)) as one,
        cni_list(host, netplug, plugin(105)) as other,
        namespace(host) as netns,
        SeenServer(netns, "tcp", 80),
    ):
        first = one.add(netns, container="both", runtime=port(8081))
        second = other.add(netns, container="both", ifname="eth1", runtime=port(8082))
        assert tcp_ask(client, wire.left, 8081) == wire.right
        one.delete(first)
        assert "10.105.0.2 . 80" in host.output("nft", "list", "table", "inet", "netplug")
        other.check(second)
        other.delete(second)


def test_port_that_a_stranger_takes_while_it_moves_is_told_and_comes_back(host: Host, netplug: Netplug) -> None:
    """From a network that publishes everywhere to one that does so on 127.0.0.1, where somebody listens."""
    both = {"portMappings": [{"hostPort": it, "containerPort": 80, "protocol": "tcp"} for it in (8083, 8085)]}
    with (
        cni_list(host, netplug, plugin(110)) as one,
        cni_list(host, netplug, plugin(111, host_binding_ipv4="127.0.0.1")) as other,
        namespace(host) as netns,
        SeenServer(netns, "tcp", 80),
    ):
        first = one.add(netns, container="both", runtime=both)
        second = other.add(netns, container="both", ifname="eth1", runtime=both)
        stranger = host.popen([sys.executable, "-m", "http.server", "8083", "--bind", "127.0.0.1"], log="stranger.log")
        wait_until(lambda: ":8083" in host.output("ss", "-Hltn"), 10, "the stranger")
        one.delete(first)
        assert tcp_ask(host, "127.0.0.1", 8085)
        said = "is not published: port 127.0.0.1:8083/tcp is already in use on this host by process "
        assert said in (shown := netplug.drift()), shown
        assert str(stranger.argv[0]).rpartition("/")[2][:6] in shown
        assert "127.0.0.1:8083->80/tcp (not published: taken)" in str(netplug.json("ps"))
        stranger.kill()
        netplug.cli("repair")
        assert netplug.drift() == ""
        assert tcp_ask(host, "127.0.0.1", 8083)
        other.check(second)
        other.delete(second)


def test_del_without_port_mappings_takes_them_away(host: Host, netplug: Netplug) -> None:
    with cni_list(host, netplug, plugin(106)) as it, namespace(host) as netns:
        one = it.add(netns, runtime=port())
        assert "10.106.0.2 . 80" in host.output("nft", "list", "table", "inet", "netplug")
        it.delete(one, bare=True)
        assert "10.106.0.2 . 80" not in host.output("nft", "list", "table", "inet", "netplug")


def test_host_port_is_given_to_one_container_only(host: Host, netplug: Netplug) -> None:
    with cni_list(host, netplug, plugin(107)) as it, namespace(host) as netns:
        with cni_attached(it, runtime=port()):
            with pytest.raises(PluginError, match="8080"):
                it.add(netns, container="second", runtime=port())
            assert [link["ifname"] for link in json.loads(netns.exec("ip", "-j", "link"))] == ["lo"]
        it.delete(it.add(netns, container="second", runtime=port()))


def test_del_of_what_never_was_succeeds(host: Host, netplug: Netplug) -> None:
    with cni_list(host, netplug, plugin(108)) as it:
        it.delete(Attached("never", "/run/netns/never", "eth0", "", {}))
        with cni_attached(it):
            it.delete(Attached("never", "/run/netns/never", "eth0", "", {}))


def test_container_killed_without_del_is_freed_by_itself(host: Host, netplug: Netplug) -> None:
    """Its namespace is gone, and so are links, addresses and ports, before any GC."""
    with cni_list(host, netplug, plugin(109)) as it, namespace(host) as netns:
        one = it.add(netns, runtime=port())
        netns.remove()
        wait_until(lambda: nothing_of(netplug, it), 40, "the dead endpoint to go")
        assert ":8080" not in host.output("ss", "-Hltn")
        it.delete(one)
