"""Events and metrics of real hosts: Debian's Prometheus reads two daemons, and says so when something is wrong."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from shutil import which
from typing import Any
from urllib.parse import quote

import pytest
from harness import Host, namespace, wait_until
from harness.cluster import Cluster, Member, cluster, needs_etcd
from harness.host import CommandError

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
PROMETHEUS = which("prometheus") or str(ROOT / ".venv/prometheus/usr/bin/prometheus")
HTTP, API = "127.0.0.1:9820", "127.0.0.1:9090"
DEAD_S = 40
"""Until a host counts as dead, and Prometheus has seen that."""

pytestmark = [
    needs_etcd,
    pytest.mark.skipif(not Path(PROMETHEUS).exists(), reason="needs prometheus (packaging/setup.sh system)"),
]


class Prometheus:
    """Debian's Prometheus on a member, with our example's configuration, in a hurry."""

    def __init__(self, member: Member) -> None:
        self.host: Host = member.host
        self._folder = self.host.dir / "prometheus"
        self._folder.mkdir()
        hasty = re.sub(r"_interval: 15s", "_interval: 1s", (EXAMPLES / "prometheus/prometheus.yml").read_text())
        (self._folder / "prometheus.yml").write_text(hasty)
        rules = re.sub(r"for: \d+m", "for: 0s", (EXAMPLES / "prometheus/alerts.yml").read_text())
        (self._folder / "alerts.yml").write_text(rules)
        command = [PROMETHEUS, f"--config.file={self._folder}/prometheus.yml", f"--web.listen-address={API}"]
        self.process = self.host.popen([*command, f"--storage.tsdb.path={self._folder}/data"], log="prometheus.log")
        wait_until(self._ready, 30, "prometheus")

    def _ready(self) -> bool:
        assert self.process.alive, "prometheus ended"
        try:
            return "Ready" in self.host.output("curl", "-sf", f"http://{API}/-/ready")
        except CommandError:
            return False

    def ask(self, path: str) -> Any:
        answer = json.loads(self.host.output("curl", "-sf", f"http://{API}/api/v1/{path}"))
        assert answer["status"] == "success"
        return answer["data"]

    def query(self, text: str) -> list[tuple[dict[str, str], float]]:
        found = self.ask(f"query?query={quote(text)}")["result"]
        return [(one["metric"], float(one["value"][1])) for one in found]

    def firing(self) -> set[str]:
        return {one["labels"]["alertname"] for one in self.ask("alerts")["alerts"] if one["state"] == "firing"}


@pytest.fixture(scope="module")
def hosts() -> Iterator[Cluster]:
    with cluster(2, "--http", HTTP, "--http-endpoint-traffic") as it:
        yield it


@pytest.fixture(scope="module")
def prometheus(hosts: Cluster) -> Iterator[Prometheus]:
    it = Prometheus(hosts.members[0])
    yield it
    it.process.stop()


def events(member: Member, *options: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in member.cli("events", "--json", *options).splitlines()]


def named(path: Path) -> set[str]:
    """Return the series that a file of the examples names."""
    return set(re.findall(r"\b(?:netplug|process)_[a-z_]+", path.read_text()))


def test_prometheus_reads_all_that_dashboard_and_alerts_name(hosts: Cluster, prometheus: Prometheus) -> None:
    one, two = hosts.members
    with (
        hosts.network("blue", "--subnet", "10.90.1.0/24") as net,
        hosts.station(one, net, "--name", "web", "--publish", "8080:80") as web,
        hosts.station(two, net) as other,
    ):
        assert web.pings(other.addresses[0])
        with pytest.raises(CommandError):  # a fault of each kind, so that its series is there
            one.cli("publish", "nobody", "1:1")
        wait_until(lambda: prometheus.query('up{job="netplug"} == 1'), 30, "the target is up")
        wanted = named(EXAMPLES / "prometheus/alerts.yml") | named(EXAMPLES / "grafana/netplug.json")
        wanted.discard("netplug_faults")  # a source has a series from its first fault on
        missing = lambda: {name for name in wanted if not prometheus.query(name)}  # noqa: E731
        wait_until(lambda: not missing(), 30, "each series is there", ignoring=())
        sent = 'netplug_endpoint_transmit_packets_total{name="web"}'
        wait_until(lambda: any(value > 2 for _, value in prometheus.query(sent)), 30, "its pings are counted")
        assert [value for _, value in prometheus.query("netplug_remote_endpoints")] == [1]
        assert [value for _, value in prometheus.query('netplug_cluster_hosts{state="alive"}')] == [2]
        wait_until(lambda: prometheus.firing() == set(), 30, "no alert")


def test_an_alert_is_raised_while_a_pool_is_full(hosts: Cluster, prometheus: Prometheus) -> None:
    one = hosts.members[0]
    one.cli("network", "create", "small", "--subnet", "10.90.2.0/29")
    with ExitStack() as stack:
        for _ in range(5):  # and the gateway
            place = stack.enter_context(namespace(one.host))
            place.attach(one.netplug, "small")
            stack.callback(place.detach, one.netplug, "small")
        wait_until(lambda: "NetplugPoolNearlyFull" in prometheus.firing(), 30, "the alert")
    wait_until(lambda: "NetplugPoolNearlyFull" not in prometheus.firing(), 30, "its end")
    one.cli("network", "rm", "small")


def test_heals_are_events_and_are_counted(hosts: Cluster, prometheus: Prometheus) -> None:
    one = hosts.members[0]
    one.cli("network", "create", "red", "--subnet", "10.90.3.0/24")

    def counted() -> float:
        return sum(value for _, value in prometheus.query("netplug_heals_total"))

    before = counted()

    def healed() -> int:
        found = [it for it in events(one, "--kind", "drift.healed") if "table/inet netplug" in it["object"]]
        assert len(found) <= 1, "equal events in a row are one"
        return sum(it["count"] for it in found)

    for number in range(1, 4):
        one.host.run(["nft", "delete", "table", "inet", "netplug"])
        wait_until(lambda number=number: healed() == number, 30, f"heal {number}")  # type: ignore[misc]
    wait_until(lambda: counted() >= before + 3, 30, "the heals are counted")
    assert not one.netplug.drift()
    one.cli("network", "rm", "red")
    told = events(one, "--network", "red")
    assert [it["kind"] for it in told] == ["network.created", "network.removed"]
    assert {it["by"] for it in told} == {"cli"}
    assert len({it["request"] for it in told}) == 2


def test_a_host_that_is_lost_and_comes_back_is_told(hosts: Cluster, prometheus: Prometheus) -> None:
    one, two = hosts.members
    name = two.host.name

    def told() -> list[str]:
        return [it["kind"] for it in events(one, "--kind", "host") if it["host_name"] == name]

    # In another order of the tests the store did not answer before, and leases may have ended.
    wait_until(lambda: told()[-1] in {"host.joined", "host.returned"}, DEAD_S, "the host is there")
    two.netplug.kill()
    wait_until(lambda: told()[-1] == "host.lost", DEAD_S, "the host is lost")
    wait_until(lambda: "NetplugPeerLost" in prometheus.firing(), 30, "the alert")
    two.netplug.start()
    wait_until(lambda: told()[-1] == "host.returned", 30, "the host is back")
    two.netplug.stop()
    wait_until(lambda: told()[-1] == "host.left", DEAD_S, "the host has left")
    (left,) = events(one, "--kind", "host.left")
    assert left["cause"] == "its daemon was stopped"
    assert left["by"] == "cluster"
    two.netplug.start()
    wait_until(lambda: told()[-1] == "host.returned", 30, "the host is back")
    kinds = [it["kind"] for it in events(two, "--kind", "daemon")]
    assert kinds == ["daemon.started"] * 2 + ["daemon.stopped", "daemon.started"]


def test_a_store_that_does_not_answer_is_told(hosts: Cluster, prometheus: Prometheus) -> None:
    one = hosts.members[0]
    hosts.etcd.hang()
    try:
        wait_until(lambda: events(one, "--kind", "store.lost"), 30, "the store is lost")
        wait_until(lambda: "NetplugStoreUnreachable" in prometheus.firing(), 30, "the alert")
    finally:
        hosts.etcd.go_on()
    wait_until(lambda: events(one, "--kind", "store.returned"), 30, "the store is back")
    wait_until(lambda: "NetplugStoreUnreachable" not in prometheus.firing(), 30, "the end of the alert")
