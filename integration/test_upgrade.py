"""From the former release to this one and back, while traffic flows, with the state that the former release made.

The hosts belong to a test alone. Datagrams go every 10 ms, and none may be lost.
"""

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_network
from pathlib import Path

import pytest
from harness import (
    BIN_DIR,
    PYNET,
    RANGES4,
    CommandError,
    Container,
    Dockerd,
    Host,
    Namespace,
    Netplug,
    SeenServer,
    Stream,
    Wire,
    cli_network,
    cni_attached,
    cni_list,
    connect,
    container,
    docker_network,
    namespace,
    own_ipam,
    tcp_ask,
    wait_until,
)
from harness.cluster import Cluster, needs_etcd
from harness.flood import flood
from harness.former import former_release, previous_release, remains, runs, turn
from harness.traffic import Talk, bound

from netplug import __version__
from netplug.store.schema import OLDEST, VERSION

NewHost = Callable[..., Host]
CONVERGED = re.compile(r"step\.converged")
HEAL_TIMEOUT_S = 20
GATE = ("-A FORWARD -j NETPLUG-FORWARD", ":NETPLUG-FORWARD")


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of the former release."""
    return former_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of the release before this one."""
    return previous_release(tmp_path_factory.mktemp("release"))


@dataclass
class Place:
    """A host with a dockerd, a netplug, and a neighbour."""

    host: Host
    client: Host
    wire: Wire
    dockerd: Dockerd
    netplug: Netplug

    def becomes(self, tree: Path | None) -> list[str]:
        """Start the daemon of a source tree, None for ours, after the other was killed; return the lines of its log."""
        return turn(self.netplug, tree)

    def agrees(self) -> None:
        """Wait until records and kernel agree."""
        with suppress(AssertionError):
            wait_until(lambda: not self.netplug.drift(), HEAL_TIMEOUT_S)
        assert self.netplug.drift() == ""

    @property
    def log(self) -> list[str]:
        return self.netplug.log.read_text().splitlines()


@pytest.fixture
def place(new_host: NewHost, former: Path) -> Place:
    return placed(new_host, former)


def placed(new_host: NewHost, tree: Path) -> Place:
    """A place with the daemon of a source tree."""
    host, client = new_host(), new_host("client")
    wire = connect(host, client)
    return Place(host, client, wire, Dockerd(host), Netplug(host, env=runs(tree)))


@dataclass
class Built:
    """What a version has built: two containers of Docker, a bare namespace, a CNI container, and one on the LAN."""

    network: str
    web: Container
    db: Container
    bare: Namespace
    pod: Namespace
    lan: Namespace


@contextmanager
def built(place: Place) -> Iterator[Built]:
    """Networks and endpoints of every front end, removed by the version that runs then."""
    netplug = place.netplug
    lan = ("--mode", "macvlan", "--subnet", "203.0.113.0/24", "--ip-range", "203.0.113.128/25")
    netplug.cli("cni", "install", "--bin-dir", BIN_DIR)
    netplug.cli("network", "create", "lan", *lan, "--gateway", place.wire.right, "-o", f"parent={place.wire.left_link}")
    with ExitStack() as stack:
        net = stack.enter_context(docker_network(place.dockerd, "--ipam-driver", "pynet"))
        web = stack.enter_context(container(place.dockerd, "--network", net, "--name", "web", "-p", "8080:80"))
        db = stack.enter_context(container(place.dockerd, "--network", net, "--name", "db"))
        bare = stack.enter_context(namespace(place.host))
        bare.attach(netplug, net, "--name", "bare", "--publish", "9090:90", "-o", "rate=1gbit")
        runtime = stack.enter_context(cni_list(place.host, netplug, PYNET | own_ipam(RANGES4) | {"hairpinMode": True}))
        pod, _ = stack.enter_context(cni_attached(runtime, runtime={"mac": "02:00:00:00:00:0a"}))
        outside = stack.enter_context(namespace(place.host))
        outside.attach(netplug, "lan")
        yield Built(net, web, db, bare, pod, outside)
        outside.detach(netplug, "lan")
        bare.detach(netplug, net)
    netplug.cli("network", "rm", "lan")


@contextmanager
def traffic(place: Place, it: Built) -> Iterator[None]:
    """Datagrams between all of them and connections by published ports, through all of the block."""
    inner = it.db.ip(it.network)
    streams = {
        "container to container": Stream(it.web, it.db, inner),
        "namespace to container": Stream(it.bare, it.web, it.web.ip(it.network)),
        "CNI container to the outside": Stream(it.pod, place.client, place.wire.right),
        "the outside to the LAN": Stream(place.client, it.lan, it.lan.addresses[0]),
    }
    with ExitStack() as stack:
        for stream in streams.values():
            stack.enter_context(stream)
        stack.enter_context(Talk(place.client, it.web, place.wire.left, 8080, at=80))
        stack.enter_context(Talk(place.client, it.bare, place.wire.left, 9090, at=90))
        stack.enter_context(Talk(it.bare, it.db, inner, 7200))
        yield
    assert {name: stream.lost for name, stream in streams.items() if stream.lost} == {}
    assert all(stream.sent > 20 for stream in streams.values())


@contextmanager
def fenced(place: Place, it: Built) -> Iterator[None]:
    """Nothing gets where it may not, through all of the block: neither into a network, nor with another's address."""
    web, inner = it.web.ip(it.network), it.db.ip(it.network)
    subnet = ip_network(f"{inner}/24", strict=False)
    place.client.output("ip", "route", "replace", str(subnet), "via", place.wire.left)
    forged = str(subnet[250])
    it.bare.exec("ip", "address", "add", f"{forged}/32", "dev", "eth0")
    with ExitStack() as stack:
        floods = {
            "another network": stack.enter_context(flood(it.pod, it.web, web, 7301)),
            "the outside": stack.enter_context(flood(place.client, it.web, web, 7302)),
            "another's address": stack.enter_context(flood(it.bare, it.db, inner, 7303, source=forged)),
        }
        yield
    assert {name: server.seen[:3] for name, server in floods.items() if server.seen} == {}
    it.bare.exec("ip", "address", "del", f"{forged}/32", "dev", "eth0")


def reserved(place: Place, network: str) -> list[str]:
    """Return the published ports that nobody else can have, of those that the tests publish."""
    taken = []
    for port in ("7070", "8080", "9090", "9999"):
        with namespace(place.host) as other:
            if other.attaches(place.netplug, network, "--publish", f"{port}:1"):
                other.detach(place.netplug, network)
            else:
                taken.append(port)
    return taken


def free(place: Place, port: int) -> bool:
    """Whether somebody else on the host can have a TCP port."""
    try:
        bound(place.host, "tcp", port, "0.0.0.0").close()
    except OSError:
        return False
    return True


# Upgrade


def test_upgrade_keeps_traffic_and_changes_only_what_is_new(place: Place) -> None:
    """The former release answers by the default route alone what comes in by a port of another network."""
    with built(place) as it, cli_network(place.netplug) as second:
        it.bare.attach(place.netplug, second, "--ifname", "eth1", "--publish", "7171:71")
        with traffic(place, it):
            said = [line for line in place.becomes(None) if CONVERGED.search(line)]
            place.agrees()
        assert any("object=source-route/" in line for line in said), said
        assert "NETPLUG-FROM" not in place.host.output("iptables-save")
        assert "netplug-" not in place.host.output("ipset", "list", "-name")
        with SeenServer(it.bare, "tcp", 71):
            assert tcp_ask(place.client, place.wire.left, 7171) == place.wire.right
        assert reserved(place, it.network) == ["8080", "9090"]
        assert place.netplug.json("ipam", "audit") == []
        it.bare.detach(place.netplug, second, "--ifname", "eth1")


NEW = {"source-route", "element", "hook", "link"}
"""Kinds of the steps of networks and endpoints that the former release did not make, or otherwise."""


def converged(said: list[str]) -> list[tuple[str, str]]:
    """Return kind and change of the steps that a daemon's log says it converged."""
    found = (line for line in said if CONVERGED.search(line))
    return [re.findall(r"object='?([\w-]+)/.*what=(\w+)", line)[0] for line in found]


def test_upgrade_mends_what_another_driver_built_and_says_each_step(place: Place, former: Path) -> None:
    """The driver built less, and something else; and the uplink's MTU fell while no daemon ran."""
    driver = former / "drivers" / "bridge.py"
    text = driver.read_text()
    try:
        driver.write_text(_otherwise(text))
        place.becomes(former)
        with built(place) as it:
            bridge = f"np-{place.dockerd.inspect(it.network)['Id'][:12]}"
            assert not guarded(place, it.db.mac())
            assert arp_proxy(place, bridge) == "1"
            with traffic(place, it):
                place.host.output("ip", "link", "set", place.wire.left_link, "mtu", "1400")
                said = [line for line in place.becomes(None) if CONVERGED.search(line)]
                place.agrees()
            assert remains(place.host) == []
            assert guarded(place, it.db.mac())
            assert arp_proxy(place, bridge) == "0"
            assert mtu(place, bridge) == 1400
            for what in ("what=added", "what=changed", "what=removed"):
                assert [line for line in said if what in line], what
            assert reserved(place, it.network) == ["8080", "9090"]
            assert not [line for line in place.becomes(None) if CONVERGED.search(line)]
    finally:
        driver.write_text(text)


def _otherwise(driver: str) -> str:
    """Return the source of a bridge driver that checks no source of endpoints, and answers ARP for others."""
    plan = "plan = Plan(tuple(steps)) + firewall"
    changes = {
        "return guard + shaping.with_limits": "return shaping.with_limits",
        plan: f"steps.append(Sysctl(f'net/ipv4/conf/{{bridge}}/proxy_arp', '1', '0'))\n        {plan}",
    }
    for old, new in changes.items():
        assert driver.count(old) == 1, old
        driver = driver.replace(old, new)
    return driver


def guarded(place: Place, mac: str) -> bool:
    """Whether the source of what comes from a container is checked."""
    return mac in place.host.output("nft", "list", "table", "bridge", "netplug")


def arp_proxy(place: Place, bridge: str) -> str:
    return place.host.output("cat", f"/proc/sys/net/ipv4/conf/{bridge}/proxy_arp")


def mtu(place: Place, link: str) -> int:
    return int(place.host.output("cat", f"/sys/class/net/{link}/mtu"))


# Rollback


def test_rollback_leaves_what_is_new_as_it_is(place: Place, former: Path) -> None:
    """The former release filters by iptables. What it cannot read it says, and its packets pass all the time."""
    netplug = place.netplug
    for iptables in ("iptables", "ip6tables"):
        place.host.output(iptables, "-P", "FORWARD", "DROP")  # packets need the gate
    with built(place) as it, namespace(place.host) as marked:
        place.becomes(None)
        netplug.cli("network", "create", "marked", "--label", "team=net", "-o", "gw_priority=5")
        netplug.cli("network", "create", "changed")
        netplug.cli("network", "update", "changed", "-o", "icc=false")
        marked.attach(netplug, "marked", "--publish", "7070:70")
        netplug.cli("publish", "web", "9999:81")
        before = netplug.json("ps")
        with (
            traffic(place, it),
            fenced(place, it),
            Stream(marked, place.client, place.wire.right, port=7101) as theirs,
            Talk(place.client, it.web, place.wire.left, 9999, at=81),
        ):
            place.becomes(former)
            said = wait_until(netplug.drift, HEAL_TIMEOUT_S, "what it cannot use")
            assert "cannot be used and is left as it is: NetworkRecord has no field 'labels'" in said
            assert "a plan has a step 'Element', which is not known" in said
            with pytest.raises(CommandError, match="cannot be used"):
                marked.detach(netplug, "marked")
            assert not [port for port in (7070, 8080, 9090, 9999) if free(place, port)]
            assert all(chain in place.host.output("iptables-save") for chain in GATE)
            with pytest.raises(CommandError):  # as not all can be used
                netplug.cli("repair")
            place.becomes(None)
            place.agrees()
        assert theirs.lost == []
        assert netplug.json("ps") == before
        assert netplug.client.get("networks", "marked")["labels"] == {"team": "net"}
        assert netplug.client.get("networks", "changed")["options"]["icc"] == "false"
        assert reserved(place, it.network) == ["7070", "8080", "9090", "9999"]
        netplug.cli("unpublish", "web", "9999:81")
        marked.detach(netplug, "marked")
        netplug.cli("network", "rm", "marked", "changed")


def test_rollback_of_what_has_no_firewall_finds_it(place: Place, former: Path) -> None:
    place.becomes(None)
    with built(place) as it:
        before = endpoints(place)
        with traffic(place, it):
            place.becomes(former)
            assert endpoints(place) == [row for row in before if row[3].startswith("203.0.113.")]
            place.becomes(None)
            place.agrees()
        assert endpoints(place) == before
        assert reserved(place, it.network) == ["8080", "9090"]


def test_container_that_is_removed_during_a_rollback_is_gone_after_it(place: Place, former: Path) -> None:
    """The former release cannot read its record; Docker, which is told that it is gone, says nothing of it again."""
    place.becomes(None)
    with docker_network(place.dockerd, "--ipam-driver", "pynet", "--subnet", "10.92.0.0/24") as net:
        web = place.dockerd.run("--network", net, "--name", "web", "-p", "8080:80")
        address = web.ip(net)
        place.netplug.cli("publish", "web", "9999:81")
        place.becomes(former)
        web.remove()
        place.becomes(None)
        wait_until(lambda: place.netplug.json("ps") == [], HEAL_TIMEOUT_S, "no endpoints")
        place.agrees()
        assert place.netplug.json("ipam", "audit") == []
        with container(place.dockerd, "--network", net, "--ip", address, "-p", "8080:80", "-p", "9999:80"):
            assert [it[0] != "" for it in endpoints(place)] == [True]


def endpoints(place: Place) -> list[tuple[str, ...]]:
    """Return the endpoints as both versions show them."""
    return [(it["id"], it["name"], it["mac"], *it["addresses"], *it["ports"]) for it in place.netplug.json("ps")]


# From the previous release, which filters as this one does


@contextmanager
def stored(place: Place) -> Iterator[sqlite3.Connection]:
    """The file of the store, while no daemon runs."""
    place.netplug.kill()
    with closing(sqlite3.connect(place.netplug.state_dir / "netplug.db")) as database:
        yield database
        database.commit()


def schema(place: Place) -> tuple[int, int, str]:
    """Return what the store says of itself."""
    with closing(sqlite3.connect(f"file:{place.netplug.state_dir / 'netplug.db'}?mode=ro", uri=True)) as database:
        found: tuple[int, int, str] = database.execute("SELECT version, oldest, release FROM schema").fetchone()
    return found


def test_previous_release_is_upgraded_and_returned_to(new_host: NewHost, previous: Path) -> None:
    """Neither release writes what the other one cannot read. What only a later one can, both leave as it is."""
    place = placed(new_host, previous)
    with built(place) as it:
        before = endpoints(place)
        with traffic(place, it):
            with fenced(place, it):
                place.becomes(None)
                place.agrees()
                assert schema(place) == (VERSION, OLDEST, __version__)
                place.becomes(previous)
                place.agrees()
            assert endpoints(place) == before
            with stored(place) as database:
                database.execute("UPDATE schema SET version = version + 1")
                # A key is bytes.
                later = "UPDATE record SET value = json_set(value, '$.later', 7) WHERE CAST(key AS TEXT) LIKE ?"
                assert database.execute(f"{later} AND value ->> 'name' = 'bare'", ("endpoints/%",)).rowcount == 1
            for tree in (previous, None):
                place.becomes(tree)
                said = wait_until(place.netplug.drift, HEAL_TIMEOUT_S, "what it cannot use")
                assert "cannot be used and is left as it is: EndpointRecord has no field 'later'" in said
                with pytest.raises(CommandError, match="cannot be used|is not attached" if tree else "cannot be used"):
                    it.bare.detach(place.netplug, it.network)
                assert not [port for port in (8080, 9090) if free(place, port)]
            with stored(place) as database:
                database.execute("UPDATE schema SET version = 9, oldest = 9, release = '9.0.0'")
            with pytest.raises(RuntimeError, match=r"releases before schema 9 cannot use; .* install netplug 9\.0\.0"):
                place.netplug.start()
            with stored(place) as database:
                database.execute("UPDATE schema SET oldest = 1")
                database.execute("UPDATE record SET value = json_remove(value, '$.later')")
            place.becomes(None)
            place.agrees()
        assert endpoints(place) == before
        assert place.netplug.json("ipam", "audit") == []


# In a cluster


@needs_etcd
def test_hosts_of_a_cluster_are_upgraded_and_rolled_back_one_after_the_other(former: Path) -> None:
    with ExitStack() as stack:
        it = Cluster(stack)
        one, two = (it.add(env=runs(former)) for _ in range(2))
        with it.network("blue") as net, it.station(one, net) as here, it.station(two, net) as there:
            with Stream(here, there, there.addresses[0]) as stream, Talk(there, here, here.addresses[0], 7201):
                for member in (one, two):
                    turn(member.netplug, None)
                    it.settled()
                    marked = f"marked{member.vtep.split('.')[2]}"
                    one.cli("network", "create", marked, "--cluster", "--label", "team=net")
                    wait_until(partial(two.has, marked), what="the network on the other host, whatever its version")
                    if member is two:
                        assert two.netplug.client.get("networks", marked)["labels"] == {"team": "net"}
                assert [remains(member.host) for member in it.members] == [[], []]
                turn(two.netplug, former)
                assert any("cannot be used and is left as it is" in said for said in two.differences())
                assert not two.has(net)
                turn(two.netplug, None)
                it.settled()
            assert stream.lost == []
            one.cli("network", "rm", "marked1", "marked2")
