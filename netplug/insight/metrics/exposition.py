"""Writes samples as Prometheus reads them. It imports prometheus-client, and runs in a thread."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from netplug.insight.metrics.catalogue import ON_REQUEST, Type
from netplug.insight.metrics.catalogue import Metric as Named
from netplug.insight.metrics.lines import append
from netplug.insight.metrics.reading import Histogram, Labels, Samples

_MIXED = "a metric has values of another type than its own"


class _Samples(Collector):
    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        for metric, values in self._samples.found.items():
            if metric in ON_REQUEST:
                continue
            yield _histogram(metric, values) if metric.type is Type.HISTOGRAM else _family(metric, values)


def _family(metric: Named, values: dict[Labels, float | Histogram]) -> Metric:
    kind = CounterMetricFamily if metric.type is Type.COUNTER else GaugeMetricFamily
    family = kind(metric.name, metric.meaning, labels=metric.labels)
    for labels, value in values.items():
        if isinstance(value, Histogram):
            raise TypeError(_MIXED)
        family.add_metric(labels, value)
    return family


def _histogram(metric: Named, values: dict[Labels, float | Histogram]) -> Metric:
    family = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
    for labels, value in values.items():
        if not isinstance(value, Histogram):
            raise TypeError(_MIXED)
        total, buckets = 0, []
        for bound, number in zip((*map(str, value.bounds), "+Inf"), value.buckets, strict=True):
            total += number
            buckets.append((bound, total))
        family.add_metric(labels, buckets, value.sum_s)
    return family


def render(samples: Samples, accept: str) -> tuple[bytes, str]:
    """Return the text in the best format that a client accepts, and its media type. With metrics of the process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Samples(samples))
    ProcessCollector(registry=registry)
    encode, kind = choose_encoder(accept)
    traffic = ((metric, values) for metric, values in samples.found.items() if metric in ON_REQUEST)
    return append(encode(registry), traffic), kind
