"""`netplug doctor` on hosts on which one thing after the other is wrong, and on those on which nothing is."""

import contextlib
import json
import resource
import signal
import sqlite3
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from harness import (
    CommandError,
    Dockerd,
    Host,
    Netplug,
    Upstream,
    connect,
    container,
    docker_network,
    namespace,
    wait_until,
)
from harness.cluster import Cluster, cluster, needs_etcd
from harness.environment import ENVIRONMENTS, Environment
from harness.netplugd import COMMAND, RUN_DIR
from harness.traffic import bound

from netplug.cli import NO, OK, UNREACHABLE

Findings = list[dict[str, str]]

DOCTOR_S = 2.0
"""For a doctor to answer."""
HEAL_S = 25.0
WRONG = {"failure", "warning"}
NET = "blue"


@pytest.fixture(scope="module")
def healthy(host: Host, client: Host) -> Iterator[Netplug]:
    """A daemon without Docker, with a network, and a name server on the other end of the cable."""
    wire = connect(host, client)
    with Upstream(client, wire.right, "192.0.2.7"):
        netplug = Netplug(host, "--docker-host", "none", "--dns-upstream", wire.right)
        netplug.cli("network", "create", NET, "--subnet", "10.77.0.0/29")
        yield netplug


def run(netplug: Netplug) -> tuple[str, int]:
    """Return what the command prints, and its exit code."""
    try:
        return netplug.cli("doctor", "--json"), OK
    except CommandError as exc:
        return exc.stdout, exc.code


def doctor(netplug: Netplug, code: int = NO) -> Findings:
    """Return what it finds, and check its exit code."""
    said, ended = run(netplug)
    found: Findings = json.loads(said)["findings"]
    assert ended == code, [it for it in found if it["verdict"] in WRONG]
    return found


def wrong(netplug: Netplug, check: str, code: int = NO) -> Findings:
    """Return what one check finds wrong."""
    return [it for it in doctor(netplug, code) if it["check"] == check and it["verdict"] in WRONG]


def answers_in_time(netplug: Netplug) -> None:
    took = []
    for _ in range(3):
        began = time.monotonic()
        netplug.client.get("doctor")
        took.append(time.monotonic() - began)
    assert min(took) < DOCTOR_S, took


def quiet(netplug: Netplug) -> None:
    """Wait until nothing is wrong; after a flush, the daemon puts its rules in their place within a second."""

    def well() -> bool:
        return not [it for it in json.loads(run(netplug)[0])["findings"] if it["verdict"] in WRONG]

    wait_until(well, HEAL_S, "the doctor finds nothing")


@contextmanager
def sysctl(host: Host, name: str, value: str) -> Iterator[None]:
    before = host.output("sysctl", "-n", name)
    host.run(["sysctl", "-qw", f"{name}={value}"])
    try:
        yield
    finally:
        host.run(["sysctl", "-qw", f"{name}={before}"])


def test_healthy_host_is_quiet(healthy: Netplug) -> None:
    found = doctor(healthy, OK)
    assert {it["verdict"] for it in found} <= {"ok", "note"}, found
    assert len({it["check"] for it in found}) > 30
    answers_in_time(healthy)


def test_forwarding_that_somebody_turned_off(healthy: Netplug) -> None:
    def off() -> Findings:
        said, ended = run(healthy)
        wrong = [it for it in json.loads(said)["findings"] if it["verdict"] in WRONG]
        assert ended == (NO if wrong else OK), wrong
        return [it for it in wrong if it["check"] == "kernel.forwarding"]

    command = "while :; do echo 0 > /proc/sys/net/ipv4/ip_forward; sleep 0.01; done"
    with sysctl(healthy.host, "net.ipv4.ip_forward", "0"):
        # Again and again: the daemon turns it on within a second, and the doctor may look later.
        again = healthy.host.popen(["sh", "-c", command], log="off.log")
        try:
            (found,) = wait_until(off, HEAL_S, "the doctor to see it")
        finally:
            again.kill()
    assert found["verdict"] == "failure"
    assert found["mend"] == "sysctl -w net.ipv4.ip_forward=1"
    quiet(healthy)


def test_bridge_netfilter_is_worth_a_note(healthy: Netplug) -> None:
    with sysctl(healthy.host, "net.bridge.bridge-nf-call-iptables", "1"):
        (found,) = [it for it in doctor(healthy, OK) if it["check"] == "kernel.bridge-netfilter"]
    assert found["verdict"] == "note"
    assert "bridge-nf-call-iptables is 1" in found["why"]


_CHAIN = (
    "nft add table inet site; nft add chain inet site forward '{ type filter hook forward priority 0; policy %s; }'"
)
_DROP = f"{_CHAIN % 'accept'}; nft add rule inet site forward ip saddr 10.77.0.2 counter drop"
_HOOK = (
    "nft add table inet site; nft add chain inet site %s '{ type filter hook %s priority 0; }'; nft add rule inet site "
)
RULES = {
    "iptables-nft": ("iptables-nft -I FORWARD -s 10.77.0.0/29 -j DROP", "iptables-nft -F FORWARD"),
    "iptables-legacy": ("iptables-legacy -I FORWARD -i np-+ -j REJECT", "iptables-legacy -F FORWARD"),
    "policy of iptables": ("iptables-nft -P OUTPUT DROP", "iptables-nft -P OUTPUT ACCEPT"),
    "policy of iptables-legacy": ("iptables-legacy -P OUTPUT DROP", "iptables-legacy -P OUTPUT ACCEPT"),
    "nft": (_DROP, "nft delete table inet site"),
    "policy of nft": (_CHAIN % "drop", "nft delete table inet site"),
    "nft, prerouting": (f"{_HOOK % ('a', 'prerouting')} a ip saddr 10.77.0.0/24 drop", "nft delete table inet site"),
    "nft, input": (f"{_HOOK % ('a', 'input')} a iifname 'np-*' reject", "nft delete table inet site"),
    "nft, output": (f"{_HOOK % ('a', 'output')} a ip daddr 10.77.0.2 drop", "nft delete table inet site"),
    "nft, all": (f"{_HOOK % ('a', 'prerouting')} a drop", "nft delete table inet site"),
}
"""How to add and remove them."""


@pytest.mark.parametrize("kind", RULES)
def test_rule_of_others_that_drops_what_networks_forward(healthy: Netplug, kind: str) -> None:
    add, remove = RULES[kind]
    host = healthy.host
    host.run(["sh", "-ec", add])
    try:
        (found,) = wrong(healthy, "firewall.foreign")
        host.run(["sh", "-ec", found["mend"]])
        quiet(healthy)
    finally:
        host.run(["sh", "-c", remove])
    quiet(healthy)


OTHERS = f"""
{_HOOK % ("a", "prerouting")} a iifname uplink ip saddr 10.0.0.0/8 drop
nft add rule inet site a fib saddr . iif oif missing drop
nft add rule inet site a iifname != 'np-*' ip saddr 10.77.0.0/24 drop
nft add rule inet site a ether saddr 02:00:00:00:00:07 drop
nft add rule inet site a ip saddr 192.0.2.0/24 drop
nft add rule inet site a ip6 saddr 2001:db8::/32 drop
{_HOOK % ("b", "input")} b ct state invalid drop
nft add rule inet site b ct state established,related accept
nft add rule inet site b iifname lo accept
nft add rule inet site b tcp dport 22 accept
nft add rule inet site b drop
nft add chain inet site c '{{ type filter hook input priority 1; policy drop; }}'
nft add rule inet site c accept
{_HOOK % ("d", "output")} d tcp dport 25 drop
"""


def test_rules_of_others_that_concern_others_are_quiet(healthy: Netplug) -> None:
    healthy.host.run(["sh", "-ec", OTHERS])
    try:
        assert {it["verdict"] for it in doctor(healthy, OK) if it["check"] == "firewall.foreign"} == {"ok"}
        quiet(healthy)
    finally:
        healthy.host.run(["sh", "-c", "nft delete table inet site"])


def test_route_that_drops_a_part_of_a_subnet(healthy: Netplug) -> None:
    healthy.host.run(["ip", "route", "add", "blackhole", "10.77.0.4/30"])
    (found,) = wrong(healthy, "links.routes")
    assert "blackhole route 10.77.0.4/30" in found["why"]
    healthy.host.run(found["mend"].split())
    quiet(healthy)


def test_pool_that_is_full(healthy: Netplug) -> None:
    host, names = healthy.host, [f"full{number}" for number in range(5)]
    for name in names:
        host.run(["ip", "netns", "add", name])
        healthy.cli("attach", NET, "--netns", name)
    (found,) = wrong(healthy, "records.pools")
    assert found["why"] == f"network {NET}: 6 of 6 addresses of 10.77.0.0/29 are in use: nobody else can join"
    for name in names:
        healthy.cli("detach", NET, "--netns", name)
        host.run(["ip", "netns", "del", name])
    quiet(healthy)


def test_no_daemon_runs(healthy: Netplug) -> None:
    healthy.stop()
    first, *others = doctor(healthy, UNREACHABLE)
    assert first["check"] == "daemon"
    assert first["why"].startswith("no daemon answers at /run/netplug/netplug.sock")
    assert "netplug serve" in first["mend"]
    assert {"kernel.features", "kernel.forwarding", "resources.disk"} <= {it["check"] for it in others}
    # It knows the networks by the records.
    env = {"NETPLUG_RUN_DIR": RUN_DIR, "NETPLUG_STATE_DIR": str(healthy.state_dir)}
    with sysctl(healthy.host, "net.ipv4.ip_forward", "0"):
        said = healthy.host.run([str(COMMAND), "doctor", "--json"], check=False, env=env).stdout
    (found,) = [it for it in json.loads(said)["findings"] if it["check"] == "kernel.forwarding"]
    assert (found["verdict"], NET in found["why"]) == ("failure", True)
    healthy.start()
    quiet(healthy)


def test_daemon_that_hangs(healthy: Netplug) -> None:
    assert healthy.process
    healthy.process.freeze()
    try:
        found = doctor(healthy, UNREACHABLE)
    finally:
        healthy.process.signal(signal.SIGCONT)
    assert "did not answer" in found[0]["why"]
    assert "hangs" in found[0]["why"]


@pytest.mark.parametrize("where", ["10.77.0.1", "0.0.0.0"])
def test_port_of_a_name_server_that_another_has(healthy: Netplug, where: str) -> None:
    with bound(healthy.host, "udp", 53, where):
        found = wrong(healthy, "dns.ports", NO if where == "10.77.0.1" else OK)
    assert [(it["verdict"], f"udp port 53 of {where}" in it["why"]) for it in found] == [("warning", True)] * len(found)
    assert len(found) == (where == "10.77.0.1")


def test_limit_of_file_descriptors_that_is_low(healthy: Netplug) -> None:
    assert healthy.process
    before = resource.prlimit(healthy.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(healthy.process.pid, resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        (found,) = wrong(healthy, "resources.descriptors")
    finally:
        resource.prlimit(healthy.process.pid, resource.RLIMIT_NOFILE, before)
    assert "LimitNOFILE" in found["mend"]


def test_record_that_this_version_cannot_use(healthy: Netplug) -> None:
    healthy.stop()
    path = healthy.state_dir / "netplug.db"

    def spoil(before: str, after: str) -> None:
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            change = "UPDATE record SET value = replace(value, ?, ?) WHERE CAST(key AS TEXT) LIKE 'networks/%'"
            db.execute(change, (before, after))

    spoil('{"network":', '{"colour":"blue","network":')
    healthy.start()
    found = wrong(healthy, "records.quarantine")
    assert any("colour" in it["why"] for it in found)
    healthy.stop()
    spoil('{"colour":"blue","network":', '{"network":')
    healthy.start()
    quiet(healthy)


def test_lease_of_a_namespace_that_is_gone(healthy: Netplug) -> None:
    found: Findings = []
    deadline = time.monotonic() + 60
    while not found and time.monotonic() < deadline:  # else the daemon has noticed it first
        with namespace(healthy.host) as place:
            place.attach(healthy, NET)
        said, code = run(healthy)
        found = [it for it in json.loads(said)["findings"] if it["verdict"] in WRONG]
        assert code == (NO if found else OK), found
    assert {it["check"] for it in found} <= {"records.leases", "records.drift"}
    assert found
    healthy.cli("repair")
    quiet(healthy)


# Beside other firewalls


@pytest.mark.parametrize("env", ENVIRONMENTS, ids=lambda it: it.name)
def test_host_beside_another_firewall_is_quiet(env: Environment, new_host: Callable[[str], Host]) -> None:
    """No false alarm, whatever guards the host."""
    if missing := env.missing():
        pytest.skip(f"needs {missing} (make setup)")
    host, far = new_host(env.name), new_host("far")
    wire = connect(host, far)
    env.prepare(host)
    if env.docker is not None:
        Dockerd(host, *env.docker, env=env.docker_env(host))
    with Upstream(far, wire.right, "192.0.2.7"), namespace(host) as place:
        flags = ("--dns-upstream", wire.right, *["--docker-host", "none"] * (env.docker is None))
        netplug = Netplug(host, *flags)
        netplug.cli("network", "create", NET, "--subnet", "10.77.0.0/24")
        place.attach(netplug, NET)
        quiet(netplug)
        assert {it["verdict"] for it in doctor(netplug, OK)} <= {"ok", "note"}
        place.detach(netplug, NET)


# With Docker


SECRETS = {"label": "s3cret-of-label", "env": "s3cret-of-env", "url": "s3cret-of-url"}


@pytest.fixture(scope="module")
def beside_docker() -> Iterator[tuple[Dockerd, Netplug]]:
    """A host with Docker and a container, and a store that does not answer and has a password."""
    with Host("docker") as host, Host("router") as router:
        wire = connect(host, router)
        with Upstream(router, wire.right, "192.0.2.7"):
            dockerd = Dockerd(host)
            store = f"etcd://np:{SECRETS['url']}@{wire.right}:2379"
            flags = ("--store", store, "--vtep", wire.left, "--dns-upstream", wire.right)
            yield dockerd, Netplug(host, *flags, env={"SOME_TOKEN": SECRETS["env"]})


def test_docker_that_hangs(beside_docker: tuple[Dockerd, Netplug]) -> None:
    dockerd, netplug = beside_docker
    assert dockerd.process
    dockerd.process.freeze()
    try:
        found = wrong(netplug, "docker.engine")
    finally:
        dockerd.process.signal(signal.SIGCONT)
    assert [it["verdict"] for it in found] == ["failure"]
    assert "dockerd does not answer" in found[0]["why"]
    assert wrong(netplug, "docker.engine") == []


def test_containers_of_docker_ask_netplug_for_names(beside_docker: tuple[Dockerd, Netplug]) -> None:
    dockerd, netplug = beside_docker
    with docker_network(dockerd) as net, container(dockerd, "--network", net, "--name", "web"):
        # Others are wrong: its store does not answer. The container is known by Docker's events, in their time.
        wait_until(lambda: wrong(netplug, "docker.resolvers") == [], HEAL_S, "its resolver")
        found = [it for it in doctor(netplug) if it["check"] == "docker.resolvers"]
    assert [it["verdict"] for it in found] == ["ok"]


def test_archive_has_no_secrets(beside_docker: tuple[Dockerd, Netplug]) -> None:
    dockerd, _ = beside_docker
    host = dockerd.host
    label, env = f"s={SECRETS['label']}", f"SECRET={SECRETS['env']}"
    with (
        docker_network(dockerd, "--label", label) as net,
        container(dockerd, "--network", net, "--label", label, "-e", env, "--name", "web"),
    ):
        command = f"cd {host.dir} && {COMMAND} doctor --support --json"
        said = host.run(["sh", "-c", command], check=False, env={"NETPLUG_RUN_DIR": "/run/netplug"})
    archive = json.loads(said.stdout)["archive"]
    with tarfile.open(archive["path"]) as tar:
        texts = {it.name: tar.extractfile(it).read().decode() for it in tar.getmembers()}  # type: ignore[union-attr]
    assert [(name, it) for name, text in texts.items() for it in SECRETS.values() if it in text] == []
    names = {name.partition("/")[2] for name in texts}
    assert {"doctor.json", "settings.json", "endpoints.json", "host/nftables.txt", "host/routes4.txt"} <= names
    assert '"web"' in next(text for name, text in texts.items() if name.endswith("endpoints.json"))


# Several hosts


@pytest.fixture(scope="module")
def two() -> Iterator[Cluster]:
    name_server = "198.51.1.2"  # the router's end of the first cable
    with cluster(2, "--dns-upstream", name_server) as it, Upstream(it.router, name_server, "192.0.2.7"):
        yield it


@needs_etcd
def test_healthy_cluster_is_quiet(two: Cluster) -> None:
    with two.network("far"):
        for member in two.members:
            found = {it["check"]: it for it in doctor(member.netplug, OK)}
            assert found["cluster.mtu"]["why"] == "packets of network far fit on the ways to 1 other hosts"
            answers_in_time(member.netplug)


@contextmanager
def broken(host: Host, breaks: str, mends: str) -> Iterator[None]:
    host.run(["sh", "-ec", breaks])
    try:
        yield
    finally:
        host.run(["sh", "-ec", mends])


@needs_etcd
@pytest.mark.parametrize("told", [True, False], ids=["with ICMP", "without a word"])
def test_underlay_that_is_too_narrow(two: Cluster, told: bool) -> None:
    one, other = two.members
    link = other.wire.right_link
    silence = "iptables -I OUTPUT -p icmp --icmp-type fragmentation-needed -j DROP; " * (not told)
    speak = "; iptables -F OUTPUT" * (not told)
    narrow, wide = (f"ip link set {link} mtu {mtu}" for mtu in (1400, 1500))
    with two.network("far"), broken(two.router, f"{silence}{narrow}", f"{wide}{speak}"):
        (found,) = wrong(one.netplug, "cluster.mtu")
        assert f"the way to host {other.host.name} ({other.vtep})" in found["why"]
        assert ("allows packets of 1400 bytes" if told else "without a word") in found["why"]
        assert ("-o mtu=1350" if told else "-o mtu=SIZE") in found["mend"]
    one.host.run(["ip", "route", "flush", "cache"])
    quiet(one.netplug)


@needs_etcd
def test_etcd_that_hangs_and_that_is_down(two: Cluster) -> None:
    one = two.members[0].netplug
    two.etcd.hang()
    try:
        (found,) = wrong(one, "store.shared")
    finally:
        two.etcd.go_on()
    assert "does not answer within" in found["why"]
    quiet(one)
    two.etcd.kill()
    (found,) = wrong(one, "store.shared")
    assert found["verdict"] == "failure"
    one.stop()
    assert [it["check"] for it in doctor(one, UNREACHABLE)[:1]] == ["daemon"]
    two.etcd.start()
    one.start()
    quiet(one)
