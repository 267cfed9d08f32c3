"""`netplug trace` between two hosts: healthy paths are found healthy, each fault is named with its host and its mend.

One cluster for all: on the first host `web` (a bare namespace) and `shop` (Docker), on the second `db` (bare) and `pod`
(CNI), all in `blue`. `trace_overlay_faults.py` has what is said of each fault, for docs/troubleshooting.md too.
"""

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness import (
    BIN_DIR,
    Container,
    Dockerd,
    Host,
    Namespace,
    Process,
    Runtime,
    cni_attached,
    container,
    wait_until,
)
from harness.cluster import Cluster, Member, cluster, needs_etcd
from harness.dockerd import SOCKET
from harness.former import former_release, runs
from trace_faults import in_document, markdown
from trace_overlay_faults import BEGIN, END, ROWS
from trace_scene import BROKEN_S, HEALTHY_S, Faults, registering, shown, trace

from netplug.cli import CliError

pytestmark = needs_etcd


@dataclass
class Scene:
    """The hosts, and who is in `blue`. `server`: of `db`, port 80."""

    it: Cluster
    dockerd: Dockerd
    web: Namespace
    shop: Container
    db: Namespace
    pod: str
    server: Process

    @property
    def one(self) -> Member:
        return self.it.members[0]

    @property
    def two(self) -> Member:
        return self.it.members[1]

    def trace(self, at: Member, source: str, destination: str) -> dict[str, Any]:
        return trace(at.netplug, source, destination)

    def vxlan(self, member: Member) -> str:
        return next(it for it in member.host.output("ls", "/sys/class/net").split() if it.startswith("npv"))

    def both_live(self) -> None:
        """Wait until each host knows that the other's daemon runs."""
        for member in self.it.members:
            wait_until(lambda member=member: _all_alive(member), 20, "both daemons live")  # type: ignore[misc]
        wait_until(lambda: self.one.knows(self.db.mac) == self.two.vtep, 20, "db is known where it is")


def _all_alive(member: Member) -> bool:
    try:
        hosts = member.netplug.client.get("hosts")["hosts"]
    except CliError:  # the store does not answer yet
        return False
    return all(host["alive"] for host in hosts)


def script(host: Host, *lines: str) -> None:
    host.run(["sh", "-ec", "\n".join(lines)])


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with cluster(0) as it, ExitStack() as stack:
        one, two = it.add("--docker-host", f"unix://{SOCKET}"), it.add()
        dockerd = Dockerd(one.host)
        one.cli("network", "create", "blue", "--cluster", "--ipv6", "--subnet", "10.90.7.0/24")
        wait_until(lambda: two.has("blue"), what="blue on the second host")
        options = ("--ipam-driver", "pynet", "--ipam-opt", "name=blue", "-o", "mode=overlay", "-o", "name=blue")
        dockerd.docker("network", "create", "-d", "pynet", *options, "--ipv6", "blue")
        two.cli("cni", "install", "--bin-dir", BIN_DIR)
        listed = json.loads(two.cli("cni", "config", "blue"))
        runtime = Runtime(two.host, *listed["plugins"], name="blue", version=listed["cniVersion"])
        web = stack.enter_context(it.station(one, "blue", "--name", "web"))
        db = stack.enter_context(it.station(two, "blue", "--name", "db"))
        stack.enter_context(cni_attached(runtime, args="K8S_POD_NAME=pod"))
        serve = ("sh", "-c", "mkdir -p /www; exec httpd -f -p 80 -h /www")
        shop = stack.enter_context(container(dockerd, "--network", "blue", "--name", "shop", command=serve))
        httpd = ["nsenter", f"--net=/run/netns/{db.name}", "busybox", "httpd", "-f", "-p", "80", "-h", "/"]
        server = two.host.popen(httpd, log="httpd.log")
        found = Scene(it, dockerd, web, shop, db, "pod", server)
        found.both_live()
        yield found
        server.kill()


# Healthy paths

NAMES = [
    ("one", "web", "db"),
    ("one", "web", "db:80"),
    ("one", "web", "pod"),
    ("one", "shop", "db:80"),
    ("one", "shop", "pod"),
    ("two", "db", "blue/shop:80"),
    ("two", "db", "blue/web"),
    ("two", "pod", "shop:80"),
]


@pytest.mark.parametrize(("host", "source", "destination"), NAMES, ids=str)
def test_healthy_path_is_found_healthy(scene: Scene, host: str, source: str, destination: str) -> None:
    at: Member = getattr(scene, host)
    _healthy(scene.trace(at, source, destination))


@pytest.mark.parametrize("port", ["", ":80"])
def test_healthy_path_of_ipv6(scene: Scene, port: str) -> None:
    address = next(it for it in scene.db.addresses if ":" in it)
    _healthy(scene.trace(scene.one, "web", f"[{address}]{port}" if port else address))


def _healthy(answer: dict[str, Any]) -> None:
    assert answer["reached"], shown(answer)
    assert {hop["verdict"] for hop in answer["hops"]} == {"ok"}, shown(answer)
    names = [hop["hop"] for hop in answer["hops"]]
    stations = ["source", "port-in", "tunnel-out", "uplink-out", "far-uplink", "far-tunnel", "far-port", "destination"]
    assert [it for it in names if it in stations] == stations, shown(answer)
    assert None not in [hop["ms"] for hop in answer["hops"] if hop["hop"] in stations], shown(answer)
    assert answer["seconds"] < HEALTHY_S, shown(answer)


def test_source_on_another_host_is_traced_there(scene: Scene) -> None:
    for source, destination in (("shop", "pod"), ("blue/shop", "web"), ("web", "db:81")):
        answer = scene.trace(scene.two, source, destination)
        assert f"traced by host {scene.one.host.name}, where {source.removeprefix('blue/')} is" in answer["notes"][0]
        assert answer["reached"] is (destination != "db:81"), shown(answer)


def test_underlay_that_fragments_is_no_fault(scene: Scene) -> None:
    """Routers of IPv4 do, since nothing forbids it in the outer packet; so large packets pass."""
    link = scene.two.wire.right_link
    script(scene.it.router, f"ip link set {link} mtu 1300")
    try:
        answer = scene.trace(scene.one, "web", "db:80")
    finally:
        script(scene.it.router, f"ip link set {link} mtu 1500")
    assert answer["reached"], shown(answer)


# Faults

HEALED = frozenset({"link down there"})
"""What the comparison at intervals (30 s) heals. It does not come twice in the time of two traces."""
FAULTS: Faults[Scene, tuple[Member, str, str]] = {}
fault = registering(FAULTS)


@contextmanager
def changed(host: Host, do: str, undo: str) -> Iterator[None]:
    script(host, do)
    try:
        yield
    finally:
        script(host, undo)


def nft(chain: str, hook: str, rule: str, table: str = "inet foreign") -> tuple[str, str]:
    text = f"table {table} {{ chain {chain} {{ type filter hook {hook} priority 0; {rule}; }}; }}"
    return f"nft '{text}'", f"nft delete table {table}"


@contextmanager
def daemon_ended(it: Scene, *, killed: bool = False) -> Iterator[None]:
    """The daemon of the second host does not run."""
    if killed:
        it.two.netplug.kill()
    else:
        it.two.netplug.stop()
    try:
        yield
    finally:
        it.two.netplug.start()


@contextmanager
def cut(member: Member) -> Iterator[None]:
    member.cut()
    try:
        yield
    finally:
        member.mend()


@fault("nobody listens there")
def nobody_listens(it: Scene) -> Iterator[tuple[Member, str, str]]:
    yield it.one, "web", "db:81"


@fault("paused there")
def paused(it: Scene) -> Iterator[tuple[Member, str, str]]:
    it.dockerd.docker("pause", "shop")
    try:
        yield it.two, "db", "blue/shop:80"
    finally:
        it.dockerd.docker("unpause", "shop")


@fault("link down there")
def link_down(it: Scene) -> Iterator[tuple[Member, str, str]]:
    v4, v6 = it.db.addresses
    # What goes with the link: addresses and routes of IPv6, and the default route.
    before = it.db.exec("ip", "-6", "addr", "show", "dev", "eth0", "scope", "global")
    length = before.partition(v6 + "/")[2].split()[0]
    gateways = [it.db.exec("ip", flag, "route", "show", "default").split()[2] for flag in ("-4", "-6")]
    it.db.exec("ip", "link", "set", "eth0", "down")
    try:
        yield it.one, "web", f"{v4}:80"
    finally:
        it.db.exec("ip", "link", "set", "eth0", "up")
        it.db.exec("ip", "-6", "addr", "replace", f"{v6}/{length}", "dev", "eth0", "nodad")
        for flag, gateway in zip(("-4", "-6"), gateways, strict=True):
            it.db.exec("ip", flag, "route", "replace", "default", "via", gateway, "dev", "eth0", "proto", "110")


@fault("firewall inside there")
def firewall_inside(it: Scene) -> Iterator[tuple[Member, str, str]]:
    do, undo = nft("input", "input", "tcp dport 80 drop", "inet fw")
    inside = f"ip netns exec {it.db.name} "
    with changed(it.two.host, inside + do, inside + undo):
        yield it.one, "web", "db:80"


@fault("MTU lowered silently")
def mtu_silently(it: Scene) -> Iterator[tuple[Member, str, str]]:
    with changed(it.it.router, *nft("forward", "forward", "meta length > 1400 drop")):
        yield it.one, "web", "db:80"


@fault("MTU lowered, daemon stopped")
def mtu_unwatched(it: Scene) -> Iterator[tuple[Member, str, str]]:
    with daemon_ended(it), changed(it.it.router, *nft("forward", "forward", "meta length > 1400 drop")):
        yield it.one, "web", "db:80"


@fault("UDP 4789 blocked between")
def blocked_between(it: Scene) -> Iterator[tuple[Member, str, str]]:
    with changed(it.it.router, *nft("forward", "forward", "udp dport 4789 drop")):
        yield it.one, "web", "db:80"


@fault("UDP 4789 blocked on the way back")
def blocked_back(it: Scene) -> Iterator[tuple[Member, str, str]]:
    rule = f"iifname {it.two.wire.right_link} udp dport 4789 drop"
    with changed(it.it.router, *nft("forward", "forward", rule)):
        yield it.one, "web", "db:80"


@fault("UDP 4789 blocked here")
def blocked_here(it: Scene) -> Iterator[tuple[Member, str, str]]:
    with changed(it.one.host, *nft("output", "output", "udp dport 4789 drop")):
        yield it.one, "web", "db:80"


@fault("UDP 4789 blocked there")
def blocked_there(it: Scene) -> Iterator[tuple[Member, str, str]]:
    rule = "INPUT -p udp --dport 4789 -j DROP"
    with changed(it.two.host, f"iptables -I {rule}", f"iptables -D {rule}"):
        yield it.one, "web", "db:80"


@fault("FDB entry rewritten")
def fdb_rewritten(it: Scene) -> Iterator[tuple[Member, str, str]]:
    """The daemon heals it each time; what else has a hand in it writes it again at once."""
    entry = f"{it.db.mac} dev {it.vxlan(it.one)} self"
    loop = f"while :; do bridge fdb replace {entry} dst 198.51.9.9; done"
    other = it.one.host.popen(["sh", "-c", loop], log="fdb.log")
    try:
        wait_until(lambda: it.one.knows(it.db.mac) == "198.51.9.9", what="the entry is wrong")
        yield it.one, "web", "db:80"
    finally:
        other.kill()
        it.one.cli("repair")  # ends the contest, of which netplug diff tells for a minute otherwise
        assert it.one.knows(it.db.mac) == it.two.vtep


@fault("FDB entry lost, daemon down")
def fdb_lost(it: Scene) -> Iterator[tuple[Member, str, str]]:
    entry = f"{it.web.mac} dev {it.vxlan(it.two)} self"
    with daemon_ended(it):
        script(it.two.host, f"bridge fdb del {entry}")
        yield it.one, "web", "db:80"
    wait_until(lambda: it.two.knows(it.web.mac) == it.one.vtep, 40, "the daemon has healed it")


@fault("address claimed by another host")
def address_claimed(it: Scene) -> Iterator[tuple[Member, str, str]]:
    address = it.db.addresses[0]
    (key,) = it.it.etcd.keys("ipam/leases/", f"/{address}")
    before = it.it.etcd.read(key)
    it.it.etcd.write(key, {**before, "host": "f" * 32})
    try:
        wait_until(lambda: not it.one.knows(it.db.mac), what="it is ignored")
        yield it.one, "web", f"{address}:80"
    finally:
        it.it.etcd.write(key, before)


@fault("from the host itself")
def from_the_host(it: Scene) -> Iterator[tuple[Member, str, str]]:
    yield it.one, "host", f"{it.db.addresses[0]}:80"


@fault("link of the underlay down here")
def underlay_down(it: Scene) -> Iterator[tuple[Member, str, str]]:
    with cut(it.one):
        yield it.one, "web", "db:80"


@fault("no route here")
def no_route(it: Scene) -> Iterator[tuple[Member, str, str]]:
    with changed(it.one.host, "ip route del default", f"ip route add default via {it.one.wire.right}"):
        yield it.one, "web", "db:80"


@fault("this host cut off")
def cut_off(it: Scene) -> Iterator[tuple[Member, str, str]]:
    rule = f"iifname {it.one.wire.right_link} drop"
    with changed(it.it.router, *nft("prerouting", "prerouting", rule)):
        yield it.one, "web", "db:80"


@fault("cable cut there")
def cable_cut(it: Scene) -> Iterator[tuple[Member, str, str]]:
    with cut(it.two):
        yield it.one, "web", "db:80"


@fault("other host dead")
def host_dead(it: Scene) -> Iterator[tuple[Member, str, str]]:
    # It starts when the cable is plugged in again.
    with daemon_ended(it, killed=True), cut(it.two):
        yield it.one, "web", "db:80"


@fault("VTEP changed")
def vtep_changed(it: Scene) -> Iterator[tuple[Member, str, str]]:
    link, router = it.two.wire.left_link, it.two.wire.right
    change = "ip addr del {}/24 dev {}; ip addr add {}/24 dev {}; ip route replace default via {}"
    new = "198.51.2.77"
    do = change.format(it.two.vtep, link, new, link, router)
    undo = change.format(new, link, it.two.vtep, link, router)
    with daemon_ended(it, killed=True), changed(it.two.host, do, undo):
        yield it.one, "web", "db:80"


@fault("daemon hangs")
def daemon_hangs(it: Scene) -> Iterator[tuple[Member, str, str]]:
    it.two.netplug.process.freeze()
    try:
        yield it.one, "web", "db:80"
    finally:
        it.two.netplug.process.signal(signal.SIGCONT)


@fault("daemon killed")
def daemon_killed(it: Scene) -> Iterator[tuple[Member, str, str]]:
    with daemon_ended(it, killed=True):
        yield it.one, "web", "db:80"


@fault("store down")
def store_down(it: Scene) -> Iterator[tuple[Member, str, str]]:
    it.it.etcd.hang()
    try:
        yield it.one, "web", "db:80"
    finally:
        it.it.etcd.go_on()


@fault("daemon stopped")
def daemon_stopped(it: Scene) -> Iterator[tuple[Member, str, str]]:
    with daemon_ended(it):
        yield it.one, "web", "db:80"


@pytest.mark.parametrize("name", list(FAULTS))
def test_fault_is_named(scene: Scene, name: str) -> None:
    row, answer = ROWS[name], _of_fault(scene, name)
    if name in HEALED and answer["reached"]:
        answer = _of_fault(scene, name)
    assert answer["reached"] is row.reached, shown(answer)
    verdict = "noted" if row.reached else "broken"
    found = [hop["cause"] for hop in answer["hops"] if hop["verdict"] == verdict]
    assert [cause["kind"] for cause in found] == [row.kind], shown(answer)
    assert row.matches(found[0]["words"], found[0]["mend"]), shown(answer)
    assert answer["seconds"] < BROKEN_S, shown(answer)


def _of_fault(scene: Scene, name: str) -> dict[str, Any]:
    try:
        with FAULTS[name](scene) as ends:
            return scene.trace(*ends)
    finally:
        scene.both_live()


def test_nothing_is_left_of_traces(scene: Scene) -> None:
    for member in scene.it.members:
        wait_until(lambda member=member: member.differences() == [], 40, "nothing of the faults is left")  # type: ignore[misc]
        assert "trace" not in member.host.output("nft", "list", "tables")
    wait_until(lambda: scene.it.etcd.newest("questions/") == 0, 10, "no question is left")


def test_the_document_lists_the_faults() -> None:
    assert list(FAULTS) == list(ROWS)
    assert in_document(BEGIN, END) == markdown(ROWS), "python integration/trace_overlay_faults.py --write"


@pytest.fixture(scope="module")
def over_ipv6() -> Iterator[tuple[Cluster, Namespace, Namespace]]:
    """A cluster whose hosts reach each other by IPv6, and a network that uses another UDP port than the usual one."""
    with (
        cluster(2, family=6) as it,
        it.network("green", "--subnet", "10.90.8.0/24", "-o", "vxlan_port=5789") as net,
        it.station(it.members[0], net, "--name", "here") as here,
        it.station(it.members[1], net, "--name", "there") as there,
    ):
        yield it, here, there


def test_path_over_ipv6_and_a_router_that_tells_its_mtu(over_ipv6: tuple[Cluster, Namespace, Namespace]) -> None:
    """Routers of IPv6 do not fragment, and tell the sender: so containers learn what passes."""
    it, _, _ = over_ipv6
    one, link = it.members[0], it.members[1].wire.right_link

    _healthy(trace(one.netplug, "here", "there"))
    script(it.router, f"ip link set {link} mtu 1400")
    try:
        answer = trace(one.netplug, "here", "there")
    finally:
        script(it.router, f"ip link set {link} mtu 1500")
    assert "1330" in str(answer), shown(answer)


def test_host_of_the_former_release_is_not_asked_and_not_disturbed(tmp_path: Path) -> None:
    """It knows no questions: its record says so, and it reads none."""
    env = runs(former_release(tmp_path))
    with cluster(1) as it:
        old = it.join(*it.prepare(), env=env)
        one = it.members[0]
        with it.network("blue") as net, it.station(one, net, "--name", "new") as new, it.station(old, net) as other:
            answer = trace(one.netplug, "new", other.addresses[0])
            assert answer["reached"], shown(answer)
            (noted,) = [hop["cause"] for hop in answer["hops"] if hop["cause"]]
            assert noted["kind"] == "far.unknown_kind", shown(answer)
            assert noted["mend"] == "update netplug there"
            assert it.etcd.newest("questions/") == 0
            assert new.pings(other.addresses[0])
            assert "questions" not in old.netplug.log.read_text()
            assert old.differences() == []
