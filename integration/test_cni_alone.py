"""The CNI plugin without a daemon: the same on the same state, and by turns with one."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from harness import (
    BIN_DIR,
    VERSIONS,
    Attached,
    Host,
    Netplug,
    PluginError,
    Runtime,
    SeenServer,
    Wire,
    assert_same,
    connect,
    namespace,
    snapshot,
    tcp_ask,
    wait_until,
)

PLUGIN: dict[str, Any] = {
    "type": "pynet",
    "capabilities": {"portMappings": True, "ips": True},
    "ipam": {"type": "netplug-ipam", "ranges": [[{"subnet": "10.91.0.0/24"}]]},
}
PORT = {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}
PARALLEL = 12


@pytest.fixture
def far(new_host: Callable[..., Host]) -> tuple[Host, Host, Wire]:
    """A host, another one, and the cable between them."""
    host, client = new_host(), new_host("client")
    return host, client, connect(host, client)


@pytest.fixture
def own(far: tuple[Host, Host, Wire]) -> Iterator[tuple[Host, Netplug]]:
    """The host with the plugin installed and the daemon stopped; in the end it is as it was in the beginning."""
    host, _, _ = far
    netplug = Netplug(host, "--docker-host", "none")
    netplug.cli("cni", "install", "--bin-dir", BIN_DIR)
    netplug.stop()
    before = snapshot(host)
    yield host, netplug
    if not netplug.running:
        netplug.start()
    for net in netplug.json("network", "ls"):
        netplug.cli("network", "rm", net["name"])
    netplug.stop()
    # Forwarding stays on: others may have come to need it.
    assert_same(before, lambda: snapshot(host) | {"sysctls": before["sysctls"]})


def runtime(own: tuple[Host, Netplug], version: str = "1.1.0", **more: Any) -> Runtime:
    host, netplug = own
    return Runtime(host, PLUGIN | more, version=version, env={"NETPLUG_STATE_DIR": str(netplug.state_dir)})


def kinds(one: Attached) -> list[tuple[str, str]]:
    """The interfaces of a result; their names on the host hang on the network's id."""
    return [(link["name"][:3], link.get("sandbox", "")) for link in one.result.get("interfaces", ())]


@pytest.mark.parametrize("version", VERSIONS)
def test_same_result_as_with_a_daemon(own: tuple[Host, Netplug], version: str) -> None:
    host, netplug = own
    it = runtime(own, version)
    with namespace(host) as netns:
        one = it.add(netns, container="same", runtime=PORT)
        seen = netns.exec("ip", "-j", "addr", "show", "eth0"), netns.exec("ip", "route")
        if version >= "0.4.0":
            it.check(one)
        if version >= "1.1.0":
            it.status()
        it.delete(one)
        it.delete(one, netns="", bare=True)
        netplug.start()
        netplug.cli("network", "rm", it.name)
        again = it.add(netns, container="same", runtime=PORT)
        assert {**again.result, "interfaces": None} == {**one.result, "interfaces": None}
        # Nobody answers there before a daemon comes, and from then on for the rest of the container's life.
        assert again.result["dns"]["nameservers"] == ["10.91.0.1"]
        assert kinds(one) == kinds(again)
        assert netns.exec("ip", "route") == seen[1]
        (before, after) = (json.loads(text)[0] for text in (seen[0], netns.exec("ip", "-j", "addr", "show", "eth0")))
        assert (after["address"], after["mtu"]) == (before["address"], before["mtu"])
        it.delete(again)


def test_daemon_and_none_take_turns(own: tuple[Host, Netplug], far: tuple[Host, Host, Wire]) -> None:
    host, netplug = own
    _, client, wire = far
    it = runtime(own)
    with namespace(host) as one, namespace(host) as two, SeenServer(one, "tcp", 80):
        first = it.add(one, runtime=PORT)
        assert tcp_ask(client, wire.left, 8080) == wire.right
        # The port is taken, although the process that bound it has ended.
        with pytest.raises(PluginError, match="8080"):
            it.add(two, container="greedy", runtime=PORT)
        netplug.start()
        assert [end["container"] for end in netplug.json("ps")] == [first.container]
        assert not netplug.drift()
        it.check(first)
        second = it.add(two)
        netplug.kill()
        assert two.pings(first.ip)
        it.check(first)
        it.check(second)
        it.delete(second)
        netplug.start()
        assert [end["container"] for end in netplug.json("ps")] == [first.container]
        it.delete(first)
        assert not netplug.drift()


def test_daemon_killed_between_add_and_del(own: tuple[Host, Netplug]) -> None:
    host, netplug = own
    it = runtime(own)
    netplug.start()
    with namespace(host) as netns:
        one = it.add(netns, runtime=PORT)
        netplug.kill()
        it.delete(one)
        wait_until(lambda: "eth0" not in netns.exec("ip", "link"), what="its link to go")
        assert "10.91.0.2 . 80" not in host.output("nft", "list", "table", "inet", "netplug")
        it.gc()


def test_many_at_once_without_and_with_a_daemon_that_comes_meanwhile(own: tuple[Host, Netplug]) -> None:
    host, netplug = own
    it = runtime(own)
    with ExitStack() as stack, ThreadPoolExecutor(PARALLEL + 1) as pool:
        places = [stack.enter_context(namespace(host)) for _ in range(PARALLEL)]
        adding = [pool.submit(it.add, place) for place in places]
        starting = pool.submit(netplug.start)
        made = [one.result() for one in adding]
        starting.result()
        assert len({one.ip for one in made}) == PARALLEL
        assert len(netplug.json("ps")) == PARALLEL
        assert not netplug.drift()
        list(pool.map(it.delete, made))


def test_check_alone_mends_nothing_and_status_what_it_can(own: tuple[Host, Netplug]) -> None:
    host, _ = own
    it = runtime(own)
    with namespace(host) as netns:
        one = it.add(netns)
        netns.exec("ip", "route", "del", "default")
        for _ in range(2):
            with pytest.raises(PluginError) as caught:
                it.check(one)
            assert caught.value.code == 104
        # What can be mended of a network is no reason to send a runtime away.
        bridge = one.result["interfaces"][0]["name"]
        host.run(["ip", "link", "del", bridge])
        it.status()
        assert "UP" in host.output("ip", "link", "show", bridge)
        it.delete(one)
        it.status()


def test_state_that_cannot_be_used_is_an_error_of_the_protocol(own: tuple[Host, Netplug]) -> None:
    host, _ = own
    it = runtime(own)
    it.env["NETPLUG_STATE_DIR"] = "/proc/nowhere"
    with namespace(host) as netns, pytest.raises(PluginError) as caught:
        it.add(netns)
    assert caught.value.code == 11
