"""netavark's plugin API, spoken as netavark does: Debian's is too old to know plugins."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from harness import (
    BIN_DIR,
    Answer,
    Host,
    Namespace,
    Netplug,
    SeenServer,
    Stream,
    Upstream,
    Wire,
    connect,
    links_of,
    namespace,
    resolve,
    tcp_ask,
    udp_ask,
    wait_until,
)

ID = "1d" * 32
CONTAINER = "c0" * 32
KEEPER = """
import socket, subprocess, sys
tcp, udp = socket.socket(socket.AF_INET6, socket.SOCK_STREAM), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
tcp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
tcp.bind(("::", 8080))
udp.bind(("0.0.0.0", 8080))
sys.exit(subprocess.run(sys.argv[1:]).returncode)
"""
"""What podman does since 5.8: it binds the ports of a container, of both families and without listening, and calls."""

STRANGER = "import socket; sock = socket.create_server(('', 8080)); sock.accept()"


@dataclass
class Netavark:
    host: Host
    client: Host
    wire: Wire
    netplug: Netplug

    def __call__(self, *args: str, given: Any = None, code: int = 0, through: tuple[str, ...] = ()) -> Any:
        env = {"NETPLUG_STATE_DIR": str(self.netplug.state_dir)}
        done = self.host.run([*through, f"{BIN_DIR}/pynet", *args], stdin=json.dumps(given), env=env, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout) if done.stdout else None

    def refused(self, *args: str, given: Any, through: tuple[str, ...] = ()) -> str:
        return str(self(*args, given=given, code=1, through=through)["error"])


@pytest.fixture
def call(new_host: Callable[..., Host]) -> Iterator[Netavark]:
    host, client = new_host(), new_host("client")
    wire = connect(host, client)
    netplug = Netplug(host, "--docker-host", "none")
    netplug.cli("cni", "install", "--bin-dir", BIN_DIR)
    yield Netavark(host, client, wire, netplug)
    if not netplug.running:
        netplug.start()
    assert netplug.json("ps") == []
    assert not netplug.drift()
    netplug.stop()


def network(**more: Any) -> dict[str, Any]:
    """What podman sends as a network; it leaves out what is empty."""
    return {
        "name": "blue",
        "id": ID,
        "driver": "pynet",
        "created": "0001-01-01T00:00:00Z",
        "dns_enabled": True,
        "internal": False,
        "ipv6_enabled": False,
    } | more


def container(net: dict[str, Any], *ports: dict[str, Any], **options: Any) -> dict[str, Any]:
    """What netavark sends of a container."""
    return {
        "container_id": CONTAINER,
        "container_name": "web",
        "port_mappings": list(ports) or None,
        "network": net,
        "network_options": {"interface_name": "eth0", "aliases": None, "static_ips": None, "static_mac": None}
        | options,
    }


def path(netns: Namespace) -> str:
    return f"/run/netns/{netns.name}"


def test_info_with_and_without_a_word(call: Netavark) -> None:
    assert call("info") == call()
    assert call("info")["api_version"] == "1.0.0"


def test_create_chooses_subnets_and_changes_nothing_else(call: Netavark) -> None:
    asked = network(ipv6_enabled=True, extra="kept")
    made = call("create", given=asked)
    subnets = made["subnets"]
    assert made == asked | {"subnets": subnets, "ipam_options": {"driver": "pynet"}}
    assert [subnet["gateway"].endswith("1") for subnet in subnets] == [True, True]
    assert call("create", given=made) == made
    (shown,) = call.netplug.json("network", "ls")
    assert (shown["name"], shown["front_end"], shown["mode"]) == ("blue", "netavark", "bridge")
    call.netplug.cli("network", "rm", "blue")


def test_addresses_are_given_out_by_netplug(call: Netavark) -> None:
    """podman does so itself where a definition names nobody, from a list that knows of no other runtime or host.

    It knows the subnets that the definition has.
    """
    half = {"subnet": "10.91.0.0/24", "lease_range": {"start_ip": "10.91.0.7", "end_ip": "10.91.0.9"}}
    made = call("create", given=network(ipv6_enabled=True, subnets=[half]))
    assert made["ipam_options"] == {"driver": "pynet"}
    assert made["subnets"][0] == half
    assert made["subnets"][1]["subnet"].startswith("fd")
    call.netplug.cli("network", "rm", "blue")
    said = network(ipam_options={"driver": "host-local", "x": "y"}, subnets=[half])
    assert call("create", given=said) == said
    call.netplug.cli("network", "rm", "blue")


def test_network_that_podman_removed_makes_room(call: Netavark) -> None:
    """It tells nobody. What somebody is in stays, and the error says what to do."""
    old = call("create", given=network(name="old", id="01" * 32, subnets=[{"subnet": "10.91.0.0/24"}]))
    bridged = network(name="bridged", id="02" * 32, network_interface="podman9")
    call("create", given=bridged)
    call("create", given=network(subnets=[{"subnet": "10.91.0.0/16"}], network_interface="podman9"))
    assert [net["name"] for net in call.netplug.json("network", "ls")] == ["blue"]
    with namespace(call.host) as netns:
        call("setup", path(netns), given=container(network(subnets=[{"subnet": "10.91.0.0/16"}])))
        said = call.refused("create", given=old)
        assert said == (
            "subnet 10.91.0.0/24 overlaps 10.91.0.0/16 of network 'blue' "
            "(choose another, or remove that network: netplug network rm blue)"
        )
        call("teardown", path(netns), given=container(network()))
    assert call("setup", path(netns), given=container(old), code=1)["error"].startswith("there is no network namespace")
    assert call.netplug.json("network", "ls") == []
    call.netplug.cli("network", "create", "--subnet", "10.91.0.0/24", "mine")
    assert "netplug network rm mine" in call.refused("create", given=old)
    call.netplug.cli("network", "rm", "mine")


def test_resolvers_are_the_networks(call: Netavark) -> None:
    own = call("create", given=network(subnets=[{"subnet": "10.91.0.0/24"}], network_dns_servers=[call.wire.right]))
    none = call(
        "create", given=network(id="ab" * 32, name="red", dns_enabled=False, subnets=[{"subnet": "10.90.0.0/24"}])
    )
    with Upstream(call.client, call.wire.right, "192.0.2.7") as upstream, namespace(call.host) as netns:
        said = call("setup", path(netns), given=container(own))
        assert said["dns_server_ips"] == ["10.91.0.1"]
        assert resolve(netns, "10.91.0.1", "www.example.com") == Answer("NOERROR", ("192.0.2.7",))
        assert resolve(netns, "10.91.0.1", "web").code == "NOERROR"
        assert upstream.asked == ["www.example.com"]
        call("teardown", path(netns), given=container(own))
        silent = container(none) | {"container_id": "cd" * 32}
        assert call("setup", path(netns), given=silent)["dns_server_ips"] == []
        call("teardown", path(netns), given=silent)
    for name in ("blue", "red"):
        call.netplug.cli("network", "rm", name)


def test_networks_are_ranked_by_metric(call: Netavark) -> None:
    nets = [
        call("create", given=network(name=name, id=name[0] * 64, subnets=[{"subnet": subnet}], options=options))
        for name, subnet, options in (
            ("blue", "10.91.0.0/24", {"metric": "200"}),
            ("red", "10.92.0.0/24", {"metric": "50"}),
            ("green", "10.93.0.0/24", {"no_default_route": "true"}),
        )
    ]
    with namespace(call.host) as netns:
        wanted = [container(net, interface_name=f"eth{number}") for number, net in enumerate(nets)]
        for one in wanted:
            call("setup", path(netns), given=one)
        assert netns.exec("ip", "route", "show", "default").split()[:7] == (
            ["default", "via", "10.92.0.1", "dev", "eth1", "proto", "110"]
        )
        assert "metric 50" in netns.exec("ip", "route", "show", "default")
        assert netns.pings(call.wire.right)
        call("teardown", path(netns), given=wanted[1])
        assert "via 10.91.0.1 dev eth0" in (left := netns.exec("ip", "route", "show", "default"))
        assert "metric 200" in left
        assert netns.pings(call.wire.right)
        assert not call.netplug.drift()
        for one in wanted:
            call("teardown", path(netns), given=one)
    for name in ("blue", "red", "green"):
        call.netplug.cli("network", "rm", name)


def test_life_of_a_container(call: Netavark) -> None:
    asked = network(
        subnets=[
            {
                "subnet": "10.91.0.0/24",
                "gateway": "10.91.0.254",
                "lease_range": {"start_ip": "10.91.0.100", "end_ip": "10.91.0.110"},
            },
            {"subnet": "fd00:91::/64"},
        ],
        options={"mtu": "1400"},
        network_interface="podman9",
        routes=[{"destination": "10.200.0.0/16", "gateway": "10.91.0.7", "metric": None}],
    )
    net = call("create", given=asked)
    ports = [
        {"container_port": 80, "host_port": 8080, "host_ip": "", "protocol": "tcp,udp", "range": 2},
        {"container_port": 90, "host_port": 9090, "host_ip": call.wire.left, "protocol": "tcp", "range": 1},
    ]
    wanted = container(net, *ports, aliases=["www"], static_mac="02:00:00:00:00:07")
    with namespace(call.host) as netns:
        said = call("setup", path(netns), given=wanted)
        assert said["interfaces"] == {
            "eth0": {
                "mac_address": "02:00:00:00:00:07",
                "subnets": [
                    {"ipnet": "10.91.0.100/24", "gateway": "10.91.0.254"},
                    {"ipnet": "fd00:91::2/64", "gateway": "fd00:91::1"},
                ],
            }
        }
        assert json.loads(netns.exec("ip", "-j", "link", "show", "eth0"))[0]["mtu"] == 1400
        assert netns.exec("ip", "route", "show", "default").split()[2] == "10.91.0.254"
        assert netns.exec("ip", "route", "show", "10.200.0.0/16").split()[2] == "10.91.0.7"
        assert "podman9" in call.host.output("ip", "link")
        with SeenServer(netns, "tcp", 81), SeenServer(netns, "udp", 80), SeenServer(netns, "tcp", 90):
            assert tcp_ask(call.client, call.wire.left, 8081) == call.wire.right
            assert udp_ask(call.client, call.wire.left, 8080) == call.wire.right
            assert tcp_ask(call.client, call.wire.left, 9090) == call.wire.right
        (end,) = call.netplug.json("ps")
        assert (end["name"], end["container"], end["aliases"], end["front_end"]) == (
            "web",
            CONTAINER,
            ["www"],
            "netavark",
        )
        assert "attached" in call.refused("setup", path(netns), given=wanted)
        call.netplug.kill()
        assert call("teardown", path(netns), given=wanted) is None
        assert call("teardown", path(netns), given=wanted) is None
        again = container(net, static_ips=["10.91.0.77"])
        assert call("setup", path(netns), given=again)["interfaces"]["eth0"]["subnets"][0]["ipnet"] == "10.91.0.77/24"
        call.netplug.start()
        call("teardown", path(netns), given=again)
    call.netplug.cli("network", "rm", "blue")


def test_a_port_is_added_beside_those_that_the_runtime_keeps(call: Netavark) -> None:
    net = call("create", given=network(subnets=[{"subnet": "10.91.0.0/24"}]))
    port = {"container_port": 80, "host_port": 8080, "host_ip": "", "protocol": "tcp", "range": 1}
    wanted = container(net, port)
    with namespace(call.host) as netns, SeenServer(netns, "tcp", 80):
        call("setup", path(netns), given=wanted, through=(sys.executable, "-c", KEEPER))
        call.netplug.cli("publish", "web", "9090:80")
        for _ in range(2):
            for host_port in (8080, 9090):
                assert tcp_ask(call.client, call.wire.left, host_port) == call.wire.right
            assert tcp_ask(call.host, "::1", 9090) == "10.91.0.1"
            assert not call.netplug.drift()
            call.netplug.restart()
        call("teardown", path(netns), given=wanted)
        assert ":9090" not in call.host.output("ss", "-ltn")
        call("setup", path(netns), given=wanted, through=(sys.executable, "-c", KEEPER))
        (end,) = call.netplug.json("ps")
        assert (end["added_ports"], [text.partition("->")[0] for text in end["ports"]]) == ([], ["0.0.0.0:8080"])
        call("teardown", path(netns), given=wanted)
    call.netplug.cli("network", "rm", "blue")


def test_network_is_updated_under_podmans_containers(call: Netavark) -> None:
    """podman sends the network as it was created with each container; that is no disagreement."""
    net = call("create", given=network(subnets=[{"subnet": "10.91.0.0/24"}]))
    wanted, other = container(net), container(net) | {"container_id": "cd" * 32, "container_name": "db"}
    with namespace(call.host) as one, namespace(call.host) as two:
        call("setup", path(one), given=wanted)
        status = call("setup", path(two), given=other)
        (interface,) = status["interfaces"].values()
        address = interface["subnets"][0]["ipnet"].partition("/")[0]
        with Stream(one, two, address, port=7402) as among, Stream(one, call.client, call.wire.right, port=7403) as out:
            for option in (
                "masquerade=false",
                "masquerade=true",
                "mtu=1300",
                "mtu=",
                "spoofchk=false",
                "spoofchk=true",
                "ttl=9",
            ):
                call.netplug.cli("network", "update", "blue", "-o", option)
                assert call.netplug.drift() == "", option
                enough = out.sent + 40
                wait_until(lambda enough=enough: out.sent >= enough, what=option)
        assert (among.lost, out.lost) == ([], [])
        call("teardown", path(two), given=other)
        call("setup", path(two), given=other)
        for place, given in ((one, wanted), (two, other)):
            call("teardown", path(place), given=given)
    call.netplug.cli("network", "rm", "blue")


@pytest.mark.parametrize("daemon", [True, False], ids=["daemon", "alone"])
def test_ports_that_the_runtime_keeps_are_published(call: Netavark, *, daemon: bool) -> None:
    keeper = (sys.executable, "-c", KEEPER)
    net = call("create", given=network(subnets=[{"subnet": "10.91.0.0/24"}]))
    port = {"container_port": 80, "host_port": 8080, "host_ip": "", "protocol": "tcp,udp", "range": 1}
    wanted, other = container(net, port), container(net, port) | {"container_id": "cd" * 32}
    if not daemon:
        call.netplug.stop()
    with namespace(call.host) as netns, namespace(call.host) as second:
        call("setup", path(netns), given=wanted, through=keeper)
        assert "8080/tcp is already in use" in call.refused("setup", path(second), given=other, through=keeper)
        with SeenServer(netns, "tcp", 80), SeenServer(netns, "udp", 80):
            assert tcp_ask(call.client, call.wire.left, 8080) == call.wire.right
            assert udp_ask(call.client, call.wire.left, 8080) == call.wire.right
        call("teardown", path(netns), given=wanted)
        stranger = call.host.popen([sys.executable, "-c", STRANGER], log="stranger.log")
        wait_until(lambda: ":8080" in call.host.output("ss", "-ltn"), what="the stranger to listen")
        said = call.refused("setup", path(second), given=other)
        assert "port 0.0.0.0:8080/tcp is already in use on this host by process " in said
        assert "(python" in said
        stranger.stop()
        call("setup", path(second), given=other, through=keeper)
        call("teardown", path(second), given=other)
    if not daemon:
        call.netplug.start()
    call.netplug.cli("network", "rm", "blue")


def test_container_on_two_networks_publishes_its_ports_once(call: Netavark) -> None:
    """netavark hands all of them to each network; they go on by what is left."""
    nets = [
        call("create", given=network(name=name, id=name[0] * 64, subnets=[{"subnet": subnet}]))
        for name, subnet in (("blue", "10.91.0.0/24"), ("red", "10.92.0.0/24"))
    ]
    port = {"container_port": 80, "host_port": 8080, "host_ip": "", "protocol": "tcp", "range": 1}
    first, second = container(nets[0], port), container(nets[1], port, interface_name="eth1")

    def reached() -> bool:
        return tcp_ask(call.client, call.wire.left, 8080) == call.wire.right

    with namespace(call.host) as netns, SeenServer(netns, "tcp", 80):
        call("setup", path(netns), given=first)
        call("setup", path(netns), given=second)
        assert reached()
        with SeenServer(call.host, "tcp", 8080):  # conmon keeps it by now
            call("teardown", path(netns), given=first)
            assert reached()
        call("setup", path(netns), given=first)
        assert not call.netplug.drift()
        call("teardown", path(netns), given=second)
        assert reached()
        call("teardown", path(netns), given=first)
    for name in ("blue", "red"):
        call.netplug.cli("network", "rm", name)


def test_failed_setup_leaves_nothing(call: Netavark) -> None:
    with namespace(call.host) as netns:
        netns.exec("ip", "link", "add", "eth0", "type", "bridge")
        assert "eth0" in call.refused("setup", path(netns), given=container(network()))
        assert links_of(netns) == ["eth0", "lo"]
        assert call.netplug.json("network", "ls") == []


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"options": {"colour": "red"}}, "colour"),
    ({"subnets": [{"subnet": "10.1.1.1/24"}]}, "10.1.1.1/24"),
    ({"ipam_options": {"driver": "dhcp"}}, "dhcp"),
    ({"options": {"mode": "macvlan"}, "network_interface": "nowhere"}, "nowhere"),
    ({"routes": [{"destination": "10.0.0.0/8", "gateway": "10.1.0.1", "metric": 7}]}, "metric"),
]


@pytest.mark.parametrize(("wrong", "words"), REFUSED, ids=lambda it: str(it)[:40])
def test_network_that_cannot_be_is_refused(call: Netavark, wrong: dict[str, Any], words: str) -> None:
    assert words in call.refused("create", given=network(**wrong))
    assert call.netplug.json("network", "ls") == []


def test_what_is_no_call_is_refused(call: Netavark) -> None:
    assert "frobnicate" in call.refused("frobnicate", given={})
    assert "network" in call.refused("setup", "/run/netns/x", given={"container_id": "c"})
    assert "option 'x'" in call.refused("setup", "/run/netns/x", given=container(network(), options={"x": "y"}))
