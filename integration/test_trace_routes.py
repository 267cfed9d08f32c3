"""`netplug trace` names what routes, name servers and ports break: each fault is injected, traced, and taken away.

Mends that are commands are pasted, and the path is well again. `trace_route_faults.py` has what is said.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest
from harness import CommandError, Host, attached, connect, wait_until
from trace_faults import in_document, markdown
from trace_route_faults import BEGIN, END, ROWS
from trace_scene import Faults, Scene, assert_named, leak_check, registering, scene, shown

from netplug.cli import CliError

__all__ = ("leak_check", "scene")
FAULTS: Faults[Scene, tuple[str, str]] = {}
fault = registering(FAULTS)


@pytest.fixture(scope="module", autouse=True)
def near(scene: Scene) -> None:
    """Run a container whose port is published for this host only."""
    serve = ("httpd", "-f", "-p", "80", "-h", "/www")
    scene.dockerd.run("--network", "blue", "--name", "near", "-p", "127.0.0.1:8092:80", command=serve)


@contextmanager
def changed(it: Scene, *command: str, undo: tuple[str, ...]) -> Iterator[None]:
    it.run(*command)
    yield
    it.host.run(undo, check=False)  # a mend may have undone it


@fault("rule inside")
def rule_inside(it: Scene) -> Iterator[tuple[str, str]]:
    it.inside(it.asker, "ip", "rule", "add", "to", it.address(it.web), "blackhole")
    yield "asker", "web:80"
    it.inside(it.asker, "ip", "rule", "del", "to", it.address(it.web), "blackhole")


@fault("rule of the host")
def rule_of_the_host(it: Scene) -> Iterator[tuple[str, str]]:
    rule = ("from", it.address(it.asker), "prohibit")
    with changed(it, "ip", "rule", "add", *rule, undo=("ip", "rule", "del", *rule)):
        yield "asker", it.wire.right


@fault("blackhole")
def blackhole(it: Scene) -> Iterator[tuple[str, str]]:
    route = ("blackhole", it.address(it.web))
    with changed(it, "ip", "route", "add", *route, undo=("ip", "route", "del", *route)):
        yield "outside", "web:80"


@contextmanager
def hijacking(it: Scene, address: str) -> Iterator[None]:
    route = (address, "via", it.wire.right)
    # Docker has set the policy of FORWARD to DROP, which is not to blame.
    assert "-P FORWARD DROP" in it.run("iptables", "-S", "FORWARD")
    with changed(it, "ip", "route", "add", *route, undo=("ip", "route", "del", *route)):
        yield


@fault("hijacked")
def hijacked(it: Scene) -> Iterator[tuple[str, str]]:
    with hijacking(it, it.address(it.web)):
        yield "outside", "web:80"


@fault("hijacked back")
def hijacked_back(it: Scene) -> Iterator[tuple[str, str]]:
    with hijacking(it, it.address(it.asker)):
        yield "asker", it.wire.right


@fault("link of one network down")
def link_of_one_network_down(it: Scene) -> Iterator[tuple[str, str]]:
    it.inside(it.both, "ip", "link", "set", "eth1", "down")
    yield "both", "lonely:80"
    it.inside(it.both, "ip", "link", "set", "eth1", "up")


@fault("route of one network lost")
def route_of_one_network_lost(it: Scene) -> Iterator[tuple[str, str]]:
    route = it.inside(it.both, "ip", "route", "show", "dev", "eth1").split()
    it.inside(it.both, "ip", "route", "del", route[0], "dev", "eth1")
    yield "both", "lonely:80"
    it.inside(it.both, "ip", "route", "replace", *[word for word in route if word != "linkdown"], "dev", "eth1")


@fault("no ARP")
def no_arp(it: Scene) -> Iterator[tuple[str, str]]:
    it.inside(it.web, "ip", "link", "set", "eth0", "arp", "off")
    yield "asker", "web:80"
    it.inside(it.web, "ip", "link", "set", "eth0", "arp", "on")


@contextmanager
def resolv_conf(it: Scene, text: str) -> Iterator[None]:
    before = it.dockerd.docker("exec", "asker", "cat", "/etc/resolv.conf")

    def write(text: str) -> None:
        it.dockerd.docker("exec", "asker", "sh", "-c", f"printf '%s\\n' '{text}' > /etc/resolv.conf")

    write(text)
    yield
    write(before)


@fault("no name server")
def no_name_server(it: Scene) -> Iterator[tuple[str, str]]:
    with resolv_conf(it, "options ndots:0"):
        yield "asker", "web:80"


@fault("another name server")
def another_name_server(it: Scene) -> Iterator[tuple[str, str]]:
    with resolv_conf(it, f"nameserver {it.wire.right}"):
        yield "asker", "web:80"


@contextmanager
def hosts_line(it: Scene, container: str, line: str) -> Iterator[None]:
    # Docker mounts the file: it cannot be replaced by another one.
    before = it.dockerd.docker("exec", container, "cat", "/etc/hosts")
    it.dockerd.docker("exec", container, "sh", "-c", f"echo '{line}' >> /etc/hosts")
    yield
    it.dockerd.docker("exec", container, "sh", "-c", f"printf '%s\\n' '{before}' > /etc/hosts")


@fault("hosts file")
def hosts_file(it: Scene) -> Iterator[tuple[str, str]]:
    unused = str(ip_address(it.address(it.web)) + 90)
    with hosts_line(it, "asker", f"{unused} db WEB # as it was"):
        (asked,) = [hop for hop in it.trace("asker", "web:80")["hops"] if hop["hop"] == "name"]
        assert asked["what"] == f"name web is {unused} by /etc/hosts of asker"
        yield "asker", "web:80"


@contextmanager
def container(it: Scene, *options: str, command: tuple[str, ...] = ("sleep", "3600")) -> Iterator[None]:
    made = it.dockerd.run(*options, command=command)
    try:
        yield
    finally:
        made.remove()


@fault("stopped")
def stopped(it: Scene) -> Iterator[tuple[str, str]]:
    serve = ("httpd", "-f", "-p", "80", "-h", "/www")
    with container(it, "--network", "blue", "--name", "resting", command=serve):
        it.dockerd.docker("stop", "-t", "0", "resting")
        # Docker says that a container has stopped before it has taken it from its networks.
        names = lambda: {one["name"] for one in it.netplug.json("ps")}  # noqa: E731
        wait_until(lambda: "resting" not in names(), what="the end of its endpoint")
        assert it.trace("host", "resting:80")["broken"]["cause"]["mend"] == "docker start resting"
        for ends in (("outside", "blue/resting:80"), ("resting", "web:80")):
            with pytest.raises(CliError, match="resting is stopped") as refused:
                pytest.fail(shown(it.trace(*ends)))
            assert refused.value.hint == "docker start resting"
        yield "asker", "resting:80"


@fault("mode host")
def mode_host(it: Scene) -> Iterator[tuple[str, str]]:
    with container(it, "--network", "host", "--name", "hosted"):
        with pytest.raises(CliError, match="hosted uses the host's network") as refused:
            pytest.fail(shown(it.trace("hosted", "web:80")))
        assert refused.value.hint == "netplug trace host web:80"
        with container(it, "--network", "container:hosted", "--name", "guest"):
            cause = it.trace("asker", "guest:80/udp")["broken"]["cause"]
            assert cause["words"] == "guest uses the network of hosted"
            assert cause["mend"] == "netplug trace asker hosted:80/udp"
        yield "asker", "hosted:80"


@fault("mode none of Docker")
def mode_none_of_docker(it: Scene) -> Iterator[tuple[str, str]]:
    with container(it, "--network", "none", "--name", "alone"):
        yield "asker", "alone"


@fault("network of Docker")
def network_of_docker(it: Scene) -> Iterator[tuple[str, str]]:
    with container(it, "--network", "bridge", "--name", "apart"):
        yield "asker", "apart"


@fault("nobody asks")
def nobody_asks(it: Scene) -> Iterator[tuple[str, str]]:
    yield f"outside={ip_address(it.wire.left) + 90}", "web:80"


@fault("nobody asks inside")
def nobody_asks_inside(it: Scene) -> Iterator[tuple[str, str]]:
    yield str(ip_address(it.address(it.web)) + 90), f"{it.address(it.web)}:80"


@fault("port of the host")
def port_of_the_host(_: Scene) -> Iterator[tuple[str, str]]:
    yield "outside", "web:8080"


@fault("published on loopback")
def published_on_loopback(it: Scene) -> Iterator[tuple[str, str]]:
    yield "outside", f"{it.wire.left}:8092"


@fault("loopback by name")
def loopback_by_name(_: Scene) -> Iterator[tuple[str, str]]:
    yield "outside", "near:80"


PASTED = (
    "hijacked",
    "hijacked back",
    "link of one network down",
    "route of one network lost",
    "no ARP",
    "no name server",
    "another name server",
    "stopped",
    "mode none of Docker",
    "network of Docker",
)


@pytest.mark.parametrize("name", list(FAULTS))
def test_fault_is_named(scene: Scene, name: str) -> None:
    with FAULTS[name](scene) as ends:
        answer = scene.trace(*ends)
        assert_named(answer, ROWS[name])
        if name in PASTED:
            scene.run("sh", "-ec", answer["broken"]["cause"]["mend"])
            answer = scene.trace(*ends)
            assert answer["reached"], shown(answer)


def test_a_packet_waits_for_an_older_request(scene: Scene) -> None:
    """The kernel asked for the MAC before the trace began, and asks no more while it lasts."""
    unused = str(ip_address(scene.address(scene.web)) + 90)
    setting = "net.ipv4.neigh.eth0.retrans_time_ms"
    usual = scene.inside(scene.asker, "sysctl", "-n", setting).strip()
    scene.inside(scene.asker, "sysctl", "-qw", f"{setting}=30000")
    try:
        scene.inside(scene.asker, "bash", "-c", f"echo > /dev/udp/{unused}/9")
        answer = scene.trace("asker", f"{unused}:80")
    finally:
        scene.inside(scene.asker, "sysctl", "-qw", f"{setting}={usual}")
        scene.inside(scene.asker, "ip", "neigh", "flush", "all")
    assert answer["broken"]["cause"]["kind"] == "neighbour.none", shown(answer)
    assert answer["broken"]["cause"]["words"] == f"nobody answers asker for the address {unused}", shown(answer)


def test_the_name_server_of_a_network_listens(scene: Scene) -> None:
    for proto in ("udp", "tcp"):
        answer = scene.trace("asker", f"{scene.gateway('blue')}:53/{proto}")
        assert answer["reached"], shown(answer)


def test_a_host_that_nobody_beyond_its_links_reaches(scene: Scene) -> None:
    route = scene.run("ip", "route", "show", "default").split()
    with changed(scene, "ip", "route", "del", *route, undo=("ip", "route", "add", *route)):
        answer = scene.trace("outside", "web:80")
    assert not answer["reached"], shown(answer)
    assert answer["broken"]["cause"]["kind"] == "route.none", shown(answer)


def test_the_other_ip_version_does_not_answer(scene: Scene) -> None:
    """The path by IPv4 is well, and programs ask by IPv6."""
    address = scene.inside(scene.web, "ip", "-o", "-6", "addr", "show", "dev", "eth0", "scope", "global").split()[3]
    routes = scene.inside(scene.web, "ip", "-6", "route", "show", "default")
    scene.inside(scene.web, "ip", "addr", "del", address, "dev", "eth0")
    try:
        answer = scene.trace("asker", "web:80")
    finally:
        scene.inside(scene.web, "ip", "addr", "add", address, "dev", "eth0", "nodad")
        scene.inside(scene.web, "ip", "-6", "route", "replace", *routes.split())
    (note,) = answer["notes"]
    alone = address.partition("/")[0]
    assert answer["reached"], shown(answer)
    assert note.startswith(f"no answer comes by IPv6 from {alone}"), note
    assert note.endswith(f"netplug trace asker [{alone}]:80"), note
    assert scene.trace("asker", "web:80")["notes"] == []


def test_a_rule_leads_a_network_out_by_another_uplink(scene: Scene, client: Host) -> None:
    """Policy routing by source: the host's own packets to the same destination leave by the default route."""
    wire = connect(scene.host, client, "198.51.100.0/24", "fd00:beef::/64", routes=False)
    far, table, rule = "192.0.2.77", ("table", "100"), ("from", scene.address(scene.web) + "/24", "lookup", "100")
    with (
        changed(scene, "ip", "rule", "add", *rule, undo=("ip", "rule", "del", *rule)),
        changed(
            scene, "ip", "route", "add", "default", "via", wire.right, *table, undo=("ip", "route", "flush", *table)
        ),
    ):
        client.run(["ip", "addr", "add", f"{far}/32", "dev", wire.right_link])
        try:
            out = scene.trace("asker", f"outside={far}")
            into = scene.trace(f"outside={far}", "web:80")
            others = scene.trace("host", f"outside={far}")
        finally:
            scene.run("ip", "link", "del", wire.left_link)
    for answer, station, link in (
        (out, "uplink-out", wire.left_link),
        (into, "uplink-in", wire.left_link),
        (others, "uplink-out", scene.wire.left_link),
    ):
        assert answer["reached"], shown(answer)
        assert [it["what"].split()[0] for it in answer["hops"] if it["hop"] == station] == [link], shown(answer)


def test_a_name_of_two_containers_is_refused(scene: Scene) -> None:
    """As a destination, the name stays what the source's name server says."""
    with attached(scene.netplug, "green", "--name", "web"):
        for ends in (("web", "asker"), ("host", "web")):
            with pytest.raises(CommandError, match=r"two containers are called so: .*green/web.*NETWORK/NAME"):
                scene.netplug.cli("trace", *ends)
        assert scene.trace("green/web", "both")["source"] == "web"
        assert scene.trace("asker", "web:80")["reached"]


def test_the_hosts_file_goes_before_name_servers(scene: Scene) -> None:
    """A line that leads to where something answers is as good as a name server."""
    address = scene.address(scene.both)
    with hosts_line(scene, "asker", f"{address} the-second"):
        for destination, says in (
            ("the-second:80", f"name the-second is {address} by /etc/hosts of asker"),
            ("localhost", "name localhost is 127.0.0.1, ::1 by /etc/hosts of asker"),
            ("both:80", f"asks 127.0.0.11 for both: {address}"),
        ):
            answer = scene.trace("asker", destination)
            assert answer["reached"], shown(answer)
            assert answer["hops"][0]["what"].startswith(says), shown(answer)


def test_lines_that_docker_writes_into_the_hosts_file(scene: Scene) -> None:
    address = scene.address(scene.both)
    told = scene.dockerd.run("--network", "blue", "--name", "told", "--hostname", "me", "--add-host", f"db:{address}")
    try:
        for destination, says in (
            ("db:80", f"name db is {address} by /etc/hosts of told"),
            ("me", "name me is "),
            ("told", "asks 127.0.0.11 for told: "),
        ):
            answer = scene.trace("told", destination)
            assert answer["reached"], shown(answer)
            assert answer["hops"][0]["what"].startswith(says), shown(answer)
    finally:
        told.remove()


def test_the_port_of_the_name_server_is_no_open_port(scene: Scene) -> None:
    for proto in ("udp", "tcp"):
        cause = scene.trace("outside", f"host:53/{proto}")["broken"]["cause"]
        assert cause["words"].startswith(f"nobody listens on port 53/{proto} in this host")
        assert "25353" not in cause["words"]


def test_a_packet_between_others_is_refused(scene: Scene) -> None:
    with pytest.raises(CliError, match="SRC and DST are both outside"):
        pytest.fail(shown(scene.trace("192.0.2.7", "192.0.2.8")))


def test_names_that_the_host_does_not_know(scene: Scene) -> None:
    cause = scene.trace("host", "nobody")["broken"]["cause"]
    assert cause["words"].startswith("no container is called 'nobody', and this host's name server at ")


def test_the_document_lists_the_faults() -> None:
    assert list(FAULTS) == list(ROWS)
    assert in_document(BEGIN, END) == markdown(ROWS), "python integration/trace_route_faults.py --write"
