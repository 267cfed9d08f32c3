"""The metrics of this host. The loop only copies numbers; a thread makes the text of them."""

import asyncio
import time
from collections.abc import Callable

import structlog

from netplug.errors import NetplugError
from netplug.insight import traffic
from netplug.insight.metrics import catalogue as of
from netplug.insight.metrics import traffic as endpoint_traffic
from netplug.insight.metrics.reading import Samples, Sources, read

log = structlog.get_logger(__name__)


class Metrics:
    """Call it for the text. `endpoint_traffic`: whether each endpoint's is in it. `streams`: see `read`."""

    def __init__(self, sources: Sources, *, endpoint_traffic: bool, streams: Callable[[], int]) -> None:
        self._sources = sources
        self._endpoint_traffic = endpoint_traffic
        self._streams = streams

    async def __call__(self, accept: str = "") -> tuple[bytes, str]:
        """Return what Prometheus reads, and its media type. `accept`: the media types that it accepts."""
        started = time.perf_counter()
        samples = read(self._sources, self._streams())
        samples.set(of.SCRAPE, time.perf_counter() - started)
        if self._endpoint_traffic:
            await self._add_traffic(samples)
        return await asyncio.to_thread(_render, samples, accept)

    async def _add_traffic(self, samples: Samples) -> None:
        """Add the traffic. If the kernel does not answer, it is missing, and all else is there."""
        try:
            found = await traffic.read(self._sources.engine)
        except (NetplugError, OSError) as exc:
            log.warning("metrics.no_traffic", error=str(exc))
        else:
            endpoint_traffic.add(samples, found)


def _render(samples: Samples, accept: str) -> tuple[bytes, str]:
    from netplug.insight.metrics.exposition import render  # noqa: PLC0415 - takes 20 ms and 1 MB, at the first scrape

    return render(samples, accept)
