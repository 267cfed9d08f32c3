"""Reads what the metrics say from the engine. It runs in the event loop, and takes a millisecond or two."""

import platform
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Protocol, TypeAlias

from netplug import __version__
from netplug.dns.durations import ANSWER_BOUNDS_S, Durations
from netplug.engine import Engine
from netplug.engine.happenings import Kind
from netplug.insight.metrics import catalogue as of
from netplug.insight.metrics.catalogue import MOST_NETWORKS, OTHERS, Metric

if TYPE_CHECKING:
    from netplug.cluster.cluster import Cluster
    from netplug.dns.server import Counts
    from netplug.names.server import NameServer
    from netplug.tasks.latency import Latencies

CODES = {0: "noerror", 1: "formerr", 2: "servfail", 3: "nxdomain", 4: "notimp", 5: "refused"}
"""RCODEs (RFC 1035 4.1.1)."""
DROPPED = "dropped"
Labels: TypeAlias = tuple[str, ...]


class Distribution(Protocol):
    """Durations in buckets. `bounds`: their upper ends in seconds; one more bucket has what is longer."""

    @property
    def bounds(self) -> tuple[float, ...]: ...
    @property
    def buckets(self) -> list[int]: ...
    @property
    def sum_s(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Histogram:
    """A copy of a distribution, as of one moment."""

    bounds: tuple[float, ...]
    buckets: tuple[int, ...]
    sum_s: float

    @classmethod
    def of(cls, found: Distribution) -> "Histogram":
        return cls(found.bounds, tuple(found.buckets), found.sum_s)


@dataclass(slots=True)
class Samples:
    """Values by metric and labels."""

    found: defaultdict[Metric, dict[Labels, float | Histogram]] = field(default_factory=lambda: defaultdict(dict))

    def set(self, metric: Metric, value: float | Histogram, *labels: str) -> None:
        """Set a value."""
        self.found[metric][labels] = value

    def add(self, metric: Metric, value: float, *labels: str) -> None:
        """Add to a value."""
        before = self.found[metric].get(labels, 0)
        assert not isinstance(before, Histogram)  # noqa: S101 - those are set
        self.found[metric][labels] = before + value

    def count(self, metric: Metric, labels: Iterable[Labels]) -> None:
        """Count by labels. A metric without labels is there with 0."""
        self.found[metric].update(Counter(labels))


@dataclass(frozen=True, slots=True)
class Sources:
    """What is read. `stores`: by name."""

    engine: Engine
    names: "NameServer"
    cluster: "Cluster | None"
    stores: Mapping[str, "Latencies"]


def read(sources: Sources, streams: int) -> Samples:
    """Return all values but those of endpoints' traffic. `streams`: number of readers of events."""
    samples = Samples()
    samples.set(of.BUILD, 1, __version__, platform.python_version())
    samples.set(of.EVENT_STREAMS, streams)
    _requests(samples, sources)
    _objects(samples, sources.engine)
    _pools(samples, sources.engine)
    _health(samples, sources.engine)
    _dns(samples, sources)
    if sources.cluster is not None:
        _cluster(samples, sources.cluster)
    return samples


def _requests(samples: Samples, sources: Sources) -> None:
    samples.set(of.PRESENT, sources.engine.requests.present)
    for labels, latency in sources.engine.requests.seen.items():
        samples.set(of.REQUESTS, Histogram.of(latency), *labels)
    for store, latencies in sources.stores.items():
        for labels, latency in latencies.seen.items():
            samples.set(of.STORE, Histogram.of(latency), store, *labels)


def _objects(samples: Samples, engine: Engine) -> None:
    networks, endpoints = engine.registry.networks(), engine.registry.endpoints()
    modes = {record.network.id: record.network.options.mode for record in networks}
    samples.count(of.NETWORKS, ((mode,) for mode in modes.values()))
    samples.count(of.ENDPOINTS, ((modes.get(it.endpoint.network, ""), str(it.front_end)) for it in endpoints))
    for proto in ("tcp", "udp", "sctp"):
        samples.set(of.PORTS, 0, proto)
    for mapping in (mapping for it in endpoints for mapping in it.in_force):
        samples.add(of.PORTS, mapping.count, str(mapping.proto))


def _pools(samples: Samples, engine: Engine) -> None:
    names = {record.network.id: record.network.name for record in engine.registry.networks()}
    for pool in sorted(engine.allocator.pools(), key=lambda pool: pool.id)[:MOST_NETWORKS]:
        usage = engine.allocator.usage(pool.id)
        network = next((names[holder] for holder in pool.holders if holder in names), "")
        labels = str(pool.range or pool.network), pool.space, network
        samples.set(of.POOL_SIZE, usage.size, *labels)
        samples.set(of.POOL_USED, usage.size - usage.free, *labels)


def _health(samples: Samples, engine: Engine) -> None:
    counts = engine.happenings.counts
    for kind in Kind:
        samples.set(of.EVENTS, counts[kind], str(kind))
    samples.set(of.HEALS, counts[Kind.DRIFT_HEALED])
    samples.set(of.DRIFT, len(engine.drifts.left))
    samples.set(of.QUARANTINE, len(engine.quarantine.all()))
    for source, count in engine.conditions.counts().items():
        samples.set(of.FAULTS, count, source)


def _dns(samples: Samples, sources: Sources) -> None:
    names = {record.network.id: record.network.name for record in sources.engine.registry.networks()}
    shown = set(sorted(names.values())[:MOST_NETWORKS])
    samples.set(of.DNS_FAULTS, sum(counts.faults for counts in sources.names.counts.values()))
    rest = Durations(ANSWER_BOUNDS_S)
    for ident, counts in sources.names.counts.items():
        name = names.get(ident, "")
        network = name if name in shown else OTHERS
        _dns_of(samples, counts, network)
        if network != OTHERS:
            samples.set(of.DNS_DURATION, Histogram.of(counts.durations), network)
        else:
            rest.buckets = [one + other for one, other in zip(rest.buckets, counts.durations.buckets, strict=True)]
            rest.sum_s += counts.durations.sum_s
    if any(rest.buckets):
        samples.set(of.DNS_DURATION, Histogram.of(rest), OTHERS)
    forwarder = sources.names.forwarder
    for part in fields(forwarder.counts):
        samples.set(of.UPSTREAM, getattr(forwarder.counts, part.name), part.name)
    samples.set(of.UPSTREAM_PENDING, forwarder.pending)
    samples.set(of.UPSTREAM_DURATION, Histogram.of(forwarder.durations))


def _dns_of(samples: Samples, counts: "Counts", network: str) -> None:
    for code, word in CODES.items():
        samples.add(of.DNS_ANSWERS, counts.codes[code], network, word)
    other = sum(number for code, number in enumerate(counts.codes) if code not in CODES)
    samples.add(of.DNS_ANSWERS, other, network, "other")
    samples.add(of.DNS_ANSWERS, counts.dropped, network, DROPPED)
    samples.add(of.DNS_FORWARDED, counts.outward, network)
    samples.add(of.DNS_STRANGERS, counts.strangers, network)


def _cluster(samples: Samples, cluster: "Cluster") -> None:
    alive, hosts = cluster.view.all_alive(), cluster.view.hosts()
    samples.set(of.HOSTS, len(hosts.keys() & alive), "alive")
    samples.set(of.HOSTS, len(hosts.keys() - alive), "down")
    samples.set(of.STORE_UP, int(cluster.leases.breaker.answers))
    samples.set(of.ADMITTED, int(cluster.membership.admitted))
    samples.set(of.REMOTE, sum(host != cluster.me for _, host, _, _ in cluster.view.all_endpoints()))
