"""The traffic of each endpoint, if the settings ask for it."""

from collections.abc import Iterable

from netplug.drivers.naming import short
from netplug.insight.metrics import catalogue as of
from netplug.insight.metrics.reading import Samples
from netplug.insight.traffic import Counted


def add(samples: Samples, found: Iterable[Counted]) -> None:
    """Add what each endpoint received and sent since its link was made."""
    for it in found:
        labels = it.network, short(it.record.endpoint.id), it.record.name
        samples.set(of.RECEIVED_BYTES, it.received.bytes, *labels)
        samples.set(of.SENT_BYTES, it.sent.bytes, *labels)
        samples.set(of.RECEIVED_PACKETS, it.received.packets, *labels)
        samples.set(of.SENT_PACKETS, it.sent.packets, *labels)
        samples.set(of.RECEIVED_DROPS, it.received.dropped, *labels)
        samples.set(of.SENT_DROPS, it.sent.dropped, *labels)
