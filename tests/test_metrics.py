"""Metrics: what they say is true, names are Prometheus', a scrape is quick and holds nobody up."""

import asyncio
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from engine_host import Host, tcp, turn
from living import Living, living, until
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from netplug.dns.server import Counts
from netplug.insight.metrics import catalogue
from netplug.insight.metrics.catalogue import (
    ALL,
    ALWAYS,
    IN_CLUSTERS,
    MOST_NETWORKS,
    ON_REQUEST,
    OTHERS,
    RECEIVED_BYTES,
    Type,
)
from netplug.insight.metrics.lines import append
from netplug.insight.metrics.metrics import Metrics
from netplug.insight.metrics.reading import Sources
from netplug.names.server import NameServer
from netplug.tasks.latency import Latencies

ROOT = Path(__file__).parent.parent
PROMTOOL = shutil.which("promtool") or str(ROOT / ".venv/prometheus/usr/bin/promtool")
NEEDS_PROMTOOL = pytest.mark.skipif(not Path(PROMTOOL).exists(), reason="needs promtool (packaging/setup.sh system)")


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    host = await Host.boot()
    yield host
    await host.close()


def metrics_of(host: Host, names: NameServer, *, endpoint_traffic: bool = False) -> Metrics:
    times = Latencies()
    times.note(("txn", "ok"), 0.002)
    return Metrics(
        Sources(host.engine, names, None, {"sqlite": times}), endpoint_traffic=endpoint_traffic, streams=lambda: 0
    )


@pytest.fixture
def names(host: Host) -> Iterator[NameServer]:
    server = NameServer(host.engine)
    yield server
    server.close()


Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parsed(text: bytes) -> Values:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


async def scraped(metrics: Metrics) -> Values:
    text, _ = await metrics()
    return parsed(text)


def value(values: Values, name: str, **labels: str) -> float:
    return values[name, tuple(sorted(labels.items()))]


async def test_numbers_are_those_of_the_engine(host: Host, names: NameServer) -> None:
    metrics = metrics_of(host, names)
    await host.cli_network("10.1.0.0/24")
    await host.attach(ports=(tcp(8080), tcp(9000)))
    await host.attach("red")
    with host.engine.requests.answering("docker", "NetworkDriver.Join") as request:
        request.label = request.verb
    found = await scraped(metrics)
    assert value(found, "netplug_networks", mode="bridge") == 1
    assert value(found, "netplug_endpoints", mode="bridge", front_end="cli") == 2
    assert value(found, "netplug_published_ports", proto="tcp") == 2
    pool = {"subnet": "10.1.0.0/24", "space": "local", "network": "blue"}
    size = value(found, "netplug_pool_addresses", **pool)
    assert (size, value(found, "netplug_pool_used_addresses", **pool)) == (254, 3)
    labels = {"front_end": "docker", "verb": "NetworkDriver.Join", "outcome": "ok"}
    assert value(found, "netplug_request_duration_seconds_count", **labels) == 1
    assert value(found, "netplug_request_duration_seconds_bucket", le="+Inf", **labels) == 1
    assert value(found, "netplug_events_total", kind="endpoint.created") == 2
    assert value(found, "netplug_heals_total") == 0
    store = {"store": "sqlite", "operation": "txn", "outcome": "ok"}
    assert value(found, "netplug_store_request_duration_seconds_bucket", le="0.0025", **store) == 1
    assert value(found, "netplug_store_request_duration_seconds_bucket", le="0.001", **store) == 0
    (build,) = [dict(labels) for name, labels in found if name == "netplug_build_info"]
    assert set(build) == {"version", "python"}
    assert found["process_resident_memory_bytes", ()] > 1e6


async def test_heals_and_drift_move(host: Host, names: NameServer) -> None:
    metrics = metrics_of(host, names)
    await host.cli_network()
    record = await host.attach()
    link = next(step.key for step in record.plan if step.key.startswith("link/"))
    host.kernel.lose(link)
    await host.reconciler.repair()
    healed = value(await scraped(metrics), "netplug_heals_total")
    assert healed >= 1
    host.kernel.lose(link)
    host.kernel.fail_at(link)
    await host.reconciler.repair()
    found = await scraped(metrics)
    assert value(found, "netplug_drift") >= 1
    host.kernel.heal()
    await host.reconciler.repair()
    found = await scraped(metrics)
    assert value(found, "netplug_drift") == 0
    assert value(found, "netplug_heals_total") > healed


async def test_dns_is_counted_by_network_and_code(host: Host, names: NameServer) -> None:
    metrics = metrics_of(host, names)
    record = await host.cli_network()
    counts = names.counts[record.network.id]
    counts.codes[0], counts.codes[3], counts.codes[9], counts.dropped, counts.outward = 5, 2, 1, 3, 4
    counts.durations.note(0.00004, 7)
    found = await scraped(metrics)
    answers = {
        dict(labels)["outcome"]: it for (name, labels), it in found.items() if name == "netplug_dns_answers_total"
    }
    assert {word: it for word, it in answers.items() if it} == {"noerror": 5, "nxdomain": 2, "other": 1, "dropped": 3}
    assert value(found, "netplug_dns_forwarded_total", network="blue") == 4
    assert value(found, "netplug_dns_answer_duration_seconds_bucket", le="5e-05", network="blue") == 7
    assert value(found, "netplug_dns_answer_duration_seconds_bucket", le="2.5e-05", network="blue") == 0
    assert value(found, "netplug_dns_answer_duration_seconds_sum", network="blue") == pytest.approx(0.00028)


async def test_networks_beyond_a_number_are_one_label(host: Host, names: NameServer) -> None:
    metrics = metrics_of(host, names)
    for number in range(MOST_NETWORKS + 5):
        await host.cli_network(
            f"10.{number // 250 + 1}.{number % 250}.0/24", ident=f"{number:06x}{'0' * 58}", name=f"n{number}"
        )
        names.counts[f"{number:06x}{'0' * 58}"].codes[0] = 1
        names.counts[f"{number:06x}{'0' * 58}"].durations.note(0.001)
    found = await scraped(metrics)
    networks = {dict(labels)["network"] for name, labels in found if name == "netplug_dns_answers_total"}
    assert len(networks) == MOST_NETWORKS + 1
    assert value(found, "netplug_dns_answers_total", network=OTHERS, outcome="noerror") == 5
    assert value(found, "netplug_dns_answer_duration_seconds_count", network=OTHERS) == 5
    assert len([1 for name, _ in found if name == "netplug_pool_addresses"]) == MOST_NETWORKS


async def test_traffic_of_endpoints_is_there_on_request(host: Host, names: NameServer) -> None:
    await host.cli_network()
    await host.attach(name="web")
    without = {name for name, _ in await scraped(metrics_of(host, names))}
    found = await scraped(metrics_of(host, names, endpoint_traffic=True))
    more = {name for name, _ in found} - without
    assert more == {metric.name for metric in ON_REQUEST}
    (labels,) = [dict(labels) for name, labels in found if name == "netplug_endpoint_receive_bytes_total"]
    assert (labels["network"], labels["name"]) == ("blue", "web")


async def test_openmetrics_has_the_traffic_too(host: Host, names: NameServer) -> None:
    await host.cli_network()
    await host.attach(name="web")
    text, kind = await metrics_of(host, names, endpoint_traffic=True)("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    families = {family.name: family for family in openmetrics(text.decode())}
    (sample,) = families["netplug_endpoint_receive_bytes"].samples
    assert (sample.name, sample.labels["name"]) == ("netplug_endpoint_receive_bytes_total", "web")
    assert families["netplug_endpoint_receive_bytes"].type == "counter"


@pytest.mark.parametrize("value", ["a", "a b", 'a"b', "a\\b", "a\nb", "a\\", "ä{}", "%s"])
def test_labels_are_escaped(value: str) -> None:
    text = append(b"", [(RECEIVED_BYTES, {("blue", "0a", value): 7})])
    (family,) = text_string_to_metric_families(text.decode())
    (sample,) = family.samples
    assert sample.labels == {"network": "blue", "endpoint": "0a", "name": value}
    assert (sample.value, family.documentation) == (7, RECEIVED_BYTES.meaning)


async def test_each_metric_of_the_catalogue_is_exposed_with_its_type_and_labels(host: Host, names: NameServer) -> None:
    await host.cli_network()
    await host.attach()
    names.counts[next(iter(host.networks())).network.id] = Counts()
    host.engine.conditions.report("x", [])
    host.engine.supervisor._failed("dns", OSError("x"))
    host.engine.supervisor._failed("dns", OSError("x"))
    with host.engine.requests.answering("cli", "x"):
        pass
    text, _ = await metrics_of(host, names, endpoint_traffic=True)()
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    for metric in (*ALWAYS, *ON_REQUEST):
        family = families[metric.name.removesuffix("_total")]
        assert family.type == metric.type
        assert family.samples, metric.name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels), metric.name
    ours = {family.name for family in families.values() if family.name.startswith("netplug_")}
    assert ours == {metric.name.removesuffix("_total") for metric in (*ALWAYS, *ON_REQUEST)}


def test_the_catalogue_names_each_metric_once() -> None:
    declared = [it for it in vars(catalogue).values() if isinstance(it, catalogue.Metric)]
    assert sorted(it.name for it in declared) == sorted({it.name for it in ALL})
    for it in ALL:
        assert it.name.endswith("_total") == (it.type is Type.COUNTER)
        assert it.meaning


@NEEDS_PROMTOOL
async def test_promtool_finds_nothing_to_mend(host: Host, names: NameServer) -> None:
    await host.cli_network()
    await host.attach()
    text, _ = await metrics_of(host, names, endpoint_traffic=True)()
    done = await asyncio.to_thread(subprocess.run, [PROMTOOL, "check", "metrics"], input=text, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


async def test_a_scrape_of_500_endpoints_is_quick_and_does_not_hold_the_loop(host: Host, names: NameServer) -> None:
    await host.cli_network("10.1.0.0/16")
    for number in range(500):
        await host.attach(f"box{number}", ports=(tcp(10_000 + number),))
    metrics = metrics_of(host, names, endpoint_traffic=True)
    await metrics()  # imports
    took, held = [], []
    for _ in range(5):
        started = time.perf_counter()
        text, _ = await metrics()
        took.append(time.perf_counter() - started)
        found = parsed(text)
        held.append(value(found, "netplug_scrape_read_seconds"))
    assert min(took) < 0.1
    assert min(held) < 0.01


@pytest.fixture
def page(tmp_path: Path) -> Iterator[tuple[Living, str]]:
    import socket  # noqa: PLC0415

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with living(tmp_path, http=f"127.0.0.1:{port}") as daemon:
        url = f"http://127.0.0.1:{port}/metrics"
        until(lambda: _answers(url), "the page answers")
        yield daemon, url


def _answers(url: str) -> bool:
    try:
        return bool(_get(url)[1])
    except OSError:
        return False


def _get(url: str, accept: str = "") -> tuple[str, str]:
    with urlopen(Request(url, headers={"Accept": accept}), timeout=20) as answer:  # noqa: S310 - http
        return answer.headers["content-type"], answer.read().decode()


def test_a_daemon_serves_them_in_the_format_that_the_client_asks_for(page: tuple[Living, str]) -> None:
    daemon, url = page
    daemon.client.post("networks", body={"name": "blue"})
    kind, text = _get(url)
    assert kind.startswith("text/plain; version=")
    assert 'netplug_networks{mode="bridge"} 1.0' in text
    assert re.search(r'netplug_store_request_duration_seconds_count\{.*operation="durable txn".*\} [1-9]', text)
    assert 'verb="POST /v1/networks"' in text
    kind, text = _get(url, "application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")


async def test_the_text_is_not_made_in_the_loop(host: Host, names: NameServer) -> None:
    scrape = asyncio.ensure_future(metrics_of(host, names)())
    await turn()
    assert not scrape.done()
    await scrape


def test_the_document_lists_the_metrics(request: pytest.FixtureRequest) -> None:
    path = ROOT / "docs" / "metrics.md"
    where = {
        **dict.fromkeys(IN_CLUSTERS, " (in a cluster)"),
        **dict.fromkeys(ON_REQUEST, " (`--http-endpoint-traffic`)"),
    }
    rows = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    for it in ALL:
        labels = ", ".join(f"`{label}`" for label in it.labels)
        rows.append(f"| `{it.name}` | {it.type} | {labels} | {it.meaning}{where.get(it, '')} |")
    pattern = re.compile(r"(<!-- metrics:.*?-->\n)(.*?)(<!-- /metrics -->)", re.DOTALL)
    text = path.read_text()
    wanted, count = pattern.subn(lambda found: f"{found[1]}{chr(10).join(rows)}\n{found[3]}", text)
    assert count == 1
    if request.config.getoption("--update"):
        path.write_text(wanted)
    else:
        assert text == wanted
