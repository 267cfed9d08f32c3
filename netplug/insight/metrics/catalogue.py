"""The metrics: names, types, labels, meanings. `docs/metrics.md` is made from this list.

Names and units are as Prometheus asks ("Metric and label naming"). No label has a value that grows with the traffic:
verbs and outcomes are words of this program, networks at most `MOST_NETWORKS`, and endpoints are only there if the
setting `http_endpoint_traffic` asks for them.
"""

from dataclasses import dataclass
from enum import StrEnum

MOST_NETWORKS = 200
OTHERS = "(others)"
"""The label of all networks beyond `MOST_NETWORKS`, together."""


class Type(StrEnum):
    """Of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric. `name`: as Prometheus shows it."""

    name: str
    type: Type
    labels: tuple[str, ...]
    meaning: str


def _counter(name: str, meaning: str, *labels: str) -> Metric:
    return Metric(f"netplug_{name}_total", Type.COUNTER, labels, meaning)


def _gauge(name: str, meaning: str, *labels: str) -> Metric:
    return Metric(f"netplug_{name}", Type.GAUGE, labels, meaning)


def _histogram(name: str, meaning: str, *labels: str) -> Metric:
    return Metric(f"netplug_{name}_seconds", Type.HISTOGRAM, labels, meaning)


BUILD = _gauge("build_info", "1; its labels say which version runs", "version", "python")
REQUESTS = _histogram(
    "request_duration", "Requests of Docker, CNI, netavark and the command line, by outcome",
    "front_end", "verb", "outcome",
)  # fmt: skip
PRESENT = _gauge("requests_in_progress", "Requests that are being answered")
NETWORKS = _gauge("networks", "Networks on this host", "mode")
ENDPOINTS = _gauge("endpoints", "Endpoints on this host", "mode", "front_end")
REMOTE = _gauge("remote_endpoints", "Endpoints on other hosts that this host knows")
PORTS = _gauge("published_ports", "Ports of this host that lead to containers", "proto")
POOL_SIZE = _gauge("pool_addresses", "Addresses that can be given out", "subnet", "space", "network")
POOL_USED = _gauge(
    "pool_used_addresses", "Addresses that are given out, or kept for a container", "subnet", "space", "network"
)
EVENTS = _counter("events", "What happened, by kind; see docs/events.md", "kind")
HEALS = _counter("heals", "Objects in the kernel that were missing or different, and were repaired")
DRIFT = _gauge("drift", "Differences between records and kernel that the last repair left")
FAULTS = _gauge("faults", "Faults that are not in the kernel, as netplug diff shows them", "source")
QUARANTINE = _gauge("quarantined_records", "Records that cannot be used")
DNS_ANSWERS = _counter(
    "dns_answers", "Answers to containers, by network and code; 'dropped' are those that were not sent",
    "network", "outcome",
)  # fmt: skip
DNS_FORWARDED = _counter("dns_forwarded", "Questions for external names, by network", "network")
DNS_STRANGERS = _counter("dns_strangers", "Questions of nobody that a network knows", "network")
DNS_FAULTS = _counter("dns_internal_errors", "Questions that failed by a fault of the name server")
DNS_DURATION = _histogram(
    "dns_answer_duration", "Answers of the name server itself; one batch of questions in 64 is timed", "network"
)
UPSTREAM = _counter("dns_upstream_queries", "Queries to upstreams, by result", "result")
UPSTREAM_DURATION = _histogram("dns_upstream_duration", "Answers of upstreams")
UPSTREAM_PENDING = _gauge("dns_upstream_pending_queries", "Queries that no upstream has answered yet")
STORE = _histogram("store_request_duration", "Requests to a store", "store", "operation", "outcome")
STORE_UP = _gauge("shared_store_up", "Whether the store that hosts share answers (1) or not (0)")
ADMITTED = _gauge("cluster_admitted", "Whether this host may write to the shared store (1) or not (0)")
HOSTS = _gauge("cluster_hosts", "Hosts of the cluster, this one too, by whether their daemons are alive", "state")
EVENT_STREAMS = _gauge("event_streams", "Readers of the stream of events")
SCRAPE = _gauge("scrape_read_seconds", "Time for which the last scrape held the daemon's event loop")

_ENDPOINT = ("network", "endpoint", "name")
RECEIVED_BYTES = _counter("endpoint_receive_bytes", "Received by an endpoint", *_ENDPOINT)
SENT_BYTES = _counter("endpoint_transmit_bytes", "Sent by an endpoint", *_ENDPOINT)
RECEIVED_PACKETS = _counter("endpoint_receive_packets", "Received by an endpoint", *_ENDPOINT)
SENT_PACKETS = _counter("endpoint_transmit_packets", "Sent by an endpoint", *_ENDPOINT)
RECEIVED_DROPS = _counter("endpoint_receive_drop_packets", "Dropped on the way to an endpoint", *_ENDPOINT)
SENT_DROPS = _counter("endpoint_transmit_drop_packets", "Dropped on the way from an endpoint", *_ENDPOINT)

ALWAYS = (
    BUILD, REQUESTS, PRESENT, NETWORKS, ENDPOINTS, PORTS, POOL_SIZE, POOL_USED, EVENTS, HEALS, DRIFT, FAULTS,
    QUARANTINE, DNS_ANSWERS, DNS_FORWARDED, DNS_STRANGERS, DNS_FAULTS, DNS_DURATION, UPSTREAM, UPSTREAM_DURATION,
    UPSTREAM_PENDING, STORE, EVENT_STREAMS, SCRAPE,
)  # fmt: skip
IN_CLUSTERS = (REMOTE, STORE_UP, ADMITTED, HOSTS)
ON_REQUEST = (RECEIVED_BYTES, SENT_BYTES, RECEIVED_PACKETS, SENT_PACKETS, RECEIVED_DROPS, SENT_DROPS)
"""With the setting `http_endpoint_traffic`."""
ALL = (*ALWAYS, *IN_CLUSTERS, *ON_REQUEST)
